"""The tables of the page are those of the data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.gpu import page

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"


@pytest.mark.parametrize("name", ["embed", "encoder", "precision"])
def test_the_tables_are_made_from_the_data(name: str) -> None:
    data = json.loads(page.DATA.read_text())
    shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", PAGE.read_text(encoding="utf-8"), re.S)
    assert shown is not None
    assert shown.group(1) == getattr(page, f"{name}_table")(data)
