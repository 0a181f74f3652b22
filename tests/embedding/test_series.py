"""A series encoder: one vector per pixel of its months. The same pixel, months and place give the same vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import deo_cube
from deo_cube.embedding.series import embed_series
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.loading import verify
from deo_cube.encoder.networks.presto import GROUPS, Presto
from deo_cube.encoder.registry import card
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, MissingBandsError
from tests.series_model import series_model

FILE = "data/weights/presto_worldcereal_finetuned.safetensors"
PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "presto.json").read_text())
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights: what is tested with it holds for any."""
    return series_model(tmp_path_factory.mktemp("small"))


def cube_of(dates: Any = None, size: int = 12, **options: Any) -> xr.Dataset:
    """A scene of several dates, on Dask, DN without offset, of which no pixel is hidden."""
    times = pd.date_range("2021-01-10", periods=12, freq="MS") if dates is None else pd.to_datetime(dates)
    cube = deo_cube.synthetic_cube(size=size, times=len(times), **options)[list(BANDS)]
    seen = cube.where(cube > 0, 700).astype("uint16")
    return seen.assign_attrs(cube.attrs).assign_coords(time=times)


def vectors(cube: xr.Dataset, model: Path, freq: Any = None, **options: Any) -> xr.DataArray:
    return embed_series(cube, model, freq, dtype="float32", **options).compute()


# The network


@pytest.mark.real
@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_those_of_the_published_code(shared: Path, name: str) -> None:
    case = PUBLISHED[name]
    i, j, k = np.ogrid[: case["n"], : case["months"], :10]
    dn = np.round(1500 + 1200 * np.sin(0.7 * i + 0.5 * j + 0.9 * k) + 80 * k)
    seen = np.broadcast_to((3 * i + 5 * j + 7 * (k // 3)) % 11 > 2, dn.shape)
    encoder = deo_cube.load_encoder("presto", weights=shared / FILE, device="cpu")
    months = [(case["first"] + m) % 12 + 1 for m in range(case["months"])]
    found = encoder.encode_series(np.where(seen, dn, np.nan), months, np.array(case["place"]))
    np.testing.assert_allclose(found[:, :24], case["vectors"], rtol=0, atol=5e-6)


@pytest.mark.real
def test_weights_are_known_by_their_reference_vector(shared: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    found = verify("presto", weights=shared / FILE)
    assert found.ok
    assert found.distance is not None
    state = load_file(shared / FILE)
    state["encoder.blocks.0.attn.qkv.weight"] = state["encoder.blocks.0.attn.qkv.weight"].flip(0)
    save_file(state, tmp_path / "other.safetensors")
    assert not verify("presto", weights=tmp_path / "other.safetensors").ok


def test_groups_that_are_not_seen_take_no_part() -> None:
    torch.manual_seed(0)
    network = Presto(stems={"ms": 10}, dim=16, depth=2, heads=2, months=12).eval()
    x, place = torch.rand(5, 6, 10), torch.rand(5, 2, dtype=torch.float64)
    months, seen = torch.arange(6), torch.rand(5, 6, 10) > 0.2
    with torch.inference_mode():
        out = network.series(x, seen, months, place)
        other = torch.where(seen, x, torch.full_like(x, 7.0))
        assert torch.equal(network.series(other, seen, months, place), out)
        # Whether a band of a group or all of them are missing is the same.
        groups = torch.stack([seen[..., list(g)].all(-1) for g in GROUPS.values()], -1)
        whole = torch.cat([groups[..., [n]].expand(-1, -1, len(g)) for n, g in enumerate(GROUPS.values())], -1)
        both = seen[..., 2] & seen[..., 6]
        assert torch.equal(
            network.series(x, whole, months, place)[both.eq(whole[..., 2] & whole[..., 6]).all(1)],
            out[both.eq(whole[..., 2] & whole[..., 6]).all(1)],
        )
        # A group that no series has costs no token, and changes nothing.
        without = seen.clone()
        without[..., 7] = False
        rest = [b for b in range(10) if b != 7]
        torch.testing.assert_close(
            network.series(x, without, months, place), network.series(x, without, months, place, bands=rest)
        )


def test_nothing_seen_is_missing_and_not_the_vector_of_a_place() -> None:
    network = Presto(stems={"ms": 10}, dim=16, depth=1, heads=2, months=12).eval()
    seen = torch.ones(3, 4, 10, dtype=torch.bool)
    seen[1] = False
    with torch.inference_mode():
        out = network.series(torch.rand(3, 4, 10), seen, torch.arange(4), torch.zeros(3, 2, dtype=torch.float64))
    assert out.isnan().all(dim=1).tolist() == [False, True, False]


# The verb


def test_a_cube_gives_a_vector_per_pixel_and_series(model: Path) -> None:
    cube = cube_of()
    emb = embed_series(cube, model)
    assert emb.dims == ("time", "embedding", "y", "x")
    assert emb.dtype == "float16"
    assert emb.chunks is not None
    out = emb.compute()
    assert out.sizes["time"] == 1
    assert np.isfinite(out).all()
    assert (out["count"] == 12).all()
    assert (out["valid"] == 1).all()
    assert pd.Timestamp(out["start_datetime"].values[0]) == pd.Timestamp("2021-02-01")
    np.testing.assert_array_equal(out["x"], cube["x"])
    np.testing.assert_array_equal(out["y"], cube["y"])


def test_a_pixel_is_its_months_and_its_place(model: Path) -> None:
    from pyproj import Transformer

    cube = cube_of()
    out = vectors(cube, model)
    encoder = deo_cube.load_encoder(model, device="cpu")
    pixel = cube.isel(y=3, x=5)
    dn = np.stack([pixel[b].values for b in BANDS], axis=1).astype("float32")
    crs = deo_cube.embed(cube, "tiny", units="dn", offset=0)["spatial_ref"].attrs["crs_wkt"]
    place = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(float(pixel.x), float(pixel.y))
    months = [int(m) for m in cube["time"].dt.month]
    alone = encoder.encode_series(dn[None], months, np.array([place]))[0]
    np.testing.assert_allclose(out[0, :, 3, 5], alone, atol=2e-6)


@settings(max_examples=3, deadline=None)
@given(st.sampled_from([5, 7, 12]), st.sampled_from([4, 9, 12]), st.sampled_from([1, 5, 12]))
def test_chunks_change_no_bit(y: int, x: int, time: int) -> None:
    of_model = _cached_model()
    cube = _known.setdefault("cube", cube_of().compute())
    whole = _cached_vectors()
    found = vectors(cube.chunk({"time": time, "y": y, "x": x}), of_model)
    np.testing.assert_array_equal(found, whole)


_known: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _remember(model: Path) -> None:
    _known["model"] = model


def _cached_model() -> Path:
    return _known["model"]  # type: ignore[no-any-return]


def _cached_vectors() -> xr.DataArray:
    if "vectors" not in _known:
        _known["vectors"] = vectors(cube_of(), _known["model"])
    return _known["vectors"]  # type: ignore[no-any-return]


def test_a_window_and_an_order_of_dates_change_no_bit(model: Path) -> None:
    cube = cube_of()
    whole = vectors(cube, model)
    cube = cube.compute()
    np.testing.assert_array_equal(vectors(cube, model), whole)
    window = vectors(cube.isel(y=slice(3, 9), x=slice(2, 11)), model)
    np.testing.assert_array_equal(window, whole[..., 3:9, 2:11])
    np.testing.assert_array_equal(vectors(cube.isel(time=slice(None, None, -1)), model), whole)


def test_months_keep_their_place_where_one_has_no_date(model: Path) -> None:
    cube = cube_of().compute()
    hidden = cube.where(cube["time"].dt.month != 6)
    gap = vectors(cube.isel(time=cube["time"].dt.month.values != 6), model)
    np.testing.assert_array_equal(gap, vectors(hidden, model, units="dn", offset=0))
    assert (gap["count"] == 11).all()
    np.testing.assert_allclose(gap["valid"], 11 / 12)
    # Closed up, the months would be others.
    closed = cube.isel(time=slice(0, 11)).assign_coords(time=cube["time"].values[:11])
    assert not np.array_equal(gap, vectors(closed, model))


def test_periods_are_series_of_their_own(model: Path) -> None:
    cube = cube_of(pd.date_range("2020-01-10", periods=24, freq="30D"), size=6)
    years = vectors(cube, model, "year")
    assert list(years["time"].dt.year.values) == [2020, 2021]
    only = cube.isel(time=cube["time"].dt.year.values == 2021)
    np.testing.assert_array_equal(years[1], vectors(only, model, "year")[0])
    own = vectors(cube, model, [("2020-05", "2020-09"), ("2030", "2030")])
    assert own["dates"].values.tolist()[1] == 0
    assert np.isnan(own[1]).all()
    assert (own["valid"][1] == 0).all()
    assert (own["count"][1] == 0).all()


def test_clouds_are_left_out_and_all_cloud_is_missing(model: Path) -> None:
    cube = cube_of(size=6)
    clouds = xr.zeros_like(cube["B04"], bool)
    clouds[2, :3] = True
    clouds[:, 5, 5] = True
    out = vectors(cube, model, mask=clouds)
    assert (out["count"][0, :3, 0] == 11).all()
    assert np.isnan(out[0, :, 5, 5]).all()
    assert out["valid"][0, 5, 5] == 0
    scl = cube.assign(SCL=xr.where(clouds, 9, 4).astype("uint8").transpose("time", "y", "x"))
    np.testing.assert_array_equal(vectors(scl, model), out)
    assert not np.array_equal(vectors(scl, model, mask=False), out)


def test_units_offsets_and_missing_bands_are_decided_as_by_embed(model: Path) -> None:
    cube = cube_of(size=6)
    expected = vectors(cube, model)
    raw = (cube + 1000).astype("uint16")
    np.testing.assert_array_equal(vectors(raw, model, units="dn", offset=-1000), expected)
    with pytest.raises(AmbiguousUnitsError):
        vectors((cube / 1e4).astype("float32").assign_attrs({}), model, units="dn", offset=0)
    lacking = cube.drop_vars("B8A")
    with pytest.raises(MissingBandsError, match=r'missing="leave_out"') as refused:
        embed_series(lacking, model)
    assert '"mean"' not in str(refused.value)
    without = vectors(lacking, model, missing="leave_out")
    assert np.isfinite(without).all()
    assert not np.array_equal(without, expected)
    near = vectors(lacking, model, missing="nearest")
    np.testing.assert_array_equal(near, vectors(lacking.assign(B8A=lacking["B08"]), model))
    renamed = cube.rename(B08="infrared")
    np.testing.assert_array_equal(vectors(renamed, model, bands={"B08": "infrared"}), expected)


def test_a_cube_of_one_array_is_read_too(model: Path) -> None:
    cube = cube_of(size=6)
    stacked = cube[list(BANDS)].to_dataarray("band").transpose("time", "band", "y", "x").assign_attrs(cube.attrs)
    np.testing.assert_array_equal(vectors(stacked, model, units="dn", offset=0), vectors(cube, model))


def test_a_grid_mapping_that_is_a_variable_is_kept(model: Path) -> None:
    cube = cube_of(size=6)
    mapped = cube.drop_vars("spatial_ref").assign(crs=((), 0, cube["spatial_ref"].attrs))
    for name in BANDS:
        mapped[name].attrs["grid_mapping"] = "crs"
    np.testing.assert_array_equal(vectors(mapped, model), vectors(cube, model))


def test_a_series_is_encoded_alike_whatever_is_beside_it(model: Path) -> None:
    encoder = deo_cube.load_encoder(model, device="cpu")
    rng = np.random.default_rng(0)
    values, place = rng.uniform(200, 4000, (700, 3, 10)), rng.uniform(0, 60, (700, 2))
    values[rng.uniform(size=values.shape) < 0.1] = np.nan
    together = encoder.encode_series(values, [11, 12, 1], place)
    alone = [encoder.encode_series(values[i : i + 1], [11, 12, 1], place[i : i + 1])[0] for i in (0, 341, 699)]
    np.testing.assert_array_equal(alone, together[[0, 341, 699]])
    as_tensor = encoder.encode_series(torch.from_numpy(values), [11, 12, 1], place)
    np.testing.assert_array_equal(as_tensor, together)


def test_models_of_the_other_kind_are_refused_and_the_advice_works(model: Path, tmp_path: Path) -> None:
    cube = cube_of(size=32)
    with pytest.raises(ArgumentError, match="embed_series"):
        deo_cube.embed(cube, model)
    with pytest.raises(ArgumentError, match="embed_series"):
        deo_cube.plan(cube, model)
    with pytest.raises(ArgumentError, match="aggregate"):
        embed_series(cube, "tiny")
    assert deo_cube.aggregate(deo_cube.embed(cube, "tiny"), "year").sizes["time"] == 2
    encoder = deo_cube.load_encoder(model, device="cpu")
    with pytest.raises(ArgumentError, match="encode_series"):
        encoder.encode(np.zeros((1, 10, 8, 8)))
    with pytest.raises(ArgumentError, match="encode"):
        deo_cube.load_encoder("tiny", device="cpu").encode_series(np.zeros((1, 2, 10)), [1, 2], np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"freq": "2YE"}, "freq"),
        ({"freq": None, "how": "mean"}, "how"),
        ({"missing": "mean"}, "missing"),
        ({"bands": ["B02"]}, "bands"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_wrong_arguments_are_named(model: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(Exception, match=named) as refused:
        embed_series(cube_of(size=6), model, **options)
    assert isinstance(refused.value, deo_cube.errors.DeoCubeError)


def test_series_that_are_too_long_are_refused_and_the_advice_works(model: Path) -> None:
    cube = cube_of(pd.date_range("2019-01-10", periods=30, freq="31D"), size=6)
    with pytest.raises(ArgumentError, match="freq='year'"):
        embed_series(cube, model)
    assert embed_series(cube, model, "year").sizes["time"] == 3
    with pytest.raises(ArgumentError, match="time"):
        embed_series(cube.isel(time=0), model)


def test_encode_series_refuses_what_does_not_fit(model: Path) -> None:
    encoder = deo_cube.load_encoder(model, device="cpu")
    values, place = np.full((2, 3, 10), 1000.0), np.zeros((2, 2))
    for months, where, bands in (([1, 2], place, None), ([1, 2, 13], place, None), ([1, 2, 3], place[:1], None)):
        with pytest.raises(ArgumentError):
            encoder.encode_series(values, months, where, bands=bands)
    with pytest.raises(MissingBandsError, match="B01"):
        encoder.encode_series(values[..., :1], [1, 2, 3], place, bands=["B01"])
    with pytest.raises(ArgumentError, match="bands"):
        encoder.encode_series(values[..., :1], [1, 2, 3], place, bands=["B02"])


# Afterwards


def test_a_store_of_series_is_written_opened_and_resumed(model: Path, tmp_path: Path) -> None:
    cube = cube_of()
    emb = embed_series(cube, model, "year")
    stored = emb.deo.to_zarr(tmp_path / "s.zarr", progress=False)
    np.testing.assert_array_equal(stored, emb.compute())
    np.testing.assert_array_equal(stored["count"], emb["count"].compute())
    again = embed_series(cube, model, "year").deo.to_zarr(tmp_path / "s.zarr", progress=False)
    np.testing.assert_array_equal(again, stored)
    with pytest.raises(deo_cube.errors.StoreMismatchError):
        embed_series(cube, model, "year", how="first").deo.to_zarr(tmp_path / "s.zarr", progress=False)
    assert deo_cube.verify_store(tmp_path / "s.zarr").complete
    assert "deo_cube:derived" not in stored.attrs
    doubled = (2 * emb).assign_attrs(emb.attrs).deo.to_zarr(tmp_path / "twice.zarr", progress=False)
    assert doubled.attrs["deo_cube:derived"] == "mul of small_presto embeddings"


def test_heads_and_maps_take_them(model: Path) -> None:
    emb = embed_series(cube_of(), model).compute().isel(time=0)
    labels = xr.DataArray(
        np.where(np.arange(12)[:, None] < 6, 0, 1) * np.ones((1, 12), int),
        dims=("y", "x"),
        coords={"y": emb["y"], "x": emb["x"]},
    ).assign_coords(spatial_ref=emb["spatial_ref"])
    head = deo_cube.fit_head("knn", emb, labels)
    assert head.predict(emb).shape == (12, 12)


def test_the_card_is_a_series_card() -> None:
    cards = {c.alias: c for c in map(card, deo_cube.list_models()["alias"])}
    assert [alias for alias, c in cards.items() if c.series] == ["presto"]
    assert isinstance(cards["presto"], ModelCard)


def test_a_store_that_failed_before_its_first_block_takes_the_mended_call(model: Path, tmp_path: Path) -> None:
    cube = cube_of(size=6)
    marked = cube.where(cube["time"] != cube["time"][1], 65535).astype("uint16").assign_attrs(cube.attrs)
    with pytest.raises(AmbiguousUnitsError, match="nodata=65535") as refused:
        embed_series(marked, model, units="dn", offset=0).deo.to_zarr(tmp_path / "s.zarr", progress=False)
    assert "overwrite=True" in "".join(refused.value.__notes__)
    mended = embed_series(marked, model, units="dn", offset=0, nodata=65535)
    stored = mended.deo.to_zarr(tmp_path / "s.zarr", progress=False, overwrite=True)
    assert (stored["count"] == 11).all()
