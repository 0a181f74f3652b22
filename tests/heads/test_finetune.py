import json

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

import deo_cube
from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights
from deo_cube.encoder.loading import write_model
from deo_cube.encoder.registry import resolve
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.head import fit_head, load_head
from deo_cube.heads.maps import classify

BANDS = ("B02", "B03", "B04", "B08")


def card(family):
    stem = Stem("ms", BANDS, (Normalization("fixed", "fixed", (1500.0,) * 4, (1000.0,) * 4),))
    sizes, layers = {
        "vit": ({"dim": 32, "depth": 3, "heads": 2, "patch": 8, "grid": 8}, (("block1", 32, 8), ("norm", 32, 8))),
        "swin": (
            {"dim": 16, "depths": [2, 2], "heads": [2, 2], "window": 4, "patch": 4},
            (("stage1", 16, 4), ("norm", 32, 8)),
        ),
        "conv": ({"dim": 24, "local": 16, "depth": 6}, (("fused", 24, 4),)),
    }[family]
    return ModelCard(
        name=f"{family}.test", alias=f"{family}-test", summary="random weights, for a test",
        architecture={"family": family, "mlp_ratio": 2.0, **sizes} if family != "conv" else {"family": family, **sizes},
        stems=(stem,), layers=tuple(Layer(*la) for la in layers), tile=64, halo=8,
        weights=Weights("trained", "weights.safetensors"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folders of small models, as a training run leaves them."""
    from deo_cube.encoder.networks.adapters import seeded_network

    root = tmp_path_factory.mktemp("models")
    for family in ("vit", "swin", "conv"):
        write_model(card(family), seeded_network(card(family), None), root / family)
    return root


@pytest.fixture(scope="module")
def cube():
    return deo_cube.synthetic_cube(size=96, times=1, clouds=False, gaps=False).compute()


TRAINED = {
    "vit": (["blocks.2"], "norm.", "blocks.1."),
    "swin": (["features.2.1"], "norm.", "features.2.0."),
    "conv": (["trunk.pairs.5"], "necks.", "trunk.pairs.4."),
}


@pytest.mark.parametrize("family", TRAINED)
def test_only_the_last_blocks_change_and_the_folder_is_a_model(family, start, cube, tmp_path):
    head = fit_head(
        "linear", cube, cube["land_cover"], finetune=1, model=start / family, folder=tmp_path / "tuned",
        tune_steps=30 if family == "conv" else 2, tune_rate=3e-4, tune_batch=4,
    )  # fmt: skip
    facts = head.report["finetune"]
    blocks, behind, before_them = TRAINED[family]
    assert facts["blocks"][:1] == blocks
    old, new = (load_file(f / "weights.safetensors") for f in (start / family, tmp_path / "tuned"))
    changed = {k for k in old if not torch.equal(old[k], new[k])}
    assert changed
    assert all(k.startswith((f"{blocks[0]}.", behind)) for k in changed)
    assert any(k.startswith(f"{blocks[0]}.") for k in changed)
    assert not any(k.startswith(before_them) for k in changed)
    # Random networks of 3 blocks with positions do not learn from four tiles turned about; the convolutions do.
    assert family != "conv" or facts["loss_tuned"] < 0.97 * facts["loss_frozen"]
    assert 0 <= facts["held_out"]["frozen"] <= 1
    assert 0 <= facts["held_out"]["tuned"] <= 1
    # Only numbers and text: nothing in the folder could execute.
    assert sorted(p.name for p in (tmp_path / "tuned").iterdir()) == [
        "card.json", "head.safetensors", "weights.safetensors",
    ]  # fmt: skip
    tuned = resolve(tmp_path / "tuned").card
    assert tuned.name == f"{family}.test.tuned"
    assert tuned.scores == ()
    assert json.loads((tmp_path / "tuned" / "card.json").read_text())["limits"][0].startswith("Fine-tuned on few")
    # From the cube alone, and from a folder that was moved.
    (tmp_path / "tuned").rename(tmp_path / "moved")
    again = load_head(tmp_path / "moved")
    got = classify(cube, again, dtype="float32")
    xr.testing.assert_identical(
        got.drop_attrs(), again.predict(cube.deo.embed(tmp_path / "moved", dtype="float32")).drop_attrs()
    )
    with pytest.raises(ArgumentError, match="fitted on"):
        again.predict(cube.deo.embed(start / family, dtype="float32"))


def test_blocks_are_trained_on_the_tiles_of_embed(start, cube):
    """Tiles of a cube lying south up, and of reflectance, are those of the cube in DN; every label is used once."""
    from deo_cube.embedding.options import EmbedOptions
    from deo_cube.embedding.prepare import prepare
    from deo_cube.heads.finetune import _training_tiles
    from deo_cube.heads.labels import rasterize_labels as rasterize

    def tiles(c, **options):
        codes = rasterize(c["land_cover"], c.deo.embed(start / "conv", **options)).values
        prepared = prepare(c, EmbedOptions(model=start / "conv", **options))
        pairs = list(_training_tiles(c, prepared, codes, np.unique(codes)))
        return *(np.stack([p[i] for p in pairs]) for i in (0, 1)), codes

    pixels, targets, codes = tiles(cube)
    assert pixels.shape[1:] == (4, 64, 64)
    assert (targets >= 0).sum() == (codes != 255).sum()
    up = tiles(cube.isel(y=slice(None, None, -1)))
    np.testing.assert_array_equal(up[0], pixels)
    np.testing.assert_array_equal(up[1], targets)
    shown = cube.copy()
    for b in BANDS:
        shown[b] = cube[b].astype("float64") / 10000
    other = tiles(shown.drop_vars("SCL"), units="reflectance", offset=0, nodata=None)
    np.testing.assert_allclose(other[0], tiles(cube.drop_vars("SCL"), nodata=None, units="dn", offset=0)[0], rtol=1e-6)


def test_any_head_may_follow(start, cube, tmp_path):
    options = {"finetune": 2, "model": start / "conv", "tune_steps": 2}
    head = fit_head("conv", cube, cube["land_cover"], folder=tmp_path, steps=2, width=8, **options)
    assert head.kind == load_head(tmp_path).kind == "conv"
    assert head.report["finetune"]["blocks"][:2] == ["trunk.pairs.4", "trunk.pairs.5"]


def test_finetune_refuses_impossible_arguments(start, cube, tmp_path):
    truth = cube["land_cover"]
    with pytest.raises(ArgumentTypeError, match="folder"):
        fit_head("linear", cube, truth, finetune=1)
    with pytest.raises(ArgumentError, match="finetune=9.* 3 blocks"):
        fit_head("linear", cube, truth, finetune=9, model=start / "vit", folder=tmp_path)
    with pytest.raises(ArgumentError, match="cube must be a cube"):
        fit_head("linear", cube.deo.embed(start / "vit"), truth, finetune=1, folder=tmp_path)
    # A layer before the last rests on fewer blocks.
    with pytest.raises(ArgumentError, match="finetune=3.* 2 blocks"):
        fit_head(
            "linear", cube, truth, finetune=3, model=start / "vit", folder=tmp_path, embed_options={"layer": "block1"}
        )


def test_held_out_places_are_never_trained_on(cube):
    from deo_cube.heads.finetune import _held_out
    from deo_cube.heads.labels import rasterize_labels as rasterize

    label_map = rasterize(cube["land_cover"], cube.deo.embed("tiny"))
    train, held = _held_out(label_map)
    a, b = (p.values != 255 for p in (train, held))
    assert a.sum() > b.sum() > 20
    rows, cols = np.nonzero(b)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near = a[np.clip(rows + dy, 0, a.shape[0] - 1), np.clip(cols + dx, 0, a.shape[1] - 1)]
            assert not near.any()
