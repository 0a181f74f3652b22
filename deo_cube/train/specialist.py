"""A second frozen teacher, of all bands: any multispectral model that ``ds.deo.embed`` takes.

The paper's premise is that several specialised models coexist, and that a student learns from each what it knows best.
Its code has one frozen teacher, of RGB. Here a second one may stand beside it, by the same protocol: a released
model, one of your own runs, or a third party's encoder. It sees the clean crops of the multispectral samples in DN, in
its own bands and with its own normalisation; the student's multispectral stem is matched to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deo_cube.encoder.card import Layer, ModelCard, Stem
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.normalize import normalize, to_units
from deo_cube.errors import ArgumentError, MissingBandsError
from deo_cube.train.config import MS_BANDS, Specialist, TrainConfig
from deo_cube.train.samples import Mixture
from deo_cube.train.teachers import FrozenTeacher, Standardised, Targets, _Frozen

__all__ = ["EncoderTeacher", "load_specialist", "specialist_dims"]


class EncoderTeacher(_Frozen):
    """An encoder of this package as a frozen teacher of ten bands.

    Parameters
    ----------
    encoder : Encoder
        With its weights.
    config : Specialist
        Layers to match.
    size : int
        Side of the global crops, pixels: tried once.
    stride : int
        Pixels a cell of the student's finest map: finer maps of the encoder are averaged to it.

    Raises
    ------
    MissingBandsError
        If it reads bands that the student's samples do not have.
    ValueError
        If it does not take crops of that size, or has no such layer.
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
        self.bands: tuple[str, ...] = self.stem.bands
        self.dims = specialist_dims(card, config)
        # Its input is DN: it knows its own statistics.
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
        """Targets of images (B, C, H, W) in DN, its bands in its order."""
        x = normalize(to_units(images.float(), "dn", self.units), self.stem, self.normalization)
        mid, late = (la.name for la in self.layers)
        found = self.net.forward_features(x, self.stem.name, {mid, late, "pooled"})
        maps = (found[la.name] if la.stride >= self.stride else F.avg_pool2d(found[la.name], self.stride // la.stride)
                for la in self.layers)  # fmt: skip
        return Targets(found["pooled"].float(), *(m.float() for m in maps))


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
    """Channels of its vector, its middle and its late map."""
    mid, late = _layers(card, config)
    return card.layer(None).dim, mid.dim, late.dim


def load_specialist(
    config: TrainConfig, mixture: Mixture | None = None, device: torch.device | str = "cpu"
) -> FrozenTeacher | None:
    """The second teacher of `config`, or None.

    Parameters
    ----------
    config : TrainConfig
        Its `specialist` names the model.
    mixture : Mixture, optional
        With `config.specialist.standardize` its features are standardised by what it says of training windows.
    device : torch device
        Where it works.

    Raises
    ------
    UnknownModelError, WeightsNotFoundError, WeightsMismatchError
        As of `ds.deo.embed`.
    MissingBandsError, ValueError
        See `EncoderTeacher`.
    """
    s = config.specialist
    if not s.model:
        return None
    from deo_cube.encoder.registry import load_encoder
    from deo_cube.train.finish import windows_for

    encoder = load_encoder(s.model, weights=s.weights or None, device="cpu")
    teacher: EncoderTeacher | Standardised = EncoderTeacher(
        encoder, s, config.augment.global_size, config.student.patch
    )
    if s.standardize and mixture is not None and any(x.kind == "ms" for x in mixture.sources):
        windows = windows_for(mixture, config, count=96)["ms"]
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.student.ms_mean, config.student.ms_std))
        teacher = Standardised(teacher, (windows * std + mean)[:, [MS_BANDS.index(b) for b in teacher.bands]])
    teacher.to(device)
    return teacher
