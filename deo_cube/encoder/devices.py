"""Choose the device of a process."""

from __future__ import annotations

from deo_cube.errors import DeviceError

__all__ = ["choose_device"]


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
