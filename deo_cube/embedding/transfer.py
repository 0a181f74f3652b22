"""Pixels onto a device and vectors off it, while it computes: what a block's thread does around the device's lane.

The block's own thread cuts a batch of integers into pinned memory and copies it over on a stream of its own; the lane
waits for that copy on the device, not on the host, and starts the kernels; a third step, on the block's thread again,
copies the vectors back. So the lane only launches work, and the device need not wait for the host. On the CPU, where
there is no bus to cross, arrays stay as they are.

The numbers do not depend on any of this. What `precision` changes, it changes by name: "bfloat16" runs the network's
matrix products in bfloat16 (autocast), pixels are made canonical and normalised in float32 before.
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
from deo_cube.errors import ArgumentError, DeviceError

__all__ = [
    "PRECISIONS",
    "TOLERANCE",
    "Left",
    "Staged",
    "check_precision",
    "fetch",
    "leave",
    "numbers",
    "precise",
    "stack",
    "stage",
    "total",
]

Array = NDArray[Any]

#: What vectors may differ by from float32 on the CPU, as cosine distance: bfloat16 has 8 bits of mantissa.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}

_streams = threading.local()


def apart(device: str) -> bool:
    """Whether the device has memory of its own, so that batches must cross to it."""
    return device != "cpu"


@dataclass(frozen=True)
class Staged:
    """A batch on its way to the device: arrays as they are on the CPU, else tensors there."""

    arrays: tuple[Any, ...]
    ready: Any = None
    """Event of the copy; None where the copy is done already."""

    def take(self) -> tuple[Any, ...]:
        """The batch, for the lane: its kernels will wait for the copy, the lane does not."""
        if self.ready is not None:
            import torch

            current = torch.cuda.current_stream(next(a.device for a in self.arrays if a is not None))
            current.wait_event(self.ready)
            for a in self.arrays:
                if a is not None:
                    # Allocated on the copying stream; not to be reused before this one is through with it.
                    a.record_stream(current)
        return self.arrays


@dataclass(frozen=True)
class Left:
    """Vectors that the lane has left on the device, perhaps still being computed."""

    tensor: Any
    done: Any = None
    """Event after the last kernel; None where the result is there already."""


def stack(parts: Sequence[Array], device: str) -> Array:
    """`parts` as one array, in pinned memory if the device is a GPU of CUDA: what can be copied while it computes."""
    if not device.startswith("cuda"):
        return np.stack(parts)
    import torch

    shape = (len(parts), *parts[0].shape)
    kind: Any = torch.from_numpy(np.empty(0, parts[0].dtype)).dtype
    # torch keeps pinned blocks for the next batch, and knows when a copy has let go of one.
    pinned: Array = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
    np.stack(parts, out=pinned)
    return pinned


def stage(arrays: Sequence[Array | None], device: str) -> Staged:
    """Begin to copy a batch to the device, as it is stored: uint16 crosses the bus in half the bytes of float32."""
    if not apart(device):
        return Staged(tuple(arrays))
    import torch

    hosts = [None if a is None else torch.from_numpy(a) for a in arrays]
    if not device.startswith("cuda"):
        return Staged(tuple(None if h is None else h.to(device) for h in hosts))
    stream = _stream(device)
    with torch.cuda.stream(stream):
        there = tuple(None if h is None else h.to(device, non_blocking=True) for h in hosts)
        return Staged(there, stream.record_event())


def leave(tensor: Any) -> Left:
    """Mark, on the lane, where the kernels of `tensor` end; does not wait for them."""
    if tensor.device.type != "cuda":
        return Left(tensor)
    import torch

    return Left(tensor, torch.cuda.current_stream(tensor.device).record_event())


def total(tensor: Any) -> Any:
    """The sum of all values, in float32 and where they are: NaN or infinite if one of them is. Waits for nothing."""
    import torch

    return tensor.sum(dtype=torch.float32)


def numbers(scalars: Sequence[Any]) -> list[float]:
    """Scalars of one device, fetched together."""
    import torch

    return [float(v) for v in torch.stack(list(scalars)).tolist()] if scalars else []


def fetch(left: Left) -> Array:
    """Vectors on the host, once they are computed; waits for them on the calling thread."""
    if left.done is None:
        return np.asarray(left.tensor.cpu().numpy())
    import torch

    stream = _stream(str(left.tensor.device))
    stream.wait_event(left.done)
    with torch.cuda.stream(stream):
        host = torch.empty(left.tensor.shape, dtype=left.tensor.dtype, pin_memory=True)
        host.copy_(left.tensor, non_blocking=True)
        left.tensor.record_stream(stream)
    stream.synchronize()
    return np.asarray(host.numpy())


def _stream(device: str) -> Any:
    """The copying stream of this thread and device."""
    import torch

    kept = _streams.__dict__
    if device not in kept:
        kept[device] = torch.cuda.Stream(device=device)
    return kept[device]


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
            raise DeviceError(f"precision='bfloat16' was wanted on {device}, {why}: pass precision='float32'")


def _no_bfloat16(device: str) -> str:
    import torch

    if not device.startswith("cuda"):
        return "where it is about ten times slower than float32"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"but {torch.cuda.get_device_name(device)} has no bfloat16"
    return ""


def precise(precision: str, device: str) -> AbstractContextManager[Any]:
    """What the network runs in: nothing for float32, autocast for bfloat16."""
    if precision == "float32":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
