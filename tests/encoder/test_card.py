from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights
from deo_cube.encoder.catalog import bundled_cards
from deo_cube.errors import UnknownModelError

TINY, SWIN = bundled_cards()["tiny"], bundled_cards()["swinb"]


@pytest.mark.parametrize("card", bundled_cards().values(), ids=lambda c: c.alias)
def test_json_and_back(card: ModelCard, tmp_path: Path) -> None:
    card.save(tmp_path / "card.json")
    file = tmp_path / "card.json"
    for again in (ModelCard.load(tmp_path), ModelCard.load(file), ModelCard.from_dict(card.to_dict())):
        assert again == card
        assert again.fingerprint == card.fingerprint
        assert hash(again) == hash(card)
    assert ModelCard.load(tmp_path).folder == str(tmp_path.resolve())
    assert "folder" not in json.loads(card.to_json())


@given(field=st.sampled_from(["summary", "license_code", "training_data", "paper", "tile", "halo"]))
def test_prose_and_default_sizes_leave_the_fingerprint_alone(field: str) -> None:
    value = {"tile": TINY.tile * 2, "halo": 0}.get(field, "other")
    assert dataclasses.replace(TINY, **{field: value}).fingerprint == TINY.fingerprint


def test_what_decides_the_numbers_changes_the_fingerprint() -> None:
    stem = TINY.stems[0]
    n = stem.normalizations[0]
    darker = dataclasses.replace(n, mean=tuple(m + 1 for m in n.mean))
    changed = [
        dataclasses.replace(TINY, units="reflectance"),
        dataclasses.replace(TINY, stems=(dataclasses.replace(stem, normalizations=(darker,)), *TINY.stems[1:])),
        dataclasses.replace(TINY, weights=dataclasses.replace(TINY.weights, sha256="0" * 64)),
        dataclasses.replace(TINY, architecture={**TINY.architecture, "seed": 1}),
        dataclasses.replace(TINY, layers=TINY.layers[:1]),
    ]
    assert len({c.fingerprint for c in [TINY, *changed]}) == len(changed) + 1


def test_defaults_and_lookups() -> None:
    assert SWIN.layer() is SWIN.layers[-1]
    assert SWIN.layer("stage2").stride == 8
    assert SWIN.stem() is SWIN.stems[0]
    assert SWIN.stem("rgb").bands == ("B04", "B03", "B02")
    assert (SWIN.patch, SWIN.dim, len(SWIN.bands)) == (32, 1024, 10)
    assert SWIN.stem().fill == SWIN.stem().normalization("normalize_s2").mean
    only_own = Stem("x", ("B04",), (Normalization("own", "own"),))
    assert only_own.fill == (0.0,)
    with pytest.raises(UnknownModelError, match="no layer 'block1': choose from"):
        SWIN.layer("block1")
    with pytest.raises(UnknownModelError, match="no stem 'sar'"):
        SWIN.stem("sar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 0}, "tile must be positive"),
        ({"tile": 380}, "no multiple of stride 32"),
        ({"halo": 192}, "leaves no core"),
        ({"gsd": 0}, "gsd must be positive"),
        ({"units": "toa"}, "unknown units 'toa'"),
        ({"layers": ()}, "needs a stem and a layer"),
        ({"layers": SWIN.layers[:1] * 2}, "a layer name occurs twice"),
        ({"architecture": {}}, "no family"),
        ({"alias": ""}, "needs a name and an alias"),
    ],
)
def test_values_that_do_not_fit(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SWIN, **change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalization("x", "imagenet"), "unknown kind"),  # type: ignore[arg-type]
        (lambda: Normalization("x", "fixed", (1.0,), (1.0, 2.0)), "1 means, 2 standard"),
        (lambda: Normalization("x", "fixed", (1.0,), (0.0,)), "must be positive"),
        (lambda: Stem("x", (), (Normalization("own", "own"),)), "has no bands"),
        (lambda: Stem("x", ("B04", "B04"), (Normalization("own", "own"),)), "names a band twice"),
        (lambda: Stem("x", ("B04",), ()), "has no normalization"),
        (lambda: Stem("x", ("B04",), (Normalization("f", "fixed", (1.0, 2.0), (1.0, 2.0)),)), "2 means for 1 bands"),
        (lambda: Layer("x", 0, 8), "must be positive"),
        (lambda: Weights("random", "x"), "unknown weights status"),  # type: ignore[arg-type]
        (lambda: Weights("published", "x", repo="a/b"), "a revision must be pinned"),
        (lambda: ModelCard.from_dict({**SWIN.to_dict(), "colour": 1}), r"unknown fields \['colour'\]"),
        (lambda: ModelCard.from_dict({"name": "x"}), "missing"),
        (lambda: ModelCard.from_dict({**SWIN.to_dict(), "layers": 5}), "wanted a list, got int"),
        (lambda: ModelCard.from_dict({**SWIN.to_dict(), "weights": "x"}), "wanted a mapping, got str"),
    ],
)
def test_parts_are_validated(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_repr_is_a_sentence() -> None:
    assert repr(SWIN) == (
        "<ModelCard swinb: deo_swin_base_window12.cvpr2026, 10 bands at 10 m, tile 384, halo 32, "
        "one 1024-vector per 32 px (norm), published weights>"
    )
    untrained = dataclasses.replace(SWIN, weights=Weights("untrained", ""))
    assert "UNTRAINED: random weights" in repr(untrained)
