"""OpenVINO gives PyTorch's vectors, proves it before its first use, is part of a store, and is refused by name."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube.constants import OPENVINO_CONVERSION
from deo_cube.embedding import metadata, process, transfer
from deo_cube.embedding.embed import embed
from deo_cube.embedding.plan import measure_block_rate, plan
from deo_cube.encoder.registry import resolve
from deo_cube.errors import ArgumentError, DeviceError, MissingExtraError, StoreMismatchError
from deo_cube.testing import cube_at, means_card

pytest.importorskip("openvino", reason="the extra cpu is not installed")
from deo_cube.encoder import openvino_network

SMALL: dict[str, Any] = {"model": "means", "dtype": "float32", "block": 48}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep converted networks of the module in one folder, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with deo_cube.set_options(cache_dir=folder):
        yield folder


@pytest.fixture
def no_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the encoders of this process for one test."""
    monkeypatch.setattr(process, "_encoders", {})


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that OpenVINO runs."""
    shapes: list[tuple[int, ...]] = []
    real = openvino_network.OpenVINONetwork._run

    def run(self: Any, pixels: Any) -> Any:
        shapes.append(pixels.shape)
        return real(self, pixels)

    monkeypatch.setattr(openvino_network.OpenVINONetwork, "_run", run)
    return shapes


def test_vectors_are_those_of_torch_and_made_by_openvino(runs: list[tuple[int, ...]]) -> None:
    cube = cube_at((100, 61))
    by_torch = embed(cube, **SMALL).compute()
    by_openvino = embed(cube, **SMALL, runtime="openvino").compute()
    np.testing.assert_allclose(by_openvino, by_torch, rtol=1e-5)
    np.testing.assert_array_equal(by_openvino.valid, by_torch.valid)
    assert set(runs) == {(1, 10, 32, 32)}
    assert len(runs) >= 2 * 5 * 3


@given(st.integers(1, 49), st.integers(1, 60), st.sampled_from([1, 2, 5]))
@settings(max_examples=15)
def test_chunks_and_batches_change_no_bit(row: int, column: int, batch_size: int) -> None:
    cube = cube_at((50, 61), times=1)
    options = SMALL | {"runtime": "openvino"}
    whole = embed(cube, **options).compute()
    pieces = embed(cube.chunk(y=(row, 50 - row), x=(column, 61 - column)), **options, batch_size=batch_size).compute()
    xr.testing.assert_identical(whole, pieces)


def test_tiles_that_are_cut_are_left_to_torch(runs: list[tuple[int, ...]], no_encoders: None) -> None:
    deo_cube.register_encoder(means_card(alias="cut", trim=4), halves_of)
    cube = cube_at((40, 40), times=1, row=0, col=0)
    options = {"model": "cut", "dtype": "float32", "tile": 32, "halo": 0}
    by_torch, by_openvino = embed(cube, **options).compute(), embed(cube, **options, runtime="openvino").compute()
    np.testing.assert_allclose(by_openvino, by_torch, rtol=1e-5)
    # The reference input, and the one tile that is whole.
    assert runs == [(1, 10, 32, 32)] * 2


def halves_of() -> Any:
    def halves(batch: torch.Tensor) -> torch.Tensor:
        mean = torch.nn.functional.avg_pool2d(batch, 4)
        return torch.cat([mean, mean / 2], 1)

    return halves


def test_another_layer_or_stem_than_the_compiled_one_is_left_to_torch() -> None:
    encoder = process.encoder(resolve("means"), "cpu", runtime=version(), tile=32)
    pixels = torch.rand(2, 10, 16, 16)
    plain = resolve("means").load("cpu")
    assert torch.equal(encoder.encode(pixels), plain.encode(pixels))


def version() -> str:
    installed = process._installed_openvino()
    assert installed is not None
    return installed


def test_the_runtime_is_part_of_a_store(tmp_path: Path) -> None:
    cube = cube_at((50, 61), times=1)
    by_torch, by_openvino = embed(cube, **SMALL), embed(cube, **SMALL, runtime="openvino")
    assert "deo_cube:runtime" not in by_torch.attrs  # as before there were others
    assert by_openvino.attrs["deo_cube:runtime"] == version()
    assert version().endswith(f"+{OPENVINO_CONVERSION}")
    assert by_torch.data.name != by_openvino.data.name
    assert metadata.identity(by_openvino)["runtime"] == version()
    by_torch.deo.to_zarr(tmp_path / "torch.zarr", progress=False)
    with pytest.raises(StoreMismatchError, match="runtime"):
        by_openvino.deo.to_zarr(tmp_path / "torch.zarr", progress=False)
    by_openvino.deo.to_zarr(tmp_path / "openvino.zarr", progress=False)
    by_openvino.deo.to_zarr(tmp_path / "openvino.zarr", progress=False)  # resumed: nothing is left to do
    with pytest.raises(StoreMismatchError, match="runtime"):
        by_torch.deo.to_zarr(tmp_path / "openvino.zarr", progress=False)
    stored = deo_cube.open_embeddings(tmp_path / "openvino.zarr")
    np.testing.assert_array_equal(stored, by_openvino.compute())


def test_the_option_of_the_session_applies_and_a_call_overrides_it() -> None:
    cube = cube_at((32, 32), times=1)
    with deo_cube.set_options(runtime="openvino"):
        assert "deo_cube:runtime" in embed(cube, "means").attrs
        assert "deo_cube:runtime" not in embed(cube, "means", runtime="torch").attrs
    with pytest.raises(ArgumentError, match="option runtime"):
        deo_cube.set_options(runtime="onnx")
    with pytest.raises(ArgumentError, match="runtime"):
        embed(cube, "means", runtime="onnx")


def test_auto_takes_openvino_where_it_gives_the_same_vectors(no_encoders: None) -> None:
    emb = embed(cube_at((32, 32), times=1), **SMALL, runtime="auto")
    assert emb.attrs["deo_cube:runtime"] == version()
    assert len(process._encoders) == 1  # compiled at the call, and kept


def test_a_network_that_gives_other_vectors_is_refused_and_auto_takes_torch(
    no_encoders: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cube = cube_at((32, 32), times=1)
    monkeypatch.setitem(openvino_network.TOLERANCE, "float32", -1.0)
    with pytest.raises(DeviceError, match="differ from PyTorch's.*runtime='torch'"):
        embed(cube, **SMALL, runtime="openvino").compute()
    with caplog.at_level(logging.WARNING, "deo_cube"):
        emb = embed(cube, **SMALL, runtime="auto")
    assert "encoded by torch" in caplog.text
    xr.testing.assert_identical(emb, embed(cube, **SMALL, runtime="torch"))  # the advice of the message
    assert emb.compute().notnull().any()


def test_a_network_whose_trace_holds_constants_is_refused(no_encoders: None) -> None:
    def factory() -> Any:
        def random(batch: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.from_numpy(np.sort(batch.numpy()))[..., ::4, ::4]] * 2, 1)

        return random

    deo_cube.register_encoder(means_card(alias="numpy"), factory)
    cube = cube_at((32, 32), times=1)
    with pytest.raises(DeviceError, match="runtime='torch'"):
        embed(cube, "numpy", runtime="openvino").compute()
    assert "deo_cube:runtime" not in embed(cube, "numpy", runtime="auto").attrs


def test_a_vit_that_enlarges_its_positions_is_refused_with_advice_that_works(no_encoders: None) -> None:
    cube = cube_at((64, 64), times=1)

    def run(alias: str, options: dict[str, Any], runtime: Any) -> xr.DataArray:
        # Positions of 14 x 14 patches are enlarged to 2 x 2.
        card = deo_cube.describe_timm(
            alias, "vit_tiny_patch16_224", bands=("B02", "B03", "B04"), tile=32, options=options, pretrained=False
        )
        return embed(cube, card, dtype="float32", block=64, runtime=runtime).compute()

    with pytest.raises(DeviceError, match=r"options=\{'img_size': 32\}"):
        run("enlarging", {"dynamic_img_size": True}, "openvino")
    by_torch, by_openvino = (run("of_one_size", {"img_size": 32}, each) for each in ("torch", "openvino"))
    np.testing.assert_allclose(by_openvino, by_torch, atol=1e-4)


def test_nan_is_within_no_tolerance() -> None:
    some = np.ones((3, 4), np.float32)
    assert openvino_network.relative_error(some, some) == 0
    assert not openvino_network.relative_error(some * np.nan, some) <= 1


def test_openvino_that_is_missing_or_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cube = cube_at((32, 32), times=1)
    other = embed(cube, **SMALL, runtime="openvino")
    with monkeypatch.context() as without:
        without.setattr(process, "_installed_openvino", lambda: None)
        without.setitem(sys.modules, "openvino", None)
        with pytest.raises(MissingExtraError, match=r"deo-cube\[cpu\]"):
            embed(cube, "means", runtime="openvino")
        assert "deo_cube:runtime" not in embed(cube, "means", runtime="auto").attrs
    monkeypatch.setattr(process, "_installed_openvino", lambda: "openvino 1.0")
    monkeypatch.setattr(process, "_encoders", {})
    with pytest.raises(DeviceError, match="same version"):
        other.compute()


def test_another_device_than_the_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="device='cpu'"):
        embed(cube_at((32, 32), times=1), "means", runtime="openvino", device="cuda")


def test_networks_are_converted_once_a_machine(
    no_encoders: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cube = cube_at((32, 32), times=1)
    conversions = []
    real = openvino_network._convert

    def convert(*args: Any) -> None:
        conversions.append(args)
        real(*args)

    monkeypatch.setattr(openvino_network, "_convert", convert)
    with deo_cube.set_options(cache_dir=tmp_path):
        first = embed(cube, **SMALL, runtime="openvino").compute()
        process._encoders.clear()
        second = embed(cube, **SMALL, runtime="openvino").compute()
    assert len(conversions) == 1
    xr.testing.assert_identical(first, second)
    assert not list((tmp_path / "openvino").glob("*.*"))  # no part of a folder is left


def test_a_cache_that_cannot_be_written_is_done_without(no_encoders: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cube = cube_at((32, 32), times=1)
    with deo_cube.set_options(cache_dir=tmp_path / "file"):
        emb = embed(cube, **SMALL, runtime="openvino").compute()
    np.testing.assert_allclose(emb, embed(cube, **SMALL).compute(), rtol=1e-5)


def test_lazy_embeddings_travel_to_other_processes() -> None:
    emb = embed(cube_at((32, 32), times=1, chunks={}), **SMALL, runtime="openvino")
    copy = pickle.loads(pickle.dumps(emb))
    xr.testing.assert_identical(copy.compute(), emb.compute())


def _log_model(floor: float | None) -> Any:
    import openvino
    from openvino import opset13 as op

    x = op.parameter([1, 4096], np.float32)
    below = x if floor is None else op.maximum(x, op.constant(np.float32(floor)))
    return openvino.Model([op.log(below)], [x])


def test_logarithms_of_numbers_from_one_are_compiled_and_as_exact() -> None:
    import openvino

    model = _log_model(1.0)
    assert openvino_network.compile_logarithms(model) == 1
    assert not [node for node in model.get_ops() if node.get_type_name() == "Log"]
    z = np.geomspace(0.5, 1e5, 4096, dtype=np.float32)[None]
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: z})[0]
    np.testing.assert_allclose(found, np.log(np.maximum(z, 1), dtype=np.float64), atol=5e-6)


@pytest.mark.parametrize("floor", [None, 1e-6])
def test_logarithms_of_other_numbers_stay(floor: float | None) -> None:
    model = _log_model(floor)
    assert openvino_network.compile_logarithms(model) == 0
    assert [node for node in model.get_ops() if node.get_type_name() == "Log"]


def _convolution_twice() -> Any:
    """Return a model that applies one convolution, its bias and SiLU to each half of its input."""
    import openvino
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    x = op.parameter([1, 4, 64, 64], np.float32)
    weight = op.constant(rng.normal(size=(8, 4, 3, 3)).astype(np.float32))
    bias = op.constant(rng.normal(size=8).astype(np.float32))
    halves = []
    for part in op.split(x, op.constant(2), 2).outputs():
        maps = op.convolution(part, weight, [1, 1], [1, 1], [1, 1], [1, 1])
        halves.append(op.swish(op.add(maps, op.reshape(bias, op.constant([1, 8, 1, 1]), False))))
    return openvino.Model([op.concat(halves, 2)], [x])


def test_shared_biases_are_separated_and_then_added_within_the_convolution() -> None:
    import openvino

    def compiled(model: Any) -> Any:
        return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def steps(model: Any) -> list[str]:
        return [node.get_rt_info()["layerType"].astype(str) for node in compiled(model).get_runtime_model().get_ops()]

    model, x = _convolution_twice(), np.random.default_rng(1).normal(size=(1, 4, 64, 64)).astype(np.float32)
    expected = np.array(compiled(model)({0: x})[0])
    before = steps(model)
    assert openvino_network.separate_biases(model) == 2
    np.testing.assert_allclose(compiled(model)({0: x})[0], expected, atol=1e-6)
    assert before.count("Convolution") == steps(model).count("Convolution") == 2
    assert before.count("Subgraph") > steps(model).count("Subgraph") == 0


@pytest.mark.skipif(not process.cpu_has_bfloat16(), reason="this processor has no bfloat16")
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bfloat16_on_this_processor_is_near_float32_and_has_the_same_bits_in_any_batch(name: str) -> None:
    cube = deo_cube.synthetic_cube(size=192, times=1, clouds=False, gaps=False)
    options: dict[str, Any] = {"model": "tiny", "tile": 64, "halo": 0, "anchor": "array", "dtype": "float32"}
    exact = embed(cube, **options).compute().values[0].reshape(192, -1)
    lazy = embed(cube, **options, precision="bfloat16", runtime=name)
    short = lazy.compute()
    again = embed(cube.chunk(y=50, x=70), **options, precision="bfloat16", runtime=name, batch_size=1, block=64)
    np.testing.assert_array_equal(again.compute(), short)
    values = short.values[0].reshape(192, -1)
    assert np.abs(values - exact).max() > 1e-4
    cosine = (values * exact).sum(0) / np.linalg.norm(values, axis=0) / np.linalg.norm(exact, axis=0)
    assert 1 - cosine.min() < transfer.TOLERANCE["bfloat16"]


def test_bfloat16_is_refused_on_a_processor_without(monkeypatch: pytest.MonkeyPatch, no_encoders: None) -> None:
    cube = cube_at((32, 32), times=1)
    monkeypatch.setattr(transfer, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(process, "cpu_has_bfloat16", lambda: False)
    for name in ("torch", "openvino", "auto"):
        with pytest.raises(DeviceError, match="precision='float32'"):
            embed(cube, "means", precision="bfloat16", runtime=name)
    monkeypatch.setattr(transfer, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(openvino_network, "has_bfloat16", lambda: False)
    with pytest.raises(DeviceError, match="precision='float32'"):
        embed(cube, "means", precision="bfloat16", runtime="openvino").compute()


def test_plans_keep_the_rate_of_each_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deo_cube.embedding.plan.measure_block_rate", partial(measure_block_rate, seconds=0.0))
    cube = cube_at((64, 64), times=1)
    with deo_cube.set_options(cache_dir=tmp_path):
        measured = plan(cube, "means", runtime="openvino", measure=True)
        assert measured.tiles_per_second
        assert plan(cube, "means", runtime="openvino").tiles_per_second == measured.tiles_per_second
        assert plan(cube, "means").tiles_per_second is None


@pytest.mark.slow
def test_processes_write_the_bytes_of_threads(tmp_path: Path) -> None:
    cube = deo_cube.synthetic_cube(size=128, times=1, clouds=False, gaps=False)
    emb = embed(cube, "tiny", tile=64, halo=0, block=64, runtime="openvino")
    emb.deo.to_zarr(tmp_path / "a.zarr", progress=False)
    emb.deo.to_zarr(tmp_path / "b.zarr", progress=False, scheduler="processes", num_workers=2)
    files = sorted(p.relative_to(tmp_path / "a.zarr") for p in (tmp_path / "a.zarr").rglob("c/*") if p.is_file())
    assert files
    for file in files:
        assert (tmp_path / "a.zarr" / file).read_bytes() == (tmp_path / "b.zarr" / file).read_bytes()


def test_a_network_that_is_coarse_in_bfloat16_by_torch_too_is_taken(
    no_encoders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the RGB stem of tiny on the reference input: far from float32 by any library."""
    monkeypatch.setattr(openvino_network, "has_bfloat16", lambda: True)
    monkeypatch.setattr(openvino_network, "_HINTS", {"float32": "f32", "bfloat16": "f32"})  # runs on any processor
    monkeypatch.setitem(openvino_network.TOLERANCE, "bfloat16", -1.0)
    assert process.encoder(resolve("tiny"), "cpu", False, "bfloat16", runtime=version(), tile=64)
