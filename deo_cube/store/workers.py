"""Track which workers can run a block and which lack weights. Each worker is queried once, when it joins."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deo_cube.embedding import metadata, node_weights, runtime
from deo_cube.errors import DeoCubeError, DeviceError, SchedulerError
from deo_cube.options import get_option

__all__ = ["Answer", "Watch", "answer", "ask"]

#: Name of the abstract resource by which workers say that they have a GPU.
RESOURCE = "GPU"
#: Seconds that a worker may take to answer; it imports torch for that.
ANSWER = 120.0
#: Seconds between looks at the cluster.
LOOK = 2.0
#: Seconds that the others may take once one has answered.
LAG = 20.0

log = logging.getLogger("deo_cube")


@dataclass(frozen=True)
class Answer:
    """What a worker says of itself."""

    host: str
    version: str
    device: str
    """Kind of device that a block would run on: cpu, cuda, mps; empty where the wanted one is not there."""
    problem: str = ""
    lacks: tuple[int, ...] = ()
    """Which of the job's weights it does not have."""


async def answer(refs: bytes, wanted: str | None) -> Answer:
    """Say what this process is. Runs on a worker; in a thread, for torch takes seconds to import."""
    return await asyncio.to_thread(_answer, refs, wanted)


def _answer(refs: bytes, wanted: str | None) -> Answer:
    host, version = socket.gethostname(), metadata.package_version()
    try:
        known = unpickled_refs(refs)
    except Exception as error:
        return Answer(host, version, "", f"cannot read the model: {error}")
    lacks = tuple(i for i, ref in enumerate(known) if not node_weights.is_here(ref))
    if not known:
        return Answer(host, version, wanted or "")
    try:
        return Answer(host, version, runtime.choose_device(wanted).partition(":")[0], "", lacks)
    except DeoCubeError as error:
        return Answer(host, version, "", str(error), lacks)


def ask(
    client: Any, question: Callable[..., Any], *args: Any, workers: Collection[str], timeout: float
) -> dict[str, Any]:
    """Run `question` on `workers`; the answers, or errors, of those that answered in time.

    Those who lag `LAG` seconds behind the first answer are not waited for: they may be frozen.
    """
    if not workers or client.status != "running":
        return {}
    answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def run(group: list[str]) -> None:
        try:
            answers.put(client.run(question, *args, workers=group, on_error="return"))
        except Exception as error:
            # Also where one of them left meanwhile: the next look asks those that are there.
            log.debug("the cluster did not answer: %s", error)
            answers.put({})

    # In threads, for `run` waits for all that it asks, however long.
    everyone = sorted(workers)
    groups = [group for i in range(32) if (group := everyone[i::32])]
    for group in groups:
        threading.Thread(target=run, args=(group,), daemon=True).start()
    found: dict[str, Any] = {}
    end = time.monotonic() + timeout
    for _ in groups:
        try:
            found.update(answers.get(timeout=max(0.0, end - time.monotonic())))
        except queue.Empty:
            break
        end = min(end, time.monotonic() + LAG) if found else end
    return found


class Watch:
    """The cluster as it is now, as far as a job is concerned.

    Parameters
    ----------
    client : distributed.Client
        Synchronous.
    runs : list
        What runs for the blocks; see `cluster.fly`.
    patience : float
        Seconds to wait while there is no worker.
    aside : callable
        A context manager in which warnings are logged: clears a progress bar.

    Raises
    ------
    DeviceError, SchedulerError
        From `look`: if no worker fits, none comes within `patience`, or the scheduler is lost.
    """

    def __init__(
        self,
        client: Any,
        runs: list[Any],
        patience: float,
        aside: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._client = client
        self._aside = aside
        self._patience = patience
        self._refs = list({r.ref.fingerprint: r.ref for r in runs if getattr(r, "ref", None) is not None}.values())
        self._wanted = next((r.device for r in runs if getattr(r, "device", None)), None)
        self._answers: dict[str, Answer] = {}
        self._asked: dict[str, int] = {}
        self._kind: str | None = None
        self._share = 0.0
        self._fit: dict[str, int] = {}
        self._restricted = False
        self._looked = -1e9
        self._seen = time.monotonic()
        self._nudge: Any = None
        self._joined = 0
        self._warned = ""
        self.known: set[str] = set()
        """Addresses of all workers there are."""

    @property
    def threads(self) -> int:
        """Threads of the workers that fit."""
        return sum(self._fit.values())

    def placement(self) -> dict[str, Any]:
        """Arguments of `Client.submit` that send a block to workers that fit."""
        if self._share:
            return {"resources": {RESOURCE: self._share}}
        return {"workers": sorted(self._fit), "allow_other_workers": False} if self._restricted else {}

    def forget(self) -> None:
        """Look anew at once, and ask everybody again."""
        self._answers.clear()
        self._asked.clear()
        self._looked = -1e9

    def look(self, every: float) -> bool:
        """Look at the cluster, if the last look is `every` seconds ago; wait while no worker fits. True if it did."""
        if time.monotonic() - self._looked < every and self._fit:
            return False
        while not self._look():
            time.sleep(min(every, 0.5))
        return True

    def _look(self) -> bool:
        found = self._workers()
        self._looked = time.monotonic()
        self._report_lost(self.known - set(found), len(found))
        self._joined += len(set(found) - self.known)
        self.known = set(found)
        self._answers = {a: v for a, v in self._answers.items() if a in found}
        # A worker that did not answer is asked again, but not for ever: it may be busy, or frozen.
        new = [a for a in found if a not in self._answers and self._asked.get(a, 0) < 5]
        if new:
            self._ask(new)
        self._choose(found)
        if self._fit:
            self._seen = time.monotonic()
            self._nudge, self._warned = None, ""
            return True
        self._impatient(found)
        if not found and self._nudge is None:
            # A task for an adaptive cluster to grow by.
            self._nudge = self._client.submit(int, pure=False, key=f"deo_cube-wanted-{uuid.uuid4().hex}")
        return False

    def _workers(self) -> Mapping[str, Any]:
        try:
            return runtime.workers_of(self._client)
        except Exception as error:
            if self._client.status in ("closed", "closing"):
                raise SchedulerError(
                    "the scheduler is lost: start it again, and make the same call to resume"
                ) from error
            return {}  # it reconnects, or closes after `distributed.comm.timeouts.connect`

    def _report_lost(self, lost: set[str], left: int) -> None:
        """Log each worker that has gone since the last look; those that were retired or closed as asked, quietly."""
        if self._client.status != "running":
            return  # the scheduler is what was lost
        for address in sorted(lost):
            try:
                events = [e for _, e in self._client.get_events(address)]
            except Exception:
                events = []
            asked = any(e.get("action") in ("retired", "close-worker") or e.get("expected") for e in events)
            text = f"worker {address} left" if asked else f"worker {address} was lost: its blocks run again elsewhere"
            with self._aside():
                log.log(logging.INFO if asked else logging.WARNING, "%s; %d left in the cluster", text, left)

    def _impatient(self, found: Mapping[str, Any]) -> None:
        refused = {a: v.problem for a, v in self._answers.items() if v.problem}
        if found and len(refused) == len(found):
            first = "; ".join(f"{a}: {why}" for a, why in list(refused.items())[:3])
            raise DeviceError(f"none of the {len(found)} workers can do this job. {first}")
        waited = time.monotonic() - self._seen
        if waited > self._patience:
            raise DeviceError(
                f"{self._state(found)}, for {waited:.0f} s. Start workers (dask worker ADDRESS, cluster.scale(n)), or "
                "wait longer for a queue: worker_timeout=seconds"
            )
        state = self._state(found)
        # Workers that were started together may answer a few seconds after they joined.
        if state != self._warned and (not found or waited > 2 * LOOK):
            self._warned = state
            with self._aside():
                log.warning("%s: waiting for one, at most worker_timeout=%g seconds", state, self._patience)

    def _state(self, found: Mapping[str, Any]) -> str:
        """What keeps the blocks from running, while no worker runs them."""
        if self._client.status != "running":
            return "the scheduler does not answer"
        if not self._joined:
            return "no worker has joined the cluster yet"
        if not found:
            return f"all workers of the cluster are gone ({self._joined} had joined)"
        return f"none of the cluster's {len(found)} workers fits or answers"

    def _ask(self, new: list[str]) -> None:
        refs = pickle_refs(self._refs)
        for address in new:
            self._asked[address] = self._asked.get(address, 0) + 1
        for address, said in ask(self._client, answer, refs, self._wanted, workers=new, timeout=ANSWER).items():
            self._answers[address] = _judged(said)
        self._equip([a for a in new if a in self._answers and self._answers[a].lacks])

    def _equip(self, lacking: list[str]) -> None:
        """See that weights get to the nodes of workers which lack them, once a node."""
        nodes: dict[tuple[str, int], list[str]] = {}
        for address in lacking:
            for i in self._answers[address].lacks:
                nodes.setdefault((self._answers[address].host, i), []).append(address)
        for (host, i), addresses in nodes.items():
            ref, one = self._refs[i], addresses[0]
            got = ask(self._client, _fetch, pickle_refs([ref]), get_option("offline"), workers=[one], timeout=3600.0)
            if got.get(one) is not True and not self._send(ref, one):
                for address in addresses:
                    del self._answers[address]  # asked again at the next look
                log.warning("the weights of %s did not get to %s", ref.card.alias, host)

    def _send(self, ref: Any, worker: str) -> bool:
        path = Path(ref.weights)
        total, transfer = path.stat().st_size, uuid.uuid4().hex
        log.info("sending the weights of %s (%.0f MB) to %s", ref.card.alias, total / 1e6, worker)
        arrived = False
        with open(path, "rb") as file:
            for offset in range(0, total, node_weights.PIECE):
                args = (ref.weights_sha256, path.suffix, offset, total, file.read(node_weights.PIECE), transfer)
                said = ask(self._client, _receive, *args, workers=[worker], timeout=600.0).get(worker)
                if not isinstance(said, bool):
                    return False
                arrived = said
        return arrived

    def _choose(self, found: Mapping[str, Any]) -> None:
        able = {a: found[a] for a, said in self._answers.items() if not said.problem}
        gpus = {a: w for a, w in able.items() if float(w.get("resources", {}).get(RESOURCE, 0)) > 0}
        if self._kind is None and able:
            # Decided once: a GPU's numbers differ from a CPU's in the last digits, and one store has one kind.
            kinds = {said.device for a, said in self._answers.items() if a in able}
            gpu_first = sorted(kinds, key=lambda kind: (kind in ("cpu", ""), kind))
            self._kind = RESOURCE if gpus and self._wanted != "cpu" else gpu_first[0]
        if self._kind == RESOURCE:
            self._fit = {a: int(w["nthreads"]) for a, w in gpus.items()}
            shares = [float(w["resources"][RESOURCE]) / max(1, int(w["nthreads"])) for w in gpus.values()]
            self._share = _power_of_two(min(shares)) if shares else self._share
            self._restricted = False
        else:
            self._fit = {a: int(w["nthreads"]) for a, w in able.items() if self._answers[a].device == self._kind}
            self._restricted = len(self._fit) < len(found)


def _judged(said: Any) -> Answer:
    if not isinstance(said, Answer):
        return Answer("", "", "", f"it cannot run deo_cube ({type(said).__name__}: {said})")
    mine = metadata.package_version()
    if said.version != mine:
        return Answer(said.host, said.version, "", f"it has deo_cube {said.version}, this process {mine}")
    return said


def _power_of_two(share: float) -> float:
    """The largest power of two up to `share`: such parts add up exactly, whatever their number."""
    import math

    return float(2.0 ** math.floor(math.log2(share)))


def pickle_refs(refs: list[Any]) -> bytes:
    """References as bytes, which the scheduler does not look into; factories may be defined in a notebook."""
    import cloudpickle

    return bytes(cloudpickle.dumps(refs))


def unpickled_refs(refs: bytes) -> list[Any]:
    """References as the client sent them."""
    import cloudpickle

    return list(cloudpickle.loads(refs))


async def _fetch(refs: bytes, offline: bool) -> bool:
    (ref,) = unpickled_refs(refs)
    return await asyncio.to_thread(node_weights.fetch, ref, offline=offline)


async def _receive(*args: Any) -> bool:
    return await asyncio.to_thread(node_weights.receive, *args)
