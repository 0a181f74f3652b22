"""`info` says what is at a path, whatever it is; `pca` and `export` write it for other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

import deo_cube
from deo_cube.cli import main
from deo_cube.errors import ArgumentTypeError, InputNotFoundError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube, a store, a class map as .zarr and .tif, a head and a table, from two dates."""
    path = tmp_path_factory.mktemp("facts")
    ds = deo_cube.synthetic_cube(size=128, times=2, clouds=False, gaps=False)
    ds.to_zarr(path / "cube.zarr", zarr_format=3, consolidated=False)
    emb = ds.deo.embed().deo.to_zarr(path / "emb.zarr", progress=False)
    places = [(float(emb.x[i]), float(emb.y[j]), "ab"[i > 9]) for i in (2, 5, 14, 18) for j in (3, 12)]
    head = emb.isel(time=0).deo.fit_head("knn", places, k=1)
    head.save(path / "head.safetensors")
    classes = head.predict(emb).compute()
    classes.to_dataset(name="class").to_zarr(path / "classes.zarr", zarr_format=3)
    classes.isel(time=0).deo.to_cog(path / "classes.tif")
    emb.isel(time=0).deo.to_geoparquet(path / "table.parquet", pool=8)
    return path


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in args])
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("name", "title", "keys", "words"),
    [
        ("emb.zarr", "store of embeddings", {"size", "dates", "CRS", "model", "blocks"}, ("2 of 2", "EPSG:32633")),
        ("cube.zarr", "cube", {"size", "dates", "CRS"}, ("time 2",)),
        ("classes.zarr", "map of 2 classes", {"size", "dates", "classes"}, ("0 a, 1 b",)),
        ("classes.tif", "GeoTIFF of classes", {"size", "CRS", "classes", "date"}, ("0 a", "2021-05-26")),
        ("head.safetensors", "knn head", {"kind", "model", "classes"}, ("tiny", "0 a")),
        ("table.parquet", "table of vectors", {"rows", "columns"}, ("embedding",)),
    ],
)
def test_everything_is_described(folder: Path, name: str, title: str, keys: set[str], words: tuple[str, ...]) -> None:
    found = deo_cube.info(folder / name)
    assert title in found.title
    assert keys <= {k for k, _ in found.facts}
    for word in words:
        assert word in repr(found)
    assert "<table" in found._repr_html_()


def test_models_and_arrays_are_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dict(deo_cube.info("tiny").facts)["fingerprint"] == deo_cube.card("tiny").fingerprint
    emb = deo_cube.open_embeddings(folder / "emb.zarr")
    assert deo_cube.info(emb).facts == emb.deo._summary().facts
    assert run("info", "tiny") == 0
    assert "fused" in capsys.readouterr().out


def test_what_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="tiny"):
        deo_cube.info(tmp_path / "none")
    with pytest.raises(ArgumentTypeError, match="x must"):
        deo_cube.info(3)


def test_pca_writes_bytes_that_are_the_colours(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pca.tif"
    assert run("pca", folder / "emb.zarr", out) == 2  # two dates
    assert f"--time {_first(folder)}" in capsys.readouterr().err  # the advice, which the next line follows
    assert run("pca", folder / "emb.zarr", out, "--time", _first(folder)) == 0
    assert run("pca", folder / "emb.zarr", out, "--time", _first(folder)) == 2  # it exists
    assert run("pca", folder / "emb.zarr", out, "--time", _first(folder), "--overwrite") == 0
    rgb = deo_cube.open_embeddings(folder / "emb.zarr").isel(time=0).deo.pca_rgb().values
    with rasterio.open(out) as file:
        assert file.dtypes == ("uint8",) * 3
        found = (file.read() - 1.0) / 254
    assert np.nanmax(np.abs(found - rgb)) <= 0.5 / 254 + 1e-6
    assert run("pca", folder / "emb.zarr", tmp_path / "f.tif", "--time", _first(folder), "--floats") == 0
    with rasterio.open(tmp_path / "f.tif") as file:
        np.testing.assert_array_equal(file.read(), rgb)


def test_export_writes_by_ending(folder: Path, tmp_path: Path) -> None:
    store = folder / "emb.zarr"
    assert run("export", store, tmp_path / "v.tif", "--time", _first(folder)) == 0
    with rasterio.open(tmp_path / "v.tif") as file:
        assert file.count == 192
        assert file.descriptions[0] == "embedding 0"
    assert run("export", store, tmp_path / "v.parquet", "--pool", 8) == 0
    assert deo_cube.info(tmp_path / "v.parquet").title == "table of vectors"
    assert run("export", folder / "classes.zarr", tmp_path / "c.tif", "--time", _first(folder)) == 0
    with rasterio.open(tmp_path / "c.tif") as file:
        assert file.tags(1)["class_0"] == "a"
    assert run("export", store, tmp_path / "v.txt") == 2
    assert run("export", folder / "classes.zarr", tmp_path / "c.parquet", "--time", _first(folder)) == 2
    assert run("export", store, store) == 2


def _first(folder: Path) -> str:
    return str(deo_cube.open_embeddings(folder / "emb.zarr").time.values[0])[:10]


def test_results_show_themselves_in_notebooks(folder: Path) -> None:
    ds = deo_cube.synthetic_cube(size=64, times=1)
    shown = [
        deo_cube.card("tiny"),
        ds.deo.match(),
        ds.deo.plan(),
        deo_cube.verify("tiny"),
        deo_cube.verify_store(folder / "emb.zarr"),
        deo_cube.load_head(folder / "head.safetensors"),
    ]
    for one in shown:
        html = one._repr_html_()
        assert "<table" in html
        assert "<script" not in html
    assert "proven" in shown[3]._repr_html_()
    assert "complete" in shown[4]._repr_html_()


def test_heads_of_quantities_are_described(folder: Path, tmp_path: Path) -> None:
    emb = deo_cube.open_embeddings(folder / "emb.zarr").isel(time=0)
    cells = [(i, j) for i in range(2, 30, 3) for j in range(2, 30, 3)]
    targets = [(float(emb.x[i]), float(emb.y[j]), 0.1 * i + 0.37 * j) for i, j in cells]
    head = deo_cube.fit_head("ridge", emb, targets, units="t/ha", quantity="biomass")
    head.save(tmp_path / "biomass.safetensors")
    found = deo_cube.info(tmp_path / "biomass.safetensors")
    assert dict(found.facts)["units"] == "t/ha"
    assert "ridge head" in found.title


def test_indexes_are_described(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    deo_cube.build_index(folder / "emb.zarr", tmp_path / "index", progress=False)
    found = deo_cube.info(tmp_path / "index")
    assert "index" in found.title
    assert dict(found.facts)["patches"] == "2,048"


def test_a_folder_with_another_index_json_is_not_an_index(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[1, 2]")
    with pytest.raises(deo_cube.DeoCubeError) as caught:
        deo_cube.info(tmp_path)
    assert "search index" not in str(caught.value)
