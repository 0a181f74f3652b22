"""Files as other programs write them, all of one small scene.

Each function writes what its program would: names, types, scales, marks of no data and metadata follow the program's
source code or documentation. The pixels are those of `scene`, so that what a producer's lines give can be compared with
the embeddings of the plain cube.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from pyproj import CRS, Transformer
from rasterio.transform import from_origin

import deo_cube

BANDS = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
TEN_METRES = ("B02", "B03", "B04", "B08")
EPSG = 32633
WEST, NORTH = 600000.0, 5000000.0
DATES = ("2022-03-05T10:29:21", "2022-06-03T10:29:21")

#: Names that other programs give to the ten bands, in the order of `BANDS`.
FORCE = "BLUE GREEN RED REDEDGE1 REDEDGE2 REDEDGE3 BROADNIR NIR SWIR1 SWIR2".split()
SHORT = "B2 B3 B4 B5 B6 B7 B8 B8A B11 B12".split()
AUSTRALIA = "blue green red red_edge_1 red_edge_2 red_edge_3 nir_1 nir_2 swir_2 swir_3".split()
HLS = "Blue Green Red RedEdge1 RedEdge2 RedEdge3 NIR_Broad NIR_Narrow SWIR1 SWIR2".split()


def scene(size: int = 64, times: int = 1) -> xr.Dataset:
    """Return the plain cube: DN without offset, uint16, 0 for no data beyond the swath; a CRS and no attributes."""
    drawn = deo_cube.synthetic_cube(size=size, times=2, clouds=False, gaps=True, chunks=None, seed=3)
    bands = {}
    for band in BANDS:
        values = drawn[band].values.copy()
        if band not in TEN_METRES:
            values = twice(values[:, ::2, ::2])
        seen = twice((drawn["B02"].values[:, ::2, ::2] > 0) & (drawn["B05"].values[:, ::2, ::2] > 0))
        seen[0, :10, :6] = False  # so that the first date has pixels without data too
        bands[band] = (("time", "y", "x"), np.where(seen, np.maximum(values, 1), 0).astype("uint16"))
    grid = np.arange(size) + 0.5
    coords = {"time": np.array(DATES, "datetime64[ns]"), "y": NORTH - 10 * grid, "x": WEST + 10 * grid}
    plain = xr.Dataset(bands, coords).rio.write_crs(EPSG)
    return plain.isel(time=slice(times)) if times > 1 else plain.isel(time=0, drop=True)


def twice(values: np.ndarray) -> np.ndarray:
    """Repeat each pixel two by two."""
    return values.repeat(2, -1).repeat(2, -2)


def carrying(plain: xr.Dataset) -> xr.Dataset:
    """Return the DN as they are published since processing baseline 04.00: 1000 more, 0 stays no data."""
    return plain.map(lambda v: v.where(v == 0, v + 1000).astype("uint16"))


def reflectance(plain: xr.Dataset) -> xr.Dataset:
    """Return reflectance 0..1 in float32, NaN for no data."""
    return plain.map(lambda v: (v.where(v > 0) * 1e-4).astype("float32"))


def native(band: str, values: np.ndarray) -> np.ndarray:
    """Return the pixels of one band at the resolution of its own file."""
    return values if band in TEN_METRES else values[..., ::2, ::2]


def raster(
    path: Path,
    values: Sequence[np.ndarray],
    *,
    names: Sequence[str] | None = None,
    nodata: float | None = 0,
    scale: float | None = None,
    offset: float = 0.0,
    tags: Mapping[str, str] | None = None,
    resolution: float = 10.0,
    **profile: Any,
) -> Path:
    """Write one GDAL raster, a band for each of `values`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values[0].shape
    with rasterio.open(
        path,
        "w",
        **{"driver": "GTiff", "count": len(values), "dtype": values[0].dtype, "height": height, "width": width}
        | {"crs": EPSG, "transform": from_origin(WEST, NORTH, resolution, resolution), "nodata": nodata}
        | profile,
    ) as file:
        for i, band in enumerate(values, 1):
            file.write(band, i)
        if names is not None:
            file.descriptions = tuple(names)
        if scale is not None:
            file.scales, file.offsets = (scale,) * len(values), (offset,) * len(values)
        if tags:
            file.update_tags(**tags)
    return path


def stack(plain: xr.Dataset) -> list[np.ndarray]:
    """Return the ten bands of one date, in the order of `BANDS`."""
    return [plain[band].values for band in BANDS]


# STAC -----------------------------------------------------------------------------------------------------------------


def items(
    plain: xr.Dataset,
    folder: Path,
    *,
    url: str = "",
    keys: Sequence[str] = BANDS,
    collection: str = "sentinel-2-l2a",
    properties: Mapping[str, Any] | None = None,
    bands: Mapping[str, Any] | None = None,
    nodata: float = 0,
) -> list[dict[str, Any]]:
    """Write a file for each band and date, at its own resolution, and return the STAC items that name them.

    `bands` is what each asset states as ``raster:bands``, beside type and mark of no data.
    """
    found = []
    for t, when in enumerate(plain.time.values.astype("datetime64[s]").astype(str)):
        assets = {}
        for key, band in zip(keys, BANDS, strict=True):
            values = native(band, plain[band].values[t])
            step = 10.0 * plain.sizes["x"] / values.shape[1]
            path = raster(folder / f"{when[:10]}_{key}.tif", [values], nodata=nodata, resolution=step)
            stated = {"data_type": str(values.dtype), "nodata": nodata, "spatial_resolution": step}
            assets[key] = {
                "href": f"{url}/{path.name}" if url else str(path),
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
                "eo:bands": [{"name": key}],
                "raster:bands": [stated | dict(bands or {})],
                "proj:shape": list(values.shape),
                "proj:transform": [step, 0.0, WEST, 0.0, -step, NORTH],
                "proj:bbox": [WEST, NORTH - 10.0 * plain.sizes["y"], WEST + 10.0 * plain.sizes["x"], NORTH],
            }
        found.append(item(plain, when, assets, collection, dict(properties or {})))
    return found


def item(
    plain: xr.Dataset, when: str, assets: Mapping[str, Any], collection: str, properties: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a STAC item of the scene's place."""
    to_degrees = Transformer.from_crs(EPSG, 4326, always_xy=True)
    south, east = NORTH - 10 * plain.sizes["y"], WEST + 10 * plain.sizes["x"]
    west_, south_, east_, north_ = to_degrees.transform_bounds(WEST, south, east, NORTH)
    ring = [[west_, south_], [east_, south_], [east_, north_], [west_, north_], [west_, south_]]
    extensions = ("projection/v1.1.0", "raster/v1.1.0", "eo/v1.1.0")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{e}/schema.json" for e in extensions],
        "id": f"S2A_33TWM_{when[:10].replace('-', '')}_0_L2A",
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west_, south_, east_, north_],
        "properties": {"datetime": f"{when}Z", "proj:epsg": EPSG, **properties},
        "links": [],
        "assets": dict(assets),
    }


# Products -------------------------------------------------------------------------------------------------------------

_SAFE = "S2A_MSIL2A_20220305T102921_N0400_R108_T33TWM_20220305T150000.SAFE"
_INDEX = {f"B{i + 1}": i for i in range(8)} | {"B8A": 8, "B9": 9, "B10": 10, "B11": 11, "B12": 12}


def safe(plain: xr.Dataset, folder: Path) -> Path:
    """Write the product that Sen2Cor would: JPEG 2000 files that carry the offset, and the XML that states it."""
    product = folder / _SAFE
    granule = product / "GRANULE" / "L2A_T33TWM_A034998_20220305T102921"
    published = carrying(plain)
    images = []
    for band in BANDS:
        for step in (10, 20) if band in TEN_METRES else (20,):
            values = published[band].values[:: step // 10, :: step // 10]
            path = granule / "IMG_DATA" / f"R{step}m" / f"T33TWM_20220305T102921_{band}_{step}m.jp2"
            lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
            raster(path, [values], nodata=None, resolution=float(step), **lossless)
            path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)
            images.append(path.relative_to(product).with_suffix("").as_posix())
    classes = np.where(plain["B05"].values[::2, ::2] > 0, 4, 0).astype("uint8")
    path = granule / "IMG_DATA" / "R20m" / "T33TWM_20220305T102921_SCL_20m.jp2"
    raster(path, [classes], nodata=None, resolution=20.0, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    images.append(path.relative_to(product).with_suffix("").as_posix())
    shape = plain.sizes["y"], plain.sizes["x"]
    sizes = "".join(
        f'<Size resolution="{r}"><NROWS>{10 * shape[0] // r}</NROWS><NCOLS>{10 * shape[1] // r}</NCOLS></Size>'
        f'<Geoposition resolution="{r}"><ULX>{WEST:.0f}</ULX><ULY>{NORTH:.0f}</ULY><XDIM>{r}</XDIM><YDIM>-{r}</YDIM>'
        "</Geoposition>"
        for r in (10, 20, 60)
    )
    (granule / "MTD_TL.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/'
        'S2_PDI_Level-2A_Tile_Metadata.xsd"><n1:General_Info><TILE_ID metadataLevel="Brief">S2A_OPER_MSI_L2A_TL_VGS2_'
        "20220305T150000_A034998_T33TWM_N04.00</TILE_ID><SENSING_TIME>2022-03-05T10:29:21.024Z</SENSING_TIME>"
        "</n1:General_Info><n1:Geometric_Info><Tile_Geocoding><HORIZONTAL_CS_NAME>WGS84 / UTM zone 33N"
        f"</HORIZONTAL_CS_NAME><HORIZONTAL_CS_CODE>EPSG:{EPSG}</HORIZONTAL_CS_CODE>{sizes}</Tile_Geocoding>"
        "</n1:Geometric_Info></n1:Level-2A_Tile_ID>"
    )
    files = "".join(f"<IMAGE_FILE>{i}</IMAGE_FILE>" for i in images)
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in _INDEX.values())
    spectral = "".join(
        f'<Spectral_Information bandId="{i}" physicalBand="{b}"><RESOLUTION>10</RESOLUTION></Spectral_Information>'
        for b, i in _INDEX.items()
    )
    special = "".join(
        f"<Special_Values><SPECIAL_VALUE_TEXT>{t}</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>{v}</SPECIAL_VALUE_INDEX>"
        "</Special_Values>"
        for t, v in (("NODATA", 0), ("SATURATED", 65535))
    )
    (product / "MTD_MSIL2A.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/'
        'PSD/User_Product_Level-2A.xsd"><n1:General_Info><Product_Info><PRODUCT_START_TIME>2022-03-05T10:29:21.024Z'
        "</PRODUCT_START_TIME><PRODUCT_STOP_TIME>2022-03-05T10:29:21.024Z</PRODUCT_STOP_TIME>"
        f"<PRODUCT_URI>{_SAFE}</PRODUCT_URI><PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL><PRODUCT_TYPE>S2MSI2A"
        "</PRODUCT_TYPE><PROCESSING_BASELINE>04.00</PROCESSING_BASELINE><Query_Options><PRODUCT_FORMAT>SAFE_COMPACT"
        "</PRODUCT_FORMAT></Query_Options><Product_Organisation><Granule_List>"
        '<Granule datastripIdentifier="S2A_OPER_MSI_L2A_DS_VGS2_20220305T150000_S20220305T102921_N04.00" '
        f'granuleIdentifier="S2A_OPER_MSI_L2A_TL_VGS2_20220305T150000_A034998_T33TWM_N04.00" imageFormat="JPEG2000">'
        f"{files}</Granule></Granule_List></Product_Organisation></Product_Info><Product_Image_Characteristics>{special}"
        '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
        f"</QUANTIFICATION_VALUES_LIST><BOA_ADD_OFFSET_VALUES_LIST>{offsets}</BOA_ADD_OFFSET_VALUES_LIST>"
        f"<Spectral_Information_List>{spectral}</Spectral_Information_List></Product_Image_Characteristics>"
        "</n1:General_Info></n1:Level-2A_User_Product>"
    )
    return product


def eopf(plain: xr.Dataset, folder: Path) -> Path:
    """Write an EOPF product (Zarr 2): a group for each resolution, DN with scale and offset stated after CF."""
    path = folder / "S2A_MSIL2A_20220305T102921_N0400_R108_T33TWM_20220305T150000.zarr"
    published = carrying(plain)
    groups = {}
    for step, of in ((10, TEN_METRES), (20, [b for b in BANDS if b not in TEN_METRES])):
        data = {}
        for band in of:
            values = published[band].values[:: step // 10, :: step // 10]
            attrs = {
                "long_name": f"BOA reflectance from MSI acquisition at spectral band {band.lower()}",
                "units": "digital_counts",
                "valid_min": 1,
                "valid_max": 65535,
                "scale_factor": 1e-4,
                "add_offset": -0.1,
                "_FillValue": np.uint16(0),
                "proj:epsg": EPSG,
                "proj:shape": list(values.shape),
                "proj:transform": [step, 0, WEST, 0, -step, NORTH, 0, 0, 1],
                "proj:wkt2": CRS(EPSG).to_wkt(),
            }
            data[band.lower()] = (("y", "x"), values, attrs)
        rows, columns = values.shape
        coords = {"y": NORTH - step * (np.arange(rows) + 0.5), "x": WEST + step * (np.arange(columns) + 0.5)}
        groups[f"/measurements/reflectance/r{step}m"] = xr.Dataset(data, coords).chunk()
    tree = xr.DataTree.from_dict(groups)
    properties = {"platform": "sentinel-2a", "processing:version": "04.00", "proj:code": f"EPSG:{EPSG}"}
    tree.attrs = {
        "other_metadata": {"horizontal_CRS_code": f"EPSG:{EPSG}", "band_description": {}},
        "stac_discovery": {"type": "Feature", "id": path.stem, "properties": properties},
    }
    tree.to_zarr(path, zarr_format=2, consolidated=True)
    return path


def vrt(files: Sequence[Path], path: Path) -> Path:
    """Write what `gdalbuildvrt -separate` does: a band for each file, without names."""
    with rasterio.open(files[0]) as first:
        height, width = first.shape
        transform, wkt, nodata = first.transform.to_gdal(), first.crs.to_wkt(), first.nodata
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}"><NoDataValue>{nodata:g}</NoDataValue><ComplexSource>'
        f'<SourceFilename relativeToVRT="1">{file.name}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{rasterio.open(file).width}" ySize="{rasterio.open(file).height}"/>'
        f'<DstRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/><NODATA>{nodata:g}</NODATA></ComplexSource>'
        "</VRTRasterBand>"
        for i, file in enumerate(files, 1)
    )
    place = ", ".join(f"{v:.17g}" for v in transform)
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{wkt.replace("<", "&lt;")}</SRS>'
        f"<GeoTransform>{place}</GeoTransform>{bands}</VRTDataset>"
    )
    return path


def snap_netcdf(plain: xr.Dataset, path: Path) -> Path:
    """Write SNAP's export "NetCDF4-CF" of a resampled product: `wkt` and `i2m` on `crs`, CF scales, B2, B3, ..."""
    data = {}
    for name, band in zip(SHORT, BANDS, strict=True):
        attrs = {"long_name": f"Reflectance in band {name}", "units": "dl", "scale_factor": 1e-4, "add_offset": -0.1}
        attrs |= {"_FillValue": np.uint16(0), "grid_mapping": "crs", "coordinates": "lat lon", "bandwidth": 66.0}
        data[name] = (("y", "x"), carrying(plain)[band].values, attrs)
    coords = {"y": plain.y.values, "x": plain.x.values}
    ds = xr.Dataset(data, coords).drop_encoding()
    crs = {"wkt": CRS(EPSG).to_wkt("WKT1_GDAL"), "i2m": f"10.0,0.0,0.0,-10.0,{WEST},{NORTH}"}
    ds["crs"] = ((), np.int32(0), crs)
    ds["y"].attrs = {"units": "m", "standard_name": "projection_y_coordinate", "axis": "Y"}
    ds["x"].attrs = {"units": "m", "standard_name": "projection_x_coordinate", "axis": "X"}
    for v in ds.data_vars.values():
        v.attrs.pop("coordinates", None)
    ds.to_netcdf(path)
    return path


def kerchunk_references(zarr: Path, path: Path) -> Path:
    """Write the references of a Zarr 2 store as kerchunk does."""
    refs = {}
    for file in sorted(p for p in zarr.rglob("*") if p.is_file()):
        key = file.relative_to(zarr).as_posix()
        refs[key] = file.read_text() if file.name.startswith(".z") else [str(file)]
    path.write_text(json.dumps({"version": 1, "refs": refs}))
    return path
