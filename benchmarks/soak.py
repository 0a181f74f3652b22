"""Fault injection, in hundreds of rounds: `python -m benchmarks.soak --rounds 300`.

Every round begins a store, injures what works on it or what is stored, and ends with the same call once more, after
which the store must be byte for byte that of an undisturbed run. After every fault what is done is read back and
compared with its checksum. Kinds of rounds:

- *threads*, *processes*, *cluster*: kill the process, the client, the scheduler or workers (with nannies and without)
- *crash*: kill the process before one of its file operations, in a write, an overwrite, or ``resume="changed"``
- *power*: the same, and lose what was not yet synced to the disk
- *damage*: flip bytes in shards, delete shards, empty, zero or delete metadata and entries
- *overwrite*: overwrite a store with another model while an older run still writes to it
- *contest*: two different calls on one path at the same moment
- *objects*: an object store whose requests fail
- *source*: read from a source that fails, hangs and returns short chunks
- *full*: fill the disk (a small tmpfs; root only)

The last line says how many blocks were lost and wrong, how many files were wrong, how many stores claimed to be
complete and were not, and how many were stuck: refused by the call that made them.

Processes are forked from one that has imported everything, so that a round takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import tyro
import xarray as xr
import zarr

from benchmarks import crash, null
from deo_cube.embedding import chunks
from deo_cube.embedding.embed import embed
from deo_cube.errors import DeoCubeError
from deo_cube.store.open import status, verify_store
from deo_cube.store.write import to_zarr

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["benchmarks.soak"])
SHAPE, BLOCK, TIMES = (192, 224), 32, 2


@dataclass(frozen=True)
class Config:
    """How much."""

    rounds: int = 300
    seed: int = 0
    kinds: tuple[str, ...] = ()
    """Only these kinds of rounds. Default: all."""
    pause: float = 0.004
    """Seconds that each chunk takes to read: the longer, the more kills fall into the middle of something."""
    out: Path | None = None
    """JSON file for the report."""


@dataclass
class Report:
    """What came of it."""

    rounds: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """Errors that a call ended with, by kind: clear ones, which named what to do."""
    lost_blocks: int = 0
    """Blocks that were done, and later were not."""
    wrong_blocks: int = 0
    """Finished blocks whose bytes did not match their checksum after a kill."""
    wrong_files: int = 0
    """Files that at the end of a round were not those of an undisturbed run."""
    false_claims: int = 0
    """Stores that said they were complete and were not."""
    stuck: int = 0
    """Stores that the call which made them refused."""
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was lost and nothing wrong."""
        return not (self.lost_blocks or self.wrong_blocks or self.wrong_files or self.false_claims or self.stuck)


def slow_read(pause: float, block: np.ndarray) -> np.ndarray:
    """A chunk, after a while."""
    time.sleep(pause)
    return block


class BadSource:
    """A source whose reads fail, hang or come back short at random, more often than not."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """A chunk, or what a bad network makes of it."""
        roll = np.random.default_rng([self.seed, os.getpid(), time.monotonic_ns()]).random()
        if roll < 0.10:
            raise OSError("connection reset")
        if roll < 0.15:
            time.sleep(3)
        return block[..., :-1] if roll > 0.90 else block


def cube(read_chunk: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> xr.Dataset:
    """Random DN, the same in every process, whose chunks go through `read_chunk`."""

    def band(i: int, shape: Any, chunks: Any) -> Any:
        values = np.random.default_rng(i).integers(1, 4000, shape, dtype=np.uint16)
        if seed:
            values[:, : shape[1] // 3] += np.uint16(
                seed
            )  # a part, so that blocks differ in some places and not in others
        array = da.from_array(values, chunks=chunks, name=f"soak-{i}-{seed}")
        return array.map_blocks(read_chunk, dtype=values.dtype, meta=array._meta, name=f"soak-read-{i}-{seed}")

    return null.cube(SHAPE, times=TIMES, chunk=48, array=band)


def job(
    path: Any, read_chunk: Callable[[np.ndarray], np.ndarray], *, tile: int = 16, seed: int = 0, **options: Any
) -> None:
    """The call that is made every time; with another `tile` another model, with another `seed` other pixels."""
    alias = null.register(tile)
    emb = embed(cube(read_chunk, seed), model=alias, dtype="float32", block=BLOCK)
    to_zarr(emb, path, progress=False, **options)


def on_threads(path: str, pause: float) -> None:
    """A process that embeds on threads."""
    os.setsid()
    job(path, functools.partial(slow_read, pause), num_workers=3, scheduler="threads")


def on_processes(path: str, pause: float) -> None:
    """A process that embeds on processes of its own."""
    os.setsid()
    job(path, functools.partial(slow_read, pause), num_workers=2, scheduler="processes")


def with_errors(said: str, path: str, options: dict[str, Any]) -> None:
    """A process that embeds on threads; what it ends with is noted in the file `said`."""
    try:
        job(path, functools.partial(slow_read, options.pop("pause", 0.0)), scheduler="threads", **options)
    except BaseException as error:
        Path(said).write_text(type(error).__name__)
        raise


def watched_job(path: str, folder: str, log: str, kill_at: int, options: dict[str, Any]) -> None:
    """A process that ends itself before one of its file operations."""
    with crash.watched(Path(folder), Path(log), kill_at):
        job(path, functools.partial(slow_read, 0.0), num_workers=2, scheduler="threads", **options)


def on_cluster(path: str, pause: float, address: str, said: str) -> None:
    """A process that embeds on a cluster; what it ends with is noted in the file `said`."""
    os.setsid()
    try:
        with distributed.Client(address, timeout=20):
            job(path, functools.partial(slow_read, pause), worker_timeout=60)
    except BaseException as error:
        Path(said).write_text(type(error).__name__)
        raise


def scheduler(file: str) -> None:
    """A scheduler's process; its address is written to `file`."""

    async def serve() -> None:
        async with distributed.Scheduler(host="127.0.0.1", port=0, dashboard=False) as one:
            Path(file).write_text(one.address)
            await one.finished()

    os.setsid()
    asyncio.run(serve())


def worker(address: str, folder: str, nanny: bool) -> None:
    """A worker's process, or a nanny's, whose worker is a process of its own."""
    kind = distributed.Nanny if nanny else distributed.Worker

    async def serve() -> None:
        async with kind(address, nthreads=2, host="127.0.0.1", dashboard=False, local_directory=folder) as one:
            await one.finished()

    os.setsid()
    asyncio.run(serve())


def start(target: Callable[..., None], *args: Any) -> Any:
    """A process that has everything imported."""
    process = FORK.Process(target=target, args=args)
    process.start()
    return process


def kill(process: Any) -> bool:
    """Kill it, as the kernel does when memory runs out; False where it had ended already."""
    alive = bool(process.is_alive())
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive


class Flaky(zarr.storage.MemoryStore):
    """An object store whose request of one number fails: reads, writes, deletions and listings all count."""

    fail_at, count = 0, 0

    def _request(self) -> None:
        self.count += 1
        if self.count == self.fail_at:
            raise OSError("connection reset")

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        """Read."""
        self._request()
        return await super().get(key, *args, **options)

    async def set(self, key: str, *args: Any, **options: Any) -> None:
        """Write."""
        self._request()
        await super().set(key, *args, **options)

    async def delete(self, key: str) -> None:
        """Delete."""
        self._request()
        await super().delete(key)

    def held(self) -> dict[str, str]:
        """Hash of every object."""
        return {k: hashlib.sha256(v.to_bytes()).hexdigest() for k, v in self._store_dict.items()}


class Soak:
    """All rounds, one after another."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.random = np.random.default_rng(config.seed)
        self.report = Report()
        self.done_before = 0
        self.operations: dict[str, int] = {}
        begin = time.perf_counter()
        job(str(folder / "undisturbed.zarr"), functools.partial(slow_read, config.pause), num_workers=3)
        self.length = time.perf_counter() - begin
        self.expected = {"": tree(folder / "undisturbed.zarr")}
        for name, options in (("tile", {"tile": 32}), ("seed", {"seed": 7})):
            job(str(folder / f"{name}.zarr"), functools.partial(slow_read, 0.0), num_workers=3, **options)
            self.expected[name] = tree(folder / f"{name}.zarr")

    def look(self, path: Path) -> bool:
        """Check what is there after a fault; return whether the store is complete."""
        if not path.exists():
            return False
        # What it says first, then what is there: another process may still be at work.
        try:
            state = json.loads((path / "zarr.json").read_text())["attributes"]["deo_cube:state"]
            found = verify_store(path)
        except (OSError, ValueError, KeyError):
            return False  # damaged, and it says so
        self.report.lost_blocks += max(0, self.done_before - found.done)
        self.report.wrong_blocks += len(found.damaged)
        self.done_before = found.done
        self.report.false_claims += state == "complete" and not found.complete
        return state == "complete"

    def finish(self, path: Path, expected: str = "", **options: Any) -> None:
        """Make the call once more, and compare with the undisturbed store, file by file; nothing else may be left."""
        try:
            job(str(path), functools.partial(slow_read, 0.0), num_workers=3, **options)
        except DeoCubeError as error:
            print("STUCK:", path.name, error, flush=True)
            self.report.stuck += 1
        else:
            self.look(path)
            self.compare(tree(path), self.expected[expected])
        self.report.wrong_files += sum(p.name.startswith(f".{path.name}") for p in path.parent.iterdir())
        shutil.rmtree(path)

    def compare(self, got: dict[str, str], expected: dict[str, str]) -> None:
        """Count the objects that are not those of an undisturbed run."""
        wrong = [k for k in {*got, *expected} if got.get(k) != expected.get(k)]
        if wrong:
            print("WRONG:", wrong, flush=True)
        self.report.wrong_files += len(wrong)

    def threads(self, path: Path) -> None:
        """Kill the process, several times, anywhere between its first and its last second."""
        for _ in range(int(self.random.integers(2, 7))):
            process = start(on_threads, str(path), self.config.pause)
            process.join(float(self.random.uniform(0.1, 1.3 * self.length)))
            self.report.kills["process on threads"] += kill(process)
            if self.look(path):
                break
        self.finish(path)

    def processes(self, path: Path) -> None:
        """Kill the parent of processes that embed: they must end with it."""
        process = start(on_processes, str(path), self.config.pause)
        process.join(float(self.random.uniform(3.0, 8.0)))
        self.report.kills["parent of processes"] += kill(process)
        self.look(path)
        self.finish(path)

    def _crash(self, path: Path) -> tuple[Path, str, dict[str, Any]]:
        """Kill a write, an overwrite or a change before one of its file operations: log, expected store, its call."""
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("", {}),
            ("tile", {"tile": 32, "overwrite": True}),
            ("seed", {"seed": 7, "resume": "changed"}),
        ]
        expected, options = kinds[int(self.random.integers(len(kinds)))]
        log = self.folder / "operations.log"
        if expected:
            job(str(path), functools.partial(slow_read, 0.0), num_workers=3)
        total = self.operations.get(expected, 0)
        if not total:
            # Counted once, in a run that is not killed.
            log.unlink(missing_ok=True)
            spare = path.with_name(f"counted-{expected}.zarr")
            if expected:
                shutil.copytree(path, spare)
            process = start(watched_job, str(spare), str(self.folder), str(log), 0, options)
            process.join()
            total = self.operations[expected] = crash.operations(log)
            shutil.rmtree(spare)
        log.unlink(missing_ok=True)
        process = start(
            watched_job, str(path), str(self.folder), str(log), int(self.random.integers(1, total)), options
        )
        process.join()
        self.report.kills[f"file operation of {expected or 'write'}"] += process.exitcode == -signal.SIGKILL
        return log, expected, options

    def crash(self, path: Path) -> None:
        """Kill before a file operation."""
        _, expected, options = self._crash(path)
        self.look(path)
        self.done_before = 0  # an overwrite begins again
        self.finish(path, expected, **options)

    def power(self, path: Path) -> None:
        """Kill before a file operation, and lose what was not synced."""
        log, expected, options = self._crash(path)
        how: Any = self.random.choice(["empty", "zeros", "gone"])
        self.report.faults[f"losses of power, {how}"] += 1
        self.report.faults["files hurt by it"] += len(crash.lose_power(log, self.random, how))
        self.done_before = 0
        self.look(path)
        self.done_before = 0
        self.finish(path, expected, **options)

    def overwrite(self, path: Path) -> None:
        """Overwrite a store while an older run, with another model, still writes to it."""
        said = self.folder / "said"
        said.unlink(missing_ok=True)
        old = start(with_errors, str(said), str(path), {"pause": self.config.pause, "num_workers": 3})
        old.join(float(self.random.uniform(0.1, self.length)))
        self.finish(path, "tile", tile=32, overwrite=True) if path.exists() else None
        old.join()
        if path.exists():  # the older run came first, or last: what is there is whole, and whose it is known
            self.done_before = 0
            self.look(path)
            shutil.rmtree(path)
        self.report.errors[said.read_text() if said.exists() else "the older run ended before"] += 1

    def contest(self, path: Path) -> None:
        """Make two different calls on one path at once: one of them is refused, or both overwrite."""
        both = bool(self.random.random() < 0.5)
        said = [self.folder / f"said{i}" for i in range(2)]
        calls: list[dict[str, Any]] = [{"overwrite": both}, {"overwrite": both, "tile": 32}]
        for file in said:
            file.unlink(missing_ok=True)
        runs = [start(with_errors, str(f), str(path), dict(c)) for f, c in zip(said, calls, strict=True)]
        for run in runs:
            run.join()
        for file in said:
            if file.exists():
                self.report.errors[file.read_text()] += 1
        if all(file.exists() for file in said):
            self.report.errors["both calls ended with an error"] += 1
        self.report.faults["contests"] += 1
        self.done_before = 0
        self.look(path)
        model = json.loads((path / "zarr.json").read_text())["attributes"]["deo_cube:model"]
        winner = "" if model == "null_16.v1" else "tile"
        self.finish(path, winner, **({} if winner == "" else {"tile": 32}))

    def objects(self, path: Path) -> None:
        """Let a request of an object store fail, in a write or an overwrite; then make the same call again."""
        whole = Flaky()
        job(whole, functools.partial(slow_read, 0.0), num_workers=3)
        overwrite = bool(self.random.random() < 0.4)
        store = Flaky()
        options: dict[str, Any] = {"overwrite": True} if overwrite else {}
        if overwrite:
            job(store, functools.partial(slow_read, 0.0), num_workers=3, tile=32)
        store.count, store.fail_at = 0, int(self.random.integers(1, whole.count))
        with contextlib.suppress(OSError):
            job(store, functools.partial(slow_read, 0.0), num_workers=3, retries=0, **options)
        self.report.faults["failed requests"] += 1
        state = json.loads(store._store_dict["zarr.json"].to_bytes())["attributes"] if len(store._store_dict) else {}
        if state.get("deo_cube:state") == "complete":
            self.report.false_claims += not verify_store(store).complete
        try:
            job(store, functools.partial(slow_read, 0.0), num_workers=3, **options)
        except DeoCubeError as error:
            print("STUCK:", "objects", error, flush=True)
            self.report.stuck += 1
            return
        self.report.false_claims += not verify_store(store).complete
        self.compare(store.held(), whole.held())

    def cluster(self, path: Path) -> None:
        """Kill workers, the client and the scheduler."""
        for _ in range(int(self.random.integers(1, 4))):
            nanny = bool(self.random.random() < 0.4)
            with self.machines(nanny) as (chief, address, workers):
                said = self.folder / "said"
                said.unlink(missing_ok=True)
                client = start(on_cluster, str(path), self.config.pause, address, str(said))
                for _ in range(int(self.random.integers(1, 6))):
                    client.join(float(self.random.uniform(0.1, 0.8 * self.length)))
                    if not client.is_alive():
                        break
                    what = self.random.choice(["worker", "worker", "worker", "client", "scheduler"])
                    if what == "worker":
                        i = int(self.random.integers(len(workers)))
                        self.report.kills["worker"] += kill(workers[i])
                        workers[i] = start(worker, address, str(self.folder / "spill"), nanny)
                        self.look(path)
                        continue
                    self.report.kills[str(what)] += kill(client if what == "client" else chief)
                    break
                for _ in range(180):  # looks, not seconds: the machine, and this process, may be asleep meanwhile
                    client.join(0.5)
                    if not client.is_alive():
                        break
                if client.is_alive():
                    self.report.errors["HUNG"] += 1
                    kill(client)
                elif said.exists():
                    self.report.errors[said.read_text()] += 1
            if self.look(path):
                break
        self.finish(path)

    @contextlib.contextmanager
    def machines(self, nanny: bool) -> Iterator[tuple[Any, str, list[Any]]]:
        """A scheduler and two workers, each a process."""
        file = self.folder / "address"
        file.unlink(missing_ok=True)
        chief = start(scheduler, str(file))
        while not (file.exists() and file.read_text()):
            time.sleep(0.02)
        address = file.read_text()
        workers = [start(worker, address, str(self.folder / "spill"), nanny) for _ in range(2)]
        try:
            yield chief, address, workers
        finally:
            for process in (*workers, chief):
                kill(process)

    def damage(self, path: Path) -> None:
        """Damage a finished store: each damage must be found, and repaired by `repair` and the same call."""
        job(str(path), functools.partial(slow_read, 0.0), num_workers=3)
        shards = sorted(p for name in ("embeddings", "valid") for p in (path / name / "c").rglob("*") if p.is_file())
        hurt = set()
        for i in self.random.choice(len(shards), 3, replace=False):
            shard = shards[int(i)]
            at = shard.relative_to(path).parts[2:]
            hurt.add((int(at[0]), int(at[-2]), int(at[-1])))
            if self.random.random() < 0.3:
                shard.unlink()
                continue
            data = bytearray(shard.read_bytes())
            data[int(self.random.integers(len(data)))] ^= 1 << int(self.random.integers(8))
            shard.write_bytes(data)
        found = verify_store(path, repair=True)
        self.report.faults["damaged shards"] += len(hurt)
        self.report.wrong_blocks += len(hurt.symmetric_difference(found.damaged))
        self.report.false_claims += status(path).complete
        self.done_before = 0
        # Metadata and entries: the same call restores them, in one go.
        objects = sorted(p for p in path.rglob("*") if p.is_file() and p.relative_to(path).parts[1:2] != ("c",))
        for i in self.random.choice(len(objects), 3, replace=False):
            one, how = objects[int(i)], self.random.choice(["empty", "zeros", "gone"])
            self.report.faults[f"metadata or entries {how}"] += 1
            one.unlink() if how == "gone" else one.write_bytes(b"" if how == "empty" else bytes(one.stat().st_size))
        self.look(path)
        self.done_before = 0
        both = not any(
            (path / name).exists() and _is_json(path / name) for name in ("zarr.json", "progress/sealed.json")
        )
        if both:  # nothing says any more whose store it is: refused, and said so
            self.report.errors["both copies of the group's document damaged"] += 1
            shutil.rmtree(path)
            return
        self.finish(path)

    def source(self, path: Path) -> None:
        """Read from a source that fails, hangs and returns short chunks."""
        chunks.PAUSE = 0.01
        for _ in range(3):
            try:
                job(str(path), BadSource(int(self.random.integers(1 << 30))), retries=3, read_timeout=1.0)
            except OSError as error:
                self.report.errors[type(error).__name__] += 1
            self.report.faults["runs on a bad source"] += 1
            if self.look(path):
                break
        self.finish(path)

    def full(self, path: Path) -> None:
        """Fill the disk that the store is on."""
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        size = int(self.random.integers(100, 500))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            self.report.faults["full disks (skipped: needs root)"] += 1
            return
        try:
            inside = disk / path.name
            try:
                job(str(inside), functools.partial(slow_read, 0.0), num_workers=3)
            except OSError as error:
                self.report.errors[f"OSError {error.errno}"] += 1
            self.report.faults["full disks"] += 1
            self.look(inside)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            self.finish(inside)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def run(self) -> Report:
        """Do all rounds."""
        begin = time.perf_counter()
        chances = {
            **{"threads": 0.16, "processes": 0.04, "cluster": 0.16, "crash": 0.16, "power": 0.14, "damage": 0.08},
            **{"overwrite": 0.08, "contest": 0.06, "objects": 0.06, "source": 0.03, "full": 0.03},
        }
        kinds = [k for k in chances if not self.config.kinds or k in self.config.kinds]
        shares = np.array([chances[k] for k in kinds]) / sum(chances[k] for k in kinds)
        for number in range(self.config.rounds):
            kind = str(self.random.choice(kinds, p=shares))
            self.done_before = 0
            getattr(self, kind)(self.folder / f"round{number}.zarr")
            self.report.rounds[kind] += 1
            self.report.seconds = time.perf_counter() - begin
            print(self.line(), flush=True)
            if self.config.out is not None:
                self.config.out.write_text(json.dumps(vars(self.report), indent=2) + "\n")
        return self.report

    def line(self) -> str:
        """The report so far."""
        r = self.report
        return (
            f"{sum(r.rounds.values())} rounds {dict(r.rounds)}, {sum(r.kills.values())} kills {dict(r.kills)}, "
            f"{dict(r.faults)}, calls ended with {dict(r.errors)}: {r.lost_blocks} lost blocks, {r.wrong_blocks} wrong "
            f"blocks, {r.wrong_files} wrong files, {r.false_claims} false claims, {r.stuck} stuck; {r.seconds:.0f} s"
        )


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()))
    except ValueError:
        return False


def tree(path: Path) -> dict[str, str]:
    """Every file below a folder, and a hash of what it holds."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main(config: Config) -> int:
    """Run all rounds; 1 where anything was lost or wrong."""
    warnings.filterwarnings("ignore", message=".*not complete.*")
    dask.config.set({"distributed.comm.timeouts.connect": "10s"})
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = Soak(config, Path(folder)).run()
    return 0 if report.clean and not report.errors["HUNG"] else 1


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Config, description=__doc__)))
