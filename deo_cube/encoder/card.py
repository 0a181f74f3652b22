"""The model card: what must be known about an encoder before it is run, as one frozen value.

A card is plain JSON (`cards/*.json`, or `card.json` in the folder of a training run). It names the bands in model
order, the units and statistics they are normalised with, the layers on offer with their strides, the location and hash
of the weights, a reference input with the vector that the loaded model must return for it, the licences, and what is
not proven.

A card is a file from anywhere. Options that name files or addresses, or that change the behaviour of a library, are not
accepted, so they reach no library. Sizes are bounded, and so is the number of parameters that they multiply to. Nothing
in this module imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deo_cube.cube.sentinel2 import band_of_name
from deo_cube.errors import MissingBandsError, ModelCardError, UnknownModelError
from deo_cube.notebook import facts_html
from deo_cube.paths import local_path

__all__ = [
    "CARDS",
    "CARD_BYTES",
    "Layer",
    "MAX_PARAMETERS",
    "MAX_TILE",
    "ModelCard",
    "Normalization",
    "Reference",
    "Stem",
    "Weights",
    "WeightsFile",
    "bundled_cards",
    "check",
    "check_architecture",
    "choose_stem",
    "relative_file",
]

#: Folder of the bundled cards and the weights beside them.
CARDS = Path(__file__).parent / "cards"
#: Bytes of a card's file.
CARD_BYTES = 2**20
#: Parameters of a network that a card describes: 8 GB in float32.
MAX_PARAMETERS = 2 * 10**9
#: Largest side of a tile, pixels.
MAX_TILE = 16384


@dataclass(frozen=True)
class _Allowed:
    """Values that an option may have: a kind, bounds, and whether a sequence is accepted."""

    kind: Literal["integer", "number", "true or false", "name"]
    low: float = 0
    high: float = math.inf
    many: bool = False
    none: bool = False

    def takes(self, value: Any) -> bool:
        if value is None:
            return self.none
        if self.many and isinstance(value, Sequence) and not isinstance(value, str):
            return 0 < len(value) <= 64 and all(self._takes_one(v) for v in value)
        return self._takes_one(value)

    def _takes_one(self, value: Any) -> bool:
        if self.kind == "true or false":
            return isinstance(value, bool)
        if self.kind == "name":
            return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.]{0,80}", value) is not None
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "integer" else (int, float)):
            return False
        return self.low <= value <= self.high  # NaN is within no bounds

    def __str__(self) -> str:
        bounds = f" from {self.low:g} to {self.high:g}" if self.kind in ("integer", "number") else ""
        return f"{self.kind}{bounds}" + (", or several" if self.many else "")


_SEED = _Allowed("integer", 0, 2**63 - 1)
_DEPTH, _WIDTH, _SIDE = _Allowed("integer", 1, 256), _Allowed("integer", 1, 16384), _Allowed("integer", 1, 512)
_RATIO, _SHARE = _Allowed("number", 0, 16), _Allowed("number", 0, 1)
_SWITCH, _NAME = _Allowed("true or false"), _Allowed("name")


def _several(one: _Allowed) -> _Allowed:
    return _Allowed(one.kind, one.low, one.high, many=True)


_TRANSFORMER = {"dim": _WIDTH, "patch": _SIDE, "mlp_ratio": _RATIO, "drop_path": _SHARE, "seed": _SEED}
_CONVOLUTIONAL = {
    "dim": _WIDTH,
    "local": _WIDTH,
    "depth": _Allowed("integer", 1, 13),
    "contrast": _Allowed("name", many=True),
    "seed": _SEED,
}
#: Family -> its options. Other families are made by a factory, which reads the architecture as it likes.
OPTIONS: Mapping[str, Mapping[str, _Allowed]] = {
    "vit": {**_TRANSFORMER, "depth": _DEPTH, "heads": _DEPTH, "grid": _SIDE},
    "swin": {
        **_TRANSFORMER,
        "depths": _several(_DEPTH),
        "heads": _several(_DEPTH),
        "window": _Allowed("integer", 1, 64),
    },
    "conv": _CONVOLUTIONAL,
    "spectral": _CONVOLUTIONAL,
    "dynamicworld": {},
    "galileo": {
        "dim": _WIDTH,
        "depth": _DEPTH,
        "heads": _DEPTH,
        "patch": _Allowed("integer", 1, 8),
        "month": _Allowed("integer", 0, 11),
        "mlp_ratio": _RATIO,
    },
    "presto": {
        "dim": _WIDTH,
        "depth": _DEPTH,
        "heads": _DEPTH,
        "mlp_ratio": _RATIO,
        "months": _Allowed("integer", 1, 1200),
    },
    "timm": {"model": _NAME, "pretrained": _SWITCH, "options": _NAME, "seed": _SEED},
}

#: Families whose networks read the months of a pixel (`embed_series`), and not a tile of one date.
SERIES = ("presto",)

#: Options of `timm.create_model` that describe a network.
TIMM_OPTIONS: Mapping[str, _Allowed] = {
    **dict.fromkeys(("depth", "groups", "cardinality", "reg_tokens"), _Allowed("integer", 0, 256)),
    **dict.fromkeys(("depths", "num_heads", "layers", "expand_ratio"), _several(_DEPTH)),
    **dict.fromkeys(("dims", "embed_dim", "channels", "base_width", "stem_width", "stem_size", "head_hidden_size"),
                    _several(_WIDTH)),
    **dict.fromkeys(("window_size", "patch_size", "output_stride", "kernel_sizes", "stem_stride"), _several(_SIDE)),
    "img_size": _Allowed("integer", 1, MAX_TILE, many=True),
    **dict.fromkeys(("mlp_ratio", "init_values", "ls_init_value", "norm_eps", "rope_temperature"),
                    _Allowed("number", 0, 1e6, none=True)),
    **dict.fromkeys(
        ("drop_rate", "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"), _SHARE
    ),
    **dict.fromkeys(
        ("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "always_partition", "class_token", "no_embed_class",
         "pre_norm", "final_norm", "fc_norm", "qkv_bias", "qk_norm", "conv_mlp", "use_abs_pos", "dynamic_size"),
        _SWITCH,
    ),
    **dict.fromkeys(("global_pool", "pos_embed", "act_layer", "norm_layer", "pad_type", "stem_type"), _NAME),
}  # fmt: skip


def check(condition: bool, message: str) -> None:
    """Refuse a card.

    Raises
    ------
    ModelCardError
        If `condition` is false.
    """
    if not condition:
        raise ModelCardError(message)


def check_architecture(name: str, architecture: Mapping[str, Any], channels: Sequence[int]) -> None:
    """Refuse options that a card may not set, and sizes that are out of bounds.

    Parameters
    ----------
    name : str
        Name of the card, for messages.
    architecture : mapping
        The card's architecture.
    channels : sequence of int
        Input channels of each stem.

    Raises
    ------
    ModelCardError
        For an unknown option, a value out of bounds, or more than `MAX_PARAMETERS` parameters.
    """
    family = architecture.get("family")
    check(isinstance(family, str), f"card {name}: architecture has no family")
    if family not in OPTIONS:
        return
    given = {k: v for k, v in architecture.items() if k != "family"}
    if family == "timm":
        options = given.pop("options", {})
        check(isinstance(options, Mapping), f"card {name}: architecture.options must be a mapping")
        check(bool(given.get("model")), f"card {name}: architecture.model must name a model of timm")
        _check_options(name, "timm", "architecture.options", options, TIMM_OPTIONS)
    _check_options(name, str(family), "architecture", given, OPTIONS[str(family)])
    check_parameters(name, _parameters(str(family), architecture, channels))


def check_parameters(name: str, parameters: float) -> None:
    """Refuse a network of more than `MAX_PARAMETERS`.

    Raises
    ------
    ModelCardError
    """
    check(
        parameters <= MAX_PARAMETERS,
        f"card {name}: its architecture has {parameters:.2g} parameters, a card may ask for {MAX_PARAMETERS:.2g}. "
        "Make the sizes in architecture smaller, or build the network yourself: register_encoder(card, factory)",
    )


def relative_file(name: str) -> bool:
    """Return whether `name` is a relative path of a file inside a folder, on every operating system."""
    parts = name.split("/")
    return len(name) <= 255 and not any(p in ("", ".", "..") or set(p) & set("\\:\0") for p in parts)


def _check_options(
    name: str, family: str, where: str, given: Mapping[str, Any], allowed: Mapping[str, _Allowed]
) -> None:
    unknown = [str(k) for k in given if k not in allowed]
    check(
        not unknown,
        f"card {name}: {family} does not take {where} {unknown} from a card, only {sorted(allowed)}. "
        "To set others, build the network yourself: register_encoder(card, factory)",
    )
    for option, value in given.items():
        check(
            allowed[option].takes(value),
            f"card {name}: {where}.{option} is {str(value)[:60]}, expected {allowed[option]}",
        )


def _parameters(family: str, a: Mapping[str, Any], channels: Sequence[int]) -> float:
    """Return the approximate number of parameters for given sizes; for timm a lower bound."""
    inputs = sum(channels)
    if family == "timm":
        o = a.get("options", {})
        depth, dim = (max(v) if isinstance(v, Sequence) else v for v in (o.get("depth", 1), o.get("embed_dim", 1)))
        return float(4 * depth * dim**2)
    if family == "dynamicworld":
        return 0.22e6
    dim = a.get("dim", 768)
    if family in ("conv", "spectral"):
        return float(inputs * a.get("local", 128) * 9 + len(channels) * dim * (2 * a.get("local", 128) + 2048))
    block = 4 + 2 * a.get("mlp_ratio", 4.0)
    if family == "galileo":
        return float(29 * 64 * dim + a.get("depth", 4) * block * dim**2)
    if family == "presto":
        return float((64 + a.get("months", 72)) * dim + a.get("depth", 2) * block * dim**2)
    stem = inputs * dim * a.get("patch", 8) ** 2
    if family == "vit":
        return float(stem + a.get("grid", 28) ** 2 * dim + a.get("depth", 12) * block * dim**2)
    depths = a.get("depths", (2, 2, 18, 2))
    depths = depths if isinstance(depths, Sequence) else [depths]
    return float(stem + sum(d * block * (dim * 2**i) ** 2 for i, d in enumerate(depths)))


NormalizationKind = Literal["fixed", "rgb_max", "own", "log_sigmoid"]
WeightsStatus = Literal["published", "trained", "untrained"]

#: Scale of DN inside the logarithm of a `log_sigmoid` normalization.
LOG_SCALE = 0.005


@dataclass(frozen=True)
class Normalization:
    """How pixel values become network input: ``(value - mean) / std``, band by band.

    kind `fixed` uses the same statistics for every tile. `rgb_max` first divides red, green and blue by
    the tile's own maximum over the three (published pre-training, augmentations.py:373-380). `own` takes mean and
    standard deviation from the tile itself, and ignores `mean` and `std`. `log_sigmoid` is Dynamic World's:
    ``sigmoid(5 (log(0.005 value + 1) - mean) / std - 1)`` (doi:10.1038/s41597-022-01307-4).
    """

    name: str
    kind: NormalizationKind
    mean: tuple[float, ...] = ()
    """One value per band, in the card's units (for `rgb_max`, red, green and blue in 0..1)."""
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check(
            self.kind in typing.get_args(NormalizationKind),
            f"normalization {self.name!r}: unknown kind {self.kind!r}",
        )
        check(
            len(self.mean) == len(self.std),
            f"normalization {self.name!r}: {len(self.mean)} means, {len(self.std)} standard deviations",
        )
        check(_finite(self.mean), f"normalization {self.name!r}: means must be finite numbers, got {self.mean}")
        check(
            _finite(self.std) and all(s > 0 for s in self.std),
            f"normalization {self.name!r}: standard deviations must be positive, finite numbers, got {self.std}",
        )


@dataclass(frozen=True)
class Stem:
    """One input of the network: its bands in model order, and its normalizations, the first of which is the default."""

    name: str
    bands: tuple[str, ...]
    normalizations: tuple[Normalization, ...]

    def __post_init__(self) -> None:
        check(0 < len(self.bands) <= 512, f"stem {self.name!r} has {len(self.bands)} bands, expected 1 to 512")
        check(len(set(self.bands)) == len(self.bands), f"stem {self.name!r} names a band twice: {self.bands}")
        check(len(self.normalizations) > 0, f"stem {self.name!r} has no normalization")
        for n in self.normalizations:
            check(
                n.kind == "own" or len(n.mean) == len(self.bands),
                f"stem {self.name!r}: normalization {n.name!r} has {len(n.mean)} means for {len(self.bands)} bands",
            )

    def normalization(self, name: str | None = None) -> Normalization:
        """Return the normalization called `name`; the default for None.

        Raises
        ------
        UnknownModelError
            If there is none of that name.
        """
        if name is None:
            return self.normalizations[0]
        for n in self.normalizations:
            if n.name == name:
                return n
        raise UnknownModelError(
            f"normalize={name!r}: stem {self.name!r} has no such normalization, choose from "
            f"{[n.name for n in self.normalizations]}"
        )

    @property
    def fill(self) -> tuple[float, ...]:
        """Neutral value per band in the card's units, used for invalid pixels: the mean where the card has one."""
        for n in self.normalizations:
            if n.kind == "fixed":
                return n.mean
            if n.kind == "log_sigmoid":
                return tuple(math.expm1(m) / LOG_SCALE for m in n.mean)
        return (0.0,) * len(self.bands)


@dataclass(frozen=True)
class Layer:
    """One output layer: its name, channels, and output stride in input pixels."""

    name: str
    dim: int
    stride: int
    int8_scale: float | None = None
    """Global scale of int8 output: value = int8 * scale. None: not measured, so int8 is refused."""

    def __post_init__(self) -> None:
        check(_whole(self.dim, self.stride), f"layer {self.name!r}: dim and stride must be integers")
        check(
            0 < self.dim <= 2**17 and 0 < self.stride <= MAX_TILE,
            f"layer {self.name!r}: expected dim 1 to {2**17} and stride 1 to {MAX_TILE}, got {self.dim}, {self.stride}",
        )
        check(
            self.int8_scale is None or (_finite([self.int8_scale]) and self.int8_scale > 0),
            f"layer {self.name!r}: int8_scale must be a positive, finite number, got {self.int8_scale}",
        )


@dataclass(frozen=True)
class WeightsFile:
    """A weights file, known by its hash."""

    file: str
    sha256: str

    def __post_init__(self) -> None:
        check(relative_file(self.file), f"weights.alternatives: {self.file[:80]!r} is not a path inside a folder")
        check(
            re.fullmatch("[0-9a-f]{64}", self.sha256, re.ASCII) is not None,
            f"weights.alternatives: sha256 of {self.file[:80]!r} must be 64 hexadecimal digits",
        )


@dataclass(frozen=True)
class Weights:
    """Location of the weights, and their hash."""

    status: WeightsStatus
    file: str
    """File name; searched for in `DEO_CUBE_WEIGHTS`, beside the card, then on the hub."""
    sha256: str | None = None
    """Hash of the file; None where the publisher states none (then the first download is recorded, not proven)."""
    repo: str | None = None
    """Repository on the Hugging Face hub."""
    revision: str | None = None
    """Pinned commit there."""
    key_prefixes: tuple[str, ...] = ()
    """Prefixes that the file's keys may carry, stripped in this order."""
    url: str | None = None
    """Address of the file itself, where the card states its hash; otherwise of a page that leads to it."""
    alternatives: tuple[WeightsFile, ...] = ()
    """Other files with the same weights, for example in another format. Each is as good as `file`."""
    unused: tuple[str, ...] = ()
    """Tensors that `file` may hold and the network does not have, for example those of a classification head."""

    def __post_init__(self) -> None:
        check(self.status in ("published", "trained", "untrained"), f"unknown weights status {self.status!r}")
        check(self.repo is None or self.revision is not None, f"weights of {self.repo}: a revision must be pinned")
        check(
            not self.file or relative_file(self.file),
            f"weights.file is {self.file[:80]!r}: expected a path inside the card's folder. A file that is "
            "elsewhere is named in the call, weights=PATH",
        )
        for what, value, pattern in (
            ("sha256", self.sha256, "[0-9a-f]{64}"),
            ("repo", self.repo, r"[A-Za-z0-9_][\w-]*(\.[\w-]+)*(/[A-Za-z0-9_][\w-]*(\.[\w-]+)*)?"),
            ("revision", self.revision, r"\w[\w-]*([./][\w-]+)*"),
            ("url", self.url, r"https://[^\s]+"),
        ):
            check(
                value is None or re.fullmatch(pattern, value, re.ASCII) is not None,
                f"weights.{what} is {str(value)[:80]!r}: expected a text of the form {pattern}",
            )
        check(all(self.key_prefixes), "weights.key_prefixes holds an empty text: leave it out")
        check(
            self.sha256 is not None or not self.alternatives,
            "weights.alternatives needs weights.sha256: without it nothing says which weights they equal",
        )

    @property
    def hashes(self) -> frozenset[str]:
        """SHA-256 of every file that holds these weights; empty where the card states none."""
        return frozenset({self.sha256, *(a.sha256 for a in self.alternatives)} - {None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Reference:
    """A fixed input, and what the loaded model must return for it.

    The input is ``x[b,c,i,j] = sin(0.013 (c+1) i + 0.7 b) * cos(0.017 (c+2) j)`` in float64, then float32, fed to the
    stem after normalisation; `vector` is the start of the mean over the map of the default layer.
    """

    stem: str
    size: int
    vector: tuple[float, ...]
    tolerance: float = 1e-3
    bfloat16: Mapping[str, float] | None = None
    """Largest cosine distance of a vector in bfloat16 from float32 on real images, by stem. None: not measured."""

    def __post_init__(self) -> None:
        check(0 < self.size <= 1024, f"reference: expected a size of 1 to 1024 pixels, got {self.size}")
        check(
            _finite(self.vector) and any(self.vector),
            "reference: the vector must be finite numbers, not all of them 0",
        )
        measured = self.bfloat16 or {}
        check(
            _finite(measured.values()) and all(0 <= v <= 2 for v in measured.values()),
            f"reference: distances in bfloat16 must be numbers from 0 to 2, got {dict(measured)}",
        )
        check(0 < self.tolerance <= 0.1, f"reference: expected a tolerance above 0, up to 0.1, got {self.tolerance}")


@dataclass(frozen=True)
class ModelCard:
    """Everything known about an encoder. Frozen, hashable by `fingerprint`, read from and written to JSON."""

    name: str
    """``architecture.tag``, for example ``deo_vit_base_patch8.cvpr2026``."""
    alias: str
    summary: str
    architecture: Mapping[str, Any]
    """`family` (`vit`, `swin`, `conv`, `dynamicworld`, `timm`, `callable`) and the sizes that its builder takes."""
    stems: tuple[Stem, ...]
    layers: tuple[Layer, ...]
    """The last is the default."""
    tile: int
    """Native input, pixels."""
    halo: int
    """Default context kept on each side of a tile's core, pixels."""
    weights: Weights
    gsd: float = 10.0
    """Ground sampling distance that the model was trained at, metres."""
    units: Literal["dn", "reflectance"] = "dn"
    """`dn`: reflectance x 10000 with no offset. `reflectance`: 0..1."""
    product_level: str = "L2A"
    trim: int = 0
    """At the cube's edge a tile may be cut shorter, to a multiple of this number of pixels, instead of being filled
    with the mirrored cube. For networks that do not depend on the position in the tile; 0 for all others."""
    batch: int = 8
    """Default number of tiles per batch."""
    reference: Reference | None = None
    license_code: str = ""
    license_weights: str = ""
    training_data: str = ""
    paper: str = ""
    scores: tuple[Mapping[str, Any], ...] = ()
    """Measured scores: mappings with at least `task`, `metric`, `value`, `protocol`."""
    limits: tuple[str, ...] = ()
    """Limits: uses that fail, and claims that are not proven."""
    folder: str = field(default="", compare=False, repr=False)
    """Folder that the card was read from; not part of its JSON or fingerprint."""

    def __post_init__(self) -> None:
        check(bool(self.name) and bool(self.alias), "a card needs a name and an alias")
        check(len(self.stems) > 0 and len(self.layers) > 0, f"card {self.name}: needs a stem and a layer")
        check_architecture(self.name, self.architecture, [len(s.bands) for s in self.stems])
        for kind, names in (("stem", [s.name for s in self.stems]), ("layer", [la.name for la in self.layers])):
            check(len(set(names)) == len(names), f"card {self.name}: a {kind} name occurs twice in {names}")
        check(
            _whole(self.tile, self.halo, self.trim, self.batch),
            f"card {self.name}: tile, halo, trim and batch must be integers",
        )
        check(self.tile > 0 and self.halo >= 0, f"card {self.name}: tile must be positive, halo not negative")
        check(self.tile <= MAX_TILE, f"card {self.name}: expected a tile of at most {MAX_TILE} pixels, got {self.tile}")
        check(0 < self.batch <= 4096, f"card {self.name}: expected a batch of 1 to 4096 tiles, got {self.batch}")
        check(2 * self.halo < self.tile, f"card {self.name}: halo {self.halo} leaves no core in tile {self.tile}")
        check(
            self.tile % self.patch == 0, f"card {self.name}: tile {self.tile} is not a multiple of stride {self.patch}"
        )
        check(
            self.trim >= 0 and (self.trim == 0 or self.tile % self.trim == 0),
            f"card {self.name}: tile {self.tile} is not a multiple of trim {self.trim}",
        )
        check(_finite([self.gsd]) and self.gsd > 0, f"card {self.name}: gsd must be positive, got {self.gsd}")
        check(self.units in ("dn", "reflectance"), f"card {self.name}: unknown units {self.units!r}")
        if self.reference is not None:
            stems = [s.name for s in self.stems]
            check(
                self.reference.stem in stems and len(self.reference.vector) <= self.dim,
                f"card {self.name}: the reference is of stem {self.reference.stem!r} with {len(self.reference.vector)} "
                f"values; the card has the stems {stems} and {self.dim} channels",
            )

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the output layers."""
        return tuple(la.name for la in self.layers)

    def layer(self, name: str | None = None) -> Layer:
        """Return the layer called `name`; the default for None.

        Raises
        ------
        UnknownModelError
            If there is none of that name.
        """
        if name is None:
            return self.layers[-1]
        for la in self.layers:
            if la.name == name:
                return la
        raise UnknownModelError(f"{self.alias} has no layer {name!r}: choose from {list(self.layer_names)}")

    def stem(self, name: str | None = None) -> Stem:
        """Return the stem called `name`; the first for None.

        Raises
        ------
        UnknownModelError
            If there is none of that name.
        """
        if name is None:
            return self.stems[0]
        for s in self.stems:
            if s.name == name:
                return s
        raise UnknownModelError(f"{self.alias} has no stem {name!r}: choose from {[s.name for s in self.stems]}")

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the first stem, in model order."""
        return self.stems[0].bands

    @property
    def patch(self) -> int:
        """Output stride of the default layer, pixels."""
        return self.layers[-1].stride

    @property
    def dim(self) -> int:
        """Channels of the default layer."""
        return self.layers[-1].dim

    @property
    def trained(self) -> bool:
        """True unless the weights are random."""
        return self.weights.status != "untrained"

    @property
    def series(self) -> bool:
        """True if the model reads the months of a pixel (`embed_series`), and not a tile of one date (`embed`)."""
        return self.architecture.get("family") in SERIES

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain lists, dicts and scalars."""
        d = dataclasses.asdict(self)
        d.pop("folder")
        d["architecture"] = dict(self.architecture)
        # Absent where empty: cards from before the field keep their JSON, and with it their fingerprint.
        for name in ("alternatives", "unused"):
            if not d["weights"][name]:
                d["weights"].pop(name)
        if self.reference is not None and self.reference.bfloat16 is None:
            d["reference"].pop("bfloat16")
        return typing.cast(dict[str, Any], json.loads(json.dumps(d)))

    def to_json(self) -> str:
        """Return the card as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the card to `path` as JSON."""
        local_path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, folder: str = "") -> ModelCard:
        """Read a card from a mapping.

        Raises
        ------
        ModelCardError
            For unknown or missing fields, values that do not fit together, or sizes and options out of bounds
            (`limits`).
        """
        card: ModelCard = _build(cls, values, "card")
        return dataclasses.replace(card, folder=folder)

    @classmethod
    def load(cls, path: str | Path) -> ModelCard:
        """Read a card from a JSON file, or from `card.json` in a folder.

        Raises
        ------
        ModelCardError
            See `from_dict`; or if the file is larger than 1 MiB, or not JSON.
        """
        path = local_path(path)
        if path.is_dir():
            path = path / "card.json"
        with path.open("rb") as file:
            text = file.read(CARD_BYTES + 1)
        check(len(text) <= CARD_BYTES, f"{path} is larger than a card may be, {CARD_BYTES} bytes")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelCardError(f"{path} is not JSON: {error}") from error
        return cls.from_dict(values, folder=str(path.parent.resolve()))

    @property
    def fingerprint(self) -> str:
        """Hash of the fields that decide the numbers: sizes, bands, statistics, layers and weights.

        Text (summary, scores, licences, limits) does not change it.
        """
        d = self.to_dict()
        kept = {k: d[k] for k in ("name", "architecture", "stems", "layers", "units", "weights")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("deo_cube.ModelCard", self.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        state = {"published": "published weights", "trained": "trained", "untrained": "UNTRAINED: random weights"}
        la = self.layer()
        return (
            f"<ModelCard {self.alias}: {self.name}, {len(self.bands)} bands at {self.gsd:g} m, tile {self.tile}, "
            f"halo {self.halo}, one {la.dim}-vector per {la.stride} px ({la.name}), {state[self.weights.status]}>"
        )

    def facts(self) -> list[tuple[str, str]]:
        """Return what the card states, as names and values for people."""
        state = {"published": "published", "trained": "trained", "untrained": "UNTRAINED: random"}
        layers = (f"{la.name}: {la.dim} numbers per {la.stride * self.gsd:g} m" for la in self.layers)
        facts = [
            ("name", self.name),
            ("summary", self.summary),
            ("bands", "\n".join(f"{s.name}: {' '.join(s.bands)}" for s in self.stems)),
            ("vectors", "\n".join(layers)),
            ("tile", f"{self.tile} px with a halo of {self.halo} px, at {self.gsd:g} m"),
            ("weights", f"{state[self.weights.status]}; licence {self.license_weights or 'not stated'}"),
            ("paper", self.paper),
            ("scores", "\n".join(f"{s['task']}: {s['metric']} {s['value']}" for s in self.scores)),
            ("limits", "\n".join(self.limits)),
            ("fingerprint", self.fingerprint),
        ]
        return [(k, v) for k, v in facts if v]

    def _repr_html_(self) -> str:
        return facts_html(f"model {self.alias}", self.facts())


def _whole(*values: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def _finite(values: Iterable[Any]) -> bool:
    return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _build(kind: Any, value: Any, where: str) -> Any:
    """Build an instance of the annotated type `kind` from JSON, refusing unknown fields."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ModelCardError(f"{where}: expected a mapping, got {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        names = {f.name for f in dataclasses.fields(kind)} - {"folder"}
        unknown = sorted(set(value) - names)
        check(not unknown, f"{where}: unknown fields {unknown}")
        try:
            return kind(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in value.items()})  # type: ignore[operator]
        except TypeError as error:
            raise ModelCardError(f"{where}: {error}") from error
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        check(isinstance(value, (list, tuple)), f"{where}: expected a list, got {type(value).__name__}")
        return tuple(_build(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (types.UnionType, typing.Union) and value is not None:
        return _build(next(a for a in args if a is not type(None)), value, where)
    if origin is typing.Literal:
        check(value in args, f"{where}: expected one of {list(args)}, got {str(value)[:60]!r}")
        return value
    if value is None and type(None) in args:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    expected = Mapping if origin is not None else kind
    right = isinstance(value, expected) and not (isinstance(value, bool) and kind is not bool)
    check(right, f"{where}: expected {expected.__name__}, got {type(value).__name__} {str(value)[:60]}")
    return value


@functools.lru_cache(maxsize=1)
def bundled_cards() -> dict[str, ModelCard]:
    """Return the cards that come with the package, by alias."""
    cards = (ModelCard.load(path) for path in sorted(CARDS.glob("*.json")))
    return {c.alias: c for c in cards}


def choose_stem(card: ModelCard, bands: Sequence[str]) -> tuple[Stem, list[int]]:
    """Return the stem that can read `bands`, and the position of each of its bands among them.

    The card's first stem is taken if all its bands are present (others are left out). Another stem is taken only if its
    bands are exactly those given, because leaving measured bands unread must be the caller's decision.

    Parameters
    ----------
    card : ModelCard
        Its stems are considered in order.
    bands : sequence of str
        Names in any spelling that `cube.sentinel2.band_of_name` reads: ``B04``, ``b4``, ``red``.

    Raises
    ------
    MissingBandsError
        If no stem can, or a band occurs twice.
    """
    if isinstance(bands, str):
        raise MissingBandsError(f"bands: expected a list of names, one per channel, got {bands!r}")
    names = [_canonical(b) for b in bands]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise MissingBandsError(f"bands: {repeated} occur more than once in {list(bands)}")
    for i, stem in enumerate(card.stems):
        if set(stem.bands) <= set(names) if i == 0 else set(stem.bands) == set(names):
            return stem, [names.index(b) for b in stem.bands]
    reasons = []
    for stem in card.stems:
        missing = [b for b in stem.bands if b not in names]
        more = [b for b in names if b not in stem.bands]
        reasons.append(
            f"stem {stem.name!r} reads {list(stem.bands)}: "
            + (f"missing {missing}" if missing else f"{more} would go unread, pass only its own bands")
        )
    raise MissingBandsError(f"{card.alias} cannot read the bands {list(bands)}.\n  " + "\n  ".join(reasons))


def _canonical(band: str) -> str:
    # Other names are returned unchanged, because a user's own card may name other bands.
    named = band_of_name(band)
    return band if named is None else named[0]
