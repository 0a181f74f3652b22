"""Kill a process before any of its file operations, or lose what it had not synced: no store lies, none is stuck."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import crash
from deo_cube.embedding.embed import embed
from deo_cube.store.open import verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at
from tests.store.test_write import tree

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.store.test_crash"])

CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # The cube and options of the store that is there before, and of the call that is killed.
    "write": ({}, {"seed": 0}, {}),
    "overwrite": ({"seed": 0}, {"seed": 1}, {"overwrite": True}),
    "changed": ({"seed": 0}, {"seed": 1}, {"resume": "changed"}),
}


def call(path: Path, cube: dict[str, Any], options: dict[str, Any]) -> None:
    emb = embed(cube_at((40, 40), times=1, **cube), model="means", dtype="float32", block=24)
    to_zarr(emb, path, progress=False, num_workers=2, **options)


def killed(path: Path, log: Path, kill_at: int, name: str) -> None:
    import functools

    from deo_cube.encoder.registry import register_encoder
    from deo_cube.testing import means, means_card

    register_encoder(means_card(), functools.partial(functools.partial, means))
    _, cube, options = CALLS[name]
    with crash.watched(path.parent, log, kill_at):
        call(path, cube, options)


def run(path: Path, log: Path, kill_at: int, name: str) -> int | None:
    log.unlink(missing_ok=True)
    process = FORK.Process(target=killed, args=(path, log, kill_at, name))
    process.start()
    process.join(300)
    return process.exitcode


def begin(path: Path, name: str) -> None:
    before, _, _ = CALLS[name]
    if before:
        call(path, before, {})


def claims_nothing_false(path: Path) -> None:
    if not path.exists():
        return
    import json

    try:
        state = json.loads((path / "zarr.json").read_text())["attributes"]["deo_cube:state"]
    except (OSError, ValueError):
        return
    assert state != "complete" or verify_store(path).complete


def fault(name: str, power: bool, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(name, power, id=f"{name}-{'power' if power else 'kill'}", marks=marks)


@pytest.mark.parametrize(
    ("name", "power"),
    [
        fault("write", False),
        fault("overwrite", True),
        fault("changed", True),
        # Of the same calls the other fault.
        fault("write", True, pytest.mark.slow),
        fault("overwrite", False, pytest.mark.slow),
        fault("changed", False, pytest.mark.slow),
    ],
)
def test_a_kill_before_any_file_operation_and_a_loss_of_power(tmp_path: Path, name: str, power: bool) -> None:
    random = np.random.default_rng(len(name))
    undisturbed, path, log = tmp_path / "u" / "e.zarr", tmp_path / "k" / "e.zarr", tmp_path / "log"
    path.parent.mkdir()
    begin(undisturbed, name)
    assert run(undisturbed, log, 0, name) == 0
    total, expected = crash.operations(log), tree(undisturbed)
    assert total > 20
    for i, kill_at in enumerate(sorted(random.choice(np.arange(1, total), 4, replace=False))):
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        begin(path, name)
        assert run(path, log, int(kill_at), name) == -signal.SIGKILL
        if power:
            crash.lose_power(log, random, ("empty", "zeros", "gone")[i % 3])
        claims_nothing_false(path)
        _, cube, options = CALLS[name]
        call(path, cube, options)
        assert tree(path) == expected, (kill_at, total)
        assert [p.name for p in path.parent.iterdir()] == ["e.zarr"]


def test_a_loss_of_power_takes_what_was_not_synced_and_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [
        f"os.mkdir\t{tmp_path}/new",
        f"open\t{tmp_path}/new/a",
        f"fsync\t{tmp_path}/new/a",
        f"open\t{tmp_path}/new/b",
        f"os.rename\t{tmp_path}/new/a\t{tmp_path}/new/c",
        f"fsync\t{tmp_path}/new",
        f"fsync\t{tmp_path}",
    ]
    log.write_text("\n".join(lines))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "c").write_text("synced")
    (tmp_path / "new" / "b").write_text("not synced")
    assert crash.lose_power(log, np.random.default_rng(0), "empty", share=1.0) == [f"{tmp_path}/new/b"]
    assert (tmp_path / "new" / "c").read_text() == "synced"
    log.write_text("\n".join(lines[:-1]))
    assert f"{tmp_path}/new" in crash.lose_power(log, np.random.default_rng(0), "gone", share=1.0)
    assert not (tmp_path / "new").exists()
