"""Time one optimisation step of the trainer on a GPU, loader and frozen teacher left out."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gpu.setting import Report, synchronize
from benchmarks.train_step import views
from deo_cube.train.augment import View
from deo_cube.train.config import Augment, Objective, Optimizer, StudentConfig, TrainConfig
from deo_cube.train.student import Student, ema_update, objective
from deo_cube.train.teachers import Targets

__all__ = ["measure"]


def measure(report: Report, device: str, *, toy: bool = False) -> None:
    """Time steps of Swin-B at 224 px with ten local crops, the published shape."""
    student = StudentConfig(dim=24, depths=(1, 1), heads=(1, 2), window=4) if toy else StudentConfig()
    sizes = ((2,), 64, 32, 2, 64) if toy else ((8, 32), 224, 96, 10, 2048)
    for batch in sizes[0]:
        for precision in ("fp32", "bf16"):
            name = f"training, {precision}, {batch} samples"
            if report.late(name):
                continue
            try:
                report.add("training", _step(student, batch, precision, device, *sizes[1:]))
            except torch.OutOfMemoryError as error:
                report.add("training", {"precision": precision, "batch": batch, "error": str(error)[:300]})


def _step(
    student_config: StudentConfig,
    batch: int,
    precision: str,
    device: str,
    size: int,
    small: int,
    crops: int,
    hidden: int,
) -> dict[str, Any]:
    config = TrainConfig(
        student=replace(student_config, drop_path=0.0),
        objective=Objective(world_size=1, hidden=hidden),
        augment=Augment(global_size=size, local_size=small, local_crops=crops),
        optimizer=Optimizer(batch=batch, precision=precision),
    )
    torch.manual_seed(0)
    student = Student(config, (768, 768, 768)).to(device)
    ema = Student(config, None).requires_grad_(False).eval().to(device)
    ema_update(ema, student, 0.0)
    seen = [
        View(v.ms.to(device), v.rgb.to(device), v.rgb.to(device), v.rgb.to(device))
        for v in views(batch, size, small, crops)
    ]
    grid = size // 16
    shapes: tuple[tuple[int, ...], ...] = ((), (grid, grid), (grid, grid))
    targets = Targets(*(F.normalize(torch.randn(2 * batch, 768, *s), dim=1).to(device) for s in shapes))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    losses = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                teacher = ema.project_ms(seen)
            out = student(seen)
        terms = objective(out, teacher, targets, len(seen), config.objective)
        terms.total.backward()
        optimizer.step()
        ema_update(ema, student, 0.996)
        losses.append(terms.total.detach())

    for _ in range(2):
        step()
    synchronize(device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - start)
    best = sorted(times)[len(times) // 2]
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.startswith("cuda") else None
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    return {
        "model": "Swin-B", "precision": precision, "batch": batch, "seconds_per_step": best,
        "samples_per_s": batch / best, "memory_gib": memory, "losses": [float(v) for v in losses],
    }  # fmt: skip
