"""Time the encoder alone, on batches that are on the device."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu.setting import Report, card_of, rate
from deo_cube.embedding import process, transfer
from deo_cube.encoder.registry import resolve
from deo_cube.errors import DeviceError

__all__ = ["flops_per_tile", "matrix_rate", "measure"]


def matrix_rate(device: str, precision: str, n: int) -> float:
    """Return floating-point operations per second of a product of two n x n matrices of random numbers."""
    a = torch.randn(n, n, device=device, dtype=getattr(torch, precision))
    return 2 * n**3 * rate(lambda: a @ a, device, 0.3)


def flops_per_tile(encoder: Any, tile: int, device: str) -> float:
    """Return the operations of a forward pass of one tile, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    plain = getattr(encoder, "encoder", encoder)  # a graph hides its operations
    with FlopCounterMode(display=False) as counter:
        plain.encode(torch.zeros(1, len(encoder.stem.bands), tile, tile, device=device))
    return float(counter.get_total_flops())


def measure(report: Report, device: str) -> None:
    """Time each model over precisions and batch sizes, then the best batch through torch.compile."""
    config = report.config
    for model in config.models:
        ref = resolve(card_of(model))
        tile = config.tile or ref.card.tile
        for precision in config.precisions:
            try:
                transfer.check_precision(precision, device)
            except DeviceError as error:
                print(f"skipped: {model} in {precision}: {error}", flush=True)
                continue
            if report.late(f"encoder {model} {precision}"):
                continue
            encoder = process.encoder(ref, device)
            chip = matrix_rate(device, precision, config.matrix)
            flops = flops_per_tile(encoder, tile, device)
            rates: dict[int, float] = {}
            launches: dict[int, float] = {}
            for batch in config.batches:
                noise = torch.rand(batch, len(encoder.stem.bands), tile, tile, device=device) * 3000
                try:
                    rates[batch], launches[batch] = _timed(encoder, noise, precision, device)
                except torch.OutOfMemoryError:
                    break
            best = max(rates, key=lambda n: rates[n])
            row = {
                "model": ref.card.alias, "precision": precision, "tile": tile, "gflop_per_tile": flops / 1e9,
                "tiles_per_s": rates, "launch_ms": launches, "matrix_tflop_per_s": chip / 1e12,
                "of_matrix_rate": flops * rates[best] / chip,
            }  # fmt: skip
            if config.compile and not report.late(f"encoder {model} {precision} compiled"):
                begun = time.perf_counter()
                compiled = process.encoder(ref, device, True)
                noise = torch.rand(best, len(encoder.stem.bands), tile, tile, device=device) * 3000
                try:
                    row["compiled_tiles_per_s"], row["compiled_launch_ms"] = _timed(compiled, noise, precision, device)
                    row["compiled_batch"] = best
                except Exception as error:  # a backend's own errors are of many types
                    row["compiled_error"] = f"{type(error).__name__}: {error}"[:500]
                row["compile_s"] = time.perf_counter() - begun
            report.add("encoder", row)


def _timed(encoder: Any, noise: torch.Tensor, precision: str, device: str) -> tuple[float, float]:
    """Tiles per second, and milliseconds that the host needs to launch a batch's kernels."""

    def forward() -> None:
        with transfer.autocast_context(precision, device):
            encoder.encode(noise)

    tiles = len(noise) * rate(forward, device)
    start = time.perf_counter()
    forward()
    launched = time.perf_counter() - start
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return tiles, launched * 1e3
