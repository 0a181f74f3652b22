"""Features of chips, patches and pixels, from a model, an array of pixels, or an encoder that has learnt nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from deo_cube.encoder.card import ModelCard, choose_stem
from deo_cube.encoder.normalize import normalize, to_units
from deo_cube.encoder.random_convolutions import RandomConvolutions
from deo_cube.encoder.registry import load_encoder
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.extras import require

__all__ = [
    "BASELINES",
    "BandsWithContext",
    "BurnRatio",
    "Encode",
    "ImageStatistics",
    "ModelEncode",
    "RandomConvolutions",
    "RawBands",
    "SeriesEncode",
    "Tokens",
    "UntrainedNetwork",
    "as_encode",
    "encode_scene",
    "encode_scenes",
    "fitted_on",
    "name_of",
    "places",
    "pool_chips",
    "untrained",
]


if TYPE_CHECKING:
    from deo_cube.encoder.encoder import Encoder
    from deo_cube.evaluate.readers import Series


Array = NDArray[Any]

Encode = Callable[[Array, Sequence[str]], Array]
"""``encode(array (B, C, H, W) float32 DN, names of the C bands) -> features (B, D, h, w)``; H / h is the stride."""


@dataclass(frozen=True)
class Tokens:
    """Features of one scene on their grid: `values` (D, h, w), one every `stride` pixels from the scene's corner."""

    values: Array = field(repr=False)
    stride: int
    shape: tuple[int, int]
    """Rows and columns of the scene in pixels; the grid may reach beyond."""

    def at(self, rows: Array, cols: Array) -> Array:
        """Return features (n, D) at pixels, bilinear between the centres of tokens and level beyond the outermost."""
        _, h, w = self.values.shape
        y = np.clip((np.asarray(rows) + 0.5) / self.stride - 0.5, 0, h - 1)
        x = np.clip((np.asarray(cols) + 0.5) / self.stride - 0.5, 0, w - 1)
        y0, x0 = np.minimum(y.astype(int), max(h - 2, 0)), np.minimum(x.astype(int), max(w - 2, 0))
        y1, x1 = np.minimum(y0 + 1, h - 1), np.minimum(x0 + 1, w - 1)
        fy, fx = (y - y0).astype("float32"), (x - x0).astype("float32")
        v = self.values
        top = v[:, y0, x0] * (1 - fx) + v[:, y0, x1] * fx
        low = v[:, y1, x0] * (1 - fx) + v[:, y1, x1] * fx
        return cast(Array, (top * (1 - fy) + low * fy).T)

    def pixels(self) -> Array:
        """Return features (D, H, W) of every pixel, bilinear as `at`."""
        rows, cols = np.divmod(np.arange(self.shape[0] * self.shape[1]), self.shape[1])
        return self.at(rows, cols).T.reshape(len(self.values), *self.shape)

    def patches(self, size: int) -> Array:
        """Return features (D, H // size, W // size): the mean over each whole patch of `size` pixels."""
        if size % self.stride == 0:
            k, v = size // self.stride, self.values
        else:
            k, v = size, self.pixels()
        h, w = self.shape[0] // size, self.shape[1] // size
        return cast(Array, v[:, : h * k, : w * k].reshape(len(v), h, k, w, k).mean(axis=(2, 4)))


def pool_chips(encode: Encode, images: Array, bands: Sequence[str], *, batch: int = 64) -> Array:
    """Return one vector per chip (N, D), by the encoder's own `pool` if it has one, else the mean of its features."""
    pool = getattr(encode, "pool", None)
    out = []
    for i in range(0, len(images), batch):
        part = images[i : i + batch]
        out.append(
            np.asarray(pool(part, bands))
            if pool
            else np.asarray(encode(part, bands)).mean(axis=(2, 3), dtype="float64")
        )
    return np.concatenate(out).astype("float32")


def encode_scene(
    encode: Encode,
    image: Array,
    bands: Sequence[str],
    *,
    valid: Array | None = None,
    tile: int = 64,
    halo: int = 16,
) -> Tokens:
    """Encode a scene (C, H, W) in overlapping tiles of which the cores are kept.

    Beyond the edge the scene is mirrored; invalid pixels are given the scene's median of their band, so that no
    nodata value reaches the encoder.

    Raises
    ------
    ValueError
        If the encoder's stride does not divide tile and halo.
    """
    _, rows, cols = image.shape
    image = np.asarray(image, dtype="float32")
    if valid is not None and not valid.all():
        middle = np.median(image[:, valid], axis=1) if valid.any() else np.zeros(len(image))
        image = np.where(valid, image, middle[:, None, None]).astype("float32")
    if tile <= 2 * halo:
        raise ArgumentError(f"tile {tile} has no core within halo {halo}")
    # A scene smaller than a core needs no whole tile: what it is padded with would be thrown away.
    core = min(tile - 2 * halo, -(-max(rows, cols) // 32) * 32)
    tile = core + 2 * halo
    down, right = -(-rows // core), -(-cols // core)
    pad = ((0, 0), (halo, halo + down * core - rows), (halo, halo + right * core - cols))
    padded = np.pad(image, pad, mode="symmetric")
    corners = [(i * core, j * core) for i in range(down) for j in range(right)]
    out: Array | None = None
    stride = 0
    for start in range(0, len(corners), 32):
        some = corners[start : start + 32]
        tiles = np.stack([padded[:, y : y + tile, x : x + tile] for y, x in some])
        z = np.asarray(encode(tiles, bands))
        if out is None:
            stride = tile // z.shape[2]
            if tile % z.shape[2] or halo % stride or core % stride:
                raise ArgumentError(
                    f"stride {tile / z.shape[2]:g} of the encoder does not divide tile {tile} and halo {halo}"
                )
            k, n = halo // stride, core // stride
            out = np.empty((z.shape[1], down * n, right * n), "float32")
        for (y, x), features in zip(some, z, strict=True):
            i, j = y // stride, x // stride
            out[:, i : i + n, j : j + n] = features[:, k : k + n, k : k + n]
    assert out is not None
    return Tokens(out[:, : -(-rows // stride), : -(-cols // stride)], stride, (rows, cols))


SMALL = 32
"""Scenes of one size up to this many pixels are encoded together, each with its own mirror image around it."""


def encode_scenes(encode: Encode, scenes: Sequence[Any], *, tile: int = 64, halo: int = 16) -> list[Tokens]:
    """Encode each scene by `encode_scene`; small ones of one size in batches, mirrored by half of their side."""
    shapes = {s.image.shape for s in scenes}
    _, rows, cols = next(iter(shapes))
    if len(shapes) > 1 or rows != cols or rows > SMALL or rows % 16:
        return [encode_scene(encode, s.image, s.bands, valid=s.valid, tile=tile, halo=halo) for s in scenes]
    edge = rows // 2
    out = []
    for start in range(0, len(scenes), 128):
        images = np.stack([s.image for s in scenes[start : start + 128]])
        padded = np.pad(images, ((0, 0), (0, 0), (edge, edge), (edge, edge)), mode="symmetric")
        z = np.asarray(encode(padded, scenes[0].bands), dtype="float32")
        stride = padded.shape[2] // z.shape[2]
        if edge % stride:
            raise ArgumentError(f"stride {stride} of the encoder does not divide the {edge} px around a chip")
        k, n = edge // stride, rows // stride
        out += [Tokens(f[:, k : k + n, k : k + n], stride, (rows, cols)) for f in z]
    return out


def name_of(encode: Any, name: str | None = None) -> str:
    """Return the name of an encoder in reports."""
    return name or str(getattr(encode, "name", "") or getattr(encode, "__name__", type(encode).__name__))


def fitted_on(encode: Any, images: Sequence[Array] | Array, bands: Sequence[str]) -> Encode:
    """Return the encoder fitted on unlabelled `images`, where it has `fitted`."""
    fitted = getattr(encode, "fitted", None)
    return cast(Encode, encode if fitted is None else fitted(images, bands))


def places(scenes: Sequence[Any], scene: Array, row: Array, col: Array) -> Array:
    """Return the places of cases (n, 2), in pixels of one grid: scenes whose corner is not known are set far apart."""
    corners = np.array([s.corner or (0.0, i * 1e7) for i, s in enumerate(scenes)])
    return np.stack([corners[scene, 0] + row, corners[scene, 1] + col], axis=1)


@dataclass(frozen=True)
class ModelEncode:
    """A loaded `Encoder` of this package: bands are chosen by name, tile and halo are the card's."""

    encoder: Encoder = field(repr=False)
    name: str

    @property
    def card(self) -> ModelCard:
        """Of the model."""
        return self.encoder.card

    @property
    def tile(self) -> int:
        """Native input, pixels."""
        return self.card.tile

    @property
    def halo(self) -> int:
        """Context on each side, a multiple of the stride, pixels."""
        stride = int(self.encoder.layer.stride)
        return -(-self.card.halo // stride) * stride

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) DN -> (B, D, h, w)."""
        return np.asarray(self.encoder.encode(np.asarray(array, "float32"), bands=list(bands), units="dn"))

    def pyramid(self, array: Array, bands: Sequence[str]) -> list[Array]:
        """Return a map (B, D, h, w) per layer of the card, which UPerNet decodes."""
        import torch

        from deo_cube.encoder.torch_settings import encoder_products

        e = self.encoder
        stem, order = choose_stem(self.card, list(bands))
        x = torch.from_numpy(np.asarray(array, "float32")).to(e.device)
        x = to_units(x[:, order], "dn", self.card.units)
        how = e.normalization if stem == e.stem else stem.normalizations[0]
        with torch.inference_mode(), encoder_products(e.device):
            maps = e.network.forward_features(normalize(x, stem, how), stem.name, self.card.layer_names)
        return [maps[n].cpu().numpy() for n in self.card.layer_names]

    def pool(self, array: Array, bands: Sequence[str]) -> Array:
        """Return the model's own vectors (B, D) of chips (B, C, H, W), DN."""
        return np.asarray(self.encoder.pool(np.asarray(array, "float32"), bands=list(bands), units="dn"))


@dataclass(frozen=True)
class SeriesEncode:
    """A loaded `Encoder` that reads series: it is scored on series alone."""

    encoder: Encoder = field(repr=False)
    name: str

    @property
    def card(self) -> ModelCard:
        """Of the model."""
        return self.encoder.card

    def series(self, data: Series) -> Array:
        """Return one vector (N, D) per pixel of a set."""
        values = np.where(data.valid[:, :, None], data.values, np.nan)
        return np.asarray(self.encoder.encode_series(values, data.months, data.place, bands=data.bands))


def as_encode(model: Any, *, device: str | None = None) -> Any:
    """Return what can be scored: a function as it is, of anything else a `ModelEncode` or `SeriesEncode`."""
    if isinstance(model, str | Path | ModelCard):
        model = load_encoder(model, device=device)
    if hasattr(model, "encode") and hasattr(model, "card"):
        return (SeriesEncode if model.card.series else ModelEncode)(model, model.card.alias)
    if not callable(model):
        raise ArgumentTypeError(
            "a model to score is a name, a card, a loaded encoder, or a function (array, bands) -> features; got "
            f"{type(model).__name__}"
        )
    return model


def untrained(card: ModelCard) -> ModelEncode | SeriesEncode:
    """Return the network of a card with the random weights of its initialisation."""
    from deo_cube.encoder.encoder import Encoder
    from deo_cube.encoder.networks.adapters import seeded_network

    network: Any = seeded_network(card, None).eval()
    kind = SeriesEncode if card.series else ModelEncode
    return kind(Encoder(card, network), f"{card.alias}, untrained")


# --- Encoders that have learnt nothing, which any model must beat ---
#
# Each has the signature of an encoder, ``(array, bands) -> features``. Those that look at unlabelled images first have
# `fitted(images, bands)`, which the protocols call with the training images only.


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
