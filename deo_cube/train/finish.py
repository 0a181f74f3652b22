"""What turns a trained student into a model that can be used: its necks, and a complete card.

The neck of a `conv` student is one linear map from everything that the network computes to the channels that are given
out. It is fitted without labels and in closed form on training windows: principal components, partly whitened, turned
by a fixed rotation, so that every channel carries an equal share of the variance. Whitening brings out what is rare
(neighbours on EuroSAT gain three points), the rotation keeps a probe that standardises channels from blowing up the
weakest component, and rounds int8 evenly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.networks.conv import DeoConv
from deo_cube.encoder.networks.spectral import DeoSpectral
from deo_cube.errors import ArgumentError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.paths import local_path
from deo_cube.train.config import Neck, TrainConfig
from deo_cube.train.samples import Mixture

__all__ = ["describe_run", "fit_local", "fit_necks", "keep_local", "typical_pixels", "untrained_stems", "windows_for"]

FIRST = 1_000_000_000
"""Number of the first window that serves the necks: far from those that train."""


def windows_for(mixture: Mixture, config: TrainConfig, count: int = 384) -> dict[str, Tensor]:
    """Normalised windows (n, C, S, S) of each stem that the run has sources for, in the middle of larger ones."""
    size = config.augment.global_size // 16 * 16
    kinds = {s.kind for s in mixture.sources}
    student = config.student
    out = {}
    if "ms" in kinds:
        ms = _middles(mixture, "ms", count, size)
        out["ms"] = (ms - _column(student.ms_mean)) / _column(student.ms_std)
    if kinds:
        # Without RGB-only sources the RGB stem has learnt from the cubes' own red, green and blue.
        rgb = _middles(mixture, "rgb", 3 * count, size) if "rgb" in kinds else ms[:, :3]
        out["rgb"] = (rgb - _column(student.rgb_mean)) / _column(student.rgb_std)
    return out


def typical_pixels(mixture: Mixture, config: TrainConfig, count: int = 8) -> NDArray[np.float32] | None:
    """Windows (n, 10, S, S) in DN for the int8 scales of the card; None where the run has no multispectral source."""
    if not any(s.kind == "ms" for s in mixture.sources):
        return None
    size = max(32, config.loader.window // 32 * 32)
    found = np.stack([mixture.sample("ms", FIRST + i) for i in range(count)])
    edge = max(0, size - found.shape[2])
    found = np.pad(found, ((0, 0), (0, 0), (0, edge), (0, edge)), mode="symmetric")
    return np.ascontiguousarray(found[:, :, :size, :size], dtype="float32")


def _middles(mixture: Mixture, kind: Literal["ms", "rgb"], count: int, size: int) -> Tensor:
    x = torch.stack([torch.from_numpy(mixture.sample(kind, FIRST + i)) for i in range(count)])
    # Windows beside finer RGB may be smaller than a crop.
    size = min(size, x.shape[2] // 16 * 16 or x.shape[2])
    edge = (x.shape[2] - size) // 2
    return x[:, :, edge : edge + size, edge : edge + size]


@torch.no_grad()
def fit_local(
    network: DeoConv, windows: Mapping[str, Tensor], seed: int, typical: float = 0.0, haze: Tensor | None = None
) -> None:
    """Start the wide local branches as whitened patches of the data (MOSAIKS): what any training must improve on.

    `typical` above 0 has half of them prefer what is like much else: see `RandomConvolutions`. Filters of the stem `ms`
    are made orthogonal to a constant `haze` (10,), in the units of its input: added to an image it changes nothing.
    """
    from deo_cube.encoder.random_convolutions import RandomConvolutions

    for stem, x in windows.items():
        conv: Any = network.local[stem]
        images = list(x.numpy())
        bands = [str(i) for i in range(x.shape[1])]
        found = RandomConvolutions(features=conv.out_channels, seed=seed, typical=typical).fitted(images, bands)
        kernel, bias, mean, std = (torch.from_numpy(v) for v in (found.kernel, found.bias, found.mean, found.std))
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
    """Take the wide local branch of all bands from the weights of an earlier run.

    Raises
    ------
    WeightsNotFoundError, WeightsMismatchError
        If there is no such file, or its local branch has another shape.
    """
    from safetensors import safe_open

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
    """Fit the neck of every stem that `windows` has, in float64 on the CPU's or GPU's features.

    Parameters
    ----------
    network : DeoConv
        Its necks are overwritten.
    windows : mapping of str to Tensor
        See `windows_for`.
    config : TrainConfig
        `neck_ms` and `neck_rgb` say how.
    """
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
        conv: Any = network.necks[stem]
        conv.weight.copy_(weight[:, :, None, None])
        conv.bias.copy_(bias)
    network.train(training)


def _parts(network: DeoConv, x: Tensor, stem: str, neck: Neck) -> Tensor:
    """Features (n, D) before the neck: of chips, or of every fifth token."""
    if isinstance(network, DeoSpectral):
        stacked = network.stack_of(x, stem)
    else:
        maps = network.trunk(x, stem)
        maps["local"] = network.local_map(x, stem)
        stacked = network.stack(maps, stem)
    if neck.of == "chips":
        return stacked.mean(dim=(2, 3))
    return stacked.permute(0, 2, 3, 1).flatten(0, 2)[::5]


def neck_of(features: Tensor, parts: Mapping[str, int], dim: int, neck: Neck) -> tuple[Tensor, Tensor]:
    """Weight (dim, D) and bias (dim,) of a neck from features (n, D), made of `parts` of so many channels each."""
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
        raise ArgumentError("the neck wants components of contrast, which this network does not compute for the stem")
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
    turned: Tensor = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64))[0]
    return turned


def describe_run(config: TrainConfig, step: int, seconds: float, history: Mapping[str, float]) -> ModelCard:
    """The card of a student as it is after `step` steps."""
    from deo_cube.train.student import student_card

    o = config.optimizer
    card = student_card(config, name=f"{config.student.family}_student.step{step}", alias="student")
    health = ", ".join(f"{k} {v:.3g}" for k, v in history.items())
    sources = "; ".join(config.data)
    return dataclasses.replace(
        card,
        weights=Weights("trained", "weights.safetensors"),
        training_data=f"{step} steps of {(o.batch + o.rgb_batch) * o.accumulate} samples a process, {seconds:.0f} s, "
        f"seed {config.seed}, teacher {config.teacher}"
        + (f" and {config.specialist.model}" if config.specialist.model else "")
        + f"; sources: {sources}"
        + (f"; health: {health}" if health else ""),
        limits=(
            "No score has been measured: run deo_cube.evaluate on labelled data kept apart from training.",
            *(f"Stem {stem!r} was not trained: no arm fed it." for stem in untrained_stems(config)),
        ),
    )


def untrained_stems(config: TrainConfig) -> list[str]:
    """Stems that the arms of a run leave as they started."""
    o = config.objective
    matched = bool(config.specialist.model) or (config.teacher != "none" and o.multispectral_optical > 0)
    ms = config.optimizer.batch > 0 and (o.multispectral or matched)
    rgb = config.teacher != "none" and o.second_stem
    return [stem for stem, trained in (("ms", ms), ("rgb", rgb)) if not trained]


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)
