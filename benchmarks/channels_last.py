"""`tiny` with the channels of a pixel side by side in memory, and the pixels of a channel: `benchmarks.channels_last`.

``python -m benchmarks.channels_last``: one thread, one tile, both orders in turn; medians, and the largest difference
of the vectors. PyTorch vectorises depth-wise convolutions and means over channels, which pays only where these lie
together.
"""

from __future__ import annotations

import statistics
import time
from typing import Any
from unittest import mock

import torch
import tyro

from deo_cube.encoder.networks import conv
from deo_cube.encoder.registry import load_encoder


def main(tile: int = 320, rounds: int = 15) -> None:
    """Print a line an order of memory.

    Parameters
    ----------
    tile : int
        Pixels.
    rounds : int
        Times that each is timed.
    """
    torch.set_num_threads(1)
    network: Any = load_encoder("tiny", device="cpu").network
    x = torch.randn(1, 10, tile, tile, generator=torch.Generator().manual_seed(0))
    orders = {"channels last": conv.channels_last, "channels first": lambda x: x}
    seconds: dict[str, list[float]] = {name: [] for name in orders}
    vectors: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, order in orders.items():
                with mock.patch.object(conv, "channels_last", order):
                    start = time.perf_counter()
                    vectors[name] = network.forward_features(x, "ms", ("fused",))["fused"]
                    seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        print(f"{name:16} {1e3 * statistics.median(times[1:]):6.0f} ms a tile of {tile} px")
    a, b = vectors.values()
    print(f"largest difference {(a - b).abs().max().item():.1g}, largest number {a.abs().max().item():.1f}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
