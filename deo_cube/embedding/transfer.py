"""Copies of batches to a device and of vectors from it, overlapped with computing.

A block's own thread cuts a batch of integers into pinned memory and copies it on a stream of its own; the device's
worker thread makes the device wait for that copy, not the host, and launches the kernels; the block's thread copies the
vectors back, again on its own stream. So the worker thread only launches work, and the device need not wait for the
host. On the CPU, where there is no bus to cross, arrays stay as they are.

The numbers do not depend on any of this. `precision` changes them by name: "bfloat16" runs the network's matrix
products in bfloat16 (autocast), pixels are made canonical and normalised in float32 before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.constants import PRECISIONS
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.devices import cpu_has_bfloat16
from deo_cube.errors import ArgumentError, DeviceError

__all__ = [
    "TOLERANCE",
    "PendingResult",
    "StagedBatch",
    "Streams",
    "check_precision",
    "fetch",
    "pending",
    "autocast_context",
    "stack",
    "stage",
    "tolerance",
]

Array = NDArray[Any]

#: What vectors may differ by from float32 on the CPU, as cosine distance: bfloat16 has 8 bits of mantissa.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def tolerance(precision: str, card: ModelCard, stem: str) -> float:
    """Return what vectors of a stem may differ by from float32, as cosine distance: what its card measured, if more."""
    measured = card.reference.bfloat16 if card.reference is not None and precision == "bfloat16" else None
    return max(TOLERANCE[precision], (measured or {}).get(stem, 0.0))


class Streams:
    """Streams, events and pinned memory of CUDA: the few operations whose order matters.

    Tests put a simulation in its place, in which an operation takes effect only when something waits for it.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def copying(self, device: Any) -> Any:
        """Return the copying stream of this thread."""
        import torch

        streams: dict[str, Any] = self._of_thread.__dict__
        if str(device) not in streams:
            streams[str(device)] = torch.cuda.Stream(device=device)
        return streams[str(device)]

    def computing(self, device: Any) -> Any:
        """Return the stream on which this thread launches kernels."""
        import torch

        return torch.cuda.current_stream(device)

    def pinned(self, shape: Sequence[int], dtype: Any) -> Any:
        """Return an empty tensor on the host that can be copied while the device computes.

        torch keeps such memory for the next batch, and hands it out again only after the copies from and to it.
        """
        import torch

        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def copy_to_device(self, host: Any, device: Any, stream: Any) -> Any:
        """Begin to copy a tensor to the device, on `stream`; return the tensor there."""
        import torch

        with torch.cuda.stream(stream):
            return host.to(device, non_blocking=True)

    def copy_to_host(self, tensor: Any, stream: Any) -> Any:
        """Begin to copy a tensor to pinned memory, on `stream`; return the tensor there."""
        import torch

        host = self.pinned(tensor.shape, tensor.dtype)
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
        return host

    def record(self, stream: Any) -> Any:
        """Return an event after all that `stream` has been given so far."""
        import torch

        # One that blocks: polling it would keep a core busy, which other blocks need to read and to write.
        event = torch.cuda.Event(blocking=True)
        event.record(stream)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """Have what `stream` is given from now on wait for `event`; the host does not wait."""
        stream.wait_event(event)

    def synchronize(self, event: Any) -> None:
        """Wait for `event` on the host."""
        event.synchronize()

    def keep(self, tensor: Any, stream: Any) -> None:
        """Keep the memory of `tensor`, once it is freed, until `stream` has done what it was given so far."""
        tensor.record_stream(stream)


#: By kind of device; others copy while the host waits.
STREAMS: dict[str, Streams] = {"cuda": Streams()}


def _streams(device: Any) -> Streams | None:
    return STREAMS.get(str(device).partition(":")[0])


def needs_copy(device: str) -> bool:
    """Return whether the device has memory of its own, so that batches must cross to it."""
    return device != "cpu"


@dataclass(frozen=True)
class StagedBatch:
    """A batch on its way to the device: arrays as they are on the CPU, else tensors there."""

    arrays: tuple[Any, ...]
    ready: Any = None
    """Event of the copy; None where the copy is done already."""

    def on_device(self) -> tuple[Any, ...]:
        """Return the batch, for the device's thread: its kernels will wait for the copy, the thread does not."""
        tensors = [a for a in self.arrays if a is not None]
        if self.ready is not None and (streams := _streams(tensors[0].device)) is not None:
            computing = streams.computing(tensors[0].device)
            streams.wait(computing, self.ready)
            for tensor in tensors:
                # Allocated on the copying stream, which would otherwise reuse the memory while kernels read it.
                streams.keep(tensor, computing)
        return self.arrays


@dataclass(frozen=True)
class PendingResult:
    """Vectors on the device, perhaps still being computed."""

    tensor: Any
    total: Any
    """Sum of all values, float32: NaN or infinite if one of them is."""
    done: Any = None
    """Event after the last kernel; None where the result is there already."""


def stack(parts: Sequence[Array], device: str) -> Array:
    """Return `parts` as one array, in pinned memory if the device has streams."""
    streams = _streams(device)
    if streams is None:
        return np.stack(parts)
    import torch

    kind: Any = torch.from_numpy(np.empty(0, parts[0].dtype)).dtype
    pinned: Array = streams.pinned((len(parts), *parts[0].shape), kind).numpy()
    np.stack(parts, out=pinned)
    return pinned


def stage(arrays: Sequence[Array | None], device: str) -> StagedBatch:
    """Begin to copy a batch to the device, as it is stored: uint16 crosses the bus in half the bytes of float32."""
    if not needs_copy(device):
        return StagedBatch(tuple(arrays))
    import torch

    hosts = [None if a is None else torch.from_numpy(a) for a in arrays]
    streams = _streams(device)
    if streams is None:
        return StagedBatch(tuple(None if h is None else h.to(device) for h in hosts))
    stream = streams.copying(device)
    there = tuple(None if h is None else streams.copy_to_device(h, device, stream) for h in hosts)
    return StagedBatch(there, streams.record(stream))


def pending(tensor: Any) -> PendingResult:
    """Mark, on the device's thread, where the kernels of `tensor` end; does not wait for them."""
    import torch

    # Adding float16 into float32 takes a CPU three times as long as converting first.
    total = tensor.float().sum() if tensor.device.type == "cpu" else tensor.sum(dtype=torch.float32)
    streams = _streams(tensor.device)
    return PendingResult(tensor, total, None if streams is None else streams.record(streams.computing(tensor.device)))


def fetch(result: PendingResult) -> tuple[Array, float]:
    """Return vectors on the host, once they are computed, and their total; waits for them on the calling thread."""
    streams = _streams(result.tensor.device)
    if result.done is None or streams is None:
        return np.asarray(result.tensor.cpu().numpy()), float(result.total)
    stream = streams.copying(result.tensor.device)
    streams.wait(stream, result.done)
    # The total too on this stream: on the computing one it would queue behind the batches of other blocks.
    hosts = [streams.copy_to_host(tensor, stream) for tensor in (result.tensor, result.total)]
    for tensor in (result.tensor, result.total):
        streams.keep(tensor, stream)
    streams.synchronize(streams.record(stream))
    return np.asarray(hosts[0].numpy()), float(hosts[1])


def check_precision(precision: str, device: str | None = None) -> None:
    """Refuse a precision that is none, or that `device` does not have.

    Raises
    ------
    ValueError
        If it is none of `PRECISIONS`.
    DeviceError
        If the device has no bfloat16, or only one that is slower than float32.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if precision == "bfloat16" and device is not None:
        why = _no_bfloat16(device)
        if why:
            raise DeviceError(f"precision='bfloat16' was requested on {device}, {why}: pass precision='float32'")


def _no_bfloat16(device: str) -> str:
    import torch

    if device == "cpu":
        why = "whose processor has no instructions for it, so that it is about ten times slower than float32"
        return "" if cpu_has_bfloat16() else why
    if not device.startswith("cuda"):
        return "where it is about ten times slower than float32"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"but {torch.cuda.get_device_name(device)} has no bfloat16"
    return ""


def autocast_context(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return the context in which the network runs: nothing for float32, autocast for bfloat16."""
    if precision == "float32":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
