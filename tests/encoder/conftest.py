from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deo_cube.encoder import registry
from deo_cube.options import set_options


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No encoder of another test's, no weights of the machine's, no network."""
    monkeypatch.delenv("DEO_CUBE_WEIGHTS", raising=False)
    with set_options(cache_dir=tmp_path / "cache", offline=True):
        registry._registered.clear()
        registry._plugins.cache_clear()
        yield
        registry._registered.clear()
        registry._plugins.cache_clear()
