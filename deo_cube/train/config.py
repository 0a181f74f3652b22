"""The configuration of a run: frozen dataclasses that are also the flags of ``python -m deo_cube.train``.

Where the published code (wolfilip/DEO-FM @55c7ae1) and the paper, or code and common sense, disagree, there is one
field whose values say so. Each field's text ends in the reason for its default.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deo_cube import arguments
from deo_cube.constants import MODEL_BANDS, SENTINEL2_STATISTICS, TCI_WHITE
from deo_cube.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "PRESETS",
    "Augment",
    "Health",
    "Loader",
    "Neck",
    "Objective",
    "Optical",
    "Optimizer",
    "Specialist",
    "StudentConfig",
    "TrainConfig",
    "check_fields",
    "from_dict",
]

MS_BANDS = MODEL_BANDS
_MEANS = tuple(SENTINEL2_STATISTICS[band][0] for band in MS_BANDS)
_STDS = tuple(SENTINEL2_STATISTICS[band][1] for band in MS_BANDS)
RGB_BANDS = MS_BANDS[:3]


@dataclass(frozen=True)
class StudentConfig:
    """The network that is trained, and how its input is normalised."""

    family: Literal["swin", "vit", "conv", "spectral"] = "swin"
    """Trunk: the paper's Swin or ViT, a small convolutional one, or the same with a second trunk for all bands."""
    dim: int = 128
    """Swin: channels of stage 1 (128 is Swin-B, 96 Swin-T). ViT: width. conv: channels of the fused map."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Swin: blocks of each stage. ViT: their sum. conv: their sum, pairs of convolutions."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage (ViT: the first)."""
    window: int = 12
    """Swin: side of an attention window in tokens. 12 is what the released weights have; the README says 7."""
    patch: int = 4
    """Side of a stem's patch in pixels: the output stride of the first maps."""
    local: int = 128
    """conv: channels of the wide local branch."""
    typical: float = 0.0
    """conv: how much half of the local branch prefers patches that are like many others of the data; 0 draws all
    evenly. Fine differences between common surfaces show more then (docs/diary.md)."""
    drop_path: float = 0.0
    """Stochastic depth. Published: 0.2 to 0.5 in Swin, in the teacher too; it noises the target, so none."""
    init: str = ""
    """Weights to start from: safetensors of MobileNet v1 (conv) or of the same network. Student and EMA teacher start
    alike (the published --init_student left the teacher behind)."""
    spectral: str = ""
    """spectral: weights of Dynamic World, from which the multispectral trunk starts. Empty: random."""
    local_from: str = ""
    """conv, spectral: weights of an earlier run whose wide local branch of all bands is kept. Empty: drawn anew."""
    haze_blind: bool = False
    """conv, spectral: the wide local filters of all bands do not respond to a constant haze, the largest difference
    between the product levels. It costs one of their 90 dimensions."""
    freeze: tuple[str, ...] = ()
    """Parameters of the network whose name begins with one of these stay as they started."""
    rgb_mean: tuple[float, ...] = _MEANS[:3]
    """DN. fMoW-Sentinel's, as the released statistics have them."""
    rgb_std: tuple[float, ...] = _STDS[:3]
    """DN."""
    ms_mean: tuple[float, ...] = _MEANS
    """DN, in model order (B04 B03 B02 B05 B06 B07 B08 B8A B11 B12)."""
    ms_std: tuple[float, ...] = _STDS
    """DN."""


@dataclass(frozen=True)
class Optical:
    """The frozen RGB teacher and what is matched to it."""

    weights: str = ""
    """File of the teacher's weights: needed by mobilenet; for the DINOs in the place of the hub's, as timm or Meta
    published them."""
    revision: str = ""
    """Commit of timm's repository on the hub. Empty: the newest; teachers.json in the run's folder says which."""
    enlarge: float = 2.0
    """mobilenet: factor by which images are enlarged for it. 64 px tiles at 128 px score 0.87 kNN, as they come 0.7."""
    mid: int = -4
    """Block of the middle patches, of a ViT teacher. 8 of 12 in the published run."""
    late: int = -1
    """Block of the late patches. 11 of 12."""
    view: Literal["clean", "jittered"] = "clean"
    """What the teacher sees: the crop as it is (the student learns to ignore jitter), or jittered as published."""
    normalization: Literal["own", "student"] = "own"
    """Statistics the teacher is fed with: those it was trained with, or, as published, the student's."""
    standardize: bool = False
    """Teacher features are standardised channel by channel, by their statistics on training windows. False as
    published; features after a ReLU (mobilenet) need it: a common mean makes all their cosines 0.9 and more."""
    student_order: Literal["intended", "published"] = "intended"
    """ViT: mid to mid and late to late, or exchanged as in the published code (misc.py:331-336)."""


@dataclass(frozen=True)
class Specialist:
    """A second frozen teacher, of all bands. None as published; the paper's premise asks for more than one."""

    model: str = ""
    """Any multispectral model that ds.deo.embed takes: a name, a run's folder. Empty: none."""
    weights: str = ""
    """File of its weights, where the name does not find them."""
    mid: str = ""
    """Layer of the middle patches; empty: one two thirds up."""
    late: str = ""
    """Layer of the late patches; empty: the one that the model gives out."""
    standardize: bool = True
    """Its features are standardised channel by channel, by their statistics on training windows: models differ in
    scale and offset, and a common offset makes all cosines 1."""
    level: Literal["own", "L1C", "L2A"] = "own"
    """Product level that it sees: that of each sample, or the one that it was trained on. See `Augment.level`."""
    cls: float = 1.0
    """Weight of its vector, within its terms. 0: its patches alone teach."""
    head: Literal["mlp", "linear"] = "mlp"
    """What is between the student's maps and its own: three layers, or one linear layer. A student that starts from the
    specialist's weights needs the linear one, which starts as the standardisation alone."""


@dataclass(frozen=True)
class Objective:
    """Weights and constants of the loss."""

    multispectral: bool = True
    """The self-supervised arm on all bands. False: optical only."""
    pretext: Literal["coding_rate", "masked"] = "coding_rate"
    """What that arm learns: the paper's self-distillation, or masked image modelling (SimMIM, arXiv:2111.09886): hidden
    squares of the global crops are predicted from the deepest map, and no EMA teacher is kept. For comparison."""
    mask_ratio: float = 0.6
    """masked: share of a crop that is hidden. SimMIM's."""
    mask_size: int = 16
    """masked: side of a hidden square, pixels; a multiple of the stride of the deepest map. SimMIM's is 32 of 224."""
    eps: float = 0.05
    """Distortion of the coding rate: the published command's (argparse says 0.5)."""
    world_size: int = 16
    """Processes whose balance of expansion and compression is kept, whatever number runs: the paper's 16. With 1 the
    expansion weighs ten times as much."""
    gather: bool = False
    """True: one coding rate over the samples of all processes, as if one process had them all. False as published."""
    coefficient: float = 1.0
    """Weight of compression."""
    expansion_of: Literal["centre", "student"] = "centre"
    """What must spread: the mean of student and teacher (published, expa_type 1), or the student (type 0)."""
    optical: float = 0.5
    """Weight of the optical terms. 0.5 as in the code; the paper's equation has 1."""
    cls: float = 1.0
    """Class vectors, within the optical terms."""
    mid: float = 0.5
    """Middle patches."""
    late: float = 0.5
    """Late patches."""
    same_view: bool = False
    """Class vectors of the same view are matched too. The code leaves them out; nothing in the equation says so."""
    multispectral_optical: float = 0.0
    """Weight at which features of the multispectral stem are also matched to the optical teacher. 0: as published."""
    second_stem: bool = True
    """False: the optical teacher is matched through the multispectral stem alone, and no RGB stem is trained: the
    paper's ablation before its separate optical path. Wants `multispectral_optical` above 0."""
    specialist: float = 0.5
    """Weight of the terms of the second frozen teacher (--specialist.model); as the optical ones."""
    ms_dim: int = 256
    """Width of the multispectral projection (p of the coding rate)."""
    hidden: int = 2048
    """Hidden width of all projection heads."""


@dataclass(frozen=True)
class Augment:
    """Crops and photometric noise, made on the device in batches."""

    global_size: int = 224
    """Pixels."""
    local_size: int = 96
    """Pixels."""
    local_crops: int = 10
    """The README's command (argparse: 8)."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the window's area in a global crop."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Share in a local crop."""
    flips: Literal["horizontal", "dihedral"] = "dihedral"
    """Satellite images have no up; published is horizontal only."""
    rgb_scale: Literal["fixed", "crop_max"] = "fixed"
    """How RGB becomes 0..1 for jitter: by `display`, or, as published, by each crop's own maximum, which lets one hot
    pixel rescale a crop."""
    display: float = TCI_WHITE
    """DN shown as white."""
    ms_sees: Literal["clean", "jittered"] = "clean"
    """RGB bands of the multispectral branch: as they are, or, as published against the paper's own figure, jittered."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Brightness, contrast, saturation, hue."""
    jitter_p: float = 0.8
    """Probability."""
    gray_p: float = 0.2
    """Probability."""
    blur_kernel: int = 23
    """Pixels; published for 224 px crops of sub-metre images."""
    blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """First global crop, second, local crops."""
    solarize_p: float = 0.2
    """Second global crop."""
    gain: float = 0.0
    """Light: all bands of a view times exp(+-gain), uniform. 0 as published."""
    band_gain: float = 0.0
    """The same for each band on its own."""
    haze: float = 0.0
    """Largest DN added to a view, falling from blue to infrared as scattering does. 0 as published."""
    level: float = 0.0
    """Share of the multispectral views whose product level is changed: from the source's (``level=L1C`` in --data,
    default L2A) to one drawn between a little below the surface's reflectance and a hazy top of the atmosphere."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW, its schedules, clipping and precision."""

    batch: int = 64
    """Multispectral samples per process and micro-batch."""
    rgb_batch: int = 0
    """Further samples per process and micro-batch from RGB-only sources."""
    accumulate: int = 1
    """Micro-batches per step."""
    lr: float = 5e-4
    """For 256 samples per step; scaled linearly with batch x accumulate x processes."""
    min_lr: float = 1e-6
    """At the end."""
    warmup: float = 0.1
    """Share of the steps: 10 epochs of 100."""
    weight_decay: tuple[float, float] = (0.04, 0.4)
    """Start and end; none on biases and norms."""
    ema: tuple[float, float] = (0.996, 1.0)
    """Momentum of the EMA teacher, start and end."""
    teacher_mode: Literal["eval", "train"] = "eval"
    """Published code leaves the teacher in training mode, stochastic depth and all."""
    clip: float = 3.0
    """Largest norm of the gradient; 0 for none."""
    clip_by: Literal["global", "tensor"] = "global"
    """Of all together, or, as published, of each tensor on its own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the GPU computes in it, else fp32. fp16 is not offered: the published run's covariance
    overflows in it."""


@dataclass(frozen=True)
class Neck:
    """conv: how the linear map to the embedding is fitted when training ends (no labels; see `necks.fit_necks`)."""

    local: int = 96
    """Components of the local branch."""
    deep: int = 96
    """Components of the deep maps. With fewer in all than channels, they are spread over the channels."""
    local_power: float = 0.0
    """Whitening of the local components, those of contrast too: variance to the power of minus this; 0.5 would whiten
    fully."""
    deep_power: float = 0.25
    """Whitening of the deep components."""
    of: Literal["tokens", "chips"] = "tokens"
    """What the components are those of."""
    contrast: int = 0
    """Components of the local branch divided by its surroundings (see `encoder.networks.conv`); none: not computed."""
    contrast_gain: float = 1.0
    """How much larger a component of contrast is than a local one: its square is the part it has in a distance."""
    deep_gain: float = 1.0
    """The same of a deep component."""
    deep_of: tuple[str, ...] = ()
    """Deep maps that the deep components are made of. Empty: all of them."""
    turned: Literal["together", "apart"] = "together"
    """What the fixed rotation mixes: all components, or the deep ones apart from the others. Apart, `deep_gain` decides
    their part in a distance, and a probe that standardises channels still sees them at full strength."""
    changes: str = ""
    """ms: .npz of chips of two dates and a mask of what changed (see `train.necks`), on which the metric of the local
    and contrast components is fitted. Empty: that of variance. Labels are used then, and the card should say so."""
    general: float = 1.0
    """ms: weight, in that fit, of places under other air and light beside the known changes."""


@dataclass(frozen=True)
class Loader:
    """How samples are read."""

    window: int = 256
    """Side of the windows that are read and then cropped, pixels."""
    valid: float = 0.7
    """Least share of valid pixels of a window that is used."""
    detail: int = 4
    """Sources with ``rgb=``: pixels of the fine RGB image along a side of the cube's. 4 reads 2.5 m beside 10 m; choose
    `window` so that window x detail is near --augment.global-size, or what is fine is lost in the crop."""
    workers: int = 4
    """Reading processes. 0 reads in the loop."""
    prefetch: int = 4
    """Batches each reads ahead."""


@dataclass(frozen=True)
class Health:
    """What is logged, measured on the way and kept."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    probe_every: int = 0
    """Steps between kNN scores on the first labelled RGB source; 0 for none."""
    probe_size: int = 1000
    """Labelled images of that score: half are neighbours, half are asked."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Steps between checkpoints that are kept for good; 0 for none."""
    patience: int = 50
    """Steps in a row whose loss is far above its running median before the run stops; not finite stops at once."""
    tensorboard: bool = False
    """Also write events for TensorBoard."""


#: Integers that count from the end where they are negative.
_FROM_THE_END = ("mid", "late")
#: Integers that must be positive, wherever they are.
_POSITIVE = ("steps", "accumulate", "dim", "window", "patch", "global_size", "local_size", "depths", "heads")


def check_fields(config: Any, prefix: str = "--") -> None:
    """Raise for the first field of a dataclass, or of one within it, whose value contradicts its annotation.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        With the flag of the field, as ``--optimizer.batch``.
    """
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        flag, value, hint = f"{prefix}{item.name.replace('_', '-')}", getattr(config, item.name), hints[item.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, hint):  # type: ignore[arg-type]
                raise ArgumentTypeError(f"{flag} must be a {hint.__name__}, got {value!r}")  # type: ignore[union-attr]
            check_fields(value, f"{flag}.")
        else:
            _check_value(flag, value, hint, item.name)


def _check_value(flag: str, value: Any, hint: Any, name: str) -> None:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value not in parts:
            raise ArgumentError(f"{flag} must be one of {', '.join(map(repr, parts))}, got {value!r}")
    elif origin is tuple:
        values = arguments.sequence(flag, value, "values")
        kinds = [parts[0]] * len(values) if parts[-1] is Ellipsis else parts
        if len(kinds) != len(values):
            raise ArgumentError(f"{flag} must be {len(kinds)} values, got {value!r}")
        for part, kind in zip(values, kinds, strict=True):
            _check_value(flag, part, kind, name)
    elif hint is bool:
        arguments.boolean(flag, value)
    elif hint is int:
        arguments.integer(flag, value, minimum=None if name in _FROM_THE_END else int(name in _POSITIVE))
    elif hint is float:
        arguments.number(flag, value, infinite=True)
    elif hint is str and not isinstance(value, str):
        raise ArgumentTypeError(f"{flag} must be a text, got {value!r}")


@dataclass(frozen=True)
class TrainConfig:
    """Dual-teacher distillation of a student from Sentinel-2 cubes."""

    data: tuple[str, ...] = ()
    """Sources: PATH, then as needed ,weight=2 ,offset=0 ,units=dn ,missing=nearest ,hold_out=0.5 ,rgb=FINE.tif.
    PATH is a Zarr, NetCDF or GeoTIFF cube, a folder or pattern of GeoTIFFs, STAC items (JSON), or a folder or zip of
    RGB images."""
    out: str = "runs/deo"
    """Folder of the run; a finished one is a model: deo-cube embed CUBE OUT --model DIR."""
    preset: Literal["paper", "small", "tiny", "smoke"] = "small"
    """Where the other defaults come from."""
    steps: int = 10_000
    """Optimisation steps."""
    seed: int = 0
    """Of everything: samples, crops, weights."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint."""
    teacher: str = "none"
    """none, mobilenet, dinov2, dinov3 or timm:<name> (a ViT or a convolutional network); or the path of an embedding
    store (one of ours, AlphaEarth, TESSERA), whose vectors teach the multispectral stem where it covers a source. Its
    terms are weighed as those of --specialist, in its place."""
    dry_run: bool = False
    """Print the plan and stop."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    threads: int = 0
    """CPU threads per process; 0 leaves torch's choice."""
    student: StudentConfig = field(default_factory=StudentConfig)
    optical: Optical = field(default_factory=Optical)
    specialist: Specialist = field(default_factory=Specialist)
    objective: Objective = field(default_factory=Objective)
    augment: Augment = field(default_factory=Augment)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loader: Loader = field(default_factory=Loader)
    health: Health = field(default_factory=Health)
    neck_ms: Neck = field(default_factory=Neck)
    neck_rgb: Neck = field(default_factory=lambda: Neck(local=0, of="chips"))

    def __post_init__(self) -> None:
        check_fields(self)
        s, a, o, j = self.student, self.augment, self.optimizer, self.objective
        masked = j.multispectral and j.pretext == "masked"
        stride = s.patch << (len(s.depths) - 1) if s.family == "swin" else s.patch
        through_ms = j.multispectral_optical > 0 and o.batch > 0 and o.rgb_batch == 0
        second = bool(self.specialist.model or self.store)
        for fits, message in (
            (o.batch + o.rgb_batch > 0, "--optimizer.batch: a batch needs at least one sample"),
            (
                j.multispectral or self.teacher != "none" or self.specialist.model,
                "nothing to learn from: --teacher none and --objective.no-multispectral leave no term",
            ),
            (
                not second or o.batch > 0,
                "--specialist.model and a store teach multispectral samples: expected --optimizer.batch above 0",
            ),
            (
                not (self.specialist.model and self.store),
                f"--teacher {self.teacher} takes the place of --specialist.model: give one of them",
            ),
            (
                not self.store or self.loader.window % s.patch == 0,
                f"--loader.window {self.loader.window} must be a multiple of --student.patch {s.patch}, the side of "
                "the cells that the vectors of a store are averaged to",
            ),
            (
                not j.multispectral or o.batch > 0,
                "the multispectral arm needs multispectral samples: --optimizer.batch, or --objective.no-multispectral",
            ),
            (
                s.family != "spectral" or j.multispectral_optical == 0,
                "--student.family spectral has another trunk for all bands, without maps for the optical teacher: "
                "expected --objective.multispectral-optical 0",
            ),
            (
                j.second_stem or self.optical_teacher == "none" or through_ms,
                "--objective.no-second-stem matches the teacher through the multispectral stem: expected "
                "--objective.multispectral-optical above 0, multispectral samples, and --optimizer.rgb-batch 0",
            ),
            (
                not masked or s.family in ("swin", "vit"),
                "--objective.pretext masked hides tokens: expected --student.family swin or vit",
            ),
            (
                not masked or (0 < j.mask_ratio < 1 and a.global_size % j.mask_size == 0 and j.mask_size % stride == 0),
                f"--objective.mask-size {j.mask_size} must divide --augment.global-size {a.global_size} and be a "
                f"multiple of the stride {stride} of the deepest map, and --objective.mask-ratio {j.mask_ratio} be "
                "within 0..1",
            ),
            *(
                (0 < low <= high <= 1, f"--augment.{name}-scale must rise within 0..1, got {(low, high)}")
                for name, (low, high) in (("global", a.global_scale), ("local", a.local_scale))
            ),
            (s.typical >= 0, f"--student.typical must not be negative, got {s.typical}"),
            (a.blur_kernel % 2 == 1, f"--augment.blur-kernel must be odd, got {a.blur_kernel}"),
            (
                len(s.ms_mean) == len(s.ms_std) == len(MS_BANDS),
                f"--student.ms-mean and --student.ms-std must be {len(MS_BANDS)} values each",
            ),
        ):
            if not fits:
                raise ArgumentError(message)

    @property
    def store(self) -> str:
        """Path of the embedding store that teaches, or an empty text."""
        known = self.teacher in ("none", "mobilenet", "dinov2", "dinov3") or self.teacher.startswith("timm:")
        path = Path(self.teacher)
        return self.teacher if not known and (len(path.parts) > 1 or path.suffix or path.exists()) else ""

    @property
    def optical_teacher(self) -> str:
        """The frozen RGB teacher: `teacher`, or ``none`` where that is a store."""
        return "none" if self.store else self.teacher

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self))))


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Make a configuration of what `to_dict` gave; unknown fields raise `ArgumentError`."""
    return typing.cast(TrainConfig, _build(TrainConfig, values))


def _build(kind: Any, value: Any) -> Any:
    if not dataclasses.is_dataclass(kind):
        return tuple(value) if isinstance(value, list) else value
    name = getattr(kind, "__name__", kind)
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} is a mapping of fields, got {value!r}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise ArgumentError(f"unknown fields {unknown} of {name}")
    return kind(**{k: _build(hints[k], v) for k, v in value.items()})  # type: ignore[operator]


_SMALL_CROPS = Augment(
    global_size=64,
    local_size=32,
    local_crops=2,
    local_scale=(0.15, 0.5),
    blur_kernel=5,
    blur_p=(0.2, 0.1, 0.1),
    solarize_p=0.0,
    jitter=(0.4, 0.4, 0.3, 0.05),
    gain=0.25,
    band_gain=0.05,
    haze=200.0,
)

_HR_MEAN = (0.41820 * TCI_WHITE, 0.42148 * TCI_WHITE, 0.39913 * TCI_WHITE)
_HR_STD = (0.28774 * TCI_WHITE, 0.27542 * TCI_WHITE, 0.27640 * TCI_WHITE)

PRESETS: dict[str, TrainConfig] = {
    # The paper: Swin-B with window 12, 224 px, the balance of sixteen GPUs, DINOv3. 48,800 steps of 1024 samples are
    # 100 epochs of 500,000 images.
    "paper": TrainConfig(
        preset="paper",
        steps=48_800,
        teacher="dinov3",
        # `normalize_hr` (augmentations.py:250-311): RGB statistics in 0..1 of the crop's maximum, here times `display`.
        student=StudentConfig(
            rgb_mean=_HR_MEAN,
            rgb_std=_HR_STD,
            ms_mean=_HR_MEAN + StudentConfig.ms_mean[3:],
            ms_std=_HR_STD + StudentConfig.ms_std[3:],
        ),
        augment=Augment(rgb_scale="crop_max", ms_sees="jittered", flips="horizontal"),
        optical=Optical(view="jittered", normalization="student", mid=8, late=11),
    ),
    # The authors' own small regime: Swin-T, 50,000 images, 50 epochs, one GPU.
    "small": TrainConfig(
        preset="small",
        steps=9_800,
        teacher="dinov2",
        student=StudentConfig(dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7),
        optimizer=Optimizer(batch=64, accumulate=4),
        augment=Augment(local_crops=6),
        optical=Optical(mid=8, late=11),
    ),
    # The bundled model: what two CPU cores can train in under an hour.
    "tiny": TrainConfig(
        preset="tiny",
        steps=2_000,
        teacher="mobilenet",
        # Statistics of the multispectral windows that it is trained on; RGB in -1..1 as MobileNet reads it.
        student=StudentConfig(
            family="conv",
            dim=192,
            depths=(11,),
            local=256,
            typical=3.0,
            rgb_mean=(1375.0,) * 3,
            rgb_std=(1375.0,) * 3,
            ms_mean=(877.0, 817.0, 603.0, 1199.0, 1859.0, 2130.0, 2234.0, 2273.0, 1937.0, 1416.0),
            ms_std=(667.0, 489.0, 389.0, 676.0, 770.0, 939.0, 1043.0, 995.0, 1136.0, 1095.0),
        ),
        optical=Optical(standardize=True),
        objective=Objective(hidden=512, ms_dim=128, same_view=True, world_size=4, multispectral_optical=0.5),
        augment=_SMALL_CROPS,
        optimizer=Optimizer(batch=16, rgb_batch=16, lr=8e-3, weight_decay=(0.01, 0.01), ema=(0.99, 1.0)),
        loader=Loader(window=80, workers=1),
        health=Health(probe_every=500, checkpoint_every=500),
        # Contrast carries change, deep features the scene: docs/diary.md has what each was worth.
        neck_ms=Neck(local=80, contrast=80, deep=32, deep_power=0.1, contrast_gain=2.0, deep_gain=0.5),
        neck_rgb=Neck(local=0, deep=96, of="chips"),
    ),
    # For tests and for trying the machinery: seconds.
    "smoke": TrainConfig(
        preset="smoke",
        steps=4,
        student=StudentConfig(dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4),
        objective=Objective(hidden=16, ms_dim=16, world_size=1),
        augment=dataclasses.replace(_SMALL_CROPS, global_size=32, local_size=16),
        optimizer=Optimizer(batch=4, lr=8e-3),
        loader=Loader(window=32, workers=0),
        health=Health(log_every=1, checkpoint_every=2),
    ),
}
