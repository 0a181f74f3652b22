"""The arms: one small network, the same samples, crops and steps, and one thing different in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deo_cube.train.config import (
    PRESETS,
    Health,
    Loader,
    Objective,
    Optical,
    Optimizer,
    StudentConfig,
    TrainConfig,
)

__all__ = ["ARMS", "Arm", "config_of"]

TEACHER = "weights/mobilenet_v1_1.0_224_trunk.safetensors"
_DN = "units=dn,offset=0,nodata=0"
#: Never trained on: EuroSAT, land-cover tiles, the flood, and every odd bark-beetle plot.
SOURCES = (
    f"scenes/aquileia_20190416_L2A.tif,{_DN},weight=4",
    f"scenes/pilbara_20181201_L2A.tif,{_DN},weight=2",
    f"change_barkbeetle/*/s2_*.tif,{_DN},weight=3,every=4,phase=0",
    f"change_barkbeetle/*/s2_*.tif,{_DN},weight=3,every=4,phase=1",
)

_TINY = PRESETS["tiny"]
_STATISTICS = {
    "rgb_mean": _TINY.student.ms_mean[:3],
    "rgb_std": _TINY.student.ms_std[:3],
    "ms_mean": _TINY.student.ms_mean,
    "ms_std": _TINY.student.ms_std,
}
_PAPER = PRESETS["paper"].student

#: Everything on, each switch at this trainer's default, but for the teacher's features: MobileNet's come out of a ReLU.
BASE = TrainConfig(
    preset="tiny",
    teacher="mobilenet",
    device="cpu",
    threads=1,
    student=StudentConfig(family="swin", dim=64, depths=(2, 2), heads=(2, 4), window=4, patch=8, **_STATISTICS),
    optical=Optical(enlarge=1.5, standardize=True),
    # 16 samples and 64 dimensions have the scale, 5, and the bound, 0.28, of the paper's 16 x 64 samples and 256.
    objective=Objective(hidden=128, ms_dim=64, world_size=16),
    augment=dataclasses.replace(_TINY.augment, gain=0.0, band_gain=0.0, haze=0.0),
    optimizer=Optimizer(batch=16, lr=1.6e-2, weight_decay=(0.04, 0.04), ema=(0.99, 1.0), precision="bf16"),
    loader=Loader(window=80, workers=0),
    health=Health(log_every=10, checkpoint_every=100, keep=1),
)


@dataclass(frozen=True)
class Arm:
    """One recipe: what differs from `BASE`, field by field."""

    name: str
    what: str
    """In a line, for the table."""
    group: str
    """`ladder` (the paper's steps), `pretext`, `switch`, `baseline`."""
    changes: Mapping[str, Mapping[str, Any]]
    """Part of the configuration -> fields; the part "" is the configuration itself."""
    against: str = ""
    """The arm that it differs from in the one thing it is about."""
    rgb: str = "rgb"
    """Stem that reads RGB chips: `ms` (the seven other bands at their mean) where no RGB stem was trained."""


_QUIET = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": (0.0, 0.0, 0.0), "solarize_p": 0.0}
_NO_PATCHES = {"mid": 0.0, "late": 0.0}
_ALONE = {"": {"teacher": "none"}, "augment": _QUIET}
_CROP_MAX = {
    "student": {
        "rgb_mean": _PAPER.rgb_mean,
        "rgb_std": _PAPER.rgb_std,
        "ms_mean": _PAPER.rgb_mean + _TINY.student.ms_mean[3:],
        "ms_std": _PAPER.rgb_std + _TINY.student.ms_std[3:],
    },
    "augment": {"rgb_scale": "crop_max", "ms_sees": "jittered"},
}
_SEEN = {"view": "jittered", "normalization": "student"}
_ENGINE = {"teacher_mode": "train", "clip_by": "tensor"}

_LIST = (
    Arm("ms", "multispectral self-distillation only", "ladder", _ALONE, rgb="ms"),
    Arm(
        "cls", "+ class vector of the optical teacher, one stem", "ladder",
        {"objective": {"second_stem": False, "multispectral_optical": 1.0, **_NO_PATCHES}, "augment": _QUIET},
        "ms", "ms",
    ),
    Arm("stem", "+ second stem", "ladder", {"objective": _NO_PATCHES, "augment": _QUIET}, "cls"),
    Arm("patch", "+ patch tokens", "ladder", {"augment": _QUIET}, "stem"),
    Arm("full", "+ optical augmentation", "ladder", {}, "patch"),
    Arm("optical", "optical distillation only", "ladder", {"objective": {"multispectral": False}}, "full"),
    Arm("masked", "masked image modelling only", "pretext", {**_ALONE, "objective": {"pretext": "masked"}}, "ms", "ms"),
    Arm("masked+optical", "masked image modelling and the optical teacher", "pretext",
        {"objective": {"pretext": "masked"}}, "full"),
    Arm("published", "every switch as published", "switch",
        {
            "student": {**_CROP_MAX["student"], "drop_path": 0.2},
            "augment": {**_CROP_MAX["augment"], "flips": "horizontal"},
            "optical": {**_SEEN, "standardize": False},
            "optimizer": _ENGINE,
        }, "full"),
    Arm("equations", "same-view class vectors matched, optical weight 1 (the paper's equations)", "switch",
        {"objective": {"same_view": True, "optical": 1.0}}, "full"),
    Arm("one-gpu", "balance of one GPU: expansion bound 2.75 for 0.28", "switch", {"objective": {"world_size": 1}},
        "full"),
    Arm("ms-optical", "the multispectral stem matched to the optical teacher too (`tiny`)", "switch",
        {"objective": {"multispectral_optical": 0.5}}, "full"),
    Arm("raw-targets", "teacher features as they are, not standardised (published)", "switch",
        {"optical": {"standardize": False}}, "full"),
    Arm("crop-max", "RGB by each crop's maximum, and jittered for the ten bands too (published)", "switch", _CROP_MAX,
        "full"),
    Arm("light", "light, band gain and haze on all bands (`tiny`)", "switch",
        {"augment": {k: getattr(_TINY.augment, k) for k in ("gain", "band_gain", "haze")}}, "full"),
    Arm("teacher-sees", "teacher fed with the jittered crop and the student's statistics (published)", "switch",
        {"optical": _SEEN}, "full"),
    Arm("engine", "stochastic depth 0.2, in the EMA teacher too, clipping by tensor (published)", "switch",
        {"student": {"drop_path": 0.2}, "optimizer": _ENGINE}, "full"),
    Arm("untrained", "the network as it starts", "baseline", {}, ""),
    Arm("random-convolutions", "random convolutions, as many channels", "baseline", {}, ""),
)  # fmt: skip

#: By name, in the order in which they are run and shown.
ARMS: Mapping[str, Arm] = MappingProxyType({a.name: a for a in _LIST})


def config_of(arm: Arm, *, seed: int, steps: int, data: Path, out: Path) -> TrainConfig:
    """The run of one arm and seed.

    Parameters
    ----------
    arm : Arm
        Of `ARMS`.
    seed : int
        Decides samples, crops and initial weights: arms of one seed share all three.
    steps : int
        Optimisation steps of 16 samples.
    data : Path
        Folder with `scenes`, `change_barkbeetle`, `weights`.
    out : Path
        Folder of the run.
    """
    parts: dict[str, Any] = dict(arm.changes.get("", {}))
    for name, fields in arm.changes.items():
        if name:
            parts[name] = dataclasses.replace(getattr(BASE, name), **fields)
    optical = dataclasses.replace(parts.pop("optical", BASE.optical), weights=str(data / TEACHER))
    sources = tuple(str(data / s) for s in SOURCES)
    return dataclasses.replace(BASE, data=sources, out=str(out), seed=seed, steps=steps, optical=optical, **parts)
