"""Pixel size on the ground, world anchors, patch grids, and coordinates that every library reads alike."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import given
from odc.geo.geobox import GeoBox

from deo_cube.cube.georeference import (
    Anchor,
    anchor,
    assign_grid,
    check_resolution,
    embedding_geobox,
    geobox,
    ground_resolution,
)
from deo_cube.errors import MissingCRSError, ResolutionMismatchError

UTM = GeoBox((60, 90), Affine(10, 0, 600010, 0, -10, 5000020), "EPSG:32633")


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
    assert anchor(UTM) == Anchor(row=-500002, col=60001, south_up=False)
    assert anchor(UTM.flipy()) == Anchor(row=-500002, col=60001, south_up=True)
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
    source = GeoBox((60, 90), Affine(8.983e-5, 0, 13.37, 0, -8.983e-5, 47.77), 4326) if degrees else UTM
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
    image = np.random.default_rng(0).normal(size=UTM.shape)  # no symmetries
    coarse = assign_grid(xr.DataArray(image, dims=("y", "x")), UTM)[4:, 2:].coarsen(y=8, x=8).mean()
    out = embedding_geobox(UTM, patch=8, top=-4, left=-2, shape=(7, 11))
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
    old = assign_grid(xr.DataArray(np.zeros((5, 7)), dims=("y", "x")), GeoBox((5, 7), UTM.transform, 32633))
    old.encoding["grid_mapping"] = "spatial_ref"
    new = GeoBox((5, 7), Affine(1e-4, 0, 13, 0, -1e-4, 47), 4326)
    agree(assign_grid(old, new), new)
    assert old.rio.crs.to_epsg() == 32633


def test_assign_grid_refuses_another_shape():
    with pytest.raises(ValueError, match=r"array is \(5, 7\).*geobox \(60, 90\)"):
        assign_grid(xr.DataArray(np.zeros((5, 7)), dims=("y", "x")), UTM)
