"""Change PyTorch's settings while an encoder runs or is loaded, and only then.

`plain_torch` sets aside what a caller has set for its thread. `encoder_products` decides how float32 matrices are
multiplied.

On the CPU: PyTorch's x86 builds hand `Linear` layers to MKL, which is slow on processors that are not Intel's. With
oneDNN, which PyTorch holds as well and takes for convolutions, a ViT or a Swin needs 0.55 to 0.6 of the time on an AMD
EPYC (`benchmarks/matmul.py`). The one switch for that, `torch.set_float32_matmul_precision("medium")`, allows bfloat16
besides, where the processor has it. So it is set only where products stay exact to float32, which is tried first.

On a GPU: PyTorch rounds the inputs of float32 convolutions to TF32 (10 bits of mantissa) unless it is asked not to, and
those of matrix products where a user has allowed it. Vectors then differ from the CPU's by 3e-4 of the largest; in
float32 by 2e-6 (`benchmarks/gpu`). Both are switched off, so that "float32" means the same everywhere.

PyTorch has the switches for products per process, not per thread. They are set while at least one thread encodes and
restored when the last one ends. What a user multiplies before and after is untouched; what another thread multiplies at
the same moment is computed the same way: exact to float32, but perhaps not to the same last bit.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["encoder_products", "plain_torch", "prefer_onednn"]

#: Largest relative error of a float32 product of 512 terms; bfloat16's is a hundred times that.
_EXACT = 1e-5


@contextlib.contextmanager
def plain_torch(device: str | torch.device = "cpu") -> Iterator[None]:
    """Run the block without the caller's autocast, default device and inference mode.

    Parameters
    ----------
    device : str or device
        Where the network computes.
    """
    kind = torch.device(device).type
    with torch.device("cpu"), torch.inference_mode(False), torch.autocast(kind, enabled=False):
        yield


class _SharedSwitch:
    """A setting of the process that threads hold together: set by the first, restored by the last.

    Parameters
    ----------
    read : callable
        Returns the setting; raises RuntimeError where it cannot be known.
    write : callable
        Changes it.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self._read, self._write = read, write
        self._lock = threading.Lock()
        self._holders = 0
        self._before: Any = None
        self._changed = False

    @contextlib.contextmanager
    def held(self, value: Any, only: Any = None) -> Iterator[None]:
        """Hold the setting at `value`; with `only`, if it is that now, so that what a user chose is left alone."""
        with self._lock:
            if self._holders == 0:
                self._before = self._known()
                self._changed = self._before not in (None, value) and only in (None, self._before)
                if self._changed:
                    self._write(value)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                # Another value than ours was chosen by another thread meanwhile, and is to stay.
                if self._holders == 0 and self._changed and self._known() == value:
                    self._write(self._before)

    def _known(self) -> Any:
        try:
            return self._read()
        except RuntimeError:  # chosen by newer means, beside which torch does not say
            return None

    def restore_after_fork(self) -> None:
        """Restore the setting in a forked child, where the threads that hold it are gone."""
        if self._holders and self._changed:
            self._write(self._before)
        self._lock, self._holders = threading.Lock(), 0


def _set_convolutions(value: bool) -> None:
    torch.backends.cudnn.allow_tf32 = value


_products = _SharedSwitch(
    lambda: torch.get_float32_matmul_precision(), lambda value: torch.set_float32_matmul_precision(value)
)
_convolutions = _SharedSwitch(lambda: torch.backends.cudnn.allow_tf32, _set_convolutions)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_products.restore_after_fork)
    os.register_at_fork(after_in_child=_convolutions.restore_after_fork)


@contextlib.contextmanager
def encoder_products(device: torch.device | str) -> Iterator[None]:
    """Multiply float32 matrices as an encoder on `device` does; restores the process's settings after it.

    Threads may enter it at once, and again.
    """
    kind = torch.device(device).type
    if kind == "cpu" and _onednn_is_faster():
        with _products.held("medium", only="highest"):
            yield
    elif kind == "cuda":
        with _products.held("highest"), _convolutions.held(False):
            yield
    else:
        yield


def prefer_onednn() -> bool:
    """Have this whole process multiply as `encoder_products` does on the CPU, for good; return whether it does now.

    For processes of which training is the only work.
    """
    try:
        if torch.get_float32_matmul_precision() == "highest" and _onednn_is_faster():
            torch.set_float32_matmul_precision("medium")
            return True
    except RuntimeError:  # chosen by newer means, beside which torch does not say
        pass
    return False


@functools.cache
def _onednn_is_faster() -> bool:
    """Return whether oneDNN is faster than MKL here, and as exact.

    Decided once per process, and by the processor alone, so that all processes of a machine compute the same bits. Not
    so on processors other than AMD's, and in processes with a GPU, whose products the switch would make coarser.
    """
    if not _amd() or torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    with _products.held("medium", only="highest"):
        return _error() <= _EXACT


def _amd() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:
            return "AuthenticAMD" in info.read(4096)
    except OSError:
        return "AuthenticAMD" in platform.processor()


def _error() -> float:
    """Return the error of a product of matrices as large as a network's, relative to its largest element."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float((a @ b - exact).abs().max() / exact.abs().max())
