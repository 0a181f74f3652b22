"""The threads of a device: their number, oldest block first; memory that does not suffice halves the batch."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from deo_cube.embedding import process
from deo_cube.encoder.registry import resolve
from deo_cube.errors import DeviceError


@pytest.fixture(autouse=True)
def forget_limits() -> None:
    process._batch_limits.clear()


def test_batches_come_back_in_order_with_their_items() -> None:
    got = process.run_batches(list(range(10)), lambda part: [i * i for i in part], batch=3, device="cpu")
    assert [list(items) for items, _ in got] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [value for _, part in got for value in part] == [i * i for i in range(10)]


def test_no_more_run_at_once_than_there_are_threads() -> None:
    threads = process.DeviceThreads("cpu", 2)
    running, most, guard, pair = 0, 0, threading.Lock(), threading.Barrier(2)

    def work() -> None:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        pair.wait(60)
        with guard:
            running -= 1

    futures = [threads.submit(threads.priority(), work) for _ in range(12)]
    for f in futures:
        f.result()
    assert most == 2


def test_the_block_that_came_first_is_served_first() -> None:
    threads = process.DeviceThreads("cpu", 1)
    gate, order = threading.Event(), []
    first, second = threads.priority(), threads.priority()
    threads.submit(-1, gate.wait)
    late = [threads.submit(second, lambda i=i: order.append(("second", i))) for i in range(2)]
    early = [threads.submit(first, lambda i=i: order.append(("first", i))) for i in range(2)]
    gate.set()
    for f in late + early:
        f.result()
    assert order == [("first", 0), ("first", 1), ("second", 0), ("second", 1)]


def test_each_thread_of_a_device_uses_one_torch_thread() -> None:
    assert process.device_threads("cpu").submit(0, torch.get_num_threads).result() == 1


FAULTS = """
import resource, sys, torch
from deo_cube import set_options
from deo_cube.embedding import process

def maps():
    torch.set_num_threads(1)
    x = torch.zeros(4 * 2**20)
    for _ in range(20):
        x = x + 1

def faults(run):
    run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults(maps)
set_options(cpu_tuning=sys.argv[1] == "True")
threads = process.device_threads("cpu")
print(plain, faults(lambda: threads.submit(0, maps).result()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
@pytest.mark.parametrize("tuned", [True, False])
def test_the_allocator_is_changed_only_where_it_may_be(tuned: bool) -> None:
    """Twenty maps of 16 MiB: taken anew each time, as under a nanny's settings, they cost 4096 page faults each."""
    env = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", FAULTS, str(tuned)]
    run = subprocess.run(call, env=env, capture_output=True, text=True, check=True)
    plain, on_ours = map(int, run.stdout.split())
    assert plain > 50_000
    assert (on_ours < plain / 5) == tuned


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_a_worker_of_a_nanny_may_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[None] = []
    monkeypatch.setattr(process, "keep_freed_memory", lambda: changed.append(None))
    for name in ("MainProcess", "Dask Worker process (from Nanny)"):
        monkeypatch.setattr(multiprocessing.current_process(), "name", name)
        monkeypatch.setattr(process, "_device_threads", {})
        process.device_threads("cpu")
    assert len(changed) == 1


def test_out_of_memory_halves_the_batch_says_so_and_stays_small(caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def work(part: Sequence[int]) -> list[int]:
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(part)

    with caplog.at_level(logging.WARNING, "deo_cube"):
        got = process.run_batches(list(range(9)), work, batch=8, device="cpu", key="model")
    assert [v for _, part in got for v in part] == list(range(9))
    assert "batches halved to 2 tiles" in caplog.text
    sizes.clear()
    process.run_batches(list(range(4)), work, batch=8, device="cpu", key="model")
    assert sizes == [2, 2]


def test_a_single_tile_that_does_not_fit_is_an_error_that_says_what_to_pass() -> None:
    def work(part: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="not even one tile.*smaller tile"):
        process.run_batches([1, 2, 3], work, batch=4, device="cpu")


def test_errors_of_the_model_are_raised_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        process.run_batches([1], lambda part: 1 // 0, batch=1, device="cpu")
    assert process.run_batches([1], lambda part: 5, batch=1, device="cpu")[0][1] == 5


def test_devices_that_are_not_there_are_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no CUDA device.*device='cpu'"):
            process.choose_device("cuda")
    with pytest.raises(DeviceError, match="device="):
        process.choose_device("gpu7")
    assert process.choose_device("cpu") == "cpu"


def test_cpu_threads_follow_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deo_cube.options.OMP_NUM_THREADS", "1")
    assert process.cpu_threads() == 1
    monkeypatch.setattr("deo_cube.options.OMP_NUM_THREADS", "")
    assert process.cpu_threads() == len(os.sched_getaffinity(0))


AFTER_A_CLUSTER = """
import os
from deo_cube.embedding.process import cpu_threads
from distributed import LocalCluster

if __name__ == "__main__":
    before = cpu_threads()
    LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, host="127.0.0.1").close()
    print(before, cpu_threads(), os.environ["OMP_NUM_THREADS"])
"""


def test_a_local_cluster_leaves_the_process_its_cores(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(AFTER_A_CLUSTER)
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    run = subprocess.run([sys.executable, tmp_path / "main.py"], env=env, capture_output=True, text=True, check=True)
    before, after, setting = run.stdout.split()
    assert setting == "1"  # what distributed does to its parent, which is what this is about
    assert after == before


def test_an_encoder_is_loaded_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ref = resolve("means")
    loads = []
    real = type(ref).load
    monkeypatch.setattr(type(ref), "load", lambda self, device: loads.append(device) or real(self, device))
    process._encoders.clear()
    threads = [threading.Thread(target=process.encoder, args=(ref, "cpu")) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert loads == ["cpu"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    assert process.run_batches([1], lambda part: 1, batch=1, device="cpu")
    pid = os.fork()
    if pid == 0:
        ok = process.run_batches([1], lambda part: 2, batch=1, device="cpu")[0][1] == 2
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
