"""The objective: coding-rate self-distillation, and cosine distillation of classes and patches. Pure functions.

They give the published code's numbers and gradients (losses.py of wolfilip/DEO-FM @55c7ae1, tested against recorded
values), with three differences in how: pairs are left out by a mask instead of an in-place fill of a view, the coding
rate is computed in float32 whatever autocast says, and the number of processes that weighs expansion against
compression is an argument, so that one process can train with the balance of sixteen.

Views are stacked crop by crop: a tensor of V views of N samples is (V * N, D), view 0 of all samples first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deo_cube.errors import ArgumentError

__all__ = [
    "CodingRate",
    "coding_rate",
    "coding_rate_bound",
    "coding_rate_loss",
    "masked_error",
    "patch_similarity",
    "view_similarity",
]

TINY = 1e-4
"""A vector shorter than this has no direction: dividing by its length would overflow a half-precision gradient."""


def view_similarity(
    student: Tensor, teacher: Tensor, views: int, *, same_view: bool = False, known: Tensor | None = None
) -> Tensor:
    """Return the mean cosine similarity between every student view and every teacher view.

    Parameters
    ----------
    student : Tensor (V * N, D)
        `views` views of N samples, view by view.
    teacher : Tensor (T * N, D)
        T views of the same samples; teacher view i shows what student view i shows.
    views : int
        V, global and local crops together.
    same_view : bool
        False (as published, losses.py:66-85 and 120-161): teacher view i and student view i are not compared. True:
        they are.
    known : Tensor (T * N,) of bool, optional
        Teacher vectors that count. Default: all.

    Returns
    -------
    Tensor, scalar
        Mean over the compared pairs and the samples, in -1..1.
    """
    n, s, t = _views(student, teacher, views)
    cosine = torch.einsum(
        "tnd,vnd->tvn", F.normalize(t.float(), dim=-1, eps=TINY), F.normalize(s.float(), dim=-1, eps=TINY)
    )
    pairs = torch.ones(t.shape[0], views, dtype=torch.bool, device=cosine.device)
    if not same_view:
        pairs = ~torch.eye(t.shape[0], views, dtype=torch.bool, device=cosine.device)
    if not bool(pairs.any()):
        raise ArgumentError("no pair of views is left to compare: give two views at least, or same_view=True")
    if known is None:
        return (cosine * pairs[..., None]).sum() / (pairs.sum() * n)
    counted = pairs[..., None] * known.view(-1, 1, n)
    return (cosine * counted).sum() / counted.sum().clamp_min(1)


def coding_rate(z: Tensor, *, eps: float, world_size: int = 1) -> Tensor:
    """Return the rate ``1/2 log det(I + p / (m N eps) Z^T Z)`` of m vectors of dimension p, in nats (arXiv 2502.10385).

    Parameters
    ----------
    z : Tensor (m, p)
        Computed in float32 (float64 stays), autocast or not: in float16 the covariance overflows.
    eps : float
        Distortion.
    world_size : int
        N: processes whose balance is kept, whether or not they exist.
    """
    if z.shape[0] == 0:
        raise ArgumentError("coding rate of no vectors")
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        m, p = z.shape
        scale = p / (m * world_size * eps)
        # det(I + c Z^T Z) = det(I + c Z Z^T): factor the smaller of the two.
        gram = z.T @ z if p <= m else z @ z.T
        gram = torch.eye(gram.shape[0], dtype=z.dtype, device=z.device) + scale * gram
        # 1/2 log det = sum of the logs of the Cholesky diagonal. A matrix that cannot be factored (not finite) gives
        # NaN, which stops the run with the name of the term.
        factor, failed = torch.linalg.cholesky_ex(gram)
        rate = factor.diagonal().log().sum()
        return torch.where(failed == 0, rate, torch.full_like(rate, torch.nan))


def _weight(dim: int, samples: int, world_size: int) -> float:
    return (dim + world_size * samples) / (dim * world_size * samples)


def coding_rate_bound(dim: int, samples: int, *, eps: float, world_size: int = 1) -> float:
    """Return the largest expansion of unit vectors: `samples` of them spread evenly over `dim` directions."""
    rank = min(dim, samples)
    scale = dim / (samples * world_size * eps)
    return _weight(dim, samples, world_size) * 0.5 * rank * math.log1p(scale * samples / rank)


@dataclass(frozen=True)
class CodingRate:
    """The multispectral objective: ``loss = -coefficient * compression - expansion``. All scalars with gradient."""

    loss: Tensor
    compression: Tensor
    """Mean cosine between teacher and student views, at most 1."""
    expansion: Tensor
    """Weighted coding rate, at most `coding_rate_bound`."""


def coding_rate_loss(
    student: Tensor,
    teacher: Tensor,
    views: int,
    *,
    eps: float,
    world_size: int = 1,
    coefficient: float = 1.0,
    of: Literal["centre", "student"] = "centre",
) -> CodingRate:
    """Return compression and expansion of V student views against two or more teacher views.

    Parameters
    ----------
    student : Tensor (V * N, D)
        L2-normalised projections of all views, view by view.
    teacher : Tensor (T * N, D)
        Those of the EMA teacher's views; no gradient flows into it.
    views : int
        V.
    eps, world_size
        See `coding_rate`. The published command uses 0.05 and 4 or 16 processes.
    coefficient : float
        Weight of the compression.
    of : {"centre", "student"}
        What must spread: the mean of student and teacher of each of the T views (as published, `expa_type` 1), or the
        student alone (`expa_type` 0).

    Raises
    ------
    ValueError
        For shapes that are not a whole number of views, or an unknown `of`.
    """
    if of not in ("centre", "student"):
        raise ArgumentError(f"of must be 'centre' or 'student', got {of!r}")
    teacher = teacher.detach()
    n, s, t = _views(student, teacher, views)
    compression = view_similarity(student, teacher, views)
    spread = s[: t.shape[0]] if of == "student" else (s[: t.shape[0]].float() + t.float()) / 2
    rates = [coding_rate(view, eps=eps, world_size=world_size) for view in spread]
    expansion = torch.stack(rates).mean() * _weight(student.shape[1], n, world_size)
    return CodingRate(-coefficient * compression - expansion, compression, expansion)


def patch_similarity(student: Tensor, teacher: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the mean cosine similarity of two maps of the same views, the student's resized to the teacher's grid.

    Parameters
    ----------
    student : Tensor (B, D, h, w)
        Resized bilinearly where its grid differs (losses.py:12-33).
    teacher : Tensor (B, D, H, W)
        Not differentiated.
    known : Tensor (B, H, W) of bool, optional
        Tokens of the teacher that count. Default: all.

    Returns
    -------
    Tensor, scalar
        Mean over tokens and views, in -1..1.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ArgumentError(f"maps of {tuple(student.shape[:2])} and {tuple(teacher.shape[:2])} views and channels")
    student, teacher = student.float(), teacher.detach().float()
    if student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, size=teacher.shape[2:], mode="bilinear", align_corners=False)
    cosine = F.cosine_similarity(student, teacher, dim=1, eps=TINY)
    return cosine.mean() if known is None else (cosine * known).sum() / known.sum().clamp_min(1)


def masked_error(predicted: Tensor, images: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean absolute error on hidden pixels (SimMIM, arXiv:2111.09886).

    Parameters
    ----------
    predicted, images : Tensor (B, C, S, S)
        In the units of the network's input.
    hidden : Tensor (B, 1, S, S) bool
        Pixels that the network did not see.

    Returns
    -------
    Tensor, scalar
        Mean over hidden pixels and channels.
    """
    error = (predicted.float() - images.detach().float()).abs() * hidden
    return error.sum() / (hidden.sum() * images.shape[1]).clamp_min(1)


def _views(student: Tensor, teacher: Tensor, views: int) -> tuple[int, Tensor, Tensor]:
    """Return the samples N, and both tensors as (views, N, D)."""
    if views < 1 or student.shape[0] % views:
        raise ArgumentError(f"{student.shape[0]} student vectors are not a whole number of samples in {views} views")
    n = student.shape[0] // views
    if n == 0 or teacher.shape[0] % n or teacher.shape[1] != student.shape[1]:
        raise ArgumentError(
            f"teacher {tuple(teacher.shape)} does not fit student {tuple(student.shape)} in {views} views"
        )
    if teacher.shape[0] // n > views:
        raise ArgumentError(f"{teacher.shape[0] // n} teacher views for {views} student views")
    return n, student.reshape(views, n, -1), teacher.reshape(-1, n, teacher.shape[1])
