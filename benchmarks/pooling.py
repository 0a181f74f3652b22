"""How a chip's vectors become one: python -m benchmarks.pooling --data DATA.

The mean, and what may be better or stand beside it: standard deviation, minimum, maximum, generalised mean. On EuroSAT
(1500 chips of the official split's train and val, 1000 of its test, drawn with a fixed seed) by neighbours and a linear
probe on 100 labels per class, and on the share of trees of worldwide chips (2000 train, 500 test) by ridge regression.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.evaluate.features import as_encode, encode_scenes
from deo_cube.evaluate.readers import read_eurosat, read_worldcover16
from deo_cube.evaluate.scores import Difference, Score, accuracy_counts, compare, make_score, value_counts
from deo_cube.heads.probes import choose_cases, knn, linear_probe, ridge_probe

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]


def generalised(z: Array, p: float = 3.0) -> Array:
    """Generalised mean of signed numbers: the p-th root of the mean of p-th powers, signs kept."""
    m = (np.sign(z) * np.abs(z) ** p).mean(axis=2)
    return np.asarray(np.sign(m) * np.abs(m) ** (1 / p))


#: Pooling by name, of vectors (N, D, places).
POOLINGS: dict[str, Callable[[Array], Array]] = {
    "mean": lambda z: z.mean(axis=2),
    "standard deviation": lambda z: z.std(axis=2),
    "minimum": lambda z: z.min(axis=2),
    "maximum": lambda z: z.max(axis=2),
    "generalised mean, p = 3": generalised,
    "mean and standard deviation": lambda z: np.concatenate([z.mean(axis=2), z.std(axis=2)], axis=1),
    "mean, minimum and maximum": lambda z: np.concatenate([z.mean(axis=2), z.min(axis=2), z.max(axis=2)], axis=1),
}


@dataclass(frozen=True)
class Pooling:
    """Compare poolings of a model's vectors."""

    data: Path
    """Folder with eurosat_rgb and places/gcp_worldcover16."""
    model: str = "tiny"
    """Name of the model, or folder of a run."""
    out: Path = ROOT / "docs" / "data" / "pooling.json"
    """File of the scores."""


def measure(job: Pooling) -> dict[str, Any]:
    """Scores of each pooling, and their differences from the mean."""
    encode = as_encode(job.model, device="cpu")
    chips = read_eurosat(job.data / "eurosat_rgb", spatial=True)
    assert chips.train is not None
    rng = np.random.default_rng(0)
    train, test = (rng.permutation(np.flatnonzero(side))[:n] for side, n in ((chips.train, 1500), (~chips.train, 1000)))
    images = chips.images[np.concatenate([train, test])]
    maps = [np.asarray(encode(images[i : i + 50], chips.bands)) for i in range(0, len(images), 50)]
    z = np.concatenate([m.reshape(*m.shape[:2], -1) for m in maps])
    _, group = np.unique(chips.groups[test], return_inverse=True)
    scenes, fits = read_worldcover16(job.data / "places" / "gcp_worldcover16", limit=2500)
    trees = np.array([(s.label == 1).mean() for s in scenes])
    world = np.stack([t.values.reshape(len(t.values), -1) for t in encode_scenes(encode, scenes)])
    scores: dict[str, list[Score]] = {}
    for name, pool in POOLINGS.items():
        a, b = pool(z[: len(train)]), pool(z[len(train) :])
        y, truth = chips.labels[train], chips.labels[test]
        some = choose_cases(y, 100, 0)
        found = {"5 neighbours": knn(a, y, b), "100 labels per class": linear_probe(a[some], y[some]).predict(b)}
        x = pool(world)
        predicted = ridge_probe(x[fits], trees[fits], groups=np.flatnonzero(fits)).predict(x[~fits])
        counts = value_counts(trees[~fits], predicted.clip(0, 1), np.arange((~fits).sum()), int((~fits).sum()))
        common = {"labels": len(train), "seconds": 0.0, "protocol": __doc__ or ""}
        scores[name] = [
            *(
                make_score(
                    name, f"EuroSAT, {task}", "accuracy",
                    [accuracy_counts(truth, f, group, int(group.max()) + 1)], tested=len(test), **common,
                )
                for task, f in found.items()
            ),
            make_score(name, "tree cover", "R2", [counts], tested=len(counts), **common),
        ]  # fmt: skip
        print(name, *(f"{s.task} {s.value:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in scores[name]), flush=True)
    differences: list[Difference] = [
        compare(own, mean)
        for name, several in scores.items()
        if name != "mean"
        for own, mean in zip(several, scores["mean"], strict=True)
    ]
    return {
        "model": encode.card.name,
        "scores": [s.to_dict() | {"protocol": ""} for several in scores.values() for s in several],
        "differences": [
            {
                "task": d.task,
                "pooling": d.a,
                "value": round(d.value, 4),
                "interval95": [round(d.low, 4), round(d.high, 4)],
            }
            for d in differences
        ],
    }


if __name__ == "__main__":
    import torch
    import tyro

    torch.set_num_threads(1)
    job = tyro.cli(Pooling, prog="python -m benchmarks.pooling", description=__doc__)
    job.out.write_text(json.dumps(measure(job), indent=1) + "\n", encoding="utf-8")
    sys.exit(0)
