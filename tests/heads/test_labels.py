import json

import geopandas as gpd
import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import LineString, MultiPoint, Point, Polygon, box

from deo_cube.cube.georeference import assign_grid
from deo_cube.errors import ArgumentError, ArgumentTypeError, InputNotFoundError, LabelsError, MissingCRSError
from deo_cube.heads.labels import labelled_vectors
from deo_cube.heads.labels import rasterize_labels as rasterize
from tests.heads.fields import embeddings, on_dask

X0, Y0, CELL, ROWS, COLS = 500_000.0, 5_200_000.0, 80.0, 24, 32


def table(shapes, labels, crs="EPSG:32632"):
    return gpd.GeoDataFrame({"label": labels}, geometry=shapes, crs=crs)


def cell_box(row, col, rows=1, cols=1, shrink=0.0):
    s = shrink * CELL
    return box(X0 + col * CELL + s, Y0 - (row + rows) * CELL + s, X0 + (col + cols) * CELL - s, Y0 - row * CELL - s)


def where(label_map, code):
    return {(int(r), int(c)) for r, c in np.argwhere(label_map.values == code)}


@given(row=st.integers(0, ROWS - 1), col=st.integers(0, COLS - 1), north_up=st.booleans())
def test_a_point_on_a_corner_belongs_to_the_cell_south_east_of_it(row, col, north_up):
    emb = embeddings(north_up=north_up)
    label_map = rasterize([(X0 + col * CELL, Y0 - row * CELL, "a")], emb)
    want = (row if north_up else ROWS - 1 - row, col)
    assert where(label_map, 0) == {want}
    # The coordinates of the cell say the same as its indices.
    assert abs(float(label_map.y[want[0]]) - (Y0 - (row + 0.5) * CELL)) < 1e-6


def test_points_on_the_outer_south_and_east_edge_are_outside():
    emb = embeddings()
    with pytest.raises(LabelsError, match="outside the embeddings"):
        rasterize([(X0 + COLS * CELL, Y0 - 10, "a")], emb)
    with pytest.raises(LabelsError, match="outside the embeddings"):
        rasterize([(X0 + 10, Y0 - ROWS * CELL, "a")], emb)
    assert where(rasterize([(X0, Y0, "a")], emb), 0) == {(0, 0)}


@given(
    row=st.integers(0, ROWS - 1), col=st.integers(0, COLS - 1),
    dx=st.floats(0.05, 0.6), dy=st.floats(0.05, 0.6), size=st.floats(0.01, 0.3),
    rule=st.sampled_from(["majority", "centre"]),
)  # fmt: skip
def test_a_polygon_smaller_than_a_patch_marks_its_cell(row, col, dx, dy, size, rule):
    x, y = X0 + (col + dx) * CELL, Y0 - (row + dy) * CELL
    small = box(x, y - size * CELL, x + size * CELL, y)
    assert where(rasterize(table([small], ["pond"]), embeddings(), rule=rule), 0) == {(row, col)}


@given(
    row=st.integers(0, 20), col=st.integers(0, 28), rows=st.integers(1, 8), cols=st.integers(1, 8),
    rule=st.sampled_from(["majority", "centre", "touch"]), north_up=st.booleans(),
)  # fmt: skip
def test_completely_covered_cells_are_labelled_by_every_rule(row, col, rows, cols, rule, north_up):
    # A hair inside the cells, as touching counts the neighbours of a shared edge only if area is shared.
    shape = cell_box(row, col, rows, cols, shrink=0.001)
    label_map = rasterize(table([shape], [3]), embeddings(north_up=north_up), rule=rule)
    want = {(r, c) for r in range(row, min(row + rows, ROWS)) for c in range(col, min(col + cols, COLS))}
    got = where(label_map if north_up else label_map.isel(y=slice(None, None, -1)), 3)
    assert got == want


@given(share=st.floats(0.02, 0.98))
def test_majority_means_half_the_area(share):
    part = box(X0 + 3 * CELL, Y0 - 6 * CELL, X0 + (5 + share) * CELL, Y0 - 5 * CELL)
    cells = where(rasterize(table([part], ["a"]), embeddings(), rule="majority"), 0)
    assert cells == {(5, 3), (5, 4)} | ({(5, 5)} if share >= 0.5 else set())
    assert where(rasterize(table([part], ["a"]), embeddings(), rule="touch"), 0) == {(5, 3), (5, 4), (5, 5)}


@given(seed=st.integers(0, 10_000))
def test_majority_equals_areas_measured_cell_by_cell(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    r = rng.uniform(2, 9, 9) * CELL
    shape = Polygon(np.stack([X0 + 16 * CELL + r * np.cos(angles), Y0 - 12 * CELL + r * np.sin(angles)], axis=1))
    if not shape.is_valid:
        return
    want = {
        (i, j) for i in range(ROWS) for j in range(COLS) if cell_box(i, j).intersection(shape).area >= 0.5 * CELL**2
    }
    got = where(rasterize(table([shape], ["a"]), embeddings()), 0)
    assert got == want or (not want and len(got) == 1)


def test_of_overlapping_polygons_the_later_wins_or_the_call_is_refused():
    emb, a, b = embeddings(), cell_box(2, 2, 4, 4), cell_box(4, 4, 4, 4)
    first = rasterize(table([a, b], ["a", "b"]), emb)
    other = rasterize(table([b, a], ["b", "a"]), emb)
    shared = {(r, c) for r in (4, 5) for c in (4, 5)}
    assert shared <= where(first, 1)
    assert shared <= where(other, 0)
    with pytest.raises(LabelsError, match=r"disagree on 4 cells.*'a' and 'b'"):
        rasterize(table([a, b], ["a", "b"]), emb, overlap="raise")
    # Agreeing labels may meet.
    assert len(where(rasterize(table([a, b], ["a", "a"]), emb, overlap="raise"), 0)) == 28


@settings(max_examples=12)
@given(data=st.data(), rule=st.sampled_from(["majority", "centre", "touch"]), north_up=st.booleans())
def test_overlapping_polygons_in_any_order_are_burnt_one_over_the_other(data, rule, north_up):
    """What several give together is each alone, laid over those before it."""
    draw, emb = data.draw, embeddings(north_up=north_up)
    boxes = [
        cell_box(
            draw(st.floats(0, 18)), draw(st.floats(0, 26)), draw(st.floats(0.2, 6)), draw(st.floats(0.2, 6)),
        )
        for _ in range(draw(st.integers(2, 4)))
    ]  # fmt: skip
    codes = [draw(st.integers(0, 2)) for _ in boxes]
    together = rasterize(table(boxes, codes), emb, rule=rule).values
    want = np.full((ROWS, COLS), 255)
    for shape, code in zip(boxes, codes, strict=True):
        alone = rasterize(table([shape], [code]), emb, rule=rule).values
        assert (alone == code).any()
        want[alone == code] = code
    np.testing.assert_array_equal(together, want)
    meet = [(a, b) for i, a in enumerate(range(len(boxes))) for b in range(i + 1, len(boxes)) if codes[a] != codes[b]]
    masks = [rasterize(table([s], [c]), emb, rule=rule).values != 255 for s, c in zip(boxes, codes, strict=True)]
    if any((masks[a] & masks[b]).any() for a, b in meet):
        with pytest.raises(LabelsError, match="disagree on"):
            rasterize(table(boxes, codes), emb, rule=rule, overlap="raise")
    else:
        rasterize(table(boxes, codes), emb, rule=rule, overlap="raise")


@given(
    col=st.integers(1, COLS - 2),
    row=st.integers(1, ROWS - 2),
    crs=st.sampled_from(["EPSG:4326", "EPSG:3857", "EPSG:25833"]),
)
def test_another_crs_marks_the_same_cells(row, col, crs):
    emb = embeddings()
    shapes = [
        Point(X0 + (col + 0.4) * CELL, Y0 - (row + 0.6) * CELL),
        cell_box(row, max(col - 1, 0), 1, 2, shrink=0.05),
    ]
    own = table(shapes, ["p", "q"])
    xr.testing.assert_identical(rasterize(own.to_crs(crs), emb), rasterize(own, emb))


def test_every_form_of_a_table_is_read_alike(tmp_path):
    emb = embeddings()
    own = table(
        [cell_box(2, 2, 2, 2), MultiPoint([(X0 + 9 * CELL + 1, Y0 - 5), (X0 + 11 * CELL + 1, Y0 - 5)])], ["a", "b"]
    )
    want = rasterize(own, emb)
    degrees = own.to_crs(4326)
    degrees.to_file(tmp_path / "l.geojson", driver="GeoJSON")
    own.to_parquet(tmp_path / "l.parquet")
    own.to_file(tmp_path / "l.gpkg", driver="GPKG")
    for form in (
        tmp_path / "l.geojson",
        tmp_path / "l.parquet",
        str(tmp_path / "l.gpkg"),
        json.loads(degrees.to_json()),
    ):
        xr.testing.assert_identical(rasterize(form, emb), want)
    assert where(want, 1) == {(0, 9), (0, 11)}
    points = [(X0 + 9 * CELL + 1, Y0 - 5, "b"), (X0 + 2 * CELL + 1, Y0 - 3 * CELL, "a")]
    assert where(rasterize(points, emb), 0) == {(3, 2)}


def test_flags_names_and_colours():
    emb = embeddings()
    label_map = rasterize(
        table([cell_box(1, 1), cell_box(3, 3)], [4, 9]), emb, names={4: "crops", 9: "range land"}, colors={9: "#123456"}
    )
    assert list(label_map.attrs["flag_values"]) == [4, 9]
    assert label_map.attrs["flag_meanings"] == "crops range_land"
    assert label_map.attrs["flag_colors"].split()[1] == "#123456"
    assert label_map.rio.crs == emb.rio.crs
    assert label_map.rio.transform(recalc=True) == emb.rio.transform(recalc=True)


def raster(values, cell, crs="EPSG:32632", corner=(X0, Y0), fill=0):
    a = xr.DataArray(values, dims=("y", "x"), attrs={"_FillValue": fill})
    return assign_grid(a, GeoBox(values.shape, Affine(cell, 0, corner[0], 0, -cell, corner[1]), crs))


@given(seed=st.integers(0, 10_000))
def test_a_finer_aligned_raster_gives_the_most_frequent_class(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, (ROWS * 4, COLS * 4)).astype("uint8")
    label_map = rasterize(raster(values, 20), embeddings()).values
    blocks = values.reshape(ROWS, 4, COLS, 4).swapaxes(1, 2).reshape(ROWS, COLS, 16)
    counts = np.stack([(blocks == c).sum(-1) for c in (1, 2, 3)])
    want = np.where(counts.sum(0) >= 8, counts.argmax(0) + 1, 255)
    np.testing.assert_array_equal(label_map, want)


def test_a_coarser_raster_is_looked_up_at_the_centres():
    values = np.arange(1, 13, dtype="uint8").reshape(3, 4)
    label_map = rasterize(raster(values, 8 * CELL), embeddings())
    np.testing.assert_array_equal(label_map.values, np.kron(values, np.ones((8, 8), int)))


def test_a_raster_in_another_crs_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(1, 4, (6, 8)), np.ones((16, 16), int)).astype("uint8")
    own = raster(smooth, 20)
    degrees = own.rio.reproject("EPSG:4326", resolution=0.00005)
    degrees.rio.to_raster(tmp_path / "l.tif")
    want, got = rasterize(own, embeddings()).values, rasterize(tmp_path / "l.tif", embeddings()).values
    assert (want == got).mean() > 0.97
    for address in (f"file://{tmp_path}/l.tif", f"/vsisubfile/0,{tmp_path}/l.tif"):
        np.testing.assert_array_equal(rasterize(address, embeddings()).values, got)
    south_up = own.isel(y=slice(None, None, -1))
    np.testing.assert_array_equal(rasterize(south_up, embeddings()).values, want)


def test_labels_outside_are_refused_with_a_hint():
    emb = embeddings()
    with pytest.raises(LabelsError, match=r'look like degrees: pass crs="EPSG:4326"'):
        rasterize([(9.0, 46.9, "a"), (9.001, 46.9, "b")], emb)
    lon, lat = emb.odc.geobox.geographic_extent.centroid.coords[0]
    assert (rasterize([(lon, lat, "a")], emb, crs="EPSG:4326").values != 255).sum() == 1
    with pytest.raises(LabelsError, match="outside the embeddings"):
        rasterize(table([cell_box(2, 2)], ["a"], crs="EPSG:4326"), emb)
    with pytest.raises(MissingCRSError, match="set_crs"):
        rasterize(table([cell_box(2, 2)], ["a"], crs=None), emb)
    with pytest.warns(UserWarning, match="1 of 2 labels"):
        rasterize(table([cell_box(2, 2), cell_box(99, 99)], ["a", "b"]), emb)
    with pytest.raises(LabelsError, match="raster spans"):
        rasterize(raster(np.ones((4, 4), "uint8"), 80, corner=(0.0, 0.0)), emb)


def test_objects_that_are_not_labels_are_refused():
    emb = embeddings()
    with pytest.raises(LabelsError, match="labels must"):
        rasterize(table([LineString([(X0, Y0), (X0 + 99, Y0)])], ["a"]), emb)
    with pytest.raises(LabelsError, match="column="):
        rasterize(table([cell_box(2, 2)], ["a"]).rename(columns={"label": "kind"}).assign(area=1), emb)
    with pytest.raises(LabelsError, match="column="):
        rasterize(table([cell_box(2, 2)], ["a"]), emb, column="landuse")
    with pytest.raises(ArgumentTypeError, match="labels must"):
        rasterize([], emb)
    with pytest.raises(LabelsError, match="labels must"):
        rasterize(raster(np.full((4, 4), 0.5), 80), emb)
    with pytest.raises(InputNotFoundError):
        rasterize("nowhere.geojson", emb)


@pytest.mark.parametrize("times", [0, 3])
def test_cases_are_the_vectors_of_the_labelled_cells(times):
    emb = embeddings(times=times, invalid=[(2, 2)])
    labels = rasterize(
        [(float(emb.x[c]), float(emb.y[r]), k) for r, c, k in ((2, 2, "a"), (5, 6, "a"), (7, 8, "b"))], emb
    )
    found, classes = labelled_vectors(on_dask(emb, 5, 5), labels)
    n = max(times, 1)
    assert len(found.truth) == 2 * n
    stack = emb if times else emb.expand_dims("time")
    np.testing.assert_array_equal(found.vectors[:2], stack.values[0][:, [5, 7], [6, 8]].T)
    assert list(found.truth) == [0, 1] * n
    assert classes.names == ("a", "b")
    assert list(found.cell[:2]) == [5 * 32 + 6, 7 * 32 + 8]
    assert found.cell_size == 80
    assert list(found.x[:2]) == [float(emb.x[6]), float(emb.x[8])]


def test_labels_of_one_class_or_under_clouds_are_refused():
    emb = embeddings(invalid=[(2, 2), (3, 3)])
    at = lambda r, c, k: (float(emb.x[c]), float(emb.y[r]), k)  # noqa: E731
    with pytest.raises(LabelsError, match="one class, 'a'"):
        labelled_vectors(emb, rasterize([at(5, 5, "a"), at(6, 6, "a")], emb))
    with pytest.raises(LabelsError, match=r"no valid cell is left of \['b'\]"):
        labelled_vectors(emb, rasterize([at(5, 5, "a"), at(2, 2, "b")], emb))
    with pytest.raises(LabelsError, match="valid embedding"):
        labelled_vectors(emb, rasterize([at(2, 2, "a"), at(3, 3, "b")], emb))


def test_missing_labels_label_nothing():
    emb = embeddings()
    at = [(X0 + (i + 0.5) * CELL, Y0 - (i + 0.5) * CELL) for i in range(4)]
    label_map = rasterize([(*at[0], 3.0), (*at[1], float("nan")), (*at[2], None), (*at[3], 7.0)], emb)
    assert label_map.attrs["flag_meanings"] == "3 7"
    assert where(label_map, 3) == {(0, 0)}
    assert where(label_map, 7) == {(3, 3)}
    assert (label_map.values != 255).sum() == 2
    shapes = [Point(at[0]), Polygon(), None, Point(at[3])]
    assert rasterize(table(shapes, [3, 5, 5, 7]), emb).equals(label_map)
    with pytest.raises(LabelsError, match="no label"):
        rasterize([(*at[0], None)], emb)
    assert rasterize(np.array([(*at[0], 3), (*at[3], 7)]), emb).equals(label_map)


def test_a_measurement_or_a_column_of_identifiers_is_refused():
    emb = embeddings()
    with pytest.raises(LabelsError, match="fractions \\[0.5\\]"):
        rasterize([(X0 + 10, Y0 - 10, 0.5), (X0 + 10, Y0 - 10, 1.0)], emb)
    with pytest.raises(LabelsError, match="300 different labels.*column="):
        rasterize([(X0 + 10, Y0 - 10, i) for i in range(300)], emb)


def test_names_stay_different_in_any_script():
    emb = embeddings()
    words = ["水", "森林", "bare soil", "bare_soil"]
    label_map = rasterize([(X0 + (i + 0.5) * CELL, Y0 - 10, w) for i, w in enumerate(words)], emb)
    said = dict(zip(label_map.attrs["flag_values"], label_map.attrs["flag_meanings"].split(), strict=True))
    assert [said[label_map.values[0, i]] for i in range(4)] == ["水", "森林", "bare_soil", "bare_soil_2"]


def test_names_go_to_the_code_they_are_for():
    emb = embeddings()
    clicks = [(X0 + 10, Y0 - 10, 311), (X0 + 110, Y0 - 110, 312)]
    assert rasterize(clicks, emb, names={311: "broad", 312: "needle"}).attrs["flag_meanings"] == "broad needle"
    with pytest.raises(ArgumentError, match=r"names must.*3 for the 2 classes.*names=\{code: name\}"):
        rasterize(clicks, emb, names=["water", "broad", "needle"])
    codes = np.full((ROWS, COLS), 2, "uint8")
    far = np.pad(codes, ((0, 0), (0, 99)), constant_values=1)
    # The first class lies outside: the second keeps its name.
    assert rasterize(raster(far, CELL), emb, names={1: "field", 2: "wood"}).attrs["flag_meanings"] == "wood"


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3035"])
def test_long_edges_are_straight_where_they_were_drawn(crs):
    from pyproj import Transformer

    emb = embeddings(60, 100, cell=4000.0, corner=(200_000.0, 5_330_000.0))
    x, y = np.meshgrid(emb.x, emb.y)
    place = Transformer.from_crs("EPSG:32632", crs, always_xy=True)
    _, north = place.transform(x, y)
    middle = float(np.median(north))
    # Edges over half a continent; with their corners alone reprojected they would miss by many cells.
    x0, x1, y0, y1 = (-10, 30, 40, 55) if crs == "EPSG:4326" else (3e6, 6e6, 1.5e6, 4e6)
    label_map = rasterize(table([box(x0, middle, x1, y1), box(x0, y0, x1, middle)], [1, 0], crs), emb)
    np.testing.assert_array_equal(label_map.values, (north > middle).astype("uint8"))


def test_a_polygon_around_the_world_covers_the_embeddings():
    assert (rasterize(table([box(-180, -85, 180, 85)], [4], "EPSG:4326"), embeddings()).values == 4).all()


@pytest.mark.parametrize("form", ["file", "array"])
def test_of_a_large_raster_only_the_surroundings_are_read(tmp_path, form):
    import dask.array as da
    import rasterio
    from rasterio.windows import Window

    emb, side = embeddings(), 40_000
    transform = Affine(10, 0, X0 - 200_000, 0, -10, Y0 + 200_000)
    own = np.ones((400, 400), "uint8")
    if form == "file":
        # Sparse: whole it would be 1.6 GB, and many times that on the way.
        labels = tmp_path / "continent.tif"
        facts = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": side, "width": side, "nodata": 0}
        facts |= {"tiled": True, "compress": "deflate", "SPARSE_OK": True, "crs": "EPSG:32632", "transform": transform}
        with rasterio.open(labels, "w", **facts) as r:
            r.write(own, 1, window=Window(20_000, 20_000, 400, 400))
    else:

        def block(block_info=None):
            (top, _), (left, _) = block_info[None]["array-location"]
            assert (top, left) in {(i, j) for i in (16_000, 20_000) for j in (16_000, 20_000)}, "read far away"
            return np.full((4000, 4000), 1 if (top, left) == (20_000, 20_000) else 0, "uint8")

        chunks = ((4000,) * 10, (4000,) * 10)
        values = da.map_blocks(block, chunks=chunks, dtype="uint8", meta=np.empty((0, 0), "uint8"))
        labels = assign_grid(xr.DataArray(values, dims=("y", "x")), GeoBox((side, side), transform, "EPSG:32632"))
        labels.attrs["_FillValue"] = 0
    assert (rasterize(labels, emb).values == 1).all()


def test_the_former_name_warns() -> None:
    from deo_cube.heads.labels import burn

    emb = embeddings()
    labels = [(float(emb.x[3]), float(emb.y[4]), 1), (float(emb.x[9]), float(emb.y[4]), 2)]
    with pytest.warns(DeprecationWarning, match="rasterize_labels"):
        xr.testing.assert_identical(burn(labels, emb), rasterize(labels, emb))
