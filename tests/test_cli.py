"""The command line does what the verbs do, and says mistakes without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import deo_cube
from deo_cube.cli import COMMANDS, main


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "cube.zarr"
    ds = deo_cube.synthetic_cube(size=192, times=1, clouds=False, gaps=False)
    ds.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in args])
    return int(caught.value.code or 0)


def test_embed_writes_what_the_verb_writes_and_goes_on(
    cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "emb.zarr"
    assert run("embed", cube, out, "--no-progress") == 0
    assert str(out) in capsys.readouterr().out
    got = deo_cube.open_embeddings(out)
    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False)
    xr.testing.assert_equal(got.compute(), ds.deo.embed().compute())
    assert run("embed", cube, out, "--no-progress") == 0
    assert run("verify", out) == 0
    assert "complete" in capsys.readouterr().out


def test_plan_counts(cube: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", cube, "--model", "vitb") == 0
    assert "blocks" in capsys.readouterr().out


def test_models_lists_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    listed = capsys.readouterr().out
    assert all(alias in listed for alias in ("vitb", "swinb", "tiny"))


def test_verify_checks_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "tiny") == 0
    assert "tiny" in capsys.readouterr().out


def test_verify_takes_what_is_called_like_a_store_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.zarr").mkdir()
    assert run("verify", "missing.zarr") == 2
    assert "missing.zarr does not exist" in capsys.readouterr().err
    assert run("verify", "empty.zarr") == 2
    assert "empty.zarr is an empty folder" in capsys.readouterr().err


def test_bands_of_a_file_that_only_counts_them_are_named(cube: Path, tmp_path: Path) -> None:
    import rioxarray  # noqa: F401

    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False).isel(time=0)
    names = [f"B{n}" for n in ("02", "03", "04", "05", "06", "07", "08", "8A", "11", "12")]
    ds[names].to_dataarray("band").assign_attrs({}).rio.to_raster(tmp_path / "c.tif", dtype="uint16")
    given = [f"{n}={i}" for i, n in enumerate(names, 1)]
    assert run("plan", tmp_path / "c.tif", "--offset", "0") == 2
    assert run("plan", tmp_path / "c.tif", "--offset", "0", "--bands", *given) == 0
    out = tmp_path / "e.zarr"
    assert run("embed", tmp_path / "c.tif", out, "--offset", "0", "--no-progress", "--bands", *given) == 0
    got, wanted = deo_cube.open_embeddings(out), ds.drop_vars("SCL").deo.embed(offset=0)
    assert (got.values == wanted.values).all()
    assert run("plan", cube, "--bands", "B04", "B03", "B02", "--dtype", "float32", "--layer", "local") == 0


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"deo-cube {deo_cube.__version__}\n"


def test_mistakes_are_one_message_and_status_2(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = tmp_path / "catalog.json"
    catalogue.write_text('{"type": "Catalog", "id": "x"}')
    for args, says in (
        (("embed", cube, tmp_path / "e.zarr", "--model", "vitc"), "vitc"),
        (("embed", tmp_path / "none.zarr", tmp_path / "e.zarr"), "CUBE: "),
        (("embed", cube, tmp_path / "e.zarr", "--tile", "3"), "multiple"),
        (("plan", cube.with_suffix(".xyz")), "CUBE: "),
        (("plan", catalogue), "is not a STAC item"),
        (("plan", cube, "--bands", "B04=red", "B03"), "names and variables"),
    ):
        assert run(*args) == 2
        error = capsys.readouterr().err
        assert error.startswith("deo-cube: ")
        assert says in error
        assert "Traceback" not in error


def test_a_damaged_store_is_status_1(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "emb.zarr"
    run("embed", cube, out, "--no-progress")
    shard = next(p for p in (out / "embeddings" / "c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run("verify", out) == 1
    assert "DAMAGED" in capsys.readouterr().out


def test_the_demo_writes_a_store_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--out", tmp_path, "--size", "256") == 0
    said = capsys.readouterr().out
    assert (tmp_path / "embeddings.png").stat().st_size > 10_000
    assert "synthetic" in said
    trained = deo_cube.card("tiny").trained
    assert ("tiny is UNTRAINED" in said) == (not trained)
    assert deo_cube.verify_store(tmp_path / "embeddings.zarr").complete


@pytest.mark.parametrize("verb", COMMANDS)
def test_each_command_has_flags_of_different_names(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    assert f"deo-cube {verb}" in capsys.readouterr().out


def test_help_is_quick_and_names_the_commands() -> None:
    done = subprocess.run([sys.executable, "-m", "deo_cube", "--help"], capture_output=True, text=True, check=True)
    assert all(c in done.stdout for c in ("demo", "embed", "plan", "models", "verify"))


def test_segment_maps_classes_from_a_cube_and_from_a_store(cube: Path, tmp_path: Path) -> None:
    import rasterio

    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False)
    emb = ds.deo.embed()
    middle = [(float(emb.x[i]), float(emb.y[j]), "a" if i < 10 else "b") for i in (3, 6, 14, 20) for j in (4, 15)]
    head = deo_cube.fit_head("knn", emb, middle)
    head.save(tmp_path / "head")
    stored = tmp_path / "emb.zarr"
    emb.deo.to_zarr(stored, progress=False)
    assert run("segment", cube, tmp_path / "head", tmp_path / "a.tif") == 0
    assert run("segment", stored, tmp_path / "head", tmp_path / "b.tif") == 0
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
        assert (a.read(1) == b.read(1)).all()
        corner = a.transform.c, a.transform.f
        assert corner == (emb.rio.transform().c, emb.rio.transform().f)


def test_segment_maps_one_date_of_several_and_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import rasterio

    ds = deo_cube.synthetic_cube(size=96, times=2, clouds=False, gaps=False)
    ds.to_zarr(tmp_path / "two.zarr", zarr_format=3, consolidated=False)
    chances = ds.deo.segment(probabilities=True).compute()
    last = str(ds.time.values[1])[:10]
    assert run("segment", tmp_path / "two.zarr", "tiny", tmp_path / "map.tif") == 2
    error = capsys.readouterr().err
    assert f"--date {str(ds.time.values[0])[:10]}" in error or f"--date={str(ds.time.values[0])[:10]}" in error
    assert run("segment", tmp_path / "two.zarr", "tiny", tmp_path / "map.tif", "--date", last) == 0
    assert run("segment", tmp_path / "two.zarr", "tiny", tmp_path / "p.tif", "--date", last, "--probabilities") == 0
    for name in ("p.zarr", "p.zarr"):  # the second time it replaces its own map
        assert run("segment", tmp_path / "two.zarr", "tiny", tmp_path / name, "--probabilities") == 0
    with rasterio.open(tmp_path / "p.tif") as p, rasterio.open(tmp_path / "map.tif") as classes:
        assert list(p.descriptions) == chances["class"].values.tolist()
        np.testing.assert_allclose(p.read(), chances.isel(time=1).values, atol=1e-6)
        assert (p.read().argmax(axis=0) == np.searchsorted(np.arange(9), classes.read(1))).mean() > 0.99
        assert p.tags()["time"].startswith(last)
    assert run("segment", tmp_path / "two.zarr", "tiny", tmp_path / "map.tif", "--date", "2031") == 2
    assert "--date" in capsys.readouterr().err
    ds.deo.embed().deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    assert run("segment", tmp_path / "emb.zarr", "tiny", tmp_path / "e.tif", "--time", last) == 2
    assert "--date" in capsys.readouterr().err
    assert run("segment", tmp_path / "emb.zarr", "tiny", tmp_path / "e.tif", "--date", last) == 0


def test_a_quantity_is_mapped_and_assessed(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False)
    emb = ds.deo.embed().compute()
    red = ds["B04"].isel(time=0).load()
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 192, (300, 2))
    lines = [f"{float(ds.x[i])},{float(ds.y[j])},{float(red[j, i]) / 1e4}" for i, j in cells]
    for name, part in (("fit", lines[:150]), ("check", lines[150:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["x,y,red", *part]))
    head = deo_cube.fit_head("ridge", emb, tmp_path / "fit.csv", column="red", units="1", block=300.0)
    head.save(tmp_path / "head")
    for name in ("map.tif", "map.zarr"):
        assert run("segment", cube, tmp_path / "head", tmp_path / name) == 0
        out = tmp_path / f"{name}.json"
        assert run("assess", tmp_path / name, tmp_path / "check.csv", "--column", "red", "--json", out) == 0
        assert "r2" in capsys.readouterr().out
        scores = json.loads(out.read_text())["scores"]
        assert scores["rmse"]["value"] < 0.1
    assert run("segment", cube, tmp_path / "head", tmp_path / "map.zarr") == 0
    assert run("assess", tmp_path / "none.tif", tmp_path / "check.csv") == 2


def test_assess_prints_a_table_and_draws(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False)
    emb, truth = ds.deo.embed(), ds["land_cover"].load()
    emb.deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    places = [(float(ds.x[i]), float(ds.y[j]), int(truth[j, i])) for i in range(5, 192, 17) for j in range(3, 192, 19)]
    for name, part in (("fit", places[::2]), ("check", places[1::2])):
        rows = [f"{x},{y},{k}" for x, y, k in part]
        (tmp_path / f"{name}.csv").write_text("\n".join(["x,y,label", *rows]))
    deo_cube.fit_head("knn", emb, tmp_path / "fit.csv").save(tmp_path / "head")
    assert run("segment", tmp_path / "emb.zarr", tmp_path / "head", tmp_path / "map.tif") == 0
    capsys.readouterr()
    arguments = ("--embeddings", tmp_path / "emb.zarr", "--head", tmp_path / "head.safetensors")
    arguments += (
        "--training",
        tmp_path / "fit.csv",
        "--training-column",
        "label",
        "--reach",
        1,
        "--plot",
        tmp_path / "a.png",
    )
    assert run("assess", tmp_path / "map.tif", tmp_path / "check.csv", *arguments) == 0
    printed = capsys.readouterr().out
    for word in ("overall accuracy", "users", "look first", "margin"):
        assert word in printed
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.real
def test_verify_looks_at_published_weights(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "--published", shared / "golden" / "swin_weights.safetensors") == 0
    said = capsys.readouterr().out
    assert "feat_extr." in said
    assert "window 12" in said
    assert "(--data)" in said
    assert run("verify") == 2


@pytest.fixture(scope="module")
def store(cube: Path) -> Path:
    path = cube.with_name("emb.zarr")
    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False)
    deo_cube.to_zarr(ds.deo.embed(), path, progress=False)
    return path


def test_index_and_search(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    gpd = pytest.importorskip("geopandas")
    emb = deo_cube.open_embeddings(store)
    at = f"{float(emb.x[5])},{float(emb.y[7])}"
    assert run("index", store, tmp_path / "i", "--no-progress") == 0
    assert "<Index: " in capsys.readouterr().out
    assert run("search", tmp_path / "i", at, "--k", 3, "--negatives", f"{float(emb.x[40])},{float(emb.y[7])}") == 0
    printed = capsys.readouterr().out
    assert "score" in printed
    assert len(printed.splitlines()) == 4
    assert run("search", tmp_path / "i", at, "--k", 3, "--out", tmp_path / "near.geojson") == 0
    written = gpd.read_file(tmp_path / "near.geojson")
    expected = deo_cube.open_index(tmp_path / "i").search((float(emb.x[5]), float(emb.y[7])), k=3)
    assert written["id"].tolist() == expected["id"].tolist()
    # Results are examples again.
    assert run("search", tmp_path / "i", tmp_path / "near.geojson", "--k", 2) == 0
    capsys.readouterr()
    for wrong in ((at, "somewhere"), ("nothing.gpkg",), ("9,47",), ()):
        assert run("search", tmp_path / "i", *wrong) == 2
    assert run("search", tmp_path / "other", at) == 2
    capsys.readouterr()
    assert run("search", tmp_path / "i", at, "--bbox", 0, 0, 1, 1) == 0
    assert capsys.readouterr().out.endswith("no further patch within --bbox and --time\n")
    # An index of an array knows no store, and the message names the flag that gives it.
    deo_cube.build_index(emb, tmp_path / "of_array")
    capsys.readouterr()
    assert run("search", tmp_path / "of_array", at) == 2
    assert "--store " in capsys.readouterr().err
    assert run("search", tmp_path / "of_array", at, "--store", store) == 0
    assert run("search", tmp_path / "i", at, "--out", tmp_path / "near.strange") == 2


def test_similar_writes_the_map_of_the_verb(store: Path, tmp_path: Path) -> None:
    import rioxarray

    emb = deo_cube.open_embeddings(store)
    point = (float(emb.x[5]), float(emb.y[7]))
    assert run("similar", store, *point, tmp_path / "s.tif") == 0
    written = rioxarray.open_rasterio(tmp_path / "s.tif").squeeze(drop=True)
    xr.testing.assert_allclose(
        xr.DataArray(written.values, dims=("y", "x")),
        xr.DataArray(deo_cube.similar(emb, point).isel(time=0).values, dims=("y", "x")),
    )
    assert run("similar", store, *point, tmp_path / "s.tif") == 2
    assert (
        run("similar", store, *point, tmp_path / "s.zarr", "--negatives", f"{float(emb.x[40])},{float(emb.y[7])}") == 0
    )
    assert xr.open_zarr(tmp_path / "s.zarr", consolidated=False)["similarity"].dims == ("time", "y", "x")
    assert run("similar", store, 9, 47, tmp_path / "t.tif") == 2


def test_mosaic_joins_stores(cube: Path, tmp_path: Path) -> None:
    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False)
    options = {"tile": 64, "halo": 16}
    for name, columns in (("a", slice(0, 128)), ("b", slice(64, 192))):
        deo_cube.to_zarr(ds.isel(x=columns).deo.embed(**options), tmp_path / name, progress=False)
    assert run("mosaic", tmp_path / "a", tmp_path / "b", tmp_path / "whole", "--no-progress") == 0
    joined = deo_cube.open_embeddings(tmp_path / "whole")
    xr.testing.assert_equal(joined.compute(), ds.deo.embed(**options).compute())
    assert run("mosaic", tmp_path / "a", tmp_path / "nothing", tmp_path / "other") == 2
    assert run("mosaic", tmp_path / "a") == 2
