"""The way of DINO's weights into a teacher. The real ones were not here: files are random, names the published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from deo_cube.errors import StoreMismatchError, UnknownModelError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import set_options
from deo_cube.train.config import PRESETS, Optical
from deo_cube.train.loop import train
from deo_cube.train.teachers import TimmTeacher, load_teacher
from tests.encoder.test_locate import REVISION, Hub
from tests.encoder.test_locate import hub as hub

V3 = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"
V2 = "vit_small_patch14_dinov2.lvd142m"


def random_teacher(name: str, seed: int = 0) -> TimmTeacher:
    torch.manual_seed(seed)
    teacher = TimmTeacher(name, pretrained=False)
    for p in teacher.parameters():
        p.normal_(std=0.02)
    return teacher


@pytest.fixture(scope="module")
def v3() -> TimmTeacher:
    return random_teacher(V3)


def as_meta_names(teacher: TimmTeacher) -> dict[str, Tensor]:
    """timm's tensors under the names of Meta's DINOv3 files, with what those hold besides."""
    state, out = teacher.net.state_dict(), {}
    for name, value in state.items():
        if name.endswith(("q_bias", "k_bias", "v_bias")):
            continue
        name = name.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma")
        out[name.replace("gamma_2", "ls2.gamma")] = value
    for i in range(len(teacher.net.blocks)):
        q, v = (state[f"blocks.{i}.attn.{k}_bias"] for k in "qv")
        out[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        out[f"blocks.{i}.attn.qkv.bias_mask"] = torch.full((3 * len(q),), float("nan"))
    out["mask_token"], out["rope_embed.periods"] = torch.zeros(1, 192), torch.ones(16)
    return out


def same(a: TimmTeacher, b: TimmTeacher) -> bool:
    images = torch.randn(1, 3, 70, 56, generator=torch.Generator().manual_seed(3))
    return all(torch.equal(getattr(a(images), k), getattr(b(images), k)) for k in ("cls", "mid", "late"))


@pytest.mark.parametrize("form", ["timm safetensors", "Meta pth", "Meta pth within a training checkpoint"])
def test_dinov3_from_a_file(v3: TimmTeacher, tmp_path: Path, form: str) -> None:
    path = tmp_path / ("w.safetensors" if form.startswith("timm") else "w.pth")
    if form.startswith("timm"):
        save_file({k: v.contiguous() for k, v in v3.net.state_dict().items() if not k.endswith("k_bias")}, path)
    else:
        names = as_meta_names(v3)
        torch.save({"teacher": names} if "checkpoint" in form else names, path)
    found = load_teacher(f"timm:{V3}", Optical(weights=str(path)))
    assert isinstance(found, TimmTeacher)
    assert same(found, v3)
    assert len(found.sha256) == 64
    assert found.origin == str(path)
    assert found.licence


def test_dinov2_from_a_file_of_meta(tmp_path: Path) -> None:
    teacher = random_teacher(V2)
    state = {k: v.half().float() for k, v in teacher.net.state_dict().items()}
    teacher.net.load_state_dict(state)
    torch.save({**{k: v.half() for k, v in state.items()}, "mask_token": torch.zeros(1, 384)}, tmp_path / "w.pth")
    found = TimmTeacher(V2, weights=tmp_path / "w.pth")
    assert same(found, teacher)
    assert found.mean == pytest.approx((0.485, 0.456, 0.406))
    assert found.patch == 14


def test_a_file_that_does_not_fit_is_refused(v3: TimmTeacher, tmp_path: Path) -> None:
    names = as_meta_names(v3)
    cases = {
        "a tensor is missing": ({k: v for k, v in names.items() if k != "cls_token"}, "cls_token"),
        "a tensor is left over": ({**names, "decoder.weight": torch.zeros(1)}, "decoder"),
        "another width": ({**names, "cls_token": torch.zeros(1, 1, 384)}, "cls_token"),
    }
    for what, (state, message) in cases.items():
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(WeightsMismatchError, match=message):
            TimmTeacher(V3, weights=tmp_path / "w.pth")
        assert what
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(WeightsMismatchError, match="page.pth"):
        TimmTeacher(V3, weights=tmp_path / "page.pth")
    with pytest.raises(WeightsNotFoundError, match=r"optical\.weights"):
        TimmTeacher(V3, weights=tmp_path / "nothing.pth")
    with pytest.raises(UnknownModelError, match="vit_of_nobody"):
        load_teacher("timm:vit_of_nobody")


def test_biases_that_the_network_has_no_place_for_are_not_dropped(tmp_path: Path) -> None:
    """timm's plain DINOv3 has no biases of queries and values, and leaves published ones out without a word."""
    plain = "vit_small_patch16_dinov3"
    names = as_meta_names(TimmTeacher(f"{plain}_qkvb", pretrained=False))
    names |= {k: torch.ones_like(v) for k, v in names.items() if k.endswith("qkv.bias")}
    torch.save(names, tmp_path / "biased.pth")
    with pytest.raises(WeightsMismatchError, match=r"no place for blocks\.0\.attn\.qkv\.bias"):
        TimmTeacher(plain, weights=tmp_path / "biased.pth")
    zero = {k: torch.zeros_like(v) if k.endswith("qkv.bias") else v for k, v in names.items()}
    torch.save(zero, tmp_path / "zero.pth")
    assert TimmTeacher(plain, weights=tmp_path / "zero.pth").sha256


def test_from_the_hub_at_a_pinned_revision(
    v3: TimmTeacher,
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = save({k: v.contiguous() for k, v in v3.net.state_dict().items() if not k.endswith("k_bias")})
    for revision in (REVISION, "main"):
        hub.files[f"/timm/{V3}/resolve/{revision}/model.safetensors"] = data
    for variable in ("HF_HUB_CACHE", "HF_HOME", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    with set_options(cache_dir=str(tmp_path / "cache"), offline=False):
        pinned = TimmTeacher(V3, revision=REVISION)
        assert same(pinned, v3)
        assert pinned.origin == f"timm/{V3}@{REVISION}"
        asked = len(hub.requests)
        assert all(REVISION in path for _, path in hub.requests)
        TimmTeacher(V3, revision=REVISION)
        assert len(hub.requests) == asked  # a pinned revision that is here asks nobody
        newest = TimmTeacher(V3)
        assert newest.origin == f"timm/{V3}@{REVISION}"  # which commit the newest was is known afterwards
        with pytest.raises(WeightsNotFoundError, match=r"optical\.weights"):
            TimmTeacher(V2, revision=REVISION)
    with (
        set_options(cache_dir=str(tmp_path / "empty"), offline=True),
        pytest.raises(WeightsNotFoundError, match="offline"),
    ):
        TimmTeacher(V3)


def test_a_run_says_who_taught_it_and_is_not_resumed_with_another(
    v3: TimmTeacher, tmp_path: Path, cube_source: str
) -> None:
    torch.save(as_meta_names(v3), tmp_path / "w.pth")
    smoke = PRESETS["smoke"]
    config = dataclasses.replace(
        smoke, data=(cube_source,), out=str(tmp_path / "run"), steps=1, teacher=f"timm:{V3}",
        optical=Optical(weights=str(tmp_path / "w.pth"), mid=8, late=11),
    )  # fmt: skip
    out = train(config)
    (said,) = json.loads((out / "teachers.json").read_text())
    assert said["name"] == V3
    assert len(said["sha256"]) == 64
    torch.save(as_meta_names(random_teacher(V3, seed=5)), tmp_path / "w.pth")
    with pytest.raises(StoreMismatchError, match=r"optical\.weights"):
        train(dataclasses.replace(config, resume=True))
