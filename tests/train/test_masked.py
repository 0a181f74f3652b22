"""Masked image modelling in place of self-distillation, and the teacher through the multispectral stem alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from deo_cube.train.augment import generator, hidden_squares
from deo_cube.train.config import PRESETS, Objective, Optical, TrainConfig
from deo_cube.train.loop import build, plan_run, train
from deo_cube.train.losses import masked_error

SMOKE = dataclasses.replace(PRESETS["smoke"], device="cpu")
WEIGHTS = "data/weights/mobilenet_v1_1.0_224_trunk.safetensors"


def masked(**changes: object) -> Objective:
    # The deepest map of the smoke student has a stride of 32, as wide as its global crop: two stages give 8.
    return dataclasses.replace(SMOKE.objective, pretext="masked", mask_size=8, **changes)


def two_stages(out: Path, source: str, **changes: object) -> TrainConfig:
    student = dataclasses.replace(SMOKE.student, depths=(1, 1), heads=(1, 2))
    return dataclasses.replace(SMOKE, out=str(out), data=(source,), student=student, **changes)


def test_the_share_of_hidden_squares_is_exact_and_rows_are_those_of_one_process() -> None:
    whole = hidden_squares(6, 32, ratio=0.6, square=8, random=generator(0, 3, 1))
    assert whole.shape == (6, 1, 32, 32)
    squares = whole[:, 0, ::8, ::8]
    assert (squares.sum(dim=(1, 2)) == round(0.6 * 16)).all()
    assert torch.equal(squares.repeat_interleave(8, 1).repeat_interleave(8, 2), whole[:, 0])
    assert len({tuple(s.flatten().tolist()) for s in squares}) == 6
    parts = [
        hidden_squares(3, 32, ratio=0.6, square=8, random=generator(0, 3, 1), rank=r, world_size=2) for r in (0, 1)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_the_error_counts_hidden_pixels_only() -> None:
    images, hidden = torch.randn(2, 10, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    hidden[:, :, :4] = True
    wrong = images.clone()
    wrong[:, :, :4] += 0.5
    wrong[:, :, 4:] += 9.0
    assert masked_error(wrong, images, hidden) == pytest.approx(0.5, abs=1e-5)


def test_a_hidden_pixel_cannot_be_seen(tmp_path: Path, cube_source: str) -> None:
    from deo_cube.train.augment import View

    student, ema, _ = build(two_stages(tmp_path, cube_source, objective=masked()), torch.device("cpu"))
    assert ema is None
    torch.manual_seed(0)
    x, hidden = torch.randn(2, 10, 32, 32), torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    hidden[..., :16, :] = True
    y = x.clone()
    y[:, :, :16] = 7.0
    seen = [student([View(t, t[:, :3], t[:, :3], t[:, :3])] * 2, hidden).pooled for t in (x, y)]
    assert torch.equal(*seen)


def test_what_is_hidden_is_learnt_from_what_is_seen(tmp_path: Path, cube_source: str) -> None:
    from deo_cube.train.augment import View

    student, _, _ = build(two_stages(tmp_path, cube_source, objective=masked()), torch.device("cpu"))
    learn, errors = torch.optim.AdamW(student.parameters(), lr=1e-2), []
    # Every image has one value a band: the seen squares tell the hidden ones.
    x = torch.randn(8, 10, 1, 1, generator=generator(0)).expand(8, 10, 32, 32)
    for step in range(60):
        hidden = hidden_squares(16, 32, ratio=0.5, square=8, random=generator(1, step))
        found = student([View(x, x[:, :3], x[:, :3], x[:, :3])] * 2, hidden).masked
        learn.zero_grad()
        found.backward()
        learn.step()
        errors.append(float(found.detach()))
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])


def test_a_killed_masked_run_resumes_bit_for_bit(tmp_path: Path, cube_source: str) -> None:
    config = two_stages(tmp_path / "a", cube_source, objective=masked())
    train(config)
    line = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[0])
    assert "masked" in line
    assert "compression" not in line
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(config, out=str(tmp_path / "b")), on_step=_stop_at(2))
    train(dataclasses.replace(config, out=str(tmp_path / "b"), resume=True))
    one, two = ((tmp_path / run / "weights.safetensors").read_bytes() for run in "ab")
    assert one == two


def _stop_at(step: int):
    def look(done: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return look


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, cube_source: str) -> None:
    with pytest.raises(ValueError, match="mask-size"):
        two_stages(tmp_path, cube_source, objective=dataclasses.replace(masked(), mask_size=12))
    with pytest.raises(ValueError, match=r"student\.family"):
        dataclasses.replace(PRESETS["tiny"], objective=masked())
    with pytest.raises(ValueError, match="multispectral-optical"):
        dataclasses.replace(SMOKE, teacher="mobilenet", objective=Objective(second_stem=False))


def test_a_masked_run_can_be_planned(tmp_path: Path, cube_source: str) -> None:
    config = two_stages(tmp_path, cube_source, objective=masked())
    found = plan_run(config)
    assert found.activation_bytes > 0
    assert found.parameters - found.trunk == 16 * 10 * 8**2 + 10 * 8**2


@pytest.mark.real
def test_without_a_second_stem_the_teacher_reaches_the_ten_bands_alone(
    tmp_path: Path, cube_source: str, shared: Path
) -> None:
    from safetensors.torch import load_file

    config = dataclasses.replace(
        two_stages(tmp_path / "run", cube_source, steps=2),
        teacher="mobilenet",
        optical=Optical(weights=str(shared / WEIGHTS), enlarge=1.0),
        objective=dataclasses.replace(SMOKE.objective, second_stem=False, multispectral_optical=1.0, mid=0.0, late=0.0),
    )
    start, _, _ = build(config, torch.device("cpu"))
    before = {k: v.clone() for k, v in start.network.state_dict().items()}
    train(config)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert not [k for k in moved if k.startswith("conv_rgb.")]
    assert [k for k in moved if k.startswith("conv_ms.")]
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"ms_cls", "ms_mid", "ms_late", "compression"} <= set(line)
    assert "cls" not in line
    limits = json.loads((tmp_path / "run" / "card.json").read_text())["limits"]
    assert any("'rgb' was not trained" in text for text in limits)
