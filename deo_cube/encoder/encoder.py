"""Encode pixels to vectors with a loaded model: network, statistics and device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deo_cube.constants import TCI_SCALE
from deo_cube.encoder.card import LOG_SCALE, Layer, ModelCard, Normalization, Reference, Stem, choose_stem
from deo_cube.encoder.network_hash import HashedNetwork, content_hash, hash_network
from deo_cube.encoder.networks.adapters import Network, seeded_network
from deo_cube.encoder.torch_settings import encoder_products, plain_torch
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, ArgumentTypeError, MissingBandsError, TilePlanError

__all__ = [
    "DN_PER_REFLECTANCE",
    "Encoder",
    "Units",
    "choose_normalization",
    "constant",
    "normalize",
    "reference_distance",
    "reference_input",
    "reference_output",
    "series_batch",
    "source_hash",
    "to_units",
    "with_reference",
]


if TYPE_CHECKING:
    import torch
    from torch import Tensor


# --- Convert pixel values to network input: first the units, then the statistics of the card ---

Units = Literal["dn", "reflectance", "percent", "uint8_rgb"]

DN_PER_REFLECTANCE = 10000.0
RGB = ("B04", "B03", "B02")
#: Smaller than any step of the data; avoids a division by zero in constant tiles.
_SMALLEST = 1e-6


def choose_normalization(
    stem: Stem, normalize: str | Mapping[str, tuple[float, float]] | Normalization | None
) -> Normalization:
    """Return the normalization that `normalize` names.

    Parameters
    ----------
    stem : Stem
        The stem whose input is normalised.
    normalize : str, mapping or Normalization, optional
        A name from the card, or ``{band: (mean, std)}`` for every band of the stem in the card's units (which becomes a
        fixed normalization named `given`). None: the stem's default.

    Raises
    ------
    UnknownModelError
        If the stem has no normalization of that name.
    MissingBandsError
        If the mapping lacks a band.
    """
    if normalize is None or isinstance(normalize, str):
        return stem.normalization(normalize)
    if isinstance(normalize, Normalization):
        return normalize
    if not isinstance(normalize, Mapping):
        raise ArgumentTypeError(f"normalize must be a name or a mapping {{band: (mean, std)}}, got {normalize!r}")
    missing = [b for b in stem.bands if b not in normalize]
    unknown = [b for b in normalize if b not in stem.bands]
    if missing or unknown:
        raise MissingBandsError(
            f"normalize must give (mean, std) of the bands {list(stem.bands)}: missing {missing}, unknown {unknown}"
        )
    pairs = [normalize[b] for b in stem.bands]
    return Normalization("given", "fixed", tuple(float(m) for m, _ in pairs), tuple(float(s) for _, s in pairs))


def to_units(x: Tensor, units: Units, model_units: Literal["dn", "reflectance"]) -> Tensor:
    """Return pixel values in the card's units: `dn` (reflectance x 10000, no offset) or `reflectance`.

    Parameters
    ----------
    x : Tensor, float32
        Values in the units `units`.
    units : {"dn", "reflectance", "percent", "uint8_rgb"}
        `percent` is reflectance from 0 to 100. `uint8_rgb` is a true-colour picture: DN = value * 2750 / 255.
    model_units : {"dn", "reflectance"}
        Units of the card.
    """
    per_unit = {
        "dn": 1.0,
        "reflectance": DN_PER_REFLECTANCE,
        "percent": DN_PER_REFLECTANCE / 100,
        "uint8_rgb": TCI_SCALE,
    }
    if units not in per_unit:
        raise ArgumentError(f"units must be one of {', '.join(per_unit)}, got {units!r}")
    factor = per_unit[units] / per_unit[model_units]
    return x if factor == 1.0 else x * factor


def normalize(x: Tensor, stem: Stem, how: Normalization) -> Tensor:
    """Return the network input of a batch of tiles.

    Parameters
    ----------
    x : Tensor [B, C, H, W], float32
        Channels are the stem's bands in order, values in the card's units.
    stem : Stem
        Names the bands.
    how : Normalization
        `fixed`: ``(x - mean) / std``. `rgb_max`: red, green and blue are first divided by the tile's own maximum over
        the three and clamped to 0..1 (augmentations.py:373-380). `own`: mean and standard deviation of the tile, by
        band. `log_sigmoid`: ``sigmoid(5 (log(0.005 x + 1) - mean) / std - 1)``, negative values taken as 0.

    Returns
    -------
    Tensor [B, C, H, W], float32

    Raises
    ------
    MissingBandsError
        If `rgb_max` is used with a stem without red, green and blue.
    """
    import torch

    if how.kind == "own":
        std, mean = torch.std_mean(x, dim=(2, 3), keepdim=True, correction=0)
        return (x - mean) / std.clamp_min(_SMALLEST)
    if how.kind == "rgb_max":
        missing = [b for b in RGB if b not in stem.bands]
        if missing:
            raise MissingBandsError(f"normalization {how.name!r} needs {list(RGB)}; stem {stem.name!r} lacks {missing}")
        where = [stem.bands.index(b) for b in RGB]
        rgb = x.index_select(1, constant(tuple(where), torch.int64, x.device))
        top = rgb.amax(dim=(1, 2, 3), keepdim=True).clamp_min(_SMALLEST)
        x = x.index_copy(1, constant(tuple(where), torch.int64, x.device), (rgb / top).clamp(0, 1))
    mean, std = (constant(tuple(v), x.dtype, x.device)[:, None, None] for v in (how.mean, how.std))
    if how.kind == "log_sigmoid":
        # DN below 0 occur after an offset is taken off; below -200 they have no logarithm.
        x = torch.log1p(x.clamp_min(0) * LOG_SCALE)
        return torch.sigmoid(5 * (x - mean) / std - 1)
    return (x - mean) / std


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `values` as a tensor [n] on the device, the same one for every batch. Not to be written to.

    Making it anew for each batch would copy it over, and the host waits for such a copy: until then it launches no
    kernel of the next batch, and a GPU is idle.
    """
    import torch

    # A cached tensor must serve inference and training alike.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


# --- encoders ---

#: Months of all series of a batch together: what stays near the caches of a core.
SERIES_MONTHS = 1024

Array = TypeVar("Array", Tensor, NDArray[Any])


class Encoder:
    """A loaded model. Its calls keep no state, so threads may share it.

    Parameters
    ----------
    card : ModelCard
        Describes the network.
    network : module
        In eval mode, on `device`.
    stem, layer : str, optional
        Which input and output `encode` uses. Default: the card's first stem and last layer.
    normalization : str, mapping or Normalization, optional
        See `normalize.choose_normalization`. Default: the stem's first.
    device : str
        Where the network is.
    """

    def __init__(
        self,
        card: ModelCard,
        network: Network,
        *,
        stem: str | None = None,
        layer: str | None = None,
        normalization: str | Mapping[str, tuple[float, float]] | Normalization | None = None,
        device: str = "cpu",
    ) -> None:
        self.card = card
        self.network = network
        self.stem: Stem = card.stem(stem)
        self.layer: Layer = card.layer(layer)
        self.normalization: Normalization = choose_normalization(self.stem, normalization)
        self.device = torch.device(device)

    def encode(self, batch: Array, *, bands: Sequence[str] | None = None, units: Units | None = None) -> Array:
        """Return the feature map of each tile.

        Parameters
        ----------
        batch : ndarray or Tensor [B, C, H, W]
            Pixel values in the card's units (canonical DN: reflectance x 10000, no offset) unless `units` says
            otherwise. H and W are multiples of the layer's stride.
        bands : sequence of str, optional
            Names of the channels, in any order. They are sorted into model order by name, and bands that the model does
            not read are left out. Red, green and blue alone are read by the model's RGB stem. Default: the channels of
            the encoder's own stem, in order.
        units : {"dn", "reflectance", "percent", "uint8_rgb"}, optional
            Units of the values. An array of uint8 is read as `uint8_rgb` (DN = value * 2750 / 255).

        Returns
        -------
        ndarray or Tensor [B, D, H / stride, W / stride], float32
            The type of the batch: numpy for numpy, a tensor on the encoder's device for a tensor.

        Raises
        ------
        MissingBandsError
            If `bands` lack one of the stem's, or their number is not that of the channels.
        TilePlanError
            If H or W is not a multiple of the stride.
        AmbiguousUnitsError
            For uint8 values of anything but red, green and blue, unless `units` is given.
        """
        self._refuse_series()
        stride = self.layer.stride
        x, stem = self._input(batch, bands, units, multiple=stride)
        with torch.inference_mode(), encoder_products(self.device):
            out = self.network.forward_features(x, stem.name, (self.layer.name,))[self.layer.name]
        expected_shape = (x.shape[0], self.layer.dim, x.shape[2] // stride, x.shape[3] // stride)
        if tuple(out.shape) != expected_shape:
            raise ArgumentError(
                f"{self.card.alias} returned a map {tuple(out.shape)} for {tuple(x.shape)}; expected {expected_shape} "
                f"for layer {self.layer.name!r} with {self.layer.dim} channels and stride {stride} in its card"
            )
        return _as_given(out, batch)

    def pool(self, batch: Array, *, bands: Sequence[str] | None = None, units: Units | None = None) -> Array:
        """Return one vector per tile: the class token of a ViT, the mean over the map of others, after the final norm.

        Parameters
        ----------
        batch : ndarray or Tensor [B, C, H, W]
            As in `encode`; H and W need only be multiples of the smallest stride.
        bands, units
            As in `encode`.

        Returns
        -------
        ndarray or Tensor [B, D], float32

        Raises
        ------
        MissingBandsError, TilePlanError, AmbiguousUnitsError
            As in `encode`.
        """
        self._refuse_series()
        x, stem = self._input(batch, bands, units, multiple=min(la.stride for la in self.card.layers))
        with torch.inference_mode(), encoder_products(self.device):
            out = self.network.forward_features(x, stem.name, ("pooled",))["pooled"]
        return _as_given(out, batch)

    def encode_series(
        self, values: Array, months: Sequence[int], place: NDArray[Any], *, bands: Sequence[str] | None = None
    ) -> Array:
        """Return one vector per series, of a model that reads series.

        Parameters
        ----------
        values : ndarray or Tensor [N, T, C]
            Pixel values by month, in the card's units; NaN where a month has no data. The months are consecutive: one
            without data is kept, as NaN.
        months : sequence of int
            Month of the year of each step, 1 to 12.
        place : ndarray [N, 2]
            Longitude and latitude of each series, degrees.
        bands : sequence of str, optional
            Names of the channels, some of the model's bands. A group of bands of which one is missing is left out.
            Default: the channels of the encoder's stem, in order.

        Returns
        -------
        ndarray or Tensor [N, D], float32
            NaN for a series without data.

        Raises
        ------
        ArgumentError
            For a model that does not read series, and shapes that do not fit.
        MissingBandsError
            For bands that the model does not read.
        """
        if not self.card.series:
            raise ArgumentError(f"{self.card.alias} reads single dates: encode(batch)")
        names = tuple(self.stem.bands if bands is None else bands)
        if unknown := [b for b in names if b not in self.stem.bands]:
            raise MissingBandsError(f"bands: {self.card.alias} does not read {unknown}, only {list(self.stem.bands)}")
        given: Tensor = _tensor(values)
        where = torch.as_tensor(np.asarray(place, "float64"))
        if given.shape[1:] != (len(months), len(names)) or where.shape != (len(given), 2):
            raise ArgumentError(
                f"values, months, place: expected values [N, {len(months)}, {len(names)}] and places [N, 2], got "
                f"{tuple(given.shape)} and {tuple(where.shape)}"
            )
        if not all(1 <= m <= 12 for m in months):
            raise ArgumentError(f"months: expected numbers of 1 to 12, got {list(months)}")
        order = [self.stem.bands.index(b) for b in names]
        steps = torch.tensor([m - 1 for m in months], device=self.device)
        network: Any = self.network
        size = series_batch(len(months))
        out = torch.empty((len(given), self.layer.dim), dtype=torch.float32, device=self.device)
        with torch.inference_mode(), encoder_products(self.device):
            for start in range(0, len(given), size):
                part = given[start : start + size].to(self.device).to(torch.float32)
                # Filled up with empty series to batches of one size: a vector depends on its own series alone.
                x = torch.full((size, len(months), len(self.stem.bands)), torch.nan, device=self.device)
                x[: len(part), :, order] = part
                at = torch.zeros((size, 2), dtype=torch.float64, device=self.device)
                at[: len(part)] = where[start : start + size]
                seen = torch.isfinite(x)
                x = normalize(x.transpose(1, 2)[..., None], self.stem, self.normalization)[..., 0].transpose(1, 2)
                out[start : start + size] = network.series(x, seen, steps, at, bands=order)[: len(part)]
        return _as_given(out, values)

    def _refuse_series(self) -> None:
        if self.card.series:
            raise ArgumentError(
                f"{self.card.alias} reads the months of a pixel: encode_series(values, months, place), or "
                f"deo_cube.embed_series(cube, {self.card.alias!r})"
            )

    def _input(
        self, batch: Array, bands: Sequence[str] | None, units: Units | None, *, multiple: int
    ) -> tuple[Tensor, Stem]:
        """Return the network's input and the stem that reads it."""
        given = _tensor(batch)
        if given.ndim != 4:
            raise ArgumentError(
                f"batch: expected [B, C, H, W], got {tuple(given.shape)}"
                + (": add the batch axis with batch[None]" if given.ndim == 3 else "")
            )
        stem, order = self.stem, None
        if bands is not None:
            stem, order = choose_stem(self.card, bands)
            if given.shape[1] != len(bands):
                raise MissingBandsError(
                    f"bands: expected {given.shape[1]} names, one per channel of the batch, got {len(bands)}"
                )
        elif given.shape[1] != len(stem.bands):
            raise MissingBandsError(
                f"stem {stem.name!r} of {self.card.alias} reads {len(stem.bands)} bands {list(stem.bands)}, the batch "
                f"has {given.shape[1]} channels: name them with bands=[...]"
            )
        for axis, size in zip("HW", given.shape[2:], strict=True):
            if size % multiple or size == 0:
                smaller, larger = size // multiple * multiple, (size // multiple + 1) * multiple
                raise TilePlanError(
                    f"{axis} = {size} is not a multiple of {multiple}, the stride of {self.card.alias}: "
                    + (f"cut to {smaller} or " if smaller else "")
                    + f"pad to {larger}"
                )
        if units is None:
            units = self.card.units
            if given.dtype == torch.uint8:
                if set(stem.bands) != set(RGB):
                    raise AmbiguousUnitsError(
                        f"units: a uint8 batch of {len(stem.bands)} bands cannot be {self.card.units}. Pass the "
                        "original values, or units='dn' if they are DN below 256"
                    )
                units = "uint8_rgb"
        x = given.to(self.device).to(torch.float32)
        # Reordered only now, because torch cannot index uint16.
        if order is not None and order != list(range(x.shape[1])):
            x = x[:, order]
        x = to_units(x, units, self.card.units)
        return normalize(x, stem, self._normalization(stem)), stem

    def _normalization(self, stem: Stem) -> Normalization:
        how = self.normalization
        if stem == self.stem:
            return how
        if how.name in [n.name for n in stem.normalizations]:
            return stem.normalization(how.name)
        by_band = dict(zip(self.stem.bands[: len(how.mean)], zip(how.mean, how.std, strict=True), strict=True))
        if how.kind == "fixed" and set(stem.bands) <= set(by_band):
            return choose_normalization(stem, {b: by_band[b] for b in stem.bands})
        raise MissingBandsError(
            f"normalization {how.name!r} is of stem {self.stem.name!r} and has no statistics of {list(stem.bands)}"
        )

    def __repr__(self) -> str:
        state = "" if self.card.trained else ", UNTRAINED: random weights"
        return (
            f"<Encoder {self.card.alias} on {self.device}: {len(self.stem.bands)} bands ({self.stem.name}) to "
            f"{self.layer.dim} channels per {self.layer.stride} px ({self.layer.name}), "
            f"normalization {self.normalization.name}{state}>"
        )


def _tensor(batch: Any) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    array = np.asarray(batch)
    # torch accepts neither foreign byte order nor negative strides, and warns about read-only memory.
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def series_batch(months: int) -> int:
    """Return the number of series that are encoded at a time."""
    return max(1, SERIES_MONTHS // months)


def _as_given(out: Tensor, batch: Array) -> Array:
    # NumPy has no bfloat16, which a caller's autocast gives.
    result: Any = out if isinstance(batch, Tensor) else out.float().cpu().numpy()
    return result  # type: ignore[no-any-return]


def source_hash(card: ModelCard, factory: Callable[[], Any] | None) -> HashedNetwork:
    """Return the hash of the network that a factory, or the family of a card without weights, makes."""
    # Part of the cache key, because a constant that the factory names may have changed since the last call.
    return _source_hash(card, factory, "" if factory is None else content_hash(factory))


@functools.lru_cache(maxsize=32)
def _source_hash(card: ModelCard, factory: Callable[[], Any] | None, content: str) -> HashedNetwork:
    return hash_network(seeded_network(card, factory))


# Reference vectors: what a network must return for a fixed input, so that weights, code and device are proven.

#: Number of values stored of a reference vector.
REFERENCE_VALUES = 16
#: Side of the reference input, pixels.
REFERENCE_SIZE = 64


def reference_input(channels: int, size: int, batch: int = 1) -> Tensor:
    """Return the fixed input [batch, channels, size, size] of `card.Reference`: slow waves, one per channel."""
    b, c, i, j = np.ogrid[0:batch, 0:channels, 0:size, 0:size]
    x = np.sin(0.013 * (c + 1) * i + 0.7 * b) * np.cos(0.017 * (c + 2) * j)
    return torch.from_numpy(x.astype(np.float32))


def reference_output(card: ModelCard, network: nn.Module, *, stem: str, size: int, device: str = "cpu") -> Tensor:
    """Return the mean [D] over the map of the card's default layer for the reference input, float32."""
    layer = card.layer().name
    x = reference_input(len(card.stem(stem).bands), size).to(device)
    run: Any = network
    with plain_torch(device), torch.inference_mode(), encoder_products(device):
        maps: Tensor = run.forward_features(x, stem, (layer,))[layer]
    return maps[0].mean(dim=(1, 2)).cpu()


def reference_distance(card: ModelCard, network: nn.Module, device: str = "cpu") -> float | None:
    """Return the largest deviation from the reference vector, relative to its largest value; None without one."""
    reference = card.reference
    if reference is None:
        return None
    output = reference_output(card, network, stem=reference.stem, size=reference.size, device=device)
    expected = torch.tensor(reference.vector, dtype=torch.float32)
    distance = (output[: len(expected)] - expected).abs().max() / expected.abs().max()
    return float(distance)


def with_reference(card: ModelCard, network: nn.Module) -> ModelCard:
    """Return the card with the reference vector of `network`, on the CPU in eval mode.

    Parameters
    ----------
    card : ModelCard
        Names stem and default layer.
    network : module
        Put into eval mode, and back. Its first stem reads the reference input.
    """
    training, device = network.training, next(iter(network.parameters()), torch.zeros(0)).device
    name = card.stem().name
    vector = reference_output(card, network.eval(), stem=name, size=REFERENCE_SIZE, device=str(device))
    network.train(training)
    values = tuple(float(f"{v:.7g}") for v in vector[:REFERENCE_VALUES].tolist())
    return dataclasses.replace(card, reference=Reference(stem=name, size=REFERENCE_SIZE, vector=values))
