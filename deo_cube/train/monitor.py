"""The signals of a run: effective rank, kNN score, divergence, and the files and progress bar that show them."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deo_cube.errors import MissingExtraError
from deo_cube.heads.probes import knn
from deo_cube.progress import Progress
from deo_cube.train.augment import column
from deo_cube.train.config import TrainConfig
from deo_cube.train.losses import coding_rate_bound
from deo_cube.train.samples import ImageSource

__all__ = ["Diverged", "LossMonitor", "StepLog", "effective_rank", "knn_score"]


class Diverged(RuntimeError):
    """The loss is not finite or stays far too high; the message names the term that went first."""


def effective_rank(z: Tensor) -> float:
    """Return the exponential of the entropy of the singular values' shares of z (m, D), centred (Roy, Vetterli 2007).

    1 for collapsed features, NaN where one is not finite; the published weights' pooled features were measured at 3.7
    to 5.0 of 1024.
    """
    z = z.detach().float()
    if not bool(torch.isfinite(z).all()):
        return math.nan
    s = torch.linalg.svdvals(z - z.mean(0))
    p = s / s.sum().clamp_min(1e-12)
    return float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))


class LossMonitor:
    """Stops a run whose loss is not finite, or is far above its median for `patience` steps in a row."""

    def __init__(self, patience: int, window: int = 200) -> None:
        self.patience = patience
        self.window = window
        self.losses: deque[float] = deque(maxlen=window)
        self.parts: dict[str, deque[float]] = {}
        self.bad = 0

    def look(self, step: int, loss: float, parts: Mapping[str, float]) -> None:
        """Take in the loss of one step and its terms.

        Raises
        ------
        Diverged
            With the term that is not finite, or has moved furthest from its running median.
        """
        if not math.isfinite(loss):
            broken = [k for k, v in parts.items() if not math.isfinite(v)]
            raise Diverged(
                f"step {step}: the loss is {loss}; term {', '.join(broken) or 'total'} went first. "
                "Lower --optimizer.lr, or look at the data of that arm"
            )
        if len(self.losses) >= 20:
            middle, spread = _middle(self.losses)
            self.bad = self.bad + 1 if loss > middle + 20 * spread else 0
            if self.bad >= self.patience:
                moved = {}
                for k in parts.keys() & self.parts.keys():
                    usual, width = _middle(self.parts[k])
                    moved[k] = abs(parts[k] - usual) / width
                worst = max(moved, key=lambda k: moved[k]) if moved else "total"
                raise Diverged(
                    f"step {step}: the loss {loss:.3g} has stayed far above its median {middle:.3g} for {self.bad} "
                    f"steps; term {worst} went furthest. Lower --optimizer.lr, or raise --optimizer.warmup"
                )
        if self.bad == 0:
            self.losses.append(loss)
            for k, v in parts.items():
                self.parts.setdefault(k, deque(maxlen=self.window)).append(v)


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """Return median and median absolute deviation; the latter is never 0."""
    middle = statistics.median(values)
    return middle, statistics.median(abs(v - middle) for v in values) + 1e-3


@torch.no_grad()
def knn_score(network: nn.Module, vector: str, source: ImageSource, config: TrainConfig) -> float:
    """Return the accuracy of 5 nearest neighbours on training images: half of the runs are queries, half neighbours."""
    files = sorted(source.files)
    files = files[:: max(1, len(files) // config.health.probe_size)]
    device = next(network.parameters()).device
    mean, std = (column(v).to(device) for v in (config.student.rgb_mean, config.student.rgb_std))
    training = network.training
    network.eval()
    z = []
    run: Any = network
    for i in range(0, len(files), 64):
        images = torch.from_numpy(np.stack([source.read(f) for f in files[i : i + 64]])).to(device)
        images = images[..., : images.shape[2] // 32 * 32, : images.shape[3] // 32 * 32]
        z.append(run.forward_features((images - mean) / std, "rgb", {vector})[vector].float().cpu())
    network.train(training)
    features, y = torch.cat(z).numpy(), source.labels(files)
    digits = [f.rsplit(".", 1)[0].rsplit("_", 1)[-1] for f in files]
    numbers = np.array([int(d) if d.isdigit() else i for i, d in enumerate(digits)])
    queries = (numbers // 50) % 2 == 1
    if not queries.any() or queries.all():
        queries = np.arange(len(files)) % 2 == 1
    return float((knn(features[~queries], y[~queries], features[queries]) == y[queries]).mean())


class StepLog:
    """metrics.jsonl, the progress bar, and TensorBoard where asked for. Silent in all processes but the first."""

    def __init__(self, config: TrainConfig, first: bool, out: Path, start: int) -> None:
        self.config, self.first, self.out, self.start = config, first, out, start
        o = config.objective
        self.bound = coding_rate_bound(o.ms_dim, max(config.optimizer.batch, 1), eps=o.eps, world_size=o.world_size)

    def __enter__(self) -> StepLog:
        self.file: Any = None
        self.board: Any = None
        if not self.first:
            return self
        path = self.out / "metrics.jsonl"
        if path.exists():
            # Lines written after the checkpoint that is resumed will be written again.
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) < self.start]
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        if self.config.health.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError("--health.tensorboard needs tensorboard: pip install tensorboard") from error
            self.board = SummaryWriter(str(self.out / "tensorboard"))
        self.bar = Progress(self.config.steps, title=self.out.name, unit="step", done=self.start)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.file is not None:
            self.file.close()
            self.bar.__exit__(*error)
        if self.board is not None:
            self.board.close()

    def step(self, step: int, measured: Mapping[str, Any]) -> None:
        """Write the measurements of one step."""
        if self.file is None:
            return
        note = ""
        if step % self.config.health.log_every == 0 or step + 1 == self.config.steps or "knn" in measured:
            line = {"step": step, **measured, **measured["parts"]}
            line.pop("parts")
            if "expansion" in line:
                line["expansion_bound"] = self.bound
            line = {k: round(v, 6) if isinstance(v, float) and math.isfinite(v) else v for k, v in line.items()}
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            short = {k: f"{line[k]:.3f}" for k in ("loss", "compression", "expansion", "cls", "knn") if k in line}
            note = ", ".join(f"{k} {v}" for k, v in short.items()) + f", {line['samples_per_s']:.1f} samples/s"
            if self.board is not None:
                for k, v in line.items():
                    self.board.add_scalar(k, v, step)
        self.bar.advance(note=note)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62  # torn by a kill
