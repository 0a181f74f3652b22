"""Names, codes and colours of classes, and their CF flags on a map."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deo_cube.errors import ArgumentError, LabelsError

__all__ = ["NO_CLASS", "Classes", "codes_of"]

NO_CLASS = 255
"""Value of a class map (uint8) where there is no class; its `_FillValue`."""

# Okabe and Ito's palette, which colour-blind readers can tell apart, then lighter and darker companions.
_PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#666666",
    "#003f63", "#8a5f00", "#005f45", "#7d4164", "#a6d8f5", "#f2a86b", "#8fe0c4", "#c2c2c2",
)  # fmt: skip
_MIN_DISTANCE = 40
"""Distance in RGB below which two colours are taken for one another."""
# Usual colours of land cover, by the beginning of a word of the name: "rice" does not match "ice".
_USUAL_COLORS = {
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
    """The classes of a map, in order.

    Parameters
    ----------
    codes : tuple of int
        Values in the map, 0 to 254, increasing.
    names : tuple of str
        One name per code.
    colors : tuple of str
        One colour per code, ``#rrggbb``. Default: usual colours of land cover, and colours that differ from each other.

    Raises
    ------
    ArgumentError
        If the three differ in length, codes repeat or are out of range, or a colour is written otherwise.
    """

    codes: tuple[int, ...]
    names: tuple[str, ...]
    colors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.colors:
            object.__setattr__(self, "colors", _distinct_colors(self.names, [None] * len(self.names)))
        if not len(self.codes) == len(self.names) == len(self.colors):
            raise ArgumentError(
                f"codes, names and colors of classes must be equally many, got {len(self.codes)} codes, "
                f"{len(self.names)} names, {len(self.colors)} colors"
            )
        if list(self.codes) != sorted(set(self.codes)) or not all(0 <= c < NO_CLASS for c in self.codes):
            raise ArgumentError(
                f"codes of classes must be different integers from 0 to {NO_CLASS - 1}, increasing, got {self.codes}"
            )
        bad_colors = [c for c in self.colors if not isinstance(c, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", c)]
        if bad_colors:
            raise ArgumentError(f"colors of classes must be written #rrggbb, got {bad_colors}")

    @classmethod
    def of(
        cls,
        values: Iterable[Any],
        *,
        names: Mapping[int, str] | Sequence[str] | None = None,
        colors: Mapping[Any, str] | Sequence[str] | None = None,
    ) -> Classes:
        """Return the classes of label values, with the codes of `codes_of`.

        Parameters
        ----------
        values : iterable
            Labels: integers or text.
        names : mapping or sequence, optional
            Names of integer labels: by code, or one per class in order.
        colors : mapping or sequence, optional
            Colours by name, label or code, or one per class in order.

        Raises
        ------
        LabelsError, ArgumentError
            For values that are not classes, and names or colours that do not fit them.
        """
        coded = codes_of(values)
        if names is not None and not isinstance(names, Mapping):
            if isinstance(names, str) or len(names) != len(coded):
                raise ArgumentError(
                    f"names must be one per class, got {len(names)} for the {len(coded)} classes {list(coded)[:12]}: "
                    "pass names={code: name}"
                )
            names = dict(zip(coded, names, strict=True))
        titles = tuple(str((names or {}).get(v, v)) for v in coded)
        classes = cls(tuple(coded.values()), titles)
        return classes.coloured(colors, {c: v for v, c in coded.items()}) if colors else classes

    def coloured(self, colors: Mapping[Any, str] | Sequence[str], labels: Mapping[int, Any] | None = None) -> Classes:
        """Return the classes with other colours.

        Parameters
        ----------
        colors : mapping or sequence
            One per class in order, or by name, label or code. Classes that a mapping lacks get colours that differ
            from its own.
        labels : mapping, optional
            Label of each code.
        """
        if not isinstance(colors, Mapping):
            if len(colors) != len(self.codes):
                raise ArgumentError(
                    f"colors must be one per class, got {len(colors)} for the {len(self.codes)} classes "
                    f"{list(self.names)[:12]}"
                )
            return Classes(self.codes, self.names, tuple(colors))
        chosen = [
            next((colors[k] for k in (n, (labels or {}).get(c, c), c) if k in colors), None)
            for c, n in zip(self.codes, self.names, strict=True)
        ]
        return Classes(self.codes, self.names, _distinct_colors(self.names, chosen))

    def __len__(self) -> int:
        return len(self.codes)

    def only(self, positions: Sequence[int]) -> Classes:
        """Return the classes at `positions`."""
        return Classes(
            tuple(self.codes[i] for i in positions),
            tuple(self.names[i] for i in positions),
            tuple(self.colors[i] for i in positions),
        )

    def code_of(self, value: Any) -> int:
        """Return the code of a label: of a name, or of a code itself."""
        text = str(value)
        if text in self.names:
            return self.codes[self.names.index(text)]
        if not isinstance(value, str) and float(value).is_integer() and int(value) in self.codes:
            return int(value)
        raise ArgumentError(f"no class {value!r}: the classes are {dict(zip(self.codes, self.names, strict=True))}")

    def attrs(self) -> dict[str, Any]:
        """Return the CF attributes of a map of these classes: flag values, meanings, and colours beside them."""
        return {
            "flag_values": np.array(self.codes, dtype="uint8"),
            "flag_meanings": " ".join(_words(self.names)),
            "flag_colors": " ".join(self.colors),
            "_FillValue": np.uint8(NO_CLASS),
        }

    @classmethod
    def from_attrs(cls, attrs: Mapping[Any, Any]) -> Classes:
        """Return the classes that `attrs` wrote."""
        codes = tuple(int(v) for v in np.atleast_1d(attrs["flag_values"]))
        return cls(codes, tuple(str(attrs["flag_meanings"]).split()), tuple(str(attrs["flag_colors"]).split()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, for JSON."""
        return {"codes": list(self.codes), "names": list(self.names), "colors": list(self.colors)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Classes:
        """Return the classes that `to_dict` wrote."""
        return cls(
            tuple(int(c) for c in values["codes"]),
            tuple(str(n) for n in values["names"]),
            tuple(str(c) for c in values["colors"]),
        )

    def legend_html(self, notes: Mapping[str, str] | None = None) -> str:
        """Return a legend in HTML: a swatch, code and name per class, and a note by name where there is one."""
        rows = "".join(
            f'<tr><td style="background:{color};width:1.2em"></td><td>{code}</td>'
            f"<td>{html.escape(name)}</td><td>{html.escape((notes or {}).get(name, ''))}</td></tr>"
            for code, name, color in zip(self.codes, self.names, self.colors, strict=True)
        )
        return f"<table>{rows}</table>"

    def _repr_html_(self) -> str:
        return self.legend_html()


def codes_of(values: Iterable[Any]) -> dict[Any, int]:
    """Return the code of each label, increasing.

    Integers from 0 to 254 keep their value. If any label is something else, all are numbered in their order.

    Raises
    ------
    LabelsError
        For fractions, which are a measurement, and for more labels than there are codes.
    """
    labels = {v.item() if isinstance(v, np.generic) else v for v in values}
    fractions = sorted(v for v in labels if isinstance(v, float) and not v.is_integer())
    if fractions:
        raise LabelsError(
            f"labels must be classes, found fractions {fractions[:5]}: fit a measurement by regression, "
            "fit_head('ridge', emb, targets) or fit_head('forest', emb, targets), or divide it into classes"
        )
    ordered = sorted({int(v) if isinstance(v, float | bool) else v for v in labels}, key=lambda v: (str(type(v)), v))
    if len(ordered) > NO_CLASS:
        raise LabelsError(
            f"labels must be of at most {NO_CLASS} classes, found {len(ordered)} different labels, {ordered[0]!r} to "
            f"{ordered[-1]!r}: pass the column of the classes, column="
        )
    are_codes = all(isinstance(v, int) and 0 <= v < NO_CLASS for v in ordered)
    return {v: v if are_codes else i for i, v in enumerate(ordered)}


def _words(names: Sequence[str]) -> list[str]:
    """Return one word per name, in letters of any script; a word that two names would share is numbered."""
    words: list[str] = []
    for name in names:
        word = re.sub(r"[^\w.+@-]+", "_", name).strip("_") or "_"
        n = 1
        while (word if n == 1 else f"{word}_{n}") in words:
            n += 1
        words.append(word if n == 1 else f"{word}_{n}")
    return words


def _distinct_colors(names: Sequence[str], chosen: Sequence[str | None]) -> tuple[str, ...]:
    """Return a colour per class: the chosen one, else the usual one of its name, else one of the palette.

    Usual colours and those of the palette are taken only where no other class has a similar one.
    """
    colors = list(chosen)
    for i, name in enumerate(names):
        usual = next((c for word, c in _USUAL_COLORS.items() if re.search(rf"(?<![a-z]){word}", name.lower())), None)
        if colors[i] is None and usual is not None and not _is_taken(usual, colors):
            colors[i] = usual
    for i in range(len(colors)):
        if colors[i] is None:
            colors[i] = next((c for c in _PALETTE if not _is_taken(c, colors)), _PALETTE[i % len(_PALETTE)])
    return tuple(c for c in colors if c is not None)


def _is_taken(color: str, others: Sequence[str | None]) -> bool:
    distances = (np.linalg.norm(np.subtract(_rgb(color), _rgb(o))) for o in others if o is not None)
    return any(d < _MIN_DISTANCE for d in distances)


def _rgb(color: str) -> tuple[int, int, int]:
    try:
        r, g, b = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    except (ValueError, TypeError):
        return (-999, -999, -999)  # the constructor reports colours that are written otherwise
    return r, g, b
