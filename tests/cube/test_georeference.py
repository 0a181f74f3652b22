"""A cube's dims, CRS and transform, however it was opened; and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import odc.geo.xr
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import given
from odc.geo.geobox import GeoBox

from deo_cube.cube.georeference import Dims, assign_grid, dims, geobox
from deo_cube.errors import MissingBandsError, MissingCRSError

UTM = GeoBox((6, 9), Affine(10, 0, 600010, 0, -10, 5000020), "EPSG:32633")


def cube(box: GeoBox = UTM, dims: tuple[str, str] = ("y", "x"), dtype: str = "float64") -> xr.DataArray:
    """Bare coordinates at pixel centres, no CRS; the pixels are numbered, so that no turn or shift looks alike."""
    a = box.transform
    coords = {
        dims[0]: (a.f + (np.arange(box.shape[0]) + 0.5) * a.e).astype(dtype),
        dims[1]: (a.c + (np.arange(box.shape[1]) + 0.5) * a.a).astype(dtype),
    }
    return xr.DataArray(np.arange(box.shape[0] * box.shape[1]).reshape(box.shape), coords, dims)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("time", "band", "y", "x"), Dims("time", "band", "y", "x")),
        (("t", "bands", "latitude", "longitude"), Dims("t", "bands", "latitude", "longitude")),
        (("channel", "lat", "lon"), Dims(None, "channel", "lat", "lon")),
        (("northing", "easting", "band"), Dims(None, "band", "northing", "easting")),
        (("X", "Y"), Dims(None, None, "Y", "X")),
    ],
)
def test_dims_are_found_by_name_in_any_order(names, found):
    array = xr.DataArray(np.zeros((2,) * len(names)), dims=names)
    assert dims(array) == found
    assert dims(array.to_dataset(name="B02")) == found


def test_dims_find_time_by_its_dates():
    array = xr.DataArray(
        np.zeros((2, 3, 4)), {"date": np.array(["2024-01-01", "2024-02-01"], "M8[ns]")}, ("date", "y", "x")
    )
    assert dims(array).time == "date"


def test_dims_of_a_dataset_ignore_variables_without_both_spatial_dims():
    data = xr.Dataset({"B02": (("y", "x"), np.zeros((2, 3))), "angles": (("time", "band"), np.zeros((2, 4)))})
    assert dims(data) == Dims(None, None, "y", "x")


def test_dims_refuse_what_they_do_not_know():
    with pytest.raises(MissingCRSError, match=r"found \('rows', 'columns'\).*rename"):
        dims(xr.DataArray(np.zeros((2, 3)), dims=("rows", "columns")))
    with pytest.raises(MissingCRSError, match="several grids: y/x, lat/lon"):
        dims(xr.Dataset({"a": (("y", "x"), np.zeros((2, 3))), "b": (("lat", "lon"), np.zeros((2, 3)))}))
    with pytest.raises(MissingBandsError, match=r"rename\(\{'wavelength': 'band'\}\)"):
        dims(xr.DataArray(np.zeros((2, 3, 4)), dims=("wavelength", "y", "x")))


WKT = UTM.crs.to_wkt()


@pytest.mark.parametrize(
    "state",
    [
        lambda c: c.rio.write_crs("EPSG:32633"),
        lambda c: c.rio.write_crs("EPSG:32633").rio.write_transform(UTM.transform),
        lambda c: c.odc.assign_crs("EPSG:32633"),
        lambda c: c.odc.assign_crs("EPSG:32633", crs_coord_name="crs"),
        lambda c: c.assign_attrs(crs="EPSG:32633"),
        lambda c: c.assign_attrs(crs="+init=epsg:32633", transform=tuple(UTM.transform)[:6]),
        lambda c: c.assign_attrs(crs=rasterio.crs.CRS.from_epsg(32633)),
        lambda c: c.assign_attrs(crs=32633),
        lambda c: c.assign_attrs(crs_wkt=WKT),
        lambda c: c.assign_attrs({"proj:code": "EPSG:32633", "spatial:transform": list(UTM.transform)[:6]}),
        lambda c: c.assign_attrs({"proj:wkt2": WKT}),
        lambda c: c.assign_attrs({"proj:projjson": UTM.crs.proj.to_json_dict()}),
        lambda c: c.assign_attrs({"proj:epsg": 32633}),
        lambda c: c.assign_coords(utm=((), 0, UTM.crs.proj.to_cf())).assign_attrs(grid_mapping="utm: x y"),
        lambda c: c.assign_coords(
            utm=((), 0, {k: v for k, v in UTM.crs.proj.to_cf().items() if k != "crs_wkt"})
        ).assign_attrs(grid_mapping="utm"),
        lambda c: c.assign_coords(x=c.x.assign_attrs(crs="EPSG:32633")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*init.*authority.*:FutureWarning")
def test_geobox_reads_each_way_of_stating_a_crs(state):
    stated = state(cube())
    assert geobox(stated) == UTM
    assert geobox(stated.to_dataset(name="B02")) == UTM


def test_geobox_finds_a_grid_mapping_that_is_a_data_variable():
    data = cube().to_dataset(name="B02")
    data["crs"] = ((), 0, {"crs_wkt": WKT})
    data["B02"].attrs["grid_mapping"] = "crs"
    assert geobox(data) == UTM
    with pytest.raises(MissingCRSError, match="write_crs"):
        geobox(data["B02"])  # xarray leaves data variables behind


@pytest.mark.parametrize("names", [("y", "x"), ("latitude", "longitude"), ("lat", "lon")])
def test_geobox_never_takes_a_crs_for_granted(names):
    box = GeoBox((4, 5), Affine(1e-4, 0, 13, 0, -1e-4, 47), "EPSG:4326")
    with pytest.raises(MissingCRSError, match=r'ds\.rio\.write_crs\("EPSG:\.\.\."\)') as caught:
        geobox(cube(box, names))
    assert ("EPSG:4326" in str(caught.value)) == (names[0] != "y")
    data = cube(box, names).to_dataset(name="B02")
    with pytest.raises(MissingCRSError):
        geobox(data)


def test_geobox_refuses_two_crss_and_unreadable_ones():
    data = cube().rio.write_crs("EPSG:32633")
    data = data.assign_coords(crs=((), 0, {"crs_wkt": GeoBox((1, 1), UTM.transform, 3857).crs.to_wkt()}))
    assert geobox(data) == UTM  # the grid mapping names one of them
    del data.encoding["grid_mapping"]
    with pytest.raises(MissingCRSError, match="several CRSs: EPSG:32633, EPSG:3857"):
        geobox(data)
    with pytest.raises(MissingCRSError, match="cannot be read: 'EPSG:thirty'"):
        geobox(cube().assign_attrs(crs="EPSG:thirty"))


def test_geobox_refuses_metres_called_degrees():
    with pytest.raises(MissingCRSError, match="says EPSG:4326.*600010"):
        geobox(cube().rio.write_crs("EPSG:4326"))


def test_geobox_lets_the_grid_mapping_win_over_stale_attributes():
    assert geobox(cube().assign_attrs(crs="EPSG:4326").rio.write_crs("EPSG:32633")) == UTM


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_geobox_reads_any_dtype_of_coordinates(dtype):
    assert geobox(cube(dtype=dtype).rio.write_crs("EPSG:32633")) == UTM


def test_geobox_tolerates_the_rounding_of_float32_degrees():
    box = GeoBox((400, 500), Affine(8.983e-5, 0, 13.37, 0, -8.983e-5, 47.77), "EPSG:4326")
    found = geobox(cube(box, ("lat", "lon"), "float32").rio.write_crs("EPSG:4326"))
    assert found.shape == box.shape
    np.testing.assert_allclose(found.boundingbox.bbox, box.boundingbox.bbox, atol=2e-6)  # float32 spacing at 47 degrees


def test_geobox_reads_south_up_and_refuses_east_to_west():
    stated = cube().rio.write_crs("EPSG:32633")
    assert geobox(stated.isel(y=slice(None, None, -1))) == UTM.flipy()
    assert geobox(stated.rio.write_transform(UTM.transform).isel(y=slice(None, None, -1))) == UTM.flipy()
    with pytest.raises(MissingCRSError, match=r"cube\.sortby\('x'\)"):
        geobox(stated.isel(x=slice(None, None, -1)))
    assert geobox(stated.isel(x=slice(None, None, -1)).sortby("x")) == UTM


@pytest.mark.parametrize("axis", ["y", "x"])
def test_geobox_refuses_irregular_grids(axis):
    stated = cube().rio.write_crs("EPSG:32633")
    with pytest.raises(MissingCRSError, match=f"{axis} .*not regular"):
        geobox(stated.drop_isel({axis: 2}))
    moved = stated[axis].values.copy()
    moved[3] += 0.02  # two thousandths of a pixel
    with pytest.raises(MissingCRSError, match="not regular"):
        geobox(stated.assign_coords({axis: moved}))
    moved[3] -= 0.019
    assert geobox(stated.assign_coords({axis: moved})).shape == UTM.shape
    with pytest.raises(MissingCRSError, match="not regular"):
        geobox(stated.assign_coords({axis: np.full(stated.sizes[axis], 5e6)}))
    moved[3] = np.nan
    with pytest.raises(MissingCRSError, match="not regular"):
        geobox(stated.assign_coords({axis: moved}))


def test_geobox_refuses_coordinates_too_coarse_for_their_pixels():
    box = GeoBox((4, 40), Affine(0.5, 0, 1e3, 0, -0.5, 2**24 + 100), "EPSG:32633")
    with pytest.raises(MissingCRSError, match=r"y \(float32\) is not regular"):
        geobox(cube(box, dtype="float32").rio.write_crs("EPSG:32633"))


def test_geobox_refuses_rotation():
    turned = GeoBox((6, 9), Affine(9.8, 1.7, 6e5, 1.7, -9.8, 5e6), "EPSG:32633")
    array = odc.geo.xr.xr_zeros(turned)
    with pytest.raises(MissingCRSError, match=r"rotated or sheared.*rio\.reproject"):
        geobox(array)


def test_geobox_needs_coordinates():
    bare = cube().rio.write_crs("EPSG:32633").rio.write_transform(UTM.transform).drop_vars(["x", "y"])
    with pytest.raises(MissingCRSError, match="x has no coordinates"):
        geobox(bare)
    with pytest.raises(MissingCRSError, match="no pixel along x"):
        geobox(cube().rio.write_crs("EPSG:32633").isel(x=slice(0)))


def test_geobox_of_one_pixel_needs_a_transform():
    stated = cube().rio.write_crs("EPSG:32633")
    with pytest.raises(MissingCRSError, match=r"one pixel long along x.*write_transform\(\)"):
        geobox(stated.isel(x=[3]))
    mended = stated.rio.write_transform()
    assert geobox(mended.isel(x=[3])) == UTM[:, 3:4]
    assert geobox(mended.isel(y=[5])) == UTM[5:6]
    assert geobox(mended.isel(y=[5], x=[3])) == UTM[5:6, 3:4]
    mended.spatial_ref.attrs["GeoTransform"] = "0 0 0 0 0 0"
    with pytest.raises(MissingCRSError, match="one pixel long along x"):
        geobox(mended.isel(x=[3]))


def test_geobox_follows_the_coordinates_where_the_transform_is_of_another_pixel_size():
    stated = cube(GeoBox((6, 8), UTM.transform, UTM.crs)).rio.write_crs("EPSG:32633").rio.write_transform()
    assert geobox(stated.coarsen(x=2, y=2).mean()) == GeoBox((6, 8), UTM.transform, UTM.crs).zoom_out(2)


def test_geobox_refuses_coordinates_half_a_pixel_off_their_transform():
    stated = cube().rio.write_crs("EPSG:32633").rio.write_transform(UTM.transform)
    corners = stated.assign_coords(x=stated.x - 5, y=stated.y + 5)
    with pytest.raises(MissingCRSError, match="pixel corner after the GeoTransform") as caught:
        geobox(corners)
    assert "cube.assign_coords(x=cube.x + 5, y=cube.y - 5)" in str(caught.value)
    assert geobox(corners.assign_coords(x=corners.x + 5, y=corners.y - 5)) == UTM
    assert "cube.rio.write_transform(cube.rio.transform(recalc=True))" in str(caught.value)
    recalculated = corners.rio.write_transform(corners.rio.transform(recalc=True))
    assert geobox(recalculated) == UTM.translate_pix(-0.5, -0.5)


DEGREES = st.floats(-170, 170), st.floats(-80, 80), st.sampled_from([8.983152841195215e-05, 1e-4, 1 / 11132])
METRES = st.floats(-2e7, 2e7), st.floats(-1e7, 1e7), st.sampled_from([10.0, 20.0, 9.554628535647032, 1 / 3])


@given(data=st.data(), degrees=st.booleans(), south_up=st.booleans())
def test_geobox_of_a_window_is_the_window_of_the_geobox(data, degrees, south_up):
    """Coordinates of any window, with the whole raster's transform beside them, give the lattice to the last bit."""
    west, north, size = (data.draw(s) for s in (DEGREES if degrees else METRES))
    rows, columns = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    box = GeoBox(
        (rows, columns), Affine(size, 0, west, 0, size if south_up else -size, north), 4326 if degrees else 3857
    )
    names = ("latitude", "longitude") if degrees else ("y", "x")
    whole = assign_grid(cube(box, names), box, names)
    assert geobox(whole) == box
    i, j = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    height, width = data.draw(st.integers(1, rows - i)), data.draw(st.integers(1, columns - j))
    found = geobox(whole[i : i + height, j : j + width])
    expected = Affine(size, 0, west + j * size, 0, box.transform.e, north + i * box.transform.e)
    assert (found.transform, found.shape) == (expected, (height, width))


# stackstac ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stacked():
    stackstac = pytest.importorskip("stackstac")
    item = {
        "id": "S2",
        "type": "Feature",
        "stac_version": "1.0.0",
        "bbox": [16.2, 45.1, 16.3, 45.2],
        "geometry": None,
        "properties": {"datetime": "2024-06-01T10:00:00Z", "proj:epsg": 32633},
        "assets": {
            k: {
                "href": f"/{k}.tif",
                "type": "image/tiff; application=geotiff",
                "proj:shape": [6, 9],
                "proj:transform": list(UTM.transform)[:6],
            }
            for k in ("B02", "B03")
        },
        "links": [],
    }

    def stack(**options) -> xr.DataArray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return stackstac.stack([item], resolution=10, epsg=32633, **options)

    return stack


@pytest.mark.parametrize("xy_coords", ["topleft", "center"])
def test_geobox_reads_both_kinds_of_stackstac_coordinates(stacked, xy_coords):
    array = stacked(xy_coords=xy_coords)
    assert dims(array) == Dims("time", "band", "y", "x")
    assert geobox(array) == UTM
    assert geobox(array.to_dataset("band")) == UTM
    assert geobox(array[..., 2:5, 3:8]) == UTM[2:5, 3:8]
    assert geobox(array[..., 2:3, 3:4]) == UTM[2:3, 3:4]
    assert geobox(array[..., ::-1, :]) == UTM.flipy()
    assert geobox(array.rio.write_crs("EPSG:32633")) == UTM  # CF would have it half a pixel away


def test_geobox_refuses_stackstac_coordinates_that_nothing_explains(stacked):
    array = stacked()
    lost = array.drop_attrs(deep=False)
    with pytest.raises(MissingCRSError, match=r"corners or centres.*x=cube\.x \+ 5") as caught:
        geobox(lost)
    # The advice, taken from the message to the letter.
    corners, centres = re.findall(r"(cube\.(?:assign|drop).*?\))(?=;|$)", str(caught.value))
    assert geobox(eval(corners, {"cube": lost})) == UTM
    centred = lost.assign_coords(x=lost.x + 5, y=lost.y - 5)
    assert geobox(eval(centres, {"cube": centred})) == UTM
    dataset = lost.to_dataset("band")
    assert geobox(eval(corners, {"cube": dataset})) == UTM
    with pytest.raises(MissingCRSError, match="no longer fits"):
        geobox(array[..., ::2, ::2].rio.write_crs("EPSG:32633"))
    both = array.rio.write_crs("EPSG:32633").rio.write_transform()
    with pytest.raises(MissingCRSError, match="pixel corner after the spec.*pixel centre after GeoTransform") as caught:
        geobox(both)
    corners, centres = re.findall(r"(cube\.(?:assign|drop).*?\))(?=;|$)", str(caught.value))
    assert geobox(eval(corners, {"cube": both})) == UTM
    assert geobox(eval(centres, {"cube": both})) == UTM.translate_pix(-0.5, -0.5)


# real data ------------------------------------------------------------------------------------------------------------

RASTERS = [
    ("scenes/aquileia_20190416_L2A.tif", 4326),
    ("scenes/pilbara_20181201_L2A.tif", 4326),
    ("scenes/southtyrol_20220612_L2A.tif", 32632),
    ("landcover_terramesh/282D_485L_3_3/S2L2A.tif", 32722),
    ("landcover_terramesh/38D_378R_2_3/S2L2A.tif", 32736),
    ("landcover_terramesh/609U_541L_3_0/S2L2A.tif", 32616),
    ("cubes/cog_S2A_29RKH_20200219_0_L2A/B04.tif", 32629),
    ("flood_sen1floods11/Spain_7370579_S2L1C.tif", 4326),
]


@pytest.mark.real
@pytest.mark.parametrize(("name", "epsg"), RASTERS)
def test_geobox_of_real_rasters_is_rasterios(shared, name, epsg):
    path = shared / "data" / name
    with rasterio.open(path) as file:
        expected, shape = file.transform, file.shape
    with rioxarray.open_rasterio(path, chunks={}) as array:
        for opened in (array, array.to_dataset(dim="band"), array.drop_vars("band")):
            box = geobox(opened)
            assert (box.transform, tuple(box.shape), box.crs.epsg) == (expected, shape, epsg)
        assert geobox(array[:, 10:31, 7:19]) == box[10:31, 7:19]
    with xr.open_dataset(path, engine="rasterio") as data:
        assert geobox(data) == box


@pytest.mark.real
def test_geobox_of_real_web_mercator_plots_is_rasterios(shared):
    paths = sorted((shared / "data/change_barkbeetle").glob("*/s2_2019-09.tif"))
    assert len(paths) == 158
    for path in paths[::20]:
        with rasterio.open(path) as file, rioxarray.open_rasterio(path) as array:
            assert geobox(array).transform == file.transform
            assert geobox(array).crs.epsg == 3857


@pytest.mark.real
def test_geobox_of_a_real_netcdf_whose_crs_is_a_data_variable(shared):
    path = shared / "data/cubes/belgium_monthly_2020-11_2021-10.nc"
    expected = GeoBox((100, 100), Affine(10, 0, 664000, 0, -10, 5612120), "EPSG:32631")
    for options in ({}, {"decode_coords": "all"}, {"chunks": {}}):
        with xr.open_dataset(path, mask_and_scale=False, **options) as data:
            assert dims(data) == Dims("t", None, "y", "x")
            assert geobox(data) == expected


@pytest.mark.real
def test_geobox_of_a_real_odc_stac_cube(shared):
    odc_stac, pystac = pytest.importorskip("odc.stac"), pytest.importorskip("pystac")
    item = pystac.Item.from_file(str(shared / "data/cubes/cog_S2A_29RKH_20200219_0_L2A/item-local.json"))
    data = odc_stac.load([item], bands=["red"], resolution=100, chunks={})
    assert geobox(data) == data.odc.geobox
    assert geobox(data[["red"]].isel(x=slice(3, 9))) == data.odc.geobox[:, 3:9]


def test_reading_a_grid_loads_neither_torch_nor_gdal():
    code = (
        "import sys, deo_cube.cube.georeference; "
        "bad = {'torch', 'dask.array', 'distributed', 'rasterio', 'sklearn'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
