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
from deo_cube.cube.categories import Categories, own_classes, read_categories
from deo_cube.cube.esa import opened_cube
from deo_cube.cube.times import read_times
from deo_cube.embedding.options import EmbedOptions
from deo_cube.embedding.prepare import Cube, Prepared, prepare
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import card, list_models
from deo_cube.errors import DeoCubeError, remedy
from deo_cube.notebook import CELL, html_table
from deo_cube.options import Default, option

__all__ = ["Summary", "describe_facts", "match", "summarise", "summarise_embeddings", "summarise_map"]

#: Names of the maps that verbs return, beside those of classes.
MAPS = ("similarity", "distance", "change", "probability", "probabilities", "group", "rgb")


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
    cube = opened_cube(cube)
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
    """Name and value of each."""
    models: tuple[tuple[str, bool, str], ...] = ()
    """Alias, True if it fits, and how or why not."""
    title: str = "deo_cube view of a cube"
    classes: Categories | None = None
    """Classes of a map, with their colours."""

    def __repr__(self) -> str:
        width = max([8, *(len(k) + 2 for k, _ in self.facts)])
        lines = [f"<{self.title}>"]
        lines += [f"  {k + ':':<{width}}{v}".replace("\n", "\n" + " " * (width + 2)) for k, v in self.facts]
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
        if self.classes is not None:
            colors = self.classes.colors or ("inherit",) * len(self.classes.codes)
            rows += "".join(
                f'<tr><th style="{CELL}"><span style="background:{color};padding:0 .6em">&nbsp;</span> {code}</th>'
                f'<td style="{CELL}">{escape(name)}</td></tr>'
                for code, name, color in zip(self.classes.codes, self.classes.names, colors, strict=True)
            )
        return html_table(self.title, rows)


def describe_facts(obj: Any) -> Summary:
    """Describe a cube or embeddings from names and metadata. Reads no pixel on Dask, and never raises.

    A repr that raises hides the object, and in a notebook the rest of the cell.
    """
    try:
        obj = opened_cube(obj) if isinstance(obj, xr.DataTree) else obj
        array = obj["embeddings"] if isinstance(obj, xr.Dataset) and "embeddings" in obj else obj
        array = own_classes(array) if isinstance(array, xr.DataArray) else array
        if "embedding" in array.dims:
            return summarise_embeddings(array)
        return summarise_map(array) if _is_map(array) else summarise(obj)
    except Exception as error:
        return Summary((("not read", _reason(error)),))


def _reason(error: Exception) -> str:
    try:
        return str(error) if isinstance(error, DeoCubeError) else f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _is_map(array: Any) -> bool:
    """Return whether an object is a map that a verb returned, rather than a cube."""
    if not isinstance(array, xr.DataArray):
        return False
    return read_categories(array) is not None or "class" in array.dims or str(array.name) in MAPS


def summarise_map(array: xr.DataArray) -> Summary:
    """Describe a map of classes, probabilities, similarity, change or colours from its attributes."""
    classes = read_categories(array)
    facts = _grid(array)
    if Attribute.HEAD in array.attrs:
        facts.append(("head", str(array.attrs[Attribute.HEAD])))
    facts += [("comment", str(array.attrs["comment"]))] if "comment" in array.attrs else []
    if classes is not None:
        named = ", ".join(f"{c} {n}" for c, n in zip(classes.codes, classes.names, strict=True))
        facts.append(("classes", named))
        to_cog = remedy(".deo.to_cog(path)", "deo-cube export MAP.zarr OUT.tif")
        facts.append(("next", f"{remedy('.deo.plot() draws it; ', '')}{to_cog} writes it with its colours and names"))
        return Summary(tuple(facts), title=f"deo_cube view of a map of {len(classes.codes)} classes", classes=classes)
    what = str(array.attrs.get("long_name", array.name))
    return Summary(tuple(facts), title=f"deo_cube view of a map: {what}")


def _grid(cube: Cube) -> list[tuple[str, str]]:
    """Return size, dates, CRS and pixel size; why not, where they are unknown."""
    facts = []
    try:
        plane = cube.isel({d: 0 for d in ("embedding", "class") if d in cube.dims}, drop=True)
        dims = georeference.dims(plane)
        names = (dims.time, *(d for d in ("embedding", "class") if d in cube.dims), dims.band, dims.y, dims.x)
        sizes = ", ".join(f"{d} {cube.sizes[d]}" for d in names if d)
        facts.append(("size", sizes + (f"; {cube.dtype}" if isinstance(cube, xr.DataArray) else "")))
        facts += [("dates", dates)] if (dates := _dates(cube, dims.time)) else []
        box = georeference.geobox(plane)
        dx, dy = georeference.ground_resolution(box)
        facts.append(("CRS", f"EPSG:{box.crs.epsg}" if box.crs.epsg else str(box.crs.proj.name)))
        facts.append(("pixel", f"{dx:.3g} m x {dy:.3g} m on the ground"))
    except Exception as error:
        facts.append(("grid", _reason(error)))
    return facts


def summarise(cube: Cube) -> Summary:
    """Describe a cube, and try each model on it. Reads no pixel of a cube on Dask."""
    facts = _grid(cube)
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
        *_grid(emb),
        ("model", f"{attribute('model')}, layer {attribute('layer')}, weights {attribute('weights_status')}"),
    ]
    if plan:
        facts.append(("tiles", f"{plan['tile']} px, halo {plan['halo']} px, one vector per {plan['patch']} px"))
    if Attribute.RADIOMETRY in emb.attrs:
        facts.append(("units", "; ".join(json.loads(attribute("radiometry")).get("why", []))))
    return Summary(tuple(facts), title="deo_cube view of embeddings")
