"""Bad nights, hundreds of them: `python -m benchmarks.soak --kills 200`.

Every night begins a store and kills what works on it, at random moments, again and again: the process, on threads; or,
on a cluster of real processes on this machine, workers, the client, the scheduler. Other nights flip bytes in shards
and delete shards, fill the disk (a small tmpfs; root only), and read from a source that fails, hangs and returns short
chunks. After every kill what is done is read back and compared with its checksum. In the morning the store must be
byte for byte that of an undisturbed run. The last line says how many blocks were lost and how many files were wrong.

Processes are forked from one that has imported everything, so that a night takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
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

from benchmarks import null
from deo_cube.engine import read
from deo_cube.engine.embed import embed
from deo_cube.engine.reopen import status, verify_store
from deo_cube.engine.write import to_zarr

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["benchmarks.soak"])
SHAPE, BLOCK, TIMES = (192, 224), 32, 2


@dataclass(frozen=True)
class Config:
    """How bad."""

    kills: int = 200
    """Random kills, at least."""
    seed: int = 0
    pause: float = 0.004
    """Seconds that each chunk takes to read: the longer, the more kills fall into the middle of something."""
    out: Path | None = None
    """JSON file for the report."""


@dataclass
class Report:
    """What came of it."""

    nights: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """Errors that a call ended with, by kind: clear ones, which named what to do."""
    lost_blocks: int = 0
    """Blocks that were done, and later were not."""
    wrong_blocks: int = 0
    """Finished blocks whose bytes did not match their checksum after a kill."""
    wrong_files: int = 0
    """Files that in the morning were not those of an undisturbed run."""
    false_claims: int = 0
    """Stores that said they were complete and were not."""
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was lost and nothing wrong."""
        return not (self.lost_blocks or self.wrong_blocks or self.wrong_files or self.false_claims)


def night_read(pause: float, block: np.ndarray) -> np.ndarray:
    """A chunk, after a while."""
    time.sleep(pause)
    return block


class BadSource:
    """A source whose reads fail, hang or come back short at random, more often than not."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """A chunk, or what a bad night makes of it."""
        roll = np.random.default_rng([self.seed, os.getpid(), time.monotonic_ns()]).random()
        if roll < 0.10:
            raise OSError("connection reset")
        if roll < 0.15:
            time.sleep(3)
        return block[..., :-1] if roll > 0.90 else block


def cube(read_chunk: Callable[[np.ndarray], np.ndarray]) -> xr.Dataset:
    """Random DN, the same in every process, whose chunks go through `read_chunk`."""

    def band(i: int, shape: Any, chunks: Any) -> Any:
        values = np.random.default_rng(i).integers(1, 4000, shape, dtype=np.uint16)
        array = da.from_array(values, chunks=chunks, name=f"soak-{i}")
        return array.map_blocks(read_chunk, dtype=values.dtype, meta=array._meta, name=f"soak-read-{i}")

    return null.cube(SHAPE, times=TIMES, chunk=48, array=band)


def job(path: str, read_chunk: Callable[[np.ndarray], np.ndarray], **options: Any) -> None:
    """The call that is made every time."""
    alias = null.register(16)
    emb = embed(cube(read_chunk), model=alias, dtype="float32", block=BLOCK)
    to_zarr(emb, path, progress=False, **options)


def on_threads(path: str, pause: float) -> None:
    """A process that embeds on threads."""
    os.setsid()
    job(path, functools.partial(night_read, pause), num_workers=3, scheduler="threads")


def on_cluster(path: str, pause: float, address: str, said: str) -> None:
    """A process that embeds on a cluster; what it ends with is noted in the file `said`."""
    os.setsid()
    try:
        with distributed.Client(address, timeout=20):
            job(path, functools.partial(night_read, pause), worker_timeout=60)
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


def worker(address: str, folder: str) -> None:
    """A worker's process."""

    async def serve() -> None:
        async with distributed.Worker(
            address, nthreads=2, host="127.0.0.1", dashboard=False, local_directory=folder
        ) as one:
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


class Soak:
    """All nights, one after another."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.random = np.random.default_rng(config.seed)
        self.report = Report()
        self.done_before = 0
        begin = time.perf_counter()
        job(str(folder / "undisturbed.zarr"), functools.partial(night_read, config.pause), num_workers=3)
        self.length = time.perf_counter() - begin
        self.wanted = tree(folder / "undisturbed.zarr")

    def look(self, path: Path) -> bool:
        """Check what is there after a kill; whether the store is complete."""
        if not path.exists():
            return False
        # What it says first, then what is there: somebody may still be at work.
        state = json.loads((path / "zarr.json").read_text())["attributes"]["deo_cube:state"]
        found = verify_store(path)
        self.report.lost_blocks += max(0, self.done_before - found.done)
        self.report.wrong_blocks += len(found.damaged)
        self.done_before = found.done
        self.report.false_claims += state == "complete" and not found.complete
        return state == "complete"

    def morning(self, path: Path) -> None:
        """Compare with the undisturbed store, file by file; nothing else may be left."""
        job(str(path), functools.partial(night_read, 0.0), num_workers=3)
        self.look(path)
        got = tree(path)
        wrong = [k for k in {*got, *self.wanted} if got.get(k) != self.wanted.get(k)]
        if wrong:
            print("WRONG:", wrong, flush=True)
        self.report.wrong_files += len(wrong)
        self.report.wrong_files += sum(p.name.startswith(f".{path.name}") for p in path.parent.iterdir())
        for left in sorted(path.rglob("*"), reverse=True):
            left.rmdir() if left.is_dir() else left.unlink()
        path.rmdir()

    def threads(self, path: Path) -> None:
        """Kill the process, several times, anywhere between its first and its last second."""
        for _ in range(int(self.random.integers(2, 7))):
            process = start(on_threads, str(path), self.config.pause)
            process.join(float(self.random.uniform(0.1, 1.3 * self.length)))
            self.report.kills["process on threads"] += kill(process)
            if self.look(path):
                return

    def cluster(self, path: Path) -> None:
        """Kill workers, the client and the scheduler."""
        for _ in range(int(self.random.integers(1, 4))):
            with self.machines() as (chief, address, workers):
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
                        workers[i] = start(worker, address, str(self.folder / "spill"))
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
                return

    @contextlib.contextmanager
    def machines(self) -> Iterator[tuple[Any, str, list[Any]]]:
        """A scheduler and two workers, each a process."""
        file = self.folder / "address"
        file.unlink(missing_ok=True)
        chief = start(scheduler, str(file))
        while not (file.exists() and file.read_text()):
            time.sleep(0.02)
        address = file.read_text()
        workers = [start(worker, address, str(self.folder / "spill")) for _ in range(2)]
        try:
            yield chief, address, workers
        finally:
            for process in (*workers, chief):
                kill(process)

    def rot(self, path: Path) -> None:
        """Damage a finished store: each damage must be found, and mended by `repair` and the same call."""
        job(str(path), functools.partial(night_read, 0.0), num_workers=3)
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
        self.done_before = found.done - len(found.damaged)

    def sour(self, path: Path) -> None:
        """Read from a source that fails, hangs and returns short chunks."""
        read.PAUSE = 0.01
        for _ in range(3):
            try:
                job(str(path), BadSource(int(self.random.integers(1 << 30))), retries=3, read_timeout=1.0)
            except OSError as error:
                self.report.errors[type(error).__name__] += 1
            self.report.faults["runs on a bad source"] += 1
            if self.look(path):
                return

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
                job(str(inside), functools.partial(night_read, 0.0), num_workers=3)
            except OSError as error:
                self.report.errors[f"OSError {error.errno}"] += 1
            self.report.faults["full disks"] += 1
            self.look(inside)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            self.morning(inside)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def run(self) -> Report:
        """Nights until there were enough kills."""
        begin = time.perf_counter()
        nights = [self.threads, self.cluster, self.cluster, self.rot, self.sour, self.full]
        chances = np.array([0.42, 0.2, 0.2, 0.06, 0.06, 0.06])
        number = 0
        while sum(self.report.kills.values()) < self.config.kills:
            night = nights[int(self.random.choice(len(nights), p=chances))]
            path = self.folder / f"night{number}.zarr"
            number, self.done_before = number + 1, 0
            night(path)
            if night != self.full:
                self.morning(path)
            self.report.nights[night.__name__] += 1
            self.report.seconds = time.perf_counter() - begin
            print(self.line(), flush=True)
            if self.config.out is not None:
                self.config.out.write_text(json.dumps(vars(self.report), indent=2) + "\n")
        return self.report

    def line(self) -> str:
        """The report so far."""
        r = self.report
        return (
            f"{sum(r.nights.values())} nights, {sum(r.kills.values())} kills {dict(r.kills)}, {dict(r.faults)}, "
            f"calls ended with {dict(r.errors)}: {r.lost_blocks} lost blocks, {r.wrong_blocks} wrong blocks, "
            f"{r.wrong_files} wrong files, {r.false_claims} false claims; {r.seconds:.0f} s"
        )


def tree(path: Path) -> dict[str, str]:
    """Every file below a folder, and a hash of what it holds."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main(config: Config) -> int:
    """Run all nights; 1 where anything was lost or wrong."""
    warnings.filterwarnings("ignore", message=".*not complete.*")
    dask.config.set({"distributed.comm.timeouts.connect": "10s"})
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = Soak(config, Path(folder)).run()
    return 0 if report.clean and not report.errors["HUNG"] else 1


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Config, description=__doc__)))
