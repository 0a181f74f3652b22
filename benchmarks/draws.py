"""What the draw of the local branch's patches is worth: ``python -m benchmarks.draws --run RUN --data DATA``.

The ten-band local branch of a finished `conv` run is not trained: it is patches of the data. Here it is drawn anew, by
other seeds and with other preferences for typical patches (`--student.typical`), and the neck fitted to it; the trunk
stays. Scored without labels (cosine change of bark-beetle plots) and with them, even plots, whose pixels served
training, and odd ones apart. A minute a draw on one core; with `--land-cover-too` four.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.bundle import Encode
from benchmarks.necks import config_of
from deo_cube.encoder.registry import load_encoder
from deo_cube.evaluate.protocols import change, land_cover, level_shift
from deo_cube.evaluate.readers import read_beetle, read_terramesh
from deo_cube.train.loop import open_sources
from deo_cube.train.necks import fit_local, fit_necks
from deo_cube.train.samples import Mixture, windows_for


def main(
    run: Path, data: Path, typical: tuple[float, ...] = (0.0, 3.0), seeds: int = 3, land_cover_too: bool = False
) -> None:
    """Draw, fit and score; a row of a table each.

    Parameters
    ----------
    run : Path
        Folder of a finished run of deo_cube.train.
    data : Path
        Folder with change_barkbeetle and landcover_terramesh, and what the run was trained on.
    typical : tuple of float
        Preferences to try.
    seeds : int
        Draws of each.
    land_cover_too : bool
        Score land cover and the shift to L1C as well, patches only.
    """
    torch.set_num_threads(1)
    config = config_of(run, data)
    windows = {"ms": windows_for(Mixture(open_sources(config), config.loader, config.seed), config)["ms"]}
    encoder = load_encoder(run, device="cpu")
    network: Any = encoder.network
    plots = read_beetle(data / "change_barkbeetle")
    levels = ("L2A", "L1C") if land_cover_too else ()
    tiles = [read_terramesh(data / "landcover_terramesh", level=level) for level in levels]
    encode = Encode(encoder, "drawn anew")
    first = True
    for seed in range(seeds):
        for power in typical:
            fit_local(network, windows, seed, power)
            fit_necks(network, windows, config)
            found = {}
            for name, some in (("even", plots[::2]), ("odd", plots[1::2]), ("all", plots)):
                for s in change(encode, some, seeds=1, pixels=False):
                    found[f"{name} plots, {s.task.rpartition('/')[2]}"] = s.value
            if tiles:
                of = [*land_cover(encode, tiles[0], pixels=False), *level_shift(encode, *tiles, pixels=False)]
                found |= {s.task: s.value for s in of}
            if first:
                print("| typical | seed | " + " | ".join(found) + " |\n|---|---" + "|---" * len(found) + "|")
                first = False
            print(f"| {power:g} | {seed} | " + " | ".join(f"{v:.3f}" for v in found.values()) + " |", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
