"""Batches cross to a device and back as they were; precision and compilation are what they are called.

There is no GPU here: what is shown is that the steps which a GPU takes (stage, on_device, pending, fetch, canonical on
tensors) give the same bits as the CPU's own path, by taking them on the CPU.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import deo_cube
from deo_cube.embedding import metadata, process, transfer
from deo_cube.embedding.embed import embed
from deo_cube.errors import DeviceError, StoreMismatchError
from deo_cube.testing import cube_at


@pytest.fixture
def crossing(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Make the CPU a device apart; gives the dtypes that were staged."""
    seen: list[torch.dtype] = []
    real = transfer.stage

    def noted(arrays: Sequence[np.ndarray | None], device: str) -> transfer.StagedBatch:
        staged = real(arrays, device)
        seen.append(staged.arrays[0].dtype)
        return staged

    monkeypatch.setattr(transfer, "needs_copy", lambda device: True)
    monkeypatch.setattr(transfer, "stage", noted)
    return seen


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_the_way_over_a_device_gives_the_same_bits(dtype: str, stored: str, request: pytest.FixtureRequest) -> None:
    cube = cube_at((100, 90), times=1, dtype=dtype)
    for band in cube.data_vars:
        cube[band][:, 10:20, 30:70] = 0
    mask = (cube["B04"] % 7 == 0).isel(time=0, drop=True)
    options = {"model": "means", "block": 48, "units": "dn", "offset": -100.5, "nodata": 0, "mask": mask}
    here = embed(cube, **options, dtype=stored).compute(scheduler="sync").values
    seen = request.getfixturevalue("crossing")
    there = embed(cube, **options, dtype=stored).compute(scheduler="sync").values
    np.testing.assert_array_equal(here, there)
    assert np.isfinite(here).any()
    assert {str(d).removeprefix("torch.") for d in seen} == {dtype}


def test_reflectance_is_scaled_in_float64_there_too(request: pytest.FixtureRequest) -> None:
    cube = (cube_at((64, 64), times=1) / 10000).astype("float32").assign_coords(cube_at((64, 64), times=1).coords)
    options = {"model": "means", "units": "reflectance", "offset": 0, "dtype": "float32"}
    here = embed(cube, **options).compute(scheduler="sync").values
    request.getfixturevalue("crossing")
    np.testing.assert_array_equal(embed(cube, **options).compute(scheduler="sync").values, here)


def test_at_most_two_batches_are_ahead_and_the_caller_brings_and_takes_them() -> None:
    staged, most, threads = 0, 0, set()

    def stage(part: Sequence[int]) -> list[int]:
        nonlocal staged, most
        staged += 1
        most = max(most, staged)
        threads.add(threading.get_ident())
        return [10 * i for i in part]

    def fetch(result: list[int]) -> list[int]:
        nonlocal staged
        staged -= 1
        threads.add(threading.get_ident())
        return [i + 1 for i in result]

    got = process.run_batches(
        list(range(11)), lambda part: part, batch=2, device="cpu", stage=stage, fetch=fetch, ahead=2
    )
    assert [v for _, part in got for v in part] == [10 * i + 1 for i in range(11)]
    assert most == 2
    assert threads == {threading.get_ident()}


def test_all_calls_together_stage_a_few_batches_and_none_waits_for_ever() -> None:
    guard, staged, most = threading.Lock(), 0, 0

    def stage(part: Sequence[int]) -> Sequence[int]:
        nonlocal staged, most
        with guard:
            staged += 1
            most = max(most, staged)
        return part

    def fetch(part: Sequence[int]) -> Sequence[int]:
        nonlocal staged
        with guard:
            staged -= 1
        return part

    def call() -> None:
        process.run_batches(
            list(range(20)), lambda part: part, batch=2, device="cpu", stage=stage, fetch=fetch, ahead=2
        )

    threads = [threading.Thread(target=call) for _ in range(4 * process.STAGED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert 2 <= most <= process.STAGED


def test_places_are_given_back_after_an_error() -> None:
    def fail(part: Sequence[int]) -> None:
        raise ZeroDivisionError

    for _ in range(2 * process.STAGED):
        with pytest.raises(ZeroDivisionError):
            process.run_batches(list(range(9)), fail, batch=2, device="cpu", stage=list, fetch=list, ahead=3)


def test_batches_of_convolutions_are_filled_up_and_give_the_same_bits(request: pytest.FixtureRequest) -> None:
    cube = deo_cube.synthetic_cube(size=160, times=1, clouds=False, gaps=False)
    options = {"model": "tiny", "tile": 64, "halo": 8, "dtype": "float32", "block": 96}
    here = embed(cube, **options).compute(scheduler="sync").values
    request.getfixturevalue("crossing")
    counts: list[int] = []
    real = transfer.stack
    request.getfixturevalue("monkeypatch").setattr(
        transfer, "stack", lambda parts, device: counts.append(len(parts)) or real(parts, device)
    )
    there = embed(cube, **options, batch_size=64).compute(scheduler="sync").values
    np.testing.assert_array_equal(there, here)
    assert len(set(counts)) == 1


def test_a_batch_that_does_not_fit_while_it_is_staged_is_halved_too() -> None:
    def stage(part: Sequence[int]) -> list[int]:
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(part)

    process._batch_limits.clear()
    got = process.run_batches(list(range(9)), list, batch=8, device="cpu", key="staged", stage=stage, ahead=2)
    assert [v for _, part in got for v in part] == list(range(9))
    assert max(len(part) for part, _ in got) == 2


def test_bfloat16_is_refused_at_the_call_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    cube = cube_at((64, 64), times=1)
    monkeypatch.setattr(transfer, "cpu_has_bfloat16", lambda: False)
    with pytest.raises(DeviceError, match="ten times slower.*precision='float32'"):
        embed(cube, "means", precision="bfloat16", device="cpu")
    with pytest.raises(ValueError, match="precision must be one of"):
        embed(cube, "means", precision="float8")
    with deo_cube.set_options(precision="bfloat16"), pytest.raises(DeviceError):
        embed(cube, "means")
    with pytest.raises(ValueError, match="option precision"):
        deo_cube.set_options(precision="half")


def test_bfloat16_gives_other_numbers_within_what_it_states_and_is_another_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(transfer, "_no_bfloat16", lambda device: "")
    cube = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    options = {"model": "tiny", "tile": 64, "halo": 0, "dtype": "float32"}
    whole, short = embed(cube, **options), embed(cube, **options, precision="bfloat16")
    assert whole.data.name != short.data.name
    assert short.attrs["deo_cube:precision"] == "bfloat16"
    a, b = whole.compute().values, short.compute().values
    assert np.abs(a - b).max() > 1e-4
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    assert 1 - cosine.min() < short.attrs["deo_cube:tolerance"] == transfer.TOLERANCE["bfloat16"]
    assert metadata.identity(whole) != metadata.identity(short)
    whole.deo.to_zarr(f"{tmp_path}/a.zarr", progress=False)
    with pytest.raises(StoreMismatchError, match="precision"):
        short.deo.to_zarr(f"{tmp_path}/a.zarr", progress=False)


def test_a_stem_that_is_coarse_in_bfloat16_by_its_card_warns_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_no_bfloat16", lambda device: "")
    cube = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    options = {"model": "tiny_v1", "tile": 64, "precision": "bfloat16", "device": "cpu"}
    with pytest.warns(UserWarning, match="'rgb'.*precision='float32'"):
        coarse = embed(cube, **options, bands=["B04", "B03", "B02"])
    assert coarse.attrs["deo_cube:tolerance"] == deo_cube.card("tiny_v1").reference.bfloat16["rgb"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embed(cube, **options).attrs["deo_cube:tolerance"] == transfer.TOLERANCE["bfloat16"]
        embed(cube, **(options | {"precision": "float32"}), bands=["B04", "B03", "B02"])


def test_compiled_networks_give_the_same_vectors_under_the_same_key() -> None:
    cube = cube_at((64, 64), times=1)
    plain = embed(cube, "means", dtype="float32")
    # Traced by torch.compile, run by PyTorch's own operators: no compiler is needed here.
    with deo_cube.set_options(compile="eager"):
        compiled = embed(cube, "means", dtype="float32")
    assert plain.data.name == compiled.data.name
    np.testing.assert_allclose(compiled.compute().values, plain.compute().values, rtol=1e-6)
    assert any(key[2] == "eager" for key in process._encoders)
    with pytest.raises(ValueError, match="option compile"):
        deo_cube.set_options(compile=1)
