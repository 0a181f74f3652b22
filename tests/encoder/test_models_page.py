from __future__ import annotations

import re

import pytest

from benchmarks.models_table import DOCS, with_table
from deo_cube.encoder.registry import bundled_cards


def test_the_table_is_the_cards() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text == with_table(text), "run: python -m benchmarks.models_table"
    for alias in bundled_cards():
        assert f"| `{alias}` |" in text


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
    out = capsys.readouterr().out
    assert "NOT PROVEN" in out
    assert "<Verification: proven" in out
    assert "(1, 3, 8, 8)" in out
    assert "<Encoder dino10 on cpu: 10 bands (all) to 384 channels per 16 px (norm)" in out
