"""Hold the loaded encoders of a process, and the threads on which they run.

A GPU has one thread that uses it, so that two tasks never share its memory; the CPU has one per core, each with a
single torch thread. Dask's own threads read, stitch and write, submit their batches to these threads, and wait.
Whatever the scheduler (synchronous, threads, a cluster's worker), a device is never oversubscribed, reading overlaps
with encoding, and the arithmetic is the same: single-threaded, batch by batch.

The block that came first is served before the next one, so that blocks finish one after another and writing overlaps
with encoding as well.

Dask's resource annotations are not relied on: its default fusion drops them (dask/dask#7036).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import itertools
import logging
import multiprocessing
import os
import queue
import socket
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import dask

from deo_cube import options
from deo_cube.constants import OPENVINO_CONVERSION
from deo_cube.encoder.devices import choose_device, cpu_has_bfloat16
from deo_cube.encoder.hub import file_sha256
from deo_cube.encoder.registry import EncoderRef
from deo_cube.encoder.weights import find_weights
from deo_cube.errors import DeoCubeError, DeviceError
from deo_cube.extras import require

__all__ = [
    "CHUNK_BYTES",
    "DeviceThreads",
    "Replayed",
    "choose_device",
    "choose_runtime",
    "cpu_threads",
    "default_batch",
    "device_threads",
    "distributed_client",
    "encoder",
    "fetch_from_hub",
    "has_weights",
    "keep_freed_memory",
    "local_ref",
    "receive_chunk",
    "run_batches",
    "workers_of",
]


log = logging.getLogger("deo_cube")

# --- All kernels of an encoder launched at once: a CUDA graph per shape of batch ---
#
# An encoder is 150 to 1000 kernels, and Python takes and releases the interpreter's lock for each of them. While other
# threads read, stitch and compress blocks, that takes many times longer than the kernels themselves, and the GPU is
# idle. A graph is recorded once and launched in a single call, with the same kernels and the same numbers.

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


# --- executor of a process ---

T = TypeVar("T")
Item = TypeVar("Item", bound=Hashable)


_lock = threading.RLock()
_encoders: dict[tuple[Any, ...], Any] = {}
_device_threads: dict[str, DeviceThreads] = {}
_batch_limits: dict[tuple[str, str], int] = {}


def _forget_parent() -> None:
    """Start empty in a forked child: threads do not survive a fork, nor does a CUDA context."""
    global _lock
    _lock = threading.RLock()
    _encoders.clear()
    _device_threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def cpu_threads() -> int:
    """Return the number of cores that this process may encode on.

    `OMP_NUM_THREADS` where it was set when the process began (times the threads of a Dask worker, whose nanny sets it
    to 1), else the cores that the process may run on.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = options.OMP_NUM_THREADS
    if not given.isdigit() or int(given) < 1:
        return allowed
    threads = 1
    worker_module = sys.modules.get("distributed.worker")
    if worker_module is not None:
        try:
            threads = int(worker_module.get_worker().state.nthreads)
        except (ValueError, AttributeError):
            threads = 1
    return max(1, min(allowed, int(given) * threads))


def distributed_client() -> Any:
    """Return the Dask client of this process, or None; never imports distributed."""
    module = sys.modules.get("distributed.client")
    if module is None:
        return None
    try:
        return module.default_client()
    except ValueError:
        return None


def workers_of(client: Any) -> dict[str, Any]:
    """Return all workers of a client's cluster by address, as the scheduler knows them now.

    Not `Client.scheduler_info`: some versions of Dask return five workers of it, and in the others its answer is
    overwritten, from another thread, by one that holds no worker.
    """
    return dict(client.sync(client.scheduler.identity)["workers"])


def encoder(
    ref: EncoderRef,
    device: str,
    compiled: bool | str = False,
    precision: str = "float32",
    *,
    runtime: str = "torch",
    tile: int | None = None,
) -> Any:
    """Return the loaded encoder, built once per process, device, precision and runtime.

    `compiled` is the option ``compile``: True for `torch.compile`, or the name of one of its backends. With `precision`
    "bfloat16" the encoder is to be run under `transfer.autocast_context`. Any `runtime` other than "torch" runs tiles
    of `tile` pixels (default: the card's), and ignores `compiled`.

    Raises
    ------
    DeviceError
        If this process does not have the runtime, or it does not give the model's numbers.
    """
    by_torch = runtime == "torch"
    key = (ref.fingerprint, device, compiled if by_torch else False, precision, *(() if by_torch else (runtime, tile)))
    with _lock:
        if key not in _encoders:
            loaded: Any = local_ref(ref).load(device)
            if not by_torch:
                loaded.network = _openvino_network(ref, loaded.network, runtime, precision, tile or ref.card.tile)
            if precision == "bfloat16" and ref.card.architecture["family"] in BUILT_IN:
                # After the weights have been verified in float32.
                _cast_weights(loaded.network)
            if compiled and by_torch:
                import torch

                # After the weights have been proven on the network as it was written.
                backend: dict[str, Any] = {"backend": compiled} if isinstance(compiled, str) else {}
                network: Any = loaded.network
                network.forward_features = torch.compile(network.forward_features, **backend)
            elif GRAPHS and device.startswith("cuda") and ref.card.architecture["family"] in BUILT_IN:
                _remember_positions(loaded.network)
                loaded = Replayed(loaded)
            _encoders[key] = loaded
            log.debug("loaded %s on %s", ref.card.alias, device)
        return _encoders[key]


def _openvino_network(ref: EncoderRef, network: Any, runtime: str, precision: str, tile: int) -> Any:
    """Return a verified network with its stem and layer compiled by OpenVINO."""
    installed = _installed_openvino()
    if runtime != installed:
        raise DeviceError(
            f"the call was made with {runtime}, and this process (on {socket.gethostname()}) has {installed}: install "
            "the same version of OpenVINO on every machine, or pass runtime='torch'"
        )
    from deo_cube.encoder.network_hash import network_hash
    from deo_cube.encoder.openvino_network import OpenVINONetwork

    return OpenVINONetwork(
        ref.card,
        network,
        network_hash(network, dict(ref.sources)),
        stem=ref.stem.name,
        layer=ref.layer.name,
        tile=tile,
        precision=precision,
        threads=cpu_threads(),
    )


def _installed_openvino() -> str | None:
    """Return "openvino" with its version and that of the conversion, as stores record it; None where it is missing.

    Imports nothing.
    """
    try:
        return f"openvino {version('openvino')}+{OPENVINO_CONVERSION}"
    except PackageNotFoundError:
        return None


def choose_runtime(
    name: str, ref: EncoderRef, *, device: str | None, precision: str, tile: int, prove: bool = True
) -> str:
    """Return the runtime of a call: "torch", or "openvino" with its version.

    Parameters
    ----------
    name : {"torch", "openvino", "auto"}
        As it was passed.
    ref : EncoderRef
        The encoder.
    device : str or None
        As it was passed.
    precision : {"float32", "bfloat16"}
        Number format of matrix products.
    tile : int
        Pixels.
    prove : bool
        Whether "auto" first compiles the network and compares it with PyTorch, which takes seconds once per process.

    Raises
    ------
    MissingExtraError
        If "openvino" was passed and is not installed.
    DeviceError
        If it was passed and `device` is not the CPU.
    """
    if name == "torch":
        return name
    installed = _installed_openvino()
    if name == "openvino":
        if installed is None:
            module = require("openvino", extra="cpu", purpose="runtime='openvino'")
            installed = f"openvino {module.__version__}+{OPENVINO_CONVERSION}"
        if device not in (None, "cpu"):
            raise DeviceError(
                f"runtime='openvino' runs on the CPU, got device={device!r}: pass device='cpu', or runtime='torch'"
            )
        return installed
    # Workers of a cluster may have other versions, or none.
    if installed is None or distributed_client() is not None or choose_device(device) != "cpu":
        return "torch"
    if precision == "bfloat16" and not cpu_has_bfloat16():
        return "torch"
    if prove:
        try:
            encoder(ref, "cpu", precision=precision, runtime=installed, tile=tile)
        except DeviceError as error:
            log.warning("runtime='auto': %s is encoded by torch: %s", ref.card.alias, error)
            return "torch"
    return installed


#: Families of this package: only their linear maps and convolutions use the weights of these, and their maps depend
#: on nothing but the pixels.
BUILT_IN = ("swin", "vit", "conv")
#: Whether the kernels of these families are launched by CUDA graphs.
GRAPHS = True


def _cast_weights(network: Any) -> None:
    """Round the weights of linear maps and convolutions to bfloat16, as autocast does again for every batch.

    The numbers are autocast's; reading float32 weights, and launching a kernel for each of them, is spared.
    """
    import torch

    for module in network.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)


def _remember_positions(network: Any) -> None:
    """Interpolate the positions of a ViT once per size of tile: on a GPU it takes a third of the time of a batch."""
    if hasattr(network, "_positions"):
        network._positions = functools.lru_cache(maxsize=16)(network._positions)


def default_batch(ref: EncoderRef, tile: int, device: str) -> int:
    """Return the number of tiles to encode at once.

    On a GPU as many as 16 tiles of 320 px have pixels, which keep an H100 busy (`benchmarks/gpu`), or the card's
    number, if that is more. On the CPU as many as stay near the caches, about 1024 tokens; `benchmarks/throughput.py`
    times the bare encoder at this size beside the card's.
    """
    if device != "cpu":
        return max(ref.card.batch, 16 * 320**2 // tile**2)
    return max(1, min(ref.card.batch, 1024 // (tile // ref.layer.stride) ** 2))


#: Batches on their way to a device or on it at a time.
STAGED = 6


class DeviceThreads:
    """The threads that may use one device. Batches of the block that came first are served first."""

    def __init__(self, device: str, count: int) -> None:
        self.device = device
        self.count = count
        self._queue: queue.PriorityQueue[tuple[int, int, Future[Any], Callable[[], Any]]] = queue.PriorityQueue()
        self._priorities = itertools.count()
        self._order = itertools.count()
        #: Batches that are staged at a time, of all blocks together: the device needs the next ones, not those of
        #: every block, and each takes pinned memory on the host (slow to make) and memory there.
        self.staged = threading.Semaphore(STAGED)
        for i in range(count):
            threading.Thread(target=self._serve, name=f"deo_cube-{device}-{i}", daemon=True).start()

    def priority(self) -> int:
        """Return a number for all batches of one block; batches of blocks with smaller numbers are served first."""
        return next(self._priorities)

    def submit(self, priority: int, call: Callable[[], T]) -> Future[T]:
        """Run `call` on one of the threads, after the calls of smaller numbers."""
        future: Future[T] = Future()
        self._queue.put((priority, next(self._order), future, call))
        return future

    def _serve(self) -> None:
        import torch

        # Per calling thread, not per process: OpenMP keeps the number in the thread.
        torch.set_num_threads(1)
        while True:
            _, _, future, call = self._queue.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del future, call


#: What glibc keeps of freed memory, and the largest array that it takes from there: a batch's maps, not a cube.
_KEPT, _LARGEST = 256 * 2**20, 64 * 2**20


def keep_freed_memory() -> None:
    """Keep freed memory in this process so that the maps of the next batch reuse it.

    It changes glibc's allocator for the whole process, for good.

    Dask's nannies start workers with ``MALLOC_TRIM_THRESHOLD_=65536``. glibc then returns each map of a network to the
    system when it is freed, and takes it again, zeroed page by page: a fifth of the time of a ViT-S, more than half of
    that of `tiny` (`benchmarks/memory_reuse.py`).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, which has no such setting
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, _KEPT)  # M_TRIM_THRESHOLD
        mallopt(-3, _LARGEST)  # M_MMAP_THRESHOLD


def _may_tune() -> bool:
    """Return whether this process may be changed for good: a user allows it, or Dask started it to be a worker."""
    return bool(options.get_option("cpu_tuning")) or multiprocessing.current_process().name.startswith("Dask Worker")


def device_threads(device: str) -> DeviceThreads:
    """Return the threads of a device, started on first use."""
    with _lock:
        if device not in _device_threads:
            if device == "cpu" and _may_tune():
                keep_freed_memory()
            _device_threads[device] = DeviceThreads(device, cpu_threads() if device == "cpu" else 1)
        return _device_threads[device]


def _out_of_memory(error: BaseException) -> bool:
    import torch

    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def run_batches(
    items: Sequence[Item],
    work: Callable[[Any], Any],
    *,
    batch: int,
    device: str,
    key: str = "",
    alike: Callable[[Item], Any] | None = None,
    stage: Callable[[Sequence[Item]], Any] | None = None,
    fetch: Callable[[Any], T] | None = None,
    ahead: int | None = None,
) -> list[tuple[Sequence[Item], Any]]:
    """Run `work` over batches of `items` on the device's threads.

    Where a batch does not fit the device's memory, it is halved and tried again, and later batches of the same `key`
    stay small; a single item that does not fit is an error. Items for which `alike` differs never share a batch.

    `stage` makes the argument of `work` from a batch, and `fetch` the result from what `work` returns. Both run on the
    calling thread, while the device computes the batches before and after. At most `ahead` batches are staged at a time
    (None: all), and at most `STAGED` of all calls together.

    Returns
    -------
    list of (items, result)
        In the order of `items`.

    Raises
    ------
    DeviceError
        If not even one item fits in memory.
    """
    size = current_batch(key, device, batch)
    groups = [list(items)] if alike is None else _grouped(items, alike)
    todo: deque[Sequence[Item]] = deque(group[i : i + size] for group in groups for i in range(0, len(group), size))
    batches = _Batches(device_threads(device), work, stage, fetch)
    done: list[tuple[Sequence[Item], Any]] = []
    try:
        while todo or batches.running:
            while todo and (ahead is None or len(batches.running) < ahead) and batches.may_submit():
                part = todo.popleft()
                try:
                    batches.submit(part)
                except Exception as error:
                    todo.extend(_smaller(part, error, key, device))
            if batches.running:
                part = batches.running[0][0]
                try:
                    done.append((part, batches.result()))
                except Exception as error:
                    todo.extend(_smaller(part, error, key, device))
    finally:
        batches.cancel()
    order = {item: i for i, item in enumerate(items)}
    return sorted(done, key=lambda pair: order[pair[0][0]])


class _Batches:
    """The batches of one call that are staged or computed, oldest first, and its share of the places for them."""

    def __init__(
        self,
        threads: DeviceThreads,
        work: Callable[[Any], Any],
        stage: Callable[[Any], Any] | None,
        fetch: Callable[[Any], Any] | None,
    ) -> None:
        self._threads, self._priority = threads, threads.priority()
        self._work, self._stage, self._fetch = work, stage, fetch
        self._places = 0
        self.running: deque[tuple[Any, Future[Any]]] = deque()

    def may_submit(self) -> bool:
        """Take a place for one more batch, if there is one."""
        if self._stage is None:
            return True
        # Waits only while it holds no place itself, so that calls cannot wait for each other.
        if not self._threads.staged.acquire(blocking=self._places == 0):
            return False
        self._places += 1
        return True

    def submit(self, part: Any) -> None:
        """Stage a batch, and submit it; its place is free again if that fails."""
        try:
            staged = part if self._stage is None else self._stage(part)
            future = self._threads.submit(self._priority, functools.partial(self._work, staged))
        except BaseException:
            self._free()
            raise
        self.running.append((part, future))

    def result(self) -> Any:
        """Wait for the oldest batch, and return what it gives; its place is free afterwards."""
        _, future = self.running.popleft()
        try:
            result = future.result()
            return result if self._fetch is None else self._fetch(result)
        finally:
            self._free()

    def cancel(self) -> None:
        """Cancel what is left, and free its places."""
        for _, future in self.running:
            future.cancel()
        while self._places:
            self._free()

    def _free(self) -> None:
        if self._stage is not None:
            self._places -= 1
            self._threads.staged.release()


def _smaller(part: Sequence[Item], error: Exception, key: str, device: str) -> tuple[Sequence[Item], ...]:
    """Return the batches that take the place of one that did not fit in memory; raise any other error."""
    if not _out_of_memory(error):
        raise error
    if _forget_graphs(device):
        return (part,)  # once more, with the memory that graphs had
    if len(part) == 1:
        raise DeviceError(
            f"not even one tile fits in the memory of {device}: pass a smaller tile, a smaller model, or device='cpu'"
        ) from error
    half = (len(part) + 1) // 2
    _remember_limit(key, device, half)
    return part[:half], part[half:]


def _grouped(items: Sequence[Item], alike: Callable[[Item], Any]) -> list[list[Item]]:
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(alike(item), []).append(item)
    return list(groups.values())


def _forget_graphs(device: str) -> bool:
    """Free the memory of CUDA graphs on a device; return whether there were any."""
    with _lock:
        replayed = [e for key, e in _encoders.items() if key[1] == device and isinstance(e, Replayed)]
    # A list: each is to be asked.
    freed = any([e.forget() for e in replayed])
    if freed:
        import torch

        log.warning("out of memory on %s: encoding without CUDA graphs", device)
        torch.cuda.empty_cache()
    return freed


def current_batch(key: str, device: str, batch: int) -> int:
    """Return the number of tiles per batch, which is less than `batch` where that did not fit into memory."""
    return max(1, min(batch, _batch_limits.get((key, device), batch)))


def _remember_limit(key: str, device: str, half: int) -> None:
    import torch

    with _lock:
        before = _batch_limits.get((key, device))
        if before is None or half < before:
            _batch_limits[key, device] = half
            log.warning("out of memory on %s: batches halved to %d tiles", device, half)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


# --- Weights on nodes without the caller's files: by hash on the node, from the hub, or sent once per node ---
#
# A worker tries, in this order: the path of the call; the node's folder of sent files; and, on request of the client,
# the node's own folders and the hub. Only a file with the hash of the call's weights is used.

#: Bytes that are sent at a time.
CHUNK_BYTES = 16 * 2**20


def local_ref(ref: EncoderRef) -> EncoderRef:
    """Return `ref` with the path of its weights on this machine; unchanged where there are none."""
    if ref.weights is None or _same(Path(ref.weights), ref):
        return ref
    for path in (_sent_path(ref), _cached_path(ref)):
        if path is not None and _same(path, ref):
            return dataclasses.replace(ref, weights=str(path))
    return ref


def has_weights(ref: EncoderRef) -> bool:
    """Return whether this machine has the weights, at any path."""
    local = local_ref(ref)
    return local.weights is None or _same(Path(local.weights), local)


def fetch_from_hub(ref: EncoderRef, *, offline: bool) -> bool:
    """Find weights in this machine's folders or, unless `offline`, on the hub; note the path for other processes."""
    try:
        path = find_weights(ref.card, offline=offline)
    except DeoCubeError:
        return False
    if not _same(path, ref):
        return False
    note = _sent_path(ref).with_suffix(".path")
    _put(note, str(path).encode())
    return True


def receive_chunk(sha256: str, suffix: str, offset: int, total: int, chunk: bytes, transfer: str) -> bool:
    """Add a chunk to a file that is being sent; once it is whole and its hash is right, move it to its place."""
    place = _folder() / f"{sha256}{suffix}"
    part = place.with_name(f"{place.name}.{transfer}.part")
    part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(part, "r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(chunk)
    if offset + len(chunk) < total:
        return False
    with open(part, "rb") as file:
        right = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    if right:
        part.replace(place)
    else:
        part.unlink()
    return right


def _folder() -> Path:
    """Return the folder for sent files, of this node and user; they are large, so where Dask spills to if set."""
    base = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
    return Path(base) / f"deo_cube-{os.getuid() if hasattr(os, 'getuid') else 'user'}" / "weights"


def _sent_path(ref: EncoderRef) -> Path:
    return _folder() / f"{ref.weights_sha256}{Path(ref.weights or '').suffix}"


def _cached_path(ref: EncoderRef) -> Path | None:
    try:
        return Path(_sent_path(ref).with_suffix(".path").read_text())
    except OSError:
        return None


def _same(path: Path, ref: EncoderRef) -> bool:
    try:
        return file_sha256(path) == ref.weights_sha256
    except OSError:
        return False


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
