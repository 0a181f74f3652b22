"""Measure the seams of a model per halo: python -m benchmarks.seams MODEL [--untrained] [--size N] [--halos H ...].

Writes docs/data/seams_MODEL.json and docs/img/seam_MODEL.png. `--untrained` takes the network of the card with random
weights, for models whose weights are not at hand: what its shape does at a border, not what its training made of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch

import deo_cube
from deo_cube.encoder.card import Weights
from deo_cube.evaluate.seam import seam_report

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", nargs="?", default="tiny")
    p.add_argument("--untrained", action="store_true")
    p.add_argument("--size", type=int, default=1280, help="pixels of the synthetic scene")
    p.add_argument("--halos", type=int, nargs="+", default=[0, 8, 16, 24, 32, 48])
    p.add_argument("--docs", type=Path, default=DOCS, help="where data/ and img/ are")
    a = p.parse_args()
    card = deo_cube.card(a.model)
    model = card
    if a.untrained:
        model = dataclasses.replace(card, alias=f"{card.alias}, untrained", weights=Weights("untrained", ""))
    scene = deo_cube.synthetic_cube(size=a.size, times=1, clouds=False, gaps=False).load()
    start = time.perf_counter()
    report = seam_report(scene, model, halos=a.halos)
    print(report)
    facts = report.to_dict() | {
        "card": card.name, "card_halo": card.halo, "trained": not a.untrained, "scene": f"synthetic, {a.size} px",
        "seconds": round(time.perf_counter() - start), "threads": torch.get_num_threads(),
    }  # fmt: skip
    for folder in ("data", "img"):
        (a.docs / folder).mkdir(parents=True, exist_ok=True)
    (a.docs / "data" / f"seams_{card.alias}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    report.plot(a.docs / "img" / f"seam_{card.alias}.png")


if __name__ == "__main__":
    main()
