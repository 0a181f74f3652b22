"""Cards of encoders that others publish: networks of the published sizes, filled from files of the published form."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import deo_cube
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.loading import verify
from deo_cube.encoder.networks.adapters import build_network
from deo_cube.encoder.networks.timm_import import import_timm
from deo_cube.encoder.registry import bundled_cards, load_encoder
from deo_cube.encoder.weights import find_weights, recorded_reference, weights_state
from deo_cube.errors import MissingBandsError, WeightsMismatchError
from deo_cube.evaluate.published import verify_published
from deo_cube.options import set_options
from tests.encoder.test_hub import Hub

L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
#: Card -> bytes of the published file on the hub, its number of tensors without counters, and three of them.
PUBLISHED = {
    "ssl4eo_vits16_moco": (
        90668909,
        150,
        {"pos_embed": (1, 197, 384), "patch_embed.proj.weight": (384, 13, 16, 16), "norm.bias": (384,)},
    ),
    "ssl4eo_vits16_dino": (
        90644269,
        150,
        {"cls_token": (1, 1, 384), "blocks.11.attn.qkv.weight": (1152, 384), "norm.weight": (384,)},
    ),
    "ssl4eo_resnet50_moco": (
        94487109,
        265,
        {"conv1.weight": (64, 13, 7, 7), "layer1.0.downsample.0.weight": (256, 64, 1, 1), "bn1.running_var": (64,)},
    ),
    "ssl4eo_resnet50_dino": (
        94470597,
        265,
        {"conv1.weight": (64, 13, 7, 7), "layer4.2.conv3.weight": (2048, 512, 1, 1), "bn1.weight": (64,)},
    ),
    "ssl4eo_resnet50_rgb": (
        94361669,
        265,
        {"conv1.weight": (64, 3, 7, 7), "layer3.5.bn3.running_mean": (1024,), "bn1.bias": (64,)},
    ),
    "ssl4eo_resnet18_moco": (
        44915225,
        100,
        {"conv1.weight": (64, 13, 7, 7), "layer4.0.downsample.0.weight": (512, 256, 1, 1), "bn1.weight": (64,)},
    ),
    "softcon_resnet50": (
        94472581,
        265,
        {"conv1.weight": (64, 13, 7, 7), "layer2.0.bn2.bias": (128,), "layer1.2.conv2.weight": (64, 64, 3, 3)},
    ),
}
TIMM = ("ssl4eo_vits16_moco", "ssl4eo_resnet50_dino")
#: Options of timm for the same kinds of network with fewer blocks.
FEW_BLOCKS: dict[str, dict[str, Any]] = {"vit_small_patch16_224": {"depth": 1}, "resnet50": {"layers": [1, 1, 1, 1]}}


class Publisher(Hub):
    """A hub with the file of one card, at the commit that the card pins."""

    card: ModelCard

    def content(self, path: str) -> bytes | None:
        w = self.card.weights
        return self.files.get(path.removeprefix(f"/{w.repo}/resolve/{w.revision}/"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    hub = Publisher()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def published_state(card: ModelCard) -> dict[str, torch.Tensor]:
    """Tensors of timm's own model under timm's own names, as TorchGeo saves them."""
    architecture = card.architecture
    torch.manual_seed(3)
    model = import_timm().create_model(
        architecture["model"], in_chans=len(card.bands), num_classes=0, **architecture.get("options", {})
    )
    return {name: t.contiguous() for name, t in model.state_dict().items()}


def saved(state: dict[str, torch.Tensor], path: Path) -> bytes:
    torch.save(state, path)
    return path.read_bytes()


def with_hash(card: ModelCard, data: bytes) -> ModelCard:
    return dataclasses.replace(card, weights=dataclasses.replace(card.weights, sha256=hashlib.sha256(data).hexdigest()))


def with_few_blocks(card: ModelCard) -> ModelCard:
    few = FEW_BLOCKS[str(card.architecture["model"])]
    options = {**card.architecture.get("options", {}), **few}
    layers = (dataclasses.replace(card.layers[0], name="block0"), card.layers[-1]) if "depth" in few else card.layers
    return dataclasses.replace(card, architecture={**card.architecture, "options": options}, layers=layers)


@pytest.mark.parametrize("alias", PUBLISHED)
def test_networks_have_the_size_of_the_published_files(alias: str) -> None:
    card = bundled_cards()[alias]
    size, tensors, some = PUBLISHED[alias]
    with torch.device("meta"):
        state = build_network(card).state_dict()
    shapes = {k.removeprefix("model."): tuple(t.shape) for k, t in state.items() if "num_batches" not in k}
    assert len(shapes) == tensors
    assert {name: shapes[name] for name in some} == some
    # The archive adds a header per tensor; a classification head of any size would be 100 times more.
    payload = 4 * sum(t.numel() for t in state.values())
    assert 0 < size - payload < 130_000
    assert card.weights.sha256 is not None
    if card.weights.repo != "wangyi111/softcon":
        assert f"-{card.weights.sha256[:8]}.pth" in card.weights.file


@pytest.mark.parametrize("alias", TIMM)
@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.slow), False])
def test_fetched_checked_filled_and_run(hub: Publisher, tmp_path: Path, alias: str, whole: bool) -> None:
    card = bundled_cards()[alias]
    card = card if whole else with_few_blocks(card)
    state = published_state(card)
    data = saved(state, tmp_path / "file")
    hub.card, hub.files = card, {card.weights.file: data}
    assert weights_state(card) == "weights can be fetched from the hub, not proven"
    with set_options(offline=False):
        # The card's own hash is that of the published file, which this one is not.
        with pytest.raises(WeightsMismatchError, match=card.weights.sha256):
            find_weights(card)
        card = with_hash(card, data)
        with pytest.warns(UserWarning, match="NOT PROVEN"):
            encoder = load_encoder(card, device="cpu")
    network: Any = encoder.network
    filled = {k.removeprefix("model."): t for k, t in network.state_dict().items()}
    torch.testing.assert_close(filled, state)
    recorded = recorded_reference(card, card.weights.sha256 or "")
    assert recorded is not None
    found = verify(card)
    assert found.recorded
    assert found.ok
    assert not found.proven
    bands = {name: np.full((1, 96, 96), 900.0 + 50 * i, np.float32) for i, name in enumerate(L1C)}
    cube = l1c_cube(bands)
    emb = cube.deo.embed(card, device="cpu", dtype="float32").compute()
    layer = card.layer()
    assert emb.shape == (1, layer.dim, 96 // layer.stride, 96 // layer.stride)
    assert np.isfinite(emb.values).all()
    assert float(emb.std()) > 0
    contribution = verify_published(find_weights(card), model=card).contribution
    assert contribution.weights.sha256 == card.weights.sha256
    assert contribution.reference is not None
    assert contribution.reference.vector == pytest.approx(recorded.vector, abs=1e-5)
    with pytest.raises(MissingBandsError, match="B10"):  # as of L2A
        cube.drop_vars("B10").deo.embed(card, device="cpu")


def l1c_cube(bands: dict[str, np.ndarray]) -> xr.Dataset:
    like = deo_cube.synthetic_cube(size=96, times=1)
    rng = np.random.default_rng(0)
    first = next(v for v in like.data_vars.values() if v.ndim == 3)
    made = {
        name: (first.dims, (values + rng.normal(0, 30, values.shape)).astype(first.dtype), first.attrs)
        for name, values in bands.items()
    }
    return xr.Dataset(made, coords=like.coords).assign_attrs({**like.attrs, "product_level": "L1C"})


@pytest.mark.parametrize("alias", TIMM)
def test_a_head_is_left_out_by_name_and_nothing_else_is(tmp_path: Path, alias: str) -> None:
    card = with_few_blocks(bundled_cards()[alias])
    state = published_state(card)
    head = {name: torch.zeros(3, 3) if name.endswith("weight") else torch.zeros(3) for name in card.weights.unused}
    path = tmp_path / "x.pth"
    for more in ({}, head):
        load_encoder(with_hash(card, saved({**state, **more}, path)), weights=path, device="cpu")
    # Without counters, as files of other versions of PyTorch are; and as this package writes a network of timm.
    fewer = {name: t for name, t in state.items() if "num_batches" not in name}
    load_encoder(with_hash(card, saved(fewer, path)), weights=path, device="cpu")
    wrapped = {f"model.{name}": t for name, t in state.items()}
    load_encoder(with_hash(card, saved(wrapped, path)), weights=path, device="cpu")
    for name, wrong in {
        "projector.weight": {**state, "projector.weight": torch.zeros(3)},
        "base_encoder": {f"base_encoder.{k}": t for k, t in state.items()},
        next(iter(state)): dict(list(state.items())[1:]),
    }.items():
        with pytest.raises(WeightsMismatchError, match=name):
            load_encoder(with_hash(card, saved(wrong, path)), weights=path, device="cpu")


@pytest.mark.real
@pytest.mark.parametrize("alias", TIMM)
def test_thirteen_bands_of_a_real_tile_are_read_and_its_twelve_refused(
    shared: Path, tmp_path: Path, alias: str
) -> None:
    folder = shared / "data/landcover_terramesh/38D_378R_2_3"
    tile = deo_cube.open_cube(folder / "S2L1C.tif")
    card = with_few_blocks(bundled_cards()[alias])
    path = tmp_path / "random.pth"
    card = with_hash(card, saved(published_state(card), path))
    emb = tile.deo.embed(card, weights=path, offset=0, device="cpu", dtype="float32").compute()
    stride = card.layer().stride
    # The cells are those of the coordinate system, which the edges of the tile cut.
    assert emb.sizes["embedding"] == card.dim
    assert emb.sizes["y"] - tile.sizes["y"] / stride < 2
    assert np.isfinite(emb.values).mean() > 0.5
    with pytest.raises(MissingBandsError, match="B10"):
        deo_cube.open_cube(folder / "S2L2A.tif").deo.embed(card, weights=path, offset=0, device="cpu")


@pytest.mark.parametrize("alias", ["galileo_tiny", "galileo_base"])
def test_galileo_of_other_sizes_is_fetched_by_name(alias: str) -> None:
    card = bundled_cards()[alias]
    assert weights_state(card) == "weights can be fetched from the hub, not proven"
    assert card.weights.file == f"models/{alias.removeprefix('galileo_')}/encoder.pt"
    assert card.stems == bundled_cards()["galileo_nano"].stems
    with torch.device("meta"):
        network = build_network(card)
    dim, depth = card.architecture["dim"], card.architecture["depth"]
    state = network.state_dict()
    assert tuple(state["space_time_embed.S2_RGB.proj.weight"].shape) == (dim, 3, 8, 8)
    assert tuple(state["pos_embed"].shape) == (24, dim // 4)
    assert sum(name.endswith("attn.q.weight") for name in state) == depth
    assert {la.name for la in card.layers} <= set(network.layers)  # type: ignore[arg-type]


def test_galileo_tiny_runs_from_a_file(tmp_path: Path) -> None:
    card = bundled_cards()["galileo_tiny"]
    torch.manual_seed(0)
    torch.save(build_network(card).state_dict(), tmp_path / "encoder.pt")
    cube = deo_cube.synthetic_cube(size=48, times=1).assign_attrs(product_level="L1C")
    emb = cube.deo.embed(card, weights=tmp_path / "encoder.pt", device="cpu", dtype="float32").compute()
    assert emb.shape == (1, 192, 12, 12)
    torch.save(build_network(bundled_cards()["galileo_nano"]).state_dict(), tmp_path / "encoder.pt")
    with pytest.raises(WeightsMismatchError, match="missing in the file: 128"):
        load_encoder(card, weights=tmp_path / "encoder.pt", device="cpu")
