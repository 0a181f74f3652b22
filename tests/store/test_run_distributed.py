"""Blocks go to workers that fit, weights reach them, workers come and go, and nothing is waited for in silence."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster

from deo_cube import cli
from deo_cube.embedding import process
from deo_cube.embedding.embed import embed
from deo_cube.encoder.registry import resolve
from deo_cube.errors import DeviceError, SchedulerError
from deo_cube.store.open import status
from deo_cube.store.run_distributed import WorkerPool
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at
from tests.store.test_write import SMALL, tree


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A cluster of two processes of two threads each, of which one says that it has a GPU."""

    def nanny(**more: Any) -> dict[str, Any]:
        return {"cls": Nanny, "options": {"host": "127.0.0.1", "nthreads": 2, "dashboard": False, **more}}

    chief = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}}
    spill = str(tmp_path_factory.mktemp("spill"))
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"distributed.worker.memory.terminate": False}),
    ):
        patch.setenv("TMPDIR", spill)
        workers = {"gpu": nanny(resources={"GPU": 1}), "plain": nanny()}
        with SpecCluster(workers=workers, scheduler=chief) as cluster, Client(cluster) as one:
            yield one


@pytest.fixture
def client(connected: Client) -> Client:
    """The client of that cluster, both of whose workers have imported what takes seconds to import."""
    connected.wait_for_workers(2)
    connected.run(lambda: resolve("tiny").card.alias)
    return connected


def encoders() -> int:
    return len(process._encoders)


def by_name(client: Client) -> dict[str, str]:
    return {w["name"]: address for address, w in client.scheduler_info()["workers"].items()}


def test_blocks_go_to_the_workers_with_a_gpu_through_fusion_and_slices(
    client: Client,
    tmp_path: Path,
    undisturbed: dict[str, str],
) -> None:
    to_zarr(embed(cube_at(), **SMALL), tmp_path / "e.zarr", progress=False)
    assert tree(tmp_path / "e.zarr") == undisturbed
    emb = embed(cube_at(), **SMALL) * 2
    to_zarr(emb.isel(time=[0]), tmp_path / "twice.zarr", progress=False)
    loaded = client.run(encoders)
    assert {name: loaded[address] for name, address in by_name(client).items()} == {"gpu": 1, "plain": 0}


def test_the_command_line_embeds_on_a_cluster_and_names_one_that_is_not_there(
    client: Client, tmp_path: Path, undisturbed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    cube_at().to_zarr(tmp_path / "cube.zarr", zarr_format=3, consolidated=False)
    call = ["embed", str(tmp_path / "cube.zarr"), str(tmp_path / "e.zarr"), "--model", "means", "--dtype", "float32"]
    call += ["--block", "48", "--no-progress", "--scheduler"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*call, client.scheduler.address])
    assert ended.value.code == 0
    shards = {k: v for k, v in tree(tmp_path / "e.zarr").items() if "/c/" in k}
    assert shards == {k: v for k, v in undisturbed.items() if "/c/" in k}
    with dask.config.set({"distributed.comm.timeouts.connect": "300ms"}), pytest.raises(SystemExit) as ended:
        cli.main([*call, "tcp://127.0.0.1:9"])
    assert ended.value.code == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


def test_a_wish_for_the_cpu_takes_all_workers(client: Client) -> None:
    pool = WorkerPool(client, [SimpleNamespace(ref=resolve("tiny"), device="cpu")], 60.0)
    assert pool.refresh(0.0)
    assert (pool.threads, pool.placement()) == (4, {})


def test_the_gpu_is_shared_by_the_threads_of_its_process(client: Client) -> None:
    pool = WorkerPool(client, [SimpleNamespace(ref=resolve("tiny"), device=None)], 60.0)
    pool.refresh(0.0)
    assert (pool.threads, pool.placement()) == (2, {"resources": {"GPU": 0.5}})


def test_a_device_that_no_worker_has_is_an_error_at_once(client: Client, tmp_path: Path) -> None:
    emb = embed(cube_at(), device="cuda", **SMALL)
    with pytest.raises(DeviceError, match="none of the 2 workers can run this job.*cuda"):
        to_zarr(emb, tmp_path / "e.zarr", progress=False)
    assert status(tmp_path / "e.zarr").done == 0


def test_weights_are_sent_once_a_node_to_workers_that_do_not_see_them(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = resolve("tiny")
    assert ref.weights is not None
    # A path that leads to the file from here, and nowhere from the workers' folder.
    shutil.copy(ref.weights, tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "CHUNK_BYTES", 200_000)
    moved = dataclasses.replace(ref, weights="mine.safetensors")
    assert not any(client.run(process.has_weights, moved).values())
    sent: list[int] = []
    send = WorkerPool._send
    monkeypatch.setattr(WorkerPool, "_send", lambda *args: (sent.append(1), send(*args))[1])
    # The card is not one that the workers' own places have, so that they cannot find it there.
    other = dataclasses.replace(moved, card=dataclasses.replace(ref.card, alias="moved", weights=_nowhere(ref)))
    pool = WorkerPool(client, [SimpleNamespace(ref=other, device=None)], 60.0)
    pool.refresh(0.0)
    assert all(client.run(process.has_weights, other).values())
    assert sent == [1]


def _nowhere(ref: Any) -> Any:
    return dataclasses.replace(ref.card.weights, file="nowhere.safetensors", sha256=None)


def test_workers_that_die_cost_no_block(
    client: Client,
    tmp_path: Path,
    undisturbed: dict[str, str],
) -> None:
    pids = client.run(os.getpid)
    victim = pids[by_name(client)["gpu"]]
    path, gates = tmp_path / "e.zarr", Gates(tmp_path)

    def kill() -> None:
        until(lambda: gates.reached_by(victim))
        assert 0 < status(path).done < status(path).blocks
        os.kill(victim, signal.SIGKILL)
        gates.open()

    with meanwhile(kill, gates):
        to_zarr(embed(held_cube(gates), **SMALL), path, progress=False)
    assert tree(path) == undisturbed


@pytest.mark.slow
def test_the_loss_of_workers_is_logged_when_it_happens(
    tmp_path: Path, undisturbed: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """ "Yet" is said before the first worker only; one that was retired is not called lost."""
    path, gates, workers = tmp_path / "e.zarr", Gates(tmp_path), []
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        caplog.at_level("INFO", logger="deo_cube"),
    ):

        def start(name: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny"]
            command += ["--nthreads", "1", "--name", name, "--no-dashboard", "--local-directory", str(tmp_path / name)]
            root = str(Path(__file__).parents[2])
            workers.append(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root}, cwd=root))
            return workers[-1]

        def logs(text: str) -> bool:
            return any(text in m for m in caplog.messages)

        def disturb() -> None:
            until(lambda: logs("no worker has joined the cluster yet"))
            retired, killed = start("retired"), start("killed")
            # Both hold a block now, and the one that will be killed keeps its block.
            until(lambda: gates.reached_by(retired.pid) and gates.reached_by(killed.pid))
            address = {w["name"]: a for a, w in process.workers_of(client).items()}
            gates.open(retired.pid)
            client.retire_workers([address["retired"]])
            until(lambda: logs(f"worker {address['retired']} left; 1 left in the cluster"))
            killed.kill()
            until(lambda: logs(f"worker {address['killed']} was lost"))
            until(lambda: logs("the cluster has no worker left (2 had joined)"))
            gates.open(start("late").pid)

        try:
            with meanwhile(disturb, gates):
                to_zarr(embed(held_cube(gates), **SMALL), path, progress=False, worker_timeout=120)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert tree(path) == undisturbed
    assert sum("no worker has joined the cluster yet" in m for m in caplog.messages) == 1
    lost = [r.levelname for r in caplog.records if "was lost" in r.message]
    assert lost == ["WARNING"]


def until(condition: Any) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.02)


@dataclasses.dataclass(frozen=True)
class Gates:
    """Hold each process at the last chunks of the cube until its gate is opened, however fast it is."""

    folder: Path

    def __call__(self, block: np.ndarray, block_info: Any = None) -> np.ndarray:
        # The look at the cube before a job reads chunks in the middle, so that the client is never held.
        if block_info and tuple(block_info[0]["chunk-location"][:2]) == (1, 2):
            (self.folder / f"reached-{os.getpid()}").touch()
            while not any((self.folder / f"open-{name}").exists() for name in (os.getpid(), "all")):
                time.sleep(0.01)
        return block

    def reached_by(self, pid: int) -> bool:
        return (self.folder / f"reached-{pid}").exists()

    def open(self, name: int | str = "all") -> None:
        (self.folder / f"open-{name}").touch()


@contextlib.contextmanager
def meanwhile(disturb: Callable[[], None], gates: Gates) -> Iterator[None]:
    """Run `disturb` beside the block of code, and raise what it raises; a job is not held after it failed."""

    def run() -> None:
        try:
            disturb()
        except BaseException:
            gates.open()
            raise

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        yield
        future.result()


def held_cube(gates: Gates) -> Any:
    cube = cube_at(chunks={"time": 1, "y": 40, "x": 40})
    held = cube.map(lambda v: v.copy(data=v.data.map_blocks(gates, dtype=v.dtype, meta=v.data._meta)))
    return held.assign_attrs(cube.attrs)


def test_a_cluster_that_starts_with_nobody_grows_under_the_job_or_is_given_up(
    tmp_path: Path,
    undisturbed: dict[str, str],
) -> None:
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        emb = embed(cube_at(), **SMALL)
        with pytest.raises(DeviceError, match=r"no worker has joined.*worker_timeout=") as caught:
            to_zarr(emb, tmp_path / "e.zarr", progress=False, worker_timeout=0.3)
        assert "0 of 18 blocks are done" in "".join(caught.value.__notes__)
        cluster.adapt(minimum=0, maximum=2, interval="200ms", wait_count=2)
        to_zarr(emb, tmp_path / "e.zarr", progress=False, worker_timeout=120)
    assert tree(tmp_path / "e.zarr") == undisturbed


def test_a_scheduler_that_is_lost_is_said_so(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),  # after which the client gives up
        Client(cluster) as client,
    ):
        path, gates = tmp_path / "e.zarr", Gates(tmp_path)
        emb = embed(held_cube(gates), **SMALL)

        def stop() -> None:
            until(lambda: gates.reached_by(os.getpid()))
            client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.loop.add_callback(dask_scheduler.close))

        with meanwhile(stop, gates):
            try:
                with pytest.raises(SchedulerError, match="scheduler is lost.*same call"):
                    to_zarr(emb, path, progress=False)
            finally:
                gates.open()  # the worker is a thread of this process, and ends once its block does
    assert 0 < status(path).done < status(path).blocks
