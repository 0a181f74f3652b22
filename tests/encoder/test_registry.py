from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deo_cube.encoder import catalog
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.catalog import CARDS, bundled_cards, list_models
from deo_cube.encoder.describe import describe, describe_timm
from deo_cube.encoder.families import build_network
from deo_cube.encoder.registry import card, load_encoder, register_encoder, resolve
from deo_cube.errors import MissingBandsError, UnknownModelError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import set_options

MS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("DEO_CUBE_WEIGHTS", raising=False)
    with set_options(cache_dir=tmp_path / "cache", offline=True):
        catalog._registered.clear()
        catalog._plugins.cache_clear()
        yield
        catalog._registered.clear()
        catalog._plugins.cache_clear()


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


def test_unknown_names_list_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="near it: vitb"):
        resolve("vit_b")
    with pytest.raises(UnknownModelError, match="Known are .*tiny.*run"):
        resolve("prithvi-eo")
    with pytest.raises(UnknownModelError, match=r"there is no .*card.json; the folder holds \[\]"):
        resolve(tmp_path)
    (tmp_path / "card.json").write_text('{"name": "x"}')
    with pytest.raises(UnknownModelError, match="is no model card"):
        resolve(tmp_path)
    with pytest.raises(UnknownModelError, match=f"no layer 'block12': choose from .*{card('tiny').layers[-1].name}"):
        resolve("tiny", layer="block12")
    with pytest.raises(UnknownModelError, match="has no normalization 'imagenet'"):
        resolve("tiny", normalize="imagenet")


def test_bands_at_hand_choose_the_stem() -> None:
    assert resolve("tiny").stem.name == "ms"
    assert resolve("tiny", bands=[*MS, "B01"]).stem.name == "ms"
    assert resolve("tiny", bands=["blue", "green", "red"]).stem.name == "rgb"
    with pytest.raises(MissingBandsError, match="stem 'ms' reads .*missing"):
        resolve("tiny", bands=["B02", "B03", "B04", "B08"])


def test_published_models_without_weights_say_where_to_get_them() -> None:
    for name in ("vitb", "swinb"):
        with pytest.raises(WeightsNotFoundError, match="SolaireTheSun/DEO"):
            resolve(name)


@pytest.mark.parametrize("name", ["vitb", "swinb"])
def test_published_sizes_build_and_their_files_are_checked_at_the_call(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        network = build_network(card(name))
    state = network.state_dict()
    parameters = sum(v.numel() for v in state.values()) / 1e6
    assert parameters == pytest.approx({"vitb": 86.30, "swinb": 86.90}[name], abs=0.005)
    assert {la.name: (la.dim, la.stride) for la in card(name).layers}.items() <= network.layers.items()
    # The right names and shapes pass; the published index buffers are counted in (355 for the Swin-B).
    indices = [k.replace("bias_table", "index") for k in state if k.endswith("relative_position_bias_table")]
    assert len(state) + len(indices) == {"vitb": 152, "swinb": 355}[name]
    foreign = tmp_path / "foreign.safetensors"
    save_file({"encoder.layer.0.weight": torch.zeros(3, 3)}, foreign)
    with pytest.raises(WeightsMismatchError, match="does not fill the network exactly"):
        resolve(name, weights=foreign)


def test_list_models_needs_no_torch_and_is_honest() -> None:
    table = list_models().set_index("alias")
    assert {"tiny", "vitb", "swinb"} <= set(table.index)
    assert table.loc["tiny", "offline"]
    assert not table.loc["vitb", "offline"]
    assert not table.loc["swinb", "offline"]
    assert table.loc["swinb", "weights"] == "published"
    assert table.loc["tiny", "weights"] == card("tiny").weights.status
    code = (
        "import sys\nfrom deo_cube.encoder.registry import card, list_models, resolve\n"
        "list_models(); card('vitb'); resolve('tiny'); print('torch' in sys.modules, 'timm' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_load_encoder_runs() -> None:
    encoder = load_encoder("tiny", device="cpu")
    layer = encoder.layer
    out = encoder.encode(np.full((2, 10, 64, 96), 1200, np.uint16))
    assert out.shape == (2, layer.dim, 64 // layer.stride, 96 // layer.stride)
    assert not any(p.requires_grad for p in encoder.network.parameters())  # type: ignore[attr-defined]


# Your own encoder.


def test_a_function_in_two_lines() -> None:
    register_encoder(describe("means", bands=["B04", "B08"], dim=2, patch=16), lambda: lambda x: F.avg_pool2d(x, 16))
    encoder = load_encoder("means", device="cpu")
    x = np.random.default_rng(0).uniform(0, 4000, (2, 3, 64, 64)).astype(np.float32)
    found = encoder.encode(x, bands=["B08", "B11", "B04"])
    mean, std = encoder.normalization.mean, encoder.normalization.std
    want = (x[:, [2, 0]].reshape(2, 2, 4, 16, 4, 16).mean((3, 5)) - np.reshape(mean, (2, 1, 1))) / np.reshape(
        std, (2, 1, 1)
    )
    assert np.allclose(found, want, atol=1e-4)
    assert np.allclose(encoder.pool(x, bands=["B08", "B11", "B04"]), want.mean((2, 3)), atol=1e-4)
    assert "means" in set(list_models().alias)
    assert resolve(card("means")).factory is not None


def test_dinov3_body_with_ten_bands_in_one_line() -> None:
    register_encoder(describe_timm("dino10", "vit_small_patch16_dinov3", bands=MS, tile=64))
    made = card("dino10")
    assert (made.dim, made.patch, made.layers[-1].name, made.weights.status) == (384, 16, "norm", "untrained")
    encoder = load_encoder("dino10", device="cpu")
    assert "UNTRAINED" in repr(encoder)
    x = np.random.default_rng(0).uniform(0, 4000, (1, 10, 64, 96)).astype(np.float32)
    found = encoder.encode(x)
    assert found.shape == (1, 384, 4, 6)
    assert encoder.pool(x).shape == (1, 384)
    # The seeded initialisation is the same wherever it is loaded.
    assert np.array_equal(load_encoder("dino10", device="cpu").encode(x), found)


def test_a_convolutional_timm_model_and_its_stages() -> None:
    made = describe_timm("conv", "resnet10t", bands=MS[:3], tile=64)
    assert (made.layers[-1].name, made.patch, made.dim) == ("last", 32, 512)
    from deo_cube.encoder.card import Layer

    register_encoder(dataclasses.replace(made, layers=(Layer("stage3", 128, 8), *made.layers)))
    x = np.ones((1, 3, 64, 64), np.float32)
    assert resolve("conv", layer="stage3").load().encode(x).shape == (1, 128, 8, 8)
    assert load_encoder("conv", device="cpu").encode(x).shape == (1, 512, 2, 2)


def test_mistakes_of_a_registration() -> None:
    means = describe("tiny", bands=["B04"], dim=1, patch=8)
    with pytest.raises(ValueError, match="name of a bundled model"):
        register_encoder(means, lambda: lambda x: x)
    with pytest.raises(MissingBandsError, match=r"no mean and standard deviation of \['B01'\]"):
        describe("x", bands=["B01"], dim=1, patch=8)
    with pytest.raises(UnknownModelError, match="timm does not build"):
        describe_timm("x", "vit_of_nowhere", bands=MS)
    register_encoder(describe("wrong", bands=["B04"], dim=1, patch=8), lambda: 5)
    with pytest.raises(TypeError, match="factory of wrong returned a int"):
        resolve("wrong")
    register_encoder(describe("off", bands=["B04"], dim=1, patch=8), lambda: lambda x: F.avg_pool2d(x, 4))
    with pytest.raises(ValueError, match=r"gave a map \(1, 1, 8, 8\).*hence \(1, 1, 4, 4\)"):
        load_encoder("off", device="cpu").encode(np.ones((1, 1, 32, 32)))
    with pytest.raises(ValueError, match="takes no weights file"):
        resolve("off", weights="x.pth")
    odd = dataclasses.replace(describe("odd", bands=["B04"], dim=1, patch=8), architecture={"family": "mamba"})
    with pytest.raises(UnknownModelError, match="unknown architecture family 'mamba'"):
        resolve(odd)
    sizes = dataclasses.replace(odd, architecture={"family": "swin", "width": 3})
    with pytest.raises(UnknownModelError, match="swin does not take the architecture"):
        resolve(sizes)


# Plug-ins of installed packages.


def plugin() -> tuple[ModelCard, object]:
    return describe("plugged", bands=["B04"], dim=1, patch=8), lambda: lambda x: F.avg_pool2d(x, 8)


def broken() -> ModelCard:
    raise RuntimeError("no licence key")


def test_entry_points_are_loaded_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("plugged", f"{__name__}:plugin", "deo_cube.encoders"),
        EntryPoint("broken", f"{__name__}:broken", "deo_cube.encoders"),
    ]
    monkeypatch.setattr(catalog, "entry_points", lambda group: points if group == "deo_cube.encoders" else [])
    with pytest.warns(RuntimeWarning, match="'broken' .* failed: RuntimeError: no licence key"):
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
        assert c.stem("ms").bands == MS
        assert c.stem("rgb").bands == MS[:3]
        assert c.trained == (c.weights.status != "untrained")
        if c.weights.status == "untrained":
            assert "UNTRAINED" in c.summary + repr(c)
        if c.weights.status == "published":
            assert c.weights.sha256 is None
            assert c.reference is None
            assert any("NOT PROVEN" in limit for limit in c.limits)
    assert [n.name for n in card("swinb").stem().normalizations] == ["normalize_s2", "rgb_max", "own"]
