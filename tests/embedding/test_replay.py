"""Graphs give each batch its own vectors, per shape and precision, and give up where they cannot be recorded.

There is no GPU here: a stand-in for CUDA's graphs computes into the same memory each time it is replayed, as they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from deo_cube.embedding import process


class Doubling:
    """An encoder that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.last = torch.empty(0)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = pixels * 2 + torch.is_autocast_enabled("cuda")
        return self.last


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Doubling:
    encoder = Doubling()

    class Graph:
        def replay(self) -> None:
            self.result.copy_(self.entry * 2 + self.autocast)

    @contextlib.contextmanager
    def record(graph: Any, **options: Any) -> Iterator[None]:
        assert options["capture_error_mode"] == "thread_local"
        yield
        graph.result, graph.autocast = encoder.last, torch.is_autocast_enabled("cuda")

    real = process.Replayed._recorded

    def recorded(self: process.Replayed, pixels: torch.Tensor) -> Any:
        graph, entry, result = real(self, pixels)
        graph.entry = entry
        return graph, entry, result

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(process.Replayed, "_recorded", recorded)
    return encoder


def test_each_batch_gets_its_own_vectors(encoder: Doubling) -> None:
    replayed = process.Replayed(encoder)
    batches = [torch.full((2, 3), float(i)) for i in range(6)]
    results = [replayed.encode(batch) for batch in batches]
    assert [r.unique().item() for r in results] == [0, 2, 4, 6, 8, 10]
    assert encoder.calls == process.WARM + 1
    assert replayed.recorded == 1
    assert replayed.last is encoder.last  # all else is the encoder's


def test_shapes_and_precisions_have_graphs_of_their_own(encoder: Doubling, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = process.Replayed(encoder)
    for _ in range(process.WARM + 2):
        for autocast in (False, True):
            monkeypatch.setattr(torch, "is_autocast_enabled", lambda device, on=autocast: on)
            for shape in ((2, 3), (4, 3)):
                result = replayed.encode(torch.ones(shape))
                assert result.shape == shape
                assert result.unique().item() == 2 + autocast
    assert replayed.recorded == 4


def test_where_a_graph_cannot_be_recorded_kernels_are_launched_one_by_one(
    encoder: Doubling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, pixels: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(process.Replayed, "_recorded", refuse)
    replayed = process.Replayed(encoder)
    for i in range(5):
        assert replayed.encode(torch.full((1,), float(i))).item() == 2 * i
    assert replayed.recorded == 0


def test_out_of_memory_frees_the_graphs_before_it_halves_a_batch(
    encoder: Doubling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replayed = process.Replayed(encoder)
    for _ in range(process.WARM + 1):
        replayed.encode(torch.ones(2))
    monkeypatch.setattr(process, "_encoders", {("model", "cpu", False, "float32"): replayed})
    sizes: list[int] = []

    def work(part: list[int]) -> list[int]:
        sizes.append(len(part))
        if replayed.recorded:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(part)

    (only,) = process.run_batches([1, 2, 3], work, batch=3, device="cpu", key="graphs")
    assert only == ([1, 2, 3], [1, 2, 3])
    assert sizes == [3, 3]
    assert "without CUDA graphs" in caplog.text
    for _ in range(process.WARM + 1):
        replayed.encode(torch.ones(2))
    assert replayed.recorded == 0
