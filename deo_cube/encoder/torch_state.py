"""PyTorch's settings of a thread while a network is loaded, proven or converted, whatever a caller has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["plain_torch"]


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
