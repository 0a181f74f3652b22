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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [str(rustac), "serve", "--create-collections", "--addr", address, str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as run:
        try:
            wait_for(f"http://{address}")
            yield f"http://{address}"
        finally:
            run.terminate()


def wait_for(url: str) -> None:
    """Return once something answers at `url`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(100):
        try:
            opener.open(url, timeout=1).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise TimeoutError(f"no answer from {url}")
