"""Which library multiplies float32 matrices on the CPU: on AMD's processors oneDNN, in place of MKL.

PyTorch's x86 builds hand `Linear` layers to MKL, which is slow on processors that are not Intel's: with oneDNN, which
PyTorch holds as well and takes for convolutions, a ViT or a Swin needs 0.55 to 0.6 of the time on an AMD EPYC
(`benchmarks/matmul.py`). The one switch there is for that, `torch.set_float32_matmul_precision("medium")`, allows
bfloat16 besides, where the processor has it. So it is set only where products stay exact to float32, which is tried.
"""

from __future__ import annotations

import functools
import platform

import torch

__all__ = ["prefer_onednn"]

#: Largest relative error of a float32 product of 512 terms; bfloat16's is a hundred times that.
_EXACT = 1e-5


@functools.cache
def prefer_onednn() -> bool:
    """Have this process multiply float32 matrices by oneDNN where that is faster and as exact; whether it does now.

    Decided once a process, and by the processor alone, so that all processes of a machine compute the same bits. Left
    alone: processors other than AMD's, processes with a GPU (whose products the switch would make coarser), and those
    in which somebody has chosen a precision already.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # chosen by newer means, beside which torch will not say
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
    """Of a product of matrices as large as those of a network, relative to its largest element."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float((a @ b - exact).abs().max() / exact.abs().max())
