"""What `ds.deo` shows: which bands, CRS and units a cube has, and which models fit it, or why not."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html import escape
from typing import Any

import xarray as xr

from deo_cube.cube import georeference
from deo_cube.cube.times import read_times
from deo_cube.embedding import metadata
from deo_cube.embedding.options import EmbedOptions
from deo_cube.embedding.prepare import Cube, Prepared, prepare
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import card, list_models
from deo_cube.errors import DeoCubeError

__all__ = ["CELL", "Summary", "describe", "html_table", "summarise", "summarise_embeddings"]


#: Notebooks have tables of their own style, right-aligned and striped: this one reads from the left in all of them.
CELL = "text-align:left;vertical-align:top;padding:.2em .8em .2em 0;background:none;border:none"


@dataclass(frozen=True)
class Summary:
    """Facts about a cube, and what each model says to it."""

    facts: tuple[tuple[str, str], ...]
    models: tuple[tuple[str, bool, str], ...] = ()
    """Alias, whether it fits, and how or why not."""
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
            # Green and red that are read on a white page and on a dark one.
            row(f"{'✓' if ok else '✗'} {alias}", why, "#2a9d5c" if ok else "#d1495b")
            for alias, ok, why in self.models
        )
        return html_table(self.title, rows)


def html_table(title: str, rows: str) -> str:
    """A table as this package shows it in notebooks."""
    return (
        f'<div style="font-weight:600;margin:.3em 0">{escape(title)}</div>'
        f'<table style="border:none;border-collapse:collapse;margin:0">{rows}</table>'
    )


def describe(obj: Any) -> Summary:
    """Describe a cube or embeddings from names and metadata; read no pixel on Dask, and never raise.

    A repr that raises hides the object that it is of, in a notebook the rest of the cell too.
    """
    try:
        held = obj["embeddings"] if isinstance(obj, xr.Dataset) and "embeddings" in obj else obj
        return summarise_embeddings(held) if "embedding" in held.dims else summarise(obj)
    except Exception as error:
        return Summary((("not read", _reason(error)),))


def _reason(error: Exception) -> str:
    try:
        return str(error) if isinstance(error, DeoCubeError) else f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def summarise(cube: Cube) -> Summary:
    """Look at names and metadata of a cube; read no pixel of a cube on Dask."""
    facts = []
    try:
        dims = georeference.dims(cube)
        sizes = ", ".join(f"{d} {cube.sizes[d]}" for d in (dims.time, dims.band, dims.y, dims.x) if d)
        facts.append(("size", sizes))
        facts += [("dates", when)] if (when := _dates(cube, dims.time)) else []
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
            found = card(alias)
            p = prepare(cube, EmbedOptions(model=found, dtype="float32"), locate=False)
            if not any(k == "units" for k, _ in facts):
                facts.append(("units", "; ".join(p.radiometry.reasons)))
            models.append((alias, True, _fits(p, found, weights)))
        except Exception as error:
            models.append((alias, False, _reason(error)))
    return Summary(tuple(facts), _told_once(models))


def _fits(p: Prepared, found: ModelCard, weights: str) -> str:
    side = found.patch * found.gsd
    how = ", ".join(b if b == v else f"{b} from {v!r}" for b, v in zip(p.match.bands, p.match.variables, strict=True))
    clouds = f"clouds from {p.match.scl!r}" if p.match.scl else "no cloud mask (SCL)"
    state = f"; {weights}" if found.trained else "; UNTRAINED weights"
    return f"one {found.dim}-vector for {side:g} x {side:g} m{state}\nreads {how}; {clouds}"


def _told_once(models: list[tuple[str, bool, str]]) -> tuple[tuple[str, bool, str], ...]:
    """Models of which the same is true, but for their names, in one line: three models lack the same band alike."""
    told: dict[tuple[bool, str], list[str]] = {}
    for alias, ok, why in models:
        # Lines that begin with the name, in a numbered list of problems too.
        why = why if ok else re.sub(rf"(?m)^((?:\d+\. |   )?){re.escape(alias)} ", r"\1the model ", why)
        told.setdefault((ok, why), []).append(alias)
    return tuple((", ".join(aliases), ok, why) for (ok, why), aliases in told.items())


def _dates(cube: Cube, time: str | None) -> str:
    if time is None or time not in cube.coords or not cube.sizes[time]:
        return ""
    labels = read_times(cube[time].variable).values
    if labels is None:
        return ""
    values = [str(t)[:10] for t in (labels[0], labels[-1])]
    return values[0] if values[0] == values[1] else f"{values[0]} to {values[1]}"


def summarise_embeddings(emb: xr.DataArray) -> Summary:
    """Look at the attributes of embeddings."""

    def said(name: str) -> str:
        return str(emb.attrs.get(metadata.PREFIX + name, "not said"))

    plan = json.loads(emb.attrs.get(metadata.PREFIX + "plan", "{}"))
    facts = [
        ("size", ", ".join(f"{d} {n}" for d, n in emb.sizes.items()) + f"; {emb.dtype}"),
        ("model", f"{said('model')}, layer {said('layer')}, weights {said('weights_status')}"),
    ]
    if plan:
        facts.append(("tiles", f"{plan['tile']} px, halo {plan['halo']} px, one vector a {plan['patch']} px"))
    if metadata.PREFIX + "radiometry" in emb.attrs:
        facts.append(("units", "; ".join(json.loads(said("radiometry")).get("why", []))))
    return Summary(tuple(facts), title="deo_cube view of embeddings")
