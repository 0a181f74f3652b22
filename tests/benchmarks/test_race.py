"""Who races runs the same race: the same vectors; figures become the tables that the page shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr

import deo_cube
from benchmarks.race import __main__ as race
from benchmarks.race import measure, runners, table, whole
from benchmarks.race.setting import Setting, linked_cube, prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    made = Setting("tiny", 192, str(tmp_path_factory.mktemp("race")), workers=1)
    prepare(made)
    return made


def vectors(path: str) -> np.ndarray:
    if path.endswith(".tif"):
        with rasterio.open(path) as src:
            return np.asarray(src.read(), "float32")
    if (Path(path) / "embeddings").exists():
        return np.asarray(deo_cube.open_embeddings(path).values, "float32")
    return np.asarray(zarr.open_array(path, mode="r")[...], "float32")


@pytest.fixture(scope="module")
def ours(setting: Setting) -> dict[int, np.ndarray]:
    found = {}
    for halo, block in ((0, 128), (16, 96)):
        path = f"{setting.folder}/ours_{halo}.zarr"
        runners.embed(setting, 64, halo, block, path)
        found[halo] = vectors(path)
    return found


@pytest.mark.parametrize("name", [n for n in runners.RUNNERS if n != "deo_cube embed"])
@pytest.mark.parametrize(("halo", "block"), [(0, 128), (16, 96)])
def test_alternatives_give_the_vectors_of_embed(
    name: str, halo: int, block: int, setting: Setting, ours: dict[int, np.ndarray]
) -> None:
    if (reason := runners.missing(name)) is not None:
        pytest.skip(reason)
    run = runners.RUNNERS[name][0]
    path = f"{setting.folder}/{run.__name__}_{halo}"
    path += ".tif" if run.__name__ in ("rasterio_loop", "torchgeo_sampler", "terratorch_tiled") else ".zarr"
    run(setting, 64, halo, block, path)
    found, wanted = vectors(path), ours[halo]
    assert found.shape == wanted.shape
    if halo and name == "TorchGeo GridGeoSampler":
        return  # another grid of tiles, see its docstring
    inside = slice(16, -16) if halo and name == "TerraTorch tiled_inference" else slice(None)
    np.testing.assert_allclose(found[:, inside, inside], wanted[:, inside, inside], atol=5e-3)


def test_tasks_a_block_are_counted(setting: Setting) -> None:
    assert runners.tasks_per_block("deo_cube embed", setting, 64, 16, 96) == 1
    overlapped = runners.tasks_per_block("dask map_blocks / map_overlap", setting, 64, 16, 96)
    assert overlapped is not None
    assert overlapped > 5
    assert runners.tasks_per_block("rasterio loop", setting, 64, 16, 96) is None


def test_a_linked_cube_is_as_large_as_it_says_and_takes_no_space(setting: Setting, tmp_path: Path) -> None:
    small = Setting("tiny", 512, str(tmp_path))
    prepare(small, tif=False)
    large = linked_cube(small, 1100)
    cube = large.cube({})
    assert cube.shape == (10, 1100, 1100)
    np.testing.assert_array_equal(cube[:, 512:600, 512:600], small.cube()[:, :88, :88])
    inodes = {p.stat().st_ino for p in Path(large.zarr, "dn", "c").rglob("*") if p.is_file()}
    assert len(inodes) == 1


def test_ratios_pair_rounds_and_hold_the_truth() -> None:
    middle, low, high = table.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (middle, low, high) == (2.0, 2.0, 2.0)
    middle, low, high = table.ratio([1.0, 1.1, 1.3, 0.9], [1.0, 1.0, 1.0, 1.0])
    assert low < middle < high
    assert table.best_bare({"1 x 2": [3.0, 1.0, 1.0], "2 x 1": [2.0, 2.0, 2.0]}) == "2 x 1"


def test_memory_is_this_process_s_and_its_children_s() -> None:
    first = measure.memory()
    assert first["peak"] >= first["now"] > 10


def test_rounds_are_added_and_facts_replaced() -> None:
    kept: dict[str, Any] = {"a": {"seconds": [1.0]}, "halos": [0], "n": 1}
    race._merge(kept, {"a": {"seconds": [2.0]}, "halos": [0], "n": 2})
    assert kept == {"a": {"seconds": [1.0, 2.0]}, "halos": [0], "n": 2}


@pytest.mark.slow
def test_the_smoke_test_runs_writes_json_and_fills_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "RUNNERS", {k: runners.RUNNERS[k] for k in runners.BLOCKED})
    out = tmp_path / "bench.json"
    figures = race.main(race.Config(quick=True, parts=("race", "seams", "whole"), out=out, folder=tmp_path / "cubes"))
    assert json.loads(json.dumps(figures)) == json.loads(out.read_text())
    (run,) = figures["races"].values()
    assert all(len(c["seconds"]) == 1 for c in run["cases"].values())
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- bench: {n} -->\n<!-- /bench -->\n" for n in ("race", "memory")))
    race.main(race.Config(parts=("render",), out=out, page=page))
    text = page.read_text()
    assert "| 16 | dask map_blocks / map_overlap |" in text
    assert "Not measured." in text
    assert table.render(page, figures) == text


def test_runtimes_are_compared_with_alternatives_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RIVALS", {"torch": ("rasterio loop",)})
    course = measure.Course("tiny", 128, 64, (0,), (128,), bare_tiles=2)
    setting = Setting("tiny", 128, str(tmp_path))
    found = measure.runtimes(course, setting, 1, warm=False, variants=measure.VARIANTS[:1])
    assert {c["variant"] for c in found["cases"].values()} == {"torch, float32", "as it comes"}
    assert all(len(c["values"]) == 1 for c in found["cases"].values())
    text = table.tables({"runtimes": {"tiny": found}})["runtimes"]
    assert "| torch, float32 |" in text
    assert "minutes per Sentinel-2 tile" in text


def test_torch_as_it_comes_uses_its_own_library_and_is_restored() -> None:
    from deo_cube.encoder import encoder

    real = encoder.encoder_products
    with measure.torch_as_it_comes():
        assert encoder.encoder_products is not real
    assert encoder.encoder_products is real


def test_a_continent_is_planned_without_reading() -> None:
    rows = whole.figures(small=True)["rows"]
    assert rows[0]["block"] == rows[1]["block"]
    assert rows[0]["tasks"] == rows[1]["tasks"]


def test_the_page_shows_the_committed_figures() -> None:
    page = ROOT / "docs" / "throughput.md"
    figures = json.loads((ROOT / "docs" / "data" / "bench.json").read_text())
    assert table.render(page, figures) == page.read_text(encoding="utf-8")
