"""Build networks from the `architecture` of a card, and give other models the interface of a network.

A network is a module with ``forward_features(x, stem, layers) -> {layer: map [B, D, h, w]}``, where `layers` may
also name `pooled`, the vector [B, D] of the tile. `vit` and `swin` are DEO's networks, `conv` is a small network of
this package, `dynamicworld`, `galileo` and `presto` are published elsewhere, and `timm` is any model of timm. A factory
may return any other network, or a plain function from a batch to a map. A network that reads series (`presto`) has a
method `series` besides.
"""

from __future__ import annotations

import difflib
import functools
import json
import threading
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deo_cube.encoder.card import ModelCard, check_parameters
from deo_cube.encoder.networks.timm_import import find_pretrained, import_timm
from deo_cube.errors import ArgumentError, ArgumentTypeError, UnknownModelError

__all__ = [
    "FAMILIES",
    "FunctionNetwork",
    "Network",
    "TimmNetwork",
    "build_network",
    "seeded_network",
]

#: Family -> module and class. The class takes ``stems={name: channels}`` and the other entries of the architecture.
FAMILIES: dict[str, tuple[str, str]] = {
    "vit": ("deo_cube.encoder.networks.vit", "DeoViT"),
    "swin": ("deo_cube.encoder.networks.swin", "DeoSwin"),
    "conv": ("deo_cube.encoder.networks.conv", "DeoConv"),
    "spectral": ("deo_cube.encoder.networks.spectral", "DeoSpectral"),
    "dynamicworld": ("deo_cube.encoder.networks.dynamicworld", "DynamicWorld"),
    "galileo": ("deo_cube.encoder.networks.galileo", "Galileo"),
    "presto": ("deo_cube.encoder.networks.presto", "Presto"),
}

# Initialisation draws from torch's global generator, so two threads must not use it at the same time.
_seed_lock = threading.Lock()


class Network(Protocol):
    """The interface that an encoder calls."""

    def forward_features(self, x: Tensor, stem: str, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return maps [B, D, h, w] by layer, and `pooled` [B, D], of a normalised batch [B, C, H, W]."""
        ...


def build_network(card: ModelCard, *, pretrained: bool = False) -> nn.Module:
    """Return the network that the card's architecture describes, with its initial weights.

    Parameters
    ----------
    card : ModelCard
        Its sizes were checked when it was made.
    pretrained : bool
        Load the weights that timm names, for a model of timm whose card says `pretrained`.

    Raises
    ------
    UnknownModelError
        If this version does not build the family, or the family does not accept the sizes.
    WeightsNotFoundError, WeightsMismatchError
        If `pretrained`, see `timm_import.find_pretrained`.
    """
    sizes = {k: v for k, v in card.architecture.items() if k not in ("family", "seed")}
    family = card.architecture["family"]
    if family == "timm":
        return TimmNetwork.create(card, pretrained=pretrained)
    if family not in FAMILIES:
        raise UnknownModelError(
            f"card {card.name}: unknown architecture family {family!r}; this version builds {[*FAMILIES, 'timm']}. "
            "An encoder of another kind is registered with its factory: register_encoder(card, factory)"
        )
    module, name = FAMILIES[family]
    kind = getattr(import_module(module), name)
    try:
        network: nn.Module = kind(stems={s.name: len(s.bands) for s in card.stems}, **sizes)
    except (TypeError, ValueError) as error:
        raise UnknownModelError(
            f"card {card.name}: {family} does not take the architecture {sizes}: {error}"
        ) from error
    return network


def seeded_network(card: ModelCard, factory: Callable[[], Any] | None) -> nn.Module:
    """Return the network of a card without a weights file, the same in every process because it is seeded.

    Parameters
    ----------
    card : ModelCard
        Its architecture may name a `seed` (default 0).
    factory : callable, optional
        Makes the network; by default the card's family does.
    """
    with _seed_lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(card.architecture.get("seed", 0)))
        return build_network(card, pretrained=True) if factory is None else as_network(factory(), card)


def as_network(made: Any, card: ModelCard) -> nn.Module:
    """Return the result of a factory as a network: a timm model, a network, or a function of the batch."""
    if isinstance(made, nn.Module) and hasattr(made, "forward_intermediates"):
        return TimmNetwork(made, card)
    if isinstance(made, nn.Module) and hasattr(made, "forward_features"):
        return made
    if callable(made):
        return FunctionNetwork(made, card)
    raise ArgumentTypeError(
        f"the factory of {card.alias} returned a {type(made).__name__}; expected a timm model, a module with "
        "forward_features(x, stem, layers), or a function from a batch [B, C, H, W] to a map [B, D, h, w]"
    )


class TimmNetwork(nn.Module):
    """A timm model behind the interface of `Network`.

    Layers: `norm` (or `last`, for models without a final norm) is the final map; `block3` or `stage3` is the raw map of
    that block or stage. `pooled` is the input of the model's own head.
    """

    def __init__(self, model: nn.Module, card: ModelCard) -> None:
        super().__init__()
        if len(card.stems) != 1:
            raise UnknownModelError(f"card {card.name}: a timm model has one stem, the card names {len(card.stems)}")
        self.model = model

    @classmethod
    def create(cls, card: ModelCard, *, pretrained: bool = False) -> TimmNetwork:
        """Build the timm model that the card names in `model`, with its `pretrained` and `options` if present."""
        timm = import_timm()
        sizes = card.architecture
        name, options = str(sizes["model"]), dict(sizes.get("options", {}))
        if not timm.is_model(name):  # refuses hf-hub: and local-dir:, which name places
            near = ", ".join(difflib.get_close_matches(name, timm.list_models(pretrained=True), n=3))
            raise UnknownModelError(
                f"card {card.name}: timm has no model {name!r}" + (f"; near it: {near}" if near else "")
            )
        if card.folder or options:
            _check_size(name, len(card.bands), json.dumps(options, sort_keys=True), card.name)
        weights: dict[str, Any] = {}
        if pretrained and sizes.get("pretrained"):
            known = timm.get_pretrained_cfg(name)
            weights["pretrained_cfg_overlay"] = {"file": str(find_pretrained(card, known and known.hf_hub_id))}
        try:
            model = timm.create_model(
                name, pretrained=bool(weights), in_chans=len(card.bands), num_classes=0, **weights, **options
            )
        except (RuntimeError, KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:
            raise UnknownModelError(f"card {card.name}: timm does not build {dict(sizes)}: {error}") from error
        return cls(model, card)

    def forward_features(self, x: Tensor, stem: str, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return maps and pooled vector of a batch [B, C, H, W]; by default the final map and `pooled`."""
        model: Any = self.model
        out: dict[str, Tensor] = {}
        for name in ("norm", "pooled") if layers is None else layers:
            if name == "pooled":
                out[name] = model.forward_head(model.forward_features(x), pre_logits=True)
                continue
            final = name in ("norm", "last")
            digits = name.lstrip("abcdefghijklmnopqrstuvwxyz")
            if not final and not digits.isdigit():
                raise ArgumentError(f"layer={name!r}: expected 'norm', 'last', 'block<i>' or 'stage<i>'")
            index = -1 if final else int(digits) - name.startswith("stage")
            out[name] = model.forward_intermediates(
                x,
                indices=[index],
                norm=name == "norm",
                output_fmt="NCHW",
                intermediates_only=True,
                stop_early=not final,
            )[0]
        return out


@functools.lru_cache(maxsize=64)
def _check_size(model: str, channels: int, options: str, card: str) -> None:
    """Refuse a timm model with too many parameters, without allocating them."""
    try:
        with torch.device("meta"):
            network = import_timm().create_model(model, in_chans=channels, num_classes=0, **json.loads(options))
    except Exception:  # the same error is raised, and reported, when the model is built for real
        return
    check_parameters(card, sum(p.numel() for p in network.parameters()))


class FunctionNetwork(nn.Module):
    """A function from a batch [B, C, H, W] to a map [B, D, h, w], or to ``{layer: map}``, as a network."""

    def __init__(self, function: Callable[[Tensor], Any], card: ModelCard) -> None:
        super().__init__()
        self.function = function
        self.default = card.layer().name
        self.described = f"the network of card {card.alias!r}"

    def forward_features(self, x: Tensor, stem: str, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return maps by layer; `pooled` is the function's own, or the mean of the default layer over the map."""
        made = self._called(x)
        out = dict(made) if isinstance(made, Mapping) else {self.default: made}
        missing = (set(layers or ()) | (set() if "pooled" in out else {self.default})) - {"pooled", *out}
        if missing:
            raise ArgumentError(
                f"{self.described} returned the layers {[*map(str, out)]}; {sorted(missing)} are missing: register a "
                f"function that returns them, or one map, lambda: lambda x: network(x)[{next(iter(out), '')!r}]"
            )
        out = {name: self._checked(name, value, x) for name, value in out.items()}
        if "pooled" not in out:
            out["pooled"] = out[self.default].mean(dim=(2, 3))
        return out if layers is None else {name: out[name] for name in layers}

    def _called(self, x: Tensor) -> Any:
        try:
            return self.function(x)
        except RuntimeError as error:
            # Of a module torch speaks of weights, not of the card. A function of the user's raises its own errors.
            if not isinstance(self.function, nn.Module) or "memory" in str(error).lower():
                raise
            raise ArgumentError(
                f"{self.described} failed on a batch {tuple(x.shape)}, one channel per band of the card: {error}"
            ) from error

    def _checked(self, name: str, value: Any, x: Tensor) -> Tensor:
        """Return a map [B, D, h, w], or the vector `pooled` [B, D], as float32; refuse what is neither."""
        if not hasattr(value, "shape"):
            fields = [k for k in ("last_hidden_state", "logits") if hasattr(value, k)]
            part = f".{fields[0]}" if fields else "[0]"
            raise ArgumentError(
                f"{self.described} returned a {type(value).__name__}, expected one map [B, D, h, w] as a tensor: "
                f"register what takes it out, lambda: lambda x: network(x){part}"
            )
        map_ = torch.as_tensor(value, dtype=torch.float32, device=x.device)
        if map_.ndim != (2 if name == "pooled" else 4):
            advice = (
                "of tokens [B, N, D] make a map, without the class token, lambda: lambda x: "
                "network(x)[:, -h * w:].transpose(1, 2).reshape(len(x), D, h, w)"
                if map_.ndim == 3
                else "take the features before they are pooled"
            )
            raise ArgumentError(f"{self.described} returned {tuple(map_.shape)}, expected a map [B, D, h, w]: {advice}")
        return map_
