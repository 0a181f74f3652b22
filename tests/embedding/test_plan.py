"""Counts agree with what embed does, come without reading, and grow with the cube in number only."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import deo_cube
from deo_cube.constants import MODEL_BANDS as BANDS
from deo_cube.cube import georeference
from deo_cube.embedding import process
from deo_cube.embedding.embed import embed
from deo_cube.embedding.options import split_options
from deo_cube.embedding.plan import measure_block_rate, plan
from deo_cube.embedding.prepare import prepare
from deo_cube.testing import cube_at, raise_if_dask_computes

SMALL: dict[str, Any] = {"model": "means", "block": 48}


def large_cube(n: int, chunk: int = 1024) -> xr.Dataset:
    """A whole Sentinel-2 tile that would take gigabytes, were it read."""
    zeros = da.zeros((1, n, n), chunks=(1, chunk, chunk), dtype="uint16")
    ds = xr.Dataset({b: (("time", "y", "x"), zeros, {"units": "DN"}) for b in BANDS})
    ds = ds.assign_coords(time=[np.datetime64("2024-06-01", "ns")]).assign_attrs(boa_add_offset=0)
    return georeference.assign_grid(ds, GeoBox((n, n), Affine(10, 0, 399960, 0, -10, 5000040), "EPSG:32633"))


def test_counts_are_those_of_embed() -> None:
    cube = cube_at((200, 230), times=3)
    p, emb = plan(cube, **SMALL), embed(cube, **SMALL)
    assert p.shape == emb.shape
    assert p.blocks == emb.data.npartitions
    assert p.bytes_out == emb.nbytes + emb.valid.nbytes
    assert p.bytes_in == sum(cube[b].nbytes for b in BANDS)
    assert p.area_km2 == pytest.approx(200 * 230 * 1e-4, rel=0.01)


def test_it_takes_what_embed_takes_and_refuses_what_embed_refuses() -> None:
    cube = cube_at((60, 60), times=1)
    same: dict[str, Any] = {"batch_size": 2, "device": "cpu", "dtype": np.float32, "units": "dn"}
    assert (
        plan(cube, **SMALL, **same).bytes_out == embed(cube, **SMALL, **same).nbytes + embed(cube, **SMALL).valid.nbytes
    )
    for wrong in ({"dtype": "float64"}, {"device": "abacus"}, {"model": "vitb", "dtype": "int8"}):
        with pytest.raises((ValueError, deo_cube.DeoCubeError)) as told:
            plan(cube, **(SMALL | wrong))
        assert "wanted" in str(told.value) or "must be" in str(told.value) or "pass" in str(told.value)


def test_tiles_are_those_that_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    cube = cube_at((100, 90), times=2)
    tiles = [0]
    real = process.run_batches

    def counted(items: Any, *args: Any, **kwargs: Any) -> Any:
        tiles[0] += len(items)
        return real(items, *args, **kwargs)

    monkeypatch.setattr(process, "run_batches", counted)
    embed(cube, **SMALL).compute(scheduler="sync")
    assert tiles[0] == plan(cube, **SMALL).tiles


def test_a_sentinel2_tile_is_planned_and_graphed_without_reading_and_in_few_tasks() -> None:
    cube = large_cube(10980)
    with raise_if_dask_computes():
        p, emb = plan(cube, "tiny"), embed(cube, "tiny")
    assert p.area_km2 == pytest.approx(12065, rel=0.01)
    sources = len(dict(cube.__dask_graph__()))
    assert len(dict(emb.__dask_graph__())) <= sources + 3 * p.blocks  # a task, its values and its valid fraction


def test_memory_of_a_block_does_not_depend_on_the_cube() -> None:
    small, large = plan(large_cube(4096), "tiny"), plan(large_cube(10980), "tiny")
    assert small.bytes_per_block == large.bytes_per_block
    windows = []
    for n in (4096, 10980):
        emb = embed(large_cube(n), "tiny")
        block = emb.data.blocks[0, 0, 1, 1]
        keys = dict(block.__dask_graph__().cull({(block.name, 0, 0, 0, 0)}))
        windows.append(len(keys))
    assert windows[0] == windows[1]


def test_a_rate_is_measured_on_request_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deo_cube.embedding.plan.measure_block_rate", partial(measure_block_rate, seconds=0.0))
    cube = cube_at((100, 100), times=1)
    with deo_cube.set_options(cache_dir=tmp_path):
        assert plan(cube, **SMALL).seconds is None
        measured = plan(cube, measure=True, **SMALL)
        assert measured.tiles_per_second is not None
        assert measured.tiles_per_second > 0
        assert plan(cube, **SMALL).tiles_per_second == measured.tiles_per_second
        assert "km²/s" in repr(measured)
        (tmp_path / "rates.json").write_text("not json")
        assert plan(cube, **SMALL).seconds is None


def test_the_cost_of_an_area_follows_from_the_plan(tmp_path: Path) -> None:
    p = dataclasses.replace(plan(cube_at((200, 230), times=3), **SMALL), tiles_per_second=2.0, device="cpu", cores=4)
    assert p.seconds is not None
    same = p.cost(p.area_km2)
    assert same.hours == pytest.approx(p.seconds / 3 / 3600)
    assert same.core_hours == pytest.approx(4 * same.hours)
    assert (same.read_gb, same.written_gb) == pytest.approx((p.bytes_in / 3e9, p.bytes_out / 3e9))
    assert p.cost(10 * p.area_km2).written_gb == pytest.approx(10 * same.written_gb)
    assert dataclasses.replace(p, device="cuda:0").cost().core_hours is None
    assert dataclasses.replace(p, tiles_per_second=None).cost().hours is None
    assert "core-hours" in repr(p)
    assert "100,000 km²" in repr(p)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("mask", [None, "cloud"])
def test_a_block_is_measured_as_it_is_computed(dtype: str, mask: str | None, tmp_path: Path) -> None:
    cube = cube_at((100, 100), times=1)
    if dtype == "float32":  # reflectance
        cube = (cube / 1e4).astype("float32").assign_attrs(cube.attrs)
        for band in cube.data_vars.values():
            band.attrs["units"] = "1"
    cube["SCL"] = (("time", "y", "x"), np.full((1, 100, 100), 4, "uint8"))
    cube["cloud"] = cube["SCL"] == 0
    options = SMALL | {"units": "reflectance" if dtype == "float32" else "dn"}
    p = prepare(cube, split_options(options | {"mask": mask})[0])
    assert measure_block_rate(p, "cpu", seconds=0) > 0


def test_options_of_embed_are_taken_and_others_refused() -> None:
    cube = cube_at((100, 100), times=1)
    assert plan(cube, halo=8, tile=32, **SMALL).tiling.halo == 8
    with pytest.raises(TypeError, match="hallo"):
        plan(cube, hallo=8, **SMALL)
    with pytest.raises(deo_cube.errors.MissingBandsError):
        plan(cube.drop_vars("B02"), **SMALL)


def test_default_batch_keeps_about_a_thousand_tokens_on_the_cpu() -> None:
    from deo_cube.encoder.registry import resolve

    ref = resolve("vitb", locate=False)
    assert process.default_batch(ref, 256, "cpu") == 1
    assert process.default_batch(ref, 128, "cpu") == 4
    # A GPU takes as many pixels as sixteen tiles of 320.
    assert process.default_batch(ref, 256, "cuda:0") == 16 * 320**2 // 256**2
