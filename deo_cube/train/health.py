"""Is the run well? Effective rank, the kNN score, and the watch over the terms of the loss."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deo_cube.train.config import TrainConfig
from deo_cube.train.samples import ImageSource

__all__ = ["Diverged", "Watch", "effective_rank", "knn_score"]


class Diverged(RuntimeError):
    """The run went wrong; the message names the term that went first."""


def effective_rank(z: Tensor) -> float:
    """Exponential of the entropy of the singular values' shares of z (m, D), centred (Roy and Vetterli 2007).

    1 for collapsed features, NaN where one is not finite; the published weights' pooled features were measured at 3.7
    to 5.0 of 1024.
    """
    z = z.detach().float()
    if not bool(torch.isfinite(z).all()):
        return math.nan
    s = torch.linalg.svdvals(z - z.mean(0))
    p = s / s.sum().clamp_min(1e-12)
    return float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))


class Watch:
    """Stops a run whose loss is no number, or stays far above where it was.

    Parameters
    ----------
    patience : int
        So many steps in a row.
    """

    def __init__(self, patience: int, window: int = 200) -> None:
        self.patience = patience
        self.window = window
        self.losses: deque[float] = deque(maxlen=window)
        self.parts: dict[str, deque[float]] = {}
        self.bad = 0

    def look(self, step: int, loss: float, parts: Mapping[str, float]) -> None:
        """See one step.

        Raises
        ------
        Diverged
            With the term that is not finite, or has moved furthest from its running median.
        """
        if not math.isfinite(loss):
            gone = [k for k, v in parts.items() if not math.isfinite(v)]
            raise Diverged(
                f"step {step}: the loss is {loss}; term {', '.join(gone) if gone else 'total'} went first. "
                "Lower --optimizer.lr, or look at the data of that arm"
            )
        typical = sorted(self.losses)
        if len(typical) >= 20:
            middle = statistics.median(typical)
            spread = statistics.median(abs(v - middle) for v in typical) + 1e-3
            self.bad = self.bad + 1 if loss > middle + 20 * spread else 0
            if self.bad >= self.patience:
                moved = {k: _moved(v, self.parts[k]) for k, v in parts.items() if k in self.parts}
                worst = max(moved, key=lambda k: moved[k]) if moved else "total"
                raise Diverged(
                    f"step {step}: the loss {loss:.3g} has stayed far above its median {middle:.3g} for {self.bad} "
                    f"steps; term {worst} went furthest. Lower --optimizer.lr, or raise --optimizer.warmup"
                )
        if self.bad == 0:
            self.losses.append(loss)
            for k, v in parts.items():
                self.parts.setdefault(k, deque(maxlen=self.window)).append(v)


def _moved(value: float, before: Sequence[float]) -> float:
    middle = statistics.median(before)
    return abs(value - middle) / (statistics.median(abs(v - middle) for v in before) + 1e-3)


@torch.no_grad()
def knn_score(network: nn.Module, vector: str, source: ImageSource, config: TrainConfig) -> float:
    """Accuracy of 5 nearest neighbours on training images of `source`: half of the runs ask, half answer."""
    from deo_cube.heads.probes import knn

    files = sorted(source.files)
    step = max(1, len(files) // config.health.probe_size)
    files = files[::step]
    device = next(network.parameters()).device
    stats = [
        torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (config.student.rgb_mean, config.student.rgb_std)
    ]
    training = network.training
    network.eval()
    z = []
    run: Any = network
    for i in range(0, len(files), 64):
        images = torch.from_numpy(np.stack([source.read(f) for f in files[i : i + 64]])).to(device)
        images = images[..., : images.shape[2] // 32 * 32, : images.shape[3] // 32 * 32]
        z.append(run.forward_features((images - stats[0]) / stats[1], "rgb", {vector})[vector].float().cpu())
    network.train(training)
    features, y = torch.cat(z).numpy(), source.labels(files)
    numbers = np.array(
        [int(d) if (d := f.rsplit(".", 1)[0].rsplit("_", 1)[-1]).isdigit() else i for i, f in enumerate(files)]
    )
    asks = (numbers // 50) % 2 == 1
    if not asks.any() or asks.all():
        asks = np.arange(len(files)) % 2 == 1
    return float((knn(features[~asks], y[~asks], features[asks]) == y[asks]).mean())
