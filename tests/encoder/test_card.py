from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.encoder.card import Layer, ModelCard, Normalization, Reference, Stem, Weights
from deo_cube.encoder.registry import bundled_cards, card, describe
from deo_cube.errors import ModelCardError, UnknownModelError

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
    with pytest.raises(UnknownModelError, match="'block1'"):
        SWIN.layer("block1")
    with pytest.raises(UnknownModelError, match="'sar'"):
        SWIN.stem("sar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 0}, "tile must be positive"),
        ({"tile": 380}, "not a multiple of stride 32"),
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
        (lambda: Normalization("x", "fixed", (1.0,), (math.nan,)), "must be positive, finite"),
        (lambda: Normalization("x", "fixed", (1.0,), (math.inf,)), "must be positive, finite"),
        (lambda: Normalization("x", "fixed", (math.nan,), (1.0,)), "means must be finite"),
        (lambda: Layer("x", 1, 8, int8_scale=math.nan), "int8_scale"),
        (lambda: Layer("x", 1, 8, int8_scale=-1.0), "int8_scale"),
        (lambda: Reference("ms", 64, (math.nan,)), "finite"),
        (lambda: Reference("ms", 64, (0.0, 0.0)), "not all of them 0"),
        (lambda: Reference("ms", 10**6, (1.0,)), "a size of 1 to 1024"),
        (lambda: Reference("ms", 64, (1.0,), tolerance=math.inf), "tolerance"),
        (lambda: Weights("published", "../private"), "weights=PATH"),
        (lambda: Weights("published", "/etc/passwd"), "weights=PATH"),
        (lambda: Weights("published", "a\\b"), "weights=PATH"),
        (lambda: Weights("published", "C:net.pth"), "weights=PATH"),
        (lambda: Weights("published", "x", sha256="abc"), r"weights\.sha256"),
        (lambda: Weights("published", "x", url="http://169.254.169.254/latest"), r"weights\.url"),
        (lambda: Weights("published", "x", url="file:///etc/passwd"), r"weights\.url"),
        (lambda: Weights("published", "x", repo="../../x", revision="0"), r"weights\.repo"),
        (lambda: Weights("published", "x", repo="a@b.c/d", revision="0"), r"weights\.repo"),
        (lambda: Weights("published", "x", repo="a/b", revision="../0"), r"weights\.revision"),
        (lambda: Weights("published", "x", key_prefixes=("",)), "empty text"),
        (lambda: Stem("x", (), (Normalization("own", "own"),)), "has 0 bands"),
        (lambda: Stem("x", ("B04", "B04"), (Normalization("own", "own"),)), "names a band twice"),
        (lambda: Stem("x", ("B04",), ()), "has no normalization"),
        (lambda: Stem("x", ("B04",), (Normalization("f", "fixed", (1.0, 2.0), (1.0, 2.0)),)), "2 means for 1 bands"),
        (lambda: Layer("x", 0, 8), "expected dim 1 to"),
        (lambda: Weights("random", "x"), "unknown weights status"),  # type: ignore[arg-type]
        (lambda: Weights("published", "x", repo="a/b"), "a revision must be pinned"),
        (lambda: ModelCard.from_dict({**SWIN.to_dict(), "colour": 1}), r"unknown fields \['colour'\]"),
        (lambda: ModelCard.from_dict({"name": "x"}), "missing"),
        (lambda: ModelCard.from_dict({**SWIN.to_dict(), "layers": 5}), "expected a list, got int"),
        (lambda: ModelCard.from_dict({**SWIN.to_dict(), "weights": "x"}), "expected a mapping, got str"),
    ],
)
def test_parts_are_validated(make, message: str) -> None:
    with pytest.raises(ModelCardError, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5),
        ("tile", "256"),
        ("tile", 256.5),
        ("tile", True),
        ("gsd", "10"),
        ("gsd", 10**400),
        ("units", ["dn"]),
        ("architecture", ["vit"]),
        ("summary", None),
        ("limits", "none"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(ModelCardError, match=rf"card\.{field}|{field}"):
        ModelCard.from_dict({**SWIN.to_dict(), field: value})


def test_a_file_that_is_no_card_is_refused(tmp_path: Path) -> None:
    good = SWIN.to_json()
    file = tmp_path / "card.json"
    for text in ("", "{", "[" * 100_000, good.replace('"gsd": 10.0', '"gsd": NaN'), good + " " * 2**20, "5", "null"):
        file.write_text(text)
        with pytest.raises(ModelCardError):
            ModelCard.load(file)
        with pytest.raises(UnknownModelError, match=r"card\.json"):
            card(tmp_path)
    file.write_text(good)
    assert card(tmp_path) == SWIN


LARGE = {
    "vit": {"depth": 10**7},
    "vit wide": {"dim": 2**31},
    "vit, each size allowed": {"dim": 16384, "depth": 256},
    "vit, not a number": {"mlp_ratio": math.nan},
    "swin": {"depths": [2, 2, 10**7, 2]},
    "swin, many stages": {"depths": [1] * 40, "heads": [1] * 40},
    "conv": {"local": 10**9},
    "timm": {"model": "vit_tiny_patch16_224", "options": {"depth": 10**7}},
    "timm, widths": {"model": "vit_tiny_patch16_224", "options": {"embed_dim": 16384, "depth": 256}},
}


@pytest.mark.parametrize("name", LARGE)
def test_sizes_are_bounded_before_anything_is_built(name: str, tmp_path: Path) -> None:
    d = SWIN.to_dict()
    d["architecture"] = {"family": name.split(",")[0].split()[0], **LARGE[name]}
    d["weights"] |= {"status": "untrained", "file": "", "repo": None, "revision": None}
    (tmp_path / "card.json").write_text(json.dumps(d))
    begin = time.process_time()
    with pytest.raises(UnknownModelError, match=r"architecture"):
        card(tmp_path)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "change", [{"tile": 2**31}, {"batch": 10**9}, {"layers": [{"name": "x", "dim": 2**40, "stride": 8}]}]
)
def test_tiles_batches_and_layers_are_bounded(change: dict) -> None:
    with pytest.raises(ModelCardError, match="expected"):
        ModelCard.from_dict({**SWIN.to_dict(), **change})


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "run/weights.pth"},
        {"pretrained_cfg": {"file": "weights.pth"}},
        {"pretrained_cfg_overlay": {"url": "http://127.0.0.1/x"}},
        {"pretrained_strict": False},
        {"cache_dir": "/tmp"},
        {"features_only": True},
        {"scriptable": True},
        {"in_chans": 5},
        {"kwargs": {}},
        {"act_layer": "os.system('x')"},
        {"img_size": 10**9},
        {"img_size": {"file": "x"}},
    ],
)
def test_no_option_of_files_addresses_or_the_library_reaches_timm(options: dict) -> None:
    fields = dict(bands=["B04"], dim=1, patch=8)
    with pytest.raises(ModelCardError, match=f"{next(iter(options))}.*|register_encoder"):
        describe("x", architecture={"family": "timm", "model": "resnet10t", "options": options}, **fields)


@pytest.mark.parametrize("model", ["hf-hub:someone/net", "local-dir:/srv/net", "hf_hub:a/b", "../x", "", 5])
def test_a_model_of_timm_is_a_name(model: object) -> None:
    with pytest.raises(ModelCardError, match=r"architecture\.model"):
        describe("x", bands=["B04"], dim=1, patch=8, architecture={"family": "timm", "model": model})


def test_repr_is_a_sentence() -> None:
    assert repr(SWIN) == (
        "<ModelCard swinb: deo_swin_base_window12.cvpr2026, 10 bands at 10 m, tile 384, halo 32, "
        "one 1024-vector per 32 px (norm), published weights>"
    )
    untrained = dataclasses.replace(SWIN, weights=Weights("untrained", ""))
    assert "UNTRAINED: random weights" in repr(untrained)
