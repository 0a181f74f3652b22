"""`plot` draws what an array is: classes in their colours, vectors as PCA, numbers with a bar; north up, to scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

import deo_cube
from deo_cube.cube import georeference
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.plot import _north, _round_length, plot

plt = pytest.importorskip("matplotlib.pyplot")
plt.switch_backend("Agg")

BOX = GeoBox.from_bbox((500000, 5000000, 500000 + 10 * 60, 5000000 + 10 * 40), "EPSG:32633", resolution=10)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def placed(values: np.ndarray, dims: tuple[str, ...], box: GeoBox = BOX, **more: object) -> xr.DataArray:
    array: xr.DataArray = georeference.assign_grid(xr.DataArray(values, dims=dims, **more), box)
    return array


def classes(times: int = 1) -> xr.DataArray:
    codes = np.full((times, 40, 60), 255, "uint8")
    codes[:, :20], codes[:, 20:, :30] = 1, 4
    array = placed(codes, ("time", "y", "x"), name="class", coords={"time": pd.date_range("2024-05-01", periods=times)})
    flags = {"flag_values": np.array([1, 2, 4], "uint8"), "flag_meanings": "open_water bare crops"}
    return array.assign_attrs(flags | {"flag_colors": "#1f78b4 #a6761d #e6ab02", "_FillValue": np.uint8(255)})


def test_classes_have_their_colours_and_a_legend_of_those_present() -> None:
    ax = classes().deo.plot()
    picture = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(picture[0, 0] * 255, [0x1F, 0x78, 0xB4, 255], atol=1e-3)
    np.testing.assert_allclose(picture[-1, 0] * 255, [0xE6, 0xAB, 0x02, 255], atol=1e-3)
    assert picture[-1, -1, 3] == 0
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["open water", "crops"]
    assert ax.get_title() == "2024-05-01"
    assert ax.images[0].get_extent() == [500000, 500600, 5000000, 5000400]


def test_a_south_up_map_is_drawn_north_up() -> None:
    values = np.arange(40 * 60, dtype="float32").reshape(40, 60)
    up, down = (plot(placed(values, ("y", "x"), box)) for box in (BOX, BOX.flipy()))
    assert up.images[0].get_extent() == [500000, 500600, 5000000, 5000400]
    assert down.images[0].get_extent() == [500000, 500600, 5000400, 5000000]
    assert down.get_ylim() == (5000400, 5000000) or down.yaxis_inverted() is False


def test_several_dates_are_panels_of_one_range() -> None:
    values = np.stack([np.zeros((40, 60)), np.full((40, 60), 5.0), np.full((40, 60), 2.0)])
    array = placed(values, ("time", "y", "x"), coords={"time": pd.date_range("2024-05-01", periods=3)})
    axes = plot(array)
    assert len(axes) == 3
    assert len({a.images[0].get_clim() for a in axes}) == 1
    assert [a.get_title() for a in axes] == ["2024-05-01", "2024-05-02", "2024-05-03"]
    assert plot(array, time="2024-05-02").get_title() == "2024-05-02"


@pytest.mark.parametrize("form", ["Dataset", "DataArray", "three bands in another order", "t, bands"])
def test_a_cube_is_drawn_in_true_colour(form: str) -> None:
    ds = deo_cube.synthetic_cube(size=64, times=2, clouds=False, gaps=False)
    ds["B04"][0, :8] = ds["B03"][0, :8] = ds["B02"][0, :8] = 0  # no data
    bands = ds[["B02", "B03", "B04", "B08", "B12"]]
    cube = {
        "Dataset": ds,
        "DataArray": bands.to_dataarray("band"),
        "three bands in another order": ds[["B02", "B03", "B04"]].to_dataarray("band"),
        "t, bands": bands.rename(time="t").to_dataarray("bands"),
    }[form]
    picture = np.asarray(cube.deo.plot()[0].images[0].get_array())
    rgb = ds[["B04", "B03", "B02"]].to_dataarray("band").transpose("time", "y", "x", "band").values.astype("float64")
    seen = rgb[(rgb > 0).any(axis=-1)]
    low, high = np.percentile(seen, [2, 98])
    np.testing.assert_allclose(picture[8:, :, :3], ((rgb[0, 8:] - low) / (high - low)).clip(0, 1), atol=1e-4)
    assert (picture[:8, :, 3] == 0).all()
    assert (picture[8:, :, 3] == 1).all()


def test_clouds_do_not_decide_the_range_of_true_colour() -> None:
    ds = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False, chunks=None)
    cloudy = ds.copy(deep=True)
    for band in ("B02", "B03", "B04"):
        cloudy[band][0, 20:] = 9000
    cloudy["SCL"][0, 20:] = 9
    clear, hidden = (
        np.asarray(c.deo.plot().images[0].get_array())[:20, :, :3] for c in (ds.isel(y=slice(0, 20)), cloudy)
    )
    np.testing.assert_allclose(hidden, clear, atol=1e-6)


def test_the_range_of_true_colour_is_an_argument_in_units_of_the_cube() -> None:
    ds = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    picture = np.asarray(ds.deo.plot(vmin=0, vmax=3000).images[0].get_array())
    np.testing.assert_allclose(picture[..., 0], (ds.B04.isel(time=0).values / 3000).clip(0, 1), atol=1e-5)


def test_colours_that_are_scaled_already_are_drawn_as_they_are() -> None:
    ds = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    colours = (ds[["B04", "B03", "B02"]].isel(time=0).to_dataarray("band") / 2500).clip(0, 1)
    picture = np.asarray(colours.deo.plot().images[0].get_array())
    np.testing.assert_allclose(picture[..., :3], colours.transpose("y", "x", "band").values, atol=1e-6)


def test_embeddings_are_drawn_in_the_colours_of_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    emb = deo_cube.synthetic_cube(size=128, times=1).deo.embed()
    ax = emb.deo.plot()
    rgb = emb.deo.pca_rgb().isel(time=0).transpose("y", "x", "band").values
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array())[..., :3], np.nan_to_num(rgb), atol=1e-6)
    assert "tiny" in ax.get_title()


def test_probabilities_show_the_most_probable_class() -> None:
    p = np.zeros((2, 40, 60), "float32")
    p[0, :, :20], p[1, :, :20] = 0.9, 0.1
    p[0, :, 20:], p[1, :, 20:] = 0.3, 0.7
    p[:, 0, 0] = np.nan
    array = placed(p, ("class", "y", "x"), coords={"class": ["water", "forest"]})
    ax = plot(array)
    picture = np.asarray(ax.images[0].get_array())
    assert picture[0, 0, 3] == 0
    assert picture[5, 5, 3] == pytest.approx(0.9)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["water", "forest"]


@pytest.mark.parametrize(("metres", "length"), [(1, 1), (4.9, 2), (5, 5), (999, 500), (1000, 1000), (73000, 50000)])
def test_scale_bars_have_round_lengths(metres: float, length: float) -> None:
    assert _round_length(metres) == length


def test_north_is_true_north_and_the_bar_is_to_scale() -> None:
    east, north = _north(BOX)
    assert north > 0.999
    assert abs(east) < 0.03
    turned = GeoBox.from_bbox((-10e5, -30e5, -9e5, -29e5), "EPSG:3031", resolution=1000)
    # In polar stereographic, north points away from the South Pole, which is the origin.
    expected = np.array([-9.5e5, -29.5e5]) / np.hypot(9.5e5, 29.5e5)
    np.testing.assert_allclose(_north(turned), expected, atol=1e-3)
    ax = plot(placed(np.zeros((40, 60)), ("y", "x")))
    bar = next(a for a in ax.artists if hasattr(a, "size_bar"))
    assert bar.size_bar.get_children()[0].get_width() == pytest.approx(100, rel=1e-3)
    assert bar.txt_label.get_text() == "100 m"


def test_large_maps_are_thinned_and_no_class_is_invented() -> None:
    codes = np.random.default_rng(0).choice(np.array([1, 4], "uint8"), (3300, 20))
    box = GeoBox.from_bbox((500000, 5000000, 500200, 5033000), "EPSG:32633", resolution=10)
    large = placed(codes, ("y", "x"), box).assign_attrs(classes().attrs)
    ax = plot(large)
    assert np.asarray(ax.images[0].get_array()).shape[0] == 1100
    assert len({tuple(c) for c in np.asarray(ax.images[0].get_array()).reshape(-1, 4)}) == 2


def test_an_array_without_a_place_is_drawn_without_a_scale() -> None:
    ax = plot(xr.DataArray(np.zeros((4, 5)), dims=("y", "x")))
    assert not ax.artists


def test_wrong_inputs() -> None:
    with pytest.raises(ArgumentTypeError, match="array"):
        plot(np.zeros((3, 3)))  # type: ignore[arg-type]
    many = placed(
        np.zeros((17, 4, 6)), ("time", "y", "x"), GeoBox.from_bbox((0, 0, 60, 40), "EPSG:32633", resolution=10)
    )
    with pytest.raises(ArgumentError, match="time="):
        plot(many)
    with pytest.raises(ArgumentError, match="ax"):
        plot(classes(2), ax=plt.subplots()[1])
    plot(classes(2), time="2024-05-02", ax=plt.subplots()[1])  # the advice
    with pytest.raises(ArgumentError, match="2024-05-01"):
        plot(classes(2), time="2025")
    with pytest.raises(ArgumentError, match="band"):
        plot(placed(np.zeros((5, 40, 60)), ("band", "y", "x")))


def test_a_class_map_says_that_it_is_one() -> None:
    text, html = repr(classes().deo), classes().deo._repr_html_()
    for shown in (text, html):
        assert "map of 3 classes" in shown
        assert "open_water" in shown
        assert "EPSG:32633" in shown
    assert "#1f78b4" in html
