"""Names, codes and colours of categories, and how they are written on a map (CF flags)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deo_cube.errors import ArgumentError, LabelsError

__all__ = ["NO_CLASS", "Classes"]

NO_CLASS = 255
"""What a categorical map (uint8) holds where there is no class; its `_FillValue`."""

# Okabe and Ito's palette, told apart by the colour-blind too, then lighter and darker companions.
_PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#666666",
    "#003f63", "#8a5f00", "#005f45", "#7d4164", "#a6d8f5", "#f2a86b", "#8fe0c4", "#c2c2c2",
)  # fmt: skip
_APART = 40
"""Distance in RGB below which two colours are taken for one another."""
# What people expect of a land-cover map, by how a word of the name begins: rice is no ice.
_KNOWN = {
    "water": "#1f78b4",
    "tree": "#1b7837",
    "forest": "#1b7837",
    "crop": "#e6ab02",
    "built": "#c51b3a",
    "bare": "#a6761d",
    "snow": "#e6f5ff",
    "ice": "#e6f5ff",
    "grass": "#a6d854",
    "rangeland": "#d9c58b",
    "flooded": "#4eb3a1",
    "cloud": "#d9d9d9",
}


@dataclass(frozen=True)
class Classes:
    """The categories of a map, in order.

    Parameters
    ----------
    codes : tuple of int
        Values in the map, 0 to 254, rising.
    names : tuple of str
        One a code.
    colors : tuple of str
        ``#rrggbb``, one a code.
    """

    codes: tuple[int, ...]
    names: tuple[str, ...]
    colors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.colors:
            object.__setattr__(self, "colors", _told_apart(self.names, [None] * len(self.names)))
        if not len(self.codes) == len(self.names) == len(self.colors):
            raise ArgumentError(
                f"{len(self.codes)} codes, {len(self.names)} names, {len(self.colors)} colours of classes"
            )
        if list(self.codes) != sorted(set(self.codes)) or not all(0 <= c < NO_CLASS for c in self.codes):
            raise ArgumentError(
                f"class codes must be different integers from 0 to {NO_CLASS - 1}, rising: {self.codes}"
            )
        bad = [c for c in self.colors if not isinstance(c, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", c)]
        if bad:
            raise ArgumentError(f"colours of classes are written #rrggbb, got {bad}")

    @classmethod
    def of(
        cls,
        values: Iterable[Any],
        *,
        names: Mapping[int, str] | Sequence[str] | None = None,
        colors: Mapping[Any, str] | Sequence[str] | None = None,
    ) -> Classes:
        """Classes for label `values`, coded as `codes_of` says.

        `names` gives integers names: by code, or in order where there is one for each; `colors` colours by name, by
        label, by code, or in order.

        Raises
        ------
        LabelsError, ArgumentError
            For labels that are no classes, and names or colours that do not fit them.
        """
        coded = codes_of(values)
        if names is not None and not isinstance(names, Mapping):
            if isinstance(names, str) or len(names) != len(coded):
                raise ArgumentError(
                    f"{len(names)} names for the {len(coded)} classes {list(coded)[:12]}: say which is whose, "
                    "names={code: name}"
                )
            names = dict(zip(coded, names, strict=True))
        codes = tuple(coded.values())
        titles = tuple(str((names or {}).get(v, v)) for v in coded)
        plain = cls(codes, titles)
        return plain.coloured(colors, {c: v for v, c in coded.items()}) if colors else plain

    def coloured(self, colors: Mapping[Any, str] | Sequence[str], labels: Mapping[int, Any] | None = None) -> Classes:
        """The same with `colors`: in order, or by name, by label (`labels` says that of each code) or by code.

        Those that are not among them get one that is told apart from them.
        """
        if not isinstance(colors, Mapping):
            if len(colors) != len(self.codes):
                raise ArgumentError(f"colors: {len(colors)} for the {len(self.codes)} classes {list(self.names)[:12]}")
            return Classes(self.codes, self.names, tuple(colors))
        given = [
            next((colors[k] for k in (n, (labels or {}).get(c, c), c) if k in colors), None)
            for c, n in zip(self.codes, self.names, strict=True)
        ]
        return Classes(self.codes, self.names, _told_apart(self.names, given))

    def __len__(self) -> int:
        return len(self.codes)

    def only(self, kept: Sequence[int]) -> Classes:
        """Those at the positions `kept`."""
        return Classes(
            tuple(self.codes[i] for i in kept), tuple(self.names[i] for i in kept), tuple(self.colors[i] for i in kept)
        )

    def code_of(self, value: Any) -> int:
        """Code of a label: a name, or a code as it is."""
        text = str(value)
        if text in self.names:
            return self.codes[self.names.index(text)]
        if not isinstance(value, str) and float(value).is_integer() and int(value) in self.codes:
            return int(value)
        raise ArgumentError(f"no class {value!r}: the classes are {dict(zip(self.codes, self.names, strict=True))}")

    def attrs(self) -> dict[str, Any]:
        """CF attributes of a map of these classes: `flag_values`, `flag_meanings`, and colours beside them."""
        return {
            "flag_values": np.array(self.codes, dtype="uint8"),
            "flag_meanings": " ".join(_words(self.names)),
            "flag_colors": " ".join(self.colors),
            "_FillValue": np.uint8(NO_CLASS),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {"codes": list(self.codes), "names": list(self.names), "colors": list(self.colors)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Classes:
        """Read what `to_dict` wrote."""
        return cls(
            tuple(int(c) for c in values["codes"]),
            tuple(str(n) for n in values["names"]),
            tuple(str(c) for c in values["colors"]),
        )


def codes_of(values: Iterable[Any]) -> dict[Any, int]:
    """Code of each label, rising: integers from 0 to 254 keep their value, other labels are numbered in their order.

    Raises
    ------
    LabelsError
        For fractions, which are a measurement, and for more labels than there are codes.
    """
    found = {v.item() if isinstance(v, np.generic) else v for v in values}
    broken = sorted(v for v in found if isinstance(v, float) and not v.is_integer())
    if broken:
        raise LabelsError(f"labels are classes, found fractions {broken[:5]}: cut a measurement into classes first")
    ordered = sorted({int(v) if isinstance(v, float | bool) else v for v in found}, key=lambda v: (str(type(v)), v))
    if len(ordered) > NO_CLASS:
        raise LabelsError(
            f"{len(ordered)} different labels, {ordered[0]!r} to {ordered[-1]!r}: a map holds {NO_CLASS} classes. "
            "Is this the column of the classes?"
        )
    kept = all(isinstance(v, int) and 0 <= v < NO_CLASS for v in ordered)
    return {v: v if kept else i for i, v in enumerate(ordered)}


def _words(names: Sequence[str]) -> list[str]:
    """One word a name, in letters of any script; a word that two names would share is numbered."""
    out: list[str] = []
    for name in names:
        word = re.sub(r"[^\w.+@-]+", "_", name).strip("_") or "_"
        n = 1
        while (word if n == 1 else f"{word}_{n}") in out:
            n += 1
        out.append(word if n == 1 else f"{word}_{n}")
    return out


def _told_apart(names: Sequence[str], given: Sequence[str | None]) -> tuple[str, ...]:
    """A colour a class: the one given, what people expect of the name, else of the palette; none near another's."""
    out = list(given)
    for i, name in enumerate(names):
        expected = next((c for word, c in _KNOWN.items() if re.search(rf"(?<![a-z]){word}", name.lower())), None)
        if out[i] is None and expected is not None and not _taken(expected, out):
            out[i] = expected
    for i in range(len(out)):
        if out[i] is None:
            out[i] = next((c for c in _PALETTE if not _taken(c, out)), _PALETTE[i % len(_PALETTE)])
    return tuple(c for c in out if c is not None)


def _taken(color: str, others: Sequence[str | None]) -> bool:
    """Whether one of the others looks much like it."""
    return any(np.linalg.norm(np.subtract(_rgb(color), _rgb(o))) < _APART for o in others if o is not None)


def _rgb(color: str) -> tuple[int, int, int]:
    try:
        r, g, b = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    except (ValueError, TypeError):
        return (-999, -999, -999)  # said by the constructor, which checks how colours are written
    return r, g, b
