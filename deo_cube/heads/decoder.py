"""A light convolutional decoder: sees a patch's neighbours, and can draw finer than the patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.heads import saved
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.head import Model, category_attrs, check_model, facts_of
from deo_cube.heads.labels import burn
from deo_cube.heads.vectors import geobox, spatial_dims
from deo_cube.heads.windows import finer, map_windows

__all__ = ["ConvHead"]

Array = NDArray[Any]

HALO = 4
"""Tokens of context on each side: of two 3x3 convolutions, the interpolation, and one more on finer pixels."""
WINDOW = 24
"""Tokens along a side of a training window, halo included."""
TILE = 64
"""Tokens along a side of what is decoded at once."""


@dataclass(frozen=True)
class ConvHead:
    """Two 3x3 convolutions on tokens, interpolation by `upsample`, one more, and a score a class.

    There is no normalisation over space, so that a prediction depends on the tokens within `HALO` alone: the same on
    any chunks, and without seams.
    """

    kind: ClassVar[str] = "conv"
    classes: Classes
    model: Model
    tensors: Mapping[str, Array] = field(repr=False, compare=False)
    """Weights by name, and `mean` and `std` of the vectors."""
    width: int = 64
    upsample: int = 1
    report: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        wanted = {k: v.shape for k, v in _blank(self.model.dim, self.width, len(self.classes)).items()}
        found = {k: tuple(v.shape) for k, v in self.tensors.items()}
        if wanted != found:
            differ = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
            raise ValueError(f"a conv head's parts do not fit: {[(k, wanted.get(k), found.get(k)) for k in differ]}")
        if not 1 <= self.upsample <= 16:
            raise ValueError(f"upsample must be from 1 to 16, got {self.upsample}")

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

        windows, targets = [], []
        names: dict[int, tuple[str, str]] = {}
        for array, labels in zip(arrays, many, strict=True):
            fine = burn(labels, finer(geobox(array), upsample), **burn_options)
            a = fine.attrs
            for c, n, h in zip(a["flag_values"], a["flag_meanings"].split(), a["flag_colors"].split(), strict=True):
                names[int(c)] = (n, h)
            for w, t in _windows(array, fine.values, upsample):
                windows.append(w)
                targets.append(t)
        x, y = (np.stack(p) if p else np.empty((0,)) for p in (windows, targets))
        present = np.unique(y[y != NO_CLASS]).astype(int).tolist() if len(y) else []
        if len(present) < 2:
            found = [names[c][0] for c in present]
            raise ValueError(
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
        tensors = {k: torch.from_numpy(v) for k, v in _blank(model.dim, width, len(present), seed).items()}
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
            loss = F.cross_entropy(_forward(tensors, seen, upsample), wanted, weight=weight, ignore_index=-1)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            plan.step()
            last = float(loss.detach())
        report = {
            "cells": {n: int((y == c).sum()) for c, n in zip(classes.codes, classes.names, strict=True)},
            "windows": len(x), "steps": steps, "loss": round(last, 4),
        }  # fmt: skip
        return cls(classes, model, {k: v.detach().numpy() for k, v in tensors.items()}, width, upsample, report)

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """See `Head.predict`; on a grid `upsample` times as fine as that of the embeddings."""
        emb = check_model(self, embeddings)
        attrs = category_attrs(self, probabilities=probabilities)
        return map_windows(
            lambda block: self._decode(block, probabilities=probabilities),
            emb,
            along="embedding",
            halo=HALO,
            factor=self.upsample,
            channels={"class": self.classes.names} if probabilities else None,
            dtype="float32" if probabilities else "uint8",
            name="probability" if probabilities else "class",
            attrs=attrs,
        )

    def _decode(self, block: Array, *, probabilities: bool) -> Array:
        """One block (D, h, w) with halo to classes or probabilities without, in tiles."""
        import torch

        f, n = self.upsample, len(self.classes)
        h, w = (s - 2 * HALO for s in block.shape[1:])
        valid = np.isfinite(block[:, HALO : HALO + h, HALO : HALO + w]).all(axis=0)
        valid = valid.repeat(f, axis=0).repeat(f, axis=1)
        out = np.full((n, h * f, w * f), np.nan, "float32")
        tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in self.tensors.items()}
        with torch.inference_mode():
            for i in range(0, h, TILE):
                for j in range(0, w, TILE):
                    part = block[:, i : i + TILE + 2 * HALO, j : j + TILE + 2 * HALO]
                    logits = _forward(tensors, torch.from_numpy(np.ascontiguousarray(part))[None], f)[0]
                    p = logits.softmax(0)[:, HALO * f : -HALO * f, HALO * f : -HALO * f].numpy()
                    out[:, i * f : i * f + p.shape[1], j * f : j * f + p.shape[2]] = p
        if probabilities:
            return np.where(valid, out, np.float32(np.nan))
        codes = np.array(self.classes.codes, "uint8")
        return np.asarray(np.where(valid, codes[out.argmax(axis=0)], np.uint8(NO_CLASS)))

    def save(self, path: str | Path) -> Path:
        """Write to one ``.safetensors`` file."""
        return saved.write(path, facts_of(self, {"width": self.width, "upsample": self.upsample}), self.tensors)

    @classmethod
    def restore(cls, common: dict[str, Any], options: dict[str, Any], tensors: dict[str, Array]) -> ConvHead:
        """From what `save` wrote."""
        return cls(
            common["classes"],
            common["model"],
            tensors,
            int(options["width"]),
            int(options["upsample"]),
            common["report"],
        )


def _blank(dim: int, width: int, classes: int, seed: int = 0) -> dict[str, Array]:
    """Tensors of the decoder before training (He et al. 2015)."""
    rng = np.random.default_rng(seed)

    def conv(a: int, b: int, k: int) -> Array:
        return np.asarray(rng.normal(size=(b, a, k, k)) * np.sqrt(2 / (a * k * k)), "float32")

    return {
        "mean": np.zeros(dim, "float32"),
        "std": np.ones(dim, "float32"),
        "in.weight": conv(dim, width, 1), "in.bias": np.zeros(width, "float32"),
        "one.weight": conv(width, width, 3), "one.bias": np.zeros(width, "float32"),
        "two.weight": conv(width, width, 3), "two.bias": np.zeros(width, "float32"),
        "fine.weight": conv(width, width, 3), "fine.bias": np.zeros(width, "float32"),
        "out.weight": conv(width, classes, 1) * np.float32(0.1), "out.bias": np.zeros(classes, "float32"),
    }  # fmt: skip


def _forward(t: Mapping[str, Any], x: Any, upsample: int) -> Any:
    """Logits [B, K, h f, w f] of tokens [B, D, h, w]; invalid tokens count as the mean."""
    import torch.nn.functional as F

    x = ((x - t["mean"][:, None, None]) / t["std"][:, None, None]).nan_to_num(0.0)
    x = F.gelu(F.conv2d(x, t["in.weight"], t["in.bias"]))
    for name in ("one", "two"):
        x = x + F.gelu(F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], padding=1))
    if upsample > 1:
        x = F.interpolate(x, scale_factor=upsample, mode="bilinear", align_corners=False)
        x = x + F.gelu(F.conv2d(x, t["fine.weight"], t["fine.bias"], padding=1))
    return F.conv2d(x, t["out.weight"], t["out.bias"])


def _windows(emb: xr.DataArray, labels: Array, f: int) -> list[tuple[Array, Array]]:
    """Windows (D, W, W) of tokens with labels in their core, and the labels (W f, W f); of every time."""
    y, x = spatial_dims(emb)
    core = WINDOW - 2 * HALO
    rows, cols = emb.sizes[y], emb.sizes[x]
    out = []
    for i in range(0, rows, core):
        for j in range(0, cols, core):
            own = labels[i * f : (i + core) * f, j * f : (j + core) * f]
            if (own == NO_CLASS).all():
                continue
            top, left = i - HALO, j - HALO
            sy = slice(max(top, 0), min(top + WINDOW, rows))
            sx = slice(max(left, 0), min(left + WINDOW, cols))
            v = emb.isel({y: sy, x: sx}).transpose(..., "embedding", y, x).values.astype("float32")
            pad = ((sy.start - top, top + WINDOW - sy.stop), (sx.start - left, left + WINDOW - sx.stop))
            target = np.full((WINDOW * f, WINDOW * f), NO_CLASS, "uint8")
            target[HALO * f : HALO * f + own.shape[0], HALO * f : HALO * f + own.shape[1]] = own
            for one in v.reshape(-1, *v.shape[-3:]):
                w = np.pad(one, ((0, 0), *pad), constant_values=np.nan)
                good = np.isfinite(w).all(axis=0).repeat(f, axis=0).repeat(f, axis=1)
                t = np.where(good, target, np.uint8(NO_CLASS))
                if (t != NO_CLASS).any():
                    out.append((w, t))
    return out
