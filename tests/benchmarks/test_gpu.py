"""The GPU benchmark runs; where there is no GPU it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_it_ends_with_a_line_that_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="nothing measured: .*CUDA"):
        gpu.main(gpu.Config())


def test_it_runs_on_the_cpu_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = gpu.Config(
        models=("tiny",), device="cpu", size=128, tile=64, halo=0, rounds=1, matrix=64, out=tmp_path / "gpu.json"
    )
    (row,) = gpu.main(config)["rows"]
    assert row["tiles_per_s"] > 0
    assert row["fraction_of_bare"] == pytest.approx(row["tiles_per_s"] / row["bare_tiles_per_s"])
    assert row["gflop_per_tile"] > 0.01
    assert row["busy"] is None
    said = capsys.readouterr().out
    assert "skipped: tiny in bfloat16" in said
    assert "no figure of a GPU" in said


def test_busy_is_the_union_of_kernels() -> None:
    assert gpu.busy_share([(0, 1), (0.5, 2), (3, 4)], 4) == 0.75
    assert gpu.busy_share([], 1) == 0
