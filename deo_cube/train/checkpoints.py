"""Checkpoints: folders that are models, written in one piece or not at all, and resumed bit for bit.

``checkpoints/step_00000500/`` holds ``card.json`` and ``weights.safetensors`` (so the folder works as ``model=``), the
student's heads, the EMA teacher and the optimizer as safetensors, and ``state.json``. Loading executes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.loading import write_model
from deo_cube.errors import StoreMismatchError
from deo_cube.train.config import Health, TrainConfig

__all__ = ["differences", "load", "newest", "prune", "save"]

FREE = {
    "out",
    "resume",
    "dry_run",
    "preset",
    "device",
    "threads",
    "health",
    "loader.workers",
    "loader.prefetch",
    "neck_ms",
    "neck_rgb",
}
"""Fields that may change when a run is resumed: no step depends on them (the device's rounding aside)."""


def newest(out: Path) -> Path | None:
    """Return the newest complete checkpoint of a run."""
    found = sorted((out / "checkpoints").glob("step_*/state.json"))
    return found[-1].parent if found else None


def save(
    out: Path,
    step: int,
    *,
    card: ModelCard,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    state: Mapping[str, Any],
    sample: NDArray[np.float32] | None = None,
) -> Path:
    """Write the checkpoint of `step` into a hidden folder, and give it its name when everything is on disk.

    `sample` (B, C, H, W), pixels in DN of the first stem, serves to measure the card's int8 scales.
    """
    final = out / "checkpoints" / f"step_{step:08d}"
    partial = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_model(card, student.network, partial, sample=sample)  # type: ignore[arg-type]
    heads = {k: v for k, v in student.state_dict().items() if not k.startswith("network.")}
    save_file(_plain(heads), partial / "heads.safetensors")
    if teacher is not None:
        save_file(_plain(teacher.state_dict()), partial / "teacher.safetensors")
    save_file(_plain(_flat(student, optimizer)), partial / "optimizer.safetensors")
    text = json.dumps({"step": step, "config": config.to_dict(), **state}, indent=2) + "\n"
    (partial / "state.json").write_text(text, encoding="utf-8")
    for file in partial.iterdir():
        with file.open("rb") as f:
            os.fsync(f.fileno())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    return final


def load(
    folder: Path,
    *,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
) -> dict[str, Any]:
    """Fill everything from a checkpoint, strictly, and return its state.

    Raises
    ------
    StoreMismatchError
        If the run was made with another configuration; the differing fields are listed.
    """
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if found := differences(state["config"], config.to_dict()):
        raise StoreMismatchError(
            f"{folder} was trained with another configuration, and cannot be continued with this one:\n  "
            + "\n  ".join(f"{k}: {a!r} there, {b!r} here" for k, (a, b) in found.items())
            + "\nGive the same flags again, or another --out"
        )
    network = load_file(folder / "weights.safetensors")
    heads = load_file(folder / "heads.safetensors")
    _fill(student, {**{f"network.{k}": v for k, v in network.items()}, **heads})
    if teacher is not None:
        _fill(teacher, load_file(folder / "teacher.safetensors"))
    held = load_file(folder / "optimizer.safetensors")
    for name, p in student.named_parameters():
        if f"exp_avg.{name}" in held:
            optimizer.state[p] = {
                "step": held[f"step.{name}"].clone(),
                "exp_avg": held[f"exp_avg.{name}"].to(p.device),
                "exp_avg_sq": held[f"exp_avg_sq.{name}"].to(p.device),
            }
    return state


def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    if set(own) != set(state):
        raise StoreMismatchError(f"checkpoint and network differ in {sorted(set(own) ^ set(state))[:5]} ...")
    # Necks are fitted anew when a run ends, and may then be asked for other parts: theirs may have another shape.
    kept = {k: own[k] if "necks." in k and v.shape != own[k].shape else v.to(own[k].dtype) for k, v in state.items()}
    module.load_state_dict(kept, strict=True)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two configurations differ, of those that change the training."""
    out: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*a, *b}):
        path = f"{prefix}{key}"
        if path in FREE:
            continue
        if isinstance(a.get(key), Mapping) and isinstance(b.get(key), Mapping):
            out |= differences(a[key], b[key], f"{path}.")
        elif a.get(key) != b.get(key):
            out[path] = (a.get(key), b.get(key))
    return out


def prune(out: Path, health: Health) -> None:
    """Remove checkpoints beyond the newest `keep`, but those that `keep_every` marks; and what a kill left behind."""
    folder = out / "checkpoints"
    done = sorted(folder.glob("step_*"))
    for old in done[: -health.keep] if health.keep else []:
        if not health.keep_every or int(old.name.removeprefix("step_")) % health.keep_every:
            shutil.rmtree(old)
    for left in folder.glob(".step_*"):
        shutil.rmtree(left, ignore_errors=True)


def _flat(student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in student.named_parameters()}
    return {
        f"{key}.{names[p]}": torch.as_tensor(value)
        for p, held in optimizer.state.items()
        for key, value in held.items()
    }


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
