from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from deo_cube.encoder.registry import CARDS, EncoderRef, bundled_cards, describe, register_encoder, resolve
from deo_cube.errors import WeightsMismatchError, WeightsNotFoundError


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The bundled small model as the folder of a training run."""
    folder = tmp_path / "runs" / "003"
    folder.mkdir(parents=True)
    card = bundled_cards()["tiny"]
    shutil.copy(CARDS / card.weights.file, folder / card.weights.file)
    dataclasses.replace(card, alias="run003", name="deo_student.run003").save(folder / "card.json")
    return folder


#: A process that unpickles a file, runs a line with it as `ref`, and answers with what the line printed.
OTHER = """
import contextlib, io, json, pickle, sys
for request in sys.stdin:
    path, line = json.loads(request)
    printed = io.StringIO()
    with open(path, "rb") as file, contextlib.redirect_stdout(printed):
        exec(line, {"ref": pickle.load(file)})
    print(json.dumps(printed.getvalue()), flush=True)
"""


@pytest.fixture(scope="module")
def other() -> Iterator[subprocess.Popen[str]]:
    """A process that knows nothing of this one."""
    command = [sys.executable, "-c", OTHER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def in_another_process(process: subprocess.Popen[str], data: bytes, tmp_path: Path, code: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    path = tmp_path / "ref.pickle"
    path.write_bytes(data)
    process.stdin.write(json.dumps([str(path), code]) + "\n")
    process.stdin.flush()
    return str(json.loads(process.stdout.readline())).strip()


POOLED = "import numpy as np\nprint(ref.fingerprint, float(ref.load().pool(np.full((1, {n}, 64, 64), 900.0)).sum()))"


def pooled(ref: EncoderRef) -> str:
    channels = len(ref.stem.bands)
    return f"{ref.fingerprint} {float(ref.load().pool(np.full((1, channels, 64, 64), 900.0)).sum())}"


def test_a_bundled_model_is_a_few_hundred_bytes_and_comes_back_the_same(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    ref = resolve("tiny", bands=["B02", "B03", "B04"])
    data = pickle.dumps(ref)
    assert len(data) < 500
    again = pickle.loads(data)
    assert again == ref
    assert again.fingerprint == ref.fingerprint
    assert again.card == ref.card
    assert in_another_process(other, data, tmp_path, POOLED.format(n=3)) == pooled(ref)


def test_a_run_folder_travels_with_its_card(run_folder: Path, tmp_path: Path, other: subprocess.Popen[str]) -> None:
    ref = resolve(run_folder, normalize={b: (1000, 500) for b in bundled_cards()["tiny"].bands})
    data = pickle.dumps(ref)
    assert len(data) < 5000  # the card goes with it, scores and limits included
    (run_folder / "card.json").unlink()  # a scheduler that unpickles need not see the folder
    again = pickle.loads(data)
    assert again == ref
    assert again.normalization == ref.normalization
    assert in_another_process(other, data, tmp_path, POOLED.format(n=10)) == pooled(ref)


def test_a_changed_bundled_card_travels_whole() -> None:
    card = dataclasses.replace(bundled_cards()["tiny"], tile=128, halo=16)
    again = pickle.loads(pickle.dumps(resolve(card)))
    assert (again.card.tile, again.card.halo) == (128, 16)


def test_a_worker_with_another_version_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(resolve("tiny"))
    other = dataclasses.replace(bundled_cards()["tiny"], units="reflectance")
    monkeypatch.setattr("deo_cube.encoder.registry.bundled_cards", lambda: {"tiny": other})
    with pytest.raises(WeightsMismatchError, match="tiny"):
        pickle.loads(data)


def test_fingerprint_follows_everything_that_changes_the_numbers(run_folder: Path) -> None:
    tiny = resolve("tiny")
    variants = [
        tiny,
        resolve("tiny", layer=tiny.card.layers[0].name),
        resolve("tiny", bands=["B02", "B03", "B04"]),
        resolve("tiny", normalize={b: (1, 1) for b in tiny.stem.bands}),
        resolve("tiny", normalize={b: (1, 2) for b in tiny.stem.bands}),
        resolve(run_folder),
        dataclasses.replace(tiny, weights_sha256="0" * 64),
    ]
    assert len({v.fingerprint for v in variants}) == len({hash(v) for v in variants}) == len(variants)
    assert resolve("tiny").fingerprint == tiny.fingerprint
    assert resolve(tiny.card.name).__dask_tokenize__() == tiny.__dask_tokenize__()
    prose = dataclasses.replace(tiny.card, summary="said otherwise", limits=("more",))
    assert resolve(prose).fingerprint == tiny.fingerprint


def test_dask_tokenises_it_by_fingerprint() -> None:
    from dask.base import tokenize

    assert tokenize(resolve("tiny")) == tokenize(pickle.loads(pickle.dumps(resolve("tiny"))))
    assert tokenize(resolve("tiny")) != tokenize(resolve("tiny", bands=["B02", "B03", "B04"]))


def test_weights_that_vanish_or_change_after_the_call(run_folder: Path) -> None:
    card = dataclasses.replace(
        bundled_cards()["tiny"],
        weights=dataclasses.replace(bundled_cards()["tiny"].weights, sha256=None),
        folder=str(run_folder),
    )
    ref = resolve(card)
    path = Path(ref.weights or "")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsMismatchError, match="SHA-256"):
        ref.load()
    path.unlink()
    with pytest.raises(WeightsNotFoundError, match="weights"):
        ref.load()


def test_a_missed_reference_vector_stops_the_load() -> None:
    card = bundled_cards()["tiny"]
    assert card.reference is not None
    wrong = dataclasses.replace(card.reference, vector=tuple(v + 0.01 for v in card.reference.vector))
    ref = resolve(dataclasses.replace(card, reference=wrong))
    with pytest.raises(WeightsMismatchError, match="reference vector"):
        ref.load()
    assert ref.load(check=False).card.alias == "tiny"


# Encoders of the user's own: a function has no weights file, so its reference carries the function.


def means_of(size: int):
    def means(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, size)

    return means


def test_a_function_survives_cloudpickle_into_a_fresh_process(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    size = 8
    register_encoder(describe("means", bands=["B04", "B08"], dim=2, patch=8), lambda: means_of(size))
    ref = resolve("means")
    # Defined in a test module that the other process cannot import: by value, as Dask sends what __main__ defines.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        script = cloudpickle.dumps(ref)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    out = in_another_process(
        other, script, tmp_path, "import numpy as np\nprint(ref.load().pool(np.full((1, 2, 64, 64), 900.0)))"
    )
    assert out == str(ref.load().pool(np.full((1, 2, 64, 64), 900.0)))


def test_random_initialisation_is_the_same_in_every_process(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    card = describe("conv", bands=["B04", "B03", "B02"], dim=5, patch=4)
    register_encoder(card, lambda: torch.nn.Conv2d(3, 5, 4, 4))
    torch.manual_seed(99)
    ref = resolve("conv")
    torch.manual_seed(7)
    assert np.array_equal(ref.load().pool(np.ones((1, 3, 8, 8))), ref.load().pool(np.ones((1, 3, 8, 8))))
    out = in_another_process(other, cloudpickle.dumps(ref), tmp_path, POOLED.format(n=3))
    assert out == pooled(ref)


def test_a_factory_that_gives_something_else_each_time_is_refused() -> None:
    made = iter(range(1, 9))

    def factory():
        torch.manual_seed(next(made))
        return torch.nn.Conv2d(3, 5, 4, 4)

    register_encoder(describe("restless", bands=["B04", "B03", "B02"], dim=5, patch=4), factory)
    ref = resolve("restless")
    with pytest.raises(WeightsMismatchError, match="factory"):
        ref.load()


def test_resolving_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    register_encoder(describe("noise", bands=["B04"], dim=5, patch=4), lambda: torch.nn.Conv2d(1, 5, 4, 4))
    resolve("noise").load()
    assert torch.equal(torch.rand(3), want)


def test_what_a_function_captured_is_part_of_its_identity() -> None:
    def fingerprint(factory) -> str:
        register_encoder(describe("means", bands=["B04", "B08"], dim=2, patch=8), factory)
        return resolve("means").fingerprint

    one, two = np.ones(3), np.array([1.0, 2.0, 3.0])
    found = [
        fingerprint(lambda: means_of(8)),
        fingerprint(lambda: means_of(16)),
        fingerprint(lambda: functools.partial(torch.nn.functional.avg_pool2d, kernel_size=8)),
        fingerprint(lambda: functools.partial(torch.nn.functional.avg_pool2d, kernel_size=16)),
        fingerprint(lambda: lambda x: x * one),
        fingerprint(lambda: lambda x: x * two),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(lambda: means_of(8)) == found[0]
