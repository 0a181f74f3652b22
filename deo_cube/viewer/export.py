"""Write layers to files: a Cloud-Optimized GeoTIFF, window by window, or polygons as GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.shutil import copy
from rasterio.warp import transform_geom
from rasterio.windows import Window

from deo_cube.errors import ArgumentError
from deo_cube.heads.classes import NO_CLASS
from deo_cube.viewer.layers import ClassLayer, ColourLayer, ScoreLayer

__all__ = ["write_cog", "write_geojson"]

Array = NDArray[Any]
Layer = ColourLayer | ScoreLayer | ClassLayer

MAX_CELLS = 16_000_000
"""Largest number of cells that are turned into polygons."""
MAX_POLYGONS = 200_000
MAX_BYTES = 512 * 2**20
"""Largest file of polygons."""


def write_cog(layer: Layer, t: int, path: Path, *, tags: dict[str, str]) -> Iterator[float]:
    """Write one date of a layer as a north-up COG on the grid of the embeddings; yield the share done.

    Similarities are float32 with NaN for none; classes uint8 with 255 for none, a palette and names; PCA colours
    uint8 with 0 for none. Only one window is in memory.
    """
    source, factor = layer.vectors.source, getattr(layer, "upsample", 1)
    box = layer.vectors.grid.box
    rows, cols = (n * factor for n in source.shape[2:])
    transform = box.transform * Affine.scale(1 / factor)
    flipped = transform.e > 0
    if flipped:
        transform = transform * Affine.translation(0, rows) * Affine.scale(1, -1)
    dtype, nodata = _stored(layer)
    unoptimized = path.with_suffix(".part.tif")
    options = {
        "driver": "GTiff", "dtype": dtype, "nodata": nodata, "count": len(layer.bands), "height": rows, "width": cols,
        "crs": box.crs.to_wkt(), "transform": transform, "tiled": True, "blockxsize": 256, "blockysize": 256,
        "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    try:
        with rasterio.open(unoptimized, "w", **options) as out:
            out.update_tags(**tags)
            for n, name in enumerate(layer.bands):
                out.set_band_description(n + 1, name)
            if isinstance(layer, ClassLayer):
                entries = layer.legend()
                out.update_tags(1, **{f"class_{e['code']}": e["name"] for e in entries})
                out.write_colormap(1, {e["code"]: _rgba(e["color"]) for e in entries} | {NO_CLASS: (0, 0, 0, 0)})
            done, total = 0, source.grid[0] * source.grid[1]
            for i in range(source.grid[0]):
                for j in range(source.grid[1]):
                    r, c = source.window(i, j)
                    part = layer.cells(t, r, c)
                    top = rows - r.stop * factor if flipped else r.start * factor
                    part = part[:, ::-1] if flipped else part
                    out.write(part, window=Window(c.start * factor, top, part.shape[2], part.shape[1]))
                    done += 1
                    yield 0.95 * done / total
        # Classes cannot be averaged.
        resampling = "nearest" if isinstance(layer, ClassLayer) else "average"
        copy(unoptimized, path, driver="COG", compress="DEFLATE", overview_resampling=resampling)
    finally:
        unoptimized.unlink(missing_ok=True)
    yield 1.0


def _stored(layer: Layer) -> tuple[str, float]:
    if isinstance(layer, ScoreLayer):
        return "float32", float("nan")
    return "uint8", 0 if isinstance(layer, ColourLayer) else NO_CLASS


def _rgba(color: str) -> tuple[int, int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16), 255


def write_geojson(
    layer: ScoreLayer | ClassLayer, t: int, path: Path, *, threshold: float, date: str
) -> Iterator[float]:
    """Write polygons of each class, or of scores of at least `threshold`, in WGS 84; yield the share done.

    Raises
    ------
    ArgumentError
        For a layer that is too large for polygons.
    """
    source, factor = layer.vectors.source, getattr(layer, "upsample", 1)
    rows, cols = (n * factor for n in source.shape[2:])
    if rows * cols > MAX_CELLS:
        raise ArgumentError(
            f"GeoJSON is written for layers of at most {MAX_CELLS / 1e6:.0f} million cells, this one has "
            f"{rows * cols / 1e6:.0f} million: export a COG instead"
        )
    box = layer.vectors.grid.box
    codes = np.full((rows, cols), NO_CLASS, "uint8")
    names = {e["code"]: e for e in layer.legend()} if isinstance(layer, ClassLayer) else {}
    done, total = 0, source.grid[0] * source.grid[1]
    for i in range(source.grid[0]):
        for j in range(source.grid[1]):
            r, c = source.window(i, j)
            part = layer.cells(t, r, c)[0]
            if isinstance(layer, ScoreLayer):
                with np.errstate(invalid="ignore"):
                    part = np.where(part >= threshold, 1, NO_CLASS)
            codes[r.start * factor : r.stop * factor, c.start * factor : c.stop * factor] = part
            done += 1
            yield 0.8 * done / total
    transform = box.transform * Affine.scale(1 / factor)
    crs = rasterio.crs.CRS.from_wkt(box.crs.to_wkt())
    count = 0
    with path.open("w", encoding="utf-8") as out:
        out.write('{"type": "FeatureCollection", "features": [')
        for geometry, code in shapes(codes, mask=codes != NO_CLASS, transform=transform):
            properties: dict[str, Any] = {"date": date} if date else {}
            if isinstance(layer, ClassLayer):
                e = names[int(code)]
                properties |= {"label": e["name"], "class": e["code"], "color": e["color"]}
            else:
                properties |= {"similarity_at_least": threshold}
            degrees = transform_geom(crs, "EPSG:4326", geometry, precision=7)
            feature = {"type": "Feature", "properties": properties, "geometry": degrees}
            out.write((",\n" if count else "\n") + json.dumps(feature))
            count += 1
            if count > MAX_POLYGONS or out.tell() > MAX_BYTES:
                raise ArgumentError(
                    f"GeoJSON is written for at most {MAX_POLYGONS} polygons and {MAX_BYTES // 2**20} MiB, this layer "
                    "has more: export a COG instead, or raise the threshold"
                )
            if count % 1000 == 0:
                yield 0.9
        out.write("\n]}\n")
    yield 1.0
