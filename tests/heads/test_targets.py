"""Targets of a regression on the grid of the embeddings: means of what covers a cell, and the share that is covered."""

import numpy as np
import pandas as pd
import pytest
import rasterio.warp
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from deo_cube.cube.georeference import assign_grid
from deo_cube.errors import ArgumentError, ArgumentTypeError, LabelsError, MissingCRSError
from deo_cube.heads.head import fit_head
from deo_cube.heads.labels import rasterize_labels
from deo_cube.heads.regression import TargetOptions, rasterize_targets, target_vectors
from tests.heads.fields import embeddings

CORNER, CELL = (500_000.0, 5_200_000.0), 80.0


def box(rows=6, cols=8, cell=CELL, crs="EPSG:32632", corner=CORNER):
    return GeoBox((rows, cols), Affine(cell, 0, corner[0], 0, -cell, corner[1]), crs)


def raster(values, grid):
    return assign_grid(xr.DataArray(values, dims=("y", "x")), grid, dims=("y", "x"))


def corner_box(col, row, width, height):
    """A polygon counted in cells from the north-west corner of the grid."""
    x, y = CORNER[0] + col * CELL, CORNER[1] - row * CELL
    return shapely.box(x, y - height * CELL, x + width * CELL, y)


@given(st.integers(1, 16), st.integers(0, 2**31 - 1))
def test_pixels_that_fit_into_cells_are_averaged_exactly(factor, seed):
    rng = np.random.default_rng(seed)
    fine = rng.normal(size=(6 * factor, 8 * factor)).astype("float32")
    fine[rng.random(fine.shape) < 0.2] = np.nan
    got = (
        rasterize_targets(raster(fine, box(6 * factor, 8 * factor, CELL / factor)), box(), least=0)
        if np.isfinite(fine).any()
        else None
    )
    if got is None:
        return
    groups = fine.reshape(6, factor, 8, factor).astype("float64")
    count = np.isfinite(groups).sum(axis=(1, 3))
    total = np.nansum(groups, axis=(1, 3))
    expected = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    np.testing.assert_allclose(got.values, expected.astype("float32"), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["weight"].values, count / factor**2, atol=1e-6)


def test_a_raster_in_another_crs_agrees_with_gdal():
    grid = box(40, 40)
    source = GeoBox.from_bbox(grid.extent.to_crs("EPSG:3035").buffer(500).boundingbox, "EPSG:3035", resolution=10)
    i, j = np.mgrid[: source.shape[0], : source.shape[1]]
    fine = (np.sin(i / 40) + np.cos(j / 55)).astype("float32")
    got = rasterize_targets(raster(fine, source), grid)
    expected = np.full(grid.shape, np.nan, "float32")
    rasterio.warp.reproject(
        fine, expected, src_transform=source.transform, src_crs="EPSG:3035", dst_transform=grid.transform,
        dst_crs="EPSG:32632", resampling=rasterio.warp.Resampling.average, tolerance=0,
    )  # fmt: skip
    np.testing.assert_allclose(got.values, expected, atol=0.01)
    assert (got["weight"] == 1).all()


def test_points_of_one_cell_are_averaged_and_polygons_weighted_by_area():
    x, y = CORNER[0] + 10, CORNER[1] - 10
    got = rasterize_targets([(x, y, 1.0), (x + 5, y, 4.0), (x + CELL, y, 7.5)], box())
    assert got.values[0, :3].tolist()[:2] == [2.5, 7.5]
    assert got["weight"].values[0, 0] == 2
    assert np.isfinite(got.values).sum() == 2
    # A cell that is half of one and half of another polygon; one quarter of it is beyond both.
    polygons = [(corner_box(0, 0, 1.5, 1), 10.0), (corner_box(1.5, 0, 0.25, 1), 20.0)]
    got = rasterize_targets(polygons, box())
    assert got.values[0, 0] == 10
    np.testing.assert_allclose(got.values[0, 1], (0.5 * 10 + 0.25 * 20) / 0.75, rtol=1e-6)
    np.testing.assert_allclose(got["weight"].values[0, :2], [1, 0.75], rtol=1e-6)


def test_a_small_polygon_is_the_target_of_one_cell_and_thin_cover_of_none():
    got = rasterize_targets([(corner_box(2.1, 1.1, 0.2, 0.2), 3.0), (corner_box(4, 4, 2.3, 1), 9.0)], box())
    assert got.values[1, 2] == 3
    np.testing.assert_allclose(got["weight"].values[1, 2], 0.04, rtol=1e-5)
    assert np.isnan(got.values[4, 6])  # covered by 0.3
    assert np.isfinite(rasterize_targets([(corner_box(4, 4, 2.3, 1), 9.0)], box(), least=0.2).values[4, 6])


@pytest.mark.parametrize("north_up", [True, False])
def test_rows_are_those_of_the_embeddings(north_up):
    emb = embeddings(6, 8, north_up=north_up)
    own = xr.DataArray(np.arange(48.0).reshape(6, 8), dims=("y", "x"), coords={"y": emb.y, "x": emb.x})
    np.testing.assert_array_equal(rasterize_targets(own, emb).values, own.values)


def test_units_nodata_and_several_arrays():
    emb = embeddings(6, 8)
    own = xr.DataArray(
        np.arange(48.0).reshape(6, 8), dims=("y", "x"), coords={"y": emb.y, "x": emb.x}, attrs={"units": "t/ha"}
    )
    got = rasterize_targets(own, emb, nodata=[0, 47])
    assert got.attrs["units"] == "t/ha"
    assert int(got.isnull().sum()) == 2
    both, units, quantity = target_vectors([emb, emb], [own, own + 100], TargetOptions())
    assert sorted(both.truth) == [*range(48), *range(100, 148)]
    assert (units, quantity) == ("t/ha", "")
    assert len(np.unique(both.cell)) == 96
    assert both.crs == ""


def test_scale_offset_and_units_of_a_file_and_of_an_array_that_is_not_decoded(tmp_path):
    import rasterio

    emb, numbers = embeddings(6, 8), np.arange(48, dtype="int16").reshape(6, 8)
    profile = {"driver": "GTiff", "height": 6, "width": 8, "count": 1, "dtype": "int16", "nodata": 47}
    with rasterio.open(tmp_path / "t.tif", "w", crs="EPSG:32632", transform=box().transform, **profile) as file:
        file.write(numbers, 1)
        file.scales, file.offsets, file.units = (0.1,), (5.0,), ("t/ha",)
        file.set_band_description(1, "biomass")
    stored = xr.DataArray(
        numbers, dims=("y", "x"), coords={"y": emb.y, "x": emb.x},
        attrs={"scale_factor": 0.1, "add_offset": 5.0, "_FillValue": 47, "units": "t/ha", "long_name": "biomass"},
    )  # fmt: skip
    for target in (tmp_path / "t.tif", stored):
        got = rasterize_targets(target, emb)
        np.testing.assert_allclose(got.values.ravel()[:47], numbers.ravel()[:47] * 0.1 + 5, rtol=1e-6)
        assert np.isnan(got.values[5, 7])
        assert (got.attrs["units"], got.attrs["long_name"]) == ("t/ha", "biomass")
    head = fit_head("ridge", emb, tmp_path / "t.tif")
    assert (head.units, head.quantity) == ("t/ha", "biomass")


def test_targets_that_are_no_numbers_or_elsewhere_are_refused():
    emb = embeddings(6, 8)
    x, y = float(emb.x[0]), float(emb.y[0])
    with pytest.raises(LabelsError, match="column="):
        rasterize_targets([(x, y, "wood")], emb)
    with pytest.raises(LabelsError, match="EPSG:4326"):
        rasterize_targets([(9.0, 47.1, 1.5)], emb)
    with pytest.raises(LabelsError, match="differ"):
        fit_head("ridge", emb, [(x, y, 1.5), (float(emb.x[3]), y, 1.5)])
    with pytest.raises(LabelsError, match="two cells"):
        fit_head("ridge", emb, [(x, y, 1.5)])
    with pytest.raises(ArgumentError, match="least"):
        rasterize_targets([(x, y, 1.5)], emb, least=2)
    with pytest.raises(ArgumentTypeError, match="labels"):
        rasterize_targets([], emb)
    far = raster(np.ones((4, 4), "float32"), box(4, 4, corner=(900_000.0, 100_000.0)))
    with pytest.raises(LabelsError, match="target"):
        rasterize_targets(far, emb)
    frame = pd.DataFrame({"x": [1e7], "y": [1e7], "value": [1.5]})
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize_targets(frame, emb)


def test_the_advice_for_fractions_as_classes_works():
    emb = embeddings(24, 24)
    rng = np.random.default_rng(0)
    places = [(float(emb.x[i]), float(emb.y[j]), float(rng.random())) for i, j in rng.integers(0, 24, (30, 2))]
    with pytest.raises(LabelsError, match=r"fit_head\('ridge'") as refused:
        fit_head("linear", emb, places)
    assert "fit_head('forest'" in str(refused.value)
    assert fit_head("ridge", emb, places).predict(emb).dtype == np.float32
    own = raster(rng.random((24, 24)).astype("float32"), box(24, 24))
    with pytest.raises(LabelsError, match=r"fit_head\('ridge'"):
        rasterize_labels(own, emb)
    assert fit_head("ridge", emb, own).report["targets"] == 576


def packed_raster(**attrs):
    values = np.arange(48, dtype="int16").reshape(6, 8)
    return raster(values, box()).assign_attrs(scale_factor=0.1, _FillValue=np.int16(-1), **attrs), values * 0.1


def test_the_scale_of_a_dataset_is_that_of_its_raster():
    packed, expected = packed_raster()
    ds = xr.Dataset({"count": ("plot", [1, 2]), "biomass": packed})
    np.testing.assert_allclose(rasterize_targets(ds, box()).values, expected, rtol=1e-6)
    np.testing.assert_allclose(rasterize_targets(ds.reset_coords("spatial_ref"), box()).values, expected, rtol=1e-6)


def test_floats_made_of_packed_targets_are_scaled_once():
    packed, expected = packed_raster()
    chosen = packed.where(packed > 9)
    np.testing.assert_allclose(
        rasterize_targets(chosen, box()).values, np.where(expected > 0.95, expected, np.nan), rtol=1e-6
    )
    scaled = packed * 0.1
    with pytest.raises(ArgumentError, match="targets.attrs.pop"):
        rasterize_targets(scaled, box())
    scaled.attrs.pop("scale_factor")
    np.testing.assert_allclose(rasterize_targets(scaled, box()).values, expected, rtol=1e-6)
    floats = packed.astype("float32")
    without = rasterize_targets(floats, box(), nodata=7).values
    np.testing.assert_allclose(without, np.where(packed.values == 7, np.nan, expected), rtol=1e-6)
    with pytest.raises(ArgumentError, match="targets"):
        rasterize_targets((floats + floats.shift(x=1, fill_value=0)) / 2, box())


@pytest.mark.parametrize(
    ("dtype", "marks"),
    [("uint8", [255]), ("uint8", [254, 255]), ("int16", [-9999]), ("float32", [-9999, np.finfo("float32").min])],
)
@pytest.mark.parametrize("form", ["raster", "table"])
def test_marks_of_missing_values_that_nothing_states_are_refused_and_the_advice_leaves_them_out(dtype, marks, form):
    values = (np.arange(48) * 2).reshape(6, 8).astype(dtype)
    marked = values.copy()
    marked.ravel()[: len(marks)] = marks
    expected = np.where(marked == values, values, np.nan)
    if form == "table":
        if dtype == "uint8":
            return  # 255 is a number in a table
        drawn = raster(marked, box())
        given = [
            (float(x), float(y), float(marked[i, j])) for i, y in enumerate(drawn.y) for j, x in enumerate(drawn.x)
        ]
    else:
        given = raster(marked, box())
    with pytest.raises(LabelsError, match="nodata=") as error:
        rasterize_targets(given, box())
    nodata = eval(str(error.value).split("pass nodata=")[1].split(", or nodata")[0])
    np.testing.assert_allclose(rasterize_targets(given, box(), nodata=nodata).values, expected, rtol=1e-6)
    assert np.nanmin(rasterize_targets(given, box(), nodata=()).values) == pytest.approx(float(marked.min()), rel=1e-6)


def test_cold_and_negative_targets_are_values():
    values = np.linspace(-30, 20, 48).round(1)
    values[:4] = -1, -9, -30, 20
    grid = raster(values.reshape(6, 8).astype("float32"), box())
    np.testing.assert_allclose(rasterize_targets(grid, box()).values.ravel(), values, rtol=1e-6)
