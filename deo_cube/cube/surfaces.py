"""How the surfaces of a drawn landscape reflect through the year: spectra, crops, and their mixture in each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deo_cube.cube.landscape import LAND_COVER, TABLE, Landscape, smoothstep

__all__ = ["BANDS", "SPECTRA", "Season", "Surfaces"]

Array = np.ndarray[Any, np.dtype[Any]]

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")

# Bottom-of-atmosphere reflectance x 10000 of ten surfaces as they commonly look, in the order of BANDS.
SPECTRA: Mapping[str, tuple[int, ...]] = {
    "clear_water": (330, 400, 230, 190, 130, 120, 100, 90, 50, 40),
    "river": (470, 650, 500, 460, 290, 270, 220, 200, 100, 70),
    "broadleaved": (230, 430, 240, 680, 2250, 2850, 3050, 3250, 1550, 690),
    "leafless": (380, 520, 590, 780, 1150, 1300, 1420, 1550, 1800, 1150),
    "conifer": (170, 290, 190, 420, 1220, 1500, 1620, 1730, 800, 380),
    "grass": (370, 710, 480, 1090, 2350, 2800, 3000, 3200, 2150, 1180),
    "dry_grass": (620, 900, 1000, 1450, 2000, 2200, 2400, 2550, 2950, 1950),
    "crop": (290, 600, 300, 900, 2900, 3800, 4100, 4300, 1850, 850),
    "flower": (580, 1330, 1180, 1720, 2950, 3500, 3750, 3900, 2000, 1050),
    "straw": (820, 1180, 1560, 1960, 2300, 2500, 2700, 2850, 3500, 2550),
    "soil": (720, 960, 1260, 1460, 1640, 1800, 1950, 2100, 2750, 2350),
    "reed": (340, 560, 440, 900, 1650, 1950, 2100, 2250, 1600, 880),
    "gravel": (1350, 1680, 1950, 2100, 2200, 2300, 2380, 2450, 2850, 2550),
    "roof": (1150, 1380, 1850, 2050, 2200, 2300, 2420, 2450, 2600, 2350),
    "hall": (2700, 2900, 3050, 3150, 3200, 3250, 3300, 3300, 3250, 2950),
    "asphalt": (880, 970, 1040, 1110, 1190, 1240, 1290, 1310, 1400, 1300),
    "garden": (390, 650, 520, 1000, 2050, 2450, 2650, 2800, 1900, 1080),
    "cloud": (7200, 7100, 7050, 7100, 7150, 7150, 7150, 7100, 4800, 3700),
}


@dataclass(frozen=True)
class Crop:
    """Course of a crop through the year; days of the year."""

    share: float
    emerges: float
    closes: float
    ripens: float
    harvested: float
    flowers: tuple[float, float] = (0, 0)


# Winter cereals, rapeseed, maize, beets and soy, sunflower, lucerne; their shares add up to 1.
CROPS = (
    Crop(0.40, 60, 115, 172, 196),
    Crop(0.14, 50, 95, 158, 186, flowers=(108, 138)),
    Crop(0.24, 138, 188, 250, 275),
    Crop(0.10, 130, 182, 262, 295),
    Crop(0.06, 135, 180, 235, 260, flowers=(186, 208)),
    Crop(0.06, 40, 100, 330, 350),
)


@dataclass(frozen=True)
class Season:
    """Spectra of all parcels on a day of the year."""

    fields: Array
    """(2 TABLE, 10) reflectance x 10000 by the parcel's hash: first as cropland, then as grassland."""
    by_moisture: Array
    """(2 TABLE, 10) its change with one standard deviation of moisture."""
    leaf: float
    """0 bare to 1 leafy; of broadleaved trees."""

    @classmethod
    def of(cls, day: int, seed: int) -> Season:
        """What grows on `day` of the year; a parcel has the same crop, and its own pace, on all days of a seed."""
        now = np.asarray(day, "float32")
        fields, by_moisture = _fields(now, np.random.default_rng((seed, 0xF1E1D)))
        leaf = smoothstep(98, 132, now) * (1 - smoothstep(280, 315, now))
        return cls(fields, by_moisture, float(leaf))


def _fields(day: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    pick = rng.choice(len(CROPS), TABLE, p=[c.share for c in CROPS])
    late, dark, vigour, tillage, mown = rng.random((5, TABLE), dtype="float32")

    def course(name: str) -> Array:
        days: Array = np.array([getattr(c, name) for c in CROPS], "float32")[pick]
        days += 16 * (late - 0.5)
        return days

    def step(start: Array, end: Array) -> Array:
        return smoothstep(0, 1, np.asarray((day - start) / (end - start)))

    ripe = step(course("ripens") - 14, course("ripens") + 8)
    green = step(course("emerges"), course("closes")) * (1 - ripe) * (0.8 + 0.2 * vigour)
    ploughed = step(course("harvested") + 6, course("harvested") + 25) * (tillage < 0.6)
    straw = ripe * (1 - 0.45 * step(course("harvested") - 2, course("harvested") + 2)) * (1 - ploughed)
    flowering = np.array([c.flowers for c in CROPS], "float32")[pick]
    begin, end = flowering[:, 0] + 16 * (late - 0.5), flowering[:, 1] + 16 * (late - 0.5)
    flower = step(begin, begin + 9) * (1 - step(end - 9, end)) * (flowering[:, 0] > 0)
    soil = 1 - green - straw
    spectrum = {k: np.array(v, "float32") for k, v in SPECTRA.items()}
    ground = spectrum["soil"] * (0.62 + 0.6 * dark)[:, None]
    stalks = spectrum["straw"] * (0.8 + 0.3 * vigour)[:, None]
    plant = spectrum["crop"] + flower[:, None] * (spectrum["flower"] - spectrum["crop"])
    plant *= 0.88 + 0.24 * vigour[:, None]
    cropland = green[:, None] * plant + straw[:, None] * stalks + soil[:, None] * ground
    # Moist soil is darker; a moist stand is denser, so redder light is absorbed and more infrared reflected.
    denser = np.array([-0.10, -0.06, -0.14, -0.05, 0.03, 0.06, 0.07, 0.07, -0.05, -0.10], "float32")
    by_moisture = -0.13 * soil[:, None] * ground + green[:, None] * denser * plant

    summer = smoothstep(165, 225, day) * (1 - smoothstep(255, 290, day))
    dry = np.clip(0.75 * summer * (0.35 + vigour) + 0.7 * (np.mod(day / 45 + mown, 1) < 0.22) * (mown < 0.8), 0, 1)
    grassland = spectrum["grass"] + dry[:, None] * (spectrum["dry_grass"] - spectrum["grass"])
    grassland *= 0.85 + 0.3 * late[:, None]
    return np.concatenate([cropland, grassland]), np.concatenate([by_moisture, 0.7 * denser * grassland])


class Surfaces:
    """Reflectance of a landscape, without sky; what days and bands share is worked out once."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape
        cover, moisture = landscape.land_cover, np.clip(landscape.moisture, -2.5, 2.5)
        self.moisture = moisture
        self.parcel = landscape.parcel + (cover == LAND_COVER["grassland"]) * np.int32(TABLE)
        self.where = {name: np.nonzero(cover == LAND_COVER[name]) for name in LAND_COVER}
        woods, town, reeds = (self.where[k] for k in ("tree_cover", "built_up", "wetland"))
        self.conifer, self.depth = landscape.conifer[woods], landscape.depth[self.where["water"]]
        self.crowns = (1 + 0.09 * landscape.texture[woods]) * (1 + 0.05 * moisture[woods])
        self.sealed, self.roof = landscape.sealed[town], landscape.roof[town]
        self.walls = 1 + 0.1 * landscape.texture[town]
        self.stems = (1 + 0.12 * landscape.texture[reeds]) * (1 - 0.14 * moisture[reeds])
        self.stones = 1 + 0.12 * landscape.texture[self.where["bare"]]
        self.lit = np.where(cover == LAND_COVER["water"], np.float32(1), landscape.shade)

    def reflect(self, season: Season, band: str) -> Array:
        """Reflectance x 10000 of one band, float32 (rows, columns)."""
        k = BANDS.index(band)
        of = {name: np.float32(s[k]) for name, s in SPECTRA.items()}
        value: Array = season.fields[:, k][self.parcel] + season.by_moisture[:, k][self.parcel] * self.moisture
        broad = of["leafless"] + np.float32(season.leaf) * (of["broadleaved"] - of["leafless"])
        hard = of["asphalt"] + self.roof * (of["roof"] - of["asphalt"])
        hard = np.where(self.roof > 0.85, of["hall"] * (4 * self.roof - 3), hard) * self.walls
        value[self.where["tree_cover"]] = (broad + self.conifer * (of["conifer"] - broad)) * self.crowns
        value[self.where["built_up"]] = of["garden"] + self.sealed * (hard - of["garden"])
        value[self.where["wetland"]] = of["reed"] * self.stems
        value[self.where["bare"]] = of["gravel"] * self.stones
        value[self.where["water"]] = of["river"] + self.depth * (of["clear_water"] - of["river"])
        value += self.landscape.hedge * (broad - value)
        value += self.landscape.road * (of["asphalt"] - value)
        value += self.landscape.track * (0.5 * (of["gravel"] + of["soil"]) - value)
        value *= self.lit
        return value
