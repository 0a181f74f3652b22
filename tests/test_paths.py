"""`~` and `file://` mean the same wherever a path is taken."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deo_cube
from deo_cube.cli import main
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeoCubeError,
    InputNotFoundError,
    StorageError,
    StoreMismatchError,
    StoreNotFoundError,
    naming,
)
from deo_cube.paths import expand, is_url, local_path, not_found, reading


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, and another working folder, in which nothing may appear."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(elsewhere)
    return folder


def test_paths_are_expanded(home: Path) -> None:
    assert local_path("~/a.zarr") == home / "a.zarr"
    assert local_path(Path("~") / "a") == home / "a"
    assert local_path("file:///data/my%20cube.zarr") == Path("/data/my cube.zarr")
    assert local_path("FILE://localhost/a") == Path("/a")
    assert expand("s3://bucket/a.zarr/") == "s3://bucket/a.zarr"
    assert expand("/vsizip//data/a.zip/b.tif") == "/vsizip//data/a.zip/b.tif"
    assert is_url("https://x/y")
    assert not is_url("file:///x")
    for wrong in ("~nobody-of-this-name/a", "file://another.host/a"):
        with pytest.raises(ArgumentError):
            local_path(wrong)
    with pytest.raises(ArgumentTypeError):
        local_path(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["tilde", "file"])
def test_every_verb_expands_its_path(home: Path, form: str) -> None:
    def at(name: str) -> str:
        return f"~/{name}" if form == "tilde" else (home / name).as_uri()

    cube = deo_cube.synthetic_cube(size=64, times=1)
    cube.to_zarr(home / "c.zarr", consolidated=False)
    opened = deo_cube.open_cube(at("c.zarr"))
    np.testing.assert_array_equal(opened.B02.values, cube.B02.values)
    emb = cube.deo.embed()
    emb.deo.to_zarr(at("e.zarr"), progress=False)
    stored = deo_cube.open_embeddings(at("e.zarr"))
    assert deo_cube.verify_store(at("e.zarr")).complete
    assert deo_cube.publish(at("e.zarr"))[0] == home / "e.item.json"
    points = [(float(cube.x[9]), float(cube.y[9]), "a"), (float(cube.x[50]), float(cube.y[50]), "b")]
    head = deo_cube.fit_head("knn", stored, points)
    head.save(at("h.safetensors"))
    again = deo_cube.load_head(at("h.safetensors"))
    np.testing.assert_array_equal(again.predict(stored).values, head.predict(stored).values)
    card = deo_cube.card("tiny")
    card.save(at("card.json"))
    assert type(card).load(at("card.json")).name == card.name
    features = [{"type": "Feature", "properties": {"class": v}, "geometry": {"type": "Point", "coordinates": [x, y]}}
                for x, y, v in points]  # fmt: skip
    labels = {
        "type": "FeatureCollection",
        "features": features,
        "crs": {"type": "name", "properties": {"name": "EPSG:32633"}},
    }
    (home / "labels.geojson").write_text(json.dumps(labels))
    pytest.importorskip("geopandas")
    assert deo_cube.fit_head("knn", stored, at("labels.geojson"), column="class") is not None
    with deo_cube.set_options(cache_dir=at("cache")):
        assert deo_cube.options.get_option("cache_dir") == home / "cache"
    assert sorted(p.name for p in Path.cwd().iterdir()) == []
    assert {"e.zarr", "h.safetensors", "card.json", "e.item.json"} <= {p.name for p in home.iterdir()}


def test_weights_and_stores_that_are_not_there_are_refused_by_their_whole_path(home: Path) -> None:
    for call in (
        lambda: deo_cube.open_cube("~/none.zarr"),
        lambda: deo_cube.open_embeddings("~/none.zarr"),
        lambda: deo_cube.embed(deo_cube.synthetic_cube(size=64, times=1), weights="~/none.safetensors"),
    ):
        with pytest.raises(DeoCubeError, match=r"none\."):
            call()


def test_the_command_line_expands_what_the_shell_leaves(home: Path) -> None:
    deo_cube.synthetic_cube(size=64, times=1).to_zarr(home / "c.zarr", consolidated=False)
    for call in (["embed", "~/c.zarr", "~/e.zarr", "--no-progress"], ["verify", "~/e.zarr"]):
        with pytest.raises(SystemExit) as ended:
            main(call)
        assert not ended.value.code
    assert (home / "e.zarr").is_dir()
    assert not any(Path.cwd().iterdir())


def test_a_source_of_training_is_expanded(home: Path) -> None:
    from deo_cube.train.samples import SourceSpec

    spec = SourceSpec.parse("~/cubes/*.zarr,rgb=~/fine.tif")
    assert spec.path == str(home / "cubes/*.zarr")
    assert spec.rgb == str(home / "fine.tif")
    assert SourceSpec.parse("s3://bucket/c.zarr").path == "s3://bucket/c.zarr"


NAMES = st.from_regex(r"[a-c]{1,4}(\.zarr|\.tif)?", fullmatch=True)


@given(names=st.sets(NAMES, max_size=6), missing=NAMES)
def test_a_missing_path_is_named_with_a_file_that_exists(names: set[str], missing: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names - {missing}:
            (Path(folder) / name).touch()
        message = str(not_found("emb", Path(folder) / missing, "a store"))
        assert message.startswith(f"emb: {folder}/{missing} does not exist")
        assert message.endswith("Expected a store")
        if nearest := re.search(r"but (\S+) does", message):
            assert Path(nearest[1]).exists()
        # The same name with another ending is the nearest one.
        same = {name for name in names - {missing} if Path(name).stem == Path(missing).stem}
        assert not same or (nearest and Path(nearest[1]).name in same)


def test_a_missing_folder_and_addresses_have_no_nearest_file(tmp_path: Path) -> None:
    assert f"neither does the folder {tmp_path / 'no'}" in str(not_found("x", tmp_path / "no" / "a.tif", "a raster"))
    for address in ("https://example.org/a.tif", "/vsis3/bucket/a.tif", "s3://bucket/a.zarr"):
        assert str(not_found("x", address, "a raster")) == f"x: {address} does not exist. Expected a raster"


def test_every_missing_input_is_one_wording(tmp_path: Path) -> None:
    path = tmp_path / "none.zarr"
    emb = deo_cube.synthetic_cube(size=64, times=1).deo.embed()
    calls = {
        "path": lambda: deo_cube.open_cube(path),
        "store": lambda: deo_cube.open_embeddings(path),
        "emb": lambda: deo_cube.similar(path, (0, 0)),
        "head": lambda: deo_cube.load_head(path),
        "x": lambda: deo_cube.info(path),
        "map": lambda: deo_cube.assess(path, path),
        "places": lambda: emb.deo.sample(path),
        "labels": lambda: deo_cube.fit_head("knn", emb, path),
        "weights": lambda: deo_cube.synthetic_cube(size=64, times=1).deo.embed(weights=path),
    }
    for argument, call in calls.items():
        with pytest.raises(FileNotFoundError, match=rf"^{argument}: .*none\.zarr does not exist"):
            call()


def test_a_missing_store_is_both_errors() -> None:
    with pytest.raises(StoreMismatchError) as caught:
        deo_cube.open_embeddings("none.zarr")
    assert isinstance(caught.value, InputNotFoundError | StoreNotFoundError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (StoreNotFoundError, str(caught.value))


def test_what_a_library_raises_while_it_reads_names_the_argument(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"")
    for raised in (OSError("damaged"), ValueError("damaged"), KeyError("damaged"), RuntimeError("damaged")):
        with pytest.raises(StorageError, match="map: .*an empty file.*damaged"), reading("map", tmp_path / "a.tif", ""):
            raise raised
    with pytest.raises(ArgumentError, match="own"), reading("map", tmp_path / "a.tif", ""):
        raise ArgumentError("own")
    with pytest.raises(ArgumentError, match="^cube: x"), naming("cube"):
        raise ArgumentError("path: x")
    with pytest.raises(ArgumentError, match="^paths"), naming("cube"):
        raise ArgumentError("paths are kept")
