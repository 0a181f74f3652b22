"""The metric of a neck: components weighed and mixed so that cosine distance tells change from all that is not change.

Principal components have the metric of variance, and what varies most between two dates is not what people call change:
it is the season, the sun and the air. `fit_metric` learns a linear map of the components from places whose changes are
known. Distances of changed cells shall exceed those of unchanged cells, and distances of different places those of one
place under other air and light. The map is close to the identity where neither asks for more, and it is invertible:
what a probe on the components can read, it can read afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deo_cube.errors import ArgumentError, InputNotFoundError, MissingBandsError
from deo_cube.paths import local_path
from deo_cube.train.augment import at_level
from deo_cube.train.config import MS_BANDS

__all__ = ["ChangePairs", "altered", "cell_shares", "fit_metric", "read_pairs"]

CHANGED, UNCHANGED = 0.5, 0.1
"""Share of changed pixels from which a cell counts as changed, and up to which as unchanged; others are left out."""
STEPS = 600
RATE = 0.02
CELLS, PLACES, AGAINST = 3000, 1000, 16
"""Cells and pairs of places per step, and negatives that each positive is ranked against."""


@dataclass(frozen=True)
class ChangePairs:
    """Chips of two dates with a mask of what changed between them."""

    before: NDArray[Any]
    """(N, 10, S, S) DN in model order; 0 is no data."""
    after: NDArray[Any]
    changed: NDArray[np.uint8]
    """(N, S, S): 0 unchanged, 1 changed, 255 unknown."""

    def __len__(self) -> int:
        return len(self.changed)


def read_pairs(path: str | Path) -> ChangePairs:
    """Read an .npz with `before` and `after` (N, C, S, S), `bands` (C,) and `changed` (N, S, S).

    Raises
    ------
    InputNotFoundError, MissingBandsError, ArgumentError
        If there is no such file, or an array, a band or a shape is not as expected.
    """
    path = local_path(path)
    if not path.is_file():
        raise InputNotFoundError(f"changes: no file {path}")
    names = ("before", "after", "changed", "bands")
    with np.load(path, allow_pickle=False) as held:
        if missing := set(names) - set(held.files):
            raise InputNotFoundError(f"changes: {path} holds {sorted(held.files)}; expected also {sorted(missing)}")
        before, after, changed, bands = (held[name] for name in names)
    order = [str(b) for b in bands]
    if missing := set(MS_BANDS) - set(order):
        raise MissingBandsError(f"changes: {path} has the bands {order}; the student reads also {sorted(missing)}")
    n, _, *size = before.shape
    if before.shape != after.shape or changed.shape != (n, *size) or any(side % 16 for side in size):
        raise ArgumentError(
            f"changes: {path}: expected before and after of one shape (N, {len(order)}, S, S) with S a multiple of 16 "
            f"and changed (N, S, S), found {before.shape}, {after.shape} and {changed.shape}"
        )
    index = [order.index(b) for b in MS_BANDS]
    return ChangePairs(before[:, index], after[:, index], changed.astype("uint8"))


def cell_shares(changed: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Return the share of changed pixels per cell of `size` px (N, S / size, S / size), NaN where half is unknown."""
    n, rows, cols = changed.shape[0], changed.shape[1] // size, changed.shape[2] // size
    cells = changed[:, : rows * size, : cols * size].reshape(n, rows, size, cols, size)
    known = (cells != 255).sum(axis=(2, 4))
    share = (cells == 1).sum(axis=(2, 4)) / np.maximum(known, 1)
    return np.where(2 * known > size * size, share, np.nan).astype("float32")


def altered(dn: Tensor, seed: int) -> Tensor:
    """Return windows `dn` (N, 10, H, W) under other air and light: up to half an atmosphere, haze, a tenth of light."""
    n, random = len(dn), torch.Generator().manual_seed(seed)
    level, haze = (torch.rand(n, generator=random).to(dn) for _ in range(2))
    light = torch.exp(0.1 * torch.randn(n, 1, 1, 1, generator=random)).to(dn)
    return at_level(dn, torch.zeros_like(level), 0.5 * level, 2.0 * haze) * light


def fit_metric(
    before: Tensor,
    after: Tensor,
    changed: Tensor,
    places: tuple[Tensor, Tensor, Tensor] | None = None,
    *,
    general: float = 1.0,
    strength: float = 0.0005,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return a map (k, k) and a shift (k,) of components `z`: the embedding is ``(z + shift) @ map.T``.

    Parameters
    ----------
    before, after : Tensor (n, k)
        Components of cells at two dates.
    changed : Tensor (n,)
        Share of each cell that changed.
    places : (Tensor, Tensor, Tensor), optional
        Components (m, k) of cells, the same under other air and light, and the number (m,) of each cell's place.
    general : float
        Weight of `places` beside `changed`.
    strength : float
        Of the penalty on leaving the identity.
    seed : int
        Of the cells drawn.
    """
    random = torch.Generator(device=before.device).manual_seed(seed)
    k, device = before.shape[1], before.device
    gain, shift = (torch.zeros(k, device=device, requires_grad=True) for _ in range(2))
    mixing = torch.zeros(k, k, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([gain, shift, mixing], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def draw(limit: int, *size: int) -> Tensor:
        return torch.randint(limit, size, generator=random, device=device)

    def ranked(above: Tensor, below: Tensor) -> Tensor:
        """Return the mean logistic loss of `above` not exceeding a random few of `below`, in units of their spread."""
        unit = 0.5 * torch.cat([above, below]).detach().std()
        return F.softplus((below[draw(len(below), len(above), AGAINST)] - above[:, None]) / unit).mean()

    for _ in range(STEPS):
        transform = torch.diag(gain.exp()) + mixing

        def distance(x: Tensor, y: Tensor, transform: Tensor = transform) -> Tensor:
            return 1 - F.cosine_similarity((x + shift) @ transform.T, (y + shift) @ transform.T, dim=1)

        rows = draw(len(changed), CELLS)
        d, share = distance(before[rows], after[rows]), changed[rows]
        above, below = d[share > CHANGED], d[share < UNCHANGED]
        loss = ranked(above, below) if len(above) and len(below) else d.sum() * 0
        if places is not None and general:
            cells, other, number = places
            i, j, same = draw(len(cells), PLACES), draw(len(cells), PLACES), draw(len(cells), PLACES)
            apart = number[i] != number[j]
            loss = loss + general * ranked(
                distance(cells[i[apart]], cells[j[apart]]), distance(cells[same], other[same])
            )
        loss = loss + strength * (10 * (gain.square().sum() + shift.square().sum()) / k + mixing.square().sum())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return (torch.diag(gain.exp()) + mixing).detach().double(), shift.detach().double()
