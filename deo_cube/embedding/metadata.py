"""Describe a result: provenance in attributes, and the GeoZarr conventions on the store.

Conventions written on the store's group:

- ``spatial:`` v0.1 (github.com/zarr-conventions/spatial): dimensions, shape, and the transform of the pixel corner
- ``proj:`` v0.1 (github.com/zarr-conventions/proj): code or WKT2 of the CRS
- ``geoemb:`` v1 (github.com/geo-embeddings/embeddings-zarr-convention): what the embeddings are, which model made them

The entries of ``zarr_conventions`` are word for word what the schemas ask for.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from deo_cube.constants import PREFIX, Attribute
from deo_cube.cube.units import product_levels
from deo_cube.embedding import tasks, transfer

if TYPE_CHECKING:
    from deo_cube.embedding.prepare import Prepared
    from deo_cube.encoder.card import ModelCard

__all__ = [
    "COMPARABLE",
    "CONVENTIONS",
    "PREFIX",
    "SOURCE",
    "SYNTHETIC",
    "conventions",
    "derivation",
    "decisive",
    "fingerprint",
    "identity",
    "levels_of",
    "model_of",
    "model_url",
    "package_version",
    "provenance",
    "to_json",
    "warn_of_levels",
]

_ZARR = "zarr-conventions"
CONVENTIONS: list[dict[str, str]] = [
    {
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "schema_url": f"https://raw.githubusercontent.com/{_ZARR}/spatial/refs/tags/v0.1/schema.json",
        "spec_url": f"https://github.com/{_ZARR}/spatial/blob/v0.1/README.md",
        "name": "spatial",
        "description": "Spatial coordinate information",
    },
    {
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "schema_url": f"https://raw.githubusercontent.com/{_ZARR}/proj/refs/tags/v0.1/schema.json",
        "spec_url": f"https://github.com/{_ZARR}/proj/blob/v0.1/README.md",
        "name": "proj",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
        "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
        "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
        "name": "geoemb:",
        "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
    },
]

#: The product that the cubes hold; a synthetic scene says so instead.
SOURCE = "https://sentiwiki.copernicus.eu/web/s2-products"
SYNTHETIC = "urn:deo-cube:synthetic"


def package_version() -> str:
    """Version of the installed package; "unknown" from a bare checkout."""
    try:
        return version("deo-cube")
    except PackageNotFoundError:
        return "unknown"


def to_json(value: Any) -> str:
    """Compact JSON, keys in order: how structured provenance is kept in attributes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def provenance(p: Prepared, cube: xr.Dataset | xr.DataArray) -> dict[str, Any]:
    """Attributes of embeddings: model, weights, plan, band match, radiometry, and what the cube says it is."""
    card, plan = p.ref.card, p.plan
    facts = {
        "version": package_version(),
        "model": card.name,
        "model_alias": card.alias,
        "model_fingerprint": p.ref.fingerprint,
        "model_url": model_url(card),
        "weights_status": card.weights.status,
        "weights_sha256": p.ref.weights_sha256 or "",
        "stem": p.ref.stem.name,
        "layer": p.ref.layer.name,
        "normalization": p.ref.normalization.name,
        "gsd": card.gsd,
        "product_levels": to_json(sorted(product_levels(cube))),
        "bands": to_json(p.match.to_attrs()),
        "radiometry": to_json(p.radiometry.to_attrs()),
        "plan": to_json(
            {
                "shape": plan.shape,
                "origin": plan.origin,
                "tile": plan.tile,
                "halo": plan.halo,
                "patch": plan.patch,
                "block": plan.block,
                "edge": plan.edge,
            }
        ),
        "masks": to_json({"scl": p.scl, "hide_scl": p.hide_scl, "mask": len(p.window_reader.groups) > 1 + p.scl}),
        "dtype": p.dtype,
        "precision": p.precision,
        "tolerance": transfer.tolerance(p.precision, card, p.ref.stem.name),
    }
    if p.runtime != "torch":  # absent for torch, as in stores from before there were others
        facts["runtime"] = p.runtime
    carried = {
        k: cube.attrs[k] for k in (PREFIX + k for k in ("synthetic", "composite", "mask_clouds")) if k in cube.attrs
    }
    if Attribute.SYNTHETIC in carried and "source" in cube.attrs:
        carried[Attribute.SCENE] = cube.attrs["source"]
    return {PREFIX + k: v for k, v in facts.items()} | carried


def model_url(card: ModelCard) -> str:
    """Return the address of the model's weights, on the hub or elsewhere; a URN if they are only on this machine."""
    if card.weights.repo is not None:
        return f"https://huggingface.co/{card.weights.repo}/tree/{card.weights.revision}"
    return card.weights.url or f"urn:deo-cube:model:{card.name}:{card.fingerprint}"


def model_of(emb: xr.DataArray) -> str:
    """Return where the model that made an array is found; for what was computed from embeddings, a URN that says so."""
    if derivation(emb) is not None:
        return f"urn:deo-cube:derived:{emb.attrs[Attribute.MODEL]}"
    return str(emb.attrs.get(Attribute.MODEL_URL, "urn:deo-cube:model:unknown"))


#: Facts that decide whether the vectors of two arrays can be compared: one model, read alike.
COMPARABLE = ("model", "model_fingerprint", "weights_sha256", "stem", "layer", "normalization")

#: Provenance that decides the numbers, and so guards a resumed store. The version does not: a patch release may resume.
_DECIDES = (
    *("model", "model_fingerprint", "weights_sha256", "stem", "layer", "normalization"),
    *("bands", "radiometry", "plan", "masks", "dtype", "precision", "runtime"),
    *("scene", "composite", "mask_clouds", "aggregate"),
)


def identity(emb: xr.DataArray) -> dict[str, Any]:
    """Everything that a store must agree on before it is resumed, field by field."""
    fields = decisive({k: emb.attrs[PREFIX + k] for k in _DECIDES if PREFIX + k in emb.attrs})
    fields["dims"] = list(emb.dims)
    fields["shape"] = list(emb.shape)
    fields["stored_dtype"] = str(emb.dtype)
    for name in (*emb.dims, *(() if "time" in emb.dims else ("time",))):  # one date of several keeps its time
        if name in emb.coords:
            values = emb[name].values
            fields[f"coordinate {name}"] = hashlib.sha256(repr((values.dtype, values.tolist())).encode()).hexdigest()
    if "item_ids" in emb.coords:
        # Not their order, which a catalogue may change from one search to the next.
        ids = sorted(i for step in np.ravel(emb["item_ids"].values) for i in str(step).split())
        fields["items"] = hashlib.sha256(repr(ids).encode()).hexdigest()
    if "spatial_ref" in emb.coords:
        fields["crs"] = emb["spatial_ref"].attrs.get("crs_wkt", "")
    return fields


def decisive(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity without the reasons of its radiometry, which are prose and may be worded anew."""
    radiometry = fields.get("radiometry")
    if radiometry is None:
        return dict(fields)
    numbers = {k: v for k, v in json.loads(radiometry).items() if k != "why"}
    return {**fields, "radiometry": to_json(numbers)}


def levels_of(emb: xr.DataArray) -> frozenset[str]:
    """Return the levels of the products that were embedded (``L1C``, ``L2A``); empty where they are not known."""
    try:
        return frozenset(map(str, json.loads(emb.attrs.get(Attribute.PRODUCT_LEVELS, "[]"))))
    except (TypeError, ValueError):
        return frozenset()


def warn_of_levels(one: xr.DataArray, other: xr.DataArray, names: tuple[str, str], consequence: str) -> None:
    """Warn of two arrays that were made of products of other levels.

    Parameters
    ----------
    one, other : DataArray
        Embeddings.
    names : (str, str)
        For the message.
    consequence : str
        What follows, as the end of a sentence.
    """
    levels = levels_of(one), levels_of(other)
    if all(levels) and levels[0] != levels[1]:
        listed = (" and ".join(sorted(level)) for level in levels)
        warnings.warn(
            f"{names[0]} was made of {next(listed)} products, {names[1]} of {next(listed)}: L1C is reflectance at the "
            f"top of the atmosphere, L2A at the surface, {consequence}. Embed products of one level",
            UserWarning,
            stacklevel=4,
        )


def derivation(emb: xr.DataArray) -> str | None:
    """Return how an array was computed from a model's embeddings; None where it is the model's own output, or a part.

    xarray keeps attributes through arithmetic, so a mean or a product claims to be the model's output until this says
    otherwise. Dask's names of its steps serve as words here and decide nothing.
    """
    model = emb.attrs.get(Attribute.MODEL_ALIAS)
    if model is None:
        return None
    before = emb.attrs.get(Attribute.DERIVED)
    if emb.chunks is None or not (tasks.block_tasks(emb.data) or tasks.has_series(emb.data) or tasks.stored(emb.data)):
        return str(before) if before is not None else f"values in memory, from {model} embeddings"
    steps = list(dict.fromkeys(_STEP.sub("", kind).replace("_", " ") for kind in tasks.derived(emb.data)))
    if not steps:
        return None if before is None else str(before)
    dates = max((task.times for task in tasks.block_tasks(emb.data)), default=1)
    over = " over time" if dates > 1 and "time" not in emb.coords else ""
    return f"{', '.join(steps)}{over} of {before or f'{model} embeddings'}"


#: Ends that Dask gives the parts of a reduction.
_STEP = re.compile(r"[-_](chunk|combine|agg|aggregate|partial).*$")


def fingerprint(fields: Mapping[str, Any]) -> str:
    """Hash of an identity."""
    return hashlib.sha256(to_json(fields).encode()).hexdigest()[:16]


def conventions(emb: xr.DataArray, geobox: GeoBox, dims: tuple[str, str]) -> dict[str, Any]:
    """Attributes of the store's group under ``spatial:``, ``proj:`` and ``geoemb:``."""
    a, crs = geobox.transform, geobox.crs
    bounds = geobox.boundingbox.bbox
    epsg = crs.epsg
    projection: dict[str, Any] = {"proj:code": f"EPSG:{epsg}"} if epsg else {"proj:wkt2": crs.wkt}
    plan = json.loads(emb.attrs.get(Attribute.PLAN, "{}"))
    patch = int(plan.get("patch", 1))
    synthetic = bool(emb.attrs.get(Attribute.SYNTHETIC, 0))
    embedding: dict[str, Any] = {
        "geoemb:type": "chip" if patch > 1 else "pixel",
        "geoemb:dimensions": int(emb.sizes["embedding"]),
        "geoemb:model": model_of(emb),
        "geoemb:source_data": [SYNTHETIC if synthetic else SOURCE],
        "geoemb:data_type": str(emb.dtype),
        "geoemb:gsd": float(emb.attrs.get(Attribute.GSD, 10.0)) * patch,
        "geoemb:build_version": f"deo_cube {package_version()}",
    }
    if patch > 1:
        sides = {"chip_size": [patch, patch], "stride": [patch, patch]}
        embedding["geoemb:chip_layout"] = {"layout_type": "regular_grid"} | sides
    if emb.dtype == "int8":
        embedding["geoemb:quantization"] = {
            "method": "linear",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "scale": {"type": "scalar", "scale": float(emb.attrs["scale_factor"]), "offset": 0.0},
        }
    return {
        "zarr_conventions": CONVENTIONS,
        "spatial:dimensions": list(dims),
        "spatial:shape": list(geobox.shape),
        "spatial:transform": [a.a, a.b, a.c, a.d, a.e, a.f],
        "spatial:transform_type": "affine",
        "spatial:registration": "pixel",
        "spatial:bbox": list(bounds),
        **projection,
        **embedding,
    }
