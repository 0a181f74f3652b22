from __future__ import annotations

import functools
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F

from deo_cube.encoder import registry
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import CARDS, bundled_cards, card, describe, list_models, load_encoder, resolve
from deo_cube.errors import WeightsNotFoundError

MS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


def test_by_alias_name_card_folder_and_file(tmp_path: Path) -> None:
    tiny = card("tiny")
    assert card(tiny.name) == card(tiny) == tiny
    assert card(CARDS / "tiny.json") == tiny
    folder = tmp_path / "runs" / "003"
    folder.mkdir(parents=True)
    tiny.save(folder / "card.json")
    assert card(str(folder)) == card(folder / "card.json") == tiny
    with pytest.raises(WeightsNotFoundError, match="runs/003"):
        resolve(folder)
    shutil.copy(CARDS / tiny.weights.file, folder)
    ref = resolve(folder)
    assert Path(ref.weights or "").parent == folder.resolve()
    assert resolve(ref) is ref


def test_the_card_of_a_plug_in_leads_to_its_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = describe("mine", bands=MS, dim=10, patch=8)
    entry = registry.KnownModel(mine, lambda: lambda x: F.avg_pool2d(x, 8))
    monkeypatch.setattr(registry, "_plugins", functools.lru_cache(lambda: {"mine": entry}))
    by_card = resolve(card("mine")).load("cpu").encode(np.full((1, 10, 16, 16), 900.0))
    np.testing.assert_array_equal(by_card, resolve("mine").load("cpu").encode(np.full((1, 10, 16, 16), 900.0)))


def test_a_factory_that_is_none_is_refused_when_it_is_registered() -> None:
    import torch

    for wrong in (5, torch.nn.Conv2d(10, 3, 8, 8)):
        with pytest.raises(TypeError, match="lambda: network"):
            registry.register_encoder(describe("mine", bands=MS, dim=3, patch=8), wrong)  # type: ignore[arg-type]
    assert "mine" not in registry.known_cards()


def test_list_models_is_honest() -> None:
    table = list_models().set_index("alias")
    assert {"tiny", "vitb", "swinb"} <= set(table.index)
    assert table.loc["tiny", "offline"]
    assert not table.loc["vitb", "offline"]
    assert not table.loc["swinb", "offline"]
    assert table.loc["swinb", "weights"] == "published"
    assert table.loc["tiny", "weights"] == card("tiny").weights.status


def plugin() -> tuple[ModelCard, object]:
    return describe("plugged", bands=["B04"], dim=1, patch=8), lambda: lambda x: F.avg_pool2d(x, 8)


def broken() -> ModelCard:
    raise RuntimeError("no licence key")


def test_entry_points_are_loaded_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("plugged", f"{__name__}:plugin", "deo_cube.encoders"),
        EntryPoint("broken", f"{__name__}:broken", "deo_cube.encoders"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "deo_cube.encoders" else [])
    with pytest.warns(RuntimeWarning, match="'broken'.*no licence key"):
        encoder = load_encoder("plugged", device="cpu")
    assert encoder.encode(np.full((1, 1, 16, 16), 1136.26)).shape == (1, 1, 2, 2)
    assert "plugged" in set(list_models().alias)


def test_bundled_cards_are_complete() -> None:
    for alias, c in bundled_cards().items():
        assert c.summary, alias
        assert c.limits, alias
        assert c.license_code, alias
        assert c.license_weights, alias
        assert c.training_data, alias
        assert ModelCard.from_dict(c.to_dict()) == c
        if alias in ("tiny", "vitb", "swinb"):
            assert c.stem("ms").bands == MS
            assert c.stem("rgb").bands == MS[:3]
        assert c.trained == (c.weights.status != "untrained")
        if c.weights.status == "untrained":
            assert "UNTRAINED" in c.summary + repr(c)
        # A hash without a vector proves nothing about the code; a vector alone tells the weights.
        assert c.reference is not None or any("NOT PROVEN" in limit for limit in c.limits)
    assert [n.name for n in card("swinb").stem().normalizations] == ["normalize_s2", "rgb_max", "own"]
