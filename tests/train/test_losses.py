from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from deo_cube.train.losses import (
    coding_rate,
    coding_rate_bound,
    coding_rate_loss,
    patch_similarity,
    view_similarity,
)


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((shared / "golden/golden.json").read_text()), load_file(shared / "golden/losses.safetensors")


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.normalize(z, dim=-1)


@pytest.mark.real
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_coding_rate_loss_equals_published_code(golden, case: str) -> None:
    c, t = golden[0][f"mcr.{case}"], golden[1]
    student = t[f"mcr.{case}.student"].requires_grad_()
    found = coding_rate_loss(
        student,
        t[f"mcr.{case}.teacher"],
        c["ncrops"],
        eps=c["eps"],
        world_size=c["world_size"],
        coefficient=c["coeff"],
        of="centre" if c["expa_type"] else "student",
    )
    found.loss.backward()
    assert found.loss.item() == pytest.approx(c["loss"], abs=1e-5)
    assert found.compression.item() == pytest.approx(c["compression"], abs=1e-5)
    assert found.expansion.item() == pytest.approx(c["expansion"], abs=1e-5)
    torch.testing.assert_close(student.grad, t[f"mcr.{case}.grad"], atol=1e-5, rtol=1e-4)


@pytest.mark.real
def test_class_similarity_equals_published_code(golden) -> None:
    c, t = golden
    student = t["cls.student"].requires_grad_()
    found = view_similarity(student, t["cls.teacher"], c["cls"]["ncrops"])
    found.backward()
    assert found.item() == pytest.approx(c["cls"]["similarity"], abs=1e-6)
    torch.testing.assert_close(student.grad, t["cls.grad"], atol=1e-6, rtol=1e-4)


@pytest.mark.real
@pytest.mark.parametrize("case", ["swin_mid", "swin_late", "vit", "swin_mid_v2"])
def test_patch_similarity_equals_published_code(golden, case: str) -> None:
    c, t = golden
    student, teacher = t[f"patch.{case}.student"].requires_grad_(), t[f"patch.{case}.teacher"]
    grid = math.isqrt(teacher.shape[1])
    as_map = student.permute(0, 3, 1, 2) if student.ndim == 4 else student.transpose(1, 2).unflatten(2, (14, 14))
    found = patch_similarity(as_map, teacher.transpose(1, 2).unflatten(2, (grid, grid)))
    found.backward()
    assert found.item() == pytest.approx(c[f"patch.{case}"]["similarity"], abs=1e-6)
    torch.testing.assert_close(student.grad, t[f"patch.{case}.grad"], atol=1e-6, rtol=1e-4)


def test_gradients_are_those_of_the_values() -> None:
    student = unit(12, 5, dtype=torch.float64).requires_grad_()
    teacher = unit(6, 5, seed=1, dtype=torch.float64)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return coding_rate(z[:6], eps=0.05) + coding_rate(z, eps=0.05, world_size=4)

    assert torch.autograd.gradcheck(loss, (student,))
    # Cosines are taken in float32 whatever comes in: checked against differences of that precision.
    s = student.detach().float().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: view_similarity(z, teacher.float(), 4), (s,), eps=1e-2, atol=1e-3, nondet_tol=1e-6
    )


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = unit(8, 6, seed=2).requires_grad_()
    coding_rate_loss(unit(16, 6).requires_grad_(), teacher, 4, eps=0.05).loss.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 6e4])
def test_fp16_extremes_give_numbers(scale: float) -> None:
    z = (scale * unit(32, 16)).half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = coding_rate_loss(z, z.detach()[:16], 4, eps=0.05, world_size=1)
    assert torch.isfinite(found.loss)
    found.loss.backward()
    assert torch.isfinite(z.grad).all()
    assert found.expansion.dtype == torch.float32


@given(m=st.integers(2, 12), p=st.integers(2, 12), world=st.sampled_from([1, 4, 16]), seed=st.integers(0, 99))
def test_coding_rate_is_the_log_determinant_and_stays_below_its_bound(m: int, p: int, world: int, seed: int) -> None:
    z = unit(m, p, seed=seed, dtype=torch.float64)
    eps = 0.05
    whole = torch.eye(p, dtype=z.dtype) + p / (m * world * eps) * z.T @ z
    assert coding_rate(z, eps=eps, world_size=world).item() == pytest.approx(0.5 * torch.logdet(whole).item(), rel=1e-9)
    loss = coding_rate_loss(torch.cat([z, z]), torch.cat([z, z]), 2, eps=eps, world_size=world)
    assert loss.expansion.item() <= coding_rate_bound(p, m, eps=eps, world_size=world) + 1e-6


def test_bound_is_reached_and_equals_the_table_of_the_paper() -> None:
    # reference/deo-paper.md 3.2: p 256, m 64, eps 0.05.
    for world, bound in ((1, 2.747), (4, 0.761), (8, 0.450), (16, 0.280)):
        assert coding_rate_bound(256, 64, eps=0.05, world_size=world) == pytest.approx(bound, abs=6e-4)
    z = torch.eye(256)[:64]
    found = coding_rate_loss(torch.cat([z, z]), torch.cat([z, z]), 2, eps=0.05, world_size=16)
    assert found.expansion.item() == pytest.approx(0.280, abs=6e-4)


def test_one_process_trains_with_the_balance_of_sixteen() -> None:
    z, t = unit(64, 32), unit(32, 32, seed=1)
    one, sixteen = (coding_rate_loss(z, t, 4, eps=0.05, world_size=n) for n in (1, 16))
    assert one.compression.item() == sixteen.compression.item()
    assert one.expansion.item() > 5 * sixteen.expansion.item()


def test_same_view_pairs_are_left_out_or_not() -> None:
    z = torch.eye(4).repeat(2, 1)  # two views of four samples, equal: only the diagonal pairs would be new
    other = torch.cat([torch.eye(4), -torch.eye(4)])
    assert view_similarity(other, z[:4], 2).item() == pytest.approx(-1)
    assert view_similarity(other, z[:4], 2, same_view=True).item() == pytest.approx(0)


@pytest.mark.parametrize(
    ("student", "teacher", "views"),
    [((7, 4), (4, 4), 2), ((8, 4), (4, 5), 2), ((8, 4), (3, 4), 2), ((8, 4), (16, 4), 2)],
)
def test_shapes_that_do_not_fit_are_refused(student, teacher, views) -> None:
    with pytest.raises(ValueError, match="view|fit"):
        coding_rate_loss(torch.randn(student), torch.randn(teacher), views, eps=0.05)


def test_one_view_alone_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same_view=True"):
        view_similarity(unit(4, 3), unit(4, 3), 1)
