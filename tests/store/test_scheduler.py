"""Which scheduler runs the blocks, and those that are not there: refused within seconds, by the argument's name."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dask
import psutil
import pytest
from distributed import LocalCluster

from deo_cube.cli import main
from deo_cube.embedding.embed import embed
from deo_cube.errors import ArgumentError, DeviceError, SchedulerError
from deo_cube.store import report, scheduler
from deo_cube.store.layout import Layout
from deo_cube.store.scheduler import choose_scheduler, connect
from deo_cube.testing import cube_at
from tests.store.test_write import SMALL


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scheduler, "FILE", 0.3)
    with dask.config.set({"distributed.comm.timeouts.connect": "400ms"}):
        yield


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("{", "not JSON"),
        ("[]", "not JSON with an address"),
        ('{"type": "Scheduler"}', "not JSON with an address"),
        ('{"address": 8786}', "names no address"),
        ('{"address": "tcp://127.0.0.1:9"}', "no Dask scheduler answers at tcp://127.0.0.1:9, the address in"),
    ],
)
def test_a_scheduler_file_that_leads_nowhere_is_refused(
    tmp_path: Path, content: str | None, found: str, quick: None
) -> None:
    file = tmp_path / "scheduler.json"
    if content is not None:
        file.write_text(content)
    start = time.monotonic()
    with pytest.raises(SchedulerError, match="scheduler=") as caught:
        connect(str(file))
    assert found in str(caught.value)
    assert time.monotonic() - start < 25  # Dask alone would wait for 30


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler.json").mkdir()
    with pytest.raises(SchedulerError, match="cannot be read.*scheduler="):
        connect(str(tmp_path / "scheduler.json"))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "foo://127.0.0.1:9", "tcp://", "tls://127.0.0.1:9"])
def test_an_address_where_no_scheduler_answers_is_refused(address: str, quick: None) -> None:
    with pytest.raises(SchedulerError, match=f"no Dask scheduler answers at {address}.*scheduler="):
        connect(address)
    assert choose_scheduler(None) == "threads"


@pytest.mark.parametrize("text", [b"", b"\0" * 200, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3])
def test_a_server_of_another_protocol_is_refused(text: bytes, quick: None) -> None:
    others: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                other, _ = server.accept()
                others.append(other)
                with contextlib.suppress(OSError):
                    other.sendall(text)

        threading.Thread(target=answer, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(SchedulerError, match="no Dask scheduler answers"):
            connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - start < 25


def test_a_file_that_is_written_a_moment_later_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        text = f'{{"address": "{cluster.scheduler_address}"}}'
        threading.Timer(0.5, lambda: file.write_text(text)).start()
        with connect(str(file)) as client:
            assert client.scheduler.address == cluster.scheduler_address


def test_the_command_names_the_flag(tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (str(tmp_path / "none.json"), "tcp://127.0.0.1:9", "slurm"):
        with pytest.raises(SystemExit) as ended:
            main(["embed", str(tmp_path), str(tmp_path / "e.zarr"), "--scheduler", given])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert given == "slurm" or "--scheduler" in error


def test_names_of_schedulers_are_those_of_dask() -> None:
    assert choose_scheduler("multiprocessing") == "processes"
    assert choose_scheduler("single-threaded") == "synchronous"
    assert choose_scheduler(None) == "threads"
    for bad in ("slurm", "distributed", "tcp://127.0.0.1:8786"):
        with pytest.raises(ArgumentError, match=f"scheduler='{bad}'"):
            choose_scheduler(bad)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A call of the command that embeds in 16 blocks on two processes."""
    import deo_cube

    cube = tmp_path / "cube.zarr"
    chunks = {"B02": {"chunks": (1, 80, 80)}}
    deo_cube.synthetic_cube(size=320, times=1, seed=1).to_zarr(cube, zarr_format=3, consolidated=False, encoding=chunks)
    call = ["embed", str(cube), str(tmp_path / "e.zarr"), "--block", "80", "--tile", "80", "--halo", "0"]
    return [sys.executable, "-m", "deo_cube", *call, "--scheduler", "processes", "--workers", "2", "--no-progress"]


@contextlib.contextmanager
def held(chunk: Path) -> Iterator[None]:
    """Put a pipe that nobody writes to in the place of a file: whoever reads it waits until killed."""
    content = chunk.read_bytes()
    chunk.unlink()
    os.mkfifo(chunk)
    try:
        yield
    finally:
        chunk.unlink()
        chunk.write_bytes(content)


@contextlib.contextmanager
def begun(command: list[str]) -> Iterator[tuple[psutil.Popen, list[psutil.Process]]]:
    """The command's process and its children, once a block is done."""
    parent = psutil.Popen(
        command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 120
        while not list(Path(command[5]).glob("progress/crc32/c/*")):
            assert parent.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        children = parent.children(recursive=True)
        assert len(children) >= 2
        yield parent, children
    finally:
        for process in (parent, *parent.children(recursive=True)) if parent.is_running() else ():
            process.kill()
        parent.wait()


@pytest.mark.slow
def test_processes_end_with_their_parent(command: list[str]) -> None:
    """A command that is killed takes its workers with it, and the same call resumes."""
    import deo_cube

    # The command cannot end before it is killed, for the last chunk of a band does not arrive.
    with held(Path(command[4]) / "B02" / "c" / "0" / "3" / "3"), begun(command) as (parent, children):
        parent.send_signal(signal.SIGKILL)
        parent.wait(60)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
    with pytest.raises(SystemExit) as ended:
        main(["threads" if word == "processes" else word for word in command[3:]])
    assert ended.value.code == 0
    assert deo_cube.verify_store(command[5]).complete


@dataclass
class Deadly:
    """A job whose process is killed at its fourth block, as the system does where memory is short."""

    block: tuple[int, int, int]

    def run(self) -> None:
        if self.block[2] == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_an_error_that_names_the_argument() -> None:
    emb = embed(cube_at(), **SMALL)
    bar = report.ProgressBar(emb, Layout.of(tuple(map(str, emb.dims)), emb.chunks), shown=False)
    gave_up: list[bool] = []
    with (
        pytest.raises(DeviceError, match="num_workers=.*block=") as caught,
        scheduler.executor("processes", 2) as (pool, slots),
    ):
        scheduler.run_blocks(
            pool, slots, [Deadly((0, 0, i)) for i in range(6)], Deadly.run, bar, lambda: gave_up.append(True)
        )
    assert gave_up == [True]
    assert "of 18 blocks are done and safe" in "".join(caught.value.__notes__)
