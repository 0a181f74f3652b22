"""Samples a second that the loader reads: ``python -m benchmarks.loader SOURCE [SOURCE ...]``, as for training."""

from __future__ import annotations

import argparse
import time

from deo_cube.train.config import Loader
from deo_cube.train.samples import Mixture, batches, open_source


def main() -> None:
    """Time batches read in the loop and by workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--window", type=int, default=80)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=20)
    a = parser.parse_args()
    sources = tuple(open_source(s) for s in a.sources)
    kinds = {s.kind for s in sources}
    sizes = (a.batch if "ms" in kinds else 0, a.batch if "rgb" in kinds else 0)
    for workers in (0, 1, 2):
        mixture = Mixture(sources, Loader(window=a.window, workers=workers), 0)
        reader = batches(mixture, sizes, start=0, stop=a.batches + 1)
        next(reader)  # opening files and starting workers is not reading
        began = time.perf_counter()
        for _ in reader:
            pass
        rate = sum(sizes) * a.batches / (time.perf_counter() - began)
        print(f"{workers} workers: {rate:.0f} samples/s of {a.window} px")


if __name__ == "__main__":
    main()
