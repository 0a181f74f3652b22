"""Plan a run for ``--dry-run``: samples, steps and memory. Networks are built without memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deo_cube.encoder.registry import resolve
from deo_cube.train.augment import View
from deo_cube.train.config import TrainConfig
from deo_cube.train.loop import open_sources
from deo_cube.train.losses import coding_rate_bound
from deo_cube.train.student import Student
from deo_cube.train.teachers import specialist_dims
from deo_cube.train.vectors import store_info

__all__ = ["TrainPlan", "plan"]

UNKNOWN = (768, 768, 768)


@dataclass(frozen=True)
class TrainPlan:
    """The plan of a run; its text is the report of ``--dry-run``."""

    config: TrainConfig
    processes: int
    parameters: int
    """Of the student with its heads."""
    trunk: int
    """Of the network that is published."""
    state_bytes: int
    """Weights, gradients, AdamW's moments, EMA teacher; per process, without the frozen teacher."""
    activation_bytes: int
    """Tensors that the backward pass of one micro-batch keeps, in float32."""
    windows: int
    """About how many windows of distinct pixels the sources hold; 0 where none were opened."""

    @property
    def samples(self) -> int:
        """Samples per step, all processes together."""
        o = self.config.optimizer
        return (o.batch + o.rgb_batch) * o.accumulate * self.processes

    def __str__(self) -> str:
        c, o, a = self.config, self.config.optimizer, self.config.augment
        seen = self.samples * c.steps
        passes = f", each about {seen / self.windows:.1f} times" if self.windows else ""
        bound = coding_rate_bound(
            c.objective.ms_dim, max(1, o.batch), eps=c.objective.eps, world_size=c.objective.world_size
        )
        arms = [
            name
            for name, on in (
                ("multispectral", c.objective.multispectral),
                (c.optical_teacher, c.optical_teacher != "none"),
                (f"{c.store} (embedding store)", bool(c.store)),
                (f"{c.specialist.model} (multispectral, frozen)", bool(c.specialist.model)),
            )
            if on
        ]
        lines = [
            f"preset       {c.preset}: {c.student.family}, {self.trunk / 1e6:.2f} M parameters, "
            f"{self.parameters / 1e6:.2f} M with projection heads",
            f"arms         {' + '.join(arms)}",
            f"steps        {c.steps:,} of {self.samples} samples ({o.batch} multispectral + {o.rgb_batch} RGB-only, "
            f"x {o.accumulate} micro-batches x {self.processes} processes)",
            f"samples      {seen:,} seen{passes}",
            f"views        2 of {a.global_size} px and {a.local_crops} of {a.local_size} px per sample",
            f"learning     rate {o.lr * self.samples / 256:.3g} after {round(o.warmup * c.steps):,} steps, "
            f"then down to {o.min_lr:.3g}; EMA {o.ema[0]} to {o.ema[1]}",
            f"balance      of {c.objective.world_size} processes: expansion at most {bound:.3f} against compression 1",
            f"memory       {self.state_bytes / 2**30:.2f} GiB of weights and moments, about "
            f"{self.activation_bytes / 2**30:.2f} GiB of activations in float32 (half in bf16); frozen teacher apart",
            f"output       {c.out} (a model when finished; checkpoints every {c.health.checkpoint_every} steps)",
        ]
        return "\n".join(lines)


def plan(config: TrainConfig, processes: int = 1) -> TrainPlan:
    """Plan a run. Sources are opened and checked, the student is built on the meta device, nothing is trained."""
    windows = 0
    if config.data:
        windows = sum(len(s) for s in open_sources(config))
    optical = config.optical_teacher
    dims = None if optical == "none" else (512, 256, 512) if optical == "mobilenet" else UNKNOWN
    second = None
    if config.store:
        second = (store_info(config.store).dim,) * 3
    if config.specialist.model:
        card = resolve(config.specialist.model, weights=config.specialist.weights or None).card
        second = specialist_dims(card, config.specialist)
    with torch.device("meta"):
        student = Student(config, dims, second)
    trunk = sum(p.numel() for p in student.network.parameters())
    parameters = sum(p.numel() for p in student.parameters())
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    state = 4 * (parameters + 3 * trained + (parameters if student.head_ms is not None else 0))
    return TrainPlan(config, processes, parameters, trunk, state, _activations(student, config), windows)


def _activations(student: Student, config: TrainConfig) -> int:
    """Return the bytes that autograd saves for one micro-batch, counted on tensors without memory."""
    held: dict[int, int] = {}
    own = {id(p) for p in student.parameters()}

    def pack(x: Tensor) -> Tensor:
        if id(x) not in own:
            held[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            kept.append(x)
        return x

    kept: list[Tensor] = []
    o, a = config.optimizer, config.augment

    def view(size: int) -> View:
        n = o.batch + o.rgb_batch
        rgb = torch.empty(n, 3, size, size, device="meta")
        return View(torch.empty(o.batch, 10, size, size, device="meta") if o.batch else None, rgb, rgb, rgb)

    views = [view(a.global_size)] * 2 + [view(a.local_size)] * a.local_crops
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = None
        if student.head_pixels is not None:
            hidden = torch.empty(2 * o.batch, 1, a.global_size, a.global_size, dtype=torch.bool, device="meta")
        student(views, hidden)
    return sum(held.values())
