"""A cluster of several hosts on one machine: `python -m benchmarks.hosts` (Linux, as root).

Scheduler, workers, client, object store and router are hosts of their own: network namespaces, joined by a bridge. Cube
and embeddings are on a real S3 server (moto). Bandwidth is limited by the kernel (`tc tbf`); delays, and connections
that are cut, are made by relays on the router, through which all traffic to the scheduler and to the object store goes
(what the scheduler sends to a worker's own port is not delayed). Bytes are those that the kernel counts per host.

In each round a store is written from the beginning. In rounds with faults, every 8 to 16 seconds one of these occurs,
in turn: a worker's host loses its processes (SIGKILL); the object store cannot be reached for five seconds; a worker's
host loses its link for four; the scheduler cannot be reached for ten. A worker that ends is started again, as a service
would: a worker of Dask ends when it loses its scheduler. Where the call ends with an error it is made again, as its
message says. At the end the store must be byte for byte that of an undisturbed run on one machine.

`python -m benchmarks.hosts --render --out docs/data/hosts.json` writes the table of docs/cluster.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cluster.md"
BRIDGE, NET = "deo0", "10.77.0"
ROUTER, SCHEDULER, OBJECTS, CLIENT = "deo-router", "deo-scheduler", "deo-objects", "deo-client"
WORKERS = ("deo-worker0", "deo-worker1")
ADDRESS = {ROUTER: f"{NET}.1", SCHEDULER: f"{NET}.2", OBJECTS: f"{NET}.3", CLIENT: f"{NET}.4"} | {
    name: f"{NET}.{11 + i}" for i, name in enumerate(WORKERS)
}
PORTS = {SCHEDULER: 8786, OBJECTS: 9000}
KEYS = {"access_key_id": "KEY", "secret_access_key": "KEY", "region": "us-east-1"}
BUCKET = "bench"
#: The object that says which files were read: they are others here.
SOURCES = "progress/sources"


@dataclass(frozen=True)
class Network:
    """What the hosts are joined by."""

    name: str
    rate: str = "1gbit"
    """Of each host's link, each way."""
    delay: float = 0.0
    """Seconds each way, to the scheduler and to the object store."""
    cut_objects: float = 0.0
    """Connections to the object store that are cut per second, one at random."""
    cut_scheduler: float = 0.0
    """Connections to the scheduler that are cut per second: each costs a worker, or the client its call."""
    faults: bool = False


NETWORKS = (
    Network("1 Gbit/s"),
    Network("100 Mbit/s, 20 ms", "100mbit", 0.02),
    Network("100 Mbit/s, 20 ms, S3 connections cut", "100mbit", 0.02, cut_objects=1.0),
    Network("100 Mbit/s, 20 ms, all connections cut", "100mbit", 0.02, cut_objects=0.5, cut_scheduler=0.05),
    Network("100 Mbit/s, 20 ms, faults", "100mbit", 0.02, faults=True),
    Network("100 Mbit/s, 20 ms, cuts and faults", "100mbit", 0.02, cut_objects=0.5, cut_scheduler=0.05, faults=True),
)
#: Seconds without the object store, and without the scheduler.
OUTAGE = {OBJECTS: 5.0, SCHEDULER: 10.0}


@dataclass(frozen=True)
class Config:
    """How much."""

    size: int = 2304
    """Side of the cube, pixels."""
    block: int = 288
    model: str = "tiny"
    networks: tuple[int, ...] = tuple(range(len(NETWORKS)))
    """Positions in `NETWORKS`."""
    rounds: int = 1
    """Times that each network is measured, in shuffled order."""
    merge: bool = False
    """Add to the rounds that `out` holds."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the results."""
    render: bool = False
    """Measure nothing, and write the table of `out` to the page."""


@dataclass
class Round:
    """What came of one network."""

    network: str
    seconds: float = 0.0
    km2: float = 0.0
    blocks: int = 0
    read: int = 0
    """Bytes that the object store sent."""
    written: int = 0
    """Bytes that it received."""
    scheduler: int = 0
    """Bytes that the scheduler sent and received."""
    workers: list[int] = field(default_factory=list)
    """Bytes that each worker's host sent and received."""
    cuts: int = 0
    kills: int = 0
    unplugged: int = 0
    outages: dict[str, int] = field(default_factory=dict)
    """How often the object store and the scheduler could not be reached."""
    started: int = 0
    """Workers that were started again."""
    calls: int = 1
    errors: list[str] = field(default_factory=list)
    """Errors that a call ended with, after which it was made again."""
    wrong: int = 0
    """Objects that differ from the undisturbed run, are missing, or are too many."""
    load: float = 0.0


#: Calls after which a store is given up.
LIMIT = 20


def sh(*command: str, check: bool = True) -> str:
    """Run a command and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """Make the hosts, and remove them with all that runs on them."""
    remove()
    try:
        sh("ip", "link", "add", BRIDGE, "type", "bridge")
        sh("ip", "link", "set", BRIDGE, "up")
        for name, address in ADDRESS.items():
            outside = f"v{address.rpartition('.')[2]}"
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", outside, "master", BRIDGE, "up")
            sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "eth0", "up")
        yield
    finally:
        remove()


def remove() -> None:
    """Remove what an earlier run may have left."""
    for name, address in ADDRESS.items():
        kill_all(name)
        sh("ip", "netns", "del", name, check=False)
        sh("ip", "link", "del", f"v{address.rpartition('.')[2]}", check=False)
    sh("ip", "link", "del", BRIDGE, check=False)


def kill_all(name: str) -> None:
    """Kill every process of a host."""
    for pid in sh("ip", "netns", "pids", name, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def limit(rate: str) -> None:
    """Limit the link of each host, each way."""
    for name, address in ADDRESS.items():
        shape = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "200ms")
        sh("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "eth0", *shape)
        sh("tc", "qdisc", "replace", "dev", f"v{address.rpartition('.')[2]}", *shape)


def sent(name: str) -> tuple[int, int]:
    """Return the bytes that a host has sent and received."""
    found = json.loads(sh("ip", "-n", name, "-j", "-s", "link", "show", "eth0"))[0]["stats64"]
    return found["tx"]["bytes"], found["rx"]["bytes"]


def start(name: str, *command: str, log: Path) -> subprocess.Popen[bytes]:
    """Start Python on a host."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "DEO_CUBE_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, *command], stdout=out, stderr=out, env=env, cwd=ROOT
        )


def start_worker(name: str, log: Path) -> subprocess.Popen[bytes]:
    """Start the worker of a host."""
    return start(
        name, "-m", "distributed.cli.dask_worker", f"tcp://{ADDRESS[ROUTER]}:{PORTS[SCHEDULER]}",
        "--nthreads", "1", "--no-dashboard", "--no-nanny", "--host", ADDRESS[name],
        "--name", f"{name}-{time.time():.0f}", "--local-directory", str(log.parent / f"{name}.tmp"), log=log,
    )  # fmt: skip


def start_all(network: Network, folder: Path) -> None:
    """Start scheduler and relays; the object store runs through all rounds."""
    for name in (ROUTER, SCHEDULER, *WORKERS):
        kill_all(name)
    limit(network.rate)
    log = folder / "scheduler.log"
    start(
        SCHEDULER, "-m", "distributed.cli.dask_scheduler", "--host", ADDRESS[SCHEDULER],
        "--port", str(PORTS[SCHEDULER]), "--no-dashboard", log=log,
    )  # fmt: skip
    (folder / "cuts").write_bytes(b"")
    for name, cut in ((SCHEDULER, network.cut_scheduler), (OBJECTS, network.cut_objects)):
        start(
            ROUTER, "-m", "benchmarks.hosts", "--relay", f"{ADDRESS[ROUTER]}:{PORTS[name]}",
            f"{ADDRESS[name]}:{PORTS[name]}", str(network.delay), str(cut), str(folder), log=folder / "relay.log",
        )  # fmt: skip


def keep_workers(stop: threading.Event, found: Round, folder: Path) -> None:
    """Start the workers, and those that end again, until `stop`."""
    workers = {name: start_worker(name, folder / f"{name}.log") for name in WORKERS}
    while not stop.wait(1):
        for name, process in workers.items():
            if process.poll() is not None:
                workers[name] = start_worker(name, folder / f"{name}.log")
                found.started += 1


def faults(stop: threading.Event, found: Round, folder: Path, seed: int) -> None:
    """Kill or unplug a worker's host, or make the object store or the scheduler unreachable, in turn, until `stop`."""
    rng = random.Random(seed)
    for n in range(10**6):
        if stop.wait(rng.uniform(8, 16)):
            return
        name = rng.choice(WORKERS)
        if n % 4 == 0:
            kill_all(name)
            found.kills += 1
        elif n % 4 == 2:
            sh("ip", "-n", name, "link", "set", "eth0", "down")
            found.unplugged += 1
            stop.wait(4)
            sh("ip", "-n", name, "link", "set", "eth0", "up")
        else:
            lost = OBJECTS if n % 4 == 1 else SCHEDULER
            found.outages[lost] = found.outages.get(lost, 0) + 1
            outage(folder, PORTS[lost], OUTAGE[lost], stop)


def outage(folder: Path, port: int, seconds: float, stop: threading.Event) -> None:
    """Have the relay of a port cut its connections, and take no other, for some seconds."""
    closed = folder / f"closed-{port}"
    closed.touch()
    stop.wait(seconds)
    closed.unlink()


def run(network: Network, config: Config, folder: Path, expected: dict[str, str], n: int) -> Round:
    """Write the n-th store over a network, and compare it."""
    found = Round(network.name, load=os.getloadavg()[0])
    start_all(network, folder)
    url = f"s3://{BUCKET}/{n}.zarr"
    before = {name: sent(name) for name in (OBJECTS, SCHEDULER, *WORKERS)}
    stop = threading.Event()
    threads = [threading.Thread(target=keep_workers, args=(stop, found, folder))]
    if network.faults:
        threads.append(threading.Thread(target=faults, args=(stop, found, folder, config.seed + n)))
    for thread in threads:
        thread.start()
    begun = time.perf_counter()
    try:
        while True:
            log = folder / "client.log"
            log.write_text("")
            client = start(CLIENT, "-m", "benchmarks.hosts", "--client", url, config.model, str(config.block), log=log)
            if client.wait() == 0:
                break
            found.errors.append(log.read_text().strip().splitlines()[-1][:200])
            found.calls += 1
            if found.calls > LIMIT:
                print(log.read_text(), file=sys.stderr)
                raise RuntimeError(f"{network.name}: not finished after 20 calls")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    found.seconds = time.perf_counter() - begun
    after = {name: sent(name) for name in before}
    found.km2 = config.size**2 * 1e-4
    found.read, found.written = (b - a for a, b in zip(before[OBJECTS], after[OBJECTS], strict=True))
    found.scheduler = sum(after[SCHEDULER]) - sum(before[SCHEDULER])
    found.workers = [sum(after[name]) - sum(before[name]) for name in WORKERS]
    found.cuts = (folder / "cuts").stat().st_size
    got = objects(url, endpoint(OBJECTS))
    found.blocks = sum(name.startswith("embeddings/c/") for name in got)
    names = got.keys() | expected.keys()
    wrong = sorted(name for name in names - {SOURCES} if got.get(name) != expected.get(name))
    found.wrong = len(wrong)
    if wrong:
        print(f"{network.name}: {wrong[:5]} differ", file=sys.stderr)
    return found


def endpoint(host: str) -> dict[str, str]:
    """Return the options of the object store, as seen through a host."""
    return {"endpoint": f"http://{ADDRESS[host]}:{PORTS[OBJECTS]}", **KEYS}


def objects(url: str, options: dict[str, str]) -> dict[str, str]:
    """Return the hashes of all objects of a store, read on the object store's host."""
    code = (
        "import hashlib, json, sys, obstore; from deo_cube.store import storage; "
        "s = storage.locate(sys.argv[1], json.loads(sys.argv[2])).store; "
        "names = [o['path'] for batch in obstore.list(s) for o in batch]; "
        "print(json.dumps({n: hashlib.sha256(bytes(obstore.get(s, n).bytes())).hexdigest() for n in names}))"
    )
    printed = sh("ip", "netns", "exec", OBJECTS, sys.executable, "-c", code, url, json.dumps(options))
    found: dict[str, str] = json.loads(printed.splitlines()[-1])
    return found


def files(path: Path) -> dict[str, str]:
    """Return the hashes of all files of a store on disk."""
    return {
        p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in path.rglob("*")
        if p.is_file()
    }


def lazy(cube: Any, model: str, block: int) -> Any:
    """Return the embeddings that each round writes."""
    import deo_cube

    return deo_cube.embed(cube, model, block=block, anchor="array", units="dn", offset=0)


def prepare(config: Config, folder: Path) -> dict[str, str]:
    """Write the cube to the object store, embed it undisturbed on this machine, and return the hashes of its files."""
    code = (
        "import sys, json; from deo_cube.store import storage; import xarray as xr; "
        "xr.open_zarr(sys.argv[1], chunks={}, mask_and_scale=False).to_zarr("
        "storage.locate(sys.argv[2], json.loads(sys.argv[3])), mode='w', consolidated=True, zarr_format=3)"
    )
    import deo_cube

    cube = deo_cube.synthetic_cube(size=config.size, times=1).isel(time=0, drop=True).drop_vars("SCL")
    cube = cube.chunk(y=512, x=512)
    cube.to_zarr(folder / "cube.zarr", zarr_format=3, consolidated=True)
    options = json.dumps(endpoint(OBJECTS))
    sh("ip", "netns", "exec", OBJECTS, sys.executable, "-c", code, str(folder / "cube.zarr"), f"s3://{BUCKET}/cube.zarr",
       options)  # fmt: skip
    emb = lazy(deo_cube.open_cube(folder / "cube.zarr"), config.model, config.block)
    emb.deo.to_zarr(folder / "emb.zarr", progress=False)
    return files(folder / "emb.zarr")


def client(url: str, model: str, block: str) -> None:
    """The client's process: embed the cube of the object store into `url` on the cluster."""
    import distributed

    import deo_cube
    from deo_cube.store import storage

    options = endpoint(ROUTER)
    with distributed.Client(f"tcp://{ADDRESS[ROUTER]}:{PORTS[SCHEDULER]}", timeout=30) as joined:
        joined.wait_for_workers(1, timeout=60)
        emb = lazy(deo_cube.open_cube(storage.locate(f"s3://{BUCKET}/cube.zarr", options)), model, int(block))
        deo_cube.to_zarr(emb, url, progress=False, storage_options=options)


def relay(listen: str, target: str, delay: str, cut: str, folder: str) -> None:
    """The router's process: pass connections on to a host, late, and cut one now and then.

    While ``folder/closed-PORT`` exists there are no connections. Each cut adds a byte to ``folder/cuts``.
    """
    import asyncio

    (here, port), (host, there_port) = listen.split(":"), target.split(":")
    closed = Path(folder) / f"closed-{port}"
    open_pairs: list[asyncio.StreamWriter] = []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]](256)

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    sink.close()
                    return
                sink.write(data)
                await sink.drain()

        task = asyncio.create_task(deliver())
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await queue.put((loop.time() + float(delay), data))
        await queue.put((loop.time() + float(delay), b""))
        with contextlib.suppress(OSError):
            await task

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if closed.exists():
                raise OSError("closed")
            there, back = await asyncio.open_connection(host, int(there_port))
        except OSError:
            writer.transport.abort()
            return
        open_pairs.append(writer)
        await asyncio.gather(pump(reader, back), pump(there, writer))
        open_pairs.remove(writer)

    async def cutting() -> None:
        while float(cut):
            await asyncio.sleep(random.expovariate(float(cut)))
            if open_pairs:
                random.choice(open_pairs).transport.abort()
                with (Path(folder) / "cuts").open("ab") as cuts:
                    cuts.write(b".")

    async def closing() -> None:
        while True:
            await asyncio.sleep(0.05)
            if closed.exists():
                for writer in open_pairs:
                    writer.transport.abort()

    async def serve() -> None:
        server = await asyncio.start_server(accept, here, int(port))
        async with server:
            await asyncio.gather(server.serve_forever(), cutting(), closing())

    asyncio.run(serve())


def main(config: Config) -> list[Round]:
    """Run all networks, print a table, and write JSON."""
    if config.render and config.out is not None:
        rounds = [Round(**r) for r in json.loads(config.out.read_text())["rounds"]]
        text = PAGE.read_text(encoding="utf-8")
        begin, end = "<!-- bench: hosts -->\n", "<!-- /bench -->"
        before, after = text.split(begin)[0], text.split(begin)[1].split(end, 1)[1]
        PAGE.write_text(f"{before}{begin}\n{table(rounds)}\n\n{end}{after}", encoding="utf-8")
        return rounds
    if os.geteuid() != 0 or not Path("/usr/sbin/tc").exists():
        raise SystemExit("needs root and iproute2 (ip, tc): network namespaces are made and removed")
    rounds: list[Round] = []
    if config.merge and config.out is not None and config.out.exists():
        rounds = [Round(**r) for r in json.loads(config.out.read_text())["rounds"]]
    order = [position for position in config.networks for _ in range(config.rounds)]
    random.Random(config.seed).shuffle(order)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are removed
    with tempfile.TemporaryDirectory(prefix="deo_cube_hosts") as scratch, hosts():
        folder = Path(scratch)
        start(
            OBJECTS, "-m", "moto.server", "-H", ADDRESS[OBJECTS], "-p", str(PORTS[OBJECTS]), log=folder / "objects.log"
        )
        make_bucket()
        expected = prepare(config, folder)
        for n, position in enumerate(order):
            one = run(NETWORKS[position], config, folder, expected, n)
            rounds.append(one)
            print(one, flush=True)
            if config.out is not None:
                figures = {"config": asdict(config) | {"out": None}, "rounds": [asdict(r) for r in rounds]}
                config.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(rounds))
    return rounds


def make_bucket() -> None:
    """Wait for the object store, and make the bucket."""
    code = f"import urllib.request as u; u.urlopen(u.Request('{endpoint(OBJECTS)['endpoint']}/{BUCKET}', method='PUT'))"
    for _ in range(60):
        if (
            subprocess.run(["ip", "netns", "exec", OBJECTS, sys.executable, "-c", code], capture_output=True).returncode
            == 0
        ):
            return
        time.sleep(1)
    raise RuntimeError("the object store does not answer")


def table(rounds: Sequence[Round]) -> str:
    """Return the results as Markdown, one row per network: medians of speeds and bytes, sums of what happened."""
    lines = [
        "| network | runs | km²/s | S3, kB per km² | worker, kB per km² | scheduler, kB per km² | connections cut "
        "| hosts killed | unplugged | S3 out | scheduler out | workers started again | calls | wrong objects |",
        "|" + "---|" * 14,
    ]
    known = [network.name for network in NETWORKS]
    measured = {r.network for r in rounds}
    for name in [*(n for n in known if n in measured), *sorted(measured - {*known})]:
        of = [r for r in rounds if r.network == name]
        per_km2 = {
            "s3": [(r.read + r.written) / r.km2 / 1e3 for r in of],
            "worker": [sum(r.workers) / len(r.workers) / r.km2 / 1e3 for r in of],
            "scheduler": [r.scheduler / r.km2 / 1e3 for r in of],
        }
        speed = statistics.median(r.km2 / r.seconds for r in of)
        counts = [
            sum(r.cuts for r in of), sum(r.kills for r in of), sum(r.unplugged for r in of),
            sum(r.outages.get(OBJECTS, 0) for r in of), sum(r.outages.get(SCHEDULER, 0) for r in of),
            sum(r.started for r in of), sum(r.calls for r in of), sum(r.wrong for r in of),
        ]  # fmt: skip
        cells = [name, len(of), f"{speed:.1f}", *(f"{statistics.median(v):.0f}" for v in per_km2.values()), *counts]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--relay", nargs=5)
    parser.add_argument("--client", nargs=3)
    own, _ = parser.parse_known_args()
    if own.relay:
        relay(*own.relay)
    elif own.client:
        client(*own.client)
    else:
        main(tyro.cli(Config, description=__doc__))
