from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine, from_origin

from deo_cube.train.augment import Augmentation, generator
from deo_cube.train.config import PRESETS, Augment, Loader, TrainConfig
from deo_cube.train.loop import open_sources, train
from deo_cube.train.samples import CubeSource, Mixture, batches, open_source
from tests.train.conftest import BANDS, cube

# The cube of the tests: 96 px of 10 m, north-west corner at (500000, 5000000), EPSG:32632.
LEFT, TOP = 500_000, 5_000_000
COLOURS = dict(photometric="RGB")


def coordinates(transform: Affine, height: int, width: int) -> np.ndarray:
    """Red says the easting, green the northing of a pixel's centre, in metres from the cube's corner; blue is 7."""
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = transform.c + transform.a * cols, transform.f + transform.e * rows
    return np.stack([x - LEFT, TOP - y, np.full_like(x, 7.0)]).astype("float32")


def write(path: Path, data: np.ndarray, transform: Affine, crs: str = "EPSG:32632", **options: object) -> Path:
    profile = dict(driver="GTiff", count=len(data), height=data.shape[1], width=data.shape[2], dtype=str(data.dtype))
    with rasterio.open(path, "w", **profile, transform=transform, crs=crs, **{**COLOURS, **options}) as out:
        out.write(data)
    return path


@pytest.fixture
def encoded(tmp_path: Path) -> tuple[Path, Path]:
    """A cube whose B04 and B03 say where they are, in metres, and a 2.5 m image that says the same."""
    ds = cube()
    here = coordinates(from_origin(LEFT, TOP, 10, 10), 96, 96).round().astype("uint16")
    for band, layer in zip(("B04", "B03"), here[:2], strict=True):
        ds[band].values[:] = layer[None]
    for band in BANDS:
        ds[band].attrs |= {"units": "dn"}
    ds.to_zarr(tmp_path / "where.zarr")
    transform = from_origin(LEFT - 50, TOP + 30, 2.5, 2.5)
    return tmp_path / "where.zarr", write(tmp_path / "fine.tif", coordinates(transform, 460, 420), transform)


def text(cube_path: Path, image: Path, more: str = "") -> str:
    return f"{cube_path},units=dn,offset=0,rgb={image},rgb_scale=1{more}"


def test_both_resolutions_show_the_same_ground(encoded: tuple[Path, Path]) -> None:
    source = open_source(text(*encoded), detail=4)
    assert isinstance(source, CubeSource)
    assert source.paired
    for seed in range(8):
        image, ok, fine, *_ = source.draw(np.random.default_rng(seed), 24, 0.5)
        assert fine is not None
        assert fine.shape == (3, 96, 96)
        # Every pixel of the cube is the mean of its sixteen, to the rounding of the cube's own DN.
        coarse = fine[:2].reshape(2, 24, 4, 24, 4).mean(axis=(2, 4))
        assert np.abs(coarse - image[:2])[:, ok].max() <= 0.51
        assert np.ptp(np.diff(fine[0, 0])) < 1e-3
        assert np.diff(fine[0, 0])[0] == pytest.approx(2.5)
        np.testing.assert_allclose(fine[2], 7.0)


def test_a_finer_image_is_averaged_and_another_crs_is_warped(encoded: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = encoded
    transform = from_origin(LEFT - 20, TOP + 20, 0.5, 0.5)
    finest = write(tmp_path / "half_metre.tif", coordinates(transform, 2000, 2000), transform)
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    data = coordinates(from_origin(LEFT - 200, TOP + 200, 1, 1), 1400, 1400)
    to, width, height = calculate_default_transform(
        "EPSG:32632", "EPSG:4326", 1400, 1400, LEFT - 200, TOP - 1200, LEFT + 1200, TOP + 200
    )
    turned = np.zeros((3, height, width), "float32")
    reproject(
        data, turned, src_transform=from_origin(LEFT - 200, TOP + 200, 1, 1), src_crs="EPSG:32632", dst_transform=to,
        dst_crs="EPSG:4326", resampling=Resampling.bilinear, dst_nodata=-1,
    )  # fmt: skip
    degrees = write(tmp_path / "degrees.tif", turned, to, "EPSG:4326", nodata=-1)
    for image, tolerance in ((finest, 0.51), (degrees, 1.5)):
        source = open_source(text(path, image), detail=2)
        read, ok, fine, *_ = source.draw(np.random.default_rng(3), 24, 0.5)  # type: ignore[union-attr]
        coarse = fine[:2].reshape(2, 24, 2, 24, 2).mean(axis=(2, 4))
        assert np.abs(coarse - read[:2])[:, ok].max() <= tolerance, image


def test_views_of_both_branches_are_of_the_same_ground(encoded: tuple[Path, Path]) -> None:
    plain = Augment(
        global_size=32, local_size=16, local_crops=1, jitter_p=0, gray_p=0, blur_p=(0, 0, 0), solarize_p=0, display=1e4
    )
    config = PRESETS["smoke"].student
    mixture = Mixture((open_source(text(*encoded), detail=4),), Loader(window=24, valid=0.5, workers=0), 0)
    batch = mixture.batch(0, (3, 0), 0, 1)
    assert batch.fine is not None
    assert batch.paired.tolist() == [True] * 3
    views = Augmentation(plain, config)(batch.ms, None, generator(0), fine=batch.fine, paired=batch.paired)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.ms_mean, config.ms_std))
    for view in views:
        ground = (view.ms * std + mean)[:, :2]
        inner = slice(3, -3)  # beyond the window's edge the two are mirrored about different pixels
        apart = (view.clean[:, :2] * 1e4 - ground)[..., inner, inner].abs()
        assert apart.max() < 3.0  # metres: bicubic on 10 m pixels of rounded coordinates
        assert not torch.equal(view.clean[:, :2] * 1e4, ground)


def test_windows_lie_within_the_image_and_its_gaps_are_invalid(encoded: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = encoded
    transform = from_origin(LEFT + 200, TOP - 300, 2.5, 2.5)  # 40 x 40 px of the cube, from row 30 and column 20
    data = coordinates(transform, 160, 160)
    data[:, :40, :40] = -1  # ten pixels of the cube in its corner hold nothing
    image = write(tmp_path / "part.tif", data, transform, nodata=-1)
    source = open_source(text(path, image), detail=4)
    cube_ = source.cube(0)  # type: ignore[union-attr]
    assert cube_.region == (30, 70, 20, 60)
    assert cube_.area == 2 * 40 * 40
    read, ok, fine, *_ = source.draw(np.random.default_rng(0), 40, 0.5)  # type: ignore[union-attr]
    assert not ok[:10, :10].any()
    assert ok[10:].all()
    assert ok[:, 10:].all()
    assert read[0, 20, 20] == 205 + 200
    assert np.isfinite(fine).all()
    assert fine[0, 80, 80] == pytest.approx(200 + 201.25)


def test_samples_without_an_image_keep_the_cube_s_own_rgb(encoded: tuple[Path, Path], cube_source: str) -> None:
    sources = (open_source(text(*encoded), detail=4), open_source(cube_source, detail=4))
    mixture = Mixture(sources, Loader(window=24, valid=0.5, workers=0), 0)
    batch = mixture.batch(0, (8, 0), 0, 1)
    assert set(batch.paired.tolist()) == {True, False}
    one = Augment(global_size=24, local_size=16, local_crops=0, jitter_p=0, gray_p=0, solarize_p=0)
    views = Augmentation(one, PRESETS["smoke"].student)(
        batch.ms, None, generator(0), fine=batch.fine, paired=batch.paired
    )
    alone = Augmentation(one, PRESETS["smoke"].student)(batch.ms, None, generator(0))
    same = [torch.equal(a, b) for a, b in zip(views[0].clean, alone[0].clean, strict=True)]
    assert same == [not p for p in batch.paired.tolist()]
    assert torch.equal(views[0].ms, alone[0].ms)
    as_published = Augment(**{**one.__dict__, "ms_sees": "jittered"})
    replaced = Augmentation(as_published, PRESETS["smoke"].student)(
        batch.ms, None, generator(0), fine=batch.fine, paired=batch.paired
    )
    changed = [not torch.allclose(a[:3], b[:3], atol=1e-3) for a, b in zip(replaced[0].ms, views[0].ms, strict=True)]
    assert [c for c, p in zip(changed, batch.paired.tolist(), strict=True) if p] == [True] * sum(batch.paired.tolist())


def test_workers_read_the_same_pairs(encoded: tuple[Path, Path]) -> None:
    source = open_source(text(*encoded), detail=4)
    source.draw(np.random.default_rng(0), 24, 0.5)  # type: ignore[union-attr]
    assert pickle.loads(pickle.dumps(source))._open == {}
    alone = list(batches(Mixture((source,), Loader(window=24, workers=0), 0), (2, 0), start=0, stop=3))
    shared = list(batches(Mixture((source,), Loader(window=24, workers=1), 0), (2, 0), start=0, stop=3))
    assert all(torch.equal(a.fine, b.fine) and torch.equal(a.ms, b.ms) for a, b in zip(alone, shared, strict=True))


@pytest.mark.real
def test_trains_on_pairs(encoded: tuple[Path, Path], tmp_path: Path, shared: Path) -> None:
    config = TrainConfig(
        **{
            **PRESETS["smoke"].__dict__,
            "data": (text(*encoded),),
            "out": str(tmp_path / "run"),
            "steps": 2,
            "teacher": "mobilenet",
            "optical": PRESETS["smoke"].optical.__class__(
                weights=str(shared / "data/weights/mobilenet_v1_1.0_224_trunk.safetensors")
            ),
            "loader": Loader(window=24, valid=0.5, workers=0, detail=2),
        }
    )
    assert open_sources(config)[0].detail == 2  # type: ignore[attr-defined]
    assert (train(config) / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(crs=None), "rgb="),
        (dict(transform=from_origin(LEFT, TOP, 10, 10)), "rgb=.*pixels of 10 m"),
        (dict(transform=from_origin(LEFT + 90_000, TOP, 2.5, 2.5)), "rgb="),
        (dict(photometric="MINISBLACK"), "rgb_bands="),
        (dict(), "rgb_scale="),
    ],
)
def test_an_image_that_does_not_fit_is_refused(
    encoded: tuple[Path, Path], tmp_path: Path, change: dict, message: str
) -> None:
    options = dict(transform=from_origin(LEFT, TOP, 2.5, 2.5)) | change
    image = write(tmp_path / "bad.tif", np.zeros((3, 100, 100), "uint16"), **options)
    with pytest.raises(ValueError, match=message):
        open_source(f"{encoded[0]},units=dn,offset=0,rgb={image}")


def test_an_8_bit_image_is_white_at_the_display_value(encoded: tuple[Path, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "bytes.tif", np.full((3, 400, 400), 255, "uint8"), from_origin(LEFT, TOP, 2.5, 2.5))
    source = open_source(f"{encoded[0]},units=dn,offset=0,rgb={path}")
    fine = source.draw(np.random.default_rng(0), 16, 0.5).fine  # type: ignore[union-attr]
    np.testing.assert_allclose(fine, 2750.0, rtol=1e-6)
    with pytest.raises(FileNotFoundError, match="rgb="):
        open_source(f"{encoded[0]},units=dn,offset=0,rgb={tmp_path / 'nowhere.tif'}")
    with pytest.raises(ValueError, match="rgb_bands="):
        open_source(f"{encoded[0]},units=dn,offset=0,rgb={path},rgb_bands=1-2-4")
