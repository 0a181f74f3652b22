"""Describe a store in STAC: an Item, a Collection (`emb:` extension v0.0.1) and the Item of its model (MLM).

The extension (github.com/geo-embeddings/embeddings-stac-specification) describes the kind of
embeddings on the Collection and how they were made on the Item; an Item has the store as its asset ``embeddings``.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.footprint import geobox_footprint
from deo_cube.cube.sentinel2 import SENTINEL2
from deo_cube.cube.times import dates
from deo_cube.embedding import metadata
from deo_cube.embedding.metadata import model_url
from deo_cube.encoder.card import ModelCard, Stem
from deo_cube.encoder.registry import card as find_card
from deo_cube.errors import StoreMismatchError, UnknownModelError
from deo_cube.extras import require
from deo_cube.paths import is_url, local_path
from deo_cube.store.layout import planes_of
from deo_cube.store.open import open_embeddings

if TYPE_CHECKING:
    import pystac

    from deo_cube.encoder.card import ModelCard

__all__ = ["EMBEDDING_EXTENSION", "MLM_EXTENSION", "collection_of", "model_item", "publish", "stac_item"]

EMBEDDING_EXTENSION = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
_EXTENSIONS = (
    EMBEDDING_EXTENSION,
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "https://stac-extensions.github.io/datacube/v2.2.0/schema.json",
)
ZARR = "application/vnd.zarr; version=3"


def stac_item(store: Any, *, id: str | None = None, href: str | None = None) -> pystac.Item:
    """Describe a store as a STAC Item, from its metadata alone.

    Parameters
    ----------
    store : path, URL or zarr store
        Written by `emb.deo.to_zarr()`.
    id : str, optional
        Default: the store's name without its ending.
    href : str, optional
        Of the store, as readers of the Item will find it. Default: relative to the folder of the store.

    Returns
    -------
    pystac.Item
        With the extensions `emb:`, `proj:`, `processing:` and `cube:`; asset ``embeddings``. It is in no collection
        yet: `publish` puts it into `collection_of` the same store.

    Raises
    ------
    MissingExtraError
        Without the extra ``stac``.
    StoreMismatchError
        If the store was not made by deo_cube, or has no date.
    """
    require("pystac", extra="stac", purpose="stac_item")
    import pystac

    emb = open_embeddings(store)
    name = _name(store) if id is None else id
    box = georeference.geobox(emb.isel(embedding=0, drop=True))
    geometry, bbox = geobox_footprint(box)
    first, last = _dates(emb)
    one = first == last
    item = pystac.Item(
        id=name,
        geometry=_plain(geometry),
        bbox=bbox,
        datetime=first if one else None,
        start_datetime=None if one else first,
        end_datetime=None if one else last,
        properties=_plain(_properties(emb, box)),
        stac_extensions=list(_EXTENSIONS),
    )
    item.add_asset(
        "embeddings",
        pystac.Asset(
            href or _relative(store),
            title="embeddings (time, embedding, y, x) and their valid fraction",
            media_type=ZARR,
            roles=["data"],
            extra_fields={"data_type": str(emb.encoding.get("dtype", emb.dtype))},
        ),
    )
    source = metadata.SYNTHETIC if _synthetic(emb) else metadata.SOURCE
    item.add_link(pystac.Link("emb:source-data", source, title=_source(emb)))
    return item


def _properties(emb: xr.DataArray, box: GeoBox) -> dict[str, Any]:
    facts, epsg = emb.attrs, box.crs.epsg
    plan = json.loads(facts[Attribute.PLAN])
    properties: dict[str, Any] = {
        "title": f"{_what(emb)} of {_source(emb)}",
        "gsd": float(facts[Attribute.GSD]) * plan["patch"],
        "proj:code": f"EPSG:{epsg}" if epsg else None,
        "proj:shape": list(box.shape),
        "proj:transform": list(box.transform)[:6],
        "proj:bbox": list(box.boundingbox.bbox),
        "processing:software": {"deo_cube": str(facts.get(Attribute.VERSION, metadata.package_version()))},
        "emb:runtime_parameters": {
            "model": facts[Attribute.MODEL],
            "weights_sha256": facts[Attribute.WEIGHTS_SHA256],
            "weights_status": facts[Attribute.WEIGHTS_STATUS],
            "layer": facts[Attribute.LAYER],
            "normalization": facts[Attribute.NORMALIZATION],
            "bands": json.loads(facts[Attribute.BANDS]),
            **{k: plan[k] for k in ("tile", "halo", "patch", "edge")},
        },
        "emb:preprocessing": {"format": "deo_cube:radiometry", "expression": json.loads(facts[Attribute.RADIOMETRY])},
        "emb:spatial_coverage": "every patch of the grid; those without one valid pixel are no data",
        **_cube(emb, box),
    }
    if Attribute.DERIVED in facts:
        properties["processing:lineage"] = facts[Attribute.DERIVED]
    if epsg is None:
        properties["proj:wkt2"] = box.crs.wkt
    if "item_ids" in emb.coords:
        items = sorted({i for row in np.atleast_1d(emb["item_ids"].values) for i in str(row).split()})
        properties["emb:runtime_parameters"]["source_items"] = items
    if "scale_factor" in emb.encoding:
        properties["emb:quantization"] = {
            "method": "linear",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "scale": [float(emb.encoding["scale_factor"])],
            "offset": [0.0],
        }
    return properties


def collection_of(store: Any, *, description: str | None = None, license: str = "other") -> pystac.Collection:
    """Describe the kind of embeddings that a store holds, as the Collection of its Item.

    Parameters
    ----------
    store : path, URL or zarr store
    description : str, optional
    license : str
        Of the embeddings: an SPDX identifier, or "other".

    Returns
    -------
    pystac.Collection
        With ``emb:type``, ``emb:dimensions``, ``data_type`` and the links ``emb:model`` and ``emb:source-data``, which
        the extension requires. Its extent is the store's.
    """
    require("pystac", extra="stac", purpose="collection_of")
    import pystac

    emb = open_embeddings(store)
    facts = emb.attrs
    box = georeference.geobox(emb.isel(embedding=0, drop=True))
    patch = int(json.loads(facts[Attribute.PLAN])["patch"])
    first, last = _dates(emb)
    state = " UNTRAINED: random weights." if facts[Attribute.WEIGHTS_STATUS] == "untrained" else ""
    extent = pystac.Extent(
        pystac.SpatialExtent([list[float | int](geobox_footprint(box)[1])]), pystac.TemporalExtent([[first, last]])
    )
    fields: dict[str, Any] = {
        "emb:type": "chip" if patch > 1 else "pixel",
        "emb:dimensions": int(emb.sizes["embedding"]),
        "data_type": str(emb.encoding.get("dtype", emb.dtype)),
        "gsd": float(facts[Attribute.GSD]) * patch,
    }
    if patch > 1:
        fields["emb:chip_layout"] = {
            "layout_type": "regular_grid",
            "chip_size": [patch, patch],
            "stride": [patch, patch],
        }
    model = facts[Attribute.MODEL]
    dim = emb.sizes["embedding"]
    summary = f"{dim}-dimensional embeddings of {_source(emb)} by {model}, one per {patch} px.{state}"
    if Attribute.DERIVED in facts:
        summary = (
            f"Computed from embeddings of {_source(emb)} by {model}: {_what(emb)}, {dim} numbers per {patch} px.{state}"
        )
    collection = pystac.Collection(
        collection_id(emb),
        description or summary,
        extent,
        license=license,
        stac_extensions=[EMBEDDING_EXTENSION],
        extra_fields=fields,
    )
    source = metadata.SYNTHETIC if _synthetic(emb) else metadata.SOURCE
    collection.add_link(pystac.Link("emb:model", metadata.model_of(emb)))
    collection.add_link(pystac.Link("emb:source-data", source, title=_source(emb)))
    return collection


def publish(
    store: str | Path, *, model: str | Path | ModelCard | None = None, license: str = "other"
) -> tuple[Path, Path, Path]:
    """Write the Item, the Collection and the model's Item (MLM) of a store beside it, linked to each other.

    Parameters
    ----------
    store : path
        A store in a folder. For ``emb.zarr`` the files are ``emb.item.json``, ``emb.collection.json`` and
        ``emb.model.json``.
    model : str, path or ModelCard, optional
        Its card, or the folder of a training run; by default found by the name in the store.
    license : str
        Of the embeddings: an SPDX identifier, or "other".

    Returns
    -------
    tuple of Path
        Item, Collection, model.

    Raises
    ------
    MissingExtraError
        Without the extra ``stac``.
    StoreMismatchError
        If there is no store of this package, or it is not in a folder.
    UnknownModelError
        If the card of the model that made it is not available: pass `model`.
    """
    require("pystac", extra="stac", purpose="publish")
    import pystac

    if isinstance(store, str) and is_url(store):
        raise StoreMismatchError(f"publish writes files beside a folder, which {store} is not: use stac_item(store)")
    path = local_path(arguments.path("store", store))
    item, collection = stac_item(path), collection_of(path, license=license)
    emb = open_embeddings(path)
    card = model_item(
        emb.attrs[Attribute.MODEL] if model is None else model, weights_sha256=emb.attrs[Attribute.WEIGHTS_SHA256]
    )
    stem = path.parent / path.name.removesuffix(".zarr")
    files = tuple(stem.with_name(f"{stem.name}.{kind}.json") for kind in ("item", "collection", "model"))
    names = [f"./{f.name}" for f in files]
    collection.links = [link for link in collection.links if link.rel != "emb:model"]
    things: tuple[pystac.STACObject, ...] = (item, collection, card)
    derived = Attribute.DERIVED in emb.attrs
    for thing in things[:2]:
        if derived:
            # Not the model's own output: the model is where it comes from.
            thing.add_link(pystac.Link("derived_from", names[2], "application/geo+json", title=card.id))
        else:
            thing.add_link(pystac.Link("emb:model", names[2], "application/geo+json", title=card.id))
    if derived:
        collection.add_link(pystac.Link("emb:model", metadata.model_of(emb)))
    item.collection_id = collection.id
    item.add_link(pystac.Link("collection", names[1], "application/json"))
    collection.add_link(pystac.Link("item", names[0], "application/geo+json", title=item.id))
    for file, thing in zip(files, things, strict=True):
        written = thing.to_dict(include_self_link=False, transform_hrefs=False)
        file.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files  # type: ignore[return-value]


def collection_id(emb: xr.DataArray) -> str:
    """Return the name of the collection, which all stores of one model and layer share."""
    derived = "-derived" if Attribute.DERIVED in emb.attrs else ""
    return f"{emb.attrs[Attribute.MODEL]}-{emb.attrs[Attribute.LAYER]}{derived}"


def _what(emb: xr.DataArray) -> str:
    return str(emb.attrs.get(Attribute.DERIVED, f"{emb.attrs[Attribute.MODEL_ALIAS]} embeddings"))


def _name(store: Any) -> str:
    text = str(store).rstrip("/") if isinstance(store, str | os.PathLike) else "embeddings"
    return text.rsplit("/", 1)[-1].removesuffix(".zarr")


def _relative(store: Any) -> str:
    return str(store) if is_url(store) else f"./{local_path(store).name}"


def _dates(emb: xr.DataArray) -> tuple[Any, Any]:
    if "time" not in emb.coords:
        raise StoreMismatchError(
            "the embeddings have no time, and a STAC Item must: embed a cube with a coordinate time, "
            "cube.assign_coords(time=...)"
        )
    of_periods = Attribute.AGGREGATE in emb.attrs
    first, last = (
        dates(emb[name if of_periods else "time"], "a STAC Item").tz_localize("UTC")
        for name in ("start_datetime", "end_datetime")
    )
    return first.min().to_pydatetime(), last.max().to_pydatetime()


def _synthetic(emb: xr.DataArray) -> bool:
    return bool(emb.attrs.get(Attribute.SYNTHETIC, 0))


def _source(emb: xr.DataArray) -> str:
    return "a synthetic scene (no real data)" if _synthetic(emb) else "Sentinel-2"


def _cube(emb: xr.DataArray, box: Any) -> dict[str, Any]:
    """Return dimensions and variables as in the datacube extension."""
    y, x = (str(d) for d in emb.dims[-2:])
    west, south, east, north = box.boundingbox.bbox
    system = box.crs.epsg or box.crs.wkt
    patch = abs(float(box.transform.a))
    dimensions: dict[str, Any] = {
        x: {"type": "spatial", "axis": "x", "extent": [west, east], "step": patch, "reference_system": system},
        y: {"type": "spatial", "axis": "y", "extent": [south, north], "step": patch, "reference_system": system},
        "embedding": {"type": "embedding", "extent": [0, emb.sizes["embedding"] - 1]},
    }
    if "time" in emb.dims:
        stamps = [t.isoformat() + "Z" for t in dates(emb["time"], "a STAC Item")]
        extent = [t.strftime("%Y-%m-%dT%H:%M:%SZ") for t in _dates(emb)]
        extent = extent if Attribute.AGGREGATE in emb.attrs else [min(stamps), max(stamps)]
        dimensions["time"] = {"type": "temporal", "extent": extent, "values": stamps}
    plane = [str(d) for d in emb.dims if d != "embedding"]
    variables: dict[str, Any] = {"embeddings": {"type": "data", "dimensions": [str(d) for d in emb.dims]}}
    for name in planes_of(emb):
        variables[name] = {"type": "auxiliary", "dimensions": plane, "description": _PLANES[name]}
    return {"cube:dimensions": dimensions, "cube:variables": variables}


_PLANES = {"valid": "valid fraction of the patch, 0..1", "count": "number of dates that contributed to the patch"}


def _plain(value: Any) -> Any:
    """Return plain JSON values, without those that are None."""
    return json.loads(json.dumps({k: v for k, v in value.items() if v is not None}))


MLM_EXTENSION = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
_FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
_SCIENTIFIC = "https://stac-extensions.github.io/scientific/v1.0.0/schema.json"
_TASKS = ["similarity-search"]


def model_item(model: str | Path | ModelCard, *, weights_sha256: str | None = None) -> pystac.Item:
    """Describe a model as an MLM Item (stac-extensions/mlm v1.4.0).

    Parameters
    ----------
    model : str, path or ModelCard
        A model's name, the folder of a training run, or a card.
    weights_sha256 : str, optional
        Hash of the weights that were used, as a store records it: a card that states another is refused.

    Returns
    -------
    pystac.Item
        Inputs for each stem, with bands in model order and their scaling; outputs for each layer; the weights as its
        asset ``model``. The extension knows no task for an encoder of features: "similarity-search" is the nearest.

    Raises
    ------
    MissingExtraError
        Without the extra ``stac``.
    UnknownModelError
        If there is no such model, or its card states other weights.
    """
    require("pystac", extra="stac", purpose="model_item")
    import pystac

    card = model if isinstance(model, ModelCard) else find_card(model)
    stated = card.weights.sha256
    if weights_sha256 and stated and weights_sha256 != stated:
        raise UnknownModelError(
            f"{card.alias} states weights {stated[:12]}..., and {weights_sha256[:12]}... were used: the card is of "
            "another version. Pass the card or the folder of that version"
        )
    checksum = stated or weights_sha256
    weights: dict[str, Any] = {"mlm:artifact_type": "safetensors" if _is_safetensors(card) else "torch.save"}
    extensions = [MLM_EXTENSION]
    if checksum:
        weights["file:checksum"] = f"1220{checksum}"  # a multihash: sha2-256, 32 bytes
        extensions.append(_FILE)
    properties = _model_properties(card)
    if card.paper:
        properties["sci:citation"] = card.paper
        extensions.append(_SCIENTIFIC)
    # A model has no place or date: as in the examples of the extension, the globe and several centuries.
    globe = [-180.0, -90.0, 180.0, 90.0]
    ring = [[-180.0, -90.0], [180.0, -90.0], [180.0, 90.0], [-180.0, 90.0], [-180.0, -90.0]]
    item = pystac.Item(
        id=card.name,
        geometry={"type": "Polygon", "coordinates": [ring]},
        bbox=globe,
        datetime=None,
        start_datetime=datetime(1900, 1, 1, tzinfo=UTC),
        end_datetime=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        properties=properties,
        stac_extensions=extensions,
    )
    bands = dict.fromkeys(b for stem in card.stems for b in stem.bands)
    item.add_asset(
        "model",
        pystac.Asset(
            model_url(card),
            title=card.weights.file,
            media_type="application/octet-stream; application=" + weights["mlm:artifact_type"],
            roles=["mlm:model", "mlm:weights"],
            extra_fields={**weights, "bands": [_band(b) for b in bands]},
        ),
    )
    return item


def _model_properties(card: ModelCard) -> dict[str, Any]:
    return {
        "title": card.summary,
        "description": "; ".join(card.limits) or card.summary,
        "license": "other",
        "gsd": card.gsd,
        "mlm:name": card.name,
        "mlm:architecture": str(card.architecture["family"]),
        "mlm:framework": "PyTorch",
        "mlm:tasks": _TASKS,
        "mlm:pretrained": card.trained,
        "mlm:pretrained_source": card.training_data or None if card.trained else None,
        "mlm:batch_size_suggestion": card.batch,
        "mlm:accelerator_constrained": False,
        "mlm:input": [_input(card, stem) for stem in card.stems],
        "mlm:output": [
            {
                "name": layer.name,
                "tasks": _TASKS,
                "result": {
                    "shape": [-1, layer.dim, card.tile // layer.stride, card.tile // layer.stride],
                    "dim_order": ["batch", "embedding", "height", "width"],
                    "data_type": "float32",
                },
            }
            for layer in card.layers
        ],
        Attribute.CARD: card.alias,
        Attribute.LICENSE_CODE: card.license_code,
        Attribute.LICENSE_WEIGHTS: card.license_weights,
        Attribute.WEIGHTS_STATUS: card.weights.status,
    }


def _input(card: ModelCard, stem: Stem) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": stem.name,
        "description": f"{card.product_level} in {card.units}: reflectance x 10000 without offset"
        if card.units == "dn"
        else f"{card.product_level} reflectance, 0..1",
        "bands": list(stem.bands),
        "input": {
            "shape": [-1, len(stem.bands), card.tile, card.tile],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "pre_processing_function": None,
    }
    scaling = stem.normalization()
    if scaling.kind == "fixed":
        described["value_scaling"] = [
            {"type": "z-score", "mean": m, "stddev": s} for m, s in zip(scaling.mean, scaling.std, strict=True)
        ]
    else:
        described["pre_processing_function"] = {"format": "deo_cube:normalization", "expression": scaling.name}
    return described


def _band(name: str) -> dict[str, Any]:
    band = SENTINEL2[name]
    found = {
        "name": name,
        "eo:common_name": band.common_name,
        "eo:center_wavelength": band.wavelength / 1000,
        "eo:full_width_half_max": band.fwhm / 1000,
    }
    return {k: v for k, v in found.items() if v is not None}


def _is_safetensors(card: ModelCard) -> bool:
    return card.weights.file.endswith(".safetensors")
