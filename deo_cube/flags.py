"""Parsers of command-line flags whose type is more than a text, a number or a choice.

They annotate the fields of option dataclasses, from which tyro makes the flags:
``Annotated[Bands | None, BANDS, arg(help=...)]``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

__all__ = ["BANDS", "BBOX", "INTEGER", "NUMBER", "NUMBER_OR_WORD", "OPTIONAL", "PATH", "TEXT", "choice"]


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


def choice(choices: Collection[str]) -> PrimitiveConstructorSpec[Any]:
    """Return the parser of one of several texts, whose default is shown as it is."""
    return _spec("{" + ",".join(choices) + "}", lambda texts: texts[0], choices=choices)
