"""Embeddings of other producers, in files written after their published layouts; and heads on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from deo_cube.cube import georeference
from deo_cube.errors import MissingCRSError, StoreMismatchError
from deo_cube.heads.vectors import as_embeddings
from deo_cube.store.export import to_cog
from deo_cube.store.open import open_embeddings
from tests.heads.fields import embeddings

H, W = 30, 40


def tiff(path: Path, values: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(values), "height": H, "width": W, "dtype": values.dtype}
    given = {"crs": "EPSG:32630", "transform": from_origin(300000, 5800000, 10, 10)} | options
    with rasterio.open(path, "w", **profile, **given) as file:
        file.write(values)
    return path


@pytest.fixture
def tessera(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A tile as geotessera downloads it, and what it decodes to."""
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (H, W, 128)).astype("int8")
    scales = rng.random((H, W)).astype("float32") / 100
    scales[:3] = np.nan
    folder = tmp_path / "global_0.1_degree_representation" / "2024" / "grid_-0.15_52.05"
    folder.mkdir(parents=True)
    np.save(folder / "grid_-0.15_52.05.npy", values)
    np.save(folder / "grid_-0.15_52.05_scales.npy", scales)
    tiff(tmp_path / "global_0.1_degree_tiff_all" / "grid_-0.15_52.05.tiff", np.ones((1, H, W), "uint8"))
    return folder, (values.astype("float32") * scales[..., None]).transpose(2, 0, 1)


def check(emb: xr.DataArray, expected: np.ndarray, model: str, transform: object = None) -> None:
    assert emb.dims == ("embedding", "y", "x")
    assert emb.chunks is not None
    assert (emb.name, emb.dtype) == ("embeddings", np.float32)
    np.testing.assert_allclose(emb.values, expected, rtol=1e-6)
    np.testing.assert_array_equal(emb.valid.values, np.isfinite(expected).all(0).astype("float32"))
    box = georeference.geobox(emb.isel(embedding=0, drop=True))
    assert box == GeoBox((H, W), transform or from_origin(300000, 5800000, 10, 10), "EPSG:32630")
    assert emb.attrs["deo_cube:model"] == model
    assert emb.time.dt.year.item() == 2024


def test_a_tessera_tile_as_downloaded(tessera: tuple[Path, np.ndarray]) -> None:
    folder, expected = tessera
    check(open_embeddings(folder / "grid_-0.15_52.05.npy"), expected, "tessera")
    check(open_embeddings(folder), expected, "tessera")
    check(open_embeddings(folder.parents[2]), expected, "tessera")
    # Scales may also be one a value.
    scales = np.load(folder / "grid_-0.15_52.05_scales.npy")
    np.save(folder / "grid_-0.15_52.05_scales.npy", np.repeat(scales[..., None], 128, -1))
    check(open_embeddings(folder), expected, "tessera")


def test_a_tessera_tile_that_is_not_whole(tessera: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = tessera
    landmask = tmp_path / "global_0.1_degree_tiff_all" / "grid_-0.15_52.05.tiff"
    moved = landmask.rename(folder / landmask.name)  # beside the tile does as well
    open_embeddings(folder)
    moved.unlink()
    with pytest.raises(MissingCRSError, match=r"landmask.*grid_-0\.15_52\.05\.tiff"):
        open_embeddings(folder)
    (folder / "grid_-0.15_52.05_scales.npy").unlink()
    with pytest.raises(StoreMismatchError, match="two files"):
        open_embeddings(folder / "grid_-0.15_52.05.npy")
    other = folder.parent / "grid_0.05_52.05"
    other.mkdir()
    np.save(other / "grid_0.05_52.05.npy", np.zeros((2, 2, 3), "int8"))
    with pytest.raises(StoreMismatchError, match="2 TESSERA tiles.*name one"):
        open_embeddings(tmp_path)


def test_a_tessera_tile_as_geotiff_and_as_zarr(tessera: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    import rioxarray  # noqa: F401 - registers .rio

    _, expected = tessera
    check(open_embeddings(tiff(tmp_path / "grid_-0.15_52.05_2024.tiff", expected)), expected, "tessera")
    x, y = 300005 + 10 * np.arange(W), 5799995 - 10 * np.arange(H)
    ds = xr.Dataset(
        {"embedding": (("y", "x", "band"), expected.transpose(1, 2, 0))},
        coords={"y": y, "x": x, "band": np.arange(128)},
        attrs={"TESSERA_DATASET_VERSION": "v1", "TESSERA_YEAR": 2024},
    )
    path = tmp_path / "grid_-0.15_52.05_2024.zarr"
    ds.rio.write_crs("EPSG:32630").rio.write_coordinate_system().to_zarr(path, zarr_format=3, consolidated=False)
    check(open_embeddings(path), expected, "tessera")


def geoemb(path: Path, model: str, arrays: dict[str, tuple[tuple[str, ...], np.ndarray]], **attrs: object) -> Path:
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update(
        {
            "geoemb:type": "pixel",
            "geoemb:dimensions": next(iter(arrays.values()))[1].shape[0],
            "geoemb:model": model,
            "geoemb:data_type": "int8",
            "proj:code": "EPSG:32630",
            "spatial:dimensions": ["y", "x"],
            "spatial:transform": [10.0, 0.0, 300000.0, 0.0, -10.0, 5800000.0],
            **attrs,
        }
    )
    for name, (dims, values) in arrays.items():
        made = root.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=dims, chunks=values.shape
        )
        made[...] = values
    return path


def test_a_geoemb_store_with_a_scale_a_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values, scales = rng.integers(-127, 128, (16, H, W)).astype("int8"), rng.random((H, W)).astype("float32")
    scales[0, 0], scales[5] = np.inf, np.nan
    how = {"method": "per_pixel_scale", "original_dtype": "float32"}
    how |= {"scale": {"type": "array", "array_name": "scales", "nodata": "+inf"}}
    path = geoemb(
        tmp_path / "2024" / "store.zarr" / "utm30",
        "https://geotessera.org/model/1.0",
        {"embeddings": (("band", "y", "x"), values), "scales": (("y", "x"), scales)},
        **{"geoemb:quantization": how},
    )
    check(open_embeddings(path), values * np.where(np.isfinite(scales), scales, np.nan), "tessera")
    zarr.open_group(tmp_path / "2024" / "store.zarr", mode="a", zarr_format=3)
    with pytest.raises(StoreMismatchError, match="group (a|per) UTM zone.*utm30"):
        open_embeddings(tmp_path / "2024" / "store.zarr")


def alphaearth() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    unit = rng.normal(size=(64, H, W))
    unit /= np.linalg.norm(unit, axis=0)
    stored = np.clip(np.round(np.sqrt(np.abs(unit)) * np.sign(unit) * 127.5), -127, 127).astype("int8")
    stored[:, :4] = -128
    decoded = ((stored / 127.5) ** 2 * np.sign(stored)).astype("float32")
    decoded[:, :4] = np.nan
    return stored, decoded


@pytest.mark.parametrize("south_up", [False, True])
def test_an_alphaearth_cog_lies_as_it_lies(tmp_path: Path, south_up: bool) -> None:
    stored, decoded = alphaearth()
    up = from_origin(300000, 5800000, 10, 10)
    transform = rasterio.Affine(10, 0, 300000, 0, 10, 5800000 - 10 * H) if south_up else up
    rows = slice(None, None, -1) if south_up else slice(None)
    path = tiff(tmp_path / "annual" / "2024" / "30N" / "x.tiff", stored[:, rows], nodata=-128, transform=transform)
    emb = open_embeddings(path)
    check(emb, decoded[:, rows], "alphaearth", transform)
    lengths = np.linalg.norm(emb.values[:, emb.valid.values == 1], axis=0)
    np.testing.assert_allclose(lengths, 1, atol=0.02)  # what quantisation leaves of unit vectors


def test_an_alphaearth_mosaic_as_zarr_with_years(tmp_path: Path) -> None:
    stored, decoded = alphaearth()
    path = geoemb(
        tmp_path / "aef.zarr",
        "https://arxiv.org/abs/2507.22291",
        {"embeddings": (("time", "band", "y", "x"), np.stack([stored, stored]))},
        **{"geoemb:dimensions": 64, "geoemb:quantization": {"method": "linear", "original_dtype": "float32"}},
    )
    years = zarr.open_group(path, mode="a").create_array("time", shape=(2,), dtype="int64", dimension_names=("time",))
    years[...] = [2023, 2024]
    emb = open_embeddings(path)
    assert emb.dims == ("time", "embedding", "y", "x")
    assert emb.time.dt.year.values.tolist() == [2023, 2024]
    np.testing.assert_allclose(emb.values[1], decoded, rtol=1e-6)
    emb.chunk(y=5, x=5).to_zarr(tmp_path / "copy.zarr", consolidated=False)
    copy = xr.open_zarr(tmp_path / "copy.zarr", consolidated=False)["embeddings"]
    np.testing.assert_array_equal(copy.values, emb.values)


def test_heads_work_on_them(tmp_path: Path) -> None:
    from deo_cube.heads.pca import pca_rgb
    from deo_cube.heads.similar import similar

    stored, _ = alphaearth()
    emb = open_embeddings(tiff(tmp_path / "2024.tif", stored, nodata=-128))
    found = similar(emb, (float(emb.x[20]), float(emb.y[20])))
    assert float(found[20, 20]) == pytest.approx(1, abs=1e-5)
    assert np.isnan(found.values[:4]).all()
    assert pca_rgb(emb).sizes["band"] == 3


def test_anything_else_is_refused_by_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError, match="10 bands of uint16.*open_cube"):
        open_embeddings(tiff(tmp_path / "cube.tif", np.ones((10, H, W), "uint16")))
    xr.Dataset({"a": ("x", [1])}).to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(StoreMismatchError, match="was not made by deo_cube"):
        open_embeddings(tmp_path / "a.zarr")
    with pytest.raises(StoreMismatchError, match="does not exist"):
        open_embeddings(tmp_path / "b.zarr")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(StoreMismatchError, match="TESSERA tile"):
        open_embeddings(tmp_path / "x.npy")


def test_a_geotiff_of_embeddings_is_not_taken_for_alphaearth(tmp_path: Path) -> None:
    import rioxarray

    emb = embeddings(dim=64)
    codes = (emb / 0.05).round().clip(-127, 127).astype("int8")
    codes.attrs = dict(emb.attrs) | {"scale_factor": 0.05, "_FillValue": np.int8(-128)}
    path = to_cog(codes, tmp_path / "own.tif")
    with pytest.raises(StoreMismatchError, match="rioxarray"):
        open_embeddings(path)
    own = rioxarray.open_rasterio(path).rename(band="embedding")
    np.testing.assert_allclose(as_embeddings(own), codes.values * 0.05, rtol=1e-6)
