from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest

from deo_cube.bench import Bench, bench
from deo_cube.cli import main
from deo_cube.embedding.plan import measure_rate

FOUND = Bench("tiny", "cpu", 2048, 320, 16, 3, alone=8.0, end_to_end=6.0, km2=50.0)


def test_what_is_shown_follows_from_what_was_measured() -> None:
    assert FOUND.share == 0.75
    assert "8.00 tiles/s" in str(FOUND)
    assert "0.75 of that; 50 km²/s" in str(FOUND)
    assert json.loads(replace(FOUND, rounds=1).to_json())["share"] == 0.75


def test_the_command_measures_the_model_on_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deo_cube.bench.measure_rate", partial(measure_rate, seconds=0.01))
    with pytest.raises(SystemExit) as end:
        main(["bench", "tiny", "--size", "352", "--rounds", "1", "--json"])
    assert end.value.code == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "bench tiny" in shown.err
    assert found["device"] == "cpu"
    assert min(found["alone"], found["end_to_end"]) > 0
    # 352 px of 10 m, in the time that its own rate says.
    assert found["km2"] == pytest.approx(3.52**2 * found["end_to_end"] / (384 * 384 / 320**2), rel=0.5)


def test_no_round_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        bench(rounds=0)
