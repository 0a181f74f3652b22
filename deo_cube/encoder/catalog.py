"""The models known by name: bundled cards, folders of training runs, plug-ins, and what this session registered.

Needs no torch.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.locate import local_weights, weights_state
from deo_cube.errors import ArgumentError, ArgumentTypeError, UnknownModelError
from deo_cube.paths import local_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CARDS", "Entry", "bundled_cards", "card", "find", "known_cards", "list_models", "register_encoder"]

#: Folder of the bundled cards and the weights beside them.
CARDS = Path(__file__).parent / "cards"
GROUP = "deo_cube.encoders"

Factory = Callable[[], Any]


@dataclass(frozen=True)
class Entry:
    """A card, and what makes its network where its family does not."""

    card: ModelCard
    factory: Factory | None = None


_registered: dict[str, Entry] = {}


@functools.lru_cache(maxsize=1)
def bundled_cards() -> dict[str, ModelCard]:
    """Cards that come with the package, by alias."""
    found = (ModelCard.load(path) for path in sorted(CARDS.glob("*.json")))
    return {c.alias: c for c in found}


@functools.lru_cache(maxsize=1)
def _plugins() -> dict[str, Entry]:
    """Encoders of installed packages: each entry point is a function of no arguments that returns card and factory."""
    found: dict[str, Entry] = {}
    for point in entry_points(group=GROUP):
        try:
            made = point.load()()
            entry = Entry(made) if isinstance(made, ModelCard) else Entry(*made)
        except Exception as error:  # one broken plug-in must not take the others away
            warnings.warn(
                f"the encoder plug-in {point.name!r} ({point.value}) failed: {type(error).__name__}: {error}. "
                "It must be a function without arguments that returns a ModelCard, or (ModelCard, factory)",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        found[entry.card.alias] = entry
    return found


def known_cards() -> dict[str, Entry]:
    """Everything that has a name, by alias: what comes with the package goes before plug-ins."""
    bundled = {alias: Entry(c) for alias, c in bundled_cards().items()}
    return {**_plugins(), **_registered, **bundled}


def register_encoder(card: ModelCard, factory: Factory | None = None) -> ModelCard:
    """Make an encoder known by its card's alias, for this session.

    Parameters
    ----------
    card : ModelCard
        What it is; `describe` and `describe_timm` write one in a line.
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
        If `factory` is no function, or the network itself.
    """
    if not isinstance(card, ModelCard):
        raise ArgumentTypeError(f"card must be a ModelCard, made by describe(...) or describe_timm(...); got {card!r}")
    network = hasattr(factory, "forward") and not isinstance(factory, type)
    if factory is not None and (network or not callable(factory)):
        raise ArgumentTypeError(
            f"factory is a function without arguments that returns the network, got {type(factory).__name__}: "
            "register_encoder(card, lambda: network)"
        )
    for bundled in bundled_cards().values():
        if {card.alias, card.name} & {bundled.alias, bundled.name}:
            raise ArgumentError(f"{card.alias!r} ({card.name}) is the name of a bundled model: choose another")
    _registered[card.alias] = Entry(card, factory)
    return card


def find(model: str | Path | ModelCard) -> Entry:
    """The entry of a model: an alias, a full name, a folder with `card.json`, a card file, or a card itself.

    Raises
    ------
    UnknownModelError
        With the nearest names.
    """
    if isinstance(model, ModelCard):
        known = known_cards().get(model.alias)
        return known if known is not None and known.card == model else Entry(model)
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
            raise UnknownModelError(f"there is no {file}" + (f"; the folder holds {inside}" if path.is_dir() else ""))
        try:
            return Entry(ModelCard.load(file))
        except ValueError as error:
            raise UnknownModelError(f"{file} is no model card: {error}") from error
    names = [n for e in known_by_alias.values() for n in (e.card.alias, e.card.name)]
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.4)
    raise UnknownModelError(
        f"no model goes by the name {text!r}"
        + (f"; near it: {', '.join(near)}" if near else "")
        + f". Known are {', '.join(known_by_alias)}; the folder of a training run (with card.json) will do as well"
    )


def card(model: str | Path | ModelCard) -> ModelCard:
    """The card of a model, by alias, full name, or folder.

    Raises
    ------
    UnknownModelError
        With the nearest names.
    """
    return find(model).card


def list_models() -> pd.DataFrame:
    """Every model known by name, one a row.

    Returns
    -------
    DataFrame
        alias, name, bands (number of each stem's, by stem), patch (output stride, px), dim, tile, halo (px), gsd (m),
        weights (`published`, `trained`, `untrained`), licence of the weights, whether they are on this machine
        (`offline`), and `state`: here, can be fetched, or absent, and whether hash and reference vector prove them.
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
