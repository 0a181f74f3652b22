"""UPerNet on a frozen encoder: the segmentation protocol of the paper (section 5.10), sized by option.

As published: encoder frozen, UPerNet on several of its layers, AdamW with weight decay 0.01, 5 epochs of warm-up and
half a cosine to 1e-6, mirrored images, the epoch that is best on validation chips is tested. Other than published:
chips are not cropped at random (features of each are computed once, for its four mirror images), cross-entropy is
used for all data sets, the decoder is 64 wide (published: 512), and features finer than 4 pixels are averaged to 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.evaluate.features import fitted_on, name_of, places
from deo_cube.evaluate.readers import Scene
from deo_cube.evaluate.scores import METRICS, Score, confusion_counts, make_score, stopwatch
from deo_cube.heads.conv import upernet_logits, upernet_tensors
from deo_cube.heads.splits import halves, warn_of_leak

__all__ = ["chips_of", "upernet", "upernet_halves"]

Array = NDArray[Any]
FINEST = 4
"""Pixels: maps finer than this are averaged."""
MIRRORS = ((), (-1,), (-2,), (-2, -1))


def chips_of(scenes: Sequence[Scene], size: int) -> tuple[list[Scene], Array]:
    """Return whole chips of `size` pixels side by side, and (n, 3): scene, row and column of the middle of each."""
    chips, at = [], []
    for i, s in enumerate(scenes):
        rows, cols = s.label.shape
        for r in range(0, rows - size + 1, size):
            for c in range(0, cols - size + 1, size):
                cut = (slice(r, r + size), slice(c, c + size))
                chip = Scene(f"{s.name}/{r},{c}", s.image[:, *cut], s.label[cut], s.valid[cut], s.bands)
                if (chip.valid & (chip.label >= 0)).any():
                    chips.append(chip)
                    at.append((i, r + size // 2, c + size // 2))
    return chips, np.array(at, int).reshape(-1, 3)


def upernet_halves(
    encode: Any, scenes: Sequence[Scene], *, task: str, name: str | None = None, chip: int = 64, gap: int = 32,
    seeds: int = 1, mirrored: bool = True, **options: Any,
) -> list[Score]:  # fmt: skip
    """Train UPerNet on one half of each scene and test it on the other, `gap` pixels between: four splits.

    The chips of every fifth place of the training half choose the epoch. Options of `upernet`.

    Returns
    -------
    list of Score
        Mean IoU of ``<task>/upernet``; the splits (times `seeds`) are its seeds.
    """
    start, model = stopwatch(), name_of(encode, name)
    chips, at = chips_of(scenes, chip)
    shapes = np.array([s.label.shape for s in scenes])[at[:, 0]]
    where = places(scenes, *at.T)
    encode = fitted_on(encode, [s.image for s in scenes], scenes[0].bands)
    maps, scales, stride = _maps(encode, chips, MIRRORS if mirrored else MIRRORS[:1])
    codes = _codes(chips)
    counts, leak, trained = [], 0.0, []
    for direction in ("left", "right", "top", "bottom"):
        # Whole chips: their middles keep the gap and half a chip on either side.
        train, test = halves(at[:, 1], at[:, 2], shapes, direction, gap + chip)  # type: ignore[arg-type]
        # Edges of chips, not middles, are what may touch.
        reach = chip + int(getattr(encode, "halo", 0)) + 1
        leak = max(leak, warn_of_leak(where[train], where[test], reach, what=f"{task}, {direction}"))
        fit = np.flatnonzero(train)
        held = fit[::5]
        fit = np.setdiff1d(fit, held)
        trained.append(len(fit))
        for seed in range(seeds):
            decoder = _train(maps, chips, fit, held, codes, scales, stride, seed=seed, **options)
            found, _ = _confusions(decoder, maps, chips, np.flatnonzero(test), codes, scales, stride)
            full = np.zeros((len(chips), *found.shape[1:]))
            full[np.flatnonzero(test)] = found
            counts.append(full)
    return [
        _score(
            model, task, counts, int(np.mean(trained)) * chip**2, stopwatch() - start, leak,
            f"halves of {len(scenes)} scenes with a gap of {gap} px, four splits, chips of {chip} px; every fifth "
            "training chip chooses the epoch; intervals over chips", mirrored, options,
        )
    ]  # fmt: skip


def upernet(
    encode: Any, train: Sequence[Scene], validation: Sequence[Scene], test: Sequence[Scene], *, task: str,
    name: str | None = None, chip: int | None = None, seeds: int = 2, mirrored: bool = True, **options: Any,
) -> list[Score]:  # fmt: skip
    """Train UPerNet on the scenes of `train`, choose its epoch on `validation`, and score it on `test`.

    Parameters
    ----------
    chip : int, optional
        Cut the scenes into chips of this many pixels. Default: scenes are chips of one size already.
    seeds : int
        Initialisations and orders of the training chips.
    mirrored : bool
        Train on the mirror images of chips too; each is encoded.
    **options
        width (64), epochs (50), batch (64), rate (1e-4: highest rate; the paper's configurations take 1e-4 or 1e-2).

    Returns
    -------
    list of Score
        Mean IoU of ``<task>/upernet``; intervals over test scenes.
    """
    start, model = stopwatch(), name_of(encode, name)
    parts = [list(p) if chip is None else chips_of(p, chip)[0] for p in (train, validation, test)]
    scene_of = np.arange(len(test)) if chip is None else chips_of(test, chip)[1][:, 0]
    chips = [c for p in parts for c in p]
    ends = np.cumsum([len(p) for p in parts])
    encode = fitted_on(encode, [s.image for s in parts[0]], chips[0].bands)
    maps, scales, stride = _maps(encode, chips, MIRRORS if mirrored else MIRRORS[:1])
    codes = _codes(chips)
    counts = []
    for seed in range(seeds):
        decoder = _train(
            maps, chips, np.arange(ends[0]), np.arange(ends[0], ends[1]), codes, scales, stride, seed=seed, **options
        )
        found, _ = _confusions(decoder, maps, chips, np.arange(ends[1], ends[2]), codes, scales, stride)
        each = np.zeros((len(test), *found.shape[1:]))
        np.add.at(each, scene_of, found)
        counts.append(each)
    pixels = int(sum(((c.label >= 0) & c.valid).sum() for c in parts[0]))
    split = f"{len(train)} scenes train, {len(validation)} choose the epoch, {len(test)} test; intervals over scenes"
    return [_score(model, task, counts, pixels, stopwatch() - start, None, split, mirrored, options)]


def _score(
    model: str, task: str, counts: list[Array], labels: int, seconds: Array, leak: float | None, split: str,
    mirrored: bool, options: dict[str, Any],
) -> Score:  # fmt: skip
    epochs, width = options.get("epochs", 50), options.get("width", 64)
    seen = "chips and their mirror images" if mirrored else "chips as they are"
    return make_score(
        model, f"{task}/upernet", "mean IoU", counts, tested=int(np.mean([c.sum() for c in counts])), labels=labels,
        seconds=seconds, leak=leak,
        protocol=f"UPerNet ({width} wide, windows of 3, 7, 15 tokens) on frozen features, {epochs} epochs of AdamW, "
        f"{seen}, the best epoch on validation chips; {split}",
    )  # fmt: skip


def _codes(chips: Sequence[Scene]) -> Array:
    seen = np.unique(np.concatenate([np.unique(c.label[c.valid]) for c in chips]))
    return seen[seen >= 0]


def _maps(encode: Any, chips: Sequence[Scene], mirrors: Sequence[Any]) -> tuple[Array, tuple[int, ...], int]:
    """Return features (N, mirrors, D, h, w) float16 of chips and mirror images, dims of the scales, and the stride.

    Float16 of features standardised over all chips. Mirrored back to the orientation of the chip.
    """
    several = getattr(encode, "pyramid", None)
    out: list[Array] = []
    scales: tuple[int, ...] = ()
    stride = 0
    size = chips[0].label.shape[0]
    for s in chips:
        image = s.image
        if not s.valid.all():
            middle = np.median(image[:, s.valid], axis=1) if s.valid.any() else np.zeros(len(image))
            image = np.where(s.valid, image, middle[:, None, None]).astype("float32")
        mirrored = np.stack([np.flip(image, m) if m else image for m in mirrors])
        maps = several(mirrored, s.bands) if several else [np.asarray(encode(mirrored, s.bands))]
        maps = sorted((_pooled(np.asarray(m, "float32"), size) for m in maps), key=lambda m: -m.shape[2])
        stride, scales = size // maps[0].shape[2], tuple(m.shape[1] for m in maps)
        fine = maps[0].shape[2]
        joined = np.concatenate([m.repeat(fine // m.shape[2], 2).repeat(fine // m.shape[2], 3) for m in maps], axis=1)
        out.append(np.stack([np.flip(z, m) if m else z for z, m in zip(joined, mirrors, strict=True)]))
    mean = np.mean([o.mean(axis=(0, 2, 3)) for o in out], axis=0)[:, None, None]
    std = np.sqrt(np.mean([((o - mean) ** 2).mean(axis=(0, 2, 3)) for o in out], axis=0))[:, None, None] + 1e-6
    return np.stack([((o - mean) / std).clip(-1e4, 1e4).astype("float16") for o in out]), scales, stride


def _pooled(m: Array, size: int) -> Array:
    k = max(FINEST * m.shape[2] // size, 1)
    return m.reshape(*m.shape[:2], m.shape[2] // k, k, m.shape[3] // k, k).mean(axis=(3, 5)) if k > 1 else m


def _target(chip: Scene, codes: Array) -> Array:
    known = chip.valid & (chip.label >= 0)
    return np.where(known, np.searchsorted(codes, np.where(known, chip.label, codes[0])), -1)


def _logits(tensors: Any, x: Any, scales: tuple[int, ...], stride: int) -> Any:
    from torch.nn import functional as F

    out = upernet_logits(tensors, x, 1, scales)
    return F.interpolate(out, scale_factor=stride, mode="bilinear", align_corners=False) if stride > 1 else out


def _train(
    maps: Array, chips: Sequence[Scene], fit: Array, held: Array, codes: Array, scales: tuple[int, ...], stride: int, *,
    seed: int, width: int = 64, epochs: int = 50, batch: int = 64, rate: float = 1e-4,
) -> dict[str, Any]:  # fmt: skip
    """Return the tensors of the epoch with the best mean IoU on the chips `held`."""
    import torch
    from torch.nn import functional as F

    blank = upernet_tensors(maps.shape[2], width, len(codes), scales, seed)
    tensors = {k: torch.from_numpy(v) for k, v in blank.items()}
    learnt = [t.requires_grad_() for k, t in tensors.items() if k not in ("mean", "std") and not k.startswith("fine")]
    adam = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.01)
    batch = min(batch, max(len(fit) // 3, 1))
    steps, warm = -(-len(fit) // batch), min(5, epochs // 4)

    def share(epoch: float) -> float:
        if epoch < warm:
            return (epoch + 1) / (warm + 1)
        return max(0.5 * (1 + math.cos(math.pi * (epoch - warm) / max(epochs - warm, 1))), 1e-6 / rate)

    plan = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: share(i / steps))
    rng = np.random.default_rng(seed)
    best, chosen = -1.0, {k: v.detach().clone() for k, v in tensors.items()}
    for _ in range(epochs):
        order = rng.permutation(fit)
        for k in range(0, len(order), batch):
            pick = order[k : k + batch]
            which = rng.integers(maps.shape[1], size=len(pick))
            # The features of a mirrored chip, lying as the chip does, with the chip's own labels.
            x = torch.from_numpy(maps[pick, which].astype("float32"))
            truth = torch.from_numpy(np.stack([_target(chips[i], codes) for i in pick]))
            loss = F.cross_entropy(_logits(tensors, x, scales, stride), truth, ignore_index=-1)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            plan.step()
        value = _confusions(tensors, maps, chips, held, codes, scales, stride)[1]
        if value > best:
            best, chosen = value, {k: v.detach().clone() for k, v in tensors.items()}
    return chosen


def _confusions(
    tensors: dict[str, Any], maps: Array, chips: Sequence[Scene], which: Array, codes: Array, scales: tuple[int, ...],
    stride: int,
) -> tuple[Array, float]:  # fmt: skip
    """Return counts (n, K, K) of the chips `which`, and their mean IoU together."""
    import torch

    counts = []
    with torch.inference_mode():
        for i in which:
            x = torch.from_numpy(maps[i, :1].astype("float32"))
            found = _logits(tensors, x, scales, stride)[0].argmax(0).numpy()
            truth = _target(chips[i], codes)
            known = truth >= 0
            zeros = np.zeros(int(known.sum()), int)
            counts.append(confusion_counts(truth[known], found[known], zeros, 1, len(codes))[0])
    stacked = np.stack(counts) if counts else np.zeros((0, len(codes), len(codes)))
    return stacked, float(METRICS["mean IoU"](stacked.sum(axis=0))) if counts else 0.0
