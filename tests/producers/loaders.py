"""Producers that load STAC items: their real code, on items and files that a server on loopback hands out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pystac

from tests.cube.range_server import serve
from tests.cube.stac_api import stac_api
from tests.producers import makers as m
from tests.producers import services
from tests.producers.producers import Made, Producer

GROUP = "STAC items and services"
BASELINE = {"s2:processing_baseline": "04.00"}
STATED = {"scale": 1e-4, "offset": -0.1}
EAST, SOUTH = m.WEST + 640, m.NORTH - 640
BOUNDS = (m.WEST, SOUTH, EAST, m.NORTH)


@contextlib.contextmanager
def served(folder: Path, plain: Any, **how: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """URL of a server on loopback, and the items whose files it serves."""
    with serve(folder) as server:
        yield server.url, m.items(plain, folder, url=server.url, **how)


@contextlib.contextmanager
def as_published(folder: Path) -> Iterator[Made]:
    """Items that state baseline 04.00 and nothing of scale and offset."""
    plain = m.scene(times=2)
    with served(folder, m.carrying(plain), properties=BASELINE) as (_, found):
        yield {"items": [pystac.Item.from_dict(i) for i in found], "bounds": BOUNDS}, plain


@contextlib.contextmanager
def with_scale(folder: Path) -> Iterator[Made]:
    """Items that state scale and offset of their files."""
    plain = m.scene(times=2)
    with served(folder, m.carrying(plain), properties=BASELINE, bands=STATED) as (_, found):
        yield {"items": [pystac.Item.from_dict(i) for i in found], "bounds": BOUNDS}, plain


def mirrored(folder: Path, bucket: str, harmonised: bool, keys: Sequence[str], **how: Any) -> Iterator[Made]:
    """Items of a public catalogue, with its hrefs; `mirror` leads to the copy on loopback."""
    plain = m.scene(times=2)
    with served(folder, plain if harmonised else m.carrying(plain), keys=keys, **how) as (url, found):
        for item in found:
            for asset in item["assets"].values():
                asset["href"] = asset["href"].replace(url, bucket)
        yield {"items": found, "mirror": lambda href: href.replace(bucket, url)}, plain


_COMMON = "blue green red rededge1 rededge2 rededge3 nir nir08 swir16 swir22".split()


@contextlib.contextmanager
def earth_search(folder: Path) -> Iterator[Made]:
    bucket = "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a"
    yield from mirrored(
        folder, bucket, False, _COMMON, bands=STATED, properties={"s2:processing_baseline": "05.11"},
        collection="sentinel-2-c1-l2a",
    )  # fmt: skip


@contextlib.contextmanager
def earth_search_l2a(folder: Path) -> Iterator[Made]:
    bucket = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs"
    stated = {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}
    yield from mirrored(folder, bucket, True, _COMMON, bands=STATED, properties=stated)


@contextlib.contextmanager
def planetary_computer(folder: Path) -> Iterator[Made]:
    bucket = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2"
    yield from mirrored(folder, bucket, False, m.BANDS, properties={"s2:processing_baseline": "05.10"})


@contextlib.contextmanager
def copernicus(folder: Path) -> Iterator[Made]:
    keys = [f"{b}_{10 if b in m.TEN_METRES else 20}m" for b in m.BANDS]
    yield from mirrored(
        folder, "s3://eodata/Sentinel-2/MSI/L2A", False, keys, properties={"processing:version": "05.11"}
    )


@contextlib.contextmanager
def australia(folder: Path) -> Iterator[Made]:
    plain = m.scene(times=2)
    signed = plain.map(lambda v: v.where(v > 0, -999).astype("int16"))
    keys = [f"nbart_{name}" for name in m.AUSTRALIA]
    with served(folder, signed, keys=keys, nodata=-999, collection="ga_s2am_ard_3") as (_, found):
        yield (
            {"items": [pystac.Item.from_dict(i) for i in found], "names": dict(zip(m.BANDS, keys, strict=True))},
            plain,
        )


@contextlib.contextmanager
def africa(folder: Path) -> Iterator[Made]:
    plain = m.scene(times=2)
    with served(folder, plain, collection="s2_l2a", properties={"s2:processing_baseline": "04.00"}) as (_, found):
        yield {"items": [pystac.Item.from_dict(i) for i in found]}, plain


@contextlib.contextmanager
def openeo_local(folder: Path) -> Iterator[Made]:
    """openEO's client-side processing of an item; the validator, which downloads JSON schemas, is left out."""
    from openeo_processes_dask.process_implementations.cubes import load

    plain = m.scene(times=2)
    with served(folder, m.carrying(plain), properties=BASELINE) as (url, found):
        (folder / "item.json").write_text(json.dumps(found[0]))
        with mock.patch.object(load, "_validate_stac", return_value="ITEM"):
            yield {"url": f"{url}/item.json"}, plain.isel(time=[0])


@contextlib.contextmanager
def cubo(folder: Path) -> Iterator[Made]:
    from pyproj import Transformer

    plain = m.scene(times=2)
    lon, lat = Transformer.from_crs(m.EPSG, 4326, always_xy=True).transform(m.WEST + 320, m.NORTH - 320)
    with served(folder, m.carrying(plain), properties=BASELINE) as (_, found), stac_api(found, folder) as api:
        where = {"lat": lat, "lon": lon, "edge_size": 64, "resolution": 10, "stac": api}
        yield {"where": where | {"collection": "sentinel-2-l2a"}}, plain


@contextlib.contextmanager
def sen2nbar(folder: Path) -> Iterator[Made]:
    """A stackstac cube and its catalogue; the factors, which need angles of the tile, are left at 1."""
    import stackstac
    import xarray as xr
    from sen2nbar import nbar

    plain = m.scene(times=2)
    with served(folder, m.carrying(plain), properties=BASELINE) as (_, found), stac_api(found, folder) as api:
        read = [pystac.Item.from_dict(i) for i in found]
        stack = stackstac.stack(read, assets=m.BANDS, epsg=m.EPSG, resolution=10, bounds=BOUNDS)
        ends = {"band": m.BANDS, "y": [SOUTH, m.NORTH], "x": [m.WEST, EAST]}
        ones = xr.DataArray(1.0, ends, ("band", "y", "x")).astype(float)
        with mock.patch.object(nbar, "c_factor_from_item", return_value=ones):
            yield {"stack": stack, "url": api}, plain


@contextlib.contextmanager
def xee(folder: Path) -> Iterator[Made]:
    plain = m.scene(times=2)
    grid = {"crs": f"EPSG:{m.EPSG}", "crs_transform": (10, 0, m.WEST, 0, -10, m.NORTH), "shape_2d": (64, 64)}
    with services.earth_engine(plain) as names:
        yield names | {"grid": grid}, plain


@contextlib.contextmanager
def sentinelhub(folder: Path) -> Iterator[Made]:
    """The real client, which asks a server on loopback for one image in DN (``units: "DN"`` in the evalscript)."""
    import sentinelhub as sh

    plain = m.scene()
    answer = m.raster(folder / "answer.tif", m.stack(plain), nodata=None).read_bytes()
    with (
        mock.patch.dict(os.environ, {"OAUTHLIB_INSECURE_TRANSPORT": "1"}),
        services.sentinel_hub(answer) as url,
    ):
        config = sh.SHConfig()
        config.sh_client_id = config.sh_client_secret = "loopback"
        config.sh_base_url, config.sh_token_url = url, f"{url}/oauth/token"
        bbox = sh.BBox(BOUNDS, sh.CRS.UTM_33N)
        source = sh.DataCollection.SENTINEL2_L2A.define_from(f"loopback {url}", service_url=url)
        request = sh.SentinelHubRequest(
            evalscript="//VERSION=3",
            input_data=[sh.SentinelHubRequest.input_data(source, time_interval=("2022-03-05", "2022-03-06"))],
            responses=[sh.SentinelHubRequest.output_response("default", sh.MimeType.TIFF)],
            bbox=bbox,
            resolution=(10, 10),
            config=config,
            data_folder=str(folder / "hub"),
        )
        yield {"request": request, "bbox": bbox}, plain


def _catalogue(name: str, make: Any, decided: str, mind: str) -> Producer:
    return Producer(
        name=name,
        group=GROUP,
        gives="COGs or JPEG 2000, one per band, uint16 DN; 20 m bands as such",
        lines="ds = deo_cube.load_cube(items, patch_url=mirror)\nemb = ds.deo.embed()",
        decided=decided,
        mind=mind,
        make=make,
        packages=("odc-stac",),
        modules=("odc.stac",),
    )


_MIRROR = "`patch_url=` only leads the test to a copy of the files; leave it out."

PRODUCERS: Sequence[Producer] = (
    Producer(
        "load_cube", GROUP, "`time, y, x`, a variable per band, uint16 DN",
        "ds = deo_cube.load_cube(items)\nemb = ds.deo.embed()",
        "offset from `raster:bands` of each item", "", with_scale, ("odc-stac",), ("odc.stac",),
    ),
    _catalogue("Earth Search v1, `sentinel-2-c1-l2a`", earth_search, "offset from `raster:bands`", _MIRROR),
    _catalogue(
        "Earth Search v1, `sentinel-2-l2a`", earth_search_l2a,
        "offset from `boa_offset_applied` and the bucket, which agree; `raster:bands` is known to be wrong there",
        _MIRROR + " Items where flag and bucket disagree are refused and ask for `offset=`.",
    ),
    _catalogue(
        "Planetary Computer", planetary_computer, "offset from baseline and storage account",
        _MIRROR + " hrefs are signed by the extra `stac`.",
    ),
    _catalogue("Copernicus Data Space STAC", copernicus, "offset from baseline and bucket", _MIRROR),
    Producer(
        "odc-stac", GROUP, "`time, y, x`, a variable per asset, uint16, attribute `nodata`",
        "ds = odc.stac.load(items, bands=BANDS, chunks={})\nemb = ds.deo.embed(offset=-1000)",
        "DN from the integer type, no data from `nodata`; the offset is asked for, since odc-stac keeps nothing of it",
        "`load_cube` uses odc-stac and keeps the offset of each item.", as_published, ("odc-stac",), ("odc.stac",),
    ),
    Producer(
        "stackstac, raw", GROUP, "`time, band, y, x`, uint16, corner coordinates, item properties as coordinates",
        'raw = {"dtype": "uint16", "fill_value": np.uint16(0), "rescale": False}\n'
        "da = stackstac.stack(items, assets=BANDS, epsg=32633, resolution=10, bounds=bounds, **raw)\n"
        "emb = da.deo.embed()",
        "offset from the coordinate `raster:bands`; corners from the transform beside the coordinates",
        "Without `raster:bands`, as of the Planetary Computer, the offset is asked for.", with_scale,
        ("stackstac",), ("stackstac",),
    ),
    Producer(
        "stackstac, rescaled", GROUP, "`time, band, y, x`, float64 reflectance, NaN for no data (the default)",
        "da = stackstac.stack(items, assets=BANDS, epsg=32633, resolution=10, bounds=bounds)\nemb = da.deo.embed()",
        "reflectance from stackstac's `spec` and `raster:bands`", "", with_scale, ("stackstac",), ("stackstac",),
    ),
    Producer(
        "cubo", GROUP, "`time, band, y, x`, float64 DN, corner coordinates without stackstac's transform",
        'da = cubo.create(bands=BANDS, start_date="2022-01-01", end_date="2022-12-31", xy_coords="center", **where)\n'
        'da = da.drop_attrs(deep=False).rio.write_crs(da.attrs["epsg"])\n'
        'emb = da.deo.embed(units="dn", offset=-1000)',
        "nothing: cubo drops what tells centres from corners, DN from reflectance",
        "With the default `xy_coords=\"topleft\"` move both coordinates by half a pixel, as the message says.",
        cubo, ("cubo",), ("cubo", "rustac"),
    ),
    Producer(
        "openEO, client-side processing", GROUP, "`bands, time, y, x`, uint16 DN",
        'cube = openeo.local.LocalConnection(".").load_stac(url, bands=BANDS)\n'
        "da = cube.execute()\n"
        "emb = da.deo.embed(offset=-1000)",
        "DN from the integer type; the offset is asked for",
        "Means over time come as floats without a unit: `units=\"dn\"` as well.", openeo_local,
        ("openeo", "openeo-processes-dask"), ("openeo.local", "openeo_processes_dask", "openeo_pg_parser_networkx"),
    ),
    Producer(
        "Digital Earth Australia (`ga_s2am_ard_3`)", GROUP, "`nbart_blue` ... `nbart_swir_3`, int16, -999 for no data",
        "ds = odc.stac.load(items, chunks={})\n"
        f'names = dict(zip(BANDS, "{" ".join("nbart_" + name for name in m.AUSTRALIA)}".split()))\n'
        "emb = ds.deo.embed(bands=names, offset=0)",
        "no data from `nodata`; the names are asked for, since `swir_2` is B11 there and B12 elsewhere",
        "NBART is surface reflectance of its own processing, not Sen2Cor's.", australia, ("odc-stac",), ("odc.stac",),
    ),
    Producer(
        "Digital Earth Africa (`s2_l2a`)", GROUP, "`B02` ... `B12`, uint16, 0 for no data, harmonised",
        "ds = odc.stac.load(items, bands=BANDS, chunks={})\nemb = ds.deo.embed(offset=0)",
        "DN from the integer type; the offset is asked for", "", africa, ("odc-stac",), ("odc.stac",),
    ),
    Producer(
        "sen2nbar", GROUP, "stackstac's or cubo's cube, float32 DN, harmonised, NaN for no data",
        'da = sen2nbar.nbar.nbar_stackstac(stack, url, "sentinel-2-l2a", quiet=True)\n'
        "emb = da.deo.embed(offset=0)",
        "DN from stackstac's `spec`; the offset is asked for, since coordinates still speak of baseline 04.00",
        "Reflectance at nadir: not the values that the models were trained on. Factors were left at 1 here.",
        sen2nbar, ("sen2nbar",), ("sen2nbar.nbar", "rustac"),
    ),
    Producer(
        "xee (Earth Engine)", GROUP, "`time, y, x`, float32 DN under `B2` ... `B12`, NaN where masked, attribute `crs`",
        'ds = xr.open_dataset(collection, engine="ee", chunks={}, **grid)\nemb = ds.deo.embed(units="dn", offset=0)',
        "CRS from the attribute `crs`; units and offset are asked for",
        "`S2_SR_HARMONIZED` carries no offset. The encoding's `scale_factor` is a pixel size, and is not used.",
        xee, ("xee",), ("xee", "ee"), service=True,
    ),
    Producer(
        "sentinelhub, array", GROUP, "NumPy `(y, x, band)` without coordinates",
        "emb = deo_cube.from_array(request.get_data()[0], BANDS, bbox=bbox).deo.embed(offset=0)",
        "CRS from the box, the axis of bands from their number; the offset is asked for",
        'Ask for `units: "DN"`: floats are reflectance, `units="reflectance"`. Values are harmonised.',
        sentinelhub, ("sentinelhub",), ("sentinelhub",), service=True,
    ),
    Producer(
        "sentinelhub, saved file", GROUP, "GeoTIFF without names of bands",
        "request.save_data()\n"
        "tif = deo_cube.open_cube(f\"{request.data_folder}/{request.get_filename_list()[0]}\")\n"
        "emb = tif.assign_coords(band=BANDS).deo.embed(offset=0)",
        "grid from the file; names and offset are asked for", "", sentinelhub, ("sentinelhub",), ("sentinelhub",),
        service=True,
    ),
)  # fmt: skip
