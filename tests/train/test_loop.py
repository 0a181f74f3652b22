"""The loop on real machinery: smoke-sized networks, cubes and images on disk, processes that are killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deo_cube.encoder.card import ModelCard
from deo_cube.errors import StoreMismatchError, WeightsNotFoundError
from deo_cube.train import loop
from deo_cube.train.config import PRESETS, Health, Neck, Objective, Optical, Optimizer, StudentConfig, TrainConfig
from deo_cube.train.loop import Diverged, LossMonitor, build, effective_rank, train
from deo_cube.train.student import Student, ema_update

SMOKE = dataclasses.replace(PRESETS["smoke"], device="cpu")
WEIGHTS = "data/weights/mobilenet_v1_1.0_224_trunk.safetensors"


def smoke(out: Path, *data: str, **changes) -> TrainConfig:
    return dataclasses.replace(SMOKE, out=str(out), data=data, **changes)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def comparable(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("samples_per_s", "waited")} for line in lines]


def test_a_finished_run_is_a_model(tmp_path: Path, cube_source: str) -> None:
    from deo_cube.encoder.registry import load_encoder

    out = train(smoke(tmp_path / "run", cube_source))
    card = ModelCard.load(out)
    assert card.trained
    assert card.weights.sha256
    assert card.reference is not None
    assert all(layer.int8_scale for layer in card.layers)
    assert "4 steps" in card.training_data
    encoder = load_encoder(out, device="cpu")
    pixels = np.random.default_rng(0).uniform(0, 3000, (1, 10, 64, 64)).astype("float32")
    assert np.isfinite(encoder.encode(pixels)).all()
    last = loop.newest(out)
    assert last is not None
    assert last.name == "step_00000004"
    assert load_encoder(last, device="cpu").card.fingerprint == card.fingerprint
    lines = metrics(out)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for key in ("compression", "expansion", "expansion_bound", "effective_rank", "grad_norm", "lr", "samples_per_s"):
        assert key in lines[0]
    assert all(line["expansion"] <= line["expansion_bound"] for line in lines)


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path, cube_source: str) -> None:
    whole = train(smoke(tmp_path / "whole", cube_source))

    class Killed(Exception):
        pass

    def kill(at: int):
        def on_step(step: int) -> None:
            if step == at:
                raise Killed

        return on_step

    for at in (0, 2):  # before the first checkpoint, and between two
        config = smoke(tmp_path / f"killed{at}", cube_source)
        with pytest.raises(Killed):
            train(config, on_step=kill(at))
        train(dataclasses.replace(config, resume=True))
        a, b = loop.newest(whole), loop.newest(Path(config.out))
        assert a is not None
        assert b is not None
        for name in ("weights", "heads", "teacher", "optimizer"):
            one, two = load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors")
            assert one.keys() == two.keys()
            assert all(torch.equal(one[k], two[k]) for k in one), (at, name)
        assert comparable(metrics(whole)) == comparable(metrics(Path(config.out)))


def test_a_killed_process_leaves_whole_checkpoints_only(tmp_path: Path, cube_source: str) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "deo_cube.train", "--preset", "smoke", "--data", cube_source, "--out", str(out),
        "--steps", "2000", "--health.checkpoint-every", "1", "--device", "cpu", "--health.keep", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    try:
        end = time.monotonic() + 200
        while not ((last := loop.newest(out)) and int(last.name.split("_")[1]) >= 2):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = loop.newest(out)
    assert last is not None
    step = int(last.name.split("_")[1])
    state = json.loads((last / "state.json").read_text())
    assert state["step"] == step
    config = dataclasses.replace(SMOKE, data=(cube_source,), out=str(out), resume=True, steps=2000)
    config = dataclasses.replace(config, health=dataclasses.replace(config.health, checkpoint_every=1, keep=1))
    stopped: list[int] = []

    class Enough(Exception):
        pass

    def on_step(at: int) -> None:
        stopped.append(at)
        raise Enough

    with pytest.raises(Enough):
        train(config, on_step=on_step)
    assert stopped == [step]


def test_another_configuration_is_not_resumed(tmp_path: Path, cube_source: str) -> None:
    config = smoke(tmp_path / "run", cube_source, steps=2)
    train(config)
    with pytest.raises(StoreMismatchError, match="--resume"):
        train(config)
    other = dataclasses.replace(config, resume=True, seed=7)
    with pytest.raises(StoreMismatchError, match="seed"):
        train(other)
    # What changes no number may change.
    train(dataclasses.replace(config, resume=True, health=dataclasses.replace(config.health, log_every=7)))


@pytest.mark.real
@pytest.mark.parametrize("arm", ["multispectral", "optical", "optical images only", "dual", "dual without mixed"])
def test_every_arm_runs(tmp_path: Path, cube_source: str, images_path: Path, shared: Path, arm: str) -> None:
    """Single-teacher arms crash in the published code."""
    ms_only = Objective(hidden=16, ms_dim=16, world_size=1)
    no_ms = dataclasses.replace(ms_only, multispectral=False)
    settings = {
        "multispectral": ("none", ms_only, (cube_source,), Optimizer(batch=4)),
        "optical": ("mobilenet", no_ms, (cube_source,), Optimizer(batch=4)),
        "optical images only": ("mobilenet", no_ms, (str(images_path),), Optimizer(batch=0, rgb_batch=4)),
        "dual": (
            "mobilenet",
            dataclasses.replace(ms_only, multispectral_optical=0.5),
            (cube_source, str(images_path)),
            Optimizer(batch=3, rgb_batch=2, accumulate=2),
        ),
        "dual without mixed": ("mobilenet", ms_only, (cube_source,), Optimizer(batch=4)),
    }
    teacher, objective, data, optimizer = settings[arm]
    config = smoke(
        tmp_path / "run", *data, steps=1, teacher=teacher, objective=objective, optimizer=optimizer,
        optical=Optical(weights=str(shared / WEIGHTS), standardize=arm == "dual"),
    )  # fmt: skip
    out = train(config)
    found = metrics(out)[0]
    assert ("compression" in found) == (arm not in ("optical", "optical images only"))
    assert ("cls" in found) == (teacher != "none")
    assert ("ms_late" in found) == (arm == "dual")


@pytest.mark.real
@pytest.mark.parametrize("family", ["vit", "conv"])
def test_other_families_run(tmp_path: Path, cube_source: str, images_path: Path, shared: Path, family: str) -> None:
    student = {
        "vit": StudentConfig(family="vit", dim=16, depths=(4,), heads=(2,), patch=8),
        "conv": StudentConfig(family="conv", dim=24, depths=(6,), local=16),
    }[family]
    config = smoke(
        tmp_path / "run", cube_source, str(images_path), steps=1, teacher="mobilenet", student=student,
        optical=Optical(weights=str(shared / WEIGHTS)), optimizer=Optimizer(batch=2, rgb_batch=2),
        neck_ms=Neck(local=8, deep=16), neck_rgb=Neck(local=0, deep=16),
        health=Health(log_every=1, probe_every=1, probe_size=30, checkpoint_every=0),
    )  # fmt: skip
    out = train(config)
    assert 0 <= metrics(out)[0]["knn"] <= 1
    from deo_cube.encoder.registry import load_encoder

    rgb = load_encoder(out, device="cpu")
    pixels = np.random.default_rng(0).uniform(0, 3000, (1, 3, 64, 64)).astype("float32")
    assert np.isfinite(rgb.pool(pixels, bands=["B04", "B03", "B02"])).all()


def test_a_finished_run_may_be_given_another_neck_of_another_shape(tmp_path: Path, cube_source: str) -> None:
    """Resumed with contrast, which no step sees: everything but the neck stays to the last bit."""
    from deo_cube.encoder.registry import load_encoder

    config = smoke(
        tmp_path / "run", cube_source, steps=2,
        student=StudentConfig(family="conv", dim=24, depths=(6,), local=16),
        neck_ms=Neck(local=8, deep=16), neck_rgb=Neck(local=0, deep=16),
    )  # fmt: skip
    before = load_encoder(train(config), device="cpu").network.state_dict()
    again = dataclasses.replace(config, resume=True, neck_ms=Neck(local=8, deep=8, contrast=8))
    after = load_encoder(train(again), device="cpu")
    assert list(after.card.architecture["contrast"]) == ["ms"]
    found = after.network.state_dict()
    assert set(found) == set(before)
    assert found["necks.ms.weight"].shape[1] == before["necks.ms.weight"].shape[1] + 16
    changed = {k for k in found if found[k].shape != before[k].shape or not torch.equal(found[k], before[k])}
    assert changed == {"necks.ms.weight", "necks.ms.bias"}


def test_the_teacher_is_averaged_by_name() -> None:
    config = dataclasses.replace(SMOKE, data=("x",))
    student, teacher = Student(config, (8, 8, 8)), Student(config, None)
    before = {k: v.clone() for k, v in teacher.named_parameters()}
    # Another order of registration must not matter.
    teacher.network.norm = teacher.network._modules.pop("norm")
    ema_update(teacher, student, 0.75)
    own = dict(student.named_parameters())
    for name, p in teacher.named_parameters():
        torch.testing.assert_close(p, 0.75 * before[name] + 0.25 * own[name])
    teacher.extra = torch.nn.Linear(1, 1)
    with pytest.raises(KeyError, match="extra"):
        ema_update(teacher, student, 0.5)


def test_the_ema_teacher_is_in_eval_mode_unless_asked_otherwise(tmp_path: Path) -> None:
    noisy = dataclasses.replace(SMOKE.student, drop_path=0.5)
    for mode in ("eval", "train"):
        config = smoke(tmp_path, student=noisy, optimizer=dataclasses.replace(SMOKE.optimizer, teacher_mode=mode))
        _, ema, _ = build(config, torch.device("cpu"))
        assert ema is not None
        x = torch.randn(4, 10, 32, 32)
        with torch.no_grad():
            same = torch.equal(*(ema.network(x, "ms") for _ in range(2)))
        assert same is (mode == "eval")


def test_weights_to_start_from_must_exist(tmp_path: Path, cube_source: str) -> None:
    student = dataclasses.replace(SMOKE.student, init=str(tmp_path / "none.safetensors"))
    with pytest.raises(WeightsNotFoundError, match=r"student\.init"):
        train(smoke(tmp_path / "run", cube_source, student=student))


def test_a_run_whose_loss_is_no_number_stops_and_says_which_term(tmp_path: Path, cube_source: str) -> None:
    optimizer = dataclasses.replace(SMOKE.optimizer, lr=1e30, warmup=0.0, clip=0.0)
    with pytest.raises(Diverged, match="step"):
        train(smoke(tmp_path / "run", cube_source, optimizer=optimizer, steps=10))


def test_the_watch_names_the_term_that_went() -> None:
    watch = LossMonitor(patience=3)
    random = np.random.default_rng(0)
    for step in range(50):
        watch.look(step, 1 + random.normal(0, 0.01), {"cls": 0.5 + random.normal(0, 0.01), "expansion": 0.2})
    for step in (50, 51):
        watch.look(step, 9.0, {"cls": 0.5, "expansion": -7.0})
    with pytest.raises(Diverged, match="expansion"):
        watch.look(52, 9.0, {"cls": 0.5, "expansion": -7.0})
    with pytest.raises(Diverged, match="cls"):
        LossMonitor(patience=3).look(0, float("nan"), {"cls": float("inf"), "expansion": 0.2})


def test_effective_rank() -> None:
    assert effective_rank(torch.eye(64)) == pytest.approx(63, abs=0.1)
    line = torch.linspace(-1, 1, 64)[:, None] * torch.ones(1, 32)
    assert effective_rank(line) == pytest.approx(1, abs=0.01)


def test_checkpoints_are_kept_by_policy(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 6):
        (tmp_path / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step_00000007.99").mkdir()
    loop.prune(tmp_path, Health(keep=1, keep_every=3))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000003", "step_00000006"]


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, cube_source: str) -> None:
    objective = dataclasses.replace(SMOKE.objective, gather=True)
    one = smoke(tmp_path / "one", cube_source, objective=objective, steps=3)
    train(one)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "deo_cube.train", "--preset", "smoke",
        "--data", cube_source, "--out", str(tmp_path / "two"), "--steps", "3", "--objective.gather",
        "--optimizer.batch", "2", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (load_file(tmp_path / who / "weights.safetensors") for who in ("one", "two"))
    torch.manual_seed(one.seed)
    initial = Student(one, None).network.state_dict()
    moved = max(float((a[k] - initial[k]).abs().max()) for k in a if a[k].is_floating_point())
    apart = max(float((a[k].float() - b[k].float()).abs().max()) for k in a)
    assert moved > 1e-5
    assert apart < 0.05 * moved
