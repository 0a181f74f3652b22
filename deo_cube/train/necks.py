"""The necks of a trained student: linear maps from everything that the network computes to the embedding.

The neck of a `conv` student is fitted without labels and in closed form on training windows: principal components,
partly whitened, turned by a fixed rotation, so that every channel carries an equal share of the variance. Whitening
brings out what is rare (neighbours on EuroSAT gain three points), the rotation keeps a probe that standardises channels
from blowing up the weakest component, and rounds int8 evenly. With `Neck.changes`, the metric of its local components
is fitted to known changes afterwards (`train.metric`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from deo_cube.encoder.networks.conv import DeoConv
from deo_cube.encoder.networks.spectral import DeoSpectral
from deo_cube.encoder.random_convolutions import RandomConvolutions
from deo_cube.errors import ArgumentError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.paths import local_path
from deo_cube.train.config import Neck, TrainConfig
from deo_cube.train.metric import altered, cell_shares, fit_metric, read_pairs

__all__ = ["fit_local", "fit_necks", "keep_local", "neck_of"]


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
