"""`verify --published` names the preprocessing that weights were trained for: weights trained here, so it is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deo_cube.encoder.checkpoint_format import key_form
from deo_cube.encoder.loading import card_for
from deo_cube.encoder.networks.swin import DeoSwin
from deo_cube.encoder.normalize import normalize
from deo_cube.encoder.registry import card
from deo_cube.errors import MissingBandsError, UnknownModelError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.evaluate.published import Question, verify_published
from deo_cube.evaluate.readers import ChipSet, read_chips

MS = card("swinb").stem("ms")
SIZES: dict = {"stems": {"ms": 10, "rgb": 3}, "dim": 8, "depths": (1, 1), "heads": (1, 2), "window": 2, "patch": 4}


def chips(kind: str, n: int = 240, seed: int = 0) -> ChipSet:
    """Four classes that red, green and blue tell apart: by how bright they are, or by their ratio in any light.

    The other bands hold noise: of a thirtieth of the published standard deviations, which those keep small.
    """
    random, labels = np.random.default_rng(seed), np.arange(n) % 4
    fixed = MS.normalization("normalize_s2")
    mean, std = (np.asarray(v)[:, None, None] for v in (fixed.mean, fixed.std))
    images = np.broadcast_to(mean, (n, 10, 16, 16)) + random.normal(0, 1, (n, 10, 1, 1)) * std / 30
    shades = np.linspace(0.6, 1.4, 4)[labels][:, None, None, None]
    if kind == "level":
        images[:, :3] = mean[:3] * shades
    else:
        light = np.exp(random.uniform(-1.5, 1.5, (n, 1, 1, 1)))
        images[:, :3] = 800 * light * np.concatenate([shades, np.ones_like(shades), 2 - shades], axis=1)
    images += random.normal(0, 20, images.shape)
    return ChipSet(kind, images.clip(1).astype("float32"), labels, tuple("abcd"), np.arange(n), MS.bands)


def trained(kind: str, how: str, steps: int = 60) -> DeoSwin:
    """A small Swin that tells the classes apart, its input normalised as `how` says: trained for seconds."""
    torch.manual_seed(0)
    network, head, data = DeoSwin(**SIZES), torch.nn.Linear(16, 4), chips(kind, seed=1)
    x, y = normalize(torch.from_numpy(data.images), MS, MS.normalization(how)), torch.from_numpy(data.labels)
    learn = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(head(network(x, "ms")), y)
        learn.zero_grad()
        loss.backward()
        learn.step()
    return network.eval()


def saved(network: DeoSwin, path: Path, prefix: str = "feat_extr.") -> Path:
    save_file({prefix + k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(("kind", "how"), [("level", "normalize_s2"), ("ratio", "rgb_max")])
def test_the_normalisation_that_weights_were_trained_with_is_named(kind: str, how: str, tmp_path: Path) -> None:
    path = saved(trained(kind, how), tmp_path / "weights.safetensors")
    found = verify_published(path, chips(kind), sizes=())
    assert found.decided, str(found)
    assert found.questions[0].verdict == how
    assert f"Normalisation: {how}" in str(found)
    assert not found.known
    said = json.loads(found.to_json(tmp_path / "said.json"))
    assert said["questions"][0]["verdict"] == how
    assert said["keys"]["prefixes"] == {"feat_extr.": len(DeoSwin(**SIZES).state_dict())}


def test_weights_that_learnt_nothing_leave_it_undecided(tmp_path: Path) -> None:
    torch.manual_seed(3)
    data = chips("ratio")
    data = dataclasses.replace(data, labels=np.random.default_rng(0).integers(0, 4, len(data)))
    found = verify_published(saved(DeoSwin(**SIZES), tmp_path / "w.safetensors"), data, sizes=(32,))
    assert not found.decided
    assert {q.text for q in found.questions} >= {"Normalisation", "Order of red and blue", "Final LayerNorm", "Size"}
    assert "undecided" in str(found)


def test_a_question_is_decided_by_intervals_not_by_values() -> None:
    from deo_cube.evaluate.scores import accuracy_counts, compare, make_score

    def score(name: str, right: int):
        truth = np.zeros(200, int)
        counts = accuracy_counts(truth, (np.arange(200) >= right).astype(int), np.arange(200), 200)
        return make_score(name, "t/knn5", "accuracy", [counts], tested=200, labels=1, seconds=0, protocol="")

    def question(*right: int) -> Question:
        scores = [(score(str(r), r),) for r in right]
        return Question("?", tuple(map(str, right)), tuple(scores), ((compare(scores[0][0], scores[1][0]),),))

    assert question(190, 150).verdict == "190"
    assert question(190, 189).verdict == "undecided"


@pytest.mark.parametrize("prefix", ["", "feat_extr.", "student.module._orig_mod.backbone.", "module."])
def test_every_published_key_form_is_read_and_named(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DeoSwin(**SIZES)
    state = {prefix + k: v for k, v in network.state_dict().items()}
    index = "features.0.0.attn.relative_position_index"
    state[prefix + index] = dict(network.named_buffers())[index].flatten().clone()
    state[prefix + "head_ms.mlp.0.weight"] = torch.zeros(2, 2)
    torch.save({"student": state, "teacher": {}, "epoch": 3}, tmp_path / "w.pth")
    found = verify_published(tmp_path / "w.pth")
    assert found.form.prefixes == {prefix: len(network.state_dict())}
    assert (found.form.heads, found.form.indices) == (1, 1)
    assert "training checkpoint" in found.form.container
    assert found.card.architecture == {
        "family": "swin", "dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 2, "patch": 4, "mlp_ratio": 4.0
    }  # fmt: skip
    assert found.questions == ()
    assert str(tmp_path / "w.pth") in str(found)


@pytest.mark.parametrize("file", ["swin_weights", "vit_weights"])
def test_the_authors_own_small_weights(file: str, shared: Path) -> None:
    path = shared / "golden" / f"{file}.safetensors"
    if file == "vit_weights":
        with pytest.raises(UnknownModelError, match="--model"):
            verify_published(path)
        form = key_form(path)
        assert "student.module._orig_mod.backbone." in form.prefixes
        return
    found = verify_published(path)
    assert list(found.form.prefixes) == ["feat_extr."]
    assert found.card.architecture["window"] == 12
    assert found.card.architecture["depths"] == [2, 2, 2, 2]


def test_the_published_sizes_are_known(tmp_path: Path) -> None:
    from deo_cube.encoder.networks.adapters import build_network

    base = card("vitb")
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in build_network(base).state_dict().items()}
    torch.save({f"backbone.{k}": torch.zeros(1).expand(s) for k, s in shapes.items()}, tmp_path / "w.pth")
    assert card_for(tmp_path / "w.pth").name == base.name


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="weights"):
        verify_published(tmp_path)
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnknownModelError, match="conv1.weight"):
        verify_published(tmp_path / "other.safetensors")
    torch.manual_seed(0)
    state = DeoSwin(**SIZES).state_dict()
    state.pop("norm.weight")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(WeightsMismatchError, match=r"norm\.weight"):
        verify_published(tmp_path / "less.safetensors")


def test_chips_as_geotiffs_and_arrays(tmp_path: Path) -> None:
    import rasterio

    for name, number in (("Forest", 1), ("Forest", 60), ("River", 1)):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        profile = {"driver": "GTiff", "height": 8, "width": 8, "count": 2, "dtype": "uint16"}
        with rasterio.open(tmp_path / "set" / name / f"{name}_{number}.tif", "w", **profile) as r:
            r.write(np.full((2, 8, 8), 1500 + number, "uint16"))
    with pytest.raises(MissingBandsError, match="B8A"):
        read_chips(tmp_path / "set")
    found = read_chips(tmp_path / "set", bands=["red", "B8A"], offset=-1000)
    assert found.bands == ("B04", "B8A")
    assert found.images[:, 0, 0, 0].tolist() == [501, 560, 501]
    assert found.classes == ("Forest", "River")
    assert len(set(found.groups.tolist())) == 3
    np.savez(tmp_path / "a.npz", images=found.images, labels=["f", "f", "r"], bands=["B04", "B8A"])
    assert read_chips(tmp_path / "a.npz", limit=1).labels.tolist() == [0, 1]
    torch.manual_seed(0)
    weights = saved(DeoSwin(**SIZES), tmp_path / "w.safetensors")
    with pytest.raises(MissingBandsError, match="bands"):
        verify_published(weights, tmp_path / "a.npz")
