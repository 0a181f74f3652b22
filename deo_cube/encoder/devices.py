"""Choose the device of a process, and the library that multiplies float32 matrices on the CPU.

PyTorch's x86 builds use MKL for `Linear` layers, which is slow on processors that are not made by Intel. With oneDNN,
which PyTorch includes as well and uses for convolutions, a ViT or a Swin takes 0.55 to 0.6 of the time on an AMD EPYC
(`benchmarks/matmul.py`). The only switch for it, `torch.set_float32_matmul_precision("medium")`, also allows bfloat16
where the processor has it. So it is set only where products stay exact to float32, which is tested.
"""

from __future__ import annotations

import functools
import platform

from deo_cube.errors import DeviceError

__all__ = ["choose_device", "prefer_onednn"]

#: Largest relative error of a float32 product of 512 terms; bfloat16's is a hundred times that.
_EXACT = 1e-5


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
def prefer_onednn() -> bool:
    """Multiply float32 matrices with oneDNN in this process if that is faster and as exact; return whether it is used.

    Decided once per process, and from the processor alone, so that all processes of a machine compute the same bits.
    Nothing changes on processors other than AMD's, in processes with a GPU (whose products the switch would make
    coarser), and where a precision has been chosen already.
    """
    import torch

    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the newer interface, after which torch refuses to answer here
        return False
    if not _amd() or torch.cuda.is_available() or not torch.backends.mkldnn.is_available() or before != "highest":
        return False
    torch.set_float32_matmul_precision("medium")
    if _error() <= _EXACT:
        return True
    torch.set_float32_matmul_precision(before)
    return False


def _amd() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:
            return "AuthenticAMD" in info.read(4096)
    except OSError:
        return "AuthenticAMD" in platform.processor()


def _error() -> float:
    """Return the error of a product of matrices as large as a network's, relative to its largest element."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float((a @ b - exact).abs().max() / exact.abs().max())
