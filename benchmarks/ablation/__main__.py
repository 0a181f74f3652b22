"""`python -m benchmarks.ablation --out DIR --data DATA [--arms ...] [--seeds 0 1 2] [--steps N]`: train and score arms.

Run it again to go on; start it twice to use two cores.
`python -m benchmarks.ablation.report --runs DIR` makes the page.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from .arms import ARMS
from .runs import run_all


def main(
    out: Path,
    data: Path = Path("../shared/data"),
    arms: tuple[str, ...] = tuple(ARMS),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 200,
    keep: bool = False,
) -> None:
    """Train and score every arm with every seed; what is done already is skipped.

    Parameters
    ----------
    out
        Folder of the results, one JSON a run.
    data
        Folder of the data sets.
    arms
        Which arms.
    seeds
        Which seeds.
    steps
        Optimisation steps of 16 samples.
    keep
        Keep the folders of the runs, which are models.
    """
    torch.set_num_threads(1)
    done = run_all(out, data=data, arms=arms, seeds=seeds, steps=steps, keep=keep)
    print(f"{len(done)} of {len(arms) * len(seeds)} runs are done in {out}")


if __name__ == "__main__":
    tyro.cli(main)
