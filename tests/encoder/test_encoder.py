from __future__ import annotations

import dataclasses
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.networks.swin import DeoSwin
from deo_cube.encoder.networks.vit import DeoViT
from deo_cube.encoder.normalize import normalize
from deo_cube.encoder.registry import resolve
from deo_cube.encoder.torch_settings import encoder_products
from deo_cube.errors import AmbiguousUnitsError, MissingBandsError, TilePlanError

MS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
STEMS = {"ms": 10, "rgb": 3}


def small_card(base: str, architecture: dict, layers: dict[str, tuple[int, int]], **fields: object) -> ModelCard:
    """A bundled card's stems and statistics on a network small enough to test with."""
    from deo_cube.encoder.card import Layer
    from deo_cube.encoder.registry import bundled_cards

    made = tuple(Layer(name, *size) for name, size in layers.items())
    options: dict = dict(alias="small", architecture=architecture, layers=made, tile=64, halo=0) | fields
    return dataclasses.replace(bundled_cards()[base], **options)


def swin(**fields: object) -> tuple[ModelCard, DeoSwin]:
    torch.manual_seed(0)
    sizes = dict(dim=8, depths=(2, 2), heads=(1, 2), window=4)
    network = DeoSwin(stems=STEMS, **sizes).eval()
    return small_card("swinb", {"family": "swin", **sizes}, network.layers, **fields), network


def vit() -> tuple[ModelCard, DeoViT]:
    torch.manual_seed(0)
    sizes = dict(dim=12, depth=3, heads=2, patch=8, grid=4)
    network = DeoViT(stems=STEMS, **sizes).eval()
    return small_card("vitb", {"family": "vit", **sizes}, network.layers), network


def tiles(channels: int = 10, size: int = 64, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 5000, (count, channels, size, size)).astype(np.float32)


@pytest.mark.parametrize("make", [swin, vit])
def test_encode_is_the_network_on_normalised_pixels(make) -> None:
    card, network = make()
    x = torch.from_numpy(tiles())
    with torch.inference_mode(), encoder_products("cpu"):
        want = network.forward_features(normalize(x, card.stem(), card.stem().normalization()), "ms")
    for layer in card.layers:
        found = Encoder(card, network, layer=layer.name).encode(x)
        assert torch.equal(found, want[layer.name])
        assert found.shape == (2, layer.dim, 64 // layer.stride, 64 // layer.stride)
    assert torch.equal(Encoder(card, network).pool(x), want["pooled"])


def test_pool_is_the_normed_class_token_of_a_vit_and_the_mean_of_a_swin() -> None:
    card, network = vit()
    x = torch.from_numpy(tiles())
    with encoder_products("cpu"):
        tokens = network.forward_tokens(normalize(x, card.stem(), card.stem().normalization()), "ms", ("norm",))["norm"]
    assert torch.equal(Encoder(card, network).pool(x), tokens[:, 0])
    encoder = Encoder(*swin())
    assert torch.allclose(encoder.pool(x), encoder.encode(x).mean((2, 3)), atol=1e-6)


def test_numpy_in_numpy_out_tensor_in_tensor_out() -> None:
    encoder = Encoder(*swin())
    x = tiles()
    for call in (encoder.encode, encoder.pool):
        a, b = call(x), call(torch.from_numpy(x))
        assert isinstance(a, np.ndarray)
        assert isinstance(b, torch.Tensor)
        assert a.dtype == np.float32
        assert b.dtype == torch.float32
        assert not b.requires_grad
        assert np.array_equal(a, b.numpy())


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float64, np.float32])
def test_any_dtype_of_the_same_values(dtype: type) -> None:
    encoder = Encoder(*swin())
    x = np.round(tiles())
    assert np.array_equal(encoder.pool(x.astype(dtype)), encoder.pool(x))
    assert np.array_equal(encoder.pool(np.asfortranarray(x.astype(dtype))), encoder.pool(x))
    foreign = x.astype(np.dtype(dtype).newbyteorder(">"))
    foreign.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        assert np.array_equal(encoder.pool(foreign), encoder.pool(x))
    assert np.array_equal(encoder.pool(x.astype(dtype)[:, ::-1], bands=MS[::-1]), encoder.pool(x))


def test_bands_are_matched_by_name_in_any_order() -> None:
    encoder = Encoder(*swin())
    x = tiles()
    want = encoder.encode(x)
    order = [9, 2, 0, 3, 1, 4, 8, 6, 7, 5]
    names = [MS[i] for i in order]
    assert np.array_equal(encoder.encode(x[:, order], bands=names), want)
    extra = np.concatenate([np.full_like(x[:, :2], 1e6), x[:, order]], axis=1)
    assert np.array_equal(encoder.encode(extra, bands=["B01", "B09", *names]), want)
    spoken = ["red", "green", "blue", "b5", "B6", "B07_20m", "nir", "b8a", "swir16", "B12"]
    assert np.array_equal(encoder.encode(x, bands=spoken), want)
    assert not np.array_equal(encoder.encode(x[:, order]), want)


def test_rgb_alone_goes_through_the_rgb_stem() -> None:
    card, network = swin()
    x = tiles(3)
    want = Encoder(card, network, stem="rgb").encode(x)
    assert np.array_equal(Encoder(card, network).encode(x[:, ::-1], bands=["B02", "B03", "B04"]), want)
    for how in ("rgb_max", "own"):
        want = Encoder(card, network, stem="rgb", normalization=how).pool(x)
        assert np.array_equal(Encoder(card, network, normalization=how).pool(x, bands=["B04", "B03", "B02"]), want)


def test_a_given_normalization_holds_for_the_rgb_stem_too() -> None:
    card, network = swin()
    given = {b: (1000.0 + i, 500.0 + i) for i, b in enumerate(MS)}
    encoder = Encoder(card, network, normalization=given)
    assert encoder.normalization.name == "given"
    rgb = Encoder(card, network, stem="rgb", normalization={b: given[b] for b in MS[:3]})
    assert np.array_equal(encoder.pool(tiles(3), bands=MS[:3]), rgb.pool(tiles(3)))
    back = Encoder(card, network, stem="rgb", normalization={b: given[b] for b in MS[:3]})
    with pytest.raises(MissingBandsError, match="normalization"):
        back.pool(tiles(10), bands=MS)


def test_units() -> None:
    encoder = Encoder(*swin())
    picture = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    rgb = MS[:3]
    want = encoder.encode(picture.astype(np.float32) * np.float32(2750 / 255), bands=rgb)
    assert np.allclose(encoder.encode(picture, bands=rgb), want, atol=1e-5)
    as_float = encoder.encode(picture.astype(np.float32), bands=rgb, units="uint8_rgb")
    assert np.array_equal(as_float, encoder.encode(picture, bands=rgb))
    x = tiles()
    assert np.allclose(encoder.encode(x / 1e4, units="reflectance"), encoder.encode(x), atol=1e-5)
    low = np.full((1, 10, 64, 64), 200, np.uint8)
    with pytest.raises(AmbiguousUnitsError, match="units"):
        encoder.encode(low)
    assert np.array_equal(encoder.encode(low, units="dn"), encoder.encode(low.astype(np.float32)))


def test_a_card_in_reflectance() -> None:
    card, network = swin()
    scaled = [
        dataclasses.replace(
            s,
            normalizations=(
                dataclasses.replace(
                    s.normalizations[0],
                    mean=tuple(m / 1e4 for m in s.normalizations[0].mean),
                    std=tuple(v / 1e4 for v in s.normalizations[0].std),
                ),
            ),
        )
        for s in card.stems
    ]
    other = dataclasses.replace(card, stems=tuple(scaled), units="reflectance")
    x = tiles()
    want = Encoder(card, network).pool(x)
    assert np.allclose(Encoder(other, network).pool(x / 1e4), want, atol=1e-4)
    assert np.allclose(Encoder(other, network).pool(x, units="dn"), want, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((2, 3, 64, 64), {}, MissingBandsError, "reads 10 bands .* has 3 channels: name them with bands="),
        ((2, 10, 64, 60), {}, TilePlanError, "W = 60 is not a multiple of 8.*: cut to 56 or pad to 64"),
        ((2, 10, 4, 64), {}, TilePlanError, "H = 4 is not a multiple of 8.*: pad to 8"),
        ((2, 10, 0, 64), {}, TilePlanError, "H = 0"),
        ((10, 64, 64), {}, ValueError, r"expected \[B, C, H, W\].*batch\[None\]"),
        ((2, 3, 64, 64), {"bands": MS}, MissingBandsError, "bands: expected 3 names"),
        ((2, 4, 64, 64), {"bands": [*MS[:3], "B08"]}, MissingBandsError, r"\['B08'\] would go unread"),
        ((2, 9, 64, 64), {"bands": MS[:9]}, MissingBandsError, r"missing \['B12'\]"),
        ((2, 4, 64, 64), {"bands": [*MS[:3], "b4"]}, MissingBandsError, r"\['B04'\] occur more than once"),
        ((2, 10, 64, 64), {"units": "toa"}, ValueError, "units must be one of"),
    ],
)
def test_refuses(shape: tuple[int, ...], options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Encoder(*swin()).encode(np.ones(shape, np.float32), **options)


def test_pool_takes_sizes_that_no_map_fits() -> None:
    encoder = Encoder(*swin())
    assert encoder.pool(tiles(size=60)).shape == (2, 16)
    with pytest.raises(TilePlanError, match="H = 62"):
        encoder.pool(tiles(size=62))


def test_a_card_that_lies_about_its_layer_is_found_out() -> None:
    card, network = swin()
    layers = (dataclasses.replace(card.layers[-1], dim=17),)
    with pytest.raises(ValueError, match="layer 'norm'"):
        Encoder(dataclasses.replace(card, layers=layers), network).encode(tiles())


def test_threads_share_an_encoder() -> None:
    encoder = resolve("tiny").load("cpu")
    x = tiles(size=64, count=1)
    want = encoder.encode(x)
    sizes = [64, 128, 64, 96] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: (s, encoder.encode(tiles(size=s, count=1))), sizes))
    for size, out in found:
        assert np.array_equal(out, want if size == 64 else encoder.encode(tiles(size=size, count=1)))


def test_a_tile_is_the_same_in_any_batch() -> None:
    encoder = resolve("tiny").load("cpu")
    x = tiles(size=64, count=5)
    whole = encoder.encode(x)
    for i in range(5):
        assert np.allclose(encoder.encode(x[i : i + 1])[0], whole[i], atol=1e-5)


def test_repr_says_untrained() -> None:
    assert "random weights" in repr(Encoder(*swin(weights=dataclasses.replace(swin()[0].weights, status="untrained"))))
    assert "10 bands (ms) to 16 channels per 8 px (norm), normalization normalize_s2" in repr(Encoder(*swin()))
