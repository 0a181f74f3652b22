"""Float32 products on the CPU by MKL and by oneDNN: processor milliseconds a tile, one thread. Random weights.

`python -m benchmarks.matmul`. See `deo_cube.encoder.torch_settings`.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import torch

import deo_cube
from deo_cube.encoder.registry import describe_timm

CASES = {
    "vitb": (256, 1),
    "swinb": (384, 1),
    "vit_small_patch16_224": (224, 4),
    "convnext_tiny": (256, 2),
    "tiny": (320, 1),
}


def encoder_of(name: str) -> Any:
    """The encoder, untrained where its weights are not at hand."""
    if name in ("vitb", "swinb"):
        card = deo_cube.card(name)
        weights = dataclasses.replace(card.weights, status="untrained", file="", repo=None, revision=None)
        card = dataclasses.replace(card, name=f"untrained.{name}", alias=f"untrained-{name}", weights=weights)
        return deo_cube.load_encoder(deo_cube.register_encoder(card), device="cpu")
    if name != "tiny":
        card = describe_timm(f"bench-{name}", name, bands=deo_cube.card("tiny").bands, tile=CASES[name][0], halo=0)
        return deo_cube.load_encoder(deo_cube.register_encoder(card), device="cpu")
    return deo_cube.load_encoder(name, device="cpu")


def main(rounds: int = 5) -> None:
    """Print the table; both take turns."""
    torch.set_num_threads(1)
    print("| model | MKL | oneDNN | ratio | largest difference |\n|---|---|---|---|---|")
    for name, (tile, batch) in CASES.items():
        encoder = encoder_of(name)
        noise = torch.rand(batch, len(encoder.stem.bands), tile, tile) * 3000
        seconds: dict[str, list[float]] = {"highest": [], "medium": []}
        maps = {}
        for turn in range(rounds + 1):
            for how, found in seconds.items():
                torch.set_float32_matmul_precision(how)
                start = time.thread_time()
                maps[how] = encoder.encode(noise)
                if turn:
                    found.append((time.thread_time() - start) / batch)
        mkl, onednn = (1000 * statistics.median(s) for s in seconds.values())
        apart = float((maps["highest"] - maps["medium"]).abs().max() / maps["highest"].abs().max())
        print(f"| {name} | {mkl:.0f} ms | {onednn:.0f} ms | {onednn / mkl:.2f} | {apart:.0e} |", flush=True)


if __name__ == "__main__":
    main()
