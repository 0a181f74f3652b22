"""Random convolutions: an encoder that has learnt nothing, with filters drawn from unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError

__all__ = ["RandomConvolutions"]

Array = NDArray[Any]


@dataclass(frozen=True)
class RandomConvolutions:
    """Random convolutional features (MOSAIKS: Rolf et al. 2021, doi:10.1038/s41467-021-24638-z).

    The filters are patches drawn from unlabelled images, whitened as there; each is convolved with the image, the
    positive part averaged over cells of `stride` pixels. `features` of them, untrained. Patches are drawn evenly, as
    published, unless `typical` is above 0: then the second half is drawn in proportion to that power of how typical a
    patch is, the mean squared response to it of all the others.
    """

    features: int = 512
    size: int = 3
    stride: int = 4
    seed: int = 0
    name: str = "random convolutions"
    kernel: Array | None = field(default=None, repr=False)
    bias: Array | None = field(default=None, repr=False)
    mean: Array | None = field(default=None, repr=False)
    std: Array | None = field(default=None, repr=False)
    typical: float = 0.0

    def fitted(self, images: Sequence[Array] | Array, bands: Sequence[str]) -> RandomConvolutions:
        """Draw the filters from `images` ((C, H, W) each): evenly over images, at random places."""
        rng = np.random.default_rng(self.seed)
        k = self.size
        big = [im for im in images if min(im.shape[1:]) >= k]
        some = rng.choice(len(big), size=min(len(big), 500), replace=False)
        flat = np.concatenate([big[i][:, ::4, ::4].reshape(len(bands), -1) for i in some], axis=1)
        mean, std = flat.mean(axis=1), flat.std(axis=1) + 1e-6
        patches = []
        for i in rng.integers(0, len(big), size=(16 if self.typical else 4) * self.features):
            im = big[i]
            y, x = rng.integers(0, im.shape[1] - k + 1), rng.integers(0, im.shape[2] - k + 1)
            patches.append((im[:, y : y + k, x : x + k] - mean[:, None, None]) / std[:, None, None])
        p = np.stack(patches).reshape(len(patches), -1).astype("float64")
        centre = p.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(p - centre, rowvar=False))
        # ZCA with the ridge relative to the mean eigenvalue, so that noise directions are not blown up.
        white = vectors @ np.diag(1 / np.sqrt(np.maximum(values, 0) + 0.1 * values.mean())) @ vectors.T
        filters = (p - centre) @ white
        filters /= np.linalg.norm(filters, axis=1, keepdims=True) + 1e-9
        if self.typical:
            half = self.features // 2
            share = (np.maximum(filters[half:] @ filters.T, 0) ** 2).mean(axis=1) ** self.typical
            drawn = rng.choice(len(share), self.features - half, replace=False, p=share / share.sum())
            filters = np.concatenate([filters[:half], filters[half + drawn]])
        kernel = filters[: self.features] @ white
        return replace(
            self,
            kernel=kernel.reshape(self.features, len(bands), k, k).astype("float32"),
            bias=(-(kernel @ centre)).astype("float32"),
            mean=mean.astype("float32"),
            std=std.astype("float32"),
        )

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) -> (B, features, H / stride, W / stride)."""
        import torch
        import torch.nn.functional as F

        if self.kernel is None or self.mean is None or self.std is None:
            raise ArgumentError("random convolutions have no filters yet: call fitted(images, bands) first")
        x = (np.asarray(array, dtype="float32") - self.mean[:, None, None]) / self.std[:, None, None]
        with torch.inference_mode():
            t = F.pad(torch.from_numpy(x), (self.size // 2,) * 4, mode="reflect")
            z = F.conv2d(t, torch.from_numpy(self.kernel), torch.from_numpy(np.asarray(self.bias)))
            return np.asarray(F.avg_pool2d(F.relu(z), self.stride).numpy())
