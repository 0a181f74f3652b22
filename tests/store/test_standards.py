"""A store, its STAC Item and Collection, and the Item of its model, against what is published; and other readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pystac
import pytest
import xarray as xr
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from deo_cube.cube import georeference
from deo_cube.cube.synthetic import synthetic_cube
from deo_cube.embedding.embed import embed
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import card
from deo_cube.errors import StoreMismatchError, UnknownModelError
from deo_cube.store.open import open_embeddings
from deo_cube.store.stac import collection_of, model_item, publish, stac_item
from deo_cube.store.write import to_zarr
from tests.store.published import EMB_COLLECTION, EMB_ITEM, GEOEMB


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """int8 of two dates, and float16 of a cube whose grid has no EPSG code and does not start on a tile border."""
    folder = tmp_path_factory.mktemp("stores")
    plain = synthetic_cube(size=128, times=2, seed=1, clouds=0.0)
    to_zarr(embed(plain, dtype="int8"), folder / "int8.zarr", progress=False)
    odd = plain.isel(time=[0], x=slice(8, None), y=slice(12, 100))
    proj = "+proj=tmerc +lon_0=15.1 +k=0.9996 +x_0=500000 +datum=WGS84"
    from odc.geo.geobox import GeoBox

    box = georeference.geobox(odd)
    odd = georeference.assign_grid(odd, GeoBox(box.shape, box.transform, proj))
    to_zarr(embed(odd, tile=64, halo=16, block=64), folder / "odd.zarr", progress=False)
    return {"int8": folder / "int8.zarr", "odd": folder / "odd.zarr"}


def group(store: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / "zarr.json").read_text())
    return found


@pytest.mark.parametrize("name", ["int8", "odd"])
def test_the_store_validates_against_spatial_proj_and_geoemb(stores: dict[str, Path], name: str) -> None:
    zarr_cm = pytest.importorskip("zarr_cm")
    written = group(stores[name])
    bare = {k: written[k] for k in ("zarr_format", "node_type", "attributes")}
    zarr_cm.spatial.validate_group_metadata(bare)
    zarr_cm.proj.validate_group_metadata(bare)
    jsonschema.validate(written, GEOEMB, jsonschema.Draft202012Validator, format_checker=jsonschema.FormatChecker())
    a = written["attributes"]
    assert ("proj:code" in a, "proj:wkt2" in a) == ((True, False) if name == "int8" else (False, True))
    assert a["geoemb:source_data"] == ["urn:deo-cube:synthetic"]
    if name == "int8":
        scale = a["geoemb:quantization"]["scale"]
        assert scale["type"] == "scalar"
        assert scale["scale"] == card("tiny").layer().int8_scale


def test_a_validator_that_cannot_fail_would_prove_nothing(stores: dict[str, Path]) -> None:
    zarr_cm = pytest.importorskip("zarr_cm")
    for key, wrong in (("geoemb:model", "tiny"), ("geoemb:source_data", "Sentinel-2"), ("geoemb:type", "patch")):
        broken = group(stores["int8"])
        broken["attributes"][key] = wrong
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, GEOEMB)
    broken = group(stores["int8"])
    broken["attributes"]["spatial:transform"] = [1, 2]
    with pytest.raises(ValueError, match="exactly 6"):
        zarr_cm.spatial.validate_group_metadata({k: broken[k] for k in ("zarr_format", "node_type", "attributes")})
    broken["attributes"].pop("proj:code")
    with pytest.raises((ValueError, KeyError)):
        zarr_cm.proj.validate_group_metadata({k: broken[k] for k in ("zarr_format", "node_type", "attributes")})


def core(thing: pystac.STACObject | dict[str, Any], kind: pystac.STACObjectType) -> dict[str, Any]:
    """Validate against the core schemas that pystac brings along."""
    d = thing if isinstance(thing, dict) else thing.to_dict(include_self_link=False, transform_hrefs=False)
    assert d["stac_version"] == "1.1.0"
    JsonSchemaSTACValidator().validate_core(d, kind, "1.1.0")
    return d


@pytest.mark.parametrize("name", ["int8", "odd"])
def test_the_item_and_its_collection_validate(stores: dict[str, Path], name: str) -> None:
    item = stac_item(stores[name])
    jsonschema.validate(core(item, pystac.STACObjectType.ITEM), EMB_ITEM)
    jsonschema.validate(core(collection_of(stores[name]), pystac.STACObjectType.COLLECTION), EMB_COLLECTION)
    emb = open_embeddings(stores[name])
    box = georeference.geobox(emb.isel(embedding=0, drop=True))
    assert item.properties["proj:shape"] == list(box.shape)
    assert item.properties["proj:transform"] == list(box.transform)[:6]
    assert item.properties["gsd"] == 40.0
    west, south, east, north = item.bbox or ()
    assert west < 15.5 < east or west < east
    assert south < north
    parameters = item.properties["emb:runtime_parameters"]
    assert parameters["weights_sha256"] == card("tiny").weights.sha256
    assert "synthetic" in item.properties["title"]
    assert item.assets["embeddings"].href == f"./{name}.zarr"
    if name == "int8":
        assert item.datetime is None
        assert item.properties["emb:quantization"]["scale"] == [card("tiny").layer().int8_scale]
        assert item.assets["embeddings"].extra_fields["data_type"] == "int8"
        assert item.properties["cube:dimensions"]["time"]["type"] == "temporal"


def test_an_item_with_a_field_that_the_extension_does_not_know_fails(stores: dict[str, Path]) -> None:
    d = stac_item(stores["int8"]).to_dict()
    for key in ("emb:type", "emb:model"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**d, "properties": {**d["properties"], key: "chip"}}, EMB_ITEM)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**d, "assets": {"data": d["assets"]["embeddings"]}}, EMB_ITEM)


@pytest.mark.parametrize("name", ["tiny", "vitb", "swinb", "dynamicworld", "galileo_nano"])
def test_the_model_validates_as_an_mlm_item(name: str) -> None:
    schema = pytest.importorskip("stac_model.schema")
    item = model_item(name)
    core(item, pystac.STACObjectType.ITEM)
    read = schema.MLModelProperties.model_validate(item.properties)
    own = card(name)
    assert [list(i.bands) for i in read.input] == [list(s.bands) for s in own.stems]
    assert read.output[-1].result.shape[1] == own.dim
    from pystac.extensions.mlm import MLMExtension

    mlm = MLMExtension.ext(item)
    assert (mlm.mlm_name, mlm.pretrained) == (own.name, own.trained)
    model = item.assets["model"]
    assert "mlm:model" in (model.roles or [])
    assert model.extra_fields["mlm:artifact_type"] in ("safetensors", "torch.save")
    described = [b["name"] for b in model.extra_fields["bands"]]
    assert {b for i in read.input for b in i.bands} == set(described)
    broken = {**item.properties, "mlm:tasks": ["embedding"]}
    with pytest.raises(ValueError, match="mlm:tasks|tasks"):
        schema.MLModelProperties.model_validate(broken)


def test_publish_writes_three_files_that_lead_to_each_other(stores: dict[str, Path]) -> None:
    files = publish(stores["int8"], license="CC-BY-4.0")
    assert [f.name for f in files] == ["int8.item.json", "int8.collection.json", "int8.model.json"]
    item, collection, model = (json.loads(f.read_text()) for f in files)
    jsonschema.validate(core(item, pystac.STACObjectType.ITEM), EMB_ITEM)
    jsonschema.validate(core(collection, pystac.STACObjectType.COLLECTION), EMB_COLLECTION)
    core(model, pystac.STACObjectType.ITEM)
    for written in (item, collection):
        for link in written["links"]:
            if link["href"].startswith("./"):
                assert (files[0].parent / link["href"]).exists(), link
    assert (files[0].parent / item["assets"]["embeddings"]["href"]).exists()
    read = pystac.Item.from_file(str(files[0]))
    store = read.assets["embeddings"].get_absolute_href()
    assert store is not None
    xr.testing.assert_identical(open_embeddings(store), open_embeddings(stores["int8"]))
    assert collection["license"] == "CC-BY-4.0"
    assert publish(stores["int8"])[0].read_text() == files[0].read_text()  # nothing in it is of the moment


def test_what_cannot_be_published_is_refused(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"stac_item\(store\)"):
        publish("s3://bucket/emb.zarr")
    with pytest.raises(StoreMismatchError, match="does not exist"):
        publish(tmp_path / "nothing.zarr")
    timeless = embed(synthetic_cube(size=64, times=1).isel(time=0, drop=True), tile=64, halo=16)
    to_zarr(timeless, tmp_path / "timeless.zarr", progress=False)
    with pytest.raises(StoreMismatchError, match="have no time"):
        stac_item(tmp_path / "timeless.zarr")
    with pytest.raises(UnknownModelError, match="another version"):
        model_item("tiny", weights_sha256="0" * 64)
    other = ModelCard.from_dict({**card("tiny").to_dict(), "name": "mine.v1"})
    assert publish(stores["odd"], model=other)[2].read_text().count('"mlm:name": "mine.v1"') == 1


# --- other readers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int8", "odd"])
def test_plain_xarray_rioxarray_and_odc_geo_read_values_and_places(stores: dict[str, Path], name: str) -> None:
    import odc.geo.xr  # noqa: F401 - registers .odc
    import rioxarray  # noqa: F401 - registers .rio

    ours = open_embeddings(stores[name])
    with xr.open_zarr(stores[name]) as ds:
        there = ds["embeddings"].sel(x=ours.x, y=ours.y)
        # JSON has no float32: plain xarray scales int8 in float64, open_embeddings in float32.
        np.testing.assert_allclose(there.values, ours.values, rtol=1e-6)
        one = ours.isel(time=0)
        box = georeference.geobox(one.isel(embedding=0, drop=True))
        plain = ds["embeddings"].isel(time=0).sel(x=ours.x, y=ours.y)
        assert plain.rio.transform().almost_equals(box.transform, precision=1e-6)
        assert plain.rio.crs == box.crs.to_wkt()
        # odc-geo computes the pixel from the coordinates, so the last digits of a corner may differ.
        assert plain.odc.geobox.crs == box.crs
        assert plain.odc.geobox.transform.almost_equals(box.transform, precision=1e-6)
        warped = plain.astype("float32").odc.reproject("EPSG:3857").compute()
        assert np.isfinite(warped.values).mean() > 0.5


def test_gdal_reads_the_store_where_it_can(stores: dict[str, Path]) -> None:
    """GDAL's Zarr driver reads sharded Zarr 3 from 3.13 on, by its documentation; 3.10 and 3.12 were seen not to."""
    import rasterio

    if tuple(int(n) for n in rasterio.__gdal_version__.split(".")[:2]) < (3, 13):
        pytest.skip(f"GDAL {rasterio.__gdal_version__}: sharding came with 3.13")
    with rasterio.open(f'ZARR:"{stores["int8"]}":/embeddings:0') as file:
        read = file.read()
    with xr.open_zarr(stores["int8"], mask_and_scale=False) as ds:
        np.testing.assert_array_equal(read, ds["embeddings"].isel(time=0).values)
