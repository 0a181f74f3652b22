"""The benchmark of several hosts: its relay, its table, and one small round in namespaces of its own, without root."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import hosts

ROOT = Path(hosts.__file__).parents[1]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def server() -> Iterator[int]:
    """A server that answers ten bytes."""

    class Ten(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"0123456789")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ten) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served.server_address[1]
        served.shutdown()


@contextlib.contextmanager
def _relay(to: int, folder: Path, *, delay: float = 0.0, cut: float = 0.0) -> Iterator[int]:
    for _ in range(5):
        port = _free_port()
        options = [f"127.0.0.1:{port}", f"127.0.0.1:{to}", str(delay), str(cut), str(folder)]
        with subprocess.Popen([sys.executable, "-m", "benchmarks.hosts", "--relay", *options], cwd=ROOT) as process:
            try:
                # Another process may have taken the port meanwhile; then the relay ends at once.
                if _listens(port, process):
                    yield port
                    return
            finally:
                process.kill()
    raise AssertionError("the relay does not listen")


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process.poll() is None
        time.sleep(0.05)
    return False


def _get(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 60) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        got = b""
        while part := s.recv(1000):
            got += part
        return got


def _ended(opened: socket.socket) -> bool:
    """Whether the other side ends a connection, within its timeout."""
    try:
        return opened.recv(1) == b""
    except ConnectionError:
        return True


def test_a_relay_passes_bytes_on_late(server: int, tmp_path: Path) -> None:
    with _relay(server, tmp_path, delay=0.2) as port:
        begun = time.perf_counter()
        assert _get(port).endswith(b"0123456789")
        assert time.perf_counter() - begun >= 0.4  # there and back


def test_a_relay_takes_no_connection_during_an_outage(server: int, tmp_path: Path) -> None:
    with _relay(server, tmp_path) as port:
        stop = threading.Event()
        lost = threading.Thread(target=hosts.outage, args=(tmp_path, port, 60.0, stop))
        with socket.create_connection(("127.0.0.1", port), 60) as opened:
            lost.start()
            assert _ended(opened)
        with socket.create_connection(("127.0.0.1", port), 60) as refused:
            assert _ended(refused)
        stop.set()
        lost.join()
        assert _get(port).endswith(b"0123456789")


def test_a_relay_cuts_connections_and_counts_them(server: int, tmp_path: Path) -> None:
    with _relay(server, tmp_path, cut=50.0) as port, socket.create_connection(("127.0.0.1", port), 60) as opened:
        assert _ended(opened)
        end = time.monotonic() + 60
        while not (tmp_path / "cuts").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert (tmp_path / "cuts").stat().st_size >= 1


def test_the_table_has_a_row_per_network_and_sums_what_happened() -> None:
    one = hosts.Round("a", seconds=10, km2=100, read=10**8, written=10**8, workers=[10**7] * 2, kills=1, started=2)
    text = hosts.table(
        [one, hosts.Round(**(asdict(one) | {"wrong": 3})), hosts.Round(**(asdict(one) | {"network": "b"}))]
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert [row[0] for row in rows[2:]] == ["a", "b"]
    assert all(len(row) == len(rows[0]) for row in rows)
    a = dict(zip(rows[0], rows[2], strict=True))
    assert (a["runs"], a["hosts killed"], a["workers started again"], a["wrong objects"]) == ("2", "2", "4", "3")
    assert (a["km²/s"], a["S3, kB per km²"]) == ("10.0", "2000")


@pytest.mark.slow
def test_a_store_written_by_several_hosts_is_that_of_one(tmp_path: Path) -> None:
    # Namespaces of users, mounts and networks: what `ip netns` makes is gone with the process.
    alone = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    try:
        done = subprocess.run([*alone, "tc", "qdisc"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs Linux with unshare and tc")
    if done.returncode:
        pytest.skip(f"namespaces are not permitted here: {done.stderr.strip()}")
    pytest.importorskip("moto.server")
    out = tmp_path / "hosts.json"
    round_ = f"{sys.executable} -m benchmarks.hosts --size 576 --block 144 --networks 2 --out {out}"
    call = f"mount -t tmpfs none /run && {round_}"
    done = subprocess.run(
        [*alone, "sh", "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = json.loads(out.read_text())["rounds"]
    assert found["wrong"] == 0
    assert found["blocks"] == 4
    assert min(found["workers"]) > 0
