"""The training loop: one process on CPU or GPU, or several under torchrun. Flat, and resumable at every checkpoint."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deo_cube.encoder.devices import choose_device
from deo_cube.encoder.networks.conv import DeoConv
from deo_cube.encoder.torch_settings import prefer_onednn
from deo_cube.errors import ArgumentError, DeviceError, StoreMismatchError
from deo_cube.paths import local_path
from deo_cube.train import checkpoints
from deo_cube.train.augment import PATH as HAZE
from deo_cube.train.augment import Augmentation, View, column, generator, hidden_squares
from deo_cube.train.config import TrainConfig
from deo_cube.train.monitor import LossMonitor, StepLog, effective_rank, knn_score
from deo_cube.train.necks import fit_local, fit_necks, keep_local
from deo_cube.train.samples import (
    Batch,
    ImageSource,
    Mixture,
    Source,
    batches,
    open_source,
    typical_pixels,
    windows_for,
)
from deo_cube.train.student import (
    LinearHead,
    Student,
    Terms,
    describe_run,
    ema_update,
    initialise,
    initialise_spectral,
    objective,
    specialist_targets,
    teacher_targets,
    untrained_stems,
)
from deo_cube.train.teachers import FrozenTeacher, Standardised, load_specialist, load_teacher, remember_teachers

__all__ = ["Process", "build", "cosine", "open_sources", "train"]

CROPS, DROPS, MASKS = 1, 2, 3
"""Purposes of random streams."""


@dataclass(frozen=True)
class Process:
    """One process among those of the run, its device and its precision."""

    rank: int
    world_size: int
    device: torch.device
    precision: torch.dtype
    why: str
    """Reason of device and precision, in a sentence."""

    @classmethod
    def start(cls, config: TrainConfig) -> Process:
        """Choose device and precision; join the other processes where torchrun started several.

        Raises
        ------
        DeviceError
            If this machine has no such device.
        """
        name = config.device
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and not torch.cuda.is_available():
            raise DeviceError("--device cuda: no CUDA device here; --device cpu runs anywhere")
        if name != "cuda":
            choose_device(name)
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        if config.threads:
            torch.set_num_threads(config.threads)
        if device.type == "cpu":
            prefer_onednn()
        precision, why = _precision(config.optimizer.precision, device)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            if not dist.is_initialized():
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(int(os.environ.get("RANK", "0")), world, device, precision, why)

    @property
    def first(self) -> bool:
        """True if this process writes."""
        return self.rank == 0


def _precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    if name != "auto":
        return (torch.bfloat16 if name == "bf16" else torch.float32), f"{name} as asked for"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "bf16: the GPU computes in it"
    return torch.float32, f"fp32: the reference on {device.type}"


def open_sources(config: TrainConfig) -> tuple[Source, ...]:
    """Return the sources of ``--data``, opened and checked against the needs of the run.

    Raises
    ------
    ValueError
        If an arm has no source to learn from.
    """
    sources = tuple(
        open_source(
            text,
            fill=config.student.ms_mean,
            detail=config.loader.detail,
            store=config.store,
            step=config.student.patch,
        )
        for text in config.data
    )
    kinds = {s.kind for s in sources}
    o = config.optimizer
    if o.batch and "ms" not in kinds:
        raise ArgumentError(
            "--optimizer.batch needs multispectral samples, and --data names no cube: give one, or --optimizer.batch 0 "
            "with --objective.no-multispectral"
        )
    if o.rgb_batch and "rgb" not in kinds:
        raise ArgumentError(
            "--optimizer.rgb-batch needs RGB-only samples, and --data names no folder or zip of images: give one, or "
            "--optimizer.rgb-batch 0"
        )
    return sources


def build(
    config: TrainConfig,
    device: torch.device,
    mixture: Mixture | None = None,
    specialist: FrozenTeacher | None = None,
) -> tuple[Student, Student | None, FrozenTeacher | None]:
    """Return student, EMA teacher and frozen optical teacher, seeded; the EMA teacher starts as the student.

    The student has heads for the second frozen teacher, `specialist`, where there is one. With `mixture`, the local
    branch of a `conv` starts from patches of its samples.
    """
    optical = load_teacher(config.optical_teacher, config.optical)
    torch.manual_seed(config.seed)
    student = Student(config, optical.dims if optical else None, specialist.dims if specialist else None)
    if config.student.init:
        initialise(student, config.student.init, config)
    initialise_spectral(student, config)
    start_heads(student, specialist)
    if mixture is not None and isinstance(student.network, DeoConv):
        s = config.student
        fit_local(student.network, windows_for(mixture, config), config.seed, s.typical, haze=_haze(config))
    if isinstance(student.network, DeoConv) and config.student.local_from:
        keep_local(student.network, config.student.local_from)
    if mixture is not None and optical is not None and config.optical.standardize:
        optical = Standardised(optical, _typical(mixture, config, optical))
    _freeze_unused(student, config)
    student.to(device)
    ema = None
    if config.objective.multispectral and config.objective.pretext == "coding_rate":
        ema = copy.deepcopy(student).requires_grad_(False)
        # The teacher has no use for the optical heads.
        ema.cls_head = ema.patch_head_mid = ema.patch_head_late = ema.specialist = None
        ema.train(config.optimizer.teacher_mode == "train")
    if isinstance(optical, nn.Module):
        optical.to(device)
    return student, ema, optical


def start_heads(student: Student, specialist: FrozenTeacher | None) -> None:
    """Start the linear heads of the specialist as its standardisation."""
    if student.specialist is None or not isinstance(specialist, Standardised):
        return
    for name, part in (("vector", "cls"), ("mid", "mid"), ("late", "late")):
        head = student.specialist[name]
        if isinstance(head, LinearHead):
            head.start(specialist.get_buffer(f"mean_{part}").cpu(), specialist.get_buffer(f"std_{part}").cpu())


def _haze(config: TrainConfig) -> Tensor | None:
    """Return haze in the units of the multispectral stem, per band; None where local filters may respond to it."""
    return HAZE / torch.tensor(config.student.ms_std) if config.student.haze_blind else None


def _typical(mixture: Mixture, config: TrainConfig, optical: FrozenTeacher) -> Tensor:
    """Return RGB of windows of every kind, as the frozen teacher sees them without noise."""
    images = []
    for stem, x in windows_for(mixture, config, count=96).items():
        mean, std = (
            (config.student.ms_mean, config.student.ms_std)
            if stem == "ms"
            else (config.student.rgb_mean, config.student.rgb_std)
        )
        dn = x[:, :3] * column(std[:3]) + column(mean[:3])
        images.append((dn / config.augment.display).clamp(0, 1))
    return (torch.cat(images) - column(optical.mean)) / column(optical.std)


def _freeze_unused(student: Student, config: TrainConfig) -> None:
    """Freeze stems that no arm trains, and what `config.student.freeze` names.

    Without a gradient they would decay, or keep other processes waiting for one.
    """
    untrained = untrained_stems(config)
    for name, p in student.network.named_parameters():
        no_arm = any(f"_{stem}." in f".{name}" or f".{stem}." in f".{name}" for stem in untrained)
        if no_arm or name.startswith(config.student.freeze):
            p.requires_grad_(False)


def optimizer_of(student: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW without weight decay on biases and other vectors."""
    trained = [p for p in student.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [{"params": [p for p in trained if p.ndim > 1]}, {"params": [p for p in trained if p.ndim <= 1]}],
        lr=0.0,
        # One pass over weights, gradients and moments instead of a dozen.
        fused=True,
    )


def train(config: TrainConfig, on_step: Callable[[int], None] | None = None) -> Path:
    """Run the training that `config` describes, and leave a model in ``config.out``.

    Parameters
    ----------
    config : TrainConfig
        Everything.
    on_step : callable, optional
        Called after every step with its number.

    Returns
    -------
    Path
        The folder: ``card.json`` and ``weights.safetensors`` (a model), ``metrics.jsonl``, ``config.json``,
        ``checkpoints/``.

    Raises
    ------
    StoreMismatchError
        If the folder holds another run, or one to be resumed with other settings.
    Diverged
        If the loss is not finite or stays far above its median; the newest checkpoint is kept.
    """
    process = Process.start(config)
    out = local_path(config.out)
    last = checkpoints.newest(out)
    if last and not config.resume:
        raise StoreMismatchError(f"{out} already holds a run (up to {last.name}): give --resume, or another --out")
    sources = open_sources(config)
    mixture = Mixture(sources, config.loader, config.seed)
    specialist = load_specialist(config, mixture, process.device)
    student, ema, optical = build(config, process.device, mixture, specialist)
    optimizer = optimizer_of(student, config)
    start, spent, history = 0, 0.0, {}
    if last:
        state = checkpoints.load(last, student=student, teacher=ema, optimizer=optimizer, config=config)
        start, spent, history = state["step"], state["seconds"], state["history"]
    if process.first:
        out.mkdir(parents=True, exist_ok=True)
        remember_teachers(out, (optical, specialist), resumed=last is not None)
        (out / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    step_of = _Step(config, process, student, ema, optimizer, (optical, specialist))
    log = StepLog(config, process.first, out, start)
    monitor = LossMonitor(config.health.patience)
    began = time.perf_counter() - spent
    sizes = (config.optimizer.batch, config.optimizer.rgb_batch)
    reader = batches(
        mixture,
        sizes,
        start=start * config.optimizer.accumulate,
        stop=config.steps * config.optimizer.accumulate,
        rank=process.rank,
        world_size=process.world_size,
    )

    def keep(done: int) -> None:
        seconds = time.perf_counter() - began
        card = _publishable(student, mixture, config, done, seconds, history)
        state = {"seconds": seconds, "history": history}
        checkpoints.save(
            out,
            done,
            card=card,
            student=student,
            teacher=ema,
            optimizer=optimizer,
            config=config,
            state=state,
            sample=typical_pixels(mixture, config),
        )
        checkpoints.prune(out, config.health)

    with log:
        for step in range(start, config.steps):
            measured = step_of(step, reader)
            monitor.look(step, measured["loss"], measured["parts"])
            done = step + 1
            if config.health.probe_every and done % config.health.probe_every == 0:
                measured |= _probe(student, sources, config)
            history |= {k: v for k, v in measured.items() if k in ("effective_rank", "knn")}
            log.step(step, measured)
            every = config.health.checkpoint_every
            if process.first and (done == config.steps or (every and done % every == 0)):
                keep(done)
            if on_step is not None:
                on_step(step)
    if process.first and start == config.steps:
        keep(start)  # a finished run that is resumed is described and fitted anew: the necks may have changed
    if process.first:
        _publish(out)
    if process.world_size > 1:
        dist.barrier()
        dist.destroy_process_group()
    return out


def cosine(step: int, start: float, end: float, steps: int, warmup: int = 0, warmup_start: float = 0.0) -> float:
    """Return the value at `step`: linear from `warmup_start` to `start` in `warmup` steps, then half a cosine to `end`.

    As in DINO: the warm-up reaches `start` in its last step (its first step has `warmup_start`), the cosine begins at
    `start` and would reach `end` one step after the last.

    Parameters
    ----------
    step : int
        0 to ``steps - 1``; later steps give `end`.
    start, end : float
        Value after warm-up, and at the end.
    steps : int
        Length of the run.
    warmup : int
        Steps of warm-up.
    """
    if step < warmup:
        return warmup_start + (start - warmup_start) * (step / (warmup - 1) if warmup > 1 else 1.0)
    if step >= steps:
        return end
    t = (step - warmup) / (steps - warmup)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * t))


class _Step:
    """One optimisation step: read, crop, encode, compare, update."""

    def __init__(
        self,
        config: TrainConfig,
        process: Process,
        student: Student,
        ema: Student | None,
        optimizer: torch.optim.Optimizer,
        frozen: tuple[FrozenTeacher | None, FrozenTeacher | None],
    ) -> None:
        self.config, self.process = config, process
        self.student, self.ema, self.optimizer = student, ema, optimizer
        self.optical, self.specialist = frozen
        self.augment = Augmentation(config.augment, config.student, config.specialist.level)
        self.model: Any = student
        if process.world_size > 1:
            self.model = DistributedDataParallel(student, gradient_as_bucket_view=True)
        o = config.optimizer
        samples = (o.batch + o.rgb_batch) * o.accumulate * process.world_size
        self.lr = o.lr * samples / 256
        self.warmup = round(o.warmup * config.steps)
        self.trained = [p for p in student.parameters() if p.requires_grad]

    def __call__(self, step: int, reader: Iterator[Batch]) -> dict[str, Any]:
        config, o, p = self.config, self.config.optimizer, self.process
        lr = cosine(step, self.lr, o.min_lr, config.steps, self.warmup)
        wd = cosine(step, *o.weight_decay, config.steps)
        for group, decay in zip(self.optimizer.param_groups, (wd, 0.0), strict=True):
            group["lr"], group["weight_decay"] = lr, decay
        self.student.train()
        self.optimizer.zero_grad(set_to_none=True)
        waited, began = 0.0, time.perf_counter()
        losses: list[Tensor] = []
        parts: dict[str, list[Tensor]] = {}
        pooled: Tensor | None = None
        # Stochastic depth draws from torch's own stream: seeded by step, a resumed run draws the same.
        torch.manual_seed(generator(config.seed, DROPS, step, p.rank).initial_seed())
        for micro in range(o.accumulate):
            before = time.perf_counter()
            batch = next(reader)
            waited += time.perf_counter() - before
            number = step * o.accumulate + micro
            # One synchronisation per step: all but the last micro-batch only add to the gradient.
            quiet = p.world_size > 1 and micro + 1 < o.accumulate
            with self.model.no_sync() if quiet else contextlib.nullcontext():
                terms, pooled = self._terms(batch, number)
                torch.autograd.backward(terms.total / o.accumulate)
            losses.append(terms.total.detach())
            for k, v in terms.parts.items():
                parts.setdefault(k, []).append(v)
        norm = self._clip()
        loss = torch.stack(losses).mean()
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):
            self.optimizer.step()
            if self.ema is not None:
                ema_update(self.ema, self.student, cosine(step, *o.ema, config.steps))
        elif bool(torch.isfinite(loss)):
            loss = norm
        seconds = time.perf_counter() - began
        samples = (o.batch + o.rgb_batch) * o.accumulate * p.world_size
        return {
            "loss": float(loss),
            "parts": {k: float(torch.stack(v).mean()) for k, v in parts.items()},
            "lr": lr,
            "weight_decay": wd,
            "grad_norm": float(norm),
            "samples_per_s": samples / seconds,
            "waited": waited / seconds,
            **({} if pooled is None else {"effective_rank": effective_rank(pooled)}),
        }

    def _terms(self, batch: Batch, number: int) -> tuple[Terms, Tensor | None]:
        config, p = self.config, self.process
        ms, rgb, fine, paired, level, vectors, known = (
            None if t is None else t.to(p.device, non_blocking=True)
            for t in (batch.ms, batch.rgb, batch.fine, batch.paired, batch.level, batch.vectors, batch.known)
        )
        random = generator(config.seed, CROPS, number)
        with torch.no_grad():
            views = self.augment(
                ms,
                rgb,
                random,
                rank=p.rank,
                world_size=p.world_size,
                fine=fine,
                paired=paired,
                level=level,
                vectors=vectors,
                known=known,
            )
        with torch.autocast(p.device.type, dtype=p.precision, enabled=p.precision != torch.float32):
            targets = None if self.optical is None else teacher_targets(self.optical, views, config)
            second = None if self.specialist is None else specialist_targets(self.specialist, views)
            with torch.no_grad():
                teacher_ms = None if self.ema is None else self.ema.project_ms(views)
            out = self.model(views, self._hidden(views, number))
        return objective(
            out, teacher_ms, targets, len(views), config.objective, second, config.specialist.cls
        ), out.pooled

    def _hidden(self, views: Sequence[View], number: int) -> Tensor | None:
        """Return the pixels that masked image modelling hides in the two global views."""
        o, p, ms = self.config.objective, self.process, views[0].ms
        if not o.multispectral or o.pretext != "masked" or ms is None:
            return None
        random = generator(self.config.seed, MASKS, number)
        squares = [
            hidden_squares(
                ms.shape[0], ms.shape[2], ratio=o.mask_ratio, square=o.mask_size, random=random, rank=p.rank,
                world_size=p.world_size,
            )
            for _ in range(2)
        ]  # fmt: skip
        return torch.cat(squares).to(p.device)

    def _clip(self) -> Tensor:
        """Clip as configured, and return the global norm before clipping."""
        o = self.config.optimizer
        grads = [q.grad for q in self.trained if q.grad is not None]
        norms = torch._foreach_norm(grads)
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if o.clip > 0 and o.clip_by == "global":
            torch._foreach_mul_(grads, (o.clip / (total + 1e-6)).clamp(max=1.0))
        elif o.clip > 0:
            torch._foreach_mul_(grads, [(o.clip / (n + 1e-6)).clamp(max=1.0) for n in norms])
        return total


def _probe(student: Student, sources: Sequence[Source], config: TrainConfig) -> dict[str, float]:
    labelled = [s for s in sources if isinstance(s, ImageSource) and len({Path(f).parent for f in s.files}) > 1]
    if not labelled or student.cls_head is None or not student.second_stem:
        return {}
    return {"knn": knn_score(student.network, student.taps["rgb"].vector, labelled[0], config)}


def _publishable(
    student: Student, mixture: Mixture, config: TrainConfig, step: int, seconds: float, history: dict[str, float]
) -> Any:
    if config.student.family in ("conv", "spectral"):
        fit_necks(student.network, windows_for(mixture, config), config)
    return describe_run(config, step, seconds, history)


def _publish(out: Path) -> None:
    """Copy the newest checkpoint's card and weights into the run's own folder."""
    last = checkpoints.newest(out)
    if last is None:
        return
    for name in ("weights.safetensors", "card.json"):
        partial = out / f".{name}.{os.getpid()}"
        partial.write_bytes((last / name).read_bytes())
        os.replace(partial, out / name)
