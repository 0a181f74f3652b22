"""Encoders that have learnt nothing, which any model must beat.

Each has the signature of an encoder, ``(array, bands) -> features``. Those that look at unlabelled images first have
`fitted(images, bands)`, which the protocols call with the training images only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.encoder.random_convolutions import RandomConvolutions
from deo_cube.errors import ArgumentError
from deo_cube.extras import require

__all__ = [
    "BASELINES",
    "BandsWithContext",
    "BurnRatio",
    "ImageStatistics",
    "RandomConvolutions",
    "RawBands",
    "UntrainedNetwork",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class RawBands:
    """The bands themselves as the features of each pixel; averaged where a chip or patch needs one vector."""

    name: str = "raw bands"

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """Return the array as float32."""
        return np.asarray(array, dtype="float32")


@dataclass(frozen=True)
class BandsWithContext:
    """The bands of each pixel, and their means and standard deviations over squares of `sizes` pixels around it.

    Nothing is learnt, yet texture and surroundings are there: of all baselines the hardest to beat at land cover.
    """

    sizes: tuple[int, ...] = (5, 11)
    name: str = "bands with context"

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) -> (B, C (1 + 2 len(sizes)), H, W)."""
        ndimage = require("scipy.ndimage", extra="heads", purpose="a baseline of local statistics")

        x = np.asarray(array, dtype="float32")
        out = [x]
        for size in self.sizes:
            window = (1, 1, size, size)
            mean = ndimage.uniform_filter(x, window, mode="mirror")
            # The square of the deviation from the scene's level keeps float32 exact enough for a variance.
            level = x.mean(axis=(2, 3), keepdims=True)
            square = ndimage.uniform_filter((x - level) ** 2, window, mode="mirror") - (mean - level) ** 2
            out += [mean, np.sqrt(np.maximum(square, 0))]
        return np.concatenate(out, axis=1)


@dataclass(frozen=True)
class BurnRatio:
    """Normalised burn ratio (B8A - B12) / (B8A + B12), and its fall between two dates (dNBR): what foresters use."""

    name: str = "burn ratio"

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) -> (B, 1, H, W)."""
        near, short = (np.asarray(array, "float32")[:, list(bands).index(b)] for b in ("B8A", "B12"))
        total = near + short
        ratio = np.divide(near - short, total, out=np.zeros_like(total), where=total > 0)
        return np.asarray(ratio[:, None])

    def distance(self, before: Array, after: Array) -> Array:
        """Return the fall (h, w) of the ratio between two maps (1, h, w)."""
        return np.asarray(before[0] - after[0])


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and standard deviation of each band in cells of `stride` pixels; of the whole chip when pooled.

    Pooled, the 10th and 90th percentile of each band are added.
    """

    stride: int = 4
    name: str = "image statistics"

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) -> (B, 2C, H / stride, W / stride)."""
        b, c, h, w = array.shape
        s = self.stride
        cells = np.asarray(array, dtype="float32").reshape(b, c, h // s, s, w // s, s)
        return np.concatenate([cells.mean(axis=(3, 5)), cells.std(axis=(3, 5))], axis=1)

    def pool(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) -> (B, 4C)."""
        a = np.asarray(array, dtype="float32")
        return np.concatenate(
            [a.mean(axis=(2, 3)), a.std(axis=(2, 3)), *np.percentile(a, [10, 90], axis=(2, 3))], axis=1
        ).astype("float32")


@dataclass(frozen=True)
class UntrainedNetwork:
    """A small convolutional network with random weights: what the shape of a network gives without any learning.

    Four 3x3 convolutions with ReLU and batch normalisation (by the statistics of the training images), `stride` 4.
    """

    width: int = 128
    seed: int = 0
    name: str = "untrained network"
    mean: Array | None = field(default=None, repr=False)
    std: Array | None = field(default=None, repr=False)

    def fitted(self, images: Sequence[Array] | Array, bands: Sequence[str]) -> UntrainedNetwork:
        """Take mean and standard deviation of each band from `images`."""
        step = max(1, len(images) // 200)
        flat = np.concatenate([im[:, ::4, ::4].reshape(len(bands), -1) for im in images[::step]], axis=1)
        return UntrainedNetwork(self.width, self.seed, self.name, flat.mean(axis=1), flat.std(axis=1) + 1e-6)

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) -> (B, width, H / 4, W / 4)."""
        import torch
        from torch import nn

        if self.mean is None or self.std is None:
            raise ArgumentError("the untrained network has no statistics yet: call fitted(images, bands) first")
        x = (np.asarray(array, dtype="float32") - self.mean[:, None, None]) / self.std[:, None, None]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            sizes = (len(bands), self.width // 4, self.width // 2, self.width, self.width)
            layers: list[nn.Module] = []
            for i, (a, b) in enumerate(itertools.pairwise(sizes)):
                conv = nn.Conv2d(a, b, 3, stride=2 if i in (1, 2) else 1, padding=1, padding_mode="reflect")
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                layers += [conv, nn.ReLU()]
            net = nn.Sequential(*layers)
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(x.astype("float32"))).numpy())


BASELINES = (ImageStatistics(), RawBands(), BandsWithContext(), RandomConvolutions(), UntrainedNetwork())
"""Those that are always reported beside a model."""
