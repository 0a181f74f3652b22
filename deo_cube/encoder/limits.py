"""What a card may ask for: the options of each family of networks, with bounds, checked before anything is built.

A card is a file from anywhere. Options that name files or addresses, or that change a library's behaviour, are not
listed here, so they reach no library; sizes are bounded, and so is the number of parameters that they multiply to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deo_cube.errors import ModelCardError

__all__ = ["CARD_BYTES", "MAX_PARAMETERS", "MAX_TILE", "check", "check_architecture", "relative_file"]

#: Bytes of a card's file.
CARD_BYTES = 2**20
#: Parameters of a network that a card describes: 8 GB in float32.
MAX_PARAMETERS = 2 * 10**9
#: Pixels of a side of a tile.
MAX_TILE = 16384


@dataclass(frozen=True)
class _Allowed:
    """Values that an option may have: of a kind, within bounds, one or a sequence."""

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


#: Family -> its options. Other families are made by a factory, which reads the architecture as it likes.
OPTIONS: Mapping[str, Mapping[str, _Allowed]] = {
    "vit": {
        "dim": _WIDTH,
        "depth": _DEPTH,
        "heads": _DEPTH,
        "patch": _SIDE,
        "grid": _SIDE,
        "mlp_ratio": _RATIO,
        "drop_path": _SHARE,
        "seed": _SEED,
    },
    "swin": {
        "dim": _WIDTH,
        "depths": _several(_DEPTH),
        "heads": _several(_DEPTH),
        "window": _Allowed("integer", 1, 64),
        "patch": _SIDE,
        "mlp_ratio": _RATIO,
        "drop_path": _SHARE,
        "seed": _SEED,
    },
    "conv": {
        "dim": _WIDTH,
        "local": _WIDTH,
        "depth": _Allowed("integer", 1, 13),
        "contrast": _Allowed("name", many=True),
        "seed": _SEED,
    },
    "dynamicworld": {},
    "galileo": {
        "dim": _WIDTH,
        "depth": _DEPTH,
        "heads": _DEPTH,
        "patch": _Allowed("integer", 1, 8),
        "month": _Allowed("integer", 0, 11),
        "mlp_ratio": _RATIO,
    },
    "timm": {"model": _NAME, "pretrained": _SWITCH, "options": _NAME, "seed": _SEED},
}

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


def check(true: bool, message: str) -> None:
    """Refuse a card.

    Raises
    ------
    ModelCardError
        If not `true`.
    """
    if not true:
        raise ModelCardError(message)


def check_architecture(name: str, architecture: Mapping[str, Any], channels: Sequence[int]) -> None:
    """Refuse options that a card may not set, and sizes that no network of this package has.

    Parameters
    ----------
    name : str
        The card's, for messages.
    architecture : mapping
        Of the card.
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
    """Whether `name` is the path of a file inside a folder, wherever the folder is and whatever the system."""
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
    """About as many parameters as the sizes multiply to; of timm, what the given sizes make at least."""
    inputs = sum(channels)
    if family == "timm":
        o = a.get("options", {})
        depth, dim = (max(v) if isinstance(v, Sequence) else v for v in (o.get("depth", 1), o.get("embed_dim", 1)))
        return float(4 * depth * dim**2)
    if family == "dynamicworld":
        return 0.22e6
    dim = a.get("dim", 768)
    if family == "conv":
        return float(inputs * a.get("local", 128) * 9 + len(channels) * dim * (2 * a.get("local", 128) + 2048))
    block = 4 + 2 * a.get("mlp_ratio", 4.0)
    if family == "galileo":
        return float(29 * 64 * dim + a.get("depth", 4) * block * dim**2)
    stem = inputs * dim * a.get("patch", 8) ** 2
    if family == "vit":
        return float(stem + a.get("grid", 28) ** 2 * dim + a.get("depth", 12) * block * dim**2)
    depths = a.get("depths", (2, 2, 18, 2))
    depths = depths if isinstance(depths, Sequence) else [depths]
    return float(stem + sum(d * block * (dim * 2**i) ** 2 for i, d in enumerate(depths)))
