from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deo_cube.encoder.registry import load_encoder
from deo_cube.errors import MissingBandsError, UnknownModelError
from deo_cube.train.augment import View
from deo_cube.train.config import MS_BANDS, PRESETS, Loader, Objective, Specialist, TrainConfig
from deo_cube.train.loop import build, plan_run, train
from deo_cube.train.samples import Mixture, open_source
from deo_cube.train.student import Outputs, objective, specialist_targets
from deo_cube.train.teachers import EncoderTeacher, FrozenTeacher, Targets, load_specialist

SMOKE = PRESETS["smoke"]


def with_tiny(**changes: object) -> TrainConfig:
    return dataclasses.replace(SMOKE, specialist=Specialist("tiny"), **changes)  # type: ignore[arg-type]


def test_the_bundled_model_teaches_in_dn_by_the_teacher_s_protocol() -> None:
    teacher = load_specialist(with_tiny())
    assert isinstance(teacher, FrozenTeacher)
    assert teacher.bands == MS_BANDS
    assert teacher.dims == (192, 256, 192)
    dn = torch.rand(2, 10, 32, 32, generator=torch.Generator().manual_seed(0)) * 3000
    found = teacher(dn)
    assert [tuple(t.shape) for t in (found.cls, found.mid, found.late)] == [(2, 192), (2, 256, 8, 8), (2, 192, 8, 8)]
    encoder = load_encoder("tiny", device="cpu")
    np.testing.assert_allclose(found.late.numpy(), encoder.encode(dn.numpy(), bands=MS_BANDS), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.cls.numpy(), encoder.pool(dn.numpy(), bands=MS_BANDS), rtol=1e-5, atol=1e-5)
    assert not found.late.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())  # type: ignore[attr-defined]
    assert teacher.train().training is False  # type: ignore[attr-defined]


def test_it_sees_the_clean_pixels_of_its_own_bands() -> None:
    seen: list[torch.Tensor] = []

    class Two:
        name, bands, dims, licence = "two", ("B12", "B04"), (1, 1, 1), ""
        mean, std = (100.0, 0.0), (10.0, 1.0)

        def __call__(self, images: torch.Tensor) -> Targets:
            seen.append(images)
            return Targets(images, images, images)

    dn = [torch.full((1, 10, 4, 4), 500.0 + i) for i in range(3)]
    for x in dn:
        x[:, 9] = 200.0
    noisy = torch.randn(1, 10, 4, 4)
    specialist_targets(Two(), [View(noisy, noisy[:, :3], noisy[:, :3], noisy[:, :3], x) for x in dn])
    (images,) = seen
    assert images.shape == (2, 2, 4, 4)  # the two global views
    assert images[:, 0].eq(10).all()
    assert images[:, 1, 0, 0].tolist() == [500.0, 501.0]


def test_terms_are_those_of_the_optical_teacher_and_weigh_as_told() -> None:
    random = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=random), dim=1)

    targets = Targets(unit(4, 8), unit(4, 6, 2, 2), unit(4, 8, 2, 2))
    out = Outputs(sp_cls=unit(6, 8), sp_mid=unit(4, 6, 4, 4), sp_late=unit(4, 8, 2, 2))
    same = Outputs(cls=out.sp_cls, mid=out.sp_mid, late=out.sp_late)
    config = Objective(specialist=0.25, optical=1.0)
    found = objective(out, None, None, 3, config, targets)
    wanted = objective(same, None, targets, 3, config)
    assert set(found.parts) == {"sp_cls", "sp_mid", "sp_late"}
    torch.testing.assert_close(found.total, 0.25 * wanted.total)
    both = objective(
        dataclasses.replace(out, cls=same.cls, mid=same.mid, late=same.late), None, targets, 3, config, targets
    )
    torch.testing.assert_close(both.total, 1.25 * wanted.total)


@pytest.mark.parametrize("alone", [False, True])
def test_a_run_learns_from_it(tmp_path: Path, cube_source: str, alone: bool) -> None:
    """With self-distillation beside it and as the only teacher; a resumed run needs nothing more."""
    config = with_tiny(
        data=(cube_source,),
        out=str(tmp_path / "run"),
        steps=12,
        objective=dataclasses.replace(SMOKE.objective, multispectral=not alone, specialist=1.0),
        optimizer=dataclasses.replace(SMOKE.optimizer, lr=0.1),
        health=dataclasses.replace(SMOKE.health, checkpoint_every=6),
    )
    out = train(config)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert ("compression" in lines[0]) != alone
    assert lines[-1]["sp_cls"] > lines[0]["sp_cls"]
    assert lines[-1]["sp_late"] > lines[0]["sp_late"]
    assert "teacher none and tiny" in json.loads((out / "card.json").read_text())["training_data"]
    assert load_encoder(out, device="cpu").pool(np.zeros((1, 10, 64, 64), "float32")).shape == (1, 64)
    before = (out / "weights.safetensors").read_bytes()
    for name in ("step_00000012",):
        assert (out / "checkpoints" / name).is_dir()
    import shutil

    shutil.rmtree(out / "checkpoints" / "step_00000012")
    train(dataclasses.replace(config, resume=True))
    assert (out / "weights.safetensors").read_bytes() == before


def test_a_finished_run_can_teach_the_next(tmp_path: Path, cube_source: str) -> None:
    first = train(dataclasses.replace(SMOKE, data=(cube_source,), out=str(tmp_path / "first"), steps=1))
    config = dataclasses.replace(with_tiny(), specialist=Specialist(str(first), mid="stage2"))
    teacher = load_specialist(config)
    assert teacher is not None
    assert teacher.dims == (64, 16, 64)
    assert "frozen" in str(plan_run(config))
    student, ema, _ = build(config, torch.device("cpu"), None, teacher)
    assert student.specialist is not None
    assert ema is not None
    assert ema.specialist is None


def test_features_are_standardised_on_training_windows(cube_source: str) -> None:
    loader = Loader(window=32, valid=0.5, workers=0)
    config = with_tiny(loader=loader)
    mixture = Mixture((open_source(cube_source),), loader, 0)
    plain, standardised = (
        load_specialist(dataclasses.replace(config, specialist=Specialist("tiny", standardize=s)), mixture)
        for s in (False, True)
    )
    x = torch.from_numpy(np.stack([mixture.sample("ms", i).image for i in range(64)]))
    spread = standardised(x).late.std((0, 2, 3))  # type: ignore[misc]
    assert 0.8 < float(spread.mean()) < 1.2
    assert standardised(x).late.mean((0, 2, 3)).abs().max() < 0.3  # type: ignore[misc]
    assert not torch.allclose(plain(x).late, standardised(x).late)  # type: ignore[misc]


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        load_specialist(dataclasses.replace(SMOKE, specialist=Specialist("nobody")))
    with pytest.raises(ValueError, match=r"optimizer\.batch"):
        with_tiny(optimizer=dataclasses.replace(SMOKE.optimizer, batch=0, rgb_batch=2))
    encoder = load_encoder("tiny", device="cpu")
    with pytest.raises(ValueError, match=r"specialist\.model"):
        EncoderTeacher(encoder, Specialist("tiny"), 30)
    encoder.card = dataclasses.replace(encoder.card, stems=encoder.card.stems[1:], reference=None)
    with pytest.raises(MissingBandsError, match=r"specialist\.model"):
        EncoderTeacher(encoder, Specialist("tiny"), 32)


def test_a_spectral_student_learns_from_a_specialist_through_linear_heads(tmp_path: Path) -> None:
    """The recipe of the bundled model on a few chips, one product level for the teacher and others for the student."""
    coarse = np.random.default_rng(0).integers(200, 4000, (6, 10, 12, 12))
    np.savez(tmp_path / "chips.npz", x=np.kron(coarse, np.ones((4, 4))).astype("uint16"), bands=np.array(MS_BANDS))
    tiny = PRESETS["tiny"]
    config = dataclasses.replace(
        tiny,
        data=(f"{tmp_path / 'chips.npz'},level=L1C",),
        out=str(tmp_path / "run"),
        steps=12,
        teacher="none",
        student=dataclasses.replace(tiny.student, family="spectral", dim=24, local=16, depths=(6,), haze_blind=True),
        specialist=Specialist("tiny", mid="local", late="fused", level="L1C", cls=0.0, head="linear"),
        objective=dataclasses.replace(tiny.objective, multispectral=False, multispectral_optical=0.0),
        augment=dataclasses.replace(tiny.augment, local_crops=0, global_size=32, level=0.5),
        optimizer=dataclasses.replace(tiny.optimizer, batch=4, rgb_batch=0, lr=0.2),
        loader=Loader(window=48, workers=0),
        neck_ms=dataclasses.replace(tiny.neck_ms, local=8, contrast=8, deep=8),
        neck_rgb=dataclasses.replace(tiny.neck_rgb, deep=8),
    )
    assert plan_run(config).parameters > 0
    out = train(config)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["sp_late"] > lines[0]["sp_late"] + 0.02
    vector = load_encoder(out, device="cpu").pool(np.full((1, 10, 32, 32), 900, "float32"), bands=MS_BANDS)
    assert vector.shape == (1, 24)
    assert np.isfinite(vector).all()
