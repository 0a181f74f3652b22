"""The option objects hold the arguments of `embed`, refuse bad ones at once, and give the command line its flags."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deo_cube
from deo_cube.cli import main
from deo_cube.embedding.options import EmbedOptions, RunOptions, changed_options, split_options
from deo_cube.errors import ArgumentError, ArgumentTypeError, MissingBandsError, TilePlanError


def test_the_options_are_the_arguments_of_embed_with_their_defaults() -> None:
    parameters = list(inspect.signature(deo_cube.embed).parameters.values())[1:]
    of_options = {f.name: f.default for kind in (EmbedOptions, RunOptions) for f in dataclasses.fields(kind)}
    assert {p.name: p.default for p in parameters} == of_options
    of_method = list(inspect.signature(xr.Dataset().deo.embed).parameters.values())
    assert [(p.name, p.default) for p in of_method] == [(p.name, p.default) for p in parameters]


@pytest.mark.parametrize(
    ("options", "error", "argument"),
    [
        ({"bands": "B04"}, MissingBandsError, "bands"),
        ({"bands": ["B04=red", "B03"]}, ArgumentError, "bands"),
        ({"tile": 0}, TilePlanError, "tile"),
        ({"halo": -1}, TilePlanError, "halo"),
        ({"block": 1.5}, TilePlanError, "block"),
        ({"offset": "some"}, ArgumentError, "offset"),
        ({"nodata": "some"}, ArgumentError, "nodata"),
        ({"anchor": "corner"}, TilePlanError, "anchor"),
        ({"dtype": "float64"}, ArgumentError, "dtype"),
        ({"precision": "float16"}, ArgumentError, "precision"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"tyle": 64}, ArgumentTypeError, "tyle.*tile="),
    ],
)
def test_a_bad_value_is_refused_without_a_cube(options: dict[str, Any], error: type[Exception], argument: str) -> None:
    with pytest.raises(error, match=argument):
        split_options(options)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EmbedOptions().tile = 64  # type: ignore[misc]


VALUES = {
    "model": st.sampled_from(["tiny", "vitb"]),
    "bands": st.sampled_from([["B04", "B03", "B02"], {"B08": "nir"}]),
    "missing": st.sampled_from(["nearest", "mean"]),
    "offset": st.integers(-1000, 0),
    "nodata": st.sampled_from([None, 0, 65535]),
    "mask": st.sampled_from(["scl", False, xr.DataArray([True])]),
    "tile": st.integers(1, 512),
    "edge": st.just("drop"),
    "dtype": st.sampled_from(["float16", "float32", "int8"]),
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "batch_size": st.integers(1, 64),
    "device": st.just("cpu"),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_changed_options_are_those_that_were_passed(passed: dict[str, Any]) -> None:
    changed = changed_options(*split_options(passed))
    assert changed.keys() == passed.keys()
    assert all(changed[name] is value or changed[name] == value for name, value in passed.items())


def test_dtypes_are_named() -> None:
    assert [EmbedOptions(dtype=d).dtype for d in (np.float32, "f4", np.dtype("float32"))] == ["float32"] * 3  # type: ignore[arg-type]


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in args])
    return int(end.value.code or 0)


@pytest.mark.parametrize("command", ["embed", "plan", "segment"])
def test_help_groups_the_flags_and_names_true_defaults(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "86")
    assert run(command, "--help") == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(f"{group} options" in text for group in ("embedding", "run", "read"))
    assert "{None}" not in text
    assert "(default: None)" not in text
    words = " ".join(line.strip("│| ") for line in text.splitlines())
    assert words.count("(default: the card's)") >= 3
    assert "(default: automatic)" in words
    for field in (*dataclasses.fields(EmbedOptions), *dataclasses.fields(RunOptions)):
        assert f"--{field.name.replace('_', '-')} " in text


def test_a_bad_flag_is_one_message_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", tmp_path / "cube.zarr", "--tile", "0") == 2
    error = capsys.readouterr().err
    assert error.startswith("deo-cube: --tile must be")
    assert run("embed", tmp_path / "cube.zarr", tmp_path / "out.zarr", "--batch-size", "0") == 2
    assert "--batch-size" in capsys.readouterr().err
