from __future__ import annotations

import dataclasses
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deo_cube.errors import AmbiguousUnitsError, ArgumentError, MissingBandsError
from deo_cube.train.config import MS_BANDS, Loader
from deo_cube.train.samples import ArraySource, CubeSource, ImageSource, Mixture, SourceSpec, batches, open_source
from tests.train.conftest import cube

LOADER = Loader(window=32, valid=0.5, workers=0)


def test_bands_come_by_name_in_model_order(cube_source: str) -> None:
    source = open_source(cube_source)
    assert isinstance(source, CubeSource)
    assert source.kind == "ms"
    image, ok, *_ = source.draw(np.random.default_rng(0), 96, 0.5)  # the whole cube, one of two dates
    ds = cube()
    wanted = np.stack([ds[b].values for b in MS_BANDS], axis=1).astype("float32")
    match = [t for t in range(2) if np.array_equal(np.where(ok, image, 0), np.where(ok, wanted[t], 0))]
    assert len(match) == 1
    assert not ok[:, :8].any()
    assert ok[:, 8:].all()


def test_offset_is_applied_and_a_missing_one_is_not_guessed(tmp_path: Path) -> None:
    ds = cube()
    ds = ds.assign({b: ds[b].where(ds[b] == 0, ds[b] + 1000).astype("uint16") for b in ds.data_vars})
    ds = ds.assign_coords(time=np.array(["2023-06-01", "2023-07-01"], dtype="datetime64[ns]"))
    for b in ds.data_vars:
        ds[b].attrs |= {"units": "dn"}
    ds.rio.write_crs(32632).to_zarr(tmp_path / "late.zarr")
    with pytest.raises(AmbiguousUnitsError, match="offset"):
        open_source(f"{tmp_path / 'late.zarr'},nodata=0")
    source = open_source(f"{tmp_path / 'late.zarr'},nodata=0,offset=-1000")
    image, ok, *_ = source.draw(np.random.default_rng(0), 96, 0.5)
    raw = np.stack([cube()[b].values for b in MS_BANDS], axis=1)
    assert any(np.allclose(image[:, ok], raw[t][:, ok]) for t in range(2))


def test_a_missing_band_is_an_error_until_allowed(tmp_path: Path) -> None:
    cube().drop_vars("B8A").to_zarr(tmp_path / "nine.zarr")
    with pytest.raises(MissingBandsError, match="B8A"):
        open_source(f"{tmp_path / 'nine.zarr'},units=dn,offset=0,nodata=0")
    source = open_source(f"{tmp_path / 'nine.zarr'},units=dn,offset=0,nodata=0,missing=nearest")
    image, ok, *_ = source.draw(np.random.default_rng(0), 32, 0.5)
    np.testing.assert_array_equal(image[7][ok], image[6][ok])  # B8A from B08


def test_samples_depend_on_seed_and_number_alone(cube_source: str, images_path: Path) -> None:
    def mixture(seed: int) -> Mixture:
        return Mixture((open_source(cube_source), open_source(str(images_path))), LOADER, seed)

    first = mixture(0).batch(3, (4, 2), 0, 1)
    again = mixture(0)
    again.batch(0, (4, 2), 0, 1)  # reading others first changes nothing
    second = again.batch(3, (4, 2), 0, 1)
    assert torch.equal(first.ms, second.ms)
    assert torch.equal(first.rgb, second.rgb)
    assert not torch.equal(first.ms, mixture(1).batch(3, (4, 2), 0, 1).ms)
    parts = [again.batch(3, (2, 1), rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat([p.ms for p in parts]), first.ms)
    assert torch.equal(torch.cat([p.rgb for p in parts]), first.rgb)


def test_workers_read_the_same_and_a_run_can_begin_in_the_middle(cube_source: str) -> None:
    source = open_source(cube_source)
    alone = list(batches(Mixture((source,), LOADER, 0), (2, 0), start=0, stop=5))
    loader = Loader(window=32, valid=0.5, workers=2, prefetch=2)
    shared = list(batches(Mixture((source,), loader, 0), (2, 0), start=0, stop=5))
    middle = list(batches(Mixture((source,), LOADER, 0), (2, 0), start=3, stop=5))
    assert len(alone) == len(shared) == 5
    assert all(torch.equal(a.ms, b.ms) for a, b in zip(alone, shared, strict=True))
    assert all(torch.equal(a.ms, b.ms) for a, b in zip(alone[3:], middle, strict=True))
    assert alone[0].rgb is None


def test_windows_keep_to_what_is_valid(cube_source: str) -> None:
    source = open_source(cube_source, fill=tuple(float(i) for i in range(10)))
    for seed in range(20):
        image, ok, *_ = source.draw(np.random.default_rng(seed), 16, 0.9)
        assert ok.mean() >= 0.9
        assert np.isfinite(image).all()
        if not ok.all():
            np.testing.assert_array_equal(image[:, ~ok][:, 0], np.arange(10))


def test_a_source_of_nothing_valid_says_so(tmp_path: Path) -> None:
    ds = cube()
    (ds * 0).assign_attrs(ds.attrs).astype("uint16").rio.write_crs(32632).to_zarr(tmp_path / "empty.zarr")
    source = open_source(f"{tmp_path / 'empty.zarr'},units=dn,offset=0,nodata=0")
    with pytest.raises(ValueError, match=r"loader\.valid"):
        source.draw(np.random.default_rng(0), 16, 0.5)


def test_open_files_do_not_travel_to_workers(cube_source: str) -> None:
    source = open_source(cube_source)
    source.draw(np.random.default_rng(0), 16, 0.5)
    assert source._open
    copy = pickle.loads(pickle.dumps(source))
    assert not copy._open
    a, b = (s.draw(np.random.default_rng(4), 16, 0.5)[0] for s in (source, copy))
    np.testing.assert_array_equal(a, b)


def test_images_fill_the_window_and_stay_on_the_scale(images_path: Path) -> None:
    source = open_source(f"{images_path},hold_out=0.5")
    assert isinstance(source, ImageSource)
    image, ok, *_ = source.draw(np.random.default_rng(0), 48, 0.5)
    assert image.shape == (3, 48, 48)
    assert ok.all()
    assert 0 <= image.min()
    assert image.max() <= 2750
    assert set(source.files).isdisjoint(source.held_out)
    # Whole runs of 50 numbers are held out, not single images.
    runs = {(f.split("/")[0], int(f.rsplit("_", 1)[1].split(".")[0]) // 50) for f in source.files}
    other = {(f.split("/")[0], int(f.rsplit("_", 1)[1].split(".")[0]) // 50) for f in source.held_out}
    assert runs.isdisjoint(other)


@pytest.mark.real
def test_eurosat_tiles_that_are_tested_are_never_trained_on(shared: Path) -> None:
    from deo_cube.heads.splits import split_groups

    source = open_source(f"{shared / 'data/eurosat_rgb/eurosat_rgb_shared.zip'},hold_out=0.5")
    assert isinstance(source, ImageSource)
    names = sorted(
        source.files + source.held_out, key=lambda n: (n.split("/")[0], int(n.rsplit("_", 1)[1].split(".")[0]))
    )
    classes = sorted({n.split("/")[0] for n in names})
    labels = np.array([classes.index(n.split("/")[0]) for n in names])
    groups = labels * 10_000 + np.array([int(n.rsplit("_", 1)[1].split(".")[0]) // 50 for n in names])
    train = split_groups(np.unique(groups, return_inverse=True)[1], labels, 0.5, seed=0)
    assert {n for n, t in zip(names, train, strict=True) if not t} == set(source.held_out)


@pytest.mark.real
def test_geotiffs_and_patterns(shared: Path) -> None:
    text = f"{shared / 'data/change_barkbeetle'}/*/s2_*.tif,units=dn,offset=0,nodata=0,every=40"
    source = open_source(text)
    assert isinstance(source, CubeSource)
    assert len(source.opens) == 8
    image, ok, *_ = source.draw(np.random.default_rng(1), 32, 0.3)
    assert image.shape == (10, 32, 32)
    assert 100 < np.median(image[6][ok]) < 6000


@pytest.mark.parametrize("text", ["x.zarr,weigth=2", "x.zarr,weight=heavy", "x.zarr,path=y"])
def test_a_misspelt_option_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="x.zarr"):
        SourceSpec.parse(text)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_source("nowhere.zarr")


def test_an_npz_of_chips_is_read_by_band_name_mirrored_and_labelled_with_its_level(tmp_path: Path) -> None:
    bands = tuple(reversed(MS_BANDS))
    x = np.random.default_rng(0).integers(1, 4000, (3, 10, 16, 16)).astype("uint16")
    x[0, :, :4] = 0
    np.savez(tmp_path / "chips.npz", x=x, bands=np.array(bands))
    source = open_source(f"{tmp_path / 'chips.npz'},level=L1C")
    assert isinstance(source, ArraySource)
    mixture = Mixture((source,), LOADER, 0)
    batch = mixture.batch(0, (4, 0), 0, 1)
    assert batch.ms is not None
    assert batch.ms.shape == (4, 10, 32, 32)
    assert batch.level is not None
    assert batch.level.tolist() == [1.0] * 4
    middle = batch.ms[0, :, 8:24, 8:24].numpy()
    assert any(np.array_equal(np.where(chip > 0, chip, 0)[::-1], middle) for chip in x.astype("float32"))
    np.savez(tmp_path / "nine.npz", x=x[:, 1:], bands=np.array(bands[1:]))
    with pytest.raises(MissingBandsError, match="B12"):
        open_source(str(tmp_path / "nine.npz"))
    with pytest.raises(ArgumentError, match="level"):
        open_source(f"{tmp_path / 'chips.npz'},level=L3")


def test_worker_processes_read_one_zip_side_by_side(images_path: Path, tmp_path: Path) -> None:
    """A worker that is forked after the zip was opened would move the position of the others."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in sorted(images_path.rglob("*.png")):
            archive.write(file, file.relative_to(images_path))
    source = open_source(str(tmp_path / "images.zip"))
    assert isinstance(source, ImageSource)
    source.read(source.files[0])
    mixture = Mixture((source,), dataclasses.replace(LOADER, workers=2), 0)
    alone = Mixture((source,), LOADER, 0)
    for number, batch in enumerate(batches(mixture, (0, 8), start=0, stop=12)):
        assert batch.rgb is not None
        expected = alone.batch(number, (0, 8), 0, 1).rgb
        assert expected is not None
        assert torch.equal(batch.rgb, expected)


def test_a_file_of_names_chooses_images(images_path: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("class0_1.jpg\nclass2_7.jpg\n")
    source = open_source(f"{images_path},names={tmp_path / 'names.txt'}")
    assert isinstance(source, ImageSource)
    assert sorted(Path(f).stem for f in source.files) == ["class0_1", "class2_7"]
