"""`ds.deo.match()` and the repr of `ds.deo`: the bands of a cube that a model reads, and which models fit it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from deo_cube import arguments
from deo_cube.constants import PREFIX, Attribute
from deo_cube.cube import georeference
from deo_cube.cube.bands import BandMatch, match_bands
from deo_cube.cube.eopf import cube_of
from deo_cube.cube.times import read_times
from deo_cube.embedding.options import EmbedOptions
from deo_cube.embedding.prepare import Cube, Prepared, prepare
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import card, list_models
from deo_cube.errors import DeoCubeError
from deo_cube.options import Default
from deo_cube.options import resolve as option

__all__ = ["CELL", "Summary", "describe", "html_table", "match", "summarise", "summarise_embeddings"]

#: Left-aligned without stripes, whatever style a notebook gives its tables.
CELL = "text-align:left;vertical-align:top;padding:.2em .8em .2em 0;background:none;border:none"


def match(
    cube: Cube,
    model: str | Path | ModelCard = Default("tiny"),
    *,
    bands: Sequence[str] | Mapping[str, str] | None = None,
    missing: Literal["raise", "nearest", "mean"] = "raise",
    wavelength: bool = False,
) -> BandMatch:
    """Match a cube's bands to a model's, by name, alias, STAC common name and, if asked, wavelength.

    Needs no weights. `bands` and `missing` are as in `embed`.

    Raises
    ------
    MissingBandsError
        If a band is missing, or matched twice.
    """
    cube = cube_of(cube)
    wavelength = arguments.boolean("wavelength", wavelength)
    if bands is not None and not isinstance(bands, Mapping):
        bands = arguments.sequence("bands", bands, "bands, or a mapping of bands to variables")
    chosen = option("model", model)
    model_card = chosen if isinstance(chosen, ModelCard) else card(chosen)
    variables = dict(bands) if isinstance(bands, Mapping) else None
    return match_bands(
        cube,
        model_card.bands if bands is None or variables is not None else tuple(bands),
        model=model_card.alias,
        given=variables,
        missing=missing,
        wavelength=wavelength,
        alternatives=[stem.bands for stem in model_card.stems],
    )


@dataclass(frozen=True)
class Summary:
    """Facts about a cube, and for each model how it fits, or why not."""

    facts: tuple[tuple[str, str], ...]
    models: tuple[tuple[str, bool, str], ...] = ()
    """Alias, True if it fits, and how or why not."""
    title: str = "deo_cube view of a cube"

    def __repr__(self) -> str:
        lines = [f"<{self.title}>"] + [f"  {k + ':':<8}{v}" for k, v in self.facts]
        lines += ["  models:"] if self.models else []
        indent = "\n" + " " * 9
        lines += [
            f"    {'fits ' if ok else 'no   '}{alias}: {indent.join(why.splitlines())}"
            for alias, ok, why in self.models
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def row(head: str, text: str, colour: str = "inherit") -> str:
            lines = "<br>".join(escape(line) for line in text.splitlines())
            return (
                f'<tr><th style="{CELL};color:{colour};white-space:nowrap">{escape(head)}</th>'
                f'<td style="{CELL}">{lines}</td></tr>'
            )

        rows = "".join(row(k, v) for k, v in self.facts)
        rows += "".join(
            # Green and red that are readable on a white page and on a dark one.
            row(f"{'✓' if ok else '✗'} {alias}", why, "#2a9d5c" if ok else "#d1495b")
            for alias, ok, why in self.models
        )
        return html_table(self.title, rows)


def html_table(title: str, rows: str) -> str:
    """Return a table in the style of this package's reprs."""
    return (
        f'<div style="font-weight:600;margin:.3em 0">{escape(title)}</div>'
        f'<table style="border:none;border-collapse:collapse;margin:0">{rows}</table>'
    )


def describe(obj: Any) -> Summary:
    """Describe a cube or embeddings from names and metadata. Reads no pixel on Dask, and never raises.

    A repr that raises hides the object, and in a notebook the rest of the cell.
    """
    try:
        obj = cube_of(obj) if isinstance(obj, xr.DataTree) else obj
        array = obj["embeddings"] if isinstance(obj, xr.Dataset) and "embeddings" in obj else obj
        return summarise_embeddings(array) if "embedding" in array.dims else summarise(obj)
    except Exception as error:
        return Summary((("not read", _reason(error)),))


def _reason(error: Exception) -> str:
    try:
        return str(error) if isinstance(error, DeoCubeError) else f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def summarise(cube: Cube) -> Summary:
    """Describe a cube, and try each model on it. Reads no pixel of a cube on Dask."""
    facts = []
    try:
        dims = georeference.dims(cube)
        sizes = ", ".join(f"{d} {cube.sizes[d]}" for d in (dims.time, dims.band, dims.y, dims.x) if d)
        facts.append(("size", sizes))
        facts += [("dates", dates)] if (dates := _dates(cube, dims.time)) else []
        box = georeference.geobox(cube)
        dx, dy = georeference.ground_resolution(box)
        facts.append(("CRS", f"EPSG:{box.crs.epsg}" if box.crs.epsg else str(box.crs.proj.name)))
        facts.append(("pixel", f"{dx:.3g} m x {dy:.3g} m on the ground"))
    except Exception as error:
        facts.append(("grid", _reason(error)))
    models = []
    names = list_models()
    for alias, weights in zip(names["alias"], names["state"], strict=True):
        try:
            model = card(alias)
            p = prepare(cube, EmbedOptions(model=model, dtype="float32"), locate=False)
            if not any(k == "units" for k, _ in facts):
                facts.append(("units", "; ".join(p.radiometry.reasons)))
            models.append((alias, True, _fits(p, model, weights)))
        except Exception as error:
            models.append((alias, False, _reason(error)))
    return Summary(tuple(facts), _merge_equal(models))


def _fits(p: Prepared, model: ModelCard, weights: str) -> str:
    side = model.patch * model.gsd
    how = ", ".join(b if b == v else f"{b} from {v!r}" for b, v in zip(p.match.bands, p.match.variables, strict=True))
    clouds = f"clouds from {p.match.scl!r}" if p.match.scl else "no cloud mask (SCL)"
    state = f"; {weights}" if model.trained else "; UNTRAINED weights"
    return f"one {model.dim}-vector for {side:g} x {side:g} m{state}\nreads {how}; {clouds}"


def _merge_equal(models: list[tuple[str, bool, str]]) -> tuple[tuple[str, bool, str], ...]:
    """Join models with the same text but for their names: several models usually lack the same band."""
    aliases_of: dict[tuple[bool, str], list[str]] = {}
    for alias, ok, why in models:
        # At the start of a line, also of a numbered list of problems.
        why = why if ok else re.sub(rf"(?m)^((?:\d+\. |   )?){re.escape(alias)} ", r"\1the model ", why)
        aliases_of.setdefault((ok, why), []).append(alias)
    return tuple((", ".join(aliases), ok, why) for (ok, why), aliases in aliases_of.items())


def _dates(cube: Cube, time: str | None) -> str:
    if time is None or time not in cube.coords or not cube.sizes[time]:
        return ""
    labels = read_times(cube[time].variable).values
    if labels is None:
        return ""
    values = [str(t)[:10] for t in (labels[0], labels[-1])]
    return values[0] if values[0] == values[1] else f"{values[0]} to {values[1]}"


def summarise_embeddings(emb: xr.DataArray) -> Summary:
    """Describe embeddings from their attributes."""

    def attribute(name: str) -> str:
        return str(emb.attrs.get(PREFIX + name, "unknown"))

    plan = json.loads(emb.attrs.get(Attribute.PLAN, "{}"))
    facts = [
        ("size", ", ".join(f"{d} {n}" for d, n in emb.sizes.items()) + f"; {emb.dtype}"),
        ("model", f"{attribute('model')}, layer {attribute('layer')}, weights {attribute('weights_status')}"),
    ]
    if plan:
        facts.append(("tiles", f"{plan['tile']} px, halo {plan['halo']} px, one vector per {plan['patch']} px"))
    if Attribute.RADIOMETRY in emb.attrs:
        facts.append(("units", "; ".join(json.loads(attribute("radiometry")).get("why", []))))
    return Summary(tuple(facts), title="deo_cube view of embeddings")
