"""Choose the device of a process."""

from __future__ import annotations

import functools
from pathlib import Path

from deo_cube.errors import DeviceError

__all__ = ["choose_device", "cpu_has_bfloat16"]

#: Names of instructions that multiply bfloat16 matrices, as Linux lists them: of x86 and of Arm.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def choose_device(device: str | None) -> str:
    """Return the device to use in this process: `device`, else the first GPU, else the CPU.

    Raises
    ------
    DeviceError
        If this process has no such device, or the text does not name one.
    """
    import torch

    if device is None:
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device={device!r} is not a device: pass 'cpu', 'cuda' or 'cuda:0'") from error
    if named.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (named.index or 0) >= count:
            raise DeviceError(f"device={device!r}: this machine has {count or 'no'} CUDA device(s), pass device='cpu'")
        return f"cuda:{named.index or 0}"
    if named.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device='mps': this machine has no MPS device, pass device='cpu'")
    return str(named)


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 matrices by instructions of its own.

    Others emulate them, which takes about ten times as long as float32. False where the system does not list them.
    """
    try:
        # On machines of many cores the list is repeated for each of them.
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as info:
            return not _BFLOAT16.isdisjoint(info.read(16384).split())
    except OSError:
        return False
