"""Choose what runs the blocks, and connect to a Dask scheduler by its address or file, or refuse within seconds."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from pathlib import Path
from typing import Any

import dask

from deo_cube.embedding import process
from deo_cube.errors import ArgumentError, SchedulerError
from deo_cube.extras import require
from deo_cube.paths import local_path

__all__ = ["choose_scheduler", "connect", "is_address"]

#: Seconds to wait for a file that a scheduler which was just started has not written yet.
FILE = 5.0
#: Seconds to wait for an answer, where Dask's `distributed.comm.timeouts.connect` has its default.
ANSWER = 10.0


#: Other names that Dask gives its schedulers.
NAMES = {
    "threading": "threads", "sync": "synchronous", "single-threaded": "synchronous", "multiprocessing": "processes",
    "dask.distributed": "distributed",
}  # fmt: skip


def choose_scheduler(scheduler: str | None) -> str:
    """Return ``threads``, ``processes``, ``synchronous`` or ``distributed``.

    None selects the cluster of this process's client if there is one, else Dask's configured scheduler, else threads.

    Raises
    ------
    ArgumentError
        For any other name, or ``distributed`` without a client.
    """
    client = process.distributed_client()
    default = "distributed" if client is not None else dask.config.get("scheduler", "threads")
    kind = str(default if scheduler is None else scheduler)
    kind = NAMES.get(kind, kind)
    if is_address(kind):
        raise ArgumentError(
            f"scheduler={kind!r} is an address: connect to it before the call, "
            f"client = dask.distributed.Client({kind!r}), and leave scheduler= out"
        )
    if kind not in ("threads", "processes", "synchronous", "distributed"):
        raise ArgumentError(
            f"scheduler={kind!r} is not known: expected threads, processes, synchronous or distributed (a client's "
            "cluster); on the command line also an address (tcp://HOST:8786) or a scheduler's file ending in .json"
        )
    if kind == "distributed" and client is None:
        require("distributed", extra="cluster", purpose="scheduler='distributed'")
        raise ArgumentError(
            "scheduler='distributed' needs a client, and this process has none: dask.distributed.Client(...) before "
            "the call, or on the command line the address, --scheduler tcp://HOST:8786"
        )
    return kind


def is_address(scheduler: str) -> bool:
    """Return whether a text names a scheduler by its address or file, and not one of Dask's local ones."""
    return "://" in scheduler or scheduler.lower().endswith(".json")


def connect(scheduler: str) -> Any:
    """Return a client of the scheduler at an address (``tcp://host:8786``) or in a file (``scheduler.json``).

    Parameters
    ----------
    scheduler : str

    Returns
    -------
    distributed.Client
        Not this process's default: ``with client.as_current():`` makes it that of a block of code.

    Raises
    ------
    MissingExtraError
        Without the extra ``cluster``.
    SchedulerError
        If the file is missing, cannot be read or names no address; if no Dask scheduler answers.
    """
    require("distributed", extra="cluster", purpose=f"scheduler={scheduler!r}")
    address = scheduler if "://" in scheduler else _address_in(local_path(scheduler))
    limit = dask.utils.parse_timedelta(dask.config.get("distributed.comm.timeouts.connect", "30s"))
    try:
        return _client(address, ANSWER if limit == 30 else limit)
    except Exception as error:
        # OSError where nothing listens, ValueError for an address that is not one, anything where others answer.
        where = address if address == scheduler else f"{address}, the address in {scheduler}"
        raise SchedulerError(
            f"no Dask scheduler answers at {where} ({_reason(error)}). Start one, dask scheduler, and name the "
            f'address that it prints: scheduler="tcp://HOST:8786"'
        ) from error


def _client(address: str, timeout: float) -> Any:
    """Return a client that is connected within about `timeout` seconds."""
    from distributed import Client

    # Asked before a client is made. A client whose start failed lives on until the garbage collector finds it, and its
    # __del__ then waits for a lock that another client, starting at that moment, holds: both wait for ever.
    _probe(address, timeout)
    return Client(address, timeout=timeout, set_as_default=False)


def _probe(address: str, timeout: float) -> None:
    """Return if a scheduler answers at `address` within about `timeout` seconds; else raise its reason."""
    answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    async def ask() -> None:
        from distributed import Security, rpc

        arguments = Security().get_connection_args("client") if address.startswith(("tls", "wss", "ucxs")) else {}
        async with rpc(address, timeout=timeout, connection_args=arguments) as scheduler:
            identity = await scheduler.identity()
        if identity.get("type") != "Scheduler":
            raise ValueError(f"a {identity.get('type', 'process')} answers there, not a scheduler")

    def attempt() -> None:
        try:
            asyncio.run(asyncio.wait_for(ask(), timeout))
        except BaseException as error:
            answers.put(error)
        else:
            answers.put(None)

    # In a thread: this one may run an event loop already, as Jupyter's does, and a server that speaks something else
    # may hold the attempt for ever.
    threading.Thread(target=attempt, name="deo_cube-connect", daemon=True).start()
    try:
        problem = answers.get(timeout=timeout + 5)
    except queue.Empty:
        problem = TimeoutError(f"nothing that is a scheduler answered in {timeout + 5:.0f} s")
    if problem is not None:
        raise problem


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError | ValueError | TypeError):
        return "what listens there does not speak Dask's protocol"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _address_in(file: Path) -> str:
    end = time.monotonic() + FILE
    while True:
        try:
            address = json.loads(file.read_text(encoding="utf-8"))["address"]
            if isinstance(address, str) and "://" in address:
                return address
            problem = f"names no address of a scheduler, got {address!r:.60}"
        except FileNotFoundError:
            problem = "does not exist"
        except OSError as error:
            problem = f"cannot be read ({error.strerror or error})"
        except (ValueError, KeyError, TypeError):
            problem = "is empty" if not file.stat().st_size else "is not JSON with an address"
        if time.monotonic() > end or file.is_dir():
            raise SchedulerError(
                f'the file of the scheduler, scheduler="{file}", {problem}. Write one, dask scheduler '
                f'--scheduler-file {file}, or name the address, scheduler="tcp://HOST:8786"'
            )
        time.sleep(0.1)
