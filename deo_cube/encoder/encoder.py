"""Encode pixels to vectors with a loaded model: network, statistics and device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deo_cube.encoder.card import Layer, ModelCard, Normalization, Reference, Stem, choose_stem
from deo_cube.encoder.network_hash import HashedNetwork, content_hash, hash_network
from deo_cube.encoder.networks.adapters import Network, seeded_network
from deo_cube.encoder.normalize import RGB, Units, choose_normalization, normalize, to_units
from deo_cube.encoder.torch_settings import encoder_products, plain_torch
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, MissingBandsError, TilePlanError

__all__ = [
    "Encoder",
    "reference_distance",
    "reference_input",
    "reference_output",
    "series_batch",
    "source_hash",
    "with_reference",
]


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
