"""The student, its projection heads, its card, its EMA teacher, and the loss of one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from deo_cube.encoder.card import Layer, ModelCard, Normalization, NormalizationKind, Stem, Weights
from deo_cube.encoder.checkpoint_format import load_weights
from deo_cube.encoder.networks.adapters import build_network
from deo_cube.encoder.networks.conv import DeoConv, fold_batch_norm
from deo_cube.encoder.networks.dynamicworld import read_variables
from deo_cube.encoder.networks.spectral import DeoSpectral
from deo_cube.errors import ArgumentError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.paths import local_path
from deo_cube.train import config as cfg
from deo_cube.train.augment import View, column
from deo_cube.train.losses import coding_rate_loss, masked_error, patch_similarity, view_similarity
from deo_cube.train.teachers import FrozenTeacher, StoreTeacher, Targets

__all__ = [
    "LinearProjection",
    "Outputs",
    "ProjectionHead",
    "Student",
    "Terms",
    "describe_run",
    "ema_update",
    "initialise",
    "initialise_spectral",
    "objective",
    "specialist_targets",
    "student_card",
    "teacher_targets",
    "untrained_stems",
]


class ProjectionHead(nn.Module):
    """Three linear layers with GELU between, output of length one (vision_transformer.py:367-410)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        # In float32: the norm of a short vector is lost in half precision.
        return F.normalize(self.mlp(x).float(), dim=-1, p=2, eps=1e-12)


class LinearProjection(nn.Module):
    """One linear layer, output of length one; it starts as the standardisation that `start` is given."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    @torch.no_grad()
    def start(self, mean: Tensor, std: Tensor) -> None:
        """Start as ``(x - mean) / std``, where inputs and outputs are equally many."""
        if self.linear.in_features == self.linear.out_features:
            self.linear.weight.copy_(torch.diag(1 / std.flatten()))
            self.linear.bias.copy_(-mean.flatten() / std.flatten())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.normalize(self.linear(x.float()).float(), dim=-1, p=2, eps=1e-12)


@dataclass(frozen=True)
class FeatureLayers:
    """Names of the layers of a trunk that the losses use."""

    vector: str
    """The vector of a whole crop."""
    mid: str
    late: str


def taps(student: cfg.StudentConfig, order: str = "intended", stem: str = "rgb") -> FeatureLayers:
    """Return a family's layers for the losses, as published: stages 3 and 4 of a Swin, blocks 5 and 11 of a ViT-B."""
    if student.family == "swin":
        n = len(student.depths)
        return FeatureLayers("pooled", f"stage{n - 1}", f"stage{n}")
    if student.family == "vit":
        depth = sum(student.depths)
        mid, late = f"block{depth // 2 - 1}", f"block{depth - 1}"
        return FeatureLayers("pooled", mid, late) if order == "intended" else FeatureLayers("pooled", late, mid)
    if student.family == "spectral" and stem == "ms":
        return FeatureLayers("parts", "mixed", "spectral")
    return FeatureLayers("parts", "pw5", f"pw{sum(student.depths)}")


def student_card(config: cfg.TrainConfig, name: str = "student.run", alias: str = "student") -> ModelCard:
    """Return the card of the network that `config` describes, untrained."""
    s = config.student
    if s.family == "swin":
        sizes: dict[str, Any] = {
            "dim": s.dim, "depths": list(s.depths), "heads": list(s.heads), "window": s.window, "patch": s.patch
        }  # fmt: skip
        n = len(s.depths)
        layers = tuple(Layer(f"stage{i + 1}", s.dim << i, s.patch << i) for i in range(n))
        layers += (Layer("norm", s.dim << (n - 1), s.patch << (n - 1)),)
    elif s.family == "vit":
        depth = sum(s.depths)
        sizes = {
            "dim": s.dim, "depth": depth, "heads": s.heads[0], "patch": s.patch,
            "grid": max(1, config.augment.global_size // s.patch),
        }  # fmt: skip
        layers = (*(Layer(f"block{i}", s.dim, s.patch) for i in range(depth)), Layer("norm", s.dim, s.patch))
    else:
        sizes = {"dim": s.dim, "local": s.local, "depth": sum(s.depths)}
        necks = {"ms": config.neck_ms, "rgb": config.neck_rgb}
        if contrast := [stem for stem, neck in necks.items() if neck.contrast]:
            sizes["contrast"] = contrast
        layers = (Layer("local", s.local, 4), Layer("fused", s.dim, 4))
    if s.drop_path and s.family in ("swin", "vit"):
        sizes["drop_path"] = s.drop_path
    kind: NormalizationKind = "rgb_max" if config.augment.rgb_scale == "crop_max" else "fixed"
    scale = config.augment.display if kind == "rgb_max" else 1.0
    ms_scale = (scale,) * 3 + (1.0,) * (len(s.ms_mean) - 3)
    ms = Normalization(
        kind,
        kind,
        tuple(m / k for m, k in zip(s.ms_mean, ms_scale, strict=True)),
        tuple(v / k for v, k in zip(s.ms_std, ms_scale, strict=True)),
    )
    rgb = Normalization(kind, kind, tuple(m / scale for m in s.rgb_mean), tuple(v / scale for v in s.rgb_std))
    own = Normalization("own", "own")
    stride = max(la.stride for la in layers) if s.family == "swin" else s.patch
    tile = max(1, -(-config.augment.global_size // (2 * stride))) * 2 * stride
    return ModelCard(
        name=name,
        alias=alias,
        summary=f"{s.family} student trained by deo_cube.train, preset {config.preset}",
        architecture={"family": s.family, **sizes},
        stems=(Stem("ms", cfg.MS_BANDS, (ms, own)), Stem("rgb", cfg.RGB_BANDS, (rgb, own))),
        layers=layers,
        tile=tile,
        halo=tile // 4 // stride * stride,
        weights=Weights("untrained", "weights.safetensors"),
        training_data="",
    )


def describe_run(config: cfg.TrainConfig, step: int, seconds: float, history: Mapping[str, float]) -> ModelCard:
    """Return the card of a student after `step` steps."""
    o = config.optimizer
    card = student_card(config, name=f"{config.student.family}_student.step{step}", alias="student")
    health = ", ".join(f"{k} {v:.3g}" for k, v in history.items())
    sources = "; ".join(config.data)
    return dataclasses.replace(
        card,
        weights=Weights("trained", "weights.safetensors"),
        training_data=f"{step} steps of {(o.batch + o.rgb_batch) * o.accumulate} samples per process, {seconds:.0f} s, "
        f"seed {config.seed}, teacher {config.teacher}"
        + (f" and {config.specialist.model}" if config.specialist.model else "")
        + f"; sources: {sources}"
        + (f"; health: {health}" if health else ""),
        limits=(
            "No score has been measured: run deo_cube.evaluate on labelled data kept apart from training.",
            *(f"Stem {stem!r} was not trained: no arm fed it." for stem in untrained_stems(config)),
        ),
    )


def untrained_stems(config: cfg.TrainConfig) -> list[str]:
    """Return the stems that no arm of a run trains."""
    o = config.objective
    optical = config.optical_teacher != "none"
    matched = bool(config.specialist.model or config.store) or (optical and o.multispectral_optical > 0)
    ms = config.optimizer.batch > 0 and (o.multispectral or matched)
    rgb = optical and o.second_stem
    return [stem for stem, trained in (("ms", ms), ("rgb", rgb)) if not trained]


@dataclass(frozen=True)
class Outputs:
    """Outputs of the student for a batch of views; None where an arm is off. Vectors are stacked view by view."""

    ms: Tensor | None = None
    """(V N, p): projections of the multispectral views."""
    cls: Tensor | None = None
    """(V B, D)"""
    mid: Tensor | None = None
    """(2 B, D, h, w): of the two global views."""
    late: Tensor | None = None
    ms_cls: Tensor | None = None
    """As cls, mid and late, through the multispectral stem."""
    ms_mid: Tensor | None = None
    ms_late: Tensor | None = None
    sp_cls: Tensor | None = None
    """The same for the second frozen teacher."""
    sp_mid: Tensor | None = None
    sp_late: Tensor | None = None
    masked: Tensor | None = None
    """Scalar: mean absolute error on the hidden squares; where the multispectral arm models masked images."""
    pooled: Tensor | None = None
    """(2 N or 2 B, D): features of the global views before projection, detached: for health signals."""


class Student(nn.Module):
    """A network with the projection heads that its arms need, and no others.

    Parameters
    ----------
    config : TrainConfig
        Of the run.
    dims : (int, int, int) or None
        Channels of the frozen teacher's cls, mid and late; None without one.
    second : (int, int, int) or None
        Those of the second frozen teacher.
    """

    def __init__(
        self,
        config: cfg.TrainConfig,
        dims: tuple[int, int, int] | None,
        second: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = build_network(student_card(config))
        order = config.optical.student_order
        self.taps = {stem: taps(config.student, order, stem) for stem in ("ms", "rgb")}
        width, width_rgb = (_widths(self.network, config.student, stem) for stem in ("ms", "rgb"))
        o = config.objective
        self.ms_optical = dims is not None and o.multispectral_optical > 0 and config.optimizer.batch > 0
        self.second_stem = o.second_stem
        contrasts = o.multispectral and o.pretext == "coding_rate"
        self.head_ms = ProjectionHead(width["vector"], o.hidden, o.ms_dim) if contrasts else None
        # One linear layer, as SimMIM's: all pixels below a token of the deepest map.
        self.head_pixels = None
        if o.multispectral and o.pretext == "masked":
            self.head_pixels = nn.Linear(width["late"], len(cfg.MS_BANDS) * width["stride"] ** 2)
        self.cls_head = ProjectionHead(width_rgb["vector"], o.hidden, dims[0]) if dims else None
        self.patch_head_mid = ProjectionHead(width_rgb["mid"], o.hidden, dims[1]) if dims else None
        self.patch_head_late = ProjectionHead(width_rgb["late"], o.hidden, dims[2]) if dims else None
        self.specialist = None
        if second is not None:
            parts = zip(("vector", "mid", "late"), second, strict=True)
            linear = config.specialist.head == "linear"
            self.specialist = nn.ModuleDict(
                {
                    k: LinearProjection(width[k], n) if linear else ProjectionHead(width[k], o.hidden, n)
                    for k, n in parts
                }
            )
        # Convolutions are a third faster on channels that are side by side.
        self.channels_last = config.student.family in ("conv", "spectral")
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            # The neck is fitted in closed form when training ends (`necks.fit_necks`): no loss looks at it.
            self.network.necks.requires_grad_(False)  # type: ignore[union-attr]

    def forward(self, views: Sequence[View], hidden: Tensor | None = None) -> Outputs:
        """Return every output that the losses of this run need. Views of one size go through the network together.

        `hidden` (2 N, 1, S, S), bool, are the pixels that masked image modelling hides in the two global views.
        """
        out: dict[str, Tensor | None] = {}
        small = views[2:]
        if self.head_pixels is not None:
            assert hidden is not None
            out["masked"], out["pooled"] = self._fill_in(views, hidden)
        if self.head_ms is not None or self.ms_optical or self.specialist is not None:
            ms = [v.ms for v in views]
            patches = self.ms_optical or self.specialist is not None
            vector, mid, late = self._run(ms[:2], [v.ms for v in small], "ms", patches)
            out.setdefault("pooled", vector[: 2 * views[0].ms.shape[0]].detach())  # type: ignore[union-attr]
            if self.head_ms is not None:
                out["ms"] = self.head_ms(vector)
            if self.ms_optical:
                out["ms_cls"], out["ms_mid"], out["ms_late"] = self._project(vector, mid, late)
            if self.specialist is not None:
                assert mid is not None
                assert late is not None
                out["sp_cls"] = self.specialist["vector"](vector)
                out["sp_mid"] = _on_map(self.specialist["mid"], mid)
                out["sp_late"] = _on_map(self.specialist["late"], late)
        if self.cls_head is not None and self.second_stem:
            vector, mid, late = self._run([v.rgb for v in views[:2]], [v.rgb for v in small], "rgb", True)
            out.setdefault("pooled", vector[: 2 * views[0].rgb.shape[0]].detach())
            out["cls"], out["mid"], out["late"] = self._project(vector, mid, late)
        return Outputs(**out)

    def _fill_in(self, views: Sequence[View], hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the error on hidden pixels, and pooled features (2 N, D) of the visible ones.

        Hidden pixels are set to the mean (0 after normalisation), which makes their tokens alike: the stem's bias.
        """
        assert self.head_pixels is not None
        images = self._stacked([v.ms for v in views[:2]])
        run: Any = self.network
        vector = self.taps["ms"].vector
        maps = run.forward_features(images.masked_fill(hidden, 0.0), "ms", {"norm", vector})
        predicted = self.head_pixels(maps["norm"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        predicted = F.pixel_shuffle(predicted, images.shape[2] // predicted.shape[2])
        return masked_error(predicted, images, hidden), maps[vector].detach()

    def _run(
        self, large: Sequence[Tensor | None], small: Sequence[Tensor | None], stem: str, patches: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return vectors of all views, and patch maps of the two global ones."""
        run: Any = self.network
        own = self.taps[stem]
        layers = {own.vector} | ({own.mid, own.late} if patches else set())
        maps = run.forward_features(self._stacked(large), stem, layers)
        vectors = [maps[own.vector]]
        if small:
            vectors.append(run.forward_features(self._stacked(small), stem, {own.vector})[own.vector])
        return torch.cat(vectors), maps.get(own.mid), maps.get(own.late)

    def _stacked(self, crops: Sequence[Tensor | None]) -> Tensor:
        x = torch.cat([t for t in crops if t is not None])
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def _project(
        self, vector: Tensor, mid: Tensor | None, late: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        assert self.cls_head is not None
        assert mid is not None
        assert late is not None
        return self.cls_head(vector), _on_map(self.patch_head_mid, mid), _on_map(self.patch_head_late, late)

    def project_ms(self, views: Sequence[View]) -> Tensor:
        """Return multispectral projections (2 N, p) of the two global views, the output of the EMA teacher."""
        assert self.head_ms is not None
        vector, _, _ = self._run([v.ms for v in views[:2]], [], "ms", False)
        projected: Tensor = self.head_ms(vector)
        return projected


def _on_map(head: nn.Module | None, x: Tensor) -> Tensor:
    assert head is not None
    projected: Tensor = head(x.permute(0, 2, 3, 1))
    return projected.permute(0, 3, 1, 2)


def _widths(network: nn.Module, student: cfg.StudentConfig, stem: str) -> dict[str, int]:
    layers: Mapping[str, tuple[int, int]] = network.layers  # type: ignore[assignment]
    t = taps(student, stem=stem)
    parts: Any = getattr(network, "stem_parts", {}).get(stem) or getattr(network, "parts", {})
    vector = sum(parts.values()) if t.vector == "parts" else layers["norm"][0]
    late, stride = layers[t.late]
    return {"vector": int(vector), "mid": layers[t.mid][0], "late": late, "stride": stride}


def initialise(student: Student, path: str, config: cfg.TrainConfig) -> None:
    """Fill the network from `path`: MobileNet v1 into the trunk of a `conv`, or weights of the same network into any.

    The multispectral stem of a `conv` starts from the RGB filters on B08, B11 and B04 (near infrared, short-wave
    infrared and red), the triple that tells vegetation, soil and water apart; the other bands start at zero.

    Raises
    ------
    WeightsNotFoundError, WeightsMismatchError
        If there is no such file, or it fills neither.
    """
    file = local_path(path)
    if not file.is_file():
        raise WeightsNotFoundError(f"--student.init: no weights at {file}")
    network = student.network
    if not (isinstance(network, DeoConv) and "conv1.weight" in (tensors := load_file(str(file)))):
        load_weights(network, file)
        return
    state = fold_batch_norm(tensors, "rgb", depth=network.depth)
    if "ms" in network.trunk.stems:
        rgb = state["stems.rgb.weight"]
        ms = torch.zeros(rgb.shape[0], len(cfg.MS_BANDS), *rgb.shape[2:])
        for channel, band in enumerate(("B08", "B11", "B04")):
            # Display values in -1..1 have about half the spread of standardised bands.
            ms[:, cfg.MS_BANDS.index(band)] = 0.5 * rgb[:, channel]
        state |= {"stems.ms.weight": ms, "stems.ms.bias": state["stems.rgb.bias"].clone()}
    try:
        network.trunk.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsMismatchError(f"--student.init: {file} does not fill the trunk: {error}") from error


def initialise_spectral(student: Student, config: cfg.TrainConfig) -> None:
    """Set the input transform of a multispectral trunk, and start it from Dynamic World where the run says so.

    Raises
    ------
    WeightsNotFoundError, WeightsMismatchError
        If there is no such file, or it does not hold Dynamic World.
    """
    s, network = config.student, student.network
    if not isinstance(network, DeoSpectral):
        return
    network.spectral.set_input(cfg.MS_BANDS, s.ms_mean, s.ms_std)
    if not s.spectral:
        return
    path = local_path(s.spectral)
    if not path.is_file():
        raise WeightsNotFoundError(f"--student.spectral: no weights at {path}")
    try:
        tensors = load_file(str(path)) if path.suffix == ".safetensors" else read_variables(path)
        network.spectral.load_dynamic_world(tensors, cfg.MS_BANDS)
    except (KeyError, RuntimeError) as error:
        raise WeightsMismatchError(f"--student.spectral: {path} does not hold Dynamic World: {error}") from error


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set ``teacher = momentum * teacher + (1 - momentum) * student``, tensor by tensor **by name**; copy buffers.

    The teacher may lack tensors of the student (heads it has no use for), never the reverse.

    Raises
    ------
    KeyError
        If the teacher has a parameter that the student lacks.
    """
    own = dict(student.named_parameters())
    names, mine = zip(*teacher.named_parameters(), strict=True)
    theirs = [own[name].detach() for name in names]
    torch._foreach_lerp_(list(mine), theirs, 1 - momentum)
    buffers = dict(student.named_buffers())
    for name, buffer in teacher.named_buffers():
        buffer.copy_(buffers[name])


def teacher_targets(teacher: FrozenTeacher, views: Sequence[View], config: cfg.TrainConfig) -> Targets:
    """Return the frozen teacher's targets for the two global views, view by view."""
    seen = [v.clean if config.optical.view == "clean" else v.jittered for v in views[:2]]
    images = torch.cat(seen)
    if config.optical.normalization == "own":
        mean, std = teacher.mean, teacher.std
    else:
        display = config.augment.display
        mean = tuple(m / display for m in config.student.rgb_mean)
        std = tuple(s / display for s in config.student.rgb_std)
    return teacher((images - column(mean).to(images)) / column(std).to(images))


def specialist_targets(teacher: FrozenTeacher, views: Sequence[View]) -> Targets:
    """Return the second frozen teacher's targets for the clean multispectral pixels of the two global views."""
    if isinstance(teacher, StoreTeacher):
        return teacher.targets(views)
    order = [cfg.MS_BANDS.index(b) for b in teacher.bands]
    images = torch.cat([v.dn for v in views[:2] if v.dn is not None])[:, order]
    return teacher((images - column(teacher.mean).to(images)) / column(teacher.std).to(images))


@dataclass(frozen=True)
class Terms:
    """The loss of a step, and its terms (detached; None for arms that are off)."""

    total: Tensor
    parts: Mapping[str, Tensor]
    """compression, expansion, cls, mid, late, ms_cls, ms_mid, ms_late, sp_cls, sp_mid, sp_late: similarities, more is
    better. masked: an error in standard deviations of the input, less is better."""


def objective(
    out: Outputs,
    teacher_ms: Tensor | None,
    targets: Targets | None,
    views: int,
    config: cfg.Objective,
    specialist: Targets | None = None,
    specialist_cls: float = 1.0,
) -> Terms:
    """Return the total loss: ``-compression - expansion - optical (cls + mid/2 + late/2)`` (main_dino.py:809-842).

    With a second frozen teacher the same sum of its three terms, weighed by ``specialist``, is subtracted too.

    Parameters
    ----------
    out : Outputs
        Of the student.
    teacher_ms : Tensor (2 N, p) or None
        Projections of the EMA teacher.
    targets : Targets or None
        Of the frozen teacher, for the two global views.
    views : int
        V.
    config : Objective
        Weights.
    specialist : Targets, optional
        Of the second frozen teacher, for the two global views of the multispectral samples.
    specialist_cls : float
        Weight of its vector, relative to that of the optical teacher.
    """
    parts: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    if out.ms is not None and teacher_ms is not None:
        mine, theirs = (gathered(out.ms, views), gathered(teacher_ms, 2)) if config.gather else (out.ms, teacher_ms)
        rate = coding_rate_loss(
            mine,
            theirs,
            views,
            eps=config.eps,
            world_size=config.world_size,
            coefficient=config.coefficient,
            of=config.expansion_of,
        )
        losses.append(rate.loss)
        parts |= {"compression": rate.compression, "expansion": rate.expansion}
    if out.masked is not None:
        losses.append(config.coefficient * out.masked)
        parts["masked"] = out.masked
    if targets is not None:
        if out.cls is not None:
            terms = _optical(out.cls, out.mid, out.late, targets, views, config)
            parts |= terms
            losses.append(-config.optical * _weighted(terms, config))
        if out.ms_cls is not None:
            n = out.ms_cls.shape[0] // views
            # Multispectral samples come first in every view of the targets.
            some = Targets(*(_first(t, n) for t in (targets.cls, targets.mid, targets.late)))
            terms = _optical(out.ms_cls, out.ms_mid, out.ms_late, some, views, config)
            parts |= {f"ms_{k}": v for k, v in terms.items()}
            losses.append(-config.optical * config.multispectral_optical * _weighted(terms, config))
    if specialist is not None and out.sp_cls is not None:
        terms = _optical(out.sp_cls, out.sp_mid, out.sp_late, specialist, views, config)
        parts |= {f"sp_{k}": v for k, v in terms.items()}
        losses.append(-config.specialist * _weighted(terms, config, specialist_cls))
    if not losses:
        raise ArgumentError("objective: no arm is on, so there is nothing to learn from")
    return Terms(torch.stack(losses).sum(), {k: v.detach() for k, v in parts.items()})


def _optical(
    cls: Tensor, mid: Tensor | None, late: Tensor | None, targets: Targets, views: int, config: cfg.Objective
) -> dict[str, Tensor]:
    assert mid is not None
    assert late is not None
    return {
        "cls": view_similarity(
            cls,
            targets.cls,
            views,
            same_view=config.same_view,
            known=None if targets.known is None else targets.known.flatten(1).any(dim=1),
        ),
        "mid": patch_similarity(mid, targets.mid, targets.known),
        "late": patch_similarity(late, targets.late, targets.known),
    }


def _weighted(terms: Mapping[str, Tensor], config: cfg.Objective, cls: float = 1.0) -> Tensor:
    return cls * config.cls * terms["cls"] + config.mid * terms["mid"] + config.late * terms["late"]


def _first(x: Tensor, n: int) -> Tensor:
    """Return the first n samples of each of two views."""
    return x.reshape(2, -1, *x.shape[1:])[:, :n].flatten(0, 1)


def gathered(x: Tensor, views: int) -> Tensor:
    """Return vectors (V N, D) of all processes as (V N W, D), view by view, with gradient to each process's own."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    every: tuple[Tensor, ...] = all_gather(x.contiguous())  # type: ignore[no-untyped-call]
    parts = [t.reshape(views, -1, t.shape[1]) for t in every]
    return torch.cat(parts, dim=1).flatten(0, 1)
