"""Convolutional decoders, which see the neighbours of a patch and can predict on a finer grid: ConvHead and UPerNet.

The networks are pure functions of a mapping of tensors, so that a head saves its tensors and nothing else. They have no
normalisation over space: a prediction depends on the tokens within `halo` alone, and is the same on any chunks and
without seams.

UPerNet (Xiao et al. 2018, arXiv:1807.10221) differs from the published form in one thing: pyramid pooling averages over
windows of fixed size around each token, not over the tile, because the published form makes a prediction depend on
where its tile was cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer, number
from deo_cube.constants import Attribute
from deo_cube.embedding.embed import embed
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import resolve
from deo_cube.errors import ArgumentError
from deo_cube.heads.base import BaseHead, ModelId, category_attrs, check_model
from deo_cube.heads.cells import set_checked
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.labels import LabelOptions, rasterize_all
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims
from deo_cube.heads.windows import finer, map_windows

__all__ = ["ConvHead", "ConvOptions", "UPerNetHead", "multiscale", "upernet_logits", "upernet_tensors"]

Array = NDArray[Any]

POOL_SIDES = (3, 7, 15)
"""Sides of the windows of the pyramid, in tokens of the finest scale."""


@dataclass(frozen=True, kw_only=True)
class ConvOptions:
    """Options of a convolutional head.

    Parameters
    ----------
    width : int
        Channels of the hidden layers.
    upsample : int
        Predicted cells along the side of a patch; labels are rasterized to that grid. The patch size in pixels gives a
        map on the grid of the cube.
    steps, rate, batch, seed
        Of the training. Losses are averaged over classes, so that rare classes count.
    """

    width: int = 64
    upsample: int = 1
    steps: int = 300
    rate: float = 2e-3
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        set_checked(self, **{name: integer(name, getattr(self, name)) for name in ("width", "steps", "batch")})
        seed, upsample = integer("seed", self.seed, minimum=0), integer("upsample", self.upsample, maximum=16)
        set_checked(self, seed=seed, upsample=upsample, rate=number("rate", self.rate, above=0))


@dataclass(frozen=True)
class ConvHead(BaseHead):
    """Two 3x3 convolutions on tokens, interpolation by `upsample`, one more convolution, and a score per class.

    Parameters
    ----------
    tensors : mapping of str to array
        Weights by name, and `mean` and `std` of the vectors.
    width : int
        Channels of the hidden layers.
    upsample : int
        Predicted cells along the side of a patch.
    scales : tuple of int
        How many numbers of a vector belong to each scale, finest first; empty for one scale.
    """

    kind: ClassVar[str] = "conv"
    options: ClassVar[type[ConvOptions]] = ConvOptions
    halo: ClassVar[int] = 4
    """Tokens of context on each side: two 3x3 convolutions, the interpolation, and one more on finer cells."""
    window: ClassVar[int] = 24
    """Tokens along a side of a training window, halo included."""
    classes: Classes
    model: ModelId
    tensors: Mapping[str, Array] = field(repr=False, compare=False)
    width: int = 64
    upsample: int = 1
    scales: tuple[int, ...] = ()
    report: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.scales and (min(self.scales) < 1 or sum(self.scales) != self.model.dim):
            raise ArgumentError(f"scales must add up to vectors of {self.model.dim}, got {self.scales[:9]}")
        blank = self.initial_tensors(self.model.dim, self.width, len(self.classes), self.scales, None)
        expected = {k: (v.shape, v.dtype.name) for k, v in blank.items()}
        found = {k: (tuple(v.shape), v.dtype.name) for k, v in self.tensors.items()}
        if expected != found:
            differing = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
            raise ArgumentError(
                f"tensors of a {self.kind} head do not fit its sizes, (name, expected, found): "
                f"{[(k, expected.get(k), found.get(k)) for k in differing[:9]]}"
            )
        if not 1 <= self.upsample <= 16:
            raise ArgumentError(f"upsample must be from 1 to 16, got {self.upsample}")

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        labels: Sequence[Any],
        label_options: LabelOptions,
        model: ModelId,
        options: ConvOptions,
    ) -> ConvHead:
        """Train with AdamW on windows around labels, rotated and mirrored at random."""
        width, upsample = options.width, options.upsample
        scales = _stated_scales(arrays[0], model.dim)
        rasters = rasterize_all(labels, [finer(geobox(a), upsample) for a in arrays], label_options)
        windows = [
            pair
            for array, raster in zip(arrays, rasters, strict=True)
            for pair in _training_windows(array, raster.values, upsample, cls.window, cls.halo)
        ]
        inputs, targets = (np.stack(p) for p in zip(*windows, strict=True)) if windows else (np.empty((0,)),) * 2
        classes = _classes_in(targets, rasters)
        tensors = cls.initial_tensors(model.dim, width, len(classes), scales, options.seed) | _mean_and_std(inputs)
        tensors, loss = cls._train(tensors, inputs, targets, classes, scales, options)
        report = {
            "cells": {n: int((targets == c).sum()) for c, n in zip(classes.codes, classes.names, strict=True)},
            "windows": len(inputs),
            "steps": options.steps,
            "loss": round(loss, 4),
        }
        return cls(classes, model, tensors, width, upsample, scales, report)

    @classmethod
    def _train(
        cls,
        tensors: Mapping[str, Array],
        inputs: Array,
        targets: Array,
        classes: Classes,
        scales: tuple[int, ...],
        options: ConvOptions,
    ) -> tuple[dict[str, Array], float]:
        """Return the trained tensors and the last loss."""
        import torch
        import torch.nn.functional as F

        class_index = np.full(NO_CLASS + 1, -1)
        class_index[list(classes.codes)] = np.arange(len(classes))
        x, y = torch.from_numpy(inputs.astype("float32")), torch.from_numpy(class_index[targets])
        frequency = np.bincount(y[y >= 0].numpy(), minlength=len(classes))
        weight = torch.tensor(frequency.sum() / (len(classes) * frequency), dtype=torch.float32)
        t = {k: torch.from_numpy(v) for k, v in tensors.items()}
        trained = [v.requires_grad_() for k, v in t.items() if k not in ("mean", "std")]
        optimizer = torch.optim.AdamW(trained, lr=options.rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=options.steps)
        rng = np.random.default_rng(options.seed)
        last_loss = float("nan")
        for _ in range(options.steps):
            chosen = torch.from_numpy(rng.integers(0, len(x), options.batch))
            quarter_turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
            seen, truth = (torch.rot90(v[chosen], quarter_turns, (-2, -1)) for v in (x, y))
            if mirror:
                seen, truth = seen.flip(-1), truth.flip(-1)
            # The border of a window lacks context and carries no labels.
            loss = F.cross_entropy(
                cls.forward(t, seen, options.upsample, scales), truth, weight=weight, ignore_index=-1
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            last_loss = float(loss.detach())
        return {k: v.detach().numpy() for k, v in t.items()}, last_loss

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """Return classes or probabilities, as `Head.predict`, on a grid `upsample` times as fine as the embeddings."""
        emb = check_model(self, embeddings)
        return map_windows(
            _PredictTile(self, probabilities),
            emb,
            along="embedding",
            halo=self.halo,
            factor=self.upsample,
            channels={"class": self.classes.names} if probabilities else None,
            dtype="float32" if probabilities else "uint8",
            name="probability" if probabilities else "class",
            attrs=category_attrs(self, probabilities=probabilities),
        )

    def logits(self, tile: Array) -> Array:
        """Return the scores (K, h f, w f) of a tile (D, h + 2 halo, w + 2 halo) float32, without its halo."""
        import torch

        tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in self.tensors.items()}
        cut = self.halo * self.upsample
        with torch.inference_mode():
            scores = self.forward(tensors, torch.from_numpy(tile)[None], self.upsample, self.scales)[0]
            return np.asarray(scores[:, cut:-cut, cut:-cut].numpy())

    @staticmethod
    def initial_tensors(
        dim: int, width: int, classes: int, scales: tuple[int, ...], seed: int | None = 0
    ) -> dict[str, Array]:
        """Return the tensors before training (He et al. 2015); zeros that take no memory where `seed` is None."""
        new = _conv_maker(seed)
        return {
            **_identity_scaling(dim, seed),
            **new("in", dim, width, 1), **new("one", width, width, 3), **new("two", width, width, 3),
            **new("fine", width, width, 3), **new("out", width, classes, 1, 0.1),
        }  # fmt: skip

    @staticmethod
    def forward(t: Mapping[str, Any], x: Any, upsample: int, scales: tuple[int, ...]) -> Any:
        """Return the scores [B, K, h f, w f] of tokens [B, D, h, w]; invalid tokens count as the mean."""
        import torch.nn.functional as F

        x = F.gelu(_conv(t, "in", _standardised(t, x)))
        for name in ("one", "two"):
            x = x + F.gelu(_conv(t, name, x))
        return _scores(t, x, upsample)


@dataclass(frozen=True)
class UPerNetHead(ConvHead):
    """UPerNet on the scales of a vector: pyramid pooling on the coarsest scale, sums from coarse to fine, fusion.

    It works with embeddings of one layer too; `multiscale` gives it several.
    """

    kind: ClassVar[str] = "upernet"
    halo: ClassVar[int] = 12
    window: ClassVar[int] = 40

    @staticmethod
    def initial_tensors(
        dim: int, width: int, classes: int, scales: tuple[int, ...], seed: int | None = 0
    ) -> dict[str, Array]:
        """Return `upernet_tensors`."""
        return upernet_tensors(dim, width, classes, scales, seed)

    @staticmethod
    def forward(t: Mapping[str, Any], x: Any, upsample: int, scales: tuple[int, ...]) -> Any:
        """Return `upernet_logits`."""
        return upernet_logits(t, x, upsample, scales)


@dataclass(frozen=True)
class _PredictTile:
    """Classes (h f, w f) or probabilities (K, h f, w f) of a tile of tokens (D, h + 2 halo, w + 2 halo)."""

    head: ConvHead
    probabilities: bool

    def __call__(self, tile: Array) -> Array:
        halo, f = self.head.halo, self.head.upsample
        valid = np.isfinite(tile[:, halo:-halo, halo:-halo]).all(axis=0).repeat(f, axis=0).repeat(f, axis=1)
        # Tiles beyond the array, or entirely under clouds, need no decoding.
        scores = self.head.logits(tile) if valid.any() else np.zeros((len(self.head.classes), *valid.shape), "float32")
        if self.probabilities:
            e = np.exp(scores - scores.max(axis=0))
            return np.asarray(np.where(valid, e / e.sum(axis=0), np.float32(np.nan)))
        codes = np.array(self.head.classes.codes, "uint8")
        return np.asarray(np.where(valid, codes[scores.argmax(axis=0)], np.uint8(NO_CLASS)))


def multiscale(
    cube: xr.Dataset | xr.DataArray,
    model: str | Path | ModelCard = "tiny",
    *,
    layers: Sequence[str] | None = None,
    **embed_options: Any,
) -> xr.DataArray:
    """Return embeddings of several layers on the grid of the finest, concatenated along `embedding`. Lazy.

    Parameters
    ----------
    cube : Dataset or DataArray
        A Sentinel-2 cube.
    model : str, path or ModelCard
        As in `embed`.
    layers : sequence of str, optional
        Default: all layers of the card.
    **embed_options
        Of `embed`. The model runs once per layer.

    Returns
    -------
    DataArray
        (time, embedding, y, x) with the attribute ``deo_cube:scales``: how many numbers each layer gave.
    """
    card = resolve(model).card
    chosen = sorted((card.layer(n) for n in (layers or card.layer_names)), key=lambda layer: layer.stride)
    embedded = [as_embeddings(embed(cube, model, layer=layer.name, **embed_options)) for layer in chosen]
    finest = embedded[0]
    parts = [finest, *(_on_grid(e, finest) for e in embedded[1:])]
    joined = xr.concat(parts, dim="embedding", coords="minimal", compat="override", join="override")
    if joined.chunks is not None:
        joined = joined.copy(data=joined.data.rechunk({joined.get_axis_num("embedding"): -1}))
    joined.attrs = finest.attrs | {
        Attribute.SCALES: [int(p.sizes["embedding"]) for p in parts],
        Attribute.LAYER: "+".join(layer.name for layer in chosen),
    }
    return joined


def _on_grid(coarse: xr.DataArray, fine: xr.DataArray) -> xr.DataArray:
    """Return the cells of `coarse` that contain the centres of the cells of `fine`."""
    y, x = spatial_dims(fine)
    box = geobox(coarse)
    t = box.transform
    positions = {}
    for dim, origin, step in ((y, t.f, t.e), (x, t.c, t.a)):
        place = (np.asarray(fine[dim].values, "float64") - origin) / step
        positions[dim] = np.clip(np.floor(place).astype(int), 0, coarse.sizes[dim] - 1)
    nearest = coarse.isel(positions).drop_vars([c for c in coarse.coords if c != "time"])
    return nearest.assign_coords({y: fine[y], x: fine[x]})


# ---- training data --------------------------------------------------------------------------------------------------


def _stated_scales(array: xr.DataArray, dim: int) -> tuple[int, ...]:
    """Return the scales that `multiscale` wrote into the attributes."""
    scales = tuple(int(v) for v in np.atleast_1d(array.attrs.get(Attribute.SCALES, ())))
    if scales and sum(scales) != dim:
        raise ArgumentError(
            f"embeddings state scales of {scales} numbers, but have vectors of {dim}: pass all of the vector, or "
            "embeddings.drop_attrs()"
        )
    return scales


def _classes_in(targets: Array, rasters: Sequence[xr.DataArray]) -> Classes:
    """Return the classes that occur in training windows."""
    known = {
        code: (name, color)
        for r in rasters
        for code, name, color in zip(*(Classes.from_attrs(r.attrs).to_dict().values()), strict=True)
    }
    present = np.unique(targets[targets != NO_CLASS]).astype(int).tolist()
    names, colors = (tuple(known[c][i] for c in present) for i in (0, 1))
    if len(present) < 2:
        raise ArgumentError(
            f"labels must be of at least two classes, found labelled cells with a valid embedding of classes "
            f"{list(names)}: label other places, or choose another time"
        )
    return Classes(tuple(present), names, colors)


def _mean_and_std(inputs: Array) -> dict[str, Array]:
    """Return mean and standard deviation of the valid vectors of windows (n, D, W, W)."""
    vectors = inputs.transpose(0, 2, 3, 1).reshape(-1, inputs.shape[1])
    vectors = vectors[np.isfinite(vectors).all(axis=1)].astype("float64")
    return {
        "mean": vectors.mean(axis=0).astype("float32"),
        "std": (vectors.std(axis=0) + 1e-6).astype("float32"),
    }


def _training_windows(emb: xr.DataArray, labels: Array, f: int, window: int, halo: int) -> list[tuple[Array, Array]]:
    """Return windows (D, W, W) of tokens with labels in their core, and the labels (W f, W f); of every time."""
    y, x = spatial_dims(emb)
    core = window - 2 * halo
    rows, cols = emb.sizes[y], emb.sizes[x]
    windows = []
    for i in range(0, rows, core):
        for j in range(0, cols, core):
            core_labels = labels[i * f : (i + core) * f, j * f : (j + core) * f]
            if (core_labels == NO_CLASS).all():
                continue
            top, left = i - halo, j - halo
            row_span = slice(max(top, 0), min(top + window, rows))
            col_span = slice(max(left, 0), min(left + window, cols))
            values = emb.isel({y: row_span, x: col_span}).transpose(..., "embedding", y, x).values.astype("float32")
            pad = (
                (row_span.start - top, top + window - row_span.stop),
                (col_span.start - left, left + window - col_span.stop),
            )
            target = np.full((window * f, window * f), NO_CLASS, "uint8")
            target[halo * f :, halo * f :][: core_labels.shape[0], : core_labels.shape[1]] = core_labels
            for one_time in values.reshape(-1, *values.shape[-3:]):
                tokens = np.pad(one_time, ((0, 0), *pad), constant_values=np.nan)
                valid = np.isfinite(tokens).all(axis=0).repeat(f, axis=0).repeat(f, axis=1)
                valid_target = np.where(valid, target, np.uint8(NO_CLASS))
                if (valid_target != NO_CLASS).any():
                    windows.append((tokens, valid_target))
    return windows


# ---- networks -------------------------------------------------------------------------------------------------------


def upernet_tensors(
    dim: int, width: int, classes: int, scales: tuple[int, ...], seed: int | None = 0
) -> dict[str, Array]:
    """Return the tensors of UPerNet before training; zeros that take no memory where `seed` is None."""
    new, sizes = _conv_maker(seed), scales or (dim,)
    tensors = _identity_scaling(dim, seed)
    for i, d in enumerate(sizes):
        tensors |= new(f"lateral{i}", d, width, 1) | new(f"level{i}", width, width, 3)
    for k in POOL_SIDES:
        tensors |= new(f"pool{k}", width, width // 4, 1)
    tensors |= new("bottleneck", width + len(POOL_SIDES) * (width // 4), width, 3)
    tensors |= new("fuse", width * len(sizes), width, 3)
    tensors |= new("fine", width, width, 3) | new("out", width, classes, 1, 0.1)
    return tensors


def upernet_logits(t: Mapping[str, Any], x: Any, upsample: int, scales: tuple[int, ...]) -> Any:
    """Return the scores [B, K, h f, w f] of tokens [B, D, h, w]; invalid tokens count as the mean."""
    import torch
    import torch.nn.functional as F

    parts = _standardised(t, x).split(list(scales or (x.shape[1],)), dim=1)
    maps = [F.gelu(_conv(t, f"lateral{i}", p)) for i, p in enumerate(parts)]
    coarsest = maps[-1]
    pooled = [F.gelu(_conv(t, f"pool{k}", F.avg_pool2d(coarsest, k, 1, k // 2))) for k in POOL_SIDES]
    maps[-1] = F.gelu(_conv(t, "bottleneck", torch.cat([coarsest, *pooled], dim=1)))
    for i in range(len(maps) - 2, -1, -1):
        maps[i] = maps[i] + maps[i + 1]
    levels = [m + F.gelu(_conv(t, f"level{i}", m)) for i, m in enumerate(maps)]
    return _scores(t, F.gelu(_conv(t, "fuse", torch.cat(levels, dim=1))), upsample)


def _conv_maker(seed: int | None) -> Any:
    """Return ``new(name, channels_in, channels_out, side, gain) -> {name.weight, name.bias}``.

    Each call takes the next random numbers. Where `seed` is None the tensors are zeros that take no memory: they give
    the shapes that a file must have, whatever sizes it claims.
    """
    rng = np.random.default_rng(seed)

    def new(name: str, channels_in: int, channels_out: int, side: int, gain: float = 1.0) -> dict[str, Array]:
        shape = (channels_out, channels_in, side, side)
        if seed is None:
            return {f"{name}.weight": _zeros(*shape), f"{name}.bias": _zeros(channels_out)}
        weight = rng.normal(size=shape) * gain * np.sqrt(2 / (channels_in * side * side))
        return {f"{name}.weight": weight.astype("float32"), f"{name}.bias": np.zeros(channels_out, "float32")}

    return new


def _zeros(*shape: int) -> Array:
    """Return read-only float32 zeros that take no memory."""
    return np.broadcast_to(np.float32(0), shape)


def _identity_scaling(dim: int, seed: int | None) -> dict[str, Array]:
    """Return a mean of zeros and a standard deviation of ones; their shapes alone where `seed` is None."""
    if seed is None:
        return {"mean": _zeros(dim), "std": _zeros(dim)}
    return {"mean": np.zeros(dim, "float32"), "std": np.ones(dim, "float32")}


def _conv(t: Mapping[str, Any], name: str, x: Any) -> Any:
    """Apply a convolution that keeps the size."""
    import torch.nn.functional as F

    weight = t[f"{name}.weight"]
    return F.conv2d(x, weight, t[f"{name}.bias"], padding=weight.shape[-1] // 2)


def _standardised(t: Mapping[str, Any], x: Any) -> Any:
    """Return standardised vectors, in which invalid ones are the mean."""
    return ((x - t["mean"][:, None, None]) / t["std"][:, None, None]).nan_to_num(0.0)


def _scores(t: Mapping[str, Any], x: Any, upsample: int) -> Any:
    """Return a score per class, on a finer grid where `upsample` is above 1."""
    import torch.nn.functional as F

    if upsample > 1:
        x = F.interpolate(x, scale_factor=upsample, mode="bilinear", align_corners=False)
        x = x + F.gelu(_conv(t, "fine", x))
    return _conv(t, "out", x)
