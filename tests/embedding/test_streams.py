"""Copies, kernels and waits happen in an order that gives the right vectors, on a simulated device with streams.

The simulation does everything as late as it may: an operation takes effect only when something waits for it, and memory
holds garbage until then. So a step that does not wait for the one before it gives wrong numbers here, every time, and
not once in a million batches as on a GPU.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from deo_cube.embedding import process, transfer
from deo_cube.embedding.embed import embed
from tests.embedding.conftest import cube_at

GARBAGE = 77


@dataclass
class Stream:
    """Operations in the order they were given, of which none has taken effect."""

    pending: deque[Callable[[], None]] = field(default_factory=deque)

    def run_until(self, count: int, done: list[int]) -> None:
        while done[0] < count:
            self.pending.popleft()()
            done[0] += 1


class Simulated(transfer.Streams):
    """Streams of a device whose memory is the host's."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._lock = threading.RLock()
        self._compute = Stream()
        self._given: dict[int, int] = {}
        self._done: dict[int, list[int]] = {}
        self._streams = [self._compute]  # so that no id is used twice
        self.copied_in: list[torch.Tensor] = []
        self.copied_out: list[torch.Tensor] = []
        self.kept: list[tuple[int, int]] = []

    def copying(self, device: Any) -> Stream:
        if not hasattr(self._here, "stream"):
            self._here.stream = Stream()
            self._streams.append(self._here.stream)
        return self._here.stream

    def computing(self, device: Any) -> Stream:
        return self._compute

    def pinned(self, shape: Sequence[int], dtype: Any) -> torch.Tensor:
        return torch.full(tuple(shape), GARBAGE, dtype=dtype)

    def give(self, stream: Stream, operation: Callable[[], None]) -> None:
        with self._lock:
            stream.pending.append(operation)
            self._given[id(stream)] = self._given.get(id(stream), 0) + 1

    def copy_to_device(self, host: torch.Tensor, device: Any, stream: Stream) -> torch.Tensor:
        there = torch.full_like(host, GARBAGE)
        self.copied_in.append(there)
        self.give(stream, lambda: there.copy_(host))
        return there

    def copy_to_host(self, tensor: torch.Tensor, stream: Stream) -> torch.Tensor:
        host = self.pinned(tensor.shape, tensor.dtype)
        self.copied_out.append(tensor)
        self.give(stream, lambda: host.copy_(tensor))
        return host

    def record(self, stream: Stream) -> tuple[Stream, int]:
        return stream, self._given.get(id(stream), 0)

    def wait(self, stream: Stream, event: tuple[Stream, int]) -> None:
        if stream is self._compute:
            self.synchronize(event)  # the kernels that follow run at once, so what they wait for must be done
        else:
            self.give(stream, lambda: self.synchronize(event))

    def synchronize(self, event: tuple[Stream, int]) -> None:
        stream, count = event
        with self._lock:
            stream.run_until(count, self._done.setdefault(id(stream), [0]))

    def keep(self, tensor: torch.Tensor, stream: Stream) -> None:
        self.kept.append((id(tensor), id(stream)))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    """Make the CPU a device with streams, whose encoder's output is there only once somebody waits for it."""
    simulated = Simulated()
    monkeypatch.setattr(transfer, "needs_copy", lambda device: True)
    monkeypatch.setitem(transfer.STREAMS, "cpu", simulated)
    real = process.encoder

    class Late:
        def __init__(self, encoder: Any) -> None:
            self.encoder = encoder

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            result = self.encoder.encode(pixels)
            out = torch.full_like(result, GARBAGE)
            simulated.give(simulated._compute, lambda: out.copy_(result))
            return out

    monkeypatch.setattr(process, "encoder", lambda *args, **options: Late(real(*args, **options)))
    return simulated


def lazy(**options: Any) -> Any:
    cube = cube_at((160, 130), times=2)
    return embed(cube, "means", units="dn", dtype="float32", block=64, batch_size=3, **options)


def vectors(workers: int = 4) -> np.ndarray:
    return np.asarray(lazy().compute(scheduler="threads", num_workers=workers).values)


@pytest.fixture
def expected() -> np.ndarray:
    return vectors()


def test_every_step_waits_for_the_one_before_it(expected: np.ndarray, device: Simulated) -> None:
    np.testing.assert_array_equal(vectors(), expected)
    assert len(device.copied_in) > 4


@pytest.mark.parametrize("skipped", ["wait", "synchronize"])
def test_a_step_that_does_not_wait_gives_wrong_vectors(
    skipped: str, expected: np.ndarray, device: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulation finds what it is for: without the wait, garbage is read."""
    monkeypatch.setattr(device, skipped, lambda *args: None)
    assert not np.array_equal(vectors(), expected, equal_nan=True)


@pytest.mark.parametrize("stream", ["copying", "computing"])
def test_an_event_of_the_wrong_stream_gives_wrong_vectors(
    stream: str, expected: np.ndarray, device: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = device.record, getattr(device, stream)
    monkeypatch.setattr(device, "record", lambda _: real(other("cpu")))
    assert not np.array_equal(vectors(workers=1), expected, equal_nan=True)


def test_memory_is_kept_for_the_stream_that_still_uses_it(device: Simulated) -> None:
    vectors()
    kept = set(device.kept)
    assert {(id(t), id(device.computing("cpu"))) for t in device.copied_in} <= kept
    copying = {id(s) for s in device._streams[1:]}
    for tensor in device.copied_out:
        assert {s for t, s in kept if t == id(tensor)} & copying
