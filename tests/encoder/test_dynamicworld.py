from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import deo_cube
from deo_cube.encoder.checkpoint_format import key_form, read_state, sniff
from deo_cube.encoder.loading import verify
from deo_cube.encoder.networks.dynamicworld import CLASSES, COLORS, LAYOUT, DynamicWorld, read_variables
from deo_cube.encoder.normalize import normalize
from deo_cube.encoder.registry import bundled_cards, card, load_encoder, resolve
from deo_cube.errors import ArgumentError, WeightsMismatchError

VARIABLES = "dynamicworld_variables.data-00000-of-00001"
FOLDED = "dynamicworld_forward.safetensors"
REACH = {"concat": 16, "logits": 22, "unit": 22}


@pytest.fixture(scope="module")
def network(shared: Path) -> DynamicWorld:
    network = DynamicWorld(stems={"ms": 9})
    network.load_state_dict(read_variables(shared / "data/weights" / VARIABLES), strict=True)
    return network.eval()


@pytest.mark.real
@pytest.mark.parametrize("size", ["32x40", "25x31"])
def test_every_layer_equals_the_published_network(shared: Path, network: DynamicWorld, size: str) -> None:
    golden = read_state(shared / "golden/dynamicworld.safetensors")
    with torch.inference_mode():
        out = network.forward_features(golden[f"{size}.input"][None])
    for name, tolerance in {"concat": 4e-5, "unit": 1e-6, "logits": 1e-5}.items():
        torch.testing.assert_close(out[name][0], golden[f"{size}.{name}"], rtol=0, atol=tolerance)
    torch.testing.assert_close(out["pooled"], out["unit"].mean(dim=(2, 3)))


@pytest.mark.real
def test_the_variables_file_equals_the_folded_tensors(shared: Path) -> None:
    weights = shared / "data/weights"
    table = json.loads((shared / "golden/dynamicworld_file.json").read_text())["tensors"]
    assert {k: (v["offset"], tuple(v["shape"])) for k, v in table.items()} == dict(LAYOUT)
    folded, published = read_state(weights / FOLDED), read_state(weights / VARIABLES)
    assert set(folded) == set(published)
    for name in folded:
        torch.testing.assert_close(published[name], folded[name], rtol=0, atol=3e-7)


@pytest.mark.real
@pytest.mark.parametrize("file", [VARIABLES, FOLDED])
def test_both_files_are_proven(shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str) -> None:
    source = shared / "data/weights" / file
    assert verify("dynamicworld", weights=source).proven
    shutil.copy(source, tmp_path / file)
    monkeypatch.setenv("DEO_CUBE_WEIGHTS", str(tmp_path))
    assert resolve("dynamicworld").weights == str(tmp_path / file)
    assert "safetensors" in str(key_form(source)) or "dynamicworld" in str(key_form(source))


@pytest.mark.real
def test_a_changed_variables_file_is_refused(shared: Path, tmp_path: Path) -> None:
    data = bytearray((shared / "data/weights" / VARIABLES).read_bytes())
    data[5000] ^= 1
    broken = tmp_path / VARIABLES
    broken.write_bytes(bytes(data))
    for call in (sniff, read_state, lambda path: resolve("dynamicworld", weights=path)):
        with pytest.raises(WeightsMismatchError):
            call(broken)
    broken.write_bytes(bytes(data[:1000]))
    with pytest.raises(WeightsMismatchError, match="weights="):
        read_variables(broken)


def test_layout_has_a_norm_for_every_convolution_but_the_last() -> None:
    names = {name.rpartition(".")[0] for name in LAYOUT}
    assert {n for n in names if f"{n}.gamma" not in LAYOUT} == {"logits"}
    state = {n: tuple(t.shape) for n, t in DynamicWorld(stems={"ms": 9}).state_dict().items()}
    assert {f"{n}.{p}" for n in names for p in ("weight", "bias")} == set(state)


@pytest.mark.parametrize("layer", ["concat", "logits", "unit"])
def test_a_halo_of_the_reach_hides_the_border(layer: str) -> None:
    torch.manual_seed(0)
    network = DynamicWorld(stems={"ms": 9}).eval()
    x, stride, reach = torch.rand(1, 9, 96, 96), network.layers[layer][1], REACH[layer]
    inner = slice(reach // stride, (64 - reach) // stride)
    with torch.inference_mode():
        whole = network.forward_features(x, layers=(layer,))[layer][..., 16 // stride : 80 // stride, :]
        whole = whole[..., 16 // stride : 80 // stride]
        part = network.forward_features(x[..., 16:80, 16:80], layers=(layer,))[layer]
    torch.testing.assert_close(part[..., inner, inner], whole[..., inner, inner], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(part, whole, rtol=1e-3)
    assert card("dynamicworld").halo >= reach


def test_input_transform_is_the_published_one() -> None:
    stem = card("dynamicworld").stem()
    how = stem.normalization()
    dn = np.random.default_rng(0).uniform(0, 10000, (1, 9, 4, 4))
    a, b = (np.array(v)[:, None, None] for v in (how.mean, how.std))
    expected = 1 / (1 + np.exp(-(5 * (np.log(0.005 * dn + 1) - a) / b - 1)))
    x = torch.from_numpy(dn.astype(np.float32))
    np.testing.assert_allclose(normalize(x, stem, how).numpy(), expected, rtol=1e-5)
    assert torch.isfinite(normalize(x - 10000, stem, how)).all()
    neutral = torch.tensor(stem.fill)[None, :, None, None]
    np.testing.assert_allclose(normalize(neutral, stem, how).numpy(), 1 / (1 + np.e), rtol=1e-5)


def test_wrong_input_is_refused() -> None:
    network = DynamicWorld(stems={"ms": 9})
    with pytest.raises(ArgumentError, match="stems"):
        DynamicWorld(stems={"ms": 10})
    with pytest.raises(ArgumentError, match="layer"):
        network.forward_features(torch.zeros(1, 9, 8, 8), layers=("norm",))
    with pytest.raises(ArgumentError, match="batch"):
        network.forward_features(torch.zeros(1, 10, 8, 8))


def test_the_card_names_publisher_and_licence() -> None:
    c = card("dynamicworld")
    assert len(CLASSES) == len(COLORS) == c.layer("logits").dim
    assert c.product_level == "L1C"
    assert c.weights.url is not None
    assert c.weights.url.startswith("https://raw.githubusercontent.com/google/dynamicworld/0dd288fa")
    assert "National Geographic" in c.license_code


def test_other_cards_keep_their_json() -> None:
    for alias, c in bundled_cards().items():
        assert ("alternatives" in c.to_dict()["weights"]) == (alias == "dynamicworld")
        assert type(c).from_dict(c.to_dict()) == c


@pytest.mark.real
def test_embed_does_not_depend_on_chunks_and_warns_on_l2a(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEO_CUBE_WEIGHTS", str(shared / "data/weights"))
    bands = card("dynamicworld").bands
    cube = deo_cube.synthetic_cube(size=96, times=1).assign_attrs(product_level="L1C")
    tiles = {"tile": 80, "halo": 24, "dtype": "float32", "device": "cpu"}
    whole = cube.deo.embed("dynamicworld", layer="logits", **tiles).compute()
    cut = cube.chunk(y=40, x=50).deo.embed("dynamicworld", layer="logits", block=32, **tiles).compute()
    assert whole.sizes["embedding"] == 9
    assert whole.shape[-2:] == (96, 96)
    xr.testing.assert_allclose(whole, cut, atol=1e-5)
    # One tile that holds the whole cube sees the same: no seam.
    one = cube.deo.embed("dynamicworld", layer="logits", tile=240, halo=24, dtype="float32", device="cpu").compute()
    np.testing.assert_allclose(whole.values, one.values, atol=1e-4)
    half = cube.deo.embed("dynamicworld", layer="concat", **tiles)
    assert half.shape[-3:] == (192, 48, 48)
    with pytest.warns(UserWarning, match="L1C"):
        cube.assign_attrs(product_level="L2A").deo.embed("dynamicworld")
    pixels = np.full((1, len(bands), 32, 32), 1200, np.uint16)
    assert load_encoder("dynamicworld", device="cpu").encode(pixels).shape == (1, 144, 32, 32)
