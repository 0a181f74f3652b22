"""Train and score arms, one after the other: what is done is skipped, what was killed goes on where it stood."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import load_encoder
from deo_cube.evaluate.features import RandomConvolutions
from deo_cube.train import loop
from deo_cube.train.loop import build, train
from deo_cube.train.student import student_card

from .arms import ARMS, Arm, config_of
from .score import Bench, Stages, measure

__all__ = ["run", "run_all"]


def run_all(
    out: Path, *, data: Path, arms: Sequence[str], seeds: Sequence[int], steps: int, light: bool = False,
    keep: bool = False,
) -> list[Path]:  # fmt: skip
    """Every arm of every seed, all arms of a seed first. Several processes may share `out`: each takes what is free.

    Returns
    -------
    list of Path
        ``ARM-seedN.json`` of all that are finished.

    Raises
    ------
    ValueError
        For an unknown arm, or a folder that holds runs of another length.
    """
    if unknown := [a for a in arms if a not in ARMS]:
        raise ValueError(f"unknown arms {unknown}: there are {list(ARMS)}")
    out.mkdir(parents=True, exist_ok=True)
    bench, finished = Bench(data, light=light), []
    for seed in seeds:
        for name in arms:
            path = out / f"{name}-seed{seed}.json"
            with _claimed(path.with_suffix(".lock")) as mine:
                if mine and not path.exists():
                    result = run(ARMS[name], seed=seed, steps=steps, bench=bench, out=out, keep=keep)
                    partial = path.with_suffix(f".{os.getpid()}")
                    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
                    os.replace(partial, path)
                    print(f"{name} seed {seed}: {_short(result)}", flush=True)
            if path.exists():
                if (there := json.loads(path.read_text(encoding="utf-8"))["steps"]) != steps:
                    raise ValueError(f"{path} is of {there} steps, not of {steps}: give --steps {there} or another out")
                finished.append(path)
    return finished


def run(arm: Arm, *, seed: int, steps: int, bench: Bench, out: Path, keep: bool = False) -> dict[str, Any]:
    """Train one arm of one seed, or continue it, and score it; the weights are removed unless `keep`."""
    folder = out / f"{arm.name}-seed{seed}"
    config = config_of(arm, seed=seed, steps=steps, data=bench.data, out=folder)
    result: dict[str, Any] = {"arm": arm.name, "seed": seed, "steps": steps, "samples": steps * config.optimizer.batch}
    # Processor time: what others do on the machine counts for nothing in it.
    began = time.process_time()
    encode: Any
    if arm.name == "random-convolutions":
        width = sum(config.student.dim << i for i in range(len(config.student.depths)))
        encode = RandomConvolutions(features=width, stride=config.student.patch, seed=seed)
    elif arm.group == "baseline":
        student, _, _ = build(dataclasses.replace(config, teacher="none"), torch.device("cpu"))
        encode = Stages(student.network.eval(), student_card(config), name=arm.name)
    else:
        resume = loop.newest(folder) is not None
        train(dataclasses.replace(config, resume=resume))
        encode = Stages(_network(folder), ModelCard.load(folder), arm.rgb, arm.name)
        result["last"] = _last(folder / "metrics.jsonl")
    trained = time.process_time()
    result["scores"] = measure(bench, encode, alone=arm.name == "random-convolutions")
    result["seconds"] = {"train": round(trained - began, 1), "score": round(time.process_time() - trained, 1)}
    result["changes"] = {k: dict(v) for k, v in arm.changes.items()}
    if folder.exists() and not keep:
        shutil.rmtree(folder)
    return result


def _network(folder: Path) -> Any:
    network: Any = load_encoder(folder, device="cpu").network
    return network


def _last(metrics: Path) -> dict[str, float]:
    line: dict[str, float] = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    return {k: v for k, v in line.items() if k not in ("samples_per_s", "waited", "step")}


def _short(result: dict[str, Any]) -> str:
    values = ", ".join(f"{task} {s['value']:.3f}" for task, s in result["scores"].items())
    return f"{values}; {result['seconds']['train']:.0f} + {result['seconds']['score']:.0f} s of processor time"


@contextmanager
def _claimed(lock: Path) -> Iterator[bool]:
    """Whether this process may take the run: the lock goes with the process, however that ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
        lock.unlink(missing_ok=True)
