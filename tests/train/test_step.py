"""One whole optimisation step against the authors' published code, run on small random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deo_cube.train.augment import View
from deo_cube.train.config import Augment, Objective, Optimizer, StudentConfig, TrainConfig
from deo_cube.train.student import Student, objective
from deo_cube.train.teachers import Targets

pytestmark = pytest.mark.real


def wave(b: int, c: int, h: int, w: int) -> torch.Tensor:
    k = [torch.arange(n, dtype=torch.float64) for n in (b, c, h, w)]
    b_, c_, i, j = k[0][:, None, None, None], k[1][:, None, None], k[2][:, None], k[3]
    return (torch.sin(0.013 * (c_ + 1) * i + 0.7 * b_) * torch.cos(0.017 * (c_ + 2) * j)).float()


def golden_config() -> TrainConfig:
    return TrainConfig(
        student=StudentConfig(dim=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), window=7),
        objective=Objective(hidden=32, ms_dim=24, world_size=1, eps=0.05),
        augment=Augment(global_size=224, local_size=96, local_crops=3),
        optimizer=Optimizer(batch=2),
    )


def of_published(tensors: dict[str, torch.Tensor], who: str) -> dict[str, torch.Tensor]:
    """Tensors of `who` under this package's names."""
    out = {}
    for key, value in tensors.items():
        if not key.startswith(f"{who}.") or key.endswith("relative_position_index"):
            continue
        name = key.removeprefix(f"{who}.").replace("backbone.", "network.")
        out[f"network.{name}" if name.startswith("conv_") else name] = value
    return out


def fill(student: Student, state: dict[str, torch.Tensor]) -> None:
    missing, unexpected = student.load_state_dict(state, strict=False)
    assert not unexpected
    assert [k for k in missing if not k.endswith("relative_position_index")] == []


def targets(io: dict[str, torch.Tensor]) -> Targets:
    mid, late = (io[f"optical_{n}"].transpose(1, 2).unflatten(2, (14, 14)) for n in ("mid", "late"))
    return Targets(io["optical_cls"], mid, late)


def test_whole_step_equals_published_code(shared: Path) -> None:
    golden = json.loads((shared / "golden/golden.json").read_text())["step"]
    weights = load_file(shared / "golden/step_weights.safetensors")
    io = load_file(shared / "golden/step_io.safetensors")
    config = golden_config()
    student = Student(config, (16, 16, 16))
    fill(student, of_published(weights, "student"))
    teacher = Student(config, None)
    teacher_state = of_published(weights, "teacher")
    fill(teacher, {**{k: v for k, v in student.network.state_dict(prefix="network.").items()}, **teacher_state})
    student.train()
    teacher.eval()

    g, small = wave(4, 10, 224, 224), 0.5 * wave(6, 10, 96, 96)
    crops = [g[:2], g[2:], small[:2], small[2:4], small[4:]]
    views = [View(c, c[:, :3], c[:, :3], c[:, :3]) for c in crops]
    out = student(views)
    with torch.no_grad():
        projected = teacher.project_ms(views)
    torch.testing.assert_close(projected, io["teacher_ms"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.ms, io["student_ms"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.cls, io["student_cls"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.mid, io["student_mid"].permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.late, io["student_late"].permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4)

    terms = objective(out, projected, targets(io), len(views), config.objective)
    names = {
        "compression": "compression",
        "expansion": "expansion",
        "mid": "patch_mid",
        "late": "patch_late",
        "cls": "cls",
    }
    for ours, theirs in names.items():
        assert terms.parts[ours].item() == pytest.approx(golden[theirs], abs=1e-5), ours
    assert terms.total.item() == pytest.approx(golden["total"], abs=1e-5)

    terms.total.backward()
    norms = of_published({f"student.{k}": torch.tensor(v) for k, v in golden["grad_norms"].items()}, "student")
    found = {name: p.grad for name, p in student.named_parameters()}
    assert set(norms) == set(found)
    for name, norm in norms.items():
        grad = found[name]
        assert grad is not None, name
        assert grad.norm().item() == pytest.approx(norm.item(), abs=1e-5, rel=1e-3), name
