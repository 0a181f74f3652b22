"""Learning rate, weight decay and EMA momentum at a step: warm-up, then half a cosine. Plain functions."""

from __future__ import annotations

import math

__all__ = ["cosine"]


def cosine(step: int, start: float, end: float, steps: int, warmup: int = 0, warmup_start: float = 0.0) -> float:
    """Value at `step`: linear from `warmup_start` to `start` in `warmup` steps, then half a cosine to `end`.

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
