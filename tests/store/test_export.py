from __future__ import annotations

import json
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from deo_cube.cube import georeference
from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, StorageError
from deo_cube.store.export import _pooled, to_cog, to_geoparquet

BOX = GeoBox.from_bbox((500000, 5000000, 500000 + 40 * 300, 5000000 + 40 * 200), "EPSG:32633", resolution=40)


def embeddings(times: int = 2, dim: int = 5, dtype: str = "float32", south_up: bool = False) -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(times, dim, 200, 300)).astype("float32")
    valid = rng.random((times, 200, 300)).astype("float32")
    valid[:, :20, :30] = 0
    values[np.broadcast_to((valid == 0)[:, None], values.shape)] = np.nan
    if dtype == "int8":
        values = np.where(np.isnan(values), -128, np.clip(values / 0.05, -127, 127)).astype("int8")
    chunks = ((1,) * times, (dim,), (36, 100, 64), (128, 128, 44))
    emb = xr.DataArray(da.from_array(values.astype(dtype), chunks), dims=("time", "embedding", "y", "x"))
    emb = emb.assign_coords(
        time=pd.date_range("2024-05-01", periods=times, freq="30D"),
        valid=(("time", "y", "x"), da.from_array(valid, (1, 100, 100))),
    )
    emb.attrs = {"deo_cube:model": "tiny", "long_name": "x"}
    if dtype == "int8":
        emb.attrs |= {"scale_factor": 0.05, "_FillValue": np.int8(-128)}
    placed: xr.DataArray = georeference.assign_grid(emb, BOX.flipy() if south_up else BOX)
    return placed


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_embeddings_as_a_cog_are_what_they_were_at_their_place(tmp_path: Path, dtype: str) -> None:
    cogeo = pytest.importorskip("rio_cogeo")
    emb = embeddings(dtype=dtype).isel(time=1)
    path = to_cog(emb, tmp_path / "out" / "emb.tif")
    assert [p.name for p in path.parent.iterdir()] == ["emb.tif"]
    assert cogeo.cog_validate(str(path), quiet=True)[0]
    with rasterio.open(path) as file:
        assert file.dtypes[0] == ("int8" if dtype == "int8" else "float32")
        np.testing.assert_array_equal(file.read(), emb.values.astype(file.dtypes[0]))
        assert file.transform == BOX.transform
        assert file.crs.to_epsg() == 32633
        assert file.tags()["deo_cube_model"] == "tiny"
        assert set(file.scales) == ({0.05} if dtype == "int8" else {1.0})
        assert np.isnan(file.nodata) if dtype != "int8" else file.nodata == -128


def test_a_cog_lies_north_up_whatever_its_array_does(tmp_path: Path) -> None:
    up, down = embeddings().isel(time=0), embeddings(south_up=True).isel(time=0)
    with rasterio.open(to_cog(down, tmp_path / "a.tif")) as file:
        assert file.transform == BOX.transform
        np.testing.assert_array_equal(file.read(), up.values[:, ::-1])


def test_classes_and_colours(tmp_path: Path) -> None:
    emb = embeddings(1)
    classes = (emb.isel(embedding=0, drop=True) > 0).astype("int64").drop_vars("valid")
    classes.attrs = {"flag_meanings": "water land", "flag_values": [0, 1], "nodata": 255}
    with rasterio.open(to_cog(classes.astype("uint8").assign_attrs(classes.attrs), tmp_path / "c.tif")) as file:
        np.testing.assert_array_equal(file.read(1), classes.values[0])
        assert file.nodata == 255
        assert json.loads(file.tags()["flag_values"]) == [0, 1]
        # Reduced resolutions hold classes too, not means between them.
        small = file.read(1, out_shape=(100, 150))
        assert set(np.unique(small)) <= {0, 1}
    rgb = emb.isel(embedding=slice(0, 3)).rename(embedding="band").transpose("time", "y", "x", "band")
    rgb = rgb.assign_coords(band=["red", "green", "blue"])
    with rasterio.open(to_cog(rgb, tmp_path / "rgb.tif")) as file:
        assert file.descriptions == ("red", "green", "blue")
        np.testing.assert_array_equal(file.read(2), emb.values[0, 1])


def test_what_no_geotiff_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds one date, the array has 2"):
        to_cog(embeddings(), tmp_path / "x.tif")
    with pytest.raises(ValueError, match="rows, columns and bands"):
        to_cog(embeddings(1).expand_dims(member=2).isel(time=0), tmp_path / "x.tif")
    with pytest.raises(ArgumentTypeError, match=r"DataArray.*ds\['a'\]"):
        to_cog(xr.Dataset({"a": embeddings(1), "b": embeddings(1)}), tmp_path / "x.tif")
    for array in (embeddings(1).astype(complex), np.zeros((4, 4)), None, "emb.zarr"):
        with pytest.raises(ArgumentTypeError, match="array"):
            to_cog(array, tmp_path / "x.tif")  # type: ignore[arg-type]
    large = embeddings(1).isel(time=0, embedding=0).fillna(0).astype("int64") + 2**40
    with pytest.raises(ArgumentError, match=r"astype\(\"float64\"\)"):
        to_cog(large, tmp_path / "x.tif")
    for options, named in (({"compress": "zip"}, "compress"), ({"overviews": "median"}, "overviews")):
        with pytest.raises(ArgumentError, match=named):
            to_cog(embeddings(1), tmp_path / "x.tif", **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="_FillValue"):
        to_cog((large - 2**40).astype("uint8").assign_attrs(_FillValue=-9999), tmp_path / "x.tif")
    with pytest.raises(ArgumentError, match="path"):
        to_cog(embeddings(1), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="x.tif"):
        to_cog(embeddings(1), tmp_path / "file" / "x.tif")
    (tmp_path / "file").unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_cog_is_computed_window_by_window(tmp_path: Path) -> None:
    emb = embeddings(1, dim=3).isel(time=0).drop_vars("valid")
    seen: list[tuple[int, ...]] = []

    def look(block: np.ndarray) -> np.ndarray:
        if block.size:
            seen.append(block.shape)
        return block

    traced = emb.copy(data=emb.data.map_blocks(look, dtype=emb.dtype, meta=np.empty((0, 0, 0), emb.dtype)))
    to_cog(traced, tmp_path / "a.tif")
    assert len(seen) == 9  # each of the 3 x 3 chunks once


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("geometry", ["point", "polygon"])
def test_vectors_as_geoparquet(tmp_path: Path, dtype: str, geometry: str) -> None:
    geopandas = pytest.importorskip("geopandas")
    emb = embeddings(dtype=dtype)
    path = to_geoparquet(emb, tmp_path / "v.parquet", geometry=geometry)
    frame = geopandas.read_parquet(path)
    assert frame.crs.to_epsg() == 32633
    valid = emb.valid.values
    assert len(frame) == (valid > 0).sum()
    assert set(frame.time.dt.strftime("%Y-%m-%d")) == {"2024-05-01", "2024-05-31"}
    for k in (0, 777, len(frame) - 1):
        row = frame.iloc[k]
        at = emb.sel(time=row.time.tz_localize(None), x=row.geometry.centroid.x, y=row.geometry.centroid.y)
        scale = 0.05 if dtype == "int8" else 1
        np.testing.assert_allclose(row.embedding, at.values.astype("float32") * np.float32(scale), rtol=1e-6)
        assert row.valid == pytest.approx(float(at.valid))
    if geometry == "polygon":
        assert frame.geometry.iloc[0].area == 1600
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[5]" or schema.field(
        "embedding"
    ).type.list_size == (5)
    geo = json.loads(schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["geometry_types"] == ["Point" if geometry == "point" else "Polygon"]
    assert json.loads(schema.metadata[b"deo_cube"])["model"] == "tiny"


def test_what_was_computed_from_embeddings_says_how(tmp_path: Path) -> None:
    import deo_cube

    pytest.importorskip("geopandas")
    import pyarrow.parquet as pq

    emb = deo_cube.synthetic_cube(size=64, times=2).deo.embed("tiny", dtype="float32")
    for name, part, expected in (
        ("own", emb.isel(time=0), None),
        ("mean", emb.mean("time", keep_attrs=True), "mean over time of tiny embeddings"),
    ):
        with rasterio.open(to_cog(part, tmp_path / f"{name}.tif")) as file:
            assert file.tags().get("deo_cube_derived") == expected
        part = part if "time" in part.coords else part.assign_coords(time=emb.time[0])
        to_geoparquet(part, tmp_path / f"{name}.parquet")
        said = json.loads(pq.read_schema(tmp_path / f"{name}.parquet").metadata[b"deo_cube"])
        assert said["model"] == "deo_spectral_tiny.v2"
        assert (said.get("derived") or "").startswith("mean") == (expected is not None)


def test_pooled_vectors_are_means_weighted_by_what_was_valid(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    emb = embeddings(1)
    frame = geopandas.read_parquet(to_geoparquet(emb, tmp_path / "v.parquet", pool=16, geometry="polygon"))
    v, w = np.nan_to_num(emb.values[0]), emb.valid.values[0]
    assert len(frame) == 13 * 19 - 1  # one window of 16 x 16 lies in what is no data
    for k in (0, 100, len(frame) - 1):
        row = frame.iloc[k]
        x0, y0, x1, y1 = row.geometry.bounds
        j0, i1 = ~BOX.transform * (x0, y0)
        j1, i0 = ~BOX.transform * (x1, y1)
        here = (slice(round(i0), round(i1)), slice(round(j0), round(j1)))
        expected = (v[:, *here] * w[here]).sum((1, 2)) / w[here].sum()
        np.testing.assert_allclose(row.embedding, expected, rtol=1e-5, atol=1e-6)
        assert row.valid == pytest.approx(w[here].mean(), rel=1e-5)
    half = geopandas.read_parquet(to_geoparquet(emb, tmp_path / "w.parquet", pool=16, min_valid=0.5))
    assert 0 < len(half) < len(frame)
    assert half.valid.min() > 0.5


@settings(max_examples=20)
@given(h=st.integers(1, 40), w=st.integers(1, 40), pool=st.integers(1, 9))
def test_pooling_keeps_the_weighted_mean_of_all(h: int, w: int, pool: int) -> None:
    rng = np.random.default_rng(h * w * pool)
    values, valid = rng.normal(size=(3, h, w)).astype("float32"), rng.random((h, w)).astype("float32")
    means, fraction = _pooled(values, valid, pool)
    area, _ = _pooled(np.ones((1, h, w), "float32"), np.ones((h, w), "float32"), pool)
    assert means.shape[1:] == fraction.shape == area.shape[1:] == (-(-h // pool), -(-w // pool))
    rows = np.minimum(np.arange(0, h, pool) + pool, h) - np.arange(0, h, pool)
    columns = np.minimum(np.arange(0, w, pool) + pool, w) - np.arange(0, w, pool)
    weight = fraction * rows[:, None] * columns[None]
    whole = (values.astype("float64") * valid).sum((1, 2)) / valid.sum()
    np.testing.assert_allclose((means * weight).sum((1, 2)) / weight.sum(), whole, rtol=1e-3, atol=1e-4)


def test_geoparquet_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dimension 'embedding'"):
        to_geoparquet(embeddings().isel(embedding=0), tmp_path / "x.parquet")
    for options, named in (
        ({"pool": 0}, "pool"), ({"pool": 1.5}, "pool"), ({"min_valid": 2}, "min_valid"),
        ({"geometry": "line"}, "geometry"),
    ):  # fmt: skip
        with pytest.raises(DeoCubeError, match=named):
            to_geoparquet(embeddings(), tmp_path / "x.parquet", **options)
    with pytest.raises(DeoCubeError, match="member"):
        to_geoparquet(embeddings().expand_dims(member=2), tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_readers_and_marks_of_missing_ones_survive(tmp_path: Path) -> None:
    one = embeddings(1).isel(time=0, embedding=0).fillna(0).load()
    large = one.astype("int64") + 2**40
    to_cog(large.astype("float64"), tmp_path / "large.tif")
    with rasterio.open(tmp_path / "large.tif") as file:
        np.testing.assert_array_equal(np.sort(file.read(1), axis=None), np.sort(large.values, axis=None))
    marked = one.astype("float32").assign_attrs(_FillValue=np.float32(-9999))
    marked[0, 0] = -9999
    to_cog(marked.to_dataset(name="only"), tmp_path / "marked.tif")
    with rasterio.open(tmp_path / "marked.tif") as file:
        assert int(np.isnan(file.read(1)).sum()) == 1
    stored = embeddings(1).isel(time=0, y=slice(30, 60), x=slice(30, 90)).drop_vars("valid").load()
    stored = ((stored - 2) * 10).round().astype("int16").assign_attrs(scale_factor=0.1, add_offset=2.0, _FillValue=-5)
    to_geoparquet(stored, tmp_path / "v.parquet")
    found = np.stack(pd.read_parquet(tmp_path / "v.parquet")["embedding"])
    whole = stored.values.reshape(stored.sizes["embedding"], -1).T
    kept = whole[(whole != -5).all(axis=1)]
    np.testing.assert_allclose(found, kept * np.float32(0.1) + 2, rtol=1e-5)


def test_a_class_map_has_its_colours_and_names(tmp_path: Path) -> None:
    codes = np.full((300, 520), 255, "uint8")
    codes[:, :200], codes[:150, 200:400] = 1, 7
    box = GeoBox.from_bbox((0, 0, 5200, 3000), "EPSG:32633", resolution=10)
    classes = xr.DataArray(codes, dims=("y", "x"), name="class")
    classes.attrs = {"flag_values": np.array([1, 7], "uint8"), "flag_meanings": "open_water forest"}
    classes.attrs |= {"flag_colors": "#1f78b4 #1b7837", "_FillValue": np.uint8(255)}
    path = to_cog(georeference.assign_grid(classes, box), tmp_path / "c.tif")
    with rasterio.open(path) as file:
        assert file.colormap(1)[1] == (0x1F, 0x78, 0xB4, 255)
        assert file.colormap(1)[7] == (0x1B, 0x78, 0x37, 255)
        assert file.colormap(1)[255][3] == 0
        assert file.tags(1)["class_7"] == "forest"
        assert file.descriptions == ("class",)
        assert file.overviews(1)
        assert set(np.unique(file.read(1, out_shape=(150, 260)))) == {1, 7, 255}


@given(st.integers(0, 2**31))
@settings(max_examples=10)
def test_colours_in_bytes_are_the_colours(seed: int) -> None:
    import tempfile

    rng = np.random.default_rng(seed)
    values = rng.random((3, 20, 30)).astype("float32")
    values[:, rng.random((20, 30)) < 0.2] = np.nan
    rgb = xr.DataArray(values, dims=("band", "y", "x"), coords={"band": ["red", "green", "blue"]})
    rgb = georeference.assign_grid(rgb, GeoBox.from_bbox((0, 0, 300, 200), "EPSG:32633", resolution=10))
    lazy = rgb.chunk({"band": 1, "y": 7})
    with tempfile.TemporaryDirectory() as folder:
        for array in (rgb, lazy):
            with rasterio.open(to_cog(array, Path(folder) / "rgb.tif", dtype="uint8")) as file:
                found = file.read()
                assert file.nodata == 0
                assert [c.name for c in file.colorinterp] == ["red", "green", "blue"]
                assert file.descriptions == ("red", "green", "blue")
            missing = np.isnan(values)
            np.testing.assert_array_equal(found == 0, missing)
            assert np.abs((found[~missing] - 1.0) / 254 - values[~missing]).max() <= 0.5 / 254 + 1e-6


def test_only_shares_become_bytes(tmp_path: Path) -> None:
    emb = embeddings(1).isel(time=0)
    with pytest.raises(ArgumentError, match="dtype"):
        to_cog(emb, tmp_path / "a.tif", dtype="uint8")
    with pytest.raises(ArgumentError, match="dtype"):
        to_cog(embeddings(1, dtype="int8").isel(time=0), tmp_path / "a.tif", dtype="uint8")
    to_cog(emb, tmp_path / "a.tif")  # the advice
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_dates_are_numbers_that_a_gis_reads(tmp_path: Path) -> None:
    emb = embeddings().isel(time=0, embedding=0, drop=True)
    dates = emb.copy(data=np.full((200, 300), np.datetime64("2020-06-23"), "datetime64[ns]")).rename("date")
    dates = dates.where(dates.x > float(dates.x[9]))
    with rasterio.open(to_cog(dates, tmp_path / "date.tif")) as file:
        assert file.read(1, masked=True).mask[:, :10].all()
        assert (file.read(1)[:, 10:] == 20200623).all()
        assert file.dtypes[0] == "int32"


@pytest.mark.parametrize(
    ("write", "name", "right"),
    [(to_cog, "map.png", "map.tif"), (to_cog, "map.nc", "map.TIFF"), (to_geoparquet, "v.csv", "v.parquet"),
     (to_geoparquet, "v.gpkg", "v.parquet")],
)  # fmt: skip
def test_endings_of_other_formats_are_refused(write, name: str, right: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    emb = embeddings().isel(time=0, y=slice(40, 60), x=slice(40, 60))
    with pytest.raises(ArgumentError, match="path"):
        write(emb, tmp_path / name)
    assert not (tmp_path / name).exists()
    assert write(emb, tmp_path / right).is_file()
