"""Two global and L local crops of every sample, with photometric noise on the optical side: batched, on the device.

All random parameters of a step are drawn together, for the samples of all processes, from a generator seeded by
the run's seed and the step, and each process takes its own rows. So two processes see the crops that one process with
twice the batch would see, and a resumed run sees those of an undisturbed one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deo_cube.extras import require
from deo_cube.train.config import Augment, StudentConfig

__all__ = ["Augmentation", "View", "at_level", "column", "generator", "hidden_squares"]

WAVELENGTHS = torch.tensor([665.0, 560.0, 490.0, 705.0, 740.0, 783.0, 842.0, 865.0, 1610.0, 2190.0])
"""Centres of the ten bands in model order, nm: haze falls with the fourth power (Rayleigh)."""

PATH = torch.tensor([250.0, 450.0, 750.0, 200.0, 160.0, 130.0, 100.0, 90.0, 20.0, 10.0])
"""DN that clear air adds to each band between the surface and the satellite, in model order."""
TRANSMITTANCE = torch.tensor([0.89, 0.84, 0.82, 0.89, 0.92, 0.93, 0.92, 0.95, 0.95, 0.93])
"""Share of the surface's reflectance that passes clear air both ways."""


@dataclass(frozen=True)
class View:
    """One crop of every sample of a batch."""

    ms: Tensor | None
    """(N, 10, S, S), normalised for the multispectral stem; None without multispectral samples."""
    rgb: Tensor
    """(N + M, 3, S, S), normalised for the optical stem: multispectral samples first, then RGB-only ones."""
    clean: Tensor
    """(N + M, 3, S, S): the crop in display values, 0..1, without noise."""
    jittered: Tensor
    """The same with the noise that `rgb` has."""
    dn: Tensor | None = None
    """(N, 10, S, S): the crop in DN without noise, at the product level that the second frozen teacher reads."""
    vectors: Tensor | None = None
    """(N, D, s, s): vectors of an embedding store, of global views."""
    known: Tensor | None = None
    """(N, s, s) bool: where it has some."""


def column(values: tuple[float, ...]) -> Tensor:
    """Return one value per band as (1, C, 1, 1)."""
    return torch.tensor(values).view(1, -1, 1, 1)


def generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by several numbers together (a run's seed, a purpose, a step, ...)."""
    seed = 0
    for n in numbers:
        # Weyl sequence and multiplication: neighbouring steps get unrelated streams.
        seed = (seed * 6364136223846793005 + n + 0x9E3779B97F4A7C15) % 2**63
        seed ^= seed >> 29
    return torch.Generator().manual_seed(seed)


def hidden_squares(
    n: int, size: int, *, ratio: float, square: int, random: torch.Generator, rank: int = 0, world_size: int = 1
) -> Tensor:
    """Return masks (n, 1, size, size): True in a share `ratio` of the squares of side `square`, drawn per sample.

    All processes draw from the same generator, and each takes its own rows, as `Augmentation` does.
    """
    side = size // square
    draws = torch.rand(n * world_size, side * side, generator=random)[rank * n : (rank + 1) * n]
    count = max(1, min(side * side - 1, round(ratio * side * side)))
    order = draws.argsort(dim=1).argsort(dim=1)
    squares = (order < count).view(n, 1, side, side)
    return squares.repeat_interleave(square, dim=2).repeat_interleave(square, dim=3)


class Augmentation:
    """Turns a batch of windows (DN) into views.

    Parameters
    ----------
    config : Augment
        Crops and noise.
    student : StudentConfig
        Statistics that the student's stems are fed with.
    level : {"own", "L1C", "L2A"}
        Product level of `View.dn`: that of each sample, or one for all.
    """

    def __init__(self, config: Augment, student: StudentConfig, level: Literal["own", "L1C", "L2A"] = "own") -> None:
        require("kornia.enhance", "kornia.filters", "sklearn", extra="train", purpose="training")
        self.config, self.level = config, level
        self.ms_mean, self.ms_std = column(student.ms_mean), column(student.ms_std)
        self.rgb_mean, self.rgb_std = column(student.rgb_mean), column(student.rgb_std)
        haze = (WAVELENGTHS / 490.0) ** -4
        self.haze = haze.view(1, -1, 1, 1)

    def __call__(
        self,
        ms: Tensor | None,
        rgb: Tensor | None,
        random: torch.Generator,
        *,
        rank: int = 0,
        world_size: int = 1,
        fine: Tensor | None = None,
        paired: Tensor | None = None,
        level: Tensor | None = None,
        vectors: Tensor | None = None,
        known: Tensor | None = None,
    ) -> list[View]:
        """Return the views of a batch: two global ones, then the local ones.

        Parameters
        ----------
        ms : Tensor (N, 10, H, W) or None
            Windows of ten bands in model order, DN, invalid pixels already filled.
        rgb : Tensor (M, 3, H, W) or None
            Windows of RGB-only sources, red first, DN.
        random : torch.Generator
            On the CPU, the same in all processes.
        rank, world_size : int
            Which rows of the parameters are this process's.
        fine : Tensor (N, 3, k H, k W), optional
            High-resolution RGB of the same ground as `ms`, DN: the optical side sees it in the place of the cube's own.
        paired : Tensor (N,) of bool, optional
            Samples that have it.
        level : Tensor (N,), optional
            Product level of each sample of `ms`: 0 for L2A, 1 for L1C; L2A where it is not given.
        vectors : Tensor (N, D, w, w), optional
            Vectors of an embedding store for the ground of `ms`.
        known : Tensor (N, w, w) of bool, optional
            Where it has some.
        """
        c = self.config
        sizes = [0 if t is None else t.shape[0] for t in (ms, rgb)]
        views = []
        for i in range(2 + c.local_crops):
            size = c.global_size if i < 2 else c.local_size
            scale = c.global_scale if i < 2 else c.local_scale
            draws = [_Draw(random, n, rank, world_size) for n in sizes]
            ms_crop = rgb_crop = own = None
            taught: tuple[Tensor | None, Tensor | None] = (None, None)
            if ms is not None:
                theta = self._place(ms, draws[0], scale)
                ms_crop = _sample(ms, theta, size)
                own = ms_crop[:, :3]
                if fine is not None and paired is not None:
                    # One place in coordinates of the window: the same ground at either resolution.
                    own = torch.where(paired.view(-1, 1, 1, 1), _sample(fine, theta, size), own)
                if vectors is not None and known is not None and i < 2:
                    taught = _sample_known(vectors, known, theta, max(1, size * vectors.shape[3] // ms.shape[3]))
            if rgb is not None:
                rgb_crop = _sample(rgb, self._place(rgb, draws[1], scale), size)
            view = self._view(i, ms_crop, own, rgb_crop, draws, level)
            views.append(replace(view, vectors=taught[0], known=taught[1]))
        return views

    def _place(self, x: Tensor, draw: _Draw, scale: tuple[float, float]) -> Tensor:
        """Draw place, size, aspect (3/4 to 4/3) and flips: (N, 2, 3), from a crop's -1..1 to a window's."""
        n, _, height, width = x.shape
        area = draw.uniform(*scale) * height * width
        aspect = torch.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w = torch.sqrt(area * aspect).clamp(max=width)
        h = torch.sqrt(area / aspect).clamp(max=height)
        cx = w / 2 + draw.uniform(0, 1) * (width - w)
        cy = h / 2 + draw.uniform(0, 1) * (height - h)
        flip_x, flip_y, transpose = (draw.uniform(0, 1) < 0.5 for _ in range(3))
        if self.config.flips == "horizontal":
            flip_y = transpose = torch.zeros_like(flip_x)
        sx = torch.where(flip_x, -1.0, 1.0) * w / width
        sy = torch.where(flip_y, -1.0, 1.0) * h / height
        tx, ty, zero = 2 * cx / width - 1, 2 * cy / height - 1, torch.zeros_like(sx)
        # Rows give the source's x and y for the target's (x, y, 1); a transposition exchanges the target's axes.
        straight = torch.stack([sx, zero, tx, zero, sy, ty], 1)
        turned = torch.stack([zero, sx, tx, sy, zero, ty], 1)
        return torch.where(transpose[:, None], turned, straight).view(n, 2, 3).to(x)

    def _view(
        self,
        i: int,
        ms: Tensor | None,
        own: Tensor | None,
        rgb: Tensor | None,
        draws: list[_Draw],
        level: Tensor | None,
    ) -> View:
        """Return one view: `own` (N, 3, S, S) is the RGB of `ms`, or of the finer image of the same ground."""
        c = self.config
        clean = torch.cat([t for t in (own, rgb) if t is not None])
        if c.rgb_scale == "crop_max":
            white = clean.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
        else:
            white = clean.new_tensor(c.display).expand(clean.shape[0], 1, 1, 1)
        display = (clean / white).clamp(0, 1)
        jittered = self._jitter(display, i, draws)
        view_ms = dn = None
        if ms is not None:
            n = ms.shape[0]
            if level is None:
                level = ms.new_zeros(n)
            dn = ms if self.level == "own" else at_level(ms, level, torch.full_like(level, float(self.level == "L1C")))
            if c.ms_sees == "jittered":
                ms = torch.cat([jittered[:n] * c.display, ms[:, 3:]], dim=1)
            elif c.rgb_scale == "crop_max":
                ms = torch.cat([display[:n] * c.display, ms[:, 3:]], dim=1)
            if c.level > 0:
                chosen = draws[0].uniform(0, 1).to(ms) < c.level
                anywhere, thick = draws[0].uniform(-0.1, 1.2).to(ms), draws[0].uniform(0.7, 1.5).to(ms)
                changed = at_level(ms, level, anywhere, thick)
                ms = torch.where(chosen.view(-1, 1, 1, 1), changed, ms)
            view_ms = (self._light(ms, draws[0]) - self.ms_mean.to(ms)) / self.ms_std.to(ms)
        rgb_seen = (jittered * c.display - self.rgb_mean.to(clean)) / self.rgb_std.to(clean)
        return View(view_ms, rgb_seen, display, jittered, dn)

    def _light(self, ms: Tensor, draw: _Draw) -> Tensor:
        """Simulate other light and air: a gain, a gain per band, and haze."""
        c = self.config
        gain = torch.exp(draw.uniform(-c.gain, c.gain)).view(-1, 1, 1, 1).to(ms)
        bands = torch.exp(draw.uniform(-c.band_gain, c.band_gain, ms.shape[1])).view(ms.shape[0], -1, 1, 1).to(ms)
        haze = draw.uniform(0, c.haze).view(-1, 1, 1, 1).to(ms) * self.haze.to(ms)
        return ms * (gain * bands) + haze

    def _jitter(self, x: Tensor, i: int, draws: list[_Draw]) -> Tensor:
        """Change colour, light, grey, blur and solarisation of display values (B, 3, S, S), sample by sample."""
        import kornia.enhance as enhance
        from kornia.filters import gaussian_blur2d

        c = self.config

        def uniform(low: float, high: float) -> Tensor:
            return torch.cat([d.uniform(low, high) for d in draws]).to(x)

        def chosen(p: float) -> Tensor:
            return uniform(0, 1) < p

        def mix(where: Tensor, new: Tensor, old: Tensor) -> Tensor:
            return torch.where(where.view(-1, 1, 1, 1), new, old)

        gain = torch.exp(uniform(-c.gain, c.gain))
        if c.gain > 0:
            x = (x * gain.view(-1, 1, 1, 1)).clamp(0, 1)
        b, k, s, h = c.jitter
        where = chosen(c.jitter_p)
        factors = [uniform(1 - b, 1 + b), uniform(1 - k, 1 + k), uniform(1 - s, 1 + s), uniform(-h, h) * 2 * math.pi]
        if c.jitter_p > 0 and any(c.jitter):
            y = (x * factors[0].view(-1, 1, 1, 1)).clamp(0, 1)
            y = enhance.adjust_contrast_with_mean_subtraction(y, factors[1])
            y = enhance.adjust_saturation_with_gray_subtraction(y, factors[2])
            x = mix(where, enhance.adjust_hue(y, factors[3]) if h else y, x)
        where = chosen(c.gray_p)
        if c.gray_p > 0:
            gray = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
            x = mix(where, gray.expand_as(x), x)
        where, sigma = chosen(c.blur_p[min(i, 2)]), uniform(0.1, 2.0)
        if c.blur_p[min(i, 2)] > 0:
            kernel = min(c.blur_kernel, (x.shape[2] - 1) | 1)
            x = mix(where, gaussian_blur2d(x, (kernel, kernel), torch.stack([sigma, sigma], 1), "reflect"), x)
        where = chosen(c.solarize_p if i == 1 else 0.0)
        if i == 1 and c.solarize_p > 0:
            x = mix(where, torch.where(x >= 0.5, 1 - x, x), x)
        return x


def at_level(dn: Tensor, level: Tensor, other: Tensor, haze: Tensor | None = None) -> Tensor:
    """Simulate another product level of `dn` (N, 10, H, W), in DN.

    A linear atmosphere: the surface's reflectance times `TRANSMITTANCE`, plus `PATH`. It knows neither slopes nor the
    neighbourhood of a pixel, and is good to a few per cent of reflectance.

    Parameters
    ----------
    level, other : Tensor (N,)
        Level that each sample has, and the one that it is given: 0 is the surface (L2A), 1 the top of the atmosphere
        (L1C), values between and beyond are wrongly or partly corrected.
    haze : Tensor (N,), optional
        Factor of the path radiance that is added.
    """
    path, loss = PATH.to(dn).view(1, -1, 1, 1), 1 - TRANSMITTANCE.to(dn).view(1, -1, 1, 1)
    level, other = level.to(dn).view(-1, 1, 1, 1), other.to(dn).view(-1, 1, 1, 1)
    surface = (dn - level * path) / (1 - level * loss)
    added = other * path if haze is None else other * path * haze.view(-1, 1, 1, 1)
    return (surface * (1 - other * loss) + added).clamp_min(1.0)


def _sample(x: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return crops (N, C, size, size) of windows `x`, in one bicubic resampling."""
    grid = F.affine_grid(theta, [x.shape[0], x.shape[1], size, size], align_corners=False)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def _sample_known(vectors: Tensor, known: Tensor, theta: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return vectors (N, D, size, size) of crops, bilinear among the known cells, and the cells that are known."""
    grid = F.affine_grid(theta, [len(vectors), 1, size, size], align_corners=False)
    share = known[:, None].to(vectors)
    values, weight = (
        F.grid_sample(v, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        for v in (vectors * share, share)
    )
    return values / weight.clamp_min(1e-6), weight[:, 0] >= 0.5


class _Draw:
    """Random numbers for this process's `n` samples, drawn for all processes."""

    def __init__(self, random: torch.Generator, n: int, rank: int, world_size: int) -> None:
        self.random, self.n, self.rank, self.all = random, n, rank, n * world_size

    def uniform(self, low: float, high: float, width: int = 0) -> Tensor:
        shape = (self.all, width) if width else (self.all,)
        u = torch.rand(shape, generator=self.random)
        return low + (high - low) * u[self.rank * self.n : (self.rank + 1) * self.n]
