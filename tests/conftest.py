"""What every test may use: the shared real data, and single-threaded torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DEO_CUBE_OFFLINE", "1")

import hypothesis
import pytest

# A busy machine makes inputs slowly: no time of a clock fails a test.
UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("quick", max_examples=25, derandomize=True, **UNTIMED)
hypothesis.settings.register_profile("thorough", max_examples=300, **UNTIMED)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def find_shared() -> Path | None:
    """The folder that holds `data/` and `golden/`: `DEO_CUBE_DATA`, or `shared` beside the repository."""
    given = os.environ.get("DEO_CUBE_DATA")
    places = [Path(given), Path(given).parent] if given else [Path(__file__).parents[2] / "shared"]
    return next((p for p in places if (p / "data").is_dir()), None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data, or a skip that says what is missing."""
    folder = find_shared()
    if folder is None:
        pytest.skip("real data not found: set DEO_CUBE_DATA to the folder that holds data/")
    return folder


@pytest.fixture
def gdal_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have GDAL read from servers on loopback: without a proxy, and nothing from its cache."""
    for name, value in {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif",
        "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http://127.0.0.1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }.items():
        monkeypatch.setenv(name, value)
