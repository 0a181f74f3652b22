"""A small HTTP/1.1 server on loopback that answers range requests, as object stores do, and counts them.

It runs in a process of its own. rasterio asks GDAL for a file's mask without letting go of the interpreter's lock
(`DatasetBase.mask_flag_enums`), and GDAL may fetch for that: a server in the same process could never answer, and
nothing in Python, a time limit included, would run again.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from urllib.parse import parse_qs, urlsplit


class Served:
    """What a server was asked: `requests` (method and path, in the order of arrival) and `sent` (bytes of files)."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log
        self._start = 0

    def _lines(self) -> list[list[str]]:
        return [line.split(" ") for line in self._log.read_text().splitlines()[self._start :]]

    @property
    def requests(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path, _ in self._lines()]

    @property
    def sent(self) -> int:
        return sum(int(size) for *_, size in self._lines())

    def forget(self) -> None:
        """Count from here."""
        self._start += len(self._lines())

    def uses(self, token: str) -> int:
        """How often a token was presented."""
        return sum(parse_qs(urlsplit(path).query).get("token") == [token] for _, path in self.requests)


@contextlib.contextmanager
def serve(folder: Path, uses: int = 0) -> Iterator[Served]:
    """Serve the files below `folder`; where `uses` is given, only to who has a `token` used less often than that.

    What is asked for with the query `silent` never comes.
    """
    with TemporaryDirectory() as work:
        log = Path(work) / "requests"
        log.touch()
        command = [sys.executable, __file__, str(folder), str(log), str(uses)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            try:
                yield Served(f"http://127.0.0.1:{int(run.stdout.readline())}", log)
            finally:
                run.terminate()


def main(folder: Path, log: Path, uses: int) -> None:
    """Serve until terminated; the first line printed is the port."""
    folder = folder.resolve()
    used: Counter[str] = Counter()
    lock = Lock()
    lines = os.open(log, os.O_WRONLY | os.O_APPEND)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return None

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, status: int) -> None:
            os.write(lines, f"{self.command} {self.path} 0\n".encode())
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def expired(self) -> bool:
            token = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
            with lock:
                used[token] += 1
                return not token or used[token] > uses

        def answer(self, body: bool) -> None:
            path = (folder / self.path.split("?")[0].lstrip("/")).resolve()
            if self.path.endswith("?silent"):
                time.sleep(3600)
            if uses and self.expired():
                return self.refuse(403)
            if folder not in path.parents or not path.is_file():
                return self.refuse(404)
            size = path.stat().st_size
            first, last = 0, size - 1
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked:
                first, last = int(asked[1]), min(int(asked[2] or last), last)
            os.write(lines, f"{self.command} {self.path} {last - first + 1 if body else 0}\n".encode())
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if body:
                with path.open("rb") as file:
                    file.seek(first)
                    self.wfile.write(file.read(last - first + 1))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
