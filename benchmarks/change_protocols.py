"""How much of a change score is the protocol: ``python -m benchmarks.change_protocols DATA``.

`tiny` and 512 random convolutions on all bark-beetle plots, under one choice changed at a time: share of damage from
which a patch counts, size of patches, what the probe sees of the two dates, folds, average precision of all cases
together or the mean of the plots'; and for the plain cosine distance, what is done to features first. No choice
is made on the result. Half of the plots served the training of `tiny` (pixels, no labels); `--odd-run` scores all plots
by encoders that never saw them. Ten minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from benchmarks.bundle import Encode
from deo_cube.encoder.registry import load_encoder
from deo_cube.evaluate.features import RandomConvolutions, Tokens, encode_scene
from deo_cube.evaluate.readers import Scene, read_beetle
from deo_cube.heads.probes import linear_probe

Array = NDArray[Any]
CHOSEN = (0.001, 0.01, 0.1)
Two = list[Tokens]
"""Features of the two dates of a plot."""
Scored = tuple[list[Array], list[Array]]
"""Labels and scores of the cases of each plot."""


def tokens(encode: Any, plots: list[Scene]) -> list[Two]:
    if hasattr(encode, "fitted"):
        encode = encode.fitted([im for s in plots for im in (s.before, s.image)], plots[0].bands)
    return [
        [encode_scene(encode, im, s.bands, valid=s.valid) for im in (s.before, s.image) if im is not None]
        for s in plots
    ]


def both(y: list[Array], score: list[Array]) -> str:
    """Average precision of all cases together, and the mean over plots with damage."""
    each = [average_precision_score(a, b) for a, b in zip(y, score, strict=True) if a.any() and len(a) > 20]
    return f"{average_precision_score(np.concatenate(y), np.concatenate(score)):.3f} {np.mean(each):.3f}"


def patches(s: Scene, size: int, share: float) -> tuple[Array, Array, Array]:
    h, w = s.label.shape[0] // size, s.label.shape[1] // size
    lab, ok = (
        a[: h * size, : w * size].reshape(h, size, w, size).mean(axis=(1, 3))
        for a in ((s.label == 1) & s.valid, s.valid)
    )
    r, c = np.nonzero(ok >= 0.5)
    return (lab >= share)[r, c].astype(int), r, c


def probe(
    two: list[Two],
    plots: list[Scene],
    size: int,
    *,
    share: float = 0.25,
    folds: int = 5,
    change: bool = False,
    most: int = 12000,
    strengths: tuple[float, ...] = (0.01,),
) -> Scored:
    """Each plot scored by a probe that never saw it; `most` cases train, C chosen among `strengths`."""
    n = len(plots)
    fold = np.random.default_rng(0).permutation(n) % folds
    random = np.random.default_rng(0)
    x, y, place = [], [], []
    for (a, b), s in zip(two, plots, strict=True):
        t = Tokens(
            np.concatenate([a.values, b.values] + ([np.abs(b.values - a.values)] if change else [])), a.stride, a.shape
        )
        if size == 1:
            r, c = np.nonzero(s.valid)
            y.append(s.label[r, c])
        else:
            label, r, c = patches(s, size, share)
            y.append(label)
        x.append(t)
        place.append((r, c))
    found: list[Array] = [np.empty(0)] * n
    for f in range(folds):
        train = np.flatnonzero(fold != f)
        owner = np.concatenate([np.full(len(y[i]), i) for i in train])
        number = np.concatenate([np.arange(len(y[i])) for i in train])
        some = np.sort(random.choice(len(owner), min(most, len(owner)), replace=False))
        z, labels = [], []
        for i in np.unique(owner[some]):
            k = number[some][owner[some] == i]
            r, c = (v[k] for v in place[i])
            z.append(x[i].at(r, c) if size == 1 else x[i].patches(size)[:, r, c].T)
            labels.append(y[i][k])
        fitted = linear_probe(np.concatenate(z), np.concatenate(labels), groups=owner[some], strengths=strengths)
        for i in np.flatnonzero(fold == f):
            v = x[i].values
            d = fitted.decision_function(v.reshape(len(v), -1).T).reshape(1, *v.shape[1:])
            t = Tokens(d, x[i].stride, x[i].shape)
            r, c = place[i]
            found[i] = t.at(r, c)[:, 0] if size == 1 else t.patches(size)[0, r, c]
    return y, found


def cosine(two: list[Two], plots: list[Scene], size: int = 1) -> Scored:
    y, found = [], []
    for (a, b), s in zip(two, plots, strict=True):
        p, q = a.values, b.values
        d = 1 - (p * q).sum(0) / np.maximum(np.linalg.norm(p, axis=0) * np.linalg.norm(q, axis=0), 1e-12)
        t = Tokens(d[None], a.stride, a.shape)
        label, r, c = (s.label[s.valid], *np.nonzero(s.valid)) if size == 1 else patches(s, size, 0.25)
        y.append(label)
        found.append(t.at(r, c)[:, 0] if size == 1 else t.patches(size)[0, r, c])
    return y, found


def crossed(ours: list[Two], theirs: list[Two], plots: list[Scene], score: Callable[..., Scored]) -> str:
    """Odd plots as `ours` scores them, even ones as `theirs` does: each by an encoder that never saw it."""
    (y, odd), (_, even) = score(ours, plots), score(theirs, plots)
    return both(y, [b if i % 2 == 0 else a for i, (a, b) in enumerate(zip(odd, even, strict=True))])


def encoder_of(name: str) -> Encode:
    return Encode(load_encoder(name, device="cpu"), name)


def main(data: tyro.conf.Positional[str], odd_run: str | None = None) -> None:
    """Print a line a choice, for `tiny` and for random convolutions.

    Parameters
    ----------
    data : str
        Folder with `change_barkbeetle/`.
    odd_run : str, optional
        A run like the bundled one's, but trained on odd plots (phases 2 and 3). Only this is scored then: all plots,
        even ones by it and odd ones by `tiny`, so that each is scored by an encoder that never saw its pixels.
    """
    torch.set_num_threads(1)
    plots = read_beetle(Path(data) / "change_barkbeetle")
    print("average precision: of all cases together, mean over plots")
    if odd_run is not None:
        ours, theirs = tokens(encoder_of("tiny"), plots), tokens(encoder_of(odd_run), plots)
        scores: dict[str, Callable[..., Scored]] = {
            "patches of 8 px from 25 % damage, 2 folds": partial(probe, size=8, folds=2, strengths=CHOSEN),
            "patches, 5 folds": partial(probe, size=8),
            "pixels, 2 folds": partial(probe, size=1, folds=2, strengths=CHOSEN),
            "pixels, 5 folds": partial(probe, size=1),
            "cosine of pixels": cosine,
        }
        for what, score in scores.items():
            print(f"{what:46} {crossed(ours, theirs, plots, score)}", flush=True)
        return
    for name, encode in (("tiny", encoder_of("tiny")), ("random convolutions", RandomConvolutions())):
        two = tokens(encode, plots)
        seen = np.concatenate([t.values.reshape(len(t.values), -1)[:, ::5] for p in two[::2] for t in p], axis=1)
        mean, std = seen.mean(1)[:, None, None], seen.std(1)[:, None, None]
        centred = [[Tokens(t.values - mean, t.stride, t.shape) for t in p] for p in two]
        scaled = [[Tokens((t.values - mean) / std, t.stride, t.shape) for t in p] for p in two]
        rows = {
            "patches of 8 px from 25 % damage, 5 folds": probe(two, plots, 8),
            "... 2 folds, C chosen": probe(two, plots, 8, folds=2, strengths=CHOSEN),
            "... from 10 % damage": probe(two, plots, 8, share=0.1),
            "... from 50 % damage": probe(two, plots, 8, share=0.5),
            "... of 16 px": probe(two, plots, 16),
            "... the probe sees |difference| too": probe(two, plots, 8, change=True),
            "pixels, 5 folds": probe(two, plots, 1),
            "pixels, 2 folds, C chosen": probe(two, plots, 1, folds=2, strengths=CHOSEN),
            "pixels, 5 folds, 40,000 labels, C chosen": probe(two, plots, 1, most=40000, strengths=CHOSEN),
            "cosine of pixels": cosine(two, plots),
            "cosine of pixels, odd plots only": cosine(two[1::2], plots[1::2]),
            "cosine of pixels, even plots only": cosine(two[::2], plots[::2]),
            "... centred on them": cosine(centred[::2], plots[::2]),
            "... standardised on them": cosine(scaled[::2], plots[::2]),
            "cosine of patches of 8 px": cosine(two, plots, 8),
        }
        for what, scored in rows.items():
            print(f"{name:20} {what:46} {both(*scored)}", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
