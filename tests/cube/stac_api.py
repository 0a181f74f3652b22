"""A real STAC API on loopback: rustac, serving items from memory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def stac_api(items: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[str]:
    """URL of an API with `items`, each with its collection."""
    rustac = Path(sys.executable).with_name("rustac")
    if not rustac.exists():
        pytest.skip("rustac is not installed")
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [str(rustac), "serve", "--create-collections", "--addr", address, str(path)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as run:
            try:
                # Another process may have taken the port meanwhile; then the server ends at once.
                if answers(f"http://{address}", run):
                    yield f"http://{address}"
                    return
            finally:
                run.terminate()
    raise AssertionError("rustac does not serve")


def answers(url: str, run: subprocess.Popen[bytes]) -> bool:
    """Return True once `run` answers at `url`, False if it ends before."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            opener.open(url, timeout=10).close()
            return run.poll() is None
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if run.poll() is not None:
                return False
            time.sleep(0.05)
    raise TimeoutError(f"no answer from {url}")
