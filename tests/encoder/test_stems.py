from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.encoder.registry import bundled_cards, choose_stem
from deo_cube.errors import MissingBandsError

SWIN = bundled_cards()["swinb"]
MS, RGB = SWIN.stem("ms").bands, SWIN.stem("rgb").bands


@given(bands=st.permutations([*MS, "B01", "B09"]))
def test_the_first_stem_where_all_its_bands_are_there_in_any_order(bands: list[str]) -> None:
    stem, order = choose_stem(SWIN, bands)
    assert stem.name == "ms"
    assert tuple(bands[i] for i in order) == MS


@given(bands=st.permutations(RGB))
def test_rgb_where_only_rgb_is_there(bands: list[str]) -> None:
    stem, order = choose_stem(SWIN, bands)
    assert stem.name == "rgb"
    assert tuple(bands[i] for i in order) == RGB


def test_names_in_other_words() -> None:
    assert choose_stem(SWIN, ["Blue", "b4", "B03_10m"]) == (SWIN.stem("rgb"), [1, 2, 0])


def test_a_card_may_name_bands_of_its_own() -> None:
    stem = dataclasses.replace(SWIN.stem("rgb"), bands=("VV", "VH", "DEM"))
    assert choose_stem(dataclasses.replace(SWIN, stems=(stem,)), ["DEM", "VH", "VV"]) == (stem, [2, 1, 0])


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (
            ["B02", "B03", "B04", "B08"],
            r"stem 'ms' reads .*: missing \['B05'.*\n.*stem 'rgb'.*\['B08'\] would go unread",
        ),
        (["B02", "B03"], r"missing \['B04'\]"),
        (["B02", "blue", "B04"], r"\['B02'\] occur more than once"),
        ([], "missing"),
    ],
)
def test_refuses(bands: list[str], message: str) -> None:
    with pytest.raises(MissingBandsError, match=message):
        choose_stem(SWIN, bands)
