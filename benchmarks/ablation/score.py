"""What an arm is scored on, and how its values vary with what was tested.

Every score carries `draws`: the value with the test groups drawn anew, the same draws in all arms, so that
differences of arms are paired. Features are frozen; the protocols are those of `deo_cube.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.normalize import normalize
from deo_cube.evaluate.protocols import change, classification, land_cover
from deo_cube.evaluate.readers import RGB, ChipSet, Scene, read_beetle, read_eurosat, read_sen1floods11, read_terramesh
from deo_cube.evaluate.scores import Score, resample
from deo_cube.train.loop import effective_rank
from deo_cube.train.student import teacher_targets
from deo_cube.train.teachers import FrozenTeacher, MobileNetTeacher

from .arms import BASE, TEACHER

__all__ = ["Bench", "Stages", "cka", "measure"]

Array = NDArray[Any]

DRAWS = 300
CHIP = 64


@dataclass(frozen=True)
class Stages:
    """A trained Swin as the protocols call it: maps of all its stages side by side, on the finest grid.

    The paper's dense tasks see all stages too (through a decoder). Red, green and blue alone are read by `rgb_stem`;
    where that is ``ms``, the seven other bands are at their mean.
    """

    network: Any = field(repr=False)
    card: ModelCard = field(repr=False)
    rgb_stem: str = "rgb"
    name: str = "student"

    def _input(self, array: Array, bands: Sequence[str], stem_name: str) -> torch.Tensor:
        stem = self.card.stem(stem_name)
        how = stem.normalization(None)
        x = torch.from_numpy(np.ascontiguousarray(array, dtype="float32"))
        if set(bands) == set(RGB) and stem_name == "ms":
            # After normalisation 0 is the mean; RGB's own statistics are the first three of the ten.
            rgb = normalize(x[:, [list(bands).index(b) for b in RGB]], self.card.stem("rgb"),
                            self.card.stem("rgb").normalization(how.name))  # fmt: skip
            return torch.cat([rgb, rgb.new_zeros(len(rgb), len(stem.bands) - 3, *rgb.shape[2:])], dim=1)
        return normalize(x[:, [list(bands).index(b) for b in stem.bands]], stem, how)

    def _stem(self, bands: Sequence[str]) -> str:
        return self.rgb_stem if set(bands) == set(RGB) else "ms"

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) DN -> (B, sum of the stages' channels, H / stride, W / stride) of the first stage's stride."""
        stem = self._stem(bands)
        names = [layer.name for layer in self.card.layers if layer.name != f"stage{len(self.card.layers) - 1}"]
        with torch.inference_mode():
            maps = self.network.forward_features(self._input(array, bands, stem), stem, names)
        size = maps[names[0]].shape[2]
        parts = [m.repeat_interleave(size // m.shape[2], 2).repeat_interleave(size // m.shape[3], 3)
                 for m in (maps[n] for n in names)]  # fmt: skip
        return torch.cat(parts, dim=1).numpy()

    def pool(self, array: Array, bands: Sequence[str], stem: str = "") -> Array:
        """(B, C, H, W) DN -> (B, D), the mean of the last map after the final norm."""
        stem = stem or self._stem(bands)
        with torch.inference_mode():
            return self.network.forward_features(self._input(array, bands, stem), stem, ("pooled",))["pooled"].numpy()


def cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment of two sets of features of the same n cases, with the unbiased estimator of HSIC.

    Kornblith et al. 2019 (arXiv:1905.00414); unbiased as in Nguyen et al. 2021 (arXiv:2010.15327): without it, 128
    random channels of 200 cases already agree to 0.5.
    """

    def hsic(a: Array, b: Array) -> float:
        n = len(a)
        trace = float((a * b).sum())
        ends = float(a.sum() * b.sum()) / ((n - 1) * (n - 2))
        cross = 2 * float(a.sum(0) @ b.sum(0)) / (n - 2)
        return (trace + ends - cross) / (n * (n - 3))

    grams = []
    for f in (x, y):
        f = np.asarray(f, "float64") - np.mean(f, axis=0)
        g = f @ f.T
        np.fill_diagonal(g, 0)
        grams.append(g)
    return hsic(*grams) / max(np.sqrt(max(hsic(grams[0], grams[0]), 0) * max(hsic(grams[1], grams[1]), 0)), 1e-12)


class Bench:
    """The labelled data, read once: none of it served training.

    Parameters
    ----------
    data : Path
        Folder with the data sets.
    light : bool
        A few chips, tiles and plots: for tests.
    """

    def __init__(self, data: Path, *, light: bool = False) -> None:
        self.data, self.light = data, light

    @cached_property
    def eurosat(self) -> ChipSet:
        """400 tiles a class; half of their runs train probes, the others test."""
        return read_eurosat(self.data / "eurosat_rgb", limit=60 if self.light else 400, spatial=False)

    @cached_property
    def tiles(self) -> list[Scene]:
        """Land cover, L2A."""
        return read_terramesh(self.data / "landcover_terramesh")[: 1 if self.light else None]

    @cached_property
    def plots(self) -> list[Scene]:
        """The odd plots."""
        return read_beetle(self.data / "change_barkbeetle")[1::2][: 4 if self.light else None]

    @cached_property
    def floods(self) -> list[Scene]:
        """One flood, L1C."""
        found = read_sen1floods11(self.data / "flood_sen1floods11")
        return [_corner(s, 256) for s in found] if self.light else found

    @cached_property
    def chips(self) -> tuple[Array, tuple[str, ...]]:
        """Ten-band chips (n, 12, 64, 64) of land-cover tiles, flood and odd plots, wholly valid, and their bands."""
        scenes, found = [*self.tiles, *self.floods, *self.plots], []
        for s in scenes:
            for y in range(0, s.image.shape[1] - CHIP + 1, CHIP):
                for x in range(0, s.image.shape[2] - CHIP + 1, CHIP):
                    if s.valid[y : y + CHIP, x : x + CHIP].all():
                        found.append(s.image[:, y : y + CHIP, x : x + CHIP])
        return np.stack(found), scenes[0].bands

    @cached_property
    def teacher(self) -> FrozenTeacher:
        """The optical teacher as the arms have it."""
        return MobileNetTeacher(self.data / TEACHER, enlarge=BASE.optical.enlarge)

    @cached_property
    def answers(self) -> tuple[Array, Array]:
        """The teacher's class vectors of RGB of `chips`, and of every tenth EuroSAT tile, channels standardised.

        After its ReLU a few channels hold most of the variance, and an untrained network agrees with those to 0.5.
        """
        chips, bands = self.chips
        return self._ask(chips[:, [bands.index(b) for b in RGB]]), self._ask(self.eurosat.images[::10])

    def _ask(self, rgb: Array) -> Array:
        from deo_cube.train.augment import View

        out = []
        for part in np.array_split(rgb, max(1, len(rgb) // 32)):
            seen = torch.from_numpy(np.clip(part / BASE.augment.display, 0, 1).astype("float32"))
            out.append(teacher_targets(self.teacher, [View(None, seen, seen, seen)], BASE).cls.numpy())
        found = np.concatenate(out)
        return (found - found.mean(axis=0)) / (found.std(axis=0) + 1e-3)


def _corner(s: Scene, size: int) -> Scene:
    return Scene(s.name, s.image[:, -size:, -size:], s.label[-size:, -size:], s.valid[-size:, -size:], s.bands)


def measure(bench: Bench, encode: Any, *, alone: bool = False) -> dict[str, dict[str, Any]]:
    """All scores of an encoder: value, metric, cases, protocol and draws, by task.

    Parameters
    ----------
    bench : Bench
        The data.
    encode : Stages, or a baseline of `deo_cube.evaluate.features`
        What is scored.
    alone : bool
        Leave out what needs both stems of a `Stages`.
    """
    scores = [
        *classification(encode, bench.eurosat, few=(100,), gains=(), seeds=2),
        *land_cover(encode, bench.tiles, pixels=False),
        *change(encode, bench.plots, seeds=1, most=4000, pixels=False),
        *land_cover(encode, bench.floods, task="floods", metric="mean IoU", pixels=False, most=3000),
    ]
    out = {s.task: _plain(s) for s in scores}
    if alone:
        return out
    (chips, bands), (of_chips, of_tiles) = bench.chips, bench.answers
    ms, rgb_of_chips = (_pooled(encode, chips, bands, stem) for stem in ("ms", encode.rgb_stem))
    rgb = _pooled(encode, bench.eurosat.images[::10], bench.eurosat.bands, encode.rgb_stem)
    out |= {
        "effective rank/ms": _halved(lambda i: effective_rank(torch.from_numpy(ms[i])), len(ms), "effective rank"),
        "effective rank/rgb": _halved(lambda i: effective_rank(torch.from_numpy(rgb[i])), len(rgb), "effective rank"),
        "CKA to teacher/ms": _halved(lambda i: cka(ms[i], of_chips[i]), len(ms), "CKA"),
        "CKA to teacher/rgb": _halved(lambda i: cka(rgb_of_chips[i], of_chips[i]), len(ms), "CKA"),
        "CKA to teacher/EuroSAT": _halved(lambda i: cka(rgb[i], of_tiles[i]), len(rgb), "CKA"),
    }
    return out


def _pooled(encode: Stages, images: Array, bands: Sequence[str], stem: str) -> Array:
    """Pooled features of `images` through a stem; the RGB stem, and an `ms` that stands in for it, see RGB only."""
    if stem == encode.rgb_stem and (stem == "rgb" or set(bands) == set(RGB)):
        images, bands = images[:, [list(bands).index(b) for b in RGB]], RGB
    return np.concatenate([encode.pool(p, bands, stem) for p in np.array_split(images, max(1, len(images) // 64))])


def _plain(s: Score) -> dict[str, Any]:
    return {
        "metric": s.metric, "value": round(s.value, 5), "tested": s.tested, "groups": s.groups,
        "protocol": s.protocol, "draws": [round(float(v), 5) for v in resample(s, draws=DRAWS)],
    }  # fmt: skip


def _halved(value: Callable[[Array], float], n: int, metric: str) -> dict[str, Any]:
    """A value of n cases, and of half of them drawn without repetition: these spread as a bootstrap's would."""
    random = np.random.default_rng(0)
    draws = [value(np.sort(random.choice(n, n // 2, replace=False))) for _ in range(DRAWS // 5)]
    return {
        "metric": metric, "value": round(value(np.arange(n)), 5), "tested": n, "groups": n,
        "protocol": f"{n} chips of 64 px; draws are halves of them",
        "draws": [round(v, 5) for v in draws],
    }  # fmt: skip
