"""Find a model by name, and decide everything about how it is used: card, stem, layer, statistics, weights.

Models are bundled cards, folders of training runs, plug-ins, and what this session registered. The result is an
`EncoderRef`, a few hundred bytes that a task graph carries in place of a network. No torch is imported before a network
is needed.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import socket
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deo_cube import arguments
from deo_cube.constants import SENTINEL2_STATISTICS
from deo_cube.encoder.card import (
    CARDS,
    Layer,
    ModelCard,
    Normalization,
    Stem,
    Weights,
    WeightsStatus,
    bundled_cards,
    choose_stem,
)
from deo_cube.encoder.checkpoint_format import check_file, load_weights
from deo_cube.encoder.devices import choose_device
from deo_cube.encoder.hub import file_sha256, place_in_cache
from deo_cube.encoder.normalize import choose_normalization
from deo_cube.encoder.weights import (
    check_structure,
    find_weights,
    local_weights,
    recorded_reference,
    remember,
    weights_state,
)
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingBandsError,
    UnknownModelError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from deo_cube.options import get_option
from deo_cube.paths import local_path, not_found

if TYPE_CHECKING:
    import pandas as pd

    from deo_cube.encoder.encoder import Encoder

__all__ = [
    "CARDS",
    "EncoderRef",
    "KnownModel",
    "SENTINEL2_STATISTICS",
    "bundled_cards",
    "card",
    "choose_stem",
    "describe",
    "describe_timm",
    "find",
    "known_cards",
    "list_models",
    "load_encoder",
    "register_encoder",
    "resolve",
]

GROUP = "deo_cube.encoders"

Factory = Callable[[], Any]


@dataclass(frozen=True)
class KnownModel:
    """A card, and the factory of its network where the card's family does not build it."""

    card: ModelCard
    factory: Factory | None = None


_registered: dict[str, KnownModel] = {}


@functools.lru_cache(maxsize=1)
def _plugins() -> dict[str, KnownModel]:
    """Return the encoders of installed packages; each entry point is a function that returns card and factory."""
    entries: dict[str, KnownModel] = {}
    for point in entry_points(group=GROUP):
        try:
            made = point.load()()
            entry = KnownModel(made) if isinstance(made, ModelCard) else KnownModel(*made)
        except Exception as error:  # one broken plug-in must not hide the others
            warnings.warn(
                f"the encoder plug-in {point.name!r} ({point.value}) failed: {type(error).__name__}: {error}. "
                "It must be a function without arguments that returns a ModelCard, or (ModelCard, factory)",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        entries[entry.card.alias] = entry
    return entries


def known_cards() -> dict[str, KnownModel]:
    """Return every model with a name, by alias. Bundled models take precedence over plug-ins."""
    bundled = {alias: KnownModel(c) for alias, c in bundled_cards().items()}
    return {**_plugins(), **_registered, **bundled}


def register_encoder(card: ModelCard, factory: Factory | None = None) -> ModelCard:
    """Register an encoder under its card's alias, for this session.

    Parameters
    ----------
    card : ModelCard
        Describes it; `describe` and `describe_timm` make one in a line.
    factory : callable, optional
        A function without arguments that returns the network: a timm model, a module with
        ``forward_features(x, stem, layers)``, or a function from a normalised batch [B, C, H, W] to a map [B, D, h, w].
        It runs in every process that encodes, under a fixed seed, and must be picklable (by cloudpickle, for Dask).
        Default: the card's family builds the network.

    Returns
    -------
    ModelCard
        `card`.

    Raises
    ------
    ValueError
        If the alias or name is that of a bundled model.
    TypeError
        If `factory` is not a function, or is the network itself.
    """
    if not isinstance(card, ModelCard):
        raise ArgumentTypeError(f"card: expected a ModelCard of describe(...) or describe_timm(...), got {card!r}")
    network = hasattr(factory, "forward") and not isinstance(factory, type)
    if factory is not None and (network or not callable(factory)):
        raise ArgumentTypeError(
            f"factory: expected a function without arguments that returns the network, got {type(factory).__name__}: "
            "register_encoder(card, lambda: network)"
        )
    for bundled in bundled_cards().values():
        if {card.alias, card.name} & {bundled.alias, bundled.name}:
            raise ArgumentError(f"{card.alias!r} ({card.name}) is the name of a bundled model: choose another alias")
    _registered[card.alias] = KnownModel(card, factory)
    return card


def find(model: str | Path | ModelCard) -> KnownModel:
    """Return the entry of a model: an alias, a full name, a folder with `card.json`, a card file, or a card itself.

    Raises
    ------
    UnknownModelError
        If there is none; the message has the nearest names.
    """
    if isinstance(model, ModelCard):
        known = known_cards().get(model.alias)
        return known if known is not None and known.card == model else KnownModel(model)
    if not isinstance(model, (str, Path)):
        raise ArgumentTypeError(
            f"model must be an alias, a path or a ModelCard, got {type(model).__name__}"
            + (": register it first, register_encoder(describe(...), lambda: model)" if callable(model) else "")
        )
    text = str(model)
    if not text:
        raise UnknownModelError("model must be an alias, a path or a ModelCard, got an empty text")
    known_by_alias = known_cards()
    for entry in known_by_alias.values():
        if text in (entry.card.alias, entry.card.name):
            return entry
    path = local_path(model)
    if path.is_dir() or path.suffix == ".json":
        file = path / "card.json" if path.is_dir() else path
        if not file.is_file():
            inside = sorted(p.name for p in path.iterdir())[:6] if path.is_dir() else []
            what = "the card of a model" + (f"; the folder holds {inside}" if path.is_dir() else "")
            raise not_found("model", file, what, error=UnknownModelError)
        try:
            return KnownModel(ModelCard.load(file))
        except ValueError as error:
            raise UnknownModelError(f"{file} is not a model card: {error}") from error
    names = [n for e in known_by_alias.values() for n in (e.card.alias, e.card.name)]
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.4)
    raise UnknownModelError(
        f"model={text!r} is not known"
        + (f"; the nearest names are {', '.join(near)}" if near else "")
        + f". Known are {', '.join(known_by_alias)}; the folder of a training run (with card.json) is accepted as well"
    )


def card(model: str | Path | ModelCard) -> ModelCard:
    """Return the card of a model, by alias, full name, or folder.

    Raises
    ------
    UnknownModelError
        If there is none; the message has the nearest names.
    """
    return find(model).card


def list_models() -> pd.DataFrame:
    """Return every model known by name, one per row.

    Returns
    -------
    DataFrame
        alias, name, bands (number of each stem's, by stem), patch (output stride, px), dim, tile, halo (px), gsd (m),
        weights (`published`, `trained`, `untrained`), licence of the weights, whether they are on this machine
        (`offline`), and `state`: here, can be fetched, or absent, and what proves them.
    """
    import pandas as pd

    rows = []
    for alias, entry in known_cards().items():
        c = entry.card
        rows.append(
            {
                "alias": alias,
                "name": c.name,
                "bands": ", ".join(f"{s.name} {len(s.bands)}" for s in c.stems),
                "patch": c.patch,
                "dim": c.dim,
                "tile": c.tile,
                "halo": c.halo,
                "gsd": c.gsd,
                "weights": c.weights.status,
                "licence": c.license_weights,
                "offline": not c.weights.file or local_weights(c) is not None,
                "state": weights_state(c),
            }
        )
    return pd.DataFrame(rows).sort_values("alias", ignore_index=True)


@dataclass(frozen=True)
class EncoderRef:
    """An encoder with every choice made: card, stem, layer, statistics, and the hash of the weights.

    Frozen and picklable. Equal choices give equal fingerprints in every process. The pickle of a bundled model names
    the card; that of any other model contains the whole card, so that a worker needs only the weights file.
    """

    card: ModelCard
    stem: Stem
    layer: Layer
    normalization: Normalization
    weights: str | None
    """Path of the weights file; None for a network made by its factory."""
    weights_sha256: str
    """Hash of that file, or of the values and source of a network without one (`network_hash`)."""
    factory: Callable[[], Any] | None = field(default=None, compare=False, repr=False)
    """Makes a registered network; None: the card's family builds it."""
    sources: tuple[tuple[str, tuple[str, tuple[str, ...]]], ...] = field(default=(), compare=False, repr=False)
    """Digests of functions without source in another process (`network_hash.HashedNetwork.sources`)."""

    def load(self, device: str | None = "cpu", *, check: bool = True) -> Encoder:
        """Build the network, fill it strictly, and compare it with the card's reference vector.

        Parameters
        ----------
        device : str, optional
            A torch device; None is the first GPU if there is one, else the CPU.
        check : bool
            Compare with the card's reference vector, where it has one.

        Returns
        -------
        Encoder
            In eval mode, float32, without gradients.

        Raises
        ------
        WeightsNotFoundError
            If this process does not see the file.
        WeightsMismatchError
            If the file is not that of the call, does not fill the network, or misses the reference vector.
        """
        from deo_cube.encoder.torch_settings import plain_torch

        with plain_torch():
            return self._load(device, check=check)

    def _load(self, device: str | None, *, check: bool) -> Encoder:
        from deo_cube.encoder.encoder import Encoder, reference_distance
        from deo_cube.encoder.network_hash import network_hash
        from deo_cube.encoder.networks.adapters import build_network, seeded_network

        device, card = choose_device(device), self.card
        if self.weights is None:
            network = seeded_network(card, self.factory)
            actual_hash = network_hash(network, dict(self.sources))
            if actual_hash != self.weights_sha256:
                raise WeightsMismatchError(
                    f"the factory of {card.alias} made another network here than at the call (hash {actual_hash[:12]}, "
                    f"expected {self.weights_sha256[:12]}): fix its weights, or draw them from torch's default "
                    "generator, which is seeded before a factory runs"
                )
        else:
            path = self.weights_path()
            network = build_network(card).float()  # whatever a caller has made the default
            load_weights(network, path, prefixes=card.weights.key_prefixes, unused=card.weights.unused)
        network.eval().requires_grad_(False).to(device)
        made: Any = network
        encoder = Encoder(
            card,
            made,
            stem=self.stem.name,
            layer=self.layer.name,
            normalization=self.normalization,
            device=device,
        )
        reference = card.reference or recorded_reference(card, self.weights_sha256)
        if check and reference is not None:
            distance = reference_distance(dataclasses.replace(card, reference=reference), network, device)
            if distance is not None and not distance <= reference.tolerance:
                source = "the card states" if card.reference else "were recorded when the weights were downloaded"
                raise WeightsMismatchError(
                    f"{card.alias} on {device} differs from its reference vector by {distance:.2g} (allowed: "
                    f"{reference.tolerance:g}): weights, code or device give other numbers than {source}"
                )
        return encoder

    def weights_path(self) -> Path:
        """Return the weights file, after checking that it is the one found at the call.

        Raises
        ------
        WeightsNotFoundError, WeightsMismatchError
            See `load`.
        """
        assert self.weights is not None
        path = Path(self.weights)
        if not path.is_file():
            raise WeightsNotFoundError(
                f"the weights of {self.card.alias} were found at {path} when the call was made, but this process (on "
                f"{socket.gethostname()}) does not see that file: put it on storage that every worker sees"
            )
        check_file(self.card, path)
        if file_sha256(path) != self.weights_sha256:
            raise WeightsMismatchError(
                f"{path} has changed since the call was made: SHA-256 was {self.weights_sha256}, is {file_sha256(path)}"
            )
        return path

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides the numbers: the card's, stem, layer, statistics, and the weights' values."""
        n = self.normalization
        fields = (
            self.card.fingerprint,
            self.stem.name,
            self.layer.name,
            (n.name, n.kind, n.mean, n.std),
            self.weights_sha256,
        )
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("deo_cube.EncoderRef", self.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        bundled = bundled_cards().get(self.card.alias)
        packaged = bundled is not None and bundled == self.card
        card = self.card.alias if packaged else zlib.compress(json.dumps(self.card.to_dict()).encode())
        proof = self.card.fingerprint if packaged else self.card.folder
        beside = packaged and self.weights is not None and Path(self.weights).parent == CARDS
        weights = Path(self.weights).name if beside and self.weights is not None else self.weights
        known = self.normalization in self.stem.normalizations
        n = self.normalization
        how = n.name if known else (n.name, n.kind, n.mean, n.std)
        return (
            _restore,
            (
                *(card, proof, self.stem.name, self.layer.name, how, weights, beside, self.weights_sha256),
                *(self.factory, self.sources),
            ),
        )

    def __repr__(self) -> str:
        return (
            f"<EncoderRef {self.card.alias}: stem {self.stem.name}, layer {self.layer.name}, normalization "
            f"{self.normalization.name}, weights {self.weights_sha256[:12]}, fingerprint {self.fingerprint}>"
        )


def _restore(
    card: str | bytes,
    proof: str,
    stem: str,
    layer: str,
    how: Any,
    weights: str | None,
    beside: bool,
    sha256: str,
    factory: Callable[[], Any] | None,
    sources: tuple[tuple[str, tuple[str, tuple[str, ...]]], ...] = (),
) -> EncoderRef:
    if isinstance(card, bytes):
        model_card = ModelCard.from_dict(json.loads(zlib.decompress(card)), folder=proof)
    else:
        bundled = bundled_cards().get(card)
        if bundled is None or bundled.fingerprint != proof:
            raise WeightsMismatchError(
                f"this process (on {socket.gethostname()}) has another card of {card!r} than the caller: "
                "install the same version of deo_cube on every worker"
            )
        model_card = bundled
    entry = model_card.stem(stem)
    normalization = entry.normalization(how) if isinstance(how, str) else Normalization(*how)
    path = str(CARDS / weights) if beside and weights is not None else weights
    return EncoderRef(model_card, entry, model_card.layer(layer), normalization, path, sha256, factory, sources)


def resolve(
    model: str | Path | ModelCard | EncoderRef,
    *,
    weights: str | Path | None = None,
    bands: Sequence[str] | None = None,
    layer: str | None = None,
    normalize: str | Mapping[str, tuple[float, float]] | Normalization | None = None,
    locate: bool = True,
) -> EncoderRef:
    """Decide which encoder to use, with every choice made, and find its weights. Errors are raised here, not later.

    Parameters
    ----------
    model : str, path or ModelCard
        Alias, full name, folder of a training run, or a card. A reference is returned as it is.
    weights : path, optional
        Its weights file, the folder that holds it, or an address ``hf://OWNER/NAME[@REVISION][/FILE]``; see
        `weights.find_weights`.
    bands : sequence of str, optional
        Names of the available bands; they decide between a multispectral and an RGB stem. Default: the first stem.
    layer : str, optional
        Layer to return; the card's last by default.
    normalize : str or mapping, optional
        See `normalize.choose_normalization`.
    locate : bool
        False: do not look for the weights, to count or describe only; the reference cannot be loaded.

    Returns
    -------
    EncoderRef

    Raises
    ------
    UnknownModelError
        No such model, layer or normalization.
    MissingBandsError
        No stem reads `bands`.
    WeightsNotFoundError, WeightsMismatchError
        See `weights.find_weights`; files without a stated hash are also compared with the network's structure.
    """
    if isinstance(model, EncoderRef):
        return model
    entry = find(model)
    c = entry.card
    stem = c.stem()
    if bands is not None:
        stem = choose_stem(c, bands)[0]
    chosen_layer = c.layer(layer)
    how = choose_normalization(stem, normalize)
    path, sha256, sources = _weights(entry, weights) if locate else (None, "", ())
    return EncoderRef(c, stem, chosen_layer, how, path, sha256, entry.factory, sources)


def _weights(entry: KnownModel, weights: str | Path | None) -> tuple[str | None, str, tuple[Any, ...]]:
    c = entry.card
    if entry.factory is not None or (not c.weights.file and weights is None):
        if weights is not None:
            raise ArgumentError(
                f"weights: {c.alias} is made by its own factory, which takes no weights file. Leave out weights="
            )
        from deo_cube.encoder.encoder import source_hash

        hashed = source_hash(c, entry.factory)
        return None, hashed.sha256, tuple(sorted(hashed.sources.items()))
    location = find_weights(c, weights)
    path = location.resolve()
    sha256 = file_sha256(path)
    if c.weights.sha256 is None:
        _check_structure_once(c, str(path), sha256)
    address = place_in_cache(location)
    if address is not None and c.reference is None and recorded_reference(c, sha256) is None:
        remember(c, address, path, sha256)
        stated = "has the SHA-256 that its card states" if c.weights.sha256 else f"has SHA-256 {sha256[:16]}"
        warnings.warn(
            f"{c.alias}: {address} {stated} and fills its network strictly. The card states no reference vector, so "
            "that it gives the published numbers is NOT PROVEN. Its vector is recorded in "
            f"{get_option('cache_dir')} and compared from now on",
            UserWarning,
            stacklevel=2,
        )
    return str(path), sha256, ()


@functools.lru_cache(maxsize=32)
def _check_structure_once(c: ModelCard, path: str, sha256: str) -> None:
    check_structure(c, path)


def load_encoder(
    name: str | Path | ModelCard, *, weights: str | Path | None = None, device: str | None = None
) -> Encoder:
    """Load a model for arrays: ``.encode(array, bands=[...])`` and ``.pool(array, bands=[...])``.

    Parameters
    ----------
    name : str, path or ModelCard
        Alias, full name, folder of a training run, or a card.
    weights : path, optional
        See `resolve`.
    device : str, optional
        A torch device; default the first GPU if there is one, else the CPU.

    Returns
    -------
    Encoder

    Raises
    ------
    UnknownModelError, WeightsNotFoundError, WeightsMismatchError
        See `resolve` and `EncoderRef.load`.

    Examples
    --------
    >>> import numpy as np
    >>> from deo_cube.encoder.registry import load_encoder
    >>> encoder = load_encoder("tiny", device="cpu")
    >>> encoder.pool(np.full((2, 10, 64, 64), 1200.0)).shape[0]
    2
    """
    return resolve(name, weights=weights).load(device)


def describe(
    alias: str,
    *,
    bands: Sequence[str],
    dim: int,
    patch: int,
    tile: int = 256,
    halo: int = 0,
    statistics: Mapping[str, tuple[float, float]] | None = None,
    units: Literal["dn", "reflectance"] = "dn",
    gsd: float = 10.0,
    layer: str = "map",
    architecture: Mapping[str, Any] | None = None,
    status: WeightsStatus = "untrained",
    summary: str = "",
    **fields: Any,
) -> ModelCard:
    """Return a card with one stem and one layer, for `register_encoder`.

    Parameters
    ----------
    alias : str
        Its name.
    bands : sequence of str
        Bands in the order of the encoder's input.
    dim, patch : int
        Channels of its map, and the side of a cell of the map in input pixels.
    tile, halo : int
        Input size in pixels, and context to keep on each side of it.
    statistics : mapping, optional
        ``{band: (mean, std)}`` in `units`. Default: `SENTINEL2_STATISTICS`.
    units, gsd, layer, architecture, status, summary, **fields
        See `ModelCard`, `Layer` and `Weights`.

    Raises
    ------
    MissingBandsError
        If the statistics lack a band.
    ValueError
        For values that do not fit together, see `ModelCard`.
    """
    arguments.number("gsd", gsd, above=0)
    for name, size, least in (("dim", dim, 1), ("patch", patch, 1), ("tile", tile, 1), ("halo", halo, 0)):
        arguments.integer(name, size, minimum=least)
    bands = arguments.sequence("bands", bands, "bands, in the order of the model")
    if not isinstance(alias, str) or not alias:
        raise ArgumentError(f"alias: expected a name, got {alias!r}")
    if statistics is not None and not (
        isinstance(statistics, Mapping)
        and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in statistics.values())
    ):
        raise ArgumentTypeError(f"statistics: expected a mapping {{band: (mean, std)}}, got {statistics!r}")
    scale = 1.0 if statistics is not None or units == "dn" else 1e-4
    table = SENTINEL2_STATISTICS if statistics is None else statistics
    unknown = [b for b in bands if b not in table]
    if unknown:
        raise MissingBandsError(
            f"bands: the mean and deviation of {unknown} are not known, pass statistics={{band: (mean, std)}}"
        )
    mean, std = (tuple(table[b][i] * scale for b in bands) for i in (0, 1))
    return ModelCard(
        name=f"{alias}.own",
        alias=alias,
        summary=summary or f"Encoder {alias}, registered by its user.",
        architecture=dict(architecture or {"family": "callable"}),
        stems=(Stem("all", tuple(bands), (Normalization("fixed", "fixed", mean, std), Normalization("own", "own"))),),
        layers=(Layer(layer, dim, patch),),
        tile=tile,
        halo=halo,
        weights=Weights(status, file=""),
        gsd=gsd,
        units=units,
        **fields,
    )


def describe_timm(
    alias: str, model: str, *, bands: Sequence[str], tile: int = 256, pretrained: bool = False, **fields: Any
) -> ModelCard:
    """Return a card for a model of timm; channels and stride are measured on the model itself.

    Parameters
    ----------
    alias : str
        Its name.
    model : str
        Its name in timm, for example ``vit_small_patch16_dinov3``.
    bands : sequence of str
        Bands in the order of its first convolution.
    tile : int
        Input size, pixels.
    pretrained : bool
        Use timm's published weights, from the hub. timm adapts the first convolution to other than three bands.
    options : mapping, optional
        Further arguments of ``timm.create_model``, for example ``{"img_size": 320}`` for a ViT at tiles of 320 pixels.
    **fields
        See `describe`.

    Raises
    ------
    UnknownModelError
        If timm has no such model, or it returns no maps.
    ValueError
        If it does not accept tiles of that size.
    """
    import torch

    from deo_cube.encoder.networks.adapters import TimmNetwork

    architecture: dict[str, Any] = {"family": "timm", "model": model, "pretrained": pretrained}
    if "options" in fields:
        architecture["options"] = dict(fields.pop("options"))
    status: WeightsStatus = "published" if pretrained else "untrained"
    trial = describe(alias, bands=bands, dim=1, patch=1, tile=tile, architecture=architecture | {"pretrained": False})
    network = TimmNetwork.create(trial)
    norm = getattr(network.model, "norm", None)
    layer = "norm" if norm is not None and not isinstance(norm, torch.nn.Identity) else "last"
    try:
        with torch.inference_mode():
            out = network.eval().forward_features(torch.zeros(1, len(bands), tile, tile), "all", (layer,))[layer]
    except (AssertionError, RuntimeError) as error:
        raise ArgumentError(
            f"tile={tile}: timm's {model} does not accept tiles of that size ({error}). Pass another tile=, or for "
            f"a ViT options={{'img_size': {tile}}} or options={{'dynamic_img_size': True}}"
        ) from error
    fields = {"layer": layer, "status": status, "summary": f"timm's {model}", **fields}
    return describe(
        alias, bands=bands, dim=out.shape[1], patch=tile // out.shape[2], tile=tile, architecture=architecture, **fields
    )
