"""Aerial RGB images pass at their own resolution through the RGB stem, with a warning; other fine cubes do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

import deo_cube
from deo_cube.errors import DeoCubeError, ResolutionMismatchError

RGB = ["B04", "B03", "B02"]


def image(path: Path, size: float, *, dtype: str = "uint8", count: int = 3, **profile: str) -> Path:
    values = np.random.default_rng(0).integers(20, 200, (count, 96, 96)).astype(dtype)
    place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 5.2e6, size, size), "dtype": dtype, "count": count}
    with rasterio.open(path, "w", driver="GTiff", width=96, height=96, **place, **profile) as file:
        file.write(values)
    return path


@pytest.mark.parametrize("count", [3, 4])
def test_two_lines_give_the_vectors_of_the_same_pixels(tmp_path: Path, count: int) -> None:
    aerial = deo_cube.open_cube(image(tmp_path / "a.tif", 0.5, count=count, photometric="RGB"))
    with pytest.warns(UserWarning, match=r"trained on pixels of 10 m.*0\.5 m.*2 m x 2 m"):
        emb = aerial.deo.embed(bands=RGB, units="uint8_rgb", anchor="array")
    assert float(emb.x[1] - emb.x[0]) == 2.0
    same = deo_cube.open_cube(image(tmp_path / "b.tif", 10, count=count, photometric="RGB"))
    expected = same.deo.embed(bands=RGB, units="uint8_rgb", anchor="array")
    np.testing.assert_array_equal(emb.values, expected.values)


def test_the_order_of_colours_is_that_of_the_file(tmp_path: Path) -> None:
    aerial = deo_cube.open_cube(image(tmp_path / "a.tif", 10, photometric="RGB"))
    assert aerial.deo.match("tiny", bands=RGB).indices == (0, 1, 2)
    unnamed = deo_cube.open_cube(image(tmp_path / "b.tif", 10, photometric="MINISBLACK"))
    with pytest.raises(DeoCubeError, match="only positions"):
        unnamed.deo.embed(bands=RGB, units="uint8_rgb")
    bright = deo_cube.open_cube(image(tmp_path / "c.tif", 10, dtype="uint16", photometric="RGB"))
    with pytest.raises(DeoCubeError, match="only positions"):
        bright.deo.embed(bands=RGB, units="dn", offset=0)


def test_other_fine_cubes_are_refused_and_the_hint_is_followed(tmp_path: Path) -> None:
    aerial = deo_cube.open_cube(image(tmp_path / "a.tif", 0.5, photometric="RGB"))
    with pytest.raises(DeoCubeError, match='units="uint8_rgb"'):
        aerial.deo.embed(bands=RGB)
    fine = aerial.astype("uint16").assign_attrs(aerial.attrs)
    with pytest.raises(ResolutionMismatchError, match='8-bit RGB.*units="uint8_rgb"'):
        fine.deo.embed(bands=RGB, units="dn", offset=0)
    coarse = deo_cube.open_cube(image(tmp_path / "b.tif", 30, photometric="RGB"))
    with pytest.raises(ResolutionMismatchError, match=r"resolution=10"):
        coarse.deo.embed(bands=RGB, units="uint8_rgb")
