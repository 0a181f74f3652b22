from __future__ import annotations

import json
from pathlib import Path

import pytest

from deo_cube.train.loop import cosine


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("lr", (5e-4, 1e-6, 70, 21)), ("wd", (0.04, 0.4, 70)), ("ema", (0.996, 1.0, 70))],
)
def test_schedules_equal_published_ones(shared: Path, name: str, arguments: tuple) -> None:
    golden = json.loads((shared / "golden/golden.json").read_text())[f"schedule.{name}"]
    assert len(golden) == 70
    assert [cosine(i, *arguments) for i in range(70)] == pytest.approx(golden, abs=1e-12)


def test_ends() -> None:
    assert cosine(0, 1.0, 0.1, 10, warmup=1) == 1.0
    assert cosine(0, 1.0, 0.1, 10, warmup=4) == 0.0
    assert cosine(3, 1.0, 0.1, 10, warmup=4) == 1.0
    assert cosine(4, 1.0, 0.1, 10, warmup=4) == 1.0
    assert cosine(10, 1.0, 0.1, 10) == 0.1
    assert cosine(500, 1.0, 0.1, 10) == 0.1
