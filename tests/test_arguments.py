"""Checks of single arguments: what is accepted comes back as the plain Python value, the rest is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube import arguments
from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_integers_of_python_and_numpy_are_accepted(value: Any) -> None:
    whole = arguments.integer("tile", value)
    assert whole == 3
    assert type(whole) is int


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, np.float64(3), "3", None, [3], float("nan"), object()])
def test_what_is_not_an_integer_is_a_type_error_that_names_the_argument(value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="tile") as caught:
        arguments.integer("tile", value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**400])
def test_integers_out_of_range_are_value_errors_that_name_the_argument(value: int) -> None:
    with pytest.raises(ArgumentError, match="tile") as caught:
        arguments.integer("tile", value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [1, 1.5, np.float32(1.5), np.int8(1), np.array(1.5)])
def test_numbers_of_python_and_numpy_are_accepted(value: Any) -> None:
    real = arguments.number("offset", value)
    assert real == float(value)
    assert type(real) is float


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, 10**400, -0.5, 2.5])
def test_numbers_that_are_not_finite_or_out_of_range_are_refused(value: Any) -> None:
    with pytest.raises(ArgumentError, match="share"):
        arguments.number("share", value, minimum=0, maximum=2)
    with pytest.raises(ArgumentError, match="share"):
        arguments.number("share", 0, above=0)


@given(st.one_of(st.none(), st.booleans(), st.text(), st.binary(), st.lists(st.integers()), st.complex_numbers()))
def test_nothing_else_passes_as_a_number_or_an_integer(value: Any) -> None:
    for check in (arguments.integer, arguments.number):
        with pytest.raises(DeoCubeError, match="size"):
            check("size", value)


def test_choices_and_flags_are_refused_by_name() -> None:
    assert arguments.choice("edge", "pad", ("pad", "drop")) == "pad"
    assert arguments.boolean("overwrite", np.bool_(True)) is True
    for value in ("Pad", None, 1, ["pad"]):
        with pytest.raises(ArgumentError, match="edge.*'pad'.*'drop'"):
            arguments.choice("edge", value, ("pad", "drop"))
    assert arguments.boolean("overwrite", 1) is True
    for value in ("yes", 2, None, np.array([True])):
        with pytest.raises(ArgumentTypeError, match="overwrite"):
            arguments.boolean("overwrite", value)
