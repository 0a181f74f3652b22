"""A cube's dims, CRS and transform, however it was opened; and what is refused."""

from __future__ import annotations

import math
import re
import warnings
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import odc.geo.xr
import pyproj
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import given
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from deo_cube.cube.georeference import (
    Anchor,
    Dims,
    anchor,
    assign_grid,
    check_resolution,
    dims,
    embedding_geobox,
    geobox,
    ground_resolution,
    read_crs,
    same_crs,
)
from deo_cube.errors import DeoCubeError, MissingBandsError, MissingCRSError, ResolutionMismatchError

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
    with pytest.raises(MissingCRSError, match="EPSG:4326.*600010"):
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
    with pytest.raises(MissingCRSError, match="GeoTransform") as caught:
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
    with pytest.raises(MissingCRSError, match="spec.*GeoTransform") as caught:
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


UTM_33 = GeoBox((60, 90), Affine(10, 0, 600010, 0, -10, 5000020), "EPSG:32633")


def box_at(crs: int, lon: float, lat: float, size: float) -> GeoBox:
    """A geobox of 100 x 100 pixels of `size` units around a place."""
    from pyproj import Transformer

    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    return GeoBox((100, 100), Affine(size, 0, x - 50 * size, 0, -size, y + 50 * size), crs)


@pytest.mark.parametrize(
    ("crs", "lat", "size", "dx", "dy"),
    [
        # Web Mercator stretches by the secant of the latitude, on the ellipsoid a little less northwards.
        (3857, 50, 10, 10 * math.cos(math.radians(50)), 10 * math.cos(math.radians(50))),
        (3857, 0, 10, 10, 9.93),
        (32633, 50, 10, 10 / 0.9996, 10 / 0.9996),
        # A degree of longitude at 60 degrees is half as long as at the equator.
        (4326, 60, 1e-4, 5.58, 11.14),
        (4326, 0, 1e-4, 11.132, 11.057),
    ],
)
def test_ground_resolution_is_metres_on_the_ellipsoid(crs, lat, size, dx, dy):
    found = ground_resolution(box_at(crs, 15, lat, size))
    assert found == pytest.approx((dx, dy), rel=6e-3)


def test_ground_resolution_does_not_depend_on_north_up():
    box = box_at(3857, 15, 50, 10)
    assert ground_resolution(box.flipy()) == pytest.approx(ground_resolution(box), rel=1e-4)


def test_ground_resolution_refuses_places_outside_the_crs():
    with pytest.raises(MissingCRSError, match="outside EPSG:3035"):
        ground_resolution(GeoBox((4, 4), Affine(10, 0, 9e9, 0, -10, 9e9), "EPSG:3035"))


@pytest.mark.parametrize("size", [5.01, 10, 19.9])
def test_check_resolution_lets_pass_half_to_twice_the_gsd(size):
    check_resolution(box_at(32633, 15, 50, size), 10)


@pytest.mark.parametrize(
    ("crs", "size", "wanted"),
    [(32633, 60, "EPSG:32633"), (32633, 2.5, "EPSG:32633"), (4326, 1e-3, "EPSG:32633"), (3857, 60, "EPSG:32633")],
)
def test_check_resolution_says_what_was_found_and_the_call_that_mends_it(crs, size, wanted):
    box = box_at(crs, 15, 50, size)
    with pytest.raises(ResolutionMismatchError) as caught:
        check_resolution(box, 10, model="vitb")
    message = str(caught.value)
    assert message.startswith("vitb was trained on pixels of 10 m; the cube's are ")
    assert f"{ground_resolution(box)[0]:.3g} m x" in message
    call = message[message.index("cube.odc.reproject") : message.index(", a scene")]
    assert wanted in call
    cube = assign_grid(xr.DataArray(np.ones(box.shape, "float32"), dims=("y", "x")), box)
    mended = eval(call, {"cube": cube})  # the message's own words
    check_resolution(geobox(mended), 10)
    assert ground_resolution(geobox(mended)) == pytest.approx((10, 10), rel=1e-2)


def test_check_resolution_names_a_southern_zone():
    with pytest.raises(ResolutionMismatchError, match="EPSG:32722"):
        check_resolution(box_at(4326, -51, -20, 1e-3), 10)


@pytest.mark.real
def test_real_web_mercator_pixels_pass_though_they_are_six_metres(shared):
    path = sorted((shared / "data/change_barkbeetle").glob("*/s2_2019-09.tif"))[0]
    box = geobox(rioxarray.open_rasterio(path))
    assert ground_resolution(box) == pytest.approx((6.45, 6.45), abs=0.1)
    check_resolution(box, 10)


# anchors --------------------------------------------------------------------------------------------------------------


def test_anchor_counts_from_the_crs_origin():
    assert anchor(UTM_33) == Anchor(row=-500002, col=60001, south_up=False)
    assert anchor(UTM_33.flipy()) == Anchor(row=-500002, col=60001, south_up=True)
    south = GeoBox((4, 4), Affine(20, 0, -40, 0, -20, -60), 3857)
    assert anchor(south) == Anchor(row=3, col=-2, south_up=False)
    half = GeoBox((4, 4), Affine(10, 0, 5, 0, -10, 5), 3857)
    assert anchor(half) == Anchor(row=-1, col=0, south_up=False)


LATTICES = st.one_of(
    st.tuples(
        st.just(4326),
        st.sampled_from([8.983152841195215e-05, 8.983e-5, 1e-4, 1 / 11132]),
        st.integers(-1_800_000, 1_800_000),
        st.integers(-800_000, 800_000),
    ),
    st.tuples(
        st.just(3857),
        st.sampled_from([10.0, 9.554628535647032, 0.1, 1 / 3]),
        st.integers(-1_900_000, 1_900_000),
        st.integers(-1_900_000, 1_900_000),
    ),
    st.tuples(st.just(32733), st.sampled_from([10.0, 20.0, 60.0]), st.integers(0, 80_000), st.integers(0, 900_000)),
)


@given(
    lattice=LATTICES,
    # Lattices through the origin, half a pixel off it, and anywhere else; the tolerated float noise is 1e-3 of a pixel.
    phase=st.sampled_from([0.0, 1e-7, -1e-7, 0.25, 0.5, 0.75, 0.99]),
    south_up=st.booleans(),
    stated=st.booleans(),
    data=st.data(),
)
def test_overlapping_cubes_agree_on_the_indices_of_their_pixels(lattice, phase, south_up, stated, data):
    crs, size, column, row = lattice
    rows, columns = 60, 50
    west, north = (column + phase) * size, -(row + phase) * size
    box = GeoBox((rows, columns), Affine(size, 0, west, 0, -size, north), crs)
    box = box.flipy() if south_up else box
    whole = assign_grid(xr.DataArray(np.zeros(box.shape), dims=("y", "x")), box)
    if not stated:
        del whole.spatial_ref.attrs["GeoTransform"]  # the lattice must then come out of each window's own coordinates
    world = anchor(geobox(whole))
    assert world == Anchor(math.floor(row + phase + 1e-3), math.floor(column + phase + 1e-3), south_up)
    for _ in range(3):
        i, j = data.draw(st.integers(0, rows - 2)), data.draw(st.integers(0, columns - 2))
        height, width = data.draw(st.integers(2, rows - i)), data.draw(st.integers(2, columns - j))
        window = anchor(geobox(whole[i : i + height, j : j + width]))
        from_north = rows - (i + height) if south_up else i
        assert window == Anchor(world.row + from_north, world.col + j, south_up)


# patch grids ----------------------------------------------------------------------------------------------------------


@given(
    patch=st.integers(1, 16),
    top=st.integers(-20, 20),
    left=st.integers(-20, 20),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    south_up=st.booleans(),
    degrees=st.booleans(),
)
def test_patches_lie_where_their_pixels_lie(patch, top, left, rows, columns, south_up, degrees):
    """The oracle is an image of its own coordinates: the mean x and y over a patch are the coordinates of the patch."""
    source = GeoBox((60, 90), Affine(8.983e-5, 0, 13.37, 0, -8.983e-5, 47.77), 4326) if degrees else UTM_33
    size = source.transform.a
    west, north = source.transform.c, source.transform.f
    x = west + (np.arange(columns * patch) - left + 0.5) * size
    y = north - (np.arange(rows * patch) - top + 0.5) * size  # north to south, as pixels are counted
    out = embedding_geobox(
        source.flipy() if south_up else source, patch=patch, top=top, left=left, shape=(rows, columns)
    )
    means_x = x.reshape(columns, patch).mean(1)
    means_y = y.reshape(rows, patch).mean(1)[:: -1 if south_up else 1]
    placed = assign_grid(xr.DataArray(np.zeros((rows, columns)), dims=("y", "x")), out)
    np.testing.assert_allclose(placed.x, means_x, rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(placed.y, means_y, rtol=0, atol=1e-6 * size)
    assert out.crs == source.crs
    assert (out.transform.e > 0) == south_up
    if not degrees:  # metres are exact
        corner = (600010 - 10 * left, 5000020 + 10 * top)
        bounds = out.boundingbox
        assert (bounds.left, bounds.top) == corner
        assert (bounds.right, bounds.bottom) == (corner[0] + 10 * patch * columns, corner[1] - 10 * patch * rows)


def test_patches_equal_the_coarsened_cube():
    image = np.random.default_rng(0).normal(size=UTM_33.shape)  # no symmetries
    coarse = assign_grid(xr.DataArray(image, dims=("y", "x")), UTM_33)[4:, 2:].coarsen(y=8, x=8).mean()
    out = embedding_geobox(UTM_33, patch=8, top=-4, left=-2, shape=(7, 11))
    assert geobox(coarse) == out
    xr.testing.assert_equal(assign_grid(coarse, out), coarse)


# coordinates ----------------------------------------------------------------------------------------------------------

DEGREE = 8.983152841195215e-05
PLACES = [
    pytest.param(GeoBox((5, 7), Affine(80, 0, 600000, 0, -80, 5e6), 32633), ("y", "x"), id="utm"),
    pytest.param(GeoBox((5, 7), Affine(80, 0, 600000, 0, 80, 5e6), 32633), ("y", "x"), id="utm-south-up"),
    pytest.param(GeoBox((5, 7), Affine(8 * DEGREE, 0, 13.371234567, 0, -8 * DEGREE, 47.7712345), 4326),
                 ("latitude", "longitude"), id="degrees"),
    pytest.param(GeoBox((5, 7), Affine(8 * DEGREE, 0, -51.1, 0, 8 * DEGREE, -20.3), 4326),
                 ("lat", "lon"), id="lat-lon-south-up"),
    pytest.param(GeoBox((5, 7), Affine(9.554628535647032, 0, 1.1e6 + 0.3, 0, -9.554628535647032, 6e6), 3857),
                 ("northing", "easting"), id="northing-easting"),
    pytest.param(GeoBox((1, 1), Affine(80, 0, 600000, 0, -80, 5e6), 32633), ("y", "x"), id="one-pixel"),
]  # fmt: skip


def agree(placed: xr.DataArray | xr.Dataset, box: GeoBox) -> None:
    """Rioxarray, odc-geo and this package read one and the same grid."""
    assert placed.rio.transform() == box.transform
    assert placed.rio.crs.to_epsg() == box.crs.epsg
    assert placed.rio.bounds() == pytest.approx(box.boundingbox.bbox, rel=1e-15, abs=0)
    assert placed.odc.geobox == box
    assert geobox(placed) == box


@pytest.mark.parametrize(("box", "names"), PLACES)
def test_assigned_grids_are_read_alike_by_all_and_survive_zarr_and_netcdf(box, names, tmp_path):
    array = xr.DataArray(np.zeros((2, *box.shape), "float32"), dims=("time", *names), name="embeddings")
    placed = assign_grid(array, box, names)
    assert not array.coords  # the input is left alone
    assert array.attrs == {}
    agree(placed, box)
    agree(placed.isel(time=0), box)
    data = assign_grid(array.to_dataset().assign(valid=array, area=3.0), box, names)
    agree(data, box)

    data.to_zarr(tmp_path / "a.zarr", consolidated=False)
    data.to_netcdf(tmp_path / "a.nc")
    for decode_coords in (True, "all"):
        zarr = xr.open_zarr(tmp_path / "a.zarr", consolidated=False, decode_coords=decode_coords)
        netcdf = xr.open_dataset(tmp_path / "a.nc", decode_coords=decode_coords)
        for reopened in (zarr, zarr.embeddings, netcdf, netcdf.valid):
            assert "spatial_ref" in reopened.coords
            agree(reopened, box)
        netcdf.close()
    again = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    again.to_zarr(tmp_path / "b.zarr", consolidated=False)
    agree(xr.open_zarr(tmp_path / "b.zarr", consolidated=False), box)
    if box.transform.e < 0:  # GDAL turns a south-up netCDF by itself
        with rasterio.open(f"netcdf:{tmp_path / 'a.nc'}:valid") as file:
            assert file.transform.almost_equals(box.transform, 1e-9)
            assert file.crs.to_epsg() == box.crs.epsg


@pytest.mark.parametrize(("box", "names"), PLACES)
def test_assigned_coordinates_are_pixel_centres(box, names):
    placed = assign_grid(xr.DataArray(np.zeros(box.shape), dims=names), box, names)
    for i, j in ((0, 0), (box.shape[0] - 1, box.shape[1] - 1)):
        a = box.transform
        x, y = a.c + (j + 0.5) * a.a, a.f + (i + 0.5) * a.e
        assert float(placed[names[1]][j]) == pytest.approx(x, rel=1e-15)
        assert float(placed[names[0]][i]) == pytest.approx(y, rel=1e-15)


def test_assign_grid_does_not_accumulate_rounding():
    box = GeoBox((1, 200_000), Affine(0.1, 0, 0, 0, -0.1, 0), 3857)
    x = assign_grid(xr.DataArray(np.zeros(box.shape, "uint8"), dims=("y", "x")), box).x.values
    exact = (2 * np.arange(200_000) + 1) / 20
    assert np.abs(x - exact).max() <= np.spacing(exact.max())


def test_assign_grid_replaces_an_older_grid():
    old = assign_grid(xr.DataArray(np.zeros((5, 7)), dims=("y", "x")), GeoBox((5, 7), UTM_33.transform, 32633))
    old.encoding["grid_mapping"] = "spatial_ref"
    new = GeoBox((5, 7), Affine(1e-4, 0, 13, 0, -1e-4, 47), 4326)
    agree(assign_grid(old, new), new)
    assert old.rio.crs.to_epsg() == 32633


def test_assign_grid_refuses_another_shape():
    with pytest.raises(ValueError, match="geobox"):
        assign_grid(xr.DataArray(np.zeros((5, 7)), dims=("y", "x")), UTM_33)


PROJ = pyproj.CRS(32633)
WKT33 = PROJ.to_wkt()
ESRI = PROJ.to_wkt("WKT1_ESRI")


def bare() -> xr.Dataset:
    """Two bands with coordinates at pixel centres and no CRS."""
    coords = {"y": 5e6 - (np.arange(6) + 0.5) * 10, "x": 6e5 + (np.arange(9) + 0.5) * 10}
    return xr.Dataset({b: (("y", "x"), np.ones((6, 9), "uint16")) for b in ("B02", "B03")}, coords=coords)


def held(value: Any) -> xr.Variable:
    box = np.empty((), object)
    box[()] = value
    return xr.Variable((), box)


def each(ds: xr.Dataset, **attrs: Any) -> xr.Dataset:
    for name in ds.data_vars:
        ds[name].attrs |= attrs
    return ds


def with_encoding(ds: xr.Dataset, **encoding: Any) -> xr.Dataset:
    ds["B02"].encoding |= encoding
    return ds


def with_variable(ds: xr.Dataset, name: str, attrs: dict[str, Any], mapping: str | None = None) -> xr.Dataset:
    ds = ds.assign({name: xr.Variable((), 0, attrs)})
    return each(ds, grid_mapping=mapping) if mapping else ds


WAYS = {
    "satpy: coordinate crs, a CRS object": lambda: bare().assign_coords(crs=held(PROJ)),
    "satpy: attribute area": lambda: each(bare(), area=SimpleNamespace(crs=PROJ)),
    "coordinate crs, a code": lambda: bare().assign_coords(crs="EPSG:32633"),
    "coordinate crs, WKT": lambda: bare().assign_coords(crs=WKT33),
    "coordinate spatial_ref, a code": lambda: bare().assign_coords(spatial_ref=32633),
    "coordinate epsg_code, text": lambda: bare().assign_coords(epsg_code="32633"),
    "coordinate proj:code": lambda: bare().assign_coords({"proj:code": "EPSG:32633"}),
    "coordinate along time, one value": lambda: (
        bare().expand_dims(time=2).assign_coords({"proj:epsg": ("time", np.array([32633, 32633]))})
    ),
    "GDAL Zarr: _CRS wkt": lambda: each(bare(), _CRS={"wkt": WKT33}),
    "GDAL Zarr: _CRS url": lambda: each(bare(), _CRS={"url": "http://www.opengis.net/def/crs/EPSG/0/32633"}),
    "GDAL Zarr: _CRS projjson": lambda: each(bare(), _CRS={"projjson": PROJ.to_json_dict()}),
    "SNAP: crs:wkt": lambda: with_variable(bare(), "crs", {"wkt": PROJ.to_wkt("WKT1_GDAL")}, "crs"),
    "ESRI: esri_pe_string": lambda: with_variable(bare(), "crs", {"esri_pe_string": ESRI}, "crs"),
    "ESRI: esri_pe_string of a band": lambda: each(bare(), esri_pe_string=ESRI),
    "proj4 of a band": lambda: each(bare(), proj4="+proj=utm +zone=33 +datum=WGS84 +units=m"),
    "grid mapping of another name": lambda: with_variable(bare(), "transverse_mercator", {"spatial_ref": WKT33}),
    "grid mapping with a code": lambda: with_variable(bare(), "crs", {"epsg_code": "EPSG:32633"}, "crs"),
    "attribute spatial_ref of the group": lambda: bare().assign_attrs(spatial_ref=WKT33),
    "attribute proj:code of the group": lambda: bare().assign_attrs({"proj:code": "EPSG:32633"}),
    "attribute proj:epsg, text": lambda: bare().assign_attrs({"proj:epsg": "32633"}),
    "encoding crs_wkt": lambda: with_encoding(bare(), crs_wkt=WKT33),
    "EOPF: other_metadata": lambda: bare().assign_attrs(other_metadata={"horizontal_CRS_code": "EPSG:32633"}),
    "EOPF: stac_discovery": lambda: bare().assign_attrs(stac_discovery={"properties": {"proj:epsg": 32633}}),
    "EOPF: attributes of a band": lambda: each(bare(), **{"proj:epsg": 32633, "proj:wkt2": WKT33}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_crs_is_read_wherever_it_is_stated(way: str) -> None:
    cube = WAYS[way]()
    box = geobox(cube)
    if "esri" in way or "proj4" in way:  # names and order of axes are lost in these forms
        assert same_crs(box.crs, CRS("EPSG:32633"))
    else:
        assert box.crs == CRS("EPSG:32633")
    assert box.boundingbox.bbox == (6e5, 5e6 - 60, 6e5 + 90, 5e6)


def test_codes_that_state_nothing_are_passed_over() -> None:
    empty = bare().assign_coords(spatial_ref=0).assign_attrs({"proj:code": None, "crs": ""})
    with pytest.raises(MissingCRSError, match="write_crs"):
        geobox(empty)
    assert geobox(empty.assign_attrs({"proj:wkt2": WKT33})).crs == CRS("EPSG:32633")
    # An attribute called crs that is another thing beside one that is a CRS.
    assert geobox(bare().assign_attrs(crs="unknown", crs_wkt=WKT33)).crs == CRS("EPSG:32633")


CONTRADICTIONS = {
    "attributes": lambda: bare().assign_attrs({"crs": "EPSG:32632", "proj:code": "EPSG:32633"}),
    "attribute and coordinate": lambda: bare().assign_attrs(crs="EPSG:32632").assign_coords(epsg=32633),
    "two keys of a grid mapping": lambda: with_variable(
        bare(), "crs", {"spatial_ref": WKT33, "epsg_code": 32632}, "crs"
    ),
    "bands": lambda: bare().assign(
        B02=bare().B02.assign_attrs(crs="EPSG:32632"), B03=bare().B03.assign_attrs(crs="EPSG:32633")
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_contradictions_are_refused_by_name_and_the_advice_decides(kind: str) -> None:
    cube = CONTRADICTIONS[kind]()
    with pytest.raises(MissingCRSError, match="write_crs") as caught:
        geobox(cube)
    assert "EPSG:32632" in str(caught.value)
    assert "EPSG:32633" in str(caught.value)
    (advice,) = re.findall(r"ds\.rio\.write_crs\(.*?\)", str(caught.value))
    decided = geobox(eval(advice, {"ds": cube}))
    assert decided.crs == CRS(re.search(r"EPSG:\d+", advice)[0])  # type: ignore[index]
    for code in (32632, 32633):
        assert geobox(cube.rio.write_crs(f"EPSG:{code}")).crs.epsg == code


@given(
    st.one_of(
        st.text(max_size=12),
        st.integers(-(2**40), 2**40),
        st.floats(),
        st.booleans(),
        st.dictionaries(st.sampled_from(["type", "grid_mapping_name", "wkt"]), st.text(max_size=5), max_size=2),
    )
)
def test_what_is_not_a_crs_raises_no_foreign_error(stated: Any) -> None:
    try:
        read_crs(stated)
    except DeoCubeError:
        return
