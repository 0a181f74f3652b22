"""A configuration whose values are not what its fields say is refused, with the flag of the field."""

from __future__ import annotations

from typing import Any

import pytest

from deo_cube.errors import DeoCubeError
from deo_cube.train.__main__ import main
from deo_cube.train.config import PRESETS, from_dict


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"steps": -1}, "--steps"),
        ({"steps": "x"}, "--steps"),
        ({"steps": 1.5}, "--steps"),
        ({"steps": float("nan")}, "--steps"),
        ({"steps": True}, "--steps"),
        ({"data": 3}, "--data"),
        ({"data": "x"}, "--data"),
        ({"seed": "x"}, "--seed"),
        ({"device": 3}, "--device"),
        ({"optimizer": {"batch": -1}}, "batch"),
        ({"optimizer": {"batch": "x"}}, "--optimizer.batch"),
        ({"optimizer": {"ema": (0.9,)}}, "--optimizer.ema"),
        ({"optimizer": {"weight_decay": (0.1, float("nan"))}}, "--optimizer.weight-decay"),
        ({"optimizer": 3}, "Optimizer"),
        ({"student": None}, "Student"),
        ({"student": {"family": "x"}}, "--student.family"),
        ({"student": {"dim": 0}}, "--student.dim"),
        ({"student": {"heads": [0]}}, "--student.heads"),
        ({"augment": {"global_size": 0}}, "--augment.global-size"),
        ({"augment": {"global_size": "x"}}, "--augment.global-size"),
        ({"objective": {"pretext": "x"}}, "--objective.pretext"),
        ({"loader": {"workers": -1}}, "--loader.workers"),
        ({"nonsense": 1}, "nonsense"),
        (3, "TrainConfig"),
        (None, "TrainConfig"),
    ],
)
def test_values_of_other_types_and_ranges(values: Any, flag: str) -> None:
    with pytest.raises(DeoCubeError, match=flag):
        from_dict(values)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_what_its_fields_say(preset: str) -> None:
    assert from_dict(PRESETS[preset].to_dict()) == PRESETS[preset]


@pytest.mark.parametrize(
    "line",
    [(), ("--data", "no such.zarr"), ("--data", "no such.zarr", "--dry-run"), ("--device", "gpu", "--data", "x")],
)
def test_a_run_that_cannot_begin_is_one_message(
    line: tuple[str, ...], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line, "--out", str(tmp_path / "run")]) == 2
    assert "Traceback" not in capsys.readouterr().err
