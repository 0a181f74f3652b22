"""A drawn countryside: parcels, woods, a river, towns and roads on a pixel grid. Not a real place.

All sizes are in pixels, thought of as 10 m wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["LAND_COVER", "Landscape", "draw_landscape", "noise", "smoothstep"]

Array = np.ndarray[Any, np.dtype[Any]]

LAND_COVER = {
    "water": 1,
    "tree_cover": 2,
    "grassland": 3,
    "cropland": 4,
    "built_up": 5,
    "bare": 6,
    "wetland": 7,
}
"""Classes of the truth layer; 0 does not occur."""

# Random attributes of parcels and blocks are looked up under 16 bits of a hash; two that collide merely look alike.
TABLE = 1 << 16


@dataclass(frozen=True)
class Landscape:
    """What stands where, before any season or light; all arrays (rows, columns)."""

    land_cover: Array
    """uint8, values of `LAND_COVER`."""
    parcel: Array
    """uint16, hash of the parcel that a pixel belongs to."""
    conifer: Array
    """float32, 0 broadleaved to 1 coniferous."""
    sealed: Array
    """float32, 0 green to 1 roofs and asphalt; within settlements."""
    roof: Array
    """float32, 0 dark to 1 bright roofs."""
    road: Array
    """float32, cover of roads and tracks, 0 to 1."""
    track: Array
    """float32, part of `road` that is unpaved, 0 to 1."""
    hedge: Array
    """float32, cover of hedges and single trees between fields, 0 to 1."""
    depth: Array
    """float32, 0 at a shore to 1 in clear deep water."""
    moisture: Array
    """float32, mean 0, standard deviation 1; smooth."""
    texture: Array
    """float32, mean 0, standard deviation 1; from pixel to pixel."""
    shade: Array
    """float32, mean about 1; relative light on the slope for a sun in the south-south-east."""


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, and a soft step between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(rng: np.random.Generator, shape: tuple[int, int], slope: float, coarsest: float, finest: float = 2) -> Array:
    """Noise whose spectrum falls as frequency ** -slope between two wavelengths (pixels); mean 0, deviation 1."""
    import scipy.fft

    # Room beside the picture, since the noise repeats itself at its borders.
    padded = [scipy.fft.next_fast_len(n + int(min(n, coarsest / 2)), real=True) for n in shape]
    spectrum = scipy.fft.rfft2(rng.standard_normal(padded, dtype="float32"))
    squared = scipy.fft.fftfreq(padded[0])[:, None] ** 2 + scipy.fft.rfftfreq(padded[1]) ** 2
    squared = (squared * coarsest**2).astype("float32")
    # Falls off below the coarsest wavelength, and ends at the finest.
    gain = np.minimum(squared, 1) * np.maximum(squared, 1) ** np.float32(-slope / 4)
    gain[squared > (coarsest / finest) ** 2] = 0
    field = scipy.fft.irfft2(spectrum * gain, s=padded)[: shape[0], : shape[1]]
    field -= field.mean()
    result: Array = (field / max(float(field.std()), 1e-9)).astype("float32")
    return result


def draw_landscape(rng: np.random.Generator, shape: tuple[int, int]) -> Landscape:
    """Draw a countryside of `shape` pixels; equal for equal generators and shapes."""
    from scipy import ndimage

    rows, columns = shape
    y, x = np.mgrid[:rows, :columns].astype("float32")
    rough = noise(rng, shape, 2.9, 150, 4)
    smooth = noise(rng, shape, 3.4, 500, 12)
    moisture = 0.8 * noise(rng, shape, 2.4, 120) + 0.6 * rough
    white = rng.standard_normal(shape, dtype="float32")
    texture = ndimage.gaussian_filter(white, 0.6)
    texture /= max(float(texture.std()), 1e-9)

    river, wide = _river(rng, shape)
    hills = smooth + 1.6 * np.tanh(river / 350) - 0.6
    block, block_edge, theta = _blocks(rng, y, x)
    parcel, row_edge, lot, lot_edge = _parcels(rng, y, x, block, theta)
    chance = rng.random((8, TABLE), dtype="float32")

    # Woods stand on hills and in odd corners; their borders follow those of the blocks, roughened here and there.
    wooded = 0.75 * hills + 0.6 * rough + 1.7 * (chance[0][block] - 0.5) + 0.05 * texture
    wood = wooded > max(float(np.quantile(wooded, 0.68)), -0.5)
    wood |= (chance[1][parcel] < 0.02) & (wooded > np.quantile(wooded, 0.4))
    wood &= river > wide + 6
    clearing = wood & (chance[2][parcel] < 0.03)

    flood = river - wide
    meadow = (chance[3][parcel] < np.where(flood < 45, 0.55, 0.12)) | (chance[0][block] < 0.04)
    marsh = (flood < 26 + 14 * rough) & (moisture > 0.35) & (flood > 0)
    bars = noise(rng, shape, 2.5, 40, 6)
    gravel = (flood > 0) & (flood < 3.2) & (bars > 1.1)
    copse = (flood > 0.5) & (flood < 5) & (bars < 0.3)

    centres, town = _towns(rng, shape, river)
    urban = town * (1 + 0.3 * rough) + 0.3 * (chance[4][block] - 0.5) * (town > 0.15)
    built = (urban > 0.42) & (river > wide + 1)
    edge_of_town = (urban > 0.3) & (urban <= 0.42)
    works = built & (town < 0.75) & (chance[5][block] < 0.2)
    park = built & (chance[6][parcel] < 0.05) & ~works

    cover = np.full(shape, LAND_COVER["cropland"], "uint8")
    cover[meadow | edge_of_town & (chance[7][parcel] < 0.45)] = LAND_COVER["grassland"]
    cover[wood] = LAND_COVER["tree_cover"]
    cover[clearing] = LAND_COVER["grassland"]
    cover[marsh] = LAND_COVER["wetland"]
    cover[built] = LAND_COVER["built_up"]
    cover[park] = LAND_COVER["grassland"]
    cover[copse] = LAND_COVER["tree_cover"]
    cover[gravel] = LAND_COVER["bare"]
    ponds, shores = _ponds(rng, flood, built)
    cover[shores] = LAND_COVER["bare"]
    water = (flood <= 0) | ponds
    cover[water] = LAND_COVER["water"]

    # Lanes and hedges run along the borders of blocks, tracks across them, streets between the lots of a town.
    border = chance[5][block]
    lane = np.clip(1.0 - block_edge, 0, 1) * (0.35 + 0.5 * chance[2][block]) * (border > 0.45)
    track = np.maximum(lane, np.clip(0.9 - row_edge, 0, 1) * 0.5 * (chance[1][block] < 0.35))
    track *= ~(built | water | marsh) * np.where(wood, np.float32(0.35), np.float32(1))
    hedge = np.maximum(np.clip(1.6 - block_edge, 0, 1) * (border < 0.3), (white > 3.1) * np.float32(0.8))
    hedge *= ~(built | water | wood)
    road = _roads(rng, shape, centres)
    road = np.maximum(
        np.where(ponds, 0, np.where(flood <= 0, road * (road > 0.6), road)), (lot_edge < 0.6) * built * 0.75
    )
    house = noise(rng, shape, 0.4, 12, 2)
    dense = 0.2 + 0.6 * smoothstep(0.42, 1.15, urban) + 0.34 * (chance[0][block] - 0.5) + 0.17 * house
    sealed = np.where(works, 0.95, np.clip(dense, 0, 1))
    tiles = np.clip(0.1 + 0.5 * chance[3][lot] + 0.13 * house + 0.1 * texture, 0, 0.8)
    roof = np.where(works, np.where(chance[7][lot] > 0.6, 0.86 + 0.14 * chance[6][lot], 0.15), tiles)

    steep = 40 * np.clip(hills - 0.1, 0, 1.5) / 1.5 * (1 - smoothstep(0, 0.3, urban))
    height = ndimage.gaussian_filter(noise(rng, shape, 3.4, 180, 6), 1.5) * steep
    dy, dx = np.gradient(height)
    shade = np.clip(1 - 0.16 * (0.87 * dy + 0.5 * dx), 0.45, 1.5)
    return Landscape(
        land_cover=cover,
        parcel=parcel,
        conifer=smoothstep(-0.4, 0.5, 0.5 * rough + 0.8 * hills + 1.6 * (chance[2][block] - 0.7)),
        sealed=sealed.astype("float32"),
        roof=roof.astype("float32"),
        road=road.astype("float32"),
        track=track.astype("float32"),
        hedge=hedge.astype("float32"),
        depth=np.where(ponds, 0.8, np.clip(-flood / 5, 0, 0.35)).astype("float32"),
        moisture=moisture,
        texture=texture,
        shade=shade.astype("float32"),
    )


def _hash(*parts: Array | int) -> Array:
    """16 well-mixed bits of several integers."""
    h: Array = np.array(0x9E3779B9, "uint32")
    for part in parts:
        h = (h ^ np.asarray(part).astype("int32").view("uint32")) * np.uint32(0x85EBCA6B)
        h = h ^ (h >> np.uint32(13))
    h = h * np.uint32(0xC2B2AE35)
    result: Array = ((h ^ (h >> np.uint32(16))) & np.uint32(TABLE - 1)).astype("uint16")
    return result


def _blocks(rng: np.random.Generator, y: Array, x: Array) -> tuple[Array, Array, Array]:
    """Cells of a jittered lattice: (hash of the cell, distance to its border, orientation of its fields by hash)."""
    turn = rng.uniform(0, np.pi)
    u = np.float32(np.cos(turn) / 82) * x + np.float32(np.sin(turn) / 82) * y
    v = np.float32(np.cos(turn) / 56) * y - np.float32(np.sin(turn) / 56) * x
    jitter = rng.uniform(0.12, 0.88, (2, TABLE)).astype("float32")
    i, j = np.floor(u).astype("int32"), np.floor(v).astype("int32")
    u -= i
    v -= j
    nearest = np.full(u.shape, np.inf, "float32")
    second = nearest.copy()
    block = np.zeros(u.shape, "uint16")
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            cell = _hash(i + di, j + dj)
            distance = (jitter[0][cell] + di - u) ** 2 + (jitter[1][cell] + dj - v) ** 2
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            block = np.where(closer, cell, block)
            nearest = np.minimum(nearest, distance)
    theta = (turn + rng.normal(0, 0.3, TABLE) + np.pi / 2 * (rng.random(TABLE) < 0.35)).astype("float32")
    return block, (np.sqrt(second) - np.sqrt(nearest)) * np.float32(34), theta


def _parcels(
    rng: np.random.Generator, y: Array, x: Array, block: Array, theta: Array
) -> tuple[Array, Array, Array, Array]:
    """Strips of fields across each block: (hash of the parcel, distance to its end); and building lots: the same."""
    width = rng.uniform(4.5, 15, TABLE).astype("float32")
    length = rng.uniform(18, 55, TABLE).astype("float32")
    start = rng.uniform(0, 60, TABLE).astype("float32")
    cosine, sine = np.cos(theta)[block], np.sin(theta)[block]
    u, v = cosine * x + sine * y, cosine * y - sine * x
    along = (u + start[block]) / length[block]
    row = np.floor(along).astype("int32")
    lane = _hash(block, row)
    strip = np.floor((v + start[lane]) / width[lane]).astype("int32")
    # A third of the strips belong to their neighbour, so that widths vary.
    joined = rng.random(TABLE, dtype="float32") < 0.33
    parcel = _hash(lane, strip - joined[_hash(lane, strip)])
    row_edge = np.abs(along - np.round(along)) * length[block]
    u, v = u / np.float32(11), v / np.float32(7)
    lot = _hash(block, np.floor(u), np.floor(v))
    lot_edge = np.minimum(np.abs(u - np.round(u)) * 11, np.abs(v - np.round(v)) * 7)
    return parcel, row_edge, lot, lot_edge


def _river(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Distance (pixels) of every pixel to the middle of a meandering river, and half the river's width there."""
    from scipy import ndimage

    extent = float(max(shape))
    steps = np.arange(int(8 * extent) + 400) * 0.5
    waves = sum(
        a * np.sin(2 * np.pi * steps / w + rng.uniform(0, 2 * np.pi)) for a, w in ((0.95, 150), (0.45, 330), (0.35, 71))
    )
    main = rng.uniform(-0.5, 0.5) + (np.pi / 2 if rng.random() < 0.4 else 0)
    heading = main + waves
    path = np.cumsum(0.5 * np.stack([np.sin(heading), np.cos(heading)]), axis=1)
    # Through the middle of the picture, or a little off it.
    middle = np.array(shape) * (0.5 + rng.uniform(-0.12, 0.12, 2))
    path += (middle - path[:, path.shape[1] // 2])[:, None]
    margin = 40
    canvas = np.ones((shape[0] + 2 * margin, shape[1] + 2 * margin), bool)
    i, j = (np.round(path) + margin).astype(int)
    inside = (i >= 0) & (i < canvas.shape[0]) & (j >= 0) & (j < canvas.shape[1])
    canvas[i[inside], j[inside]] = False
    distance = ndimage.distance_transform_edt(canvas).astype("float32")[margin:-margin, margin:-margin]
    half = 2.6 + 0.5 * noise(rng, shape, 2.5, 90, 8)
    return distance, np.maximum(half, 1.6)


def _towns(rng: np.random.Generator, shape: tuple[int, int], river: Array) -> tuple[list[tuple[float, float]], Array]:
    """Centres of a town and of villages, and the density of settlement (1 at a centre)."""
    extent = min(shape)
    y, x = (a.astype("float32") for a in np.ogrid[: shape[0], : shape[1]])
    count = 1 + int(shape[0] * shape[1] / 1.1e5)
    centres: list[tuple[float, float]] = []
    density = np.zeros(shape, "float32")
    for k in range(count):
        places = rng.uniform(0.06, 0.94, (40, 2)) * np.array(shape)
        if k == 0:
            places = np.array(shape) * rng.uniform(0.3, 0.7, (40, 2))
        apart = [min((np.hypot(*(p - np.array(c))) for c in centres), default=extent) for p in places]
        banks = [float(river[int(p[0]), int(p[1])]) for p in places]
        score = [min(a, extent / 3) - 2.0 * abs(b - (30 if k == 0 else 60)) for a, b in zip(apart, banks, strict=True)]
        cy, cx = places[int(np.argmax(score))]
        centres.append((float(cy), float(cx)))
        radius = min(extent * 0.16, 85.0 if k == 0 else rng.uniform(16, 34))
        stretch, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
        reach = int(3 * radius) + 1
        window = slice(max(0, int(cy) - reach), int(cy) + reach), slice(max(0, int(cx) - reach), int(cx) + reach)
        dy, dx = y[window[0]] - np.float32(cy), x[:, window[1]] - np.float32(cx)
        u = np.float32(np.cos(turn)) * dx + np.float32(np.sin(turn)) * dy
        v = (np.float32(np.cos(turn)) * dy - np.float32(np.sin(turn)) * dx) / np.float32(stretch)
        bulk = np.float32(1.35 if k == 0 else 0.95) * np.exp(-(u * u + v * v) / np.float32(radius**2))
        density[window] = np.maximum(density[window], bulk)
    return centres, density


def _ponds(rng: np.random.Generator, flood: Array, built: Array) -> tuple[Array, Array]:
    """Gravel pits beside the river, as rounded rectangles, and their bare shores."""
    ponds, shores = np.zeros(flood.shape, bool), np.zeros(flood.shape, bool)
    near = np.argwhere((flood > 25) & (flood < 60) & ~built)
    for _ in range(round(flood.size / 1.8e5) if len(near) else 0):
        cy, cx = near[rng.integers(len(near))]
        turn, a = rng.uniform(0, np.pi), rng.uniform(8, 20)
        b = a * rng.uniform(0.45, 0.9)
        window = (
            slice(max(0, cy - 32), min(cy + 33, flood.shape[0])),
            slice(max(0, cx - 32), min(cx + 33, flood.shape[1])),
        )
        y, x = np.mgrid[window]
        u = np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
        v = np.cos(turn) * (y - cy) - np.sin(turn) * (x - cx)
        ragged = (np.abs(u / a) ** 4 + np.abs(v / b) ** 4) ** 0.25 + 0.05 * np.sin(u / 2.3) * np.cos(v / 1.9)
        ponds[window] |= ragged < 1
        shores[window] |= ragged < 1 + 1.7 / a
    return ponds, shores & ~built


def _roads(rng: np.random.Generator, shape: tuple[int, int], centres: list[tuple[float, float]]) -> Array:
    """Cover of main roads: from village to town, and one trunk road across."""
    cover = np.zeros(shape, "float32")
    town = np.array(centres[0])
    for centre in centres[1:]:
        nearer = [c for c in centres if c != centre and np.hypot(*(town - c)) < np.hypot(*(town - np.array(centre)))]
        goal = min(nearer, key=lambda c: np.hypot(*(np.array(c) - centre)), default=centres[0])
        _curve(rng, cover, np.array(centre), np.array(goal), 0.75)
    side = rng.random() < 0.5
    far = np.array([shape[0] - 1.0, shape[1] - 1.0])
    ends = [np.array([rng.uniform(0.2, 0.8) * far[0], 0]), np.array([rng.uniform(0.2, 0.8) * far[0], far[1]])]
    ends = [e[::-1] / far[::-1] * far for e in ends] if side else ends
    _curve(rng, cover, ends[0], ends[1], 1.0, lanes=2)
    return np.clip(cover, 0, 1)


def _curve(rng: np.random.Generator, cover: Array, start: Array, end: Array, strength: float, lanes: int = 1) -> None:
    """Draw a gently bent road into `cover`, antialiased."""
    length = float(np.hypot(*(end - start)))
    normal = np.array([end[1] - start[1], start[0] - end[0]]) / max(length, 1e-6)
    t = np.linspace(0, 1, int(length * 4) + 2)[:, None]
    bend = normal * length * (rng.normal(0, 0.1) * np.sin(np.pi * t) + rng.normal(0, 0.035) * np.sin(3 * np.pi * t))
    drawn = np.zeros_like(cover)
    for lane in range(lanes):
        path = start + (end - start) * t + bend + normal * (2.2 * lane)
        corner = np.floor(path).astype(int)
        part = path - corner
        for di in (0, 1):
            for dj in (0, 1):
                weight = np.abs(1 - di - part[:, 0]) * np.abs(1 - dj - part[:, 1])
                i, j = corner[:, 0] + di, corner[:, 1] + dj
                inside = (i >= 0) & (i < cover.shape[0]) & (j >= 0) & (j < cover.shape[1])
                np.maximum.at(drawn, (i[inside], j[inside]), (weight[inside] * 1.6).astype("float32"))
    np.maximum(cover, np.clip(drawn, 0, 1) * strength, out=cover)
