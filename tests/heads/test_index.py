"""The search index: equal to brute force, exact filters, extended, on disk and on an object store."""

from __future__ import annotations

import json
from typing import Any

import dask
import geopandas as gpd
import numpy as np
import pytest
import shapely
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deo_cube
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeoCubeError,
    InputNotFoundError,
    SelectionError,
    StorageError,
    StoreMismatchError,
)
from deo_cube.heads.index import MANIFEST, Index, build_index, open_index
from deo_cube.heads.similar import similar
from deo_cube.store.create import record_of
from deo_cube.store.write import to_zarr
from deo_cube.testing import CountingScheduler
from tests.heads.fields import clicks, embeddings, on_dask, truth

pytest.importorskip("faiss")

EMB = embeddings(rows=40, cols=50, dim=16, times=2, noise=0.8, invalid=[(0, 0), (7, 9)], seed=1)
AT = (float(EMB.x[20]), float(EMB.y[5]))


def scores_of(emb: xr.DataArray, to: Any, **options: Any) -> xr.DataArray:
    """Brute force: cosine similarity of every patch."""
    return similar(emb, to, **options)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index(on_dask(EMB, 16, 16), tmp_path_factory.mktemp("index") / "a")


def at_rows(array: xr.DataArray, found: Any) -> np.ndarray:
    """Values of a map (time, y, x) at the rows of a result."""
    times = array.indexes["time"].get_indexer(found["time"])
    return array.values[times, found["row"], found["col"]]


def test_results_are_those_of_brute_force(index):
    assert len(index) == 2 * (40 * 50 - 2)
    q = EMB.isel(time=0, y=5, x=20).values
    found = index.search(q, k=20)
    scores = scores_of(EMB, q)
    assert (np.diff(found["score"]) <= 0).all()
    np.testing.assert_allclose(found["score"], at_rows(scores, found), atol=0.01)
    best = np.sort(scores.values[np.isfinite(scores.values)])[::-1]
    # Codes of 8 bits: what is missed is as good as what is found.
    np.testing.assert_allclose(np.sort(at_rows(scores, found))[::-1], best[:20], atol=0.01)
    assert found.crs == EMB.rio.crs
    centres = found.geometry.centroid
    np.testing.assert_allclose(centres.x, EMB.x.values[found["col"]])
    np.testing.assert_allclose(centres.y, EMB.y.values[found["row"]])


def test_the_patch_of_the_example_is_left_out_or_first(index):
    assert index.search(AT, at="2019", examples=True, k=1)[["row", "col"]].values.tolist() == [[5, 20]]
    found = index.search(AT, at="2019", k=2000)
    assert not ((found["row"] == 5) & (found["col"] == 20)).any()


@given(
    x=st.tuples(st.floats(-5, 60), st.floats(0.5, 30)),
    y=st.tuples(st.floats(-5, 50), st.floats(0.5, 30)),
    date=st.sampled_from([None, "2019", "2020-06", slice("2019", "2019-12"), slice(None, None)]),
)
def test_bbox_and_time_are_exact(index, x, y, date):
    bbox = (500_000 + x[0] * 80, 5_200_000 - (y[0] + y[1]) * 80, 500_000 + (x[0] + x[1]) * 80, 5_200_000 - y[0] * 80)
    inside = (EMB.x >= bbox[0]) & (EMB.x <= bbox[2]) & (EMB.y >= bbox[1]) & (EMB.y <= bbox[3]) & (EMB.valid > 0)
    dates = {None: [0, 1], "2019": [0], "2020-06": [1]}.get(date if isinstance(date, str) else None, [0, 1])
    dates = [0] if date == slice("2019", "2019-12") else dates
    inside = inside.transpose("time", "y", "x").isel(time=dates)
    found = index.search(EMB.isel(time=1, y=9, x=3), k=4000, bbox=bbox, time=date)
    expected = {(int(dates[t]), int(r), int(c)) for t, r, c in np.argwhere(inside.values)}
    times = EMB.indexes["time"].get_indexer(found["time"])
    assert {(int(t), int(r), int(c)) for t, r, c in zip(times, found["row"], found["col"], strict=True)} == expected


def test_a_bbox_in_degrees_is_that_of_the_centres(index):
    box = gpd.GeoSeries([shapely.box(500_500, 5_197_500, 502_000, 5_199_000)], crs=EMB.rio.crs).to_crs(4326)
    bbox = tuple(box.total_bounds)
    found = index.search(EMB.isel(time=1, y=9, x=3), k=4000, bbox=bbox, crs=4326, time="2019")
    xs, ys = np.meshgrid(EMB.x, EMB.y)
    lonlat = gpd.GeoSeries(gpd.points_from_xy(xs.ravel(), ys.ravel()), crs=EMB.rio.crs).to_crs(4326)
    inside = (lonlat.x >= bbox[0]) & (lonlat.x <= bbox[2]) & (lonlat.y >= bbox[1]) & (lonlat.y <= bbox[3])
    inside &= EMB.valid.values[0].ravel() > 0
    assert sorted(found["row"] * 50 + found["col"]) == np.flatnonzero(inside).tolist()


@pytest.mark.parametrize(
    "bbox", [(-180, -90, 180, 90), (-180, 0, 180, 90), (-30, -80, 60, 89), (8.9, 46.5, 9.5, 47.5)], ids=str
)
def test_a_bbox_larger_than_the_zone_of_the_index_leaves_out_nothing(index, bbox):
    whole = index.search(EMB.isel(time=1, y=9, x=3), k=5000)
    found = index.search(EMB.isel(time=1, y=9, x=3), k=5000, bbox=bbox, crs=4326)
    assert sorted(found["id"]) == sorted(whole["id"])


def test_a_bbox_elsewhere_leaves_nothing(index):
    for bbox in ((-170, -80, -160, -70), (9, -40, 10, -30), (100, 40, 140, 50)):
        assert not len(index.search(EMB.isel(time=1, y=9, x=3), bbox=bbox, crs=4326))


def test_what_an_index_holds_is_public(index):
    (source,) = index.sources
    assert source.store is None
    assert source.shape == (40, 50)
    assert [layer.time[:4] for layer in source.layers] == ["2019", "2020"]
    assert (index.dim, index.lists) == (16, 1)
    sample = index.background
    assert sample.shape == (200, 16)
    np.testing.assert_allclose(np.linalg.norm(sample, axis=1), 1, atol=1e-3)
    index.check(EMB)
    with pytest.raises(StoreMismatchError, match="length"):
        index.check(embeddings(dim=8))
    with pytest.raises(StoreMismatchError, match="model"):
        index.check(EMB.assign_attrs({"deo_cube:model": "another"}))


@given(ids=st.lists(st.integers(0, 2 * 40 * 50 - 1), max_size=20))
def test_vectors_of_ids_are_those_of_the_store(index, ids):
    t, cells = np.divmod(np.array(ids, int), 40 * 50)
    r, c = np.divmod(cells, 50)
    expected = EMB.transpose("time", "y", "x", "embedding").values[t, r, c]
    vectors = index.vectors(ids)
    assert vectors.shape == (len(ids), 16)
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize("ids", [[-1], [0, 4000]])
def test_vectors_of_other_ids_are_refused(index, ids):
    with pytest.raises(SelectionError, match="ids"):
        index.vectors(ids)


def test_an_array_is_attached_to_the_sources_of_its_grid(tmp_path):
    build_index(EMB, tmp_path / "i")
    opened = open_index(tmp_path / "i")
    with pytest.raises(ArgumentError, match="store"):
        opened.vectors([3])
    for other in (EMB.isel(time=[0]), EMB.isel(x=slice(1, None))):  # without a date, and of another grid
        assert opened.attach_where_unknown(other) == []
    assert opened.attach_where_unknown(EMB) == [0]
    assert opened.attach_where_unknown(EMB) == []
    np.testing.assert_array_equal(opened.vectors([3])[0], EMB.isel(time=0, y=0, x=3))


def test_invalid_patches_are_never_found(index):
    found = index.search(AT, k=5000, examples=True)
    assert len(found) == len(index)
    assert not ((found["row"] == 7) & (found["col"] == 9)).any()


def test_min_valid(tmp_path):
    half = EMB.assign_coords(valid=EMB.valid.where(EMB.x > 501_000, 0.4).transpose("time", "y", "x"))
    found = build_index(half, tmp_path / "i", min_valid=0.5).search(EMB.isel(time=0, y=5, x=20), k=5000)
    assert EMB.x.values[found["col"]].min() > 501_000


def test_examples_of_every_form_find_the_same(index):
    point = shapely.Point(AT)
    lon, lat = gpd.GeoSeries([point], crs=EMB.rio.crs).to_crs(4326).iloc[0].coords[0]
    table = gpd.GeoDataFrame(geometry=[point], crs=EMB.rio.crs)
    expected = index.search(AT)
    forms = [([AT], None), (point, None), (table, None), (table.to_crs(4326), None), ((lon, lat), "EPSG:4326")]
    forms += [(shapely.box(AT[0] - 30, AT[1] - 30, AT[0] + 30, AT[1] + 30), None)]
    for form, crs in forms:
        assert index.search(form, crs=crs)["id"].tolist() == expected["id"].tolist()
    # A table has its own CRS, whatever that of the points and the bbox.
    world = (lon - 1, lat - 1, lon + 1, lat + 1)
    assert index.search(table, (lon, lat - 0.01), crs=4326, bbox=world)["id"].tolist()
    ids = index.search(AT, examples=True, k=2)["id"]
    again = index.search(index.patches(ids))
    assert again["id"].tolist() == index.search(ids)["id"].tolist()
    assert not set(again["id"]) & set(ids)


def test_negatives_separate_classes(tmp_path):
    emb = embeddings(rows=40, cols=50, dim=16, noise=1.2)
    index = build_index(emb, tmp_path / "i")
    chosen = clicks(emb, 5)
    positives, negatives = [p[:2] for p in chosen if p[2] == "disc"], [p[:2] for p in chosen if p[2] != "disc"]
    found = index.search(positives, negatives, k=60)
    label = truth(40, 50)[found["row"], found["col"]]
    assert (label == 2).mean() > 0.9
    # The map of `similar` orders them alike, though its sample of all patches is another.
    on_map = similar(emb, positives, negatives=negatives)
    assert np.nanmedian(on_map.values[truth(40, 50) == 2]) > np.nanpercentile(on_map.values[truth(40, 50) != 2], 90)
    assert on_map.values[found["row"], found["col"]].min() > np.nanpercentile(on_map.values, 80)


def test_negatives_of_a_map_are_lazy_and_do_not_depend_on_chunks():
    emb = embeddings(times=2, noise=0.5)
    to, negatives = (float(emb.x[2]), float(emb.y[3])), [(float(emb.x[30]), float(emb.y[3]))]
    with dask.config.set(scheduler=CountingScheduler(max_computes=0)):
        lazy = similar(on_dask(emb, 7, 9), to, negatives=negatives)
    expected = similar(emb, to, negatives=negatives)
    assert expected.dims == ("time", "y", "x")
    np.testing.assert_allclose(lazy.compute().values, expected.values, atol=1e-5)
    with pytest.raises(ArgumentError, match="metric"):
        similar(emb, to, negatives=negatives, metric="euclidean")
    with pytest.raises(ArgumentError, match="negatives"):
        similar(emb, to, negatives=(9.0, 47.0))
    with pytest.raises(ArgumentError, match="negatives"):
        similar(emb, to, negatives=[1.0, 2.0, 3.0])


def test_dates_are_added_and_only_they_are_read(tmp_path):
    reads = []

    def seen(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        reads.append(block_info[0]["chunk-location"])
        return block

    def counted(emb: xr.DataArray) -> xr.DataArray:
        lazy = on_dask(emb, 20, 25)
        return lazy.copy(data=lazy.data.map_blocks(seen, dtype=lazy.dtype))

    first = build_index(EMB.isel(time=[0]).chunk(y=20, x=25), tmp_path / "i")
    ids = first.search(AT, time="2019", k=5)["id"].tolist()
    index = build_index(counted(EMB), tmp_path / "i")
    assert {location[0] for location in reads} == {1}
    assert len(index) == 2 * len(first)
    assert index.search(AT, time="2019", at="2019", k=5)["id"].tolist() == ids
    reads.clear()
    assert len(build_index(counted(EMB), tmp_path / "i")) == len(index)
    assert not reads
    # Files that are no longer needed are deleted.
    manifest = json.loads((tmp_path / "i" / MANIFEST).read_text())
    names = {
        manifest["sample"],
        *(s["file"] for s in manifest["segments"]),
        *(s["covered"] for s in manifest["sources"]),
    }
    assert {p.name for p in (tmp_path / "i").iterdir()} == names | {MANIFEST}


def test_a_second_area_is_added(tmp_path):
    east = embeddings(rows=20, cols=20, dim=16, corner=(504_000.0, 5_200_000.0), noise=0.8, seed=5)
    other = embeddings(rows=20, cols=20, dim=16, crs="EPSG:32633", corner=(400_000.0, 5_200_000.0), seed=6)
    build_index(EMB, tmp_path / "i")
    index = build_index(east, tmp_path / "i")
    assert index.crs.to_epsg() == 32632
    assert index.search((float(east.x[3]), float(east.y[3])), k=1, examples=True)["source"].tolist() == [1]
    index = build_index(other, tmp_path / "i")
    assert index.crs.to_epsg() == 4326
    assert len(index) == 2 * 1998 + 800
    assert open_index(tmp_path / "i", store=[EMB, east]).times == index.times
    q = (float(other.x[3]), float(other.y[3]))
    found = index.search(q, crs="EPSG:32633", k=1, examples=True)
    assert found["source"].tolist() == [2]
    assert found.to_crs(32633).geometry.iloc[0].contains(shapely.Point(q))


def test_of_a_store_only_new_blocks_are_read_and_changed_ones_are_refused(tmp_path):
    emb = on_dask(EMB, 20, 25)
    store = tmp_path / "emb.zarr"
    to_zarr(emb, store, progress=False)
    from deo_cube.store import create

    record = record_of(str(store), create.attributes(str(store)))
    entry = record.entry((1, 1, 0))
    record.forget((1, 1, 0))
    index = build_index(store, tmp_path / "i")
    missing = 20 * 25
    assert len(index) == 2 * 1998 - missing
    record.write((1, 1, 0), entry)
    index = build_index(store, tmp_path / "i")
    assert len(index) == 2 * 1998
    # Opened by its path alone, places are read from the store.
    assert open_index(tmp_path / "i").search(AT, k=3)["id"].tolist() == index.search(AT, k=3)["id"].tolist()
    to_zarr(emb * 1.5, store, overwrite=True, progress=False)
    with pytest.raises(StoreMismatchError, match="overwrite=True"):
        build_index(store, tmp_path / "i")
    assert len(build_index(store, tmp_path / "i", overwrite=True)) == 2 * 1998


def test_many_lists_and_segments(tmp_path, monkeypatch):
    monkeypatch.setattr("deo_cube.heads.index.SEGMENT", 700)
    index = build_index(on_dask(EMB, 10, 10), tmp_path / "i", lists=16)
    assert len(json.loads((tmp_path / "i" / MANIFEST).read_text())["segments"]) > 3
    q = EMB.isel(time=0, y=5, x=20).values
    scores = scores_of(EMB, q)
    best = np.sort(scores.values[np.isfinite(scores.values)])[::-1][:10]
    np.testing.assert_allclose(np.sort(at_rows(scores, index.search(q, k=10, probes=16)))[::-1], best, atol=0.02)
    assert len(index.search(q, k=3000, probes=1, time="2019")) == 1998  # refilled from the other lists


def test_a_killed_build_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("deo_cube.heads.index.SEGMENT", 700)
    read = deo_cube.heads.index._read_block
    calls = []

    def fails(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 60:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr("deo_cube.heads.index._read_block", fails)
    with pytest.raises(KeyboardInterrupt):
        build_index(on_dask(EMB, 10, 10), tmp_path / "i")
    monkeypatch.setattr("deo_cube.heads.index._read_block", read)
    done = len(open_index(tmp_path / "i"))
    assert done < 2 * 1998
    assert len(build_index(on_dask(EMB, 10, 10), tmp_path / "i")) == 2 * 1998


def test_int8_is_decoded(tmp_path):
    small = (EMB / 0.03).round().clip(-127, 127).fillna(-128).astype("int8")
    small = small.assign_attrs(EMB.attrs | {"scale_factor": 0.03, "_FillValue": np.int8(-128)})
    index = build_index(small, tmp_path / "i")
    assert len(index) == 2 * 1998
    found = index.search(EMB.isel(time=0, y=5, x=20).values, k=5)
    np.testing.assert_allclose(
        found["score"], at_rows(scores_of(EMB, EMB.isel(time=0, y=5, x=20).values), found), atol=0.02
    )


def test_wrong_inputs_name_the_argument(index, tmp_path):
    for call, error, named in (
        (lambda: index.search((9.0, 47.0)), ArgumentError, "positives"),
        (lambda: index.search(AT, (9.0, 47.0)), ArgumentError, "negatives"),
        (lambda: index.search([1.0, 2.0, 3.0]), ArgumentError, "positives"),
        (lambda: index.search("here.gpkg"), InputNotFoundError, "here.gpkg"),
        (lambda: index.search({1: 2}), DeoCubeError, "positives"),
        (lambda: index.search((float(EMB.x[0]), float(EMB.y[0]))), ArgumentError, "positives"),
        (lambda: index.search(AT, bbox=(1, 2, 3)), ArgumentError, "bbox"),
        (lambda: index.search(AT, bbox=(3, 2, 1, 4)), ArgumentError, "bbox"),
        (lambda: index.search(AT, time="2031"), SelectionError, "time"),
        (lambda: index.search(AT, at="2031"), SelectionError, "at"),
        (lambda: index.search(AT, k=0), ArgumentError, "k"),
        (lambda: index.search(AT, probes=0), ArgumentError, "probes"),
        (lambda: index.search(AT, crs="EPSG:nonsense"), ArgumentError, "crs"),
        (lambda: index.patches([10**9]), SelectionError, "ids"),
        (lambda: build_index(3, tmp_path / "i"), ArgumentTypeError, "emb"),
        (lambda: build_index(EMB, tmp_path / "i", lists=0), ArgumentError, "lists"),
        (lambda: build_index(EMB, tmp_path / "i", min_valid=2), ArgumentError, "min_valid"),
        (lambda: build_index(EMB * np.nan, tmp_path / "i"), ArgumentError, "emb"),
        (lambda: open_index(tmp_path / "nothing"), InputNotFoundError, "path"),
    ):
        with pytest.raises(error, match=named):
            call()


def test_another_model_length_or_folder_is_refused(index, tmp_path):
    build_index(EMB, tmp_path / "i")
    with pytest.raises(StoreMismatchError, match="another model"):
        build_index(EMB.assign_attrs({"deo_cube:model": "other"}), tmp_path / "i")
    with pytest.raises(StoreMismatchError, match="length"):
        build_index(EMB.isel(embedding=slice(8)), tmp_path / "i")
    known = build_index(EMB.assign_attrs(EMB.attrs | {"deo_cube:model_fingerprint": "a"}), tmp_path / "j")
    other = EMB.isel(time=0, y=3, x=3).assign_attrs({"deo_cube:model_fingerprint": "b"})
    with pytest.raises(ArgumentError, match="model"):
        known.search(other)
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "mine.txt").write_text("x")
    with pytest.raises(StoreMismatchError, match="not a search index"):
        build_index(EMB, tmp_path / "k", overwrite=True)
    (tmp_path / "i" / MANIFEST).write_text("{}")
    with pytest.raises(StoreMismatchError, match="overwrite|anew"):
        open_index(tmp_path / "i")


def test_a_store_elsewhere_or_an_array_is_passed(tmp_path):
    build_index(EMB, tmp_path / "i")
    alone = open_index(tmp_path / "i")
    with pytest.raises(ArgumentError, match="store"):
        alone.search(AT)
    assert len(alone.search(EMB.isel(time=0, y=5, x=20))) == 10
    assert len(open_index(tmp_path / "i", store=EMB).search(AT)) == 10
    with pytest.raises(StoreMismatchError, match="grid"):
        open_index(tmp_path / "i", store=EMB.isel(y=slice(5, None)))


def test_a_missing_file_is_an_error_of_storage(tmp_path):
    build_index(EMB, tmp_path / "i")
    next((tmp_path / "i").glob("segment-*")).unlink()
    with pytest.raises(StorageError, match="missing"):
        open_index(tmp_path / "i").search(EMB.isel(time=0, y=5, x=20))


def test_another_process_that_writes_meanwhile_is_noticed(tmp_path, monkeypatch):
    build_index(EMB.isel(time=[0]), tmp_path / "i")
    read = deo_cube.heads.index._read_block

    def interrupts(*args: Any) -> Any:
        monkeypatch.setattr("deo_cube.heads.index._read_block", read)
        build_index(EMB, tmp_path / "i")
        return read(*args)

    monkeypatch.setattr("deo_cube.heads.index._read_block", interrupts)
    with pytest.raises(StoreMismatchError, match="another process"):
        build_index(EMB, tmp_path / "i")
    assert len(open_index(tmp_path / "i")) == 2 * 1998


def test_on_an_object_store_files_are_fetched_once(tmp_path):
    zarr = pytest.importorskip("zarr")
    remote = zarr.storage.MemoryStore()
    with deo_cube.set_options(cache_dir=tmp_path / "one"):
        built = build_index(EMB, remote)
    with deo_cube.set_options(cache_dir=tmp_path / "two"):
        index = open_index(remote, store=EMB)
        assert index.search(AT)["id"].tolist() == built.search(AT)["id"].tolist()
        cached = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "two").rglob("*.faiss")}
        assert len(cached) == 1
        open_index(remote, store=EMB).search(AT)
        assert cached == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "two").rglob("*.faiss")}


def test_store_and_index_on_s3(tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    moto_server = pytest.importorskip("moto.server")
    import urllib.request

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        options = {"endpoint": endpoint, "access_key_id": "x", "secret_access_key": "x", "region": "us-east-1"}
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        to_zarr(on_dask(EMB, 20, 25), "s3://bucket/emb.zarr", progress=False, storage_options=options)
        with deo_cube.set_options(cache_dir=tmp_path / "builder"):
            built = build_index("s3://bucket/emb.zarr", "s3://bucket/emb.index", storage_options=options)
        with deo_cube.set_options(cache_dir=tmp_path / "reader"):
            index = open_index("s3://bucket/emb.index", storage_options=options)
            assert index.search(AT, k=3)["id"].tolist() == built.search(AT, k=3)["id"].tolist()
            # Extended: nothing is new, and nothing is written.
            before = index._manifest.revision
            assert build_index("s3://bucket/emb.zarr", "s3://bucket/emb.index", storage_options=options)
            assert open_index("s3://bucket/emb.index", storage_options=options)._manifest.revision == before
    finally:
        server.stop()
