"""The necks of a trained student: linear maps from everything that the network computes to the embedding.

The neck of a `conv` student is fitted without labels and in closed form on training windows: principal components,
partly whitened, turned by a fixed rotation, so that every channel carries an equal share of the variance. Whitening
brings out what is rare (neighbours on EuroSAT gain three points), the rotation keeps a probe that standardises channels
from blowing up the weakest component, and rounds int8 evenly. With `Neck.changes`, the metric of its local components
is fitted to known changes afterwards (`fit_metric`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.encoder.networks.conv import DeoConv
from deo_cube.encoder.networks.spectral import DeoSpectral
from deo_cube.encoder.random_convolutions import RandomConvolutions
from deo_cube.errors import (
    ArgumentError,
    InputNotFoundError,
    MissingBandsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from deo_cube.paths import local_path
from deo_cube.train.augment import at_level
from deo_cube.train.config import MS_BANDS, Neck, TrainConfig

__all__ = [
    "ChangePairs",
    "altered",
    "cell_shares",
    "fit_local",
    "fit_metric",
    "fit_necks",
    "keep_local",
    "neck_of",
    "read_pairs",
]


CHANGED, UNCHANGED = 0.5, 0.1
"""Share of changed pixels from which a cell counts as changed, and up to which as unchanged; others are left out."""
# --- Metric of a neck: components weighed and mixed so that cosine distance tells change from all that is not ---
#
# Principal components have the metric of variance, and what varies most between two dates is not what people call
# change: it is the season, the sun and the air. `fit_metric` learns a linear map of the components from places whose
# changes are known. Distances of changed cells shall exceed those of unchanged cells, and distances of different
# places those of one place under other air and light. The map is close to the identity where neither asks for more,
# and it is invertible: what a probe on the components can read, it can read afterwards.

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


# --- necks ---


@torch.no_grad()
def fit_local(
    network: DeoConv, windows: Mapping[str, Tensor], seed: int, typical: float = 0.0, haze: Tensor | None = None
) -> None:
    """Start the wide local branches as whitened patches of the data (MOSAIKS), which any training must improve on.

    `typical` above 0 makes half of them prefer common patches, see `RandomConvolutions`. Filters of the stem `ms` are
    made orthogonal to a constant `haze` (10,) in the units of its input: added to an image it changes nothing.
    """
    for stem, x in windows.items():
        conv: Any = network.local[stem]
        images = list(x.numpy())
        bands = [str(i) for i in range(x.shape[1])]
        drawn = RandomConvolutions(features=conv.out_channels, seed=seed, typical=typical).fitted(images, bands)
        kernel, bias, mean, std = (torch.from_numpy(v) for v in (drawn.kernel, drawn.bias, drawn.mean, drawn.std))
        kernel = kernel / std.view(1, -1, 1, 1)
        if stem == "ms" and haze is not None:
            # What is removed is constant over the filter's nine pixels. The response to the mean image must stay,
            # so the bias is computed with the remaining kernel.
            across = haze.view(1, -1, 1, 1).expand_as(kernel[:1]) / std.view(1, -1, 1, 1) ** 2
            response = (kernel * haze.view(1, -1, 1, 1)).sum(dim=(1, 2, 3), keepdim=True)
            kernel = kernel - response * across / (across * haze.view(1, -1, 1, 1)).sum()
        conv.weight.copy_(kernel)
        conv.bias.copy_(bias - (kernel * mean.view(1, -1, 1, 1)).sum(dim=(1, 2, 3)))


@torch.no_grad()
def keep_local(network: DeoConv, path: str) -> None:
    """Copy the wide local branch of all bands from the weights of an earlier run; refuse another shape."""
    file, own = local_path(path), network.local["ms"]
    if not file.is_file():
        raise WeightsNotFoundError(f"--student.local-from: no weights at {file}")
    with safe_open(str(file), framework="pt") as held:
        if not {"local.ms.weight", "local.ms.bias"} <= set(held.keys()):
            raise WeightsMismatchError(f"--student.local-from: {file} has no local branch of all bands")
        state = {name: held.get_tensor(f"local.ms.{name}") for name in ("weight", "bias")}
    try:
        own.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsMismatchError(f"--student.local-from: {file} has a local branch of another shape") from error


@torch.no_grad()
def fit_necks(network: nn.Module, windows: Mapping[str, Tensor], config: TrainConfig) -> None:
    """Fit the neck of every stem that `windows` (see `samples.windows_for`) has, in float64, as `config.neck_*` say."""
    assert isinstance(network, DeoConv)
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    for stem, x in windows.items():
        neck = config.neck_ms if stem == "ms" else config.neck_rgb
        features = (
            torch.cat([_parts(network, part.to(device), stem, neck) for part in torch.split(x, 16)]).double().cpu()
        )
        weight, bias = neck_of(features, network.seen[stem], config.student.dim, neck)
        if neck.changes and stem == "ms":
            weight, bias = _with_metric(network, x, weight, bias, config)
        conv: Any = network.necks[stem]
        conv.weight.copy_(weight[:, :, None, None])
        conv.bias.copy_(bias)
    network.train(training)


def _stacked(network: DeoConv, x: Tensor, stem: str) -> Tensor:
    """Return features (n, D, h, w) before the neck."""
    if isinstance(network, DeoSpectral):
        return network.stack_of(x, stem)
    maps = network.trunk(x, stem)
    maps["local"] = network.local_map(x, stem)
    return network.stack(maps, stem)


def _parts(network: DeoConv, x: Tensor, stem: str, neck: Neck) -> Tensor:
    """Return features (n, D) before the neck: of chips, or of every fifth token."""
    stacked = _stacked(network, x, stem)
    return stacked.mean(dim=(2, 3)) if neck.of == "chips" else _cells(stacked)[::5]


def _cells(stacked: Tensor) -> Tensor:
    return stacked.permute(0, 2, 3, 1).flatten(0, 2)


def _with_metric(
    network: DeoConv, x: Tensor, weight: Tensor, bias: Tensor, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """Return the neck with its local and contrast components in the metric of known changes."""
    neck = config.neck_ms
    device = next(network.parameters()).device
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.student.ms_mean, config.student.ms_std))
    leading = neck.local + neck.contrast
    head, shift = weight[:leading].to(device), bias[:leading].to(device)

    def components(images: Tensor) -> Tensor:
        """Return leading components (n, leading) of the cells of normalised images."""
        parts = torch.split(images, 16)
        return torch.cat([_cells(_stacked(network, part.to(device), "ms")) @ head.T + shift for part in parts])

    pairs = read_pairs(neck.changes)
    # Cells of 4 px: the grid of the embedding.
    share = torch.from_numpy(cell_shares(pairs.changed, 4)).flatten().to(device)
    fill = np.asarray(config.student.ms_mean, "float32")[:, None, None]
    dates = [
        components((torch.from_numpy(np.where(v > 0, v, fill).astype("float32")) - mean) / std)
        for v in (pairs.before, pairs.after)
    ]
    known = torch.isfinite(share)
    windows = x[::2]
    cells, other = components(windows), components((altered(windows * std + mean, config.seed) - mean) / std)
    number = torch.arange(len(windows), device=device).repeat_interleave(len(cells) // len(windows))
    with torch.enable_grad():
        transform, added = fit_metric(
            dates[0][known].float(), dates[1][known].float(), share[known],
            (cells.float(), other.float(), number), general=neck.general, seed=config.seed,
        )  # fmt: skip
    transform, added = transform.cpu(), added.cpu()
    first, constant = transform @ weight[:leading].double(), transform @ (bias[:leading].double() + added)
    # As many channels at a variance of one, on average, as before: the deep components keep their part in a distance.
    spread = ((cells.double().cpu() + added) @ transform.T).var(0).mean().sqrt()
    before = cells.double().cpu().var(0).mean().sqrt()
    weight, bias = weight.clone(), bias.clone()
    weight[:leading], bias[:leading] = (first * before / spread).float(), (constant * before / spread).float()
    return weight, bias


def neck_of(features: Tensor, parts: Mapping[str, int], dim: int, neck: Neck) -> tuple[Tensor, Tensor]:
    """Return weight (dim, D) and bias (dim,) of a neck from features (n, D); `parts` are channels by name, in order."""
    ends = np.cumsum([*parts.values()])
    columns = {name: slice(end - parts[name], end) for name, end in zip(parts, ends, strict=True)}
    known = [name for name in columns if name not in ("local", "contrast")]
    if unknown := set(neck.deep_of) - set(known):
        raise ArgumentError(f"deep_of: expected among {known}, found {sorted(unknown)}")
    deep = np.concatenate([np.arange(features.shape[1])[columns[name]] for name in neck.deep_of or known])
    blocks = (
        (columns["local"], neck.local, neck.local_power, 1.0, False),
        (columns.get("contrast", slice(0, 0)), neck.contrast, neck.local_power, neck.contrast_gain, False),
        (deep, neck.deep, neck.deep_power, neck.deep_gain, True),
    )
    if not 0 < neck.local + neck.contrast + neck.deep <= dim:
        raise ArgumentError(
            f"a neck of {neck.local} local, {neck.contrast} contrast and {neck.deep} deep components does not fit "
            f"{dim} channels"
        )
    if neck.contrast and "contrast" not in columns:
        raise ArgumentError("contrast: this network does not compute contrast for the stem; expected 0 components")
    mean, rows = features.mean(0), []
    for where, rank, power, gain, standardised in blocks:
        if rank == 0:
            continue
        z = features[:, where] - mean[where]
        scale = z.std(0) + 1e-6 if standardised else torch.ones(z.shape[1], dtype=z.dtype)
        values, vectors = torch.linalg.eigh(torch.cov((z / scale).T))
        values, vectors = values.flip(0)[:rank].clamp_min(1e-9), vectors.flip(1)[:, :rank]
        m = torch.zeros(rank, features.shape[1], dtype=features.dtype)
        m[:, where] = (vectors * values**-power).T / scale
        # Each block has a variance of one a component, on average, times its gain: none drowns the others.
        rows.append(gain * m / ((features - mean) @ m.T).var(0).mean().sqrt())
    components = torch.cat(rows)
    random = torch.Generator().manual_seed(0)
    if neck.turned == "apart":
        # The deep components are the last rows, where there are any.
        ahead = neck.local + neck.contrast
        weight = torch.cat([_rotation(len(part), random) @ part for part in (components[:ahead], components[ahead:])])
        weight = torch.cat([weight, weight.new_zeros(dim - len(weight), weight.shape[1])])
    else:
        weight = _rotation(dim, random)[:, : len(components)] @ components
    # A variance of one a channel, on average.
    weight = weight / ((features - mean) @ weight.T).var(0).mean().sqrt()
    return weight.float(), -(weight @ mean).float()


def _rotation(size: int, random: torch.Generator) -> Tensor:
    rotation: Tensor = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64))[0]
    return rotation
