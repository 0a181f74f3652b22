"""The GPU benchmark runs; where there is no GPU it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import embed, setting
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.setting import Config
from deo_cube.encoder.devices import cpu_has_bfloat16


def test_without_a_gpu_it_ends_with_a_line_that_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match=r"nothing measured: .*CUDA"):
        main(Config())


def test_it_runs_on_the_cpu_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(
        only=("encoder", "embed", "training"), models=("tiny",), device="cpu", size=128, tile=64, halo=0, rounds=1,
        matrix=64, batches=(1, 2), compile=False, precisions=("float32", "bfloat16"), out=tmp_path / "gpu.json",
    )  # fmt: skip
    report = main(config)
    assert json.loads((tmp_path / "gpu.json").read_text())["embed"] == json.loads(json.dumps(report["embed"]))
    row = report["embed"][0]
    assert row["tiles_per_s"] > 0
    assert row["fraction_of_bare"] == pytest.approx(row["tiles_per_s"] / row["bare_tiles_per_s"])
    assert row["gflop_per_tile"] > 0.01
    assert row["busy"] is None
    alone = report["encoder"][0]
    assert set(alone["tiles_per_s"]) == {1, 2}
    assert all(step["losses"][-1] < step["losses"][0] for step in report["training"])
    output = capsys.readouterr().out
    assert ("skipped: tiny in bfloat16" in output) != cpu_has_bfloat16()
    assert "no figure of a GPU" in output


def test_steps_that_come_too_late_are_named(tmp_path: Path) -> None:
    report = main(Config(models=("tiny",), device="cpu", seconds=0, size=64, out=tmp_path / "gpu.json"))
    assert "resumed" in report["left_out"]
    assert not {"correctness", "encoder", "embed", "training"} & set(report)


def test_busy_is_the_union_of_kernels() -> None:
    assert embed.busy_share([(0, 1), (0.5, 2), (3, 4)], 4) == 0.75
    assert embed.busy_share([], 1) == 0


def test_a_card_without_weights_becomes_untrained() -> None:
    card = setting.card_of("swinb")
    assert card.alias == "swinb, random weights"
    assert not card.trained
