"""A light convolutional decoder: sees a patch's neighbours, and can draw finer than the patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer, number
from deo_cube.errors import ArgumentError
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.decoders import apply_conv, conv_maker, drawn, neutral, standard
from deo_cube.heads.head import Fitted, Model, category_attrs, check_model
from deo_cube.heads.labels import burn_all
from deo_cube.heads.vectors import geobox, spatial_dims
from deo_cube.heads.windows import finer, map_windows

__all__ = ["ConvHead"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Decode:
    """From a tile of tokens with its halo to classes (h f, w f), or to probabilities (K, h f, w f)."""

    head: ConvHead
    probabilities: bool

    def __call__(self, tile: Array) -> Array:
        """Classes, or probabilities, of the core of `tile` (D, h + 2 halo, w + 2 halo)."""
        halo, f = self.head.halo, self.head.upsample
        valid = np.isfinite(tile[:, halo:-halo, halo:-halo]).all(axis=0).repeat(f, axis=0).repeat(f, axis=1)
        n = len(self.head.classes)
        # What lies beyond the array, or under clouds, is not decoded at all.
        scores = self.head.logits(tile) if valid.any() else np.zeros((n, *valid.shape), "float32")
        if self.probabilities:
            e = np.exp(scores - scores.max(axis=0))
            return np.asarray(np.where(valid, e / e.sum(axis=0), np.float32(np.nan)))
        codes = np.array(self.head.classes.codes, "uint8")
        return np.asarray(np.where(valid, codes[scores.argmax(axis=0)], np.uint8(NO_CLASS)))


@dataclass(frozen=True)
class ConvHead(Fitted):
    """Two 3x3 convolutions on tokens, interpolation by `upsample`, one more, and a score a class.

    There is no normalisation over space, so that a prediction depends on the tokens within `halo` alone: the same on
    any chunks, and without seams.
    """

    kind: ClassVar[str] = "conv"
    halo: ClassVar[int] = 4
    """Tokens of context on each side: of two 3x3 convolutions, the interpolation, and one more on finer pixels."""
    window: ClassVar[int] = 24
    """Tokens along a side of a training window, halo included."""
    classes: Classes
    model: Model
    tensors: Mapping[str, Array] = field(repr=False, compare=False)
    """Weights by name, and `mean` and `std` of the vectors."""
    width: int = 64
    upsample: int = 1
    scales: tuple[int, ...] = ()
    """How many of the vector's numbers belong to each scale, finest first; empty: there is one."""
    report: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.scales and (min(self.scales) < 1 or sum(self.scales) != self.model.dim):
            raise ArgumentError(f"the scales {self.scales[:9]} do not make up vectors of {self.model.dim}")
        blank = self.blank(self.model.dim, self.width, len(self.classes), self.scales, None)
        wanted = {k: (v.shape, v.dtype.name) for k, v in blank.items()}
        found = {k: (tuple(v.shape), v.dtype.name) for k, v in self.tensors.items()}
        if wanted != found:
            differ = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
            raise ArgumentError(
                f"a {self.kind} head's parts do not fit: {[(k, wanted.get(k), found.get(k)) for k in differ]}"
            )
        if not 1 <= self.upsample <= 16:
            raise ArgumentError(f"upsample must be from 1 to 16, got {self.upsample}")

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        many: Sequence[Any],
        burn_options: Mapping[str, Any],
        model: Model,
        *,
        width: int = 64,
        upsample: int = 1,
        steps: int = 300,
        rate: float = 2e-3,
        batch: int = 8,
        seed: int = 0,
    ) -> ConvHead:
        """Train with Adam on windows around labels, turned and mirrored at random.

        Parameters
        ----------
        width : int
            Channels of the hidden layers.
        upsample : int
            Output pixels along the side of a patch; labels are burnt that fine. The patch size in pixels gives a map
            on the grid of the cube.
        steps, rate, batch, seed
            Of the training. Losses are averaged over classes, so that rare ones count.
        """
        import torch
        import torch.nn.functional as F

        width, steps, batch = integer("width", width), integer("steps", steps), integer("batch", batch)
        seed, upsample = integer("seed", seed, minimum=0), integer("upsample", upsample, maximum=16)
        rate = number("rate", rate, above=0)
        scales = _scales(arrays[0], model.dim)
        windows, targets = [], []
        names: dict[int, tuple[str, str]] = {}
        drawn = burn_all(many, [finer(geobox(a), upsample) for a in arrays], **burn_options)
        for array, fine in zip(arrays, drawn, strict=True):
            a = fine.attrs
            for c, n, h in zip(a["flag_values"], a["flag_meanings"].split(), a["flag_colors"].split(), strict=True):
                names[int(c)] = (n, h)
            for w, t in _windows(array, fine.values, upsample, cls.window, cls.halo):
                windows.append(w)
                targets.append(t)
        x, y = (np.stack(p) if p else np.empty((0,)) for p in (windows, targets))
        present = np.unique(y[y != NO_CLASS]).astype(int).tolist() if len(y) else []
        if len(present) < 2:
            found = [names[c][0] for c in present]
            raise ArgumentError(
                f"labelled cells with a valid embedding are of {len(found)} classes {found}: a head wants examples of "
                "at least two. Label other places, or choose another time"
            )
        classes = Classes(tuple(present), tuple(names[c][0] for c in present), tuple(names[c][1] for c in present))
        flat = x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
        flat = flat[np.isfinite(flat).all(axis=1)].astype("float64")
        mean, std = flat.mean(axis=0), flat.std(axis=0) + 1e-6
        index = np.full(NO_CLASS + 1, -1)
        index[present] = np.arange(len(present))
        inputs, truth = torch.from_numpy(x.astype("float32")), torch.from_numpy(index[y])
        freq = np.bincount(truth[truth >= 0].numpy(), minlength=len(present))
        weight = torch.tensor(freq.sum() / (len(present) * freq), dtype=torch.float32)
        rng = np.random.default_rng(seed)
        tensors = {k: torch.from_numpy(v) for k, v in cls.blank(model.dim, width, len(present), scales, seed).items()}
        tensors |= {"mean": torch.from_numpy(mean.astype("float32")), "std": torch.from_numpy(std.astype("float32"))}
        learnt = [t.requires_grad_() for k, t in tensors.items() if k not in ("mean", "std")]
        adam = torch.optim.AdamW(learnt, lr=rate, weight_decay=1e-2)
        plan = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps)
        last = float("nan")
        for _ in range(steps):
            pick = torch.from_numpy(rng.integers(0, len(inputs), batch))
            turn, flip = int(rng.integers(4)), bool(rng.integers(2))
            seen, wanted = (torch.rot90(v[pick], turn, (-2, -1)) for v in (inputs, truth))
            if flip:
                seen, wanted = seen.flip(-1), wanted.flip(-1)
            # The rim of a window lacks context and carries no labels.
            loss = F.cross_entropy(cls.forward(tensors, seen, upsample, scales), wanted, weight=weight, ignore_index=-1)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            plan.step()
            last = float(loss.detach())
        report = {
            "cells": {n: int((y == c).sum()) for c, n in zip(classes.codes, classes.names, strict=True)},
            "windows": len(x), "steps": steps, "loss": round(last, 4),
        }  # fmt: skip
        return cls(classes, model, {k: v.detach().numpy() for k, v in tensors.items()}, width, upsample, scales, report)

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """See `Head.predict`; on a grid `upsample` times as fine as that of the embeddings."""
        emb = check_model(self, embeddings)
        return map_windows(
            Decode(self, probabilities),
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
        """Scores (K, h f, w f) of a tile (D, h + 2 halo, w + 2 halo) of float32, without its halo."""
        import torch

        tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in self.tensors.items()}
        cut = self.halo * self.upsample
        with torch.inference_mode():
            found = self.forward(tensors, torch.from_numpy(tile)[None], self.upsample, self.scales)[0]
            return np.asarray(found[:, cut:-cut, cut:-cut].numpy())

    @staticmethod
    def blank(dim: int, width: int, classes: int, scales: tuple[int, ...], seed: int | None = 0) -> dict[str, Array]:
        """Tensors of the decoder before training (He et al. 2015); without a seed their shapes alone."""
        new = conv_maker(seed)
        return {
            **neutral(dim, seed),
            **new("in", dim, width, 1), **new("one", width, width, 3), **new("two", width, width, 3),
            **new("fine", width, width, 3), **new("out", width, classes, 1, 0.1),
        }  # fmt: skip

    @staticmethod
    def forward(t: Mapping[str, Any], x: Any, upsample: int, scales: tuple[int, ...]) -> Any:
        """Logits [B, K, h f, w f] of tokens [B, D, h, w]; invalid tokens count as the mean."""
        import torch.nn.functional as F

        x = F.gelu(apply_conv(t, "in", standard(t, x)))
        for name in ("one", "two"):
            x = x + F.gelu(apply_conv(t, name, x))
        return drawn(t, x, upsample)


def _scales(array: xr.DataArray, dim: int) -> tuple[int, ...]:
    """Dims of the scales that `multiscale` wrote down."""
    stated = tuple(int(v) for v in np.atleast_1d(array.attrs.get("deo_cube:scales", ())))
    if stated and sum(stated) != dim:
        raise ArgumentError(
            f"the embeddings state scales of {stated} numbers, but vectors of {dim}: keep all, or drop attrs"
        )
    return stated


def _windows(emb: xr.DataArray, labels: Array, f: int, window: int, halo: int) -> list[tuple[Array, Array]]:
    """Windows (D, W, W) of tokens with labels in their core, and the labels (W f, W f); of every time."""
    y, x = spatial_dims(emb)
    core = window - 2 * halo
    rows, cols = emb.sizes[y], emb.sizes[x]
    out = []
    for i in range(0, rows, core):
        for j in range(0, cols, core):
            own = labels[i * f : (i + core) * f, j * f : (j + core) * f]
            if (own == NO_CLASS).all():
                continue
            top, left = i - halo, j - halo
            sy = slice(max(top, 0), min(top + window, rows))
            sx = slice(max(left, 0), min(left + window, cols))
            v = emb.isel({y: sy, x: sx}).transpose(..., "embedding", y, x).values.astype("float32")
            pad = ((sy.start - top, top + window - sy.stop), (sx.start - left, left + window - sx.stop))
            target = np.full((window * f, window * f), NO_CLASS, "uint8")
            target[halo * f : halo * f + own.shape[0], halo * f : halo * f + own.shape[1]] = own
            for one in v.reshape(-1, *v.shape[-3:]):
                w = np.pad(one, ((0, 0), *pad), constant_values=np.nan)
                good = np.isfinite(w).all(axis=0).repeat(f, axis=0).repeat(f, axis=1)
                t = np.where(good, target, np.uint8(NO_CLASS))
                if (t != NO_CLASS).any():
                    out.append((w, t))
    return out
