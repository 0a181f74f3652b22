"""Launch all kernels of an encoder at once: a CUDA graph per shape of batch.

An encoder is 150 to 1000 kernels, and Python takes and releases the interpreter's lock for each of them. While other
threads read, stitch and compress blocks, that takes many times longer than the kernels themselves, and the GPU is idle.
A graph is recorded once and launched in a single call, with the same kernels and the same numbers.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any

__all__ = ["Replayed"]

log = logging.getLogger("deo_cube")

#: Batches of a shape that are encoded before its graph is recorded: libraries choose their kernels in the first ones.
WARM = 2
#: Graphs per encoder. They share their memory, but for inputs and outputs; shapes beyond are encoded kernel by kernel.
MOST = 8


class Replayed:
    """An encoder on a CUDA device whose kernels are launched by graphs.

    Parameters
    ----------
    encoder : Encoder
        On the device. Its maps must depend on nothing but the pixels.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self._lock = threading.Lock()
        self._seen: Counter[Any] = Counter()
        self._graphs: dict[Any, tuple[Any, Any, Any]] = {}
        self._pool: Any = None
        self._most = MOST

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    @property
    def recorded(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    def forget(self) -> bool:
        """Free the memory of all graphs, and record none again; return whether there were any.

        Their memory belongs to them, and to nothing else, as long as they exist.
        """
        with self._lock:
            had = bool(self._graphs)
            self._graphs.clear()
            self._pool, self._most = None, 0
        return had

    def encode(self, pixels: Any) -> Any:
        """Return what the encoder's `encode` returns for a float32 tensor on its device."""
        import torch

        kind = (tuple(pixels.shape), torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        with self._lock:
            if kind not in self._graphs:
                self._seen[kind] += 1
                if self._seen[kind] <= WARM or len(self._graphs) >= self._most:
                    return self.encoder.encode(pixels)
                try:
                    self._graphs[kind] = self._recorded(pixels)
                except Exception as error:  # out of memory, or an operation that waits for the host
                    log.warning("encoding without CUDA graphs: %s", error)
                    self._most = 0
                    return self.encoder.encode(pixels)
            graph, entry, result = self._graphs[kind]
            entry.copy_(pixels)
            graph.replay()
            # The next batch overwrites the graph's own output.
            return result.clone()

    def _recorded(self, pixels: Any) -> tuple[Any, Any, Any]:
        import torch

        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        entry = pixels.clone()
        graph = torch.cuda.CUDAGraph()
        # Other threads copy and allocate meanwhile, which does not concern this graph.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = self.encoder.encode(entry)
        return graph, entry, result
