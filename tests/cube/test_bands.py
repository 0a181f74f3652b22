import json
import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.cube.bands import BandMatch, match_bands
from deo_cube.cube.sentinel2 import SENTINEL2
from deo_cube.errors import MissingBandsError

TEN = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
KEYS = dict(zip(TEN, "red green blue rededge1 rededge2 rededge3 nir nir08 swir16 swir22".split(), strict=True))


def dataset(names, **attrs):
    """A cube with a variable a name; `attrs` gives each variable's attributes by name."""
    grid = np.zeros((2, 3), "uint16")
    return xr.Dataset({n: (("y", "x"), grid, attrs.get(n, {})) for n in names}, {"y": [1.0, 0.0], "x": [0.0, 1, 2]})


def stack(labels, dim="band", attrs=None, **coords):
    n = len(labels) if labels is not None else len(next(iter(coords.values())))
    array = xr.DataArray(np.zeros((n, 2, 3), "uint16"), dims=(dim, "y", "x"), attrs=attrs or {})
    array = array.assign_coords(y=[1.0, 0.0], x=[0.0, 1, 2])
    if labels is not None:
        array = array.assign_coords({dim: labels})
    return array.assign_coords({k: (dim, v) for k, v in coords.items()})


@given(st.permutations([*SENTINEL2, "SCL", "land_cover"]), st.permutations(TEN))
def test_order_of_variables_never_matters(names, wanted):
    match = match_bands(dataset(names), wanted)
    assert match.variables == tuple(wanted) == match.bands
    assert set(match.how) == {"name"}
    assert match.scl == "SCL"


@given(st.permutations(list(SENTINEL2)), st.permutations(TEN))
def test_order_along_a_band_dimension_never_matters(labels, wanted):
    match = match_bands(stack(labels), wanted)
    assert [labels[i] for i in match.indices] == list(wanted)
    assert match.band_dim == "band"


@pytest.mark.parametrize("dim", ["band", "bands", "channel"])
def test_band_dimensions_by_any_name(dim):
    match = match_bands(stack(["B03", "scl", "B02"], dim), ["B02", "B03"])
    assert (match.band_dim, match.indices, match.scl, match.scl_index) == (dim, (2, 0), "scl", 1)


def test_catalogue_keys_are_aliases():
    match = match_bands(dataset([*KEYS.values(), "scl"]), TEN)
    assert match.variables == tuple(KEYS.values())
    assert set(match.how) == {"alias"}


def test_a_bare_designation_beats_a_word():
    assert match_bands(dataset(["B02", "blue"]), ["B02"]).variables == ("B02",)


def test_the_argument_beats_all_names():
    match = match_bands(dataset(["B02", "my blue", "mask"]), ["B02"], given={"blue": "my blue", "SCL": "mask"})
    assert (match.variables, match.how, match.scl) == (("my blue",), ("given",), "mask")
    # What was given away is no longer what its name says.
    with pytest.raises(MissingBandsError, match="lacks B03"):
        match_bands(dataset(["B02", "B03"]), ["B02", "B03"], given={"B02": "B03"})


@pytest.mark.parametrize(
    ("given", "message"),
    [({"B02": "nope"}, "not in the cube: it has B02, B03"), ({"B11": "B02"}, "takes B02"), ({"x": "B02"}, "names 'x'")],
)
def test_an_argument_that_fits_nothing_is_refused(given, message):
    with pytest.raises(MissingBandsError, match=message):
        match_bands(dataset(["B02", "B03"]), ["B02"], given=given)


def test_two_claims_on_a_par_are_refused():
    with pytest.raises(MissingBandsError, match=r"'B2' or 'b02'.*bands=\{\"B02\": \"B2\"\}") as error:
        match_bands(dataset(["B2", "b02", "B03"]), ["B03", "B02"])
    assert isinstance(error.value, KeyError)
    with pytest.raises(MissingBandsError, match="B02_10m"):
        match_bands(dataset(["B02_10m", "B02_20m"]), ["B02"])


def test_positions_are_never_names():
    with pytest.raises(MissingBandsError, match=r"mere positions.*\n?.*assign_coords\(band="):
        match_bands(stack([1, 2, 3]), ["B02"])
    with pytest.raises(MissingBandsError, match="mere positions"):
        match_bands(stack(None, dummy=[0, 0, 0]), ["B02"])
    # rioxarray.open_rasterio(band_as_variable=True)
    with pytest.raises(MissingBandsError, match="mere positions"):
        match_bands(dataset(["band_1", "band_2", "band_3"]), ["B02"])
    assert match_bands(dataset(["band_2", "band_8A"]), ["B02", "B8A"]).variables == ("band_2", "band_8A")


def test_descriptions_of_a_raster_name_its_bands():
    match = match_bands(stack([1, 2, 3], attrs={"long_name": ("B04", "B8A", "SCL")}), ["B8A", "B04"])
    assert (match.variables, match.indices, match.scl_index) == (("2", "1"), (1, 0), 2)
    assert match_bands(stack([1], attrs={"long_name": "B04"}), ["B04"]).indices == (0,)
    named = {"band_1": {"long_name": "B04"}, "band_2": {"long_name": "B03"}}
    assert match_bands(dataset(["band_1", "band_2"], **named), ["B03", "B04"]).variables == ("band_2", "band_1")
    with pytest.raises(MissingBandsError, match="called B02 and B03 at once"):
        match_bands(dataset(["band_2", "other"], band_2={"long_name": "B03"}), ["B03"])


def test_stackstac_coordinates_name_the_bands():
    cube = stack(["a", "b", "c"], common_name=["red", None, "nir08"], title=["", "Green (band 3) - 10m", ""])
    match = match_bands(cube, ["B8A", "B03", "B04"])
    assert match.indices == (2, 1, 0)
    assert match.how == ("common_name", "alias", "common_name")


def test_rededge_alone_names_no_band_and_a_wavelength_tells_which():
    names = ["a", "b", "c", "d"]
    waves = [0.783, 0.704, 0.74, 0.865]
    common = {n: {"common_name": "rededge"} for n in names}
    with pytest.raises(MissingBandsError, match="which B05, B06, B07 and B8A share"):
        match_bands(dataset(names, **common), ["B05"])
    full = {n: {"eo:common_name": "rededge", "center_wavelength": w} for n, w in zip(names, waves, strict=True)}
    match = match_bands(dataset(names, **full), ["B05", "B06", "B07", "B8A"])
    assert match.variables == ("b", "c", "a", "d")


def test_nir_twice_is_told_apart_by_wavelength_or_refused():
    both = {n: {"common_name": "nir"} for n in "ab"}
    with pytest.raises(MissingBandsError, match="'a' or 'b', both by common_name"):
        match_bands(dataset("ab", **both), ["B08"])
    both["a"]["center_wavelength"], both["b"]["center_wavelength"] = 0.865, 0.842
    assert match_bands(dataset("ab", **both), ["B08", "B8A"]).variables == ("b", "a")


def test_another_sensor_is_not_matched_by_its_band_numbers():
    landsat = {"B5": {"common_name": "nir08", "center_wavelength": 0.865}, "B6": {"center_wavelength": 1.609}}
    with pytest.raises(MissingBandsError, match="centred at 865 nm, so it is not Sentinel-2's B05"):
        match_bands(dataset(["B5", "B6"], **landsat), ["B05", "B06"])
    with pytest.raises(MissingBandsError, match="has the common name nir08"):
        match_bands(dataset(["B5"], B5={"common_name": "nir08"}), ["B05"])
    with pytest.raises(MissingBandsError, match="beside a swir_3"):
        match_bands(dataset(["swir_2", "swir_3"]), ["B12"])


def test_wavelengths_alone_count_only_where_asked():
    cube = dataset("ab", a={"wavelength": 842.0}, b={"wavelength": "0.49 um"})
    with pytest.raises(MissingBandsError):
        match_bands(cube, ["B08"])
    match = match_bands(cube, ["B08", "B02"], wavelength=True)
    assert (match.variables, set(match.how)) == (("a", "b"), {"wavelength"})
    with pytest.raises(MissingBandsError):
        match_bands(dataset("a", a={"wavelength": 620.0}), ["B04"], wavelength=True)


def test_missing_bands_are_listed_with_what_mends_them():
    with pytest.raises(MissingBandsError) as error:
        match_bands(dataset(["B02", "B8A", "b_08", "land"]), ["B02", "B08", "B11"], model="vitb")
    text = str(error.value)
    assert "vitb wants B02, B08, B11; the cube lacks B11" in text  # b_08 is B08
    with pytest.raises(MissingBandsError) as error:
        match_bands(dataset(["B02", "B8A", "swir_16a"]), ["B02", "B08", "B11"], model="vitb")
    text = str(error.value)
    for part in (
        "lacks B08, B11",
        "Found: B02, B8A, swir_16a",
        "'B8A' (B8A, 32 nm away): missing=\"nearest\"",
        '"B11": "swir_16a"',
    ):
        assert part in text
    with pytest.raises(MissingBandsError, match="wants B02"):
        match_bands(dataset([]).assign_coords(y=[0.0], x=[0.0]).assign(q=(("y", "x"), [[0]])), ["B02"])


@given(st.sampled_from(TEN))
def test_nearest_stands_in_for_the_two_nir_bands_only(lost):
    cube = dataset([b for b in SENTINEL2 if b != lost])
    if lost in ("B08", "B8A"):
        match = match_bands(cube, TEN, missing="nearest")
        assert match.variables[TEN.index(lost)] == {"B08": "B8A", "B8A": "B08"}[lost]
        assert match.how[TEN.index(lost)] == "nearest"
    else:
        with pytest.raises(MissingBandsError, match=f"lacks {lost}"):
            match_bands(cube, TEN, missing="nearest")
    filled = match_bands(cube, TEN, missing="mean")
    assert filled.variables[TEN.index(lost)] is None
    assert filled.how[TEN.index(lost)] == "mean"


def test_a_cube_without_any_band_is_refused_even_where_gaps_are_filled():
    with pytest.raises(MissingBandsError):
        match_bands(dataset(["land_cover"]), TEN, missing="mean")


def test_shapes_that_are_no_cube_of_bands_are_refused():
    with pytest.raises(MissingBandsError, match="needs a band dimension"):
        match_bands(dataset(["B02"])["B02"], ["B02"])
    with pytest.raises(MissingBandsError, match=r"pass that variable, ds\['refl'\]"):
        match_bands(stack(["B02"]).to_dataset(name="refl"), ["B02"])
    with pytest.raises(MissingBandsError, match="no bands of Sentinel-2"):
        match_bands(dataset(["B02"]), ["VV"])
    with pytest.raises(ValueError, match="missing must be"):
        match_bands(dataset(["B02"]), ["B02"], missing="zero")


def test_two_scene_classifications_are_refused():
    assert match_bands(dataset(["B02", "SCL_20m"]), ["B02"]).scl == "SCL_20m"
    assert match_bands(dataset(["B02", "SCL", "SCL_20m"]), ["B02"]).scl == "SCL"
    with pytest.raises(MissingBandsError, match="scene classification may be"):
        match_bands(dataset(["B02", "SCL_20m", "SCL_60m"]), ["B02"])


def test_a_match_is_plain_data():
    from dask.base import tokenize

    match = match_bands(dataset(["blue", "B8A"]), ["B02", "B08", "B11"], model="m", missing="mean")
    assert json.loads(json.dumps(match.to_attrs()))["bands"]["B02"] == {"variable": "blue", "how": "alias"}
    assert repr(match) == (
        "<BandMatch for m: B02 from 'blue' (alias), B08 is missing and filled with the training mean, "
        "B11 is missing and filled with the training mean; no scene classification>"
    )
    again = pickle.loads(pickle.dumps(match))
    assert again == match
    assert tokenize(again) == tokenize(match)
    other = match_bands(dataset(["B02", "B8A"]), ["B02", "B08", "B11"], model="m", missing="mean")
    assert tokenize(other) != tokenize(match)
    with pytest.raises(ValueError, match="do not fit"):
        BandMatch("m", ("B02",), (), ())
    with pytest.raises(ValueError, match="cannot be matched"):
        BandMatch("m", ("B02",), (None,), ("name",))


@pytest.mark.real
def test_belgium_has_no_b8a_and_is_matched_by_its_own_names(shared):
    with xr.open_dataset(shared / "data/cubes/belgium_monthly_2020-11_2021-10.nc") as cube:
        with pytest.raises(MissingBandsError, match="lacks B8A") as error:
            match_bands(cube, TEN)
        assert "'S2-L2A-B08' (B08, 32 nm away)" in str(error.value)
        match = match_bands(cube, TEN, missing="nearest")
    assert match.variables == tuple("S2-L2A-" + ("B08" if b == "B8A" else b) for b in TEN)
    assert match.scl is None


@pytest.mark.real
def test_band_descriptions_of_real_rasters(shared):
    import rioxarray

    tile = rioxarray.open_rasterio(shared / "data/landcover_terramesh/38D_378R_2_3/S2L2A.tif")
    match = match_bands(tile, TEN)
    names = tile.attrs["long_name"]
    assert tuple(names[i] for i in match.indices) == TEN
    with rioxarray.open_rasterio(shared / "data/scenes/southtyrol_20220612_L2A.tif") as scene:
        match = match_bands(scene, ("B04", "B03", "B02"))
    assert (match.indices, match.scl_index) == ((0, 1, 2), 4)
    with rioxarray.open_rasterio(shared / "data/scenes/austria_two_windows_rgbn.tif") as two_seasons:
        with pytest.raises(MissingBandsError, match="A_B04"):
            match_bands(two_seasons, ("B04", "B03", "B02"))


def test_labels_of_bytes_are_read():
    assert match_bands(stack(np.array(["B03", "B02"], "S3")), ["B02", "B03"]).indices == (1, 0)


def test_a_label_that_occurs_twice_says_where():
    with pytest.raises(MissingBandsError, match="at positions 0 and 2"):
        match_bands(stack(["B02", "B03", "B02"]), ["B02", "B03"])


def test_the_mend_for_digital_earth_australia_is_the_right_way_round():
    with pytest.raises(MissingBandsError) as told:
        match_bands(dataset(["nbart_blue", "swir_2", "swir_3"]), ["B11", "B12"])
    assert '"B11": "swir_2", "B12": "swir_3"' in str(told.value)
