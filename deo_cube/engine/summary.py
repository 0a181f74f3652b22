"""What `ds.deo` shows: which bands, CRS and units a cube has, and which models fit it, or why not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape

import xarray as xr

from deo_cube.cube import grid
from deo_cube.encoder.registry import card, list_models
from deo_cube.engine import metadata
from deo_cube.engine.embed import Cube, prepare
from deo_cube.errors import DeoCubeError

__all__ = ["Summary", "summarise", "summarise_embeddings"]


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
        lines += [f"    {'fits ' if ok else 'no   '}{alias}: {why}" for alias, ok, why in self.models]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        left = "style='text-align:left;vertical-align:top'"
        rows = "".join(f"<tr><th {left}>{escape(k)}</th><td {left}>{escape(v)}</td></tr>" for k, v in self.facts)
        rows += "".join(
            f"<tr><th {left}>{'✓' if ok else '✗'} {escape(alias)}</th><td {left}>{escape(why)}</td></tr>"
            for alias, ok, why in self.models
        )
        return f"<table><caption>{escape(self.title)}</caption>{rows}</table>"


def summarise(cube: Cube) -> Summary:
    """Look at names and metadata; read no pixel of a cube on Dask, and never raise."""
    facts = []
    try:
        dims = grid.dims(cube)
        sizes = " x ".join(f"{d} {cube.sizes[d]}" for d in (dims.time, dims.band, dims.y, dims.x) if d)
        facts.append(("size", sizes))
        box = grid.geobox(cube)
        dx, dy = grid.ground_resolution(box)
        facts.append(("CRS", f"EPSG:{box.crs.epsg}" if box.crs.epsg else str(box.crs.proj.name)))
        facts.append(("pixel", f"{dx:.3g} m x {dy:.3g} m on the ground"))
    except DeoCubeError as error:
        facts.append(("grid", str(error)))
    models = []
    for alias in list_models()["alias"]:
        try:
            found = card(alias)
            p = prepare(cube, found, locate=False)
            if not any(k == "units" for k, _ in facts):
                facts.append(("units", "; ".join(p.radiometry.why)))
            models.append((alias, True, f"{p.match!r}" + ("" if found.trained else "; UNTRAINED weights")))
        except DeoCubeError as error:
            models.append((alias, False, str(error).splitlines()[0]))
    return Summary(tuple(facts), tuple(models))


def summarise_embeddings(emb: xr.DataArray) -> Summary:
    """Look at the attributes of embeddings."""

    def said(name: str) -> str:
        return str(emb.attrs.get(metadata.PREFIX + name, "not said"))

    plan = json.loads(emb.attrs.get(metadata.PREFIX + "plan", "{}"))
    facts = [
        ("size", " x ".join(f"{d} {n}" for d, n in emb.sizes.items()) + f", {emb.dtype}"),
        ("model", f"{said('model')}, layer {said('layer')}, weights {said('weights_status')}"),
    ]
    if plan:
        facts.append(("tiles", f"{plan['tile']} px, halo {plan['halo']} px, one vector a {plan['patch']} px"))
    if metadata.PREFIX + "radiometry" in emb.attrs:
        facts.append(("units", "; ".join(json.loads(said("radiometry")).get("why", []))))
    return Summary(tuple(facts), title="deo_cube view of embeddings")
