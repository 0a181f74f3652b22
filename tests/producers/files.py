"""Producers that write files, and packages that open them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio.shutil
import xarray as xr

from tests.conftest import find_shared
from tests.producers import makers as m
from tests.producers.producers import Made, Producer

FILES = "Files"
PRODUCTS = "Products"
STORES = "Stores and references"


@contextlib.contextmanager
def named_tif(folder: Path) -> Iterator[Made]:
    plain = m.scene()
    m.raster(folder / "scene.tif", m.stack(plain), names=m.BANDS)
    yield {}, plain


@contextlib.contextmanager
def earth_engine_export(folder: Path) -> Iterator[Made]:
    """uint16 without a mark of no data: `Export.image.toDrive` writes 0 where the image is masked."""
    plain = m.scene()
    m.raster(folder / "export.tif", m.stack(plain), names=m.SHORT, nodata=None)
    yield {}, plain


@contextlib.contextmanager
def force(folder: Path) -> Iterator[Made]:
    plain = m.scene()
    signed = [np.where(v > 0, v, -9999).astype("int16") for v in map(np.int32, m.stack(plain))]
    tags = {"FORCE_Program": "FORCE - Framework for Operational Radiometric Correction for Environmental monitoring"}
    m.raster(folder / "20220305_LEVEL2_SEN2A_BOA.tif", signed, names=m.FORCE, nodata=-9999, tags=tags)
    yield {}, plain


@contextlib.contextmanager
def hls(folder: Path) -> Iterator[Made]:
    """HLS S30: a COG per band at 30 m, int16, scale 0.0001, -9999 for no data."""
    plain = m.scene(size=48)
    for name, title, values in zip(m.BANDS, m.HLS, m.stack(plain), strict=True):
        signed = np.where(values > 0, values.astype("int32"), -9999).astype("int16")
        path = folder / f"HLS.S30.T33TWM.2022064T102921.v2.0.{name}.tif"
        tags = {"SPACECRAFT_NAME": "Sentinel-2A", "add_offset": "0", "scale_factor": "0.0001", "_FillValue": "-9999"}
        m.raster(path, [signed], names=[title], nodata=-9999, scale=1e-4, resolution=30, tags=tags)
    coarse = xr.Dataset(
        {b: (("y", "x"), plain[b].values) for b in m.BANDS},
        {"y": m.NORTH - 30 * (np.arange(48) + 0.5), "x": m.WEST + 30 * (np.arange(48) + 0.5)},
    ).rio.write_crs(m.EPSG)
    fine = coarse.map(lambda v: xr.DataArray(np.repeat(np.repeat(v.values, 3, 0), 3, 1), dims=("y", "x")))
    edges = {"y": m.NORTH - 10 * (np.arange(144) + 0.5), "x": m.WEST + 10 * (np.arange(144) + 0.5)}
    date = [np.datetime64("2022-03-05T10:29:21", "ns")]
    yield {}, fine.assign_coords(edges).expand_dims(time=date).rio.write_crs(m.EPSG)


@contextlib.contextmanager
def gdal_netcdf(folder: Path) -> Iterator[Made]:
    plain = m.scene()
    m.raster(folder / "scene.tif", m.stack(plain))
    rasterio.shutil.copy(folder / "scene.tif", folder / "scene.nc", driver="netCDF")
    yield {}, plain


@contextlib.contextmanager
def vrt(folder: Path) -> Iterator[Made]:
    plain = m.scene()
    files = [m.raster(folder / f"{b}.tif", [m.native(b, plain[b].values)], resolution=10 if b in m.TEN_METRES else 20)
             for b in m.BANDS]  # fmt: skip
    m.vrt(files, folder / "scene.vrt")
    yield {}, plain


@contextlib.contextmanager
def one_file_per_band(folder: Path) -> Iterator[Made]:
    """Regular cubes of sits and sen2r: a file per band, 10 m, int16, -9999 for no data, scale in the description."""
    plain = m.scene()
    date = [np.datetime64("2022-03-05", "ns")]
    for band, values in zip(m.BANDS, m.stack(plain), strict=True):
        signed = np.where(values > 0, values.astype("int32"), -9999).astype("int16")
        m.raster(folder / f"SENTINEL-2_MSI_33TWM_{band}_2022-03-05.tif", [signed], nodata=-9999)
    yield {}, plain.expand_dims(time=date)


@contextlib.contextmanager
def snap(folder: Path) -> Iterator[Made]:
    plain = m.scene()
    m.snap_netcdf(plain, folder / "subset_S2A_resampled.nc")
    yield {}, plain


@contextlib.contextmanager
def snap_dimap(folder: Path) -> Iterator[Made]:
    """BEAM-DIMAP: an ENVI file of float reflectance per band, big-endian, with no mark of no data but NaN."""
    plain = m.scene()
    for name, values in m.reflectance(plain).items():
        short = m.SHORT[m.BANDS.index(str(name))]
        m.raster(folder / "scene.data" / f"{short}.img", [values.values], names=[short], nodata=None, driver="ENVI")
    yield {}, plain


@contextlib.contextmanager
def safe(folder: Path) -> Iterator[Made]:
    plain = m.scene()
    yield {"product": str(m.safe(plain, folder))}, plain


@contextlib.contextmanager
def safe_at_once(folder: Path) -> Iterator[Made]:
    plain = m.scene(times=2).isel(time=[0])
    yield {"product": str(m.safe(m.scene(), folder))}, plain


@contextlib.contextmanager
def eopf(folder: Path) -> Iterator[Made]:
    plain = m.scene(times=2).isel(time=[0])
    yield {"product": str(m.eopf(m.scene(), folder))}, plain


@contextlib.contextmanager
def eopf_resampled(folder: Path) -> Iterator[Made]:
    """As xarray-eopf resamples: it leaves the outermost 10 m pixels of the 20 m bands without data."""
    plain = m.scene()
    seen = np.ones((64, 64), bool)
    seen[0] = seen[-1] = seen[:, 0] = seen[:, -1] = False
    for band in set(m.BANDS) - set(m.TEN_METRES):
        plain[band] = plain[band].where(seen, 0).astype("uint16")
    yield {"product": str(m.eopf(m.scene(), folder))}, plain


@contextlib.contextmanager
def netcdf(folder: Path) -> Iterator[Made]:
    plain = m.scene(times=2)
    m.reflectance(plain).to_netcdf(
        folder / "cube.nc",
        encoding={b: {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -9999, "grid_mapping": "spatial_ref"}
                  for b in m.BANDS},
    )  # fmt: skip
    yield {}, plain


@contextlib.contextmanager
def openeo_netcdf(folder: Path) -> Iterator[Made]:
    """The batch result of an openEO back-end: `t, y, x`, a scalar `crs`, and 65535 for no data that nothing states."""
    plain = m.scene(times=2)
    filled = plain.map(lambda v: v.where(v > 0, 65535).astype("uint16")).rename(time="t").drop_vars("spatial_ref")
    filled["crs"] = ((), b"", {"crs_wkt": rasterio.crs.CRS.from_epsg(m.EPSG).to_wkt(), "spatial_ref": "EPSG:32633"})
    for band in m.BANDS:
        filled[band].attrs = {"long_name": band, "units": "", "grid_mapping": "crs"}
    filled.attrs = {"Conventions": "CF-1.9", "institution": "openEO platform - Geotrellis backend: 0.40.1a1"}
    filled.drop_encoding().to_netcdf(folder / "openEO.nc")
    yield {}, plain


@contextlib.contextmanager
def zarr(folder: Path) -> Iterator[Made]:
    plain = m.scene(times=2)
    plain.to_zarr(folder / "cube.zarr", zarr_format=3, consolidated=False)
    yield {}, plain


@contextlib.contextmanager
def kerchunk(folder: Path) -> Iterator[Made]:
    from kerchunk.hdf import SingleHdf5ToZarr

    plain = m.scene(times=2)
    plain.to_netcdf(folder / "cube.nc")
    (folder / "references.json").write_text(json.dumps(SingleHdf5ToZarr(str(folder / "cube.nc")).translate()))
    yield {}, plain


@contextlib.contextmanager
def virtual(folder: Path) -> Iterator[Made]:
    import virtualizarr
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr.parsers import HDFParser

    plain = m.scene(times=2)
    plain.to_netcdf(folder / "cube.nc")
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    opened = virtualizarr.open_virtual_dataset(f"file://{folder}/cube.nc", parser=HDFParser(), registry=registry)
    opened.vz.to_kerchunk(str(folder / "references.json"), format="json")
    yield {}, plain


@contextlib.contextmanager
def icechunk(folder: Path) -> Iterator[Made]:
    import icechunk as ic

    plain = m.scene(times=2)
    repository = ic.Repository.create(ic.local_filesystem_storage(str(folder / "repository")))
    session = repository.writable_session("main")
    plain.to_zarr(session.store, consolidated=False, zarr_format=3)
    session.commit("a cube")
    yield {"repository": repository}, plain


@contextlib.contextmanager
def satpy(folder: Path) -> Iterator[Made]:
    plain = m.scene()
    product = m.safe(plain, folder)
    files = [str(p) for p in product.rglob("*") if p.suffix in (".jp2", ".xml")]
    yield {"files": files}, plain


@contextlib.contextmanager
def belgium(folder: Path) -> Iterator[Made]:
    shared = find_shared()
    assert shared is not None, "real data not found: set DEO_CUBE_DATA to the folder that holds data/"
    path = shared / "data/cubes/belgium_monthly_2020-11_2021-10.nc"
    with xr.open_dataset(path, mask_and_scale=False, decode_coords="all") as opened:
        ds = opened.isel(t=slice(3))  # the second date is empty
        bands = {b: ds[f"S2-L2A-{b if b != 'B8A' else 'B08'}"].astype("uint16") for b in m.BANDS}
    plain = xr.Dataset({b: v.drop_attrs() for b, v in bands.items()}, attrs={"nodata": 65535})
    yield {"path": str(path)}, plain.rename(t="time").drop_vars("crs").rio.write_crs(32631)


PRODUCERS: Sequence[Producer] = (
    Producer(
        "GeoTIFF with names of bands", FILES, "`band, y, x`, descriptions `B02` ... `B12`",
        'emb = deo_cube.open_cube("scene.tif").deo.embed(offset=0)',
        "bands from the descriptions, DN from the integer type, no data from the file; the offset is asked for",
        "A file without names has positions only: `.assign_coords(band=BANDS)` in the file's order.",
        named_tif, ("rioxarray",),
    ),
    Producer(
        "Earth Engine export", FILES, "GeoTIFF, descriptions `B2` ... `B12`, uint16, no mark of no data",
        'emb = deo_cube.open_cube("export.tif").deo.embed(offset=0)',
        "bands from the descriptions; 0 is no data in DN; the offset is asked for",
        "Exports of mixed types are float64: `units=\"dn\"` as well.",
        earth_engine_export, ("rioxarray",),
    ),
    Producer(
        "FORCE, Level 2 BOA", FILES, "GeoTIFF, descriptions `BLUE` ... `BROADNIR`, `NIR` ... `SWIR2`, int16, -9999",
        'emb = deo_cube.open_cube("20220305_LEVEL2_SEN2A_BOA.tif").deo.embed(offset=0)',
        "bands from the descriptions, no data from the file; the offset is asked for",
        "BROADNIR is B08 and NIR is B8A. FORCE writes surface reflectance of its own processing.",
        force, ("rioxarray",),
    ),
    Producer(
        "HLS S30", FILES, "a COG per band at 30 m, int16, scale 0.0001, -9999",
        'emb = deo_cube.open_cube("HLS.S30.T33TWM.2022064T102921.v2.0.*.tif", resolution=10).deo.embed()',
        "DN without an offset, no data and date from the files; clouds from the bits of Fmask; 30 m pixels are refused",
        "NBAR, harmonised with Landsat: not the values that the models were trained on. L30 is Landsat, and refused.",
        hls, ("rioxarray",),
    ),
    Producer(
        "A file per band (sits, sen2r)", FILES, "GeoTIFFs of one band, int16, -9999",
        'emb = deo_cube.open_cube("SENTINEL-2_MSI_33TWM_*_2022-03-05.tif").deo.embed(offset=0)',
        "bands from the names of the files, date from them too, no data from the files; the offset is asked for", "",
        one_file_per_band, ("rioxarray",),
    ),
    Producer(
        "GDAL netCDF", FILES, "`y, x`, `Band1` ... `Band10` by position, south up",
        'ds = deo_cube.open_cube("scene.nc")\n'
        'ds = ds.rename({f"Band{i}": b for i, b in enumerate(BANDS, 1)})\n'
        "emb = ds.deo.embed(offset=0)",
        "no data from `_FillValue`; names are positions, and asked for", "The result is south up, like the file.",
        gdal_netcdf, ("netCDF4",), ("netCDF4",),
    ),
    Producer(
        "GDAL VRT (`gdalbuildvrt -separate`)", FILES, "`band, y, x` without names",
        'emb = deo_cube.open_cube("scene.vrt").assign_coords(band=BANDS).deo.embed(offset=0)',

        "no data from the file; names and offset are asked for", "", vrt, ("rioxarray",),
    ),
    Producer(
        "SNAP, NetCDF4-CF", FILES, "`y, x`, `B2` ... `B12`, uint16 with CF scale and offset, `crs` with `wkt`",
        'emb = deo_cube.open_cube("subset_S2A_resampled.nc").deo.embed()',
        "bands from the names; scale, offset and no data from CF attributes; CRS from `wkt`", "",
        snap, ("netCDF4",), ("netCDF4",),
    ),
    Producer(
        "SNAP, BEAM-DIMAP", FILES, "a folder of ENVI files, float32 reflectance, a file per band",
        'files = {b: f"scene.data/{b.replace(\'B0\', \'B\')}.img" for b in BANDS}\n'
        'ds = xr.Dataset({b: rioxarray.open_rasterio(f).squeeze("band", drop=True) for b, f in files.items()})\n'
        'emb = ds.deo.embed(units="reflectance")',
        "units are asked for; reflectance carries no offset", "SNAP applies the offset when it opens the product.",
        snap_dimap, ("rioxarray",), exact=False,
    ),
    Producer(
        "Sen2Cor product, JPEG 2000", PRODUCTS, "a JP2 per band in `.SAFE`, uint16 DN, no mark of no data",
        "emb = deo_cube.open_cube(product).deo.embed()",
        "offset and baseline from the product's metadata, clouds from SCL", "One time step, in the product's own grid.",
        safe_at_once, ("rioxarray",),
    ),
    Producer(
        "Sen2Cor product, GDAL's driver", PRODUCTS, "a dataset per resolution, `B4, central wavelength 665 nm`",
        'path = f"SENTINEL2_L2A:{product}/MTD_MSIL2A.xml:%dm:EPSG_32633"\n'
        "r10m, r20m = (rioxarray.open_rasterio(path % r, band_as_variable=True, chunks={}) for r in (10, 20))\n"
        'r10m, r20m = (d.rename({n: v.attrs["BANDNAME"] for n, v in d.items()}) for d in (r10m, r20m))\n'
        'ds = xr.merge([r10m, r20m.odc.reproject(r10m.odc.geobox, resampling="nearest")], compat="override")\n'
        "emb = ds.deo.embed(offset=-1000)",
        "clouds from SCL, 0 is no data in DN; the offset is asked for", "", safe, ("rioxarray",),
    ),
    Producer(
        "EOPF product (Zarr)", PRODUCTS, "a group per resolution, `b02` ... `b12`, uint16 with CF scale and offset",
        "emb = deo_cube.open_cube(product).deo.embed()",
        "offset, no data, date and CRS from the product's attributes, clouds from SCL where it has one",
        "A tree of `xr.open_datatree` can be embedded as well, decoded or not.", eopf, ("zarr",), ("zarr",),
    ),
    Producer(
        "xarray-eopf", PRODUCTS, "`y, x`, `b02` ... `b12`, float64 reflectance, units \"digital_counts\" left over",
        'ds = xr.open_dataset(product, engine="eopf-zarr", chunks={}, resolution=10, interp_methods="nearest")\n'
        'emb = ds.deo.embed(units="reflectance")',
        "CRS from `spatial_ref`; units are asked for, since the scale is gone and the unit is that of the file",
        "It resamples 20 m bands linearly unless told otherwise, and leaves their last pixels without data.",
        eopf_resampled, ("xarray-eopf",), ("xarray_eopf",),
    ),
    Producer(
        "satpy (`msi_safe_l2a`)", PRODUCTS, "`y, x`, `B02` ... `B12`, float32 per cent, `crs` as an object",
        'scene = satpy.Scene(filenames=files, reader="msi_safe_l2a")\n'
        "scene.load(BANDS)\n"
        'ds = scene.resample(scene["B02"].attrs["area"], resampler="native").to_xarray_dataset()\n'
        "emb = ds.deo.embed()",
        "per cent from the attribute `units`, CRS from the coordinate `crs`; reflectance carries no offset",
        "satpy applies quantification and offset of the product.", satpy, ("satpy",),
        ("satpy", "bottleneck", "geotiepoints"), exact=False,
    ),
    Producer(
        "xarray, netCDF", STORES, "`time, y, x`, int16 with CF scale",
        'emb = deo_cube.open_cube("cube.nc").deo.embed(offset=0)',
        "DN from the scale, no data from `_FillValue`, CRS from `grid_mapping`; the offset is asked for",
        "", netcdf, ("netCDF4",), ("netCDF4",),
    ),
    Producer(
        "openEO, netCDF of a back-end", STORES, "`t, y, x`, uint16 DN, 65535 for no data that nothing states",
        'emb = deo_cube.open_cube("openEO.nc").deo.embed(offset=0, nodata=65535)',
        "CRS from `crs`; offset and no data are asked for",
        "65535 is refused when it is met, with `nodata=65535` as the way out.",
        openeo_netcdf, ("netCDF4",), ("netCDF4",),
    ),
    Producer(
        "openEO, netCDF, real file", STORES, "as above, `S2-L2A-B02` ..., without B8A",
        'ds = deo_cube.open_cube(path).isel(t=slice(3))\n'
        'emb = ds.deo.embed(offset=0, nodata=65535, missing="nearest")',
        "as above; B08 stands in for B8A because it is asked for", "", belgium, ("netCDF4",), ("netCDF4",), real=True,
    ),
    Producer(
        "xarray, Zarr", STORES, "`time, y, x`, uint16",
        'emb = deo_cube.open_cube("cube.zarr").deo.embed(offset=0)',
        "DN from the integer type, 0 is no data in DN; the offset is asked for", "", zarr, ("zarr",), ("zarr",),
    ),
    Producer(
        "kerchunk", STORES, "references to netCDF or GeoTIFF, opened by xarray",
        'emb = deo_cube.open_cube("references.json").deo.embed(offset=0)',
        "as for the files that are referred to", "", kerchunk, ("kerchunk",), ("kerchunk", "h5py"),
    ),
    Producer(
        "VirtualiZarr", STORES, "references, opened by xarray, with every fill value stated",
        'emb = deo_cube.open_cube("references.json").deo.embed(offset=0, nodata=0)',
        "as for the files; netCDF's own fill value, 65535 in uint16, is stated even where the file states none",
        "Arrays of references (`open_virtual_dataset`) hold no pixels.",
        virtual, ("virtualizarr",), ("virtualizarr", "kerchunk", "obstore"),
    ),
    Producer(
        "icechunk", STORES, "`time, y, x`, uint16, a session of a repository",
        'store = repository.readonly_session("main").store\n'
        "emb = deo_cube.open_cube(store).deo.embed(offset=0)",
        "as for Zarr", "", icechunk, ("icechunk",), ("icechunk",),
    ),
)  # fmt: skip
