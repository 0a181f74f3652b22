"""Arguments of `embed` as two objects: those that decide the stored numbers, and those that do not.

`embed`, `plan`, `segment`, `classify` and the command line build them; `prepare` takes them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import xarray as xr
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from deo_cube import arguments
from deo_cube.constants import DTYPES, PRECISIONS, RUNTIMES
from deo_cube.embedding.tiles import Edge
from deo_cube.encoder.card import MAX_TILE, ModelCard
from deo_cube.errors import ArgumentError, ArgumentTypeError, MissingBandsError, TilePlanError
from deo_cube.options import Default

__all__ = [
    "BANDS",
    "BBOX",
    "Bands",
    "EmbedOptions",
    "INTEGER",
    "Mask",
    "Missing",
    "Model",
    "NUMBER",
    "NUMBER_OR_WORD",
    "Normalize",
    "OPTIONAL",
    "PATH",
    "RunOptions",
    "TEXT",
    "changed_options",
    "one_of",
    "dtype_name",
    "split_options",
]


# --- Parsers of command-line flags whose type is more than a text, a number or a choice ---
#
# They annotate the fields of option dataclasses, from which tyro makes the flags:
# ``Annotated[Bands | None, BANDS, arg(help=...)]``.


def _spec(
    metavar: str, parse: Callable[[list[str]], Any], *, nargs: Any = 1, choices: Collection[str] | None = None
) -> PrimitiveConstructorSpec[Any]:
    # Defaults are of other types than what is parsed (None, cards, arrays): tyro shows them and does not check them.
    return PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
        choices=None if choices is None else tuple(choices),
    )


def _number_or_word(texts: list[str]) -> float | str | None:
    if texts[0].strip().lower() == "none":
        return None
    try:
        return float(texts[0])
    except ValueError:
        return texts[0]


def _bands(texts: list[str]) -> dict[str, str] | list[str]:
    pairs = [text.partition("=") for text in texts]
    # A mixture of names and pairs stays a list, which the options refuse with a message that names the argument.
    return {band: variable for band, _, variable in pairs} if all(sign for _, sign, _ in pairs) else texts


#: ``B04=red B08=4``: a mapping; ``B04 B03 B02``: a list.
BANDS = _spec("BAND", _bands, nargs="*")
#: ``x0 y0 x1 y1``.
BBOX = _spec("X0 Y0 X1 Y1", lambda texts: tuple(float(text) for text in texts), nargs=4)
INTEGER = _spec("INT", lambda texts: int(texts[0]))
NUMBER = _spec("FLOAT", lambda texts: float(texts[0]))
#: A number, None for ``none``, or a text.
NUMBER_OR_WORD = _spec("NUMBER", _number_or_word)
#: What the help says instead of "(default: None)".
OPTIONAL = "(optional)"
PATH = _spec("PATH", lambda texts: Path(texts[0]))
TEXT = _spec("STR", lambda texts: texts[0])


def one_of(choices: Collection[str]) -> PrimitiveConstructorSpec[Any]:
    """Return the parser of one of several texts, whose default is shown as it is."""
    return _spec("{" + ",".join(choices) + "}", lambda texts: texts[0], choices=choices)


# --- options ---

Model = str | Path | ModelCard
Bands = Sequence[str] | Mapping[str, str]
Mask = xr.DataArray | str | bool
Missing = Literal["raise", "nearest", "mean"]
Normalize = str | Mapping[str, tuple[float, float]]
Anchor = Literal["grid", "array"]

#: Largest side of a block in pixels: ten bands of it are a terabyte.
MAX_BLOCK = 2**18
_UNITS = ("auto", "dn", "reflectance", "percent", "uint8_rgb")
_OF_CARD = "(default: the card's)"
_AUTOMATIC = "(default: automatic)"


# Options that several commands have, with their help.
Weights = Annotated[str | Path | None, TEXT, arg(help="weights file", help_behavior_hint=_AUTOMATIC)]
BandsOption = Annotated[
    Bands | None,
    BANDS,
    arg(help="B04=red B08=4 ...: band of the model, variable of the cube", help_behavior_hint="(default: by name)"),
]
Units = Annotated[str, one_of(_UNITS), arg(help="of the stored values")]
Offset = Annotated[
    str | float | Sequence[float], NUMBER_OR_WORD, arg(help="DN to add: auto, 0 or -1000", metavar="auto|DN")
]
Nodata = Annotated[
    str | float | None,
    NUMBER_OR_WORD,
    arg(help="stored value that means no measurement", metavar="auto|none|NUMBER"),
]


# Compared by identity: masks are arrays, whose == is another array.
@dataclass(frozen=True, kw_only=True, eq=False)
class EmbedOptions:
    """Options that decide the embeddings. `deo_cube.embed` documents each.

    `model`, `dtype`, `precision` and `runtime` may be None or a `Default`: the option of the session then applies.

    Raises
    ------
    ArgumentError, ArgumentTypeError, MissingBandsError, TilePlanError
        For a value that no cube and no model takes.
    """

    model: Annotated[Model | None, TEXT, arg(help="name of a model, or folder of a training run")] = Default("tiny")
    weights: Weights = None
    bands: BandsOption = None
    missing: Annotated[Missing, arg(help="for a band that the cube lacks")] = "raise"
    units: Units = "auto"
    offset: Offset = "auto"
    nodata: Nodata = "auto"
    mask: Annotated[
        Mask | None,
        TEXT,
        arg(
            help="variable that is True where a pixel must not count, or scl",
            help_behavior_hint="(default: SCL lowers valid)",
        ),
    ] = None
    normalize: Annotated[
        Normalize | None, TEXT, arg(help="normalization of the model, by name", help_behavior_hint=_OF_CARD)
    ] = None
    tile: Annotated[int | None, INTEGER, arg(help="tile, pixels", help_behavior_hint=_OF_CARD)] = None
    halo: Annotated[int | None, INTEGER, arg(help="context on each side, pixels", help_behavior_hint=_OF_CARD)] = None
    block: Annotated[
        int | None, INTEGER, arg(help="task and shard, pixels", help_behavior_hint="(default: about 1024)")
    ] = None
    layer: Annotated[str | None, TEXT, arg(help="layer of the model", help_behavior_hint=_OF_CARD)] = None
    anchor: Annotated[Anchor, arg(help="where tiles begin: CRS origin, or corner")] = "grid"
    edge: Annotated[Edge, arg(help="patches partly outside the cube")] = "pad"
    dtype: Annotated[str | None, one_of(DTYPES), arg(help="of the embeddings")] = Default("float16")
    precision: Annotated[str | None, one_of(PRECISIONS), arg(help="of the network's matrix products")] = Default(
        "float32"
    )
    runtime: Annotated[str | None, one_of(RUNTIMES), arg(help="library that runs the network")] = Default("torch")

    def __post_init__(self) -> None:
        if isinstance(self.bands, str) or not isinstance(self.bands, Sequence | Mapping | None):
            raise MissingBandsError(
                f"bands must be a list of bands, or a mapping of bands to variables; got {self.bands!r}"
            )
        if not all(isinstance(band, str) for band in self.bands or ()):
            raise MissingBandsError(
                "bands must be names of bands, such as ['B04', 'B03', 'B02'], or a mapping of them to variables, such "
                f"as {{'B04': 1}}; got {self.bands!r}"
            )
        if isinstance(self.bands, Sequence) and any("=" in str(band) for band in self.bands):
            raise ArgumentError(
                f"bands must be names (B04 B03 B02), or names and variables (B04=red B03=green); got {self.bands!r}"
            )
        for name, least, most in (("tile", 1, MAX_TILE), ("halo", 0, MAX_TILE // 2), ("block", 1, MAX_BLOCK)):
            if (size := getattr(self, name)) is not None:
                size = arguments.integer(name, size, minimum=least, maximum=most, error=TilePlanError)
                object.__setattr__(self, name, size)
        arguments.number_or("offset", self.offset, ("auto",), several=True)
        arguments.number_or("nodata", self.nodata, ("auto", None), finite=False)
        arguments.choice("anchor", self.anchor, ("grid", "array"), error=TilePlanError)
        if self.dtype is not None and not isinstance(self.dtype, Default):
            object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if self.precision is not None:
            arguments.choice("precision", self.precision, PRECISIONS)
        if self.runtime is not None:
            arguments.choice("runtime", self.runtime, RUNTIMES)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that decide how embeddings are computed and change no number. `deo_cube.embed` documents each.

    Raises
    ------
    ArgumentError
        For a batch size that is not a positive integer.
    """

    batch_size: Annotated[int | None, INTEGER, arg(help="tiles at once", help_behavior_hint=_OF_CARD)] = None
    device: Annotated[str | None, TEXT, arg(help="cpu, cuda, cuda:1", help_behavior_hint=_AUTOMATIC)] = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            size = arguments.integer("batch_size", self.batch_size, error=ArgumentError)
            object.__setattr__(self, "batch_size", size)


def changed_options(*options: EmbedOptions | RunOptions) -> dict[str, Any]:
    """Return the options that are not their defaults, as keyword arguments of `embed`."""
    changed: dict[str, Any] = {}
    for group in options:
        for field in fields(EmbedOptions if isinstance(group, EmbedOptions) else RunOptions):
            value, default = getattr(group, field.name), field.default
            if isinstance(default, Default):
                same = value is None or isinstance(value, Default)
            else:  # masks are compared by identity only: their == is an array
                same = value is default or (isinstance(value, str | int | float) and value == default)
            if not same:
                changed[field.name] = value
    return changed


def split_options(options: Mapping[str, Any]) -> tuple[EmbedOptions, RunOptions]:
    """Sort keyword arguments of `embed` into the two objects.

    Raises
    ------
    ArgumentTypeError
        If `embed` has no argument of that name.
    """
    run_names = {f.name for f in fields(RunOptions)}
    names = {f.name for f in fields(EmbedOptions)} | run_names
    for name in options:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f": did you mean {close[0]}=?" if close else f". Options are {', '.join(sorted(names))}"
            raise ArgumentTypeError(f"{name} is not an option of embed{hint}")
    run = {k: v for k, v in options.items() if k in run_names}
    return EmbedOptions(**{k: v for k, v in options.items() if k not in run_names}), RunOptions(**run)


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of embeddings: `float32` for ``"float32"``, ``np.float32`` and ``"f4"`` alike.

    Raises
    ------
    ArgumentError
        If embeddings do not have that dtype.
    """
    try:
        name = str(np.dtype(dtype).name)
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ArgumentError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    return name
