"""Which device a process may use."""

from __future__ import annotations

from deo_cube.errors import DeviceError

__all__ = ["choose_device"]


def choose_device(wanted: str | None) -> str:
    """Device to use in this process: `wanted`, else the first GPU, else the CPU.

    Raises
    ------
    DeviceError
        If `wanted` is not there, or is no device.
    """
    import torch

    if wanted is None:
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise DeviceError(f"device={wanted!r} is no device: pass 'cpu', 'cuda' or 'cuda:0'") from error
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise DeviceError(f"device={wanted!r} was wanted, {found or 'no'} CUDA device(s) found: pass device='cpu'")
        return f"cuda:{device.index or 0}"
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device='mps' was wanted, but this machine has none: pass device='cpu'")
    return str(device)
