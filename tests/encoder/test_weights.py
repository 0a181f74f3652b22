from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deo_cube.encoder.checkpoint_format import (
    HEADS,
    PREFIXES,
    load_weights,
    match_state,
    matched_state,
    read_state,
    sniff,
)
from deo_cube.encoder.networks.swin import DeoSwin
from deo_cube.encoder.networks.timm_import import import_timm
from deo_cube.encoder.networks.vit import DeoViT
from deo_cube.errors import WeightsMismatchError
from tests.encoder.test_swin import GOLDEN, STEMS, wave

State = dict[str, torch.Tensor]


def swin(seed: int = 0, **sizes: object) -> DeoSwin:
    torch.manual_seed(seed)
    options: dict = dict(stems=STEMS, dim=8, depths=(2, 2), heads=(1, 2), window=4) | sizes
    return DeoSwin(**options).eval()


def vit(seed: int = 0, **sizes: object) -> DeoViT:
    torch.manual_seed(seed)
    options: dict = dict(stems=STEMS, dim=12, depth=2, heads=2, patch=8, grid=4) | sizes
    return DeoViT(**options).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x)


def published(network: DeoSwin | DeoViT) -> State:
    """State as the published code writes it: index buffers, heads, and the ViT trunk's own stem included."""
    state = {k: v.clone() for k, v in network.state_dict().items()}
    state |= {n: b.flatten().clone() for n, b in network.named_buffers() if n.endswith("relative_position_index")}
    state |= {f"{head}.mlp.0.weight": torch.randn(3, 3) for head in HEADS}
    if isinstance(network, DeoViT):
        state["patch_embed.proj.weight"] = torch.randn(12, 3, 8, 8)
        state["patch_embed.proj.bias"] = torch.randn(12)
    return state


def under(prefix: str, state: State) -> State:
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize("make", [swin, vit])
@given(stack=st.lists(st.sampled_from(PREFIXES), max_size=4), trunk=st.sampled_from(["", "backbone.", "_orig_mod."]))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_stacking_of_prefixes(make, stack: list[str], trunk: str) -> None:
    source, target = make(1), make(2)
    state = {
        "".join(stack) + ("" if k.startswith(("patch_embed_", "conv_")) else trunk) + k: v
        for k, v in published(source).items()
    }
    expected = {k: v.shape for k, v in target.state_dict().items()}
    target.load_state_dict(match_state(state, expected, where="file"))
    assert same(source, target)


@pytest.mark.parametrize("make", [swin, vit])
@pytest.mark.parametrize("kind", ["safetensors", "plain torch", "training checkpoint", "legacy torch"])
def test_files(make, kind: str, tmp_path: Path) -> None:
    source, target, other = make(1), make(2), make(3)
    path = tmp_path / "weights.pth"
    if kind == "safetensors":
        save_file(published(source), path)  # known by its content, whatever its name
    elif kind == "plain torch":
        torch.save(under("feat_extr.", published(source)), path)
    elif kind == "legacy torch":
        torch.save(published(source), path, _use_new_zipfile_serialization=False)
    else:
        checkpoint = {
            "student": under("module._orig_mod.backbone.", published(source)),
            "teacher": under("backbone.", published(other)),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
            "epoch": 100,
            "args": argparse.Namespace(arch="swin_b", lr=5e-4, crops=(0.4, 1.0)),
            "fp16_scaler": {"scale": 65536.0},
            "dino_loss": {"center": torch.zeros(1, 4)},
        }
        torch.save(checkpoint, path)
    load_weights(target, path)
    assert same(source, target)


def test_flat_checkpoint_takes_the_student(tmp_path: Path) -> None:
    source, other, target = swin(1), swin(2), swin(3)
    save_file(
        under("student.module.", published(source)) | under("teacher.", published(other)), tmp_path / "w.safetensors"
    )
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    source, target = swin(1), swin(2)
    save_file({k: v.to(torch.bfloat16) for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert next(target.parameters()).dtype == torch.float32
    assert same(source.to(torch.bfloat16).float(), target)


@torch.inference_mode()
def test_golden_files_load_and_give_the_published_numbers() -> None:
    network = DeoSwin(stems=STEMS, dim=12, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=12).eval()
    load_weights(network, GOLDEN / "swin_weights.safetensors")
    want = load_file(GOLDEN / "swin_out.safetensors")
    assert (network(wave(1, 10, 120, 120), "ms") - want["pooled.ms120"]).abs().max() <= 1e-5
    trunk = DeoViT(stems=STEMS, dim=24, depth=12, heads=3).eval()
    load_weights(trunk, GOLDEN / "vit_weights.safetensors")
    want = load_file(GOLDEN / "vit_out.safetensors")
    found = trunk.forward_tokens(wave(2, 10, 64, 96), "ms", ("block8",))["block8"]
    assert (found - want["block8.ms64x96"]).abs().max() <= 1e-4


# What must be refused, and what the message must say of it.


def refuse(network: torch.nn.Module, state: State, tmp_path: Path) -> str:
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(network, path)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items()), "partly filled"
    with torch.device("meta"):
        empty = type(network)(
            **(
                dict(stems=STEMS, dim=8, depths=(2, 2), heads=(1, 2), window=4)
                if isinstance(network, DeoSwin)
                else dict(stems=STEMS, dim=12, depth=2, heads=2, patch=8, grid=4)
            )
        )
    if "NaN" not in str(caught.value) and "differently" not in str(caught.value):
        with pytest.raises(WeightsMismatchError):
            matched_state(empty, path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@given(drop=st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_missing_tensor(drop: st.DataObject, tmp_path: Path) -> None:
    state = published(vit())
    name = drop.draw(st.sampled_from(sorted(vit().state_dict())))
    del state[name]
    message = refuse(vit(2), state, tmp_path)
    assert name in message
    assert "missing in the file: 1 of " in message


def test_any_left_over_tensor(tmp_path: Path) -> None:
    message = refuse(swin(2), published(swin()) | {"features.9.0.norm1.weight": torch.zeros(8)}, tmp_path)
    assert "left over in the file: 1 of " in message
    assert "features.9.0.norm1.weight" in message


def test_index_buffer_of_a_block_that_is_not_there(tmp_path: Path) -> None:
    name = "features.8.0.attn.relative_position_index"
    assert name in refuse(swin(2), published(swin()) | {name: torch.arange(256)}, tmp_path)


def test_index_buffer_in_another_order(tmp_path: Path) -> None:
    state = published(swin())
    state["features.0.0.attn.relative_position_index"] = state["features.0.0.attn.relative_position_index"].flip(0)
    assert "orders the window's positions differently" in refuse(swin(2), state, tmp_path)


def test_another_window_is_named(tmp_path: Path) -> None:
    message = refuse(swin(2), published(swin(window=7)), tmp_path)
    assert "169 rows, that is 13^2, window 7" in message
    assert "network has 49, that is 7^2, window 4" in message


def test_published_window_of_529_rows_is_12(tmp_path: Path) -> None:
    assert "529 rows, that is 23^2, window 12" in refuse(swin(2), published(swin(window=12)), tmp_path)


def test_another_size(tmp_path: Path) -> None:
    message = refuse(vit(2), published(vit(dim=24)), tmp_path)
    assert "differ in shape" in message
    assert "(1, 1, 24) in the file, (1, 1, 12) in the network" in message
    assert "a ViT of 2 blocks, 24 channels" in message


def test_not_a_number(tmp_path: Path) -> None:
    state = published(vit())
    state["blocks.1.norm2.weight"][3] = float("nan")
    assert "NaN" in refuse(vit(2), state, tmp_path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    state = published(vit())
    state["norm.weight"] = state["norm.weight"].to(torch.int8)
    assert "not floating-point numbers" in refuse(vit(2), state, tmp_path)


def test_one_name_under_two_prefixes(tmp_path: Path) -> None:
    state = published(vit())
    assert "twice" in refuse(vit(2), state | {"module.norm.weight": state["norm.weight"].clone()}, tmp_path)


def test_the_teacher_alone_lacks_the_rgb_stem(tmp_path: Path) -> None:
    state = {k: v for k, v in published(swin()).items() if not k.startswith("conv_rgb")}
    assert "conv_rgb.0.weight" in refuse(swin(2), state, tmp_path)


def test_foreign_networks_are_described(tmp_path: Path) -> None:
    timm = import_timm()

    small = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, depths=(1, 1), num_heads=(1, 2))
    state = small.state_dict() | {
        "layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(169, 1),
    }
    assert "a Swin Transformer as named by another library" in refuse(swin(2), state, tmp_path)
    assert "the first named 'conv1.weight'" in refuse(swin(2), {"conv1.weight": torch.zeros(3)}, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "is a web page"),
        (b"\n  <html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n", "git lfs pull"),
        (b'{"error": "Repository not found"}', "JSON text"),
        (b"PK\x03\x04 half an archive", "cut short"),
        ((1 << 40).to_bytes(8, "little") + b'{"a"', "cut short"),
        (b"GIF89a", "neither safetensors nor a torch file"),
        (b"\x80\x02}q\x00.", "could not be read as tensors only"),
    ],
)
def test_what_is_no_weights_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "DEO_swin_b.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsMismatchError, match=message) as caught:
        read_state(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0.999, 0.6, 0.05])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_truncated(kind: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / "w"
    state = swin().state_dict()
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(WeightsMismatchError, match="bytes"):
        read_state(path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["pickle 2", "pickle 4", "torch", "torch legacy", "inside a training checkpoint"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(kind: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "executed"
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(Bomb(trace), protocol=int(kind[-1])))
    elif kind == "inside a training checkpoint":
        torch.save({"student": swin().state_dict(), "args": argparse.Namespace(x=Bomb(trace))}, path)
    else:
        torch.save({"a": Bomb(trace)}, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(WeightsMismatchError, match="tensors only") as caught:
        read_state(path)
    assert "system" in str(caught.value) or kind == "pickle 4"  # torch's reader stops before it reads the name
    assert not trace.exists()


def test_checkpoint_without_student(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(WeightsMismatchError, match="student"):
        read_state(tmp_path / "empty.pth")
    torch.save({"teacher": swin().state_dict(), "epoch": 3, "optimizer": {}}, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatchError, match="'teacher', 'epoch', 'optimizer'.*'student'"):
        read_state(tmp_path / "w.pth")


def test_sniff(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a")
    torch.save({"a": torch.zeros(1)}, tmp_path / "b")
    assert (sniff(tmp_path / "a"), sniff(tmp_path / "b")) == ("safetensors", "torch")
