"""The measuring: rounds in one process with all cases interleaved, memory in fresh children, workers one and two.

Every case of a round runs once, in an order that is shuffled anew each round, so that a noisy machine disturbs all
alike. Peak memory is the high-water mark of resident memory (`VmHWM`) of a child process that does nothing else, and of
its workers; `before` is what it held once cube and encoder were there.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import deo_cube
from benchmarks.race import runners
from benchmarks.race.setting import Setting, card_of, linked_cube, prepare, ref_of
from deo_cube.embedding import transfer
from deo_cube.embedding.plan import measure_rate
from deo_cube.errors import DeoCubeError
from deo_cube.evaluate.seam import seam_report

__all__ = [
    "Course",
    "course_key",
    "flatness",
    "memory",
    "peaks",
    "race",
    "runtimes",
    "scaling",
    "seams",
    "torch_as_it_comes",
]


@dataclass(frozen=True)
class Course:
    """One race: a model, a cube, halos, block sizes; `runners` who takes part (none named: all).

    With `as_it_comes`, the part `runtimes` gives the alternatives the encoder in torch as it comes alone.
    """

    model: str
    size: int
    tile: int
    halos: tuple[int, ...]
    blocks: tuple[int, ...]
    bare_tiles: int = 24
    runners: tuple[str, ...] = ()
    as_it_comes: bool = False

    def cases(self) -> list[tuple[str, int, int]]:
        """(runner, halo, block wanted); runners that know no blocks come once a halo."""
        found = []
        for name in self.runners or runners.RUNNERS:
            for halo in self.halos:
                for block in self.blocks if name in runners.BLOCKED else self.blocks[-1:]:
                    found.append((name, halo, block))
        return found


def course_key(course: Course) -> str:
    """Where a course's figures are kept."""
    return f"{course.model} {course.size} px, tile {course.tile}, halo {', '.join(map(str, course.halos))}"


def case_key(name: str, halo: int, block: int) -> str:
    """Where a case's figures are kept: blocks only where they mean something."""
    return f"{name} | halo {halo}" + (f" | block {block}" if name in runners.BLOCKED else "")


def plan_of(setting: Setting, course: Course, halo: int, block: int) -> Any:
    """Return the plan of a course, without its price in time."""
    return deo_cube.plan(
        setting.cube({}), setting.card, tile=course.tile, halo=halo, block=block, anchor="array", units="dn", offset=0
    )


def _out(setting: Setting, name: str) -> str:
    tif = name.startswith(("rasterio", "TorchGeo", "TerraTorch"))
    return f"{setting.folder}/out_{zlib.crc32(name.encode()):08x}" + (".tif" if tif else ".zarr")


def _clear(path: str) -> None:
    if Path(path).is_dir():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def race(
    course: Course, setting: Setting, rounds: int, *, warm: bool = True, same_library: bool = False
) -> dict[str, Any]:
    """Seconds of every case in every round; the bare encoder's tiles per second; what `plan` foretold.

    The alternatives multiply matrices as torch does by default, unless `same_library`: `Encoder.encode` chooses
    otherwise while it runs (`deo_cube.encoder.torch_settings`), and they would not.
    """
    prepare(setting)
    ref_of(setting.model).load("cpu")
    chosen = torch.get_float32_matmul_precision()
    out: dict[str, Any] = {
        **asdict(course), "same_library": same_library,
        "trained": setting.card.trained, "km2": setting.km2, "cases": {}, "bare": {}, "foretold": [],
        "skipped": {},
    }  # fmt: skip
    cases = []
    for name, halo, block in course.cases():
        reason = runners.missing(name)
        if reason:
            if name not in out["skipped"]:
                print(f"skipped: {name}: {reason}", file=sys.stderr)
            out["skipped"][name] = reason
            continue
        plan = plan_of(setting, course, halo, block)
        tiles, real = plan.tiles, plan.tiling.block
        out["cases"][case_key(name, halo, real)] = {
            "runner": name, "halo": halo, "block": real if name in runners.BLOCKED else None, "tiles": tiles,
            "encoded_per_kept": plan.encoded_per_kept, "blocks": plan.blocks,
            "tasks_per_block": runners.tasks_per_block(name, setting, course.tile, halo, real), "seconds": [],
        }  # fmt: skip
        cases.append((name, halo, real))
    callers = sorted({1, setting.cores})
    for n in callers:
        out["bare"][f"{n} x {max(1, setting.cores // n)} threads"] = []
    if warm:
        _warm(course, setting, cases)
    for round_ in range(rounds):
        todo: list[Any] = [*cases, *callers, "plan"]
        random.shuffle(todo)
        for one in todo:
            # Importing TerraTorch makes the same choice (models/backbones/clay_v15/model.py), for better or worse.
            ours = isinstance(one, (int, str)) or one[0].startswith(("deo_cube", "TerraTorch"))
            torch.set_float32_matmul_precision(chosen)
            if one == "plan":
                out["foretold"].append(measure_rate(ref_of(setting.model), course.tile, "cpu", seconds=2.0))
            elif isinstance(one, int):
                rate = runners.bare(setting, course.tile, course.bare_tiles, one)
                out["bare"][f"{one} x {max(1, setting.cores // one)} threads"].append(rate)
            else:
                name, halo, block = one
                path = _out(setting, name)
                _clear(path)
                start = time.perf_counter()
                with contextlib.nullcontext() if ours or same_library else torch_as_it_comes():
                    runners.RUNNERS[name][0](setting, course.tile, halo, block, path)
                out["cases"][case_key(name, halo, block)]["seconds"].append(time.perf_counter() - start)
                runners.check(path, setting)
        print(f"{course_key(course)}: round {round_ + 1} of {rounds}", file=sys.stderr, flush=True)
    torch.set_float32_matmul_precision(chosen)
    return out


@contextlib.contextmanager
def torch_as_it_comes() -> Iterator[None]:
    """Have encoders multiply matrices by torch's default library, as code without deo_cube does."""
    from deo_cube.encoder import encoder

    real = encoder.encoder_products
    vars(encoder)["encoder_products"] = lambda device: contextlib.nullcontext()
    try:
        yield
    finally:
        vars(encoder)["encoder_products"] = real


#: Runtimes and precisions of the part `runtimes`; the first is what torch does as it comes.
VARIANTS = (("torch", "float32"), ("torch", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16"))
#: Alternatives of the part `runtimes`. In OpenVINO only the one that calls the encoder from several threads: a loop
#: would leave all cores but one idle.
RIVALS = {"torch": ("rasterio loop", "dask map_blocks / map_overlap"), "openvino": ("dask map_blocks / map_overlap",)}


def runtimes(
    course: Course,
    setting: Setting,
    rounds: int,
    *,
    warm: bool = True,
    variants: Sequence[tuple[str, str]] = VARIANTS,
) -> dict[str, Any]:
    """Time the bare encoder, `embed` and alternatives in every runtime and precision that this machine has.

    The alternatives are given the same encoder: in "torch" as it comes, and for "best" in the form in which deo_cube
    runs it (its matrix library, bfloat16, or OpenVINO).
    """
    prepare(setting)
    halo, block = course.halos[-1], course.blocks[0]
    plan = plan_of(setting, course, halo, block)
    real = plan.tiling.block
    out: dict[str, Any] = {
        "model": course.model, "size": course.size, "tile": course.tile, "halo": halo, "block": real,
        "km2": setting.km2, "encoded": plan.encoded_per_kept * course.size**2 / course.tile**2, "cases": {},
        "skipped": {}, "load": [],
    }  # fmt: skip
    jobs: list[tuple[str, str, Setting]] = []
    for name, precision in variants:
        own = replace(setting, runtime=name, precision=precision, tile=course.tile)
        try:
            transfer.check_precision(precision, "cpu")
            own.encoder()
        except DeoCubeError as error:
            out["skipped"][f"{name}, {precision}"] = str(error)
            continue
        same_encoder = () if course.as_it_comes else RIVALS[name]
        for runner in ("bare", "plan", "deo_cube embed", *same_encoder):
            jobs.append((runner, f"{name}, {precision}", own))
    jobs.append(("rasterio loop", "as it comes", setting))
    jobs.append(("dask map_blocks / map_overlap", "as it comes", setting))
    if warm:
        for runner, _, own in jobs:
            if runner in runners.RUNNERS:
                _warm(course, own, [(runner, halo, 0)])
    for round_ in range(rounds):
        random.shuffle(jobs)
        for runner, variant, own in jobs:
            key = f"{runner} | {variant}"
            plain = torch_as_it_comes() if variant == "as it comes" else contextlib.nullcontext()
            path, begun = _out(setting, runner), time.process_time()
            if runner == "bare":
                value = max(runners.bare(own, course.tile, course.bare_tiles, n) for n in sorted({1, own.cores}))
            elif runner == "plan":
                found = deo_cube.plan(
                    own.cube({}), own.card, tile=course.tile, halo=halo, block=block, anchor="array", units="dn",
                    offset=0, runtime=own.runtime, precision=own.precision, measure=True,
                )  # fmt: skip
                value = found.seconds or float("nan")
            else:
                _clear(path)
                start = time.perf_counter()
                with plain:
                    runners.RUNNERS[runner][0](own, course.tile, halo, real, path)
                value = time.perf_counter() - start
                runners.check(path, setting)
            case = out["cases"].setdefault(key, {"runner": runner, "variant": variant, "values": [], "cpu": []})
            case["values"].append(value)
            case["cpu"].append(time.process_time() - begun)
        out["load"].append(os.getloadavg()[0])
        print(f"runtimes of {course.model}: round {round_ + 1} of {rounds}", file=sys.stderr, flush=True)
    return out


def _warm(course: Course, setting: Setting, cases: list[tuple[str, int, int]]) -> None:
    """Import, load and compile what there is, on a cube of a few tiles, before any clock starts."""
    small = replace(setting, size=2 * course.tile)
    prepare(small)
    for name, halo, _ in {(n, h, 0) for n, h, _ in cases}:
        path = _out(setting, name)
        _clear(path)
        runners.RUNNERS[name][0](small, course.tile, halo, course.tile - 2 * halo, path)
        _clear(path)


def _child(task: dict[str, Any]) -> dict[str, Any]:
    """Run a task of `child.py` in a fresh interpreter, and read what it says last."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.race.child", json.dumps(task)],
        stdout=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if done.returncode != 0:
        return {"failed": f"exit status {done.returncode}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peaks(course: Course, setting: Setting, *, most: int | None = None) -> dict[str, Any]:
    """Peak memory without halo at the largest block (of the first `most` runners), each in a child of its own."""
    prepare(setting)
    found = {}
    cases = [c for c in course.cases() if c[1] == course.halos[0] and c[2] == course.blocks[-1]]
    for name, halo, block in cases[:most]:
        if runners.missing(name) is None:
            real = plan_of(setting, course, halo, block).tiling.block
            task = {"setting": asdict(setting), "runner": name, "tile": course.tile, "halo": halo, "block": real}
            found[case_key(name, halo, real)] = _child(task | {"out": _out(setting, name)})
            _clear(_out(setting, name))
    return found


def flatness(
    model: str, folder: str, sizes: tuple[int, ...], rivals: tuple[tuple[str, int], ...], halo: int = 0
) -> dict[str, Any]:
    """Peak memory of `embed` and of some alternatives over cubes of growing size, with a cheap encoder."""
    core = 256 - 2 * halo
    small = Setting(model, min(sizes), folder)
    prepare(small, tif=False)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        setting = linked_cube(small, size)
        for name, largest in (("deo_cube embed", max(sizes)), *rivals):
            if size > largest or runners.missing(name) is not None:
                continue
            task = {"setting": asdict(setting), "runner": name, "tile": 256, "halo": halo, "block": 1024 // core * core}
            start = time.perf_counter()
            found = _child(task | {"out": _out(setting, name)})
            rows.append({"runner": name, "size": size, "seconds": time.perf_counter() - start, **found})
            _clear(_out(setting, name))
            print(f"memory: {rows[-1]}", file=sys.stderr, flush=True)
    return {"model": model, "rows": rows}


def seams(course: Course, scene_size: int = 1280) -> dict[str, Any]:
    """Seam error of the course's model, tile and halos. Whoever crops the same halo has the same seams."""
    scene = deo_cube.synthetic_cube(size=scene_size, times=1, clouds=False, gaps=False).load()
    report = seam_report(scene, card_of(course.model), halos=course.halos, tile=course.tile)
    return dict(report.to_dict()) | {"scene": f"synthetic, {scene_size} px"}


def scaling(course: Course, setting: Setting, rounds: int, *, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of `embed` by scheduler: "threads", "cluster-2x1" (workers x threads), "processes-2" (spawned).

    The cluster's workers are there before the clock starts, and have embedded once (they hold the encoder), as in a job
    long enough to matter; "processes" starts its own at every call, which is in its time.
    """
    prepare(setting, tif=False)
    halo, block = course.halos[0], course.blocks[-1]
    plan = plan_of(setting, course, halo, block)
    out: dict[str, Any] = {
        "model": course.model, "size": course.size, "tile": course.tile, "halo": halo, "block": plan.tiling.block,
        "tiles": plan.tiles, "blocks": plan.blocks, "km2": setting.km2, "seconds": {k: [] for k in kinds},
        "bare": {f"{n} x {max(1, setting.cores // n)} threads": [] for n in sorted({1, setting.cores})},
    }  # fmt: skip
    path = _out(setting, "scaling")
    _warm(course, setting, [("deo_cube embed", halo, 0)])
    for round_ in range(rounds):
        for n in sorted({1, setting.cores}):
            rate = runners.bare(setting, course.tile, course.bare_tiles, n)
            out["bare"][f"{n} x {max(1, setting.cores // n)} threads"].append(rate)
        order = list(kinds)
        random.shuffle(order)
        for kind in order:
            out["seconds"][kind].append(_scaled(kind, setting, course, halo, plan.tiling.block, path))
        print(f"scaling: round {round_ + 1} of {rounds}", file=sys.stderr, flush=True)
    return out


def _scaled(kind: str, setting: Setting, course: Course, halo: int, block: int, path: str) -> float:
    name, _, count = kind.partition("-")
    _clear(path)
    if name != "cluster":
        start = time.perf_counter()
        options = {"scheduler": name} | ({"num_workers": int(count)} if count else {})
        runners.embed(setting, course.tile, halo, block, path, **options)
        return time.perf_counter() - start
    from distributed import Client, LocalCluster

    workers, threads = (int(v) for v in count.split("x"))
    options = {"n_workers": workers, "threads_per_worker": threads, "processes": True, "dashboard_address": None}
    warm = Setting(setting.model, 2 * course.tile, setting.folder)
    prepare(warm, tif=False)
    with LocalCluster(host="127.0.0.1", **options) as cluster, Client(cluster):
        # Small blocks, more than there are threads: every worker has loaded the encoder before the clock starts.
        for _ in range(2):
            runners.embed(warm, course.tile, halo, course.tile, path)
            _clear(path)
        start = time.perf_counter()
        runners.embed(setting, course.tile, halo, block, path)
        return time.perf_counter() - start


def memory() -> dict[str, float]:
    """High-water mark and present size of this process's resident memory, MiB; workers' added."""
    import psutil

    def marks(pid: int) -> tuple[float, float]:
        try:
            lines = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
            )
            return int(lines["VmHWM"].split()[0]) / 1024, int(lines["VmRSS"].split()[0]) / 1024
        except OSError:
            now = psutil.Process(pid).memory_info().rss / 2**20
            return now, now

    me = psutil.Process()
    found = [marks(p.pid) for p in (me, *me.children(recursive=True))]
    return {"peak": round(sum(m[0] for m in found), 1), "now": round(sum(m[1] for m in found), 1)}
