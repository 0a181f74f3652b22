"""Numbers as PNG: colours to look at, and scores and classes in a form that the page reads back exactly.

A score from -1 to 1 is 16 bits in red (high) and green (low); a class is its code in red and its probability in green.
Blue is 255 where there is no value. Alpha is 255 throughout, so that no browser alters a number.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_png", "colour_png", "empty_png", "read_scores", "score_png"]

Array = NDArray[Any]


def _png(pixels: Array, mode: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels), mode).save(out, "PNG", compress_level=1)
    return out.getvalue()


def colour_png(rgb: Array) -> bytes:
    """Colours (h, w, 3) in 0..1, transparent where NaN."""
    valid: Array = np.asarray(np.isfinite(rgb).all(axis=-1))
    values = (np.where(valid[..., None], rgb, 0).clip(0, 1) * 255).round().astype("uint8")
    return _png(np.concatenate([values, np.where(valid, 255, 0).astype("uint8")[..., None]], axis=-1), "RGBA")


def empty_png(size: int) -> bytes:
    """Nothing: no colour, no score and no class."""
    return _png(np.zeros((size, size, 4), "uint8"), "RGBA")


def score_png(scores: Array) -> bytes:
    """Scores (h, w) in -1..1 to within 1/65534; NaN for none."""
    valid = np.isfinite(scores)
    whole = (np.where(valid, scores, 0).clip(-1, 1) * 32767 + 32767).round().astype("uint16")
    return _png(np.stack([whole >> 8, whole & 255, np.where(valid, 0, 255)], axis=-1).astype("uint8"), "RGB")


def read_scores(png: bytes) -> Array:
    """What `score_png` wrote, as the page reads it."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype("float64")
    return np.where(pixels[..., 2] == 255, np.nan, (pixels[..., 0] * 256 + pixels[..., 1] - 32767) / 32767)


def class_png(codes: Array, chances: Array) -> bytes:
    """Codes (h, w) of classes, 255 for none, and their probabilities in 0..1."""
    chance = (np.nan_to_num(chances).clip(0, 1) * 255).round()
    return _png(np.stack([codes, chance, np.where(codes == 255, 255, 0)], axis=-1).astype("uint8"), "RGB")
