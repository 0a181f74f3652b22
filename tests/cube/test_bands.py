import json
import pickle
import re

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


def test_labels_without_a_name_are_refused():
    with pytest.raises(MissingBandsError, match=r"assign_coords\(band="):
        match_bands(stack([1, 2, 3]), ["B02"])
    with pytest.raises(MissingBandsError, match="assign_coords"):
        match_bands(stack(None, dummy=[0, 0, 0]), ["B02"])


#: How writers of files number what has no name: GDAL's netCDF, rioxarray, ENVI, terra, exports of Earth Engine.
COUNTERS = [
    *("Band{}", "Band {}", "band_{}", "band-{}", "BAND {}", "B{}", "b{}", "b_{}", "S2_B{}", "band{:02d}", "Band {}: "),
    *("L2A_band_{}", "B{}_10m", "reflectance_band_{}"),
]


@given(
    st.sampled_from(COUNTERS),
    st.integers(0, 1),
    st.integers(1, 13).flatmap(lambda n: st.permutations(range(n))),
    st.sampled_from(["variables", "labels", "descriptions", "titles"]),
    st.booleans(),
)
def test_no_permutation_of_positions_is_ever_matched(counter, first, order, where, with_scl):
    """Names that count positions feed no band, wherever they are, in any order, beside other variables or not."""
    names = [counter.format(first + i) for i in order]
    names += ["SCL"] if with_scl else []
    plain = [f"q{i}" for i in range(len(names))]
    cube = {
        "variables": lambda: dataset(names),
        "labels": lambda: stack(names),
        "descriptions": lambda: stack(list(range(1, len(names) + 1)), attrs={"long_name": tuple(names)}),
        "titles": lambda: dataset(plain, **{p: {"long_name": n} for p, n in zip(plain, names, strict=True)}),
    }[where]()
    with pytest.raises(MissingBandsError) as error:
        match_bands(cube, TEN, missing="mean")
    proposed = re.findall(r'"(B\d\w)": "([^"]+)"', str(error.value))
    assert not {label for _, label in proposed} & {*names, *plain}, str(error.value)


@given(st.integers(3, 12).flatmap(lambda n: st.permutations(range(1, n + 1))), st.data())
def test_a_part_of_numbered_words_is_refused_too(order, data):
    kept = data.draw(st.lists(st.sampled_from(order), min_size=1, unique=True))
    with pytest.raises(MissingBandsError, match="rename"):
        match_bands(dataset([f"Band{i}" for i in kept]), ["B02"], missing="mean")


def test_gdal_numbers_variables_by_position():
    four = {f"Band{i}": {"long_name": f"GDAL Band Number {i}"} for i in range(1, 5)}
    with pytest.raises(MissingBandsError, match="Band1, Band2, Band3, Band4 ") as error:
        match_bands(dataset([*four], **four), ["B04", "B03", "B02"])
    assert 'ds.rename({"Band1": "B.."' in str(error.value)
    # The advice, followed with what the producer knows:
    named = dataset([*four], **four).rename(Band1="B02", Band2="B03", Band3="B04", Band4="B08")
    assert match_bands(named, ["B04", "B03", "B02"]).variables == ("B04", "B03", "B02")
    by_argument = match_bands(dataset([*four], **four), ["B03"], given={"B03": "Band2"})
    assert by_argument.variables == ("Band2",)


@pytest.mark.parametrize(
    "names",
    [
        *(["B1", "B2", "B3", "B4", "B8A"], ["B2", "B3", "B4"], ["B2", "B3", "B4", "B8"], ["B01", "B02", "B03", "B04"]),
        *(["band_1", "band_2", "band_3", "band_4", "band_8A"], ["B1", "B2", "B3", "B4", "B11"]),
        *(["Aerosol (band 1)", "Blue (band 2)", "Green (band 3)", "Red (band 4)"], ["S2-L2A-B02", "S2-L2A-B03"]),
        *(["B02_10m", "B03_10m", "B04_10m"], ["B10", "B11", "B12", "B02"]),
    ],
)
def test_real_designations_stay_names(names):
    assert match_bands(dataset(names), ["B02"]).variables[0] in names


def test_what_lies_beside_a_position_names_the_band():
    counted = ["B1", "B2", "B3"]
    common = {n: {"common_name": c} for n, c in zip(counted, ["red", "green", "blue"], strict=True)}
    assert match_bands(dataset(counted, **common), ["B04", "B03", "B02"]).variables == ("B1", "B2", "B3")
    titled = {n: {"long_name": c} for n, c in zip(counted, ["B8A", "B11", "B12"], strict=True)}
    assert match_bands(dataset(counted, **titled), ["B8A", "B11"]).variables == ("B1", "B2")
    waves = {n: {"wavelength": w} for n, w in zip(counted, [443.0, 490.0, 560.0], strict=True)}
    assert match_bands(dataset(counted, **waves), ["B02", "B03"]).variables == ("B2", "B3")
    waves = {n: {"wavelength": w} for n, w in zip(counted, [490.0, 560.0, 665.0], strict=True)}
    assert match_bands(dataset(counted, **waves), ["B02", "B03"], wavelength=True).variables == ("B1", "B2")


def test_descriptions_of_a_raster_name_its_bands():
    match = match_bands(stack([1, 2, 3], attrs={"long_name": ("B04", "B8A", "SCL")}), ["B8A", "B04"])
    assert (match.variables, match.indices, match.scl_index) == (("2", "1"), (1, 0), 2)
    assert match_bands(stack([1], attrs={"long_name": "B04"}), ["B04"]).indices == (0,)
    named = {"band_1": {"long_name": "B04"}, "band_2": {"long_name": "B03"}}
    assert match_bands(dataset(["band_1", "band_2"], **named), ["B03", "B04"]).variables == ("band_2", "band_1")
    with pytest.raises(MissingBandsError, match="called B02 and B03 at once"):
        match_bands(dataset(["B02", "other"], B02={"long_name": "B03"}), ["B03"])


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


L30 = dict(
    B01="Coastal_Aerosol",
    B02="Blue",
    B03="Green",
    B04="Red",
    B05="NIR",
    B06="SWIR1",
    B07="SWIR2",
    B09="Cirrus",
    B10="TIRS1",
    B11="TIRS2",
)


def test_designations_of_another_sensor_feed_nothing():
    titled = dataset([*L30], **{b: {"long_name": v} for b, v in L30.items()})
    match = match_bands(titled, TEN, missing="mean")
    assert match.variables == ("B04", "B03", "B02", *[None] * 7)
    with pytest.raises(MissingBandsError) as error:
        match_bands(titled, TEN)
    assert set(re.findall(r'"B\w+": "([^"]+)"', str(error.value))) == {"..."}
    # Without titles, the sensor's name in the metadata.
    for attrs in ({"SENSOR": "OLI_TIRS"}, {"platform": "landsat-8"}, {"id": "HLS.L30.T32TMT.2021152T101659.v2.0"}):
        with pytest.raises(MissingBandsError, match="name as the sensor"):
            match_bands(dataset([*L30]).assign_attrs(attrs), ["B05"], missing="mean")
    ours = {"platform": "sentinel-2a", "instruments": ["msi"], "collection": "sentinel-2-l2a", "SENSOR": {"msi"}}
    assert match_bands(dataset(TEN).assign_attrs(ours), TEN).variables == TEN
    # Its colours are colours.
    assert match_bands(dataset(["red", "green"]).assign_attrs(platform="landsat-8"), ["B04"]).variables == ("red",)


def test_one_odd_title_leaves_the_other_bands_alone():
    match = match_bands(dataset(TEN, B05={"long_name": "B06"}), ["B04", "B03", "B02"])
    assert match.variables == ("B04", "B03", "B02")


def test_force_calls_b8a_nir_beside_broadnir():
    force = ["BLUE", "GREEN", "RED", "REDEDGE1", "REDEDGE2", "REDEDGE3", "BROADNIR", "NIR", "SWIR1", "SWIR2"]
    match = match_bands(dataset(force), TEN)
    assert match.variables == ("RED", "GREEN", "BLUE", *force[3:])
    assert match_bands(dataset(force), TEN, given={"B08": "BROADNIR"}).variables == match.variables
    assert match_bands(dataset(["nir", "red"]), ["B08"]).variables == ("nir",)


@pytest.mark.parametrize("place", ["long_name", "title", "variables"])
def test_names_that_depend_on_their_neighbours_are_read_wherever_they_are_written(place):
    """In a GeoTIFF the labels are positions and the names are descriptions."""

    def cube(names):
        if place == "long_name":
            return stack(list(range(1, len(names) + 1)), attrs={"long_name": tuple(names)})
        if place == "title":
            return stack(list(range(1, len(names) + 1)), title=names)
        return dataset([f"band_{i}" for i in range(1, len(names) + 1)], **{
            f"band_{i}": {"long_name": n} for i, n in enumerate(names, 1)
        })  # fmt: skip

    force = ["BLUE", "GREEN", "RED", "REDEDGE1", "REDEDGE2", "REDEDGE3", "BROADNIR", "NIR", "SWIR1", "SWIR2"]
    found = match_bands(cube(force), TEN)
    assert [re.sub("band_", "", v) for v in found.variables] == ["3", "2", "1", *map(str, range(4, 11))]

    # In Digital Earth Australia swir_2 is B11: as B12 it would be wrong without a word.
    australia = ["blue", "green", "red", "swir_2", "swir_3"]
    swir = cube(australia)
    with pytest.raises(MissingBandsError, match=r'bands=\{"B11": "(band_)?4", "B12": "(band_)?5"\}'):
        match_bands(swir, ["B04", "B11", "B12"])
    assert match_bands(swir, ["B04", "B12"], missing="mean").variables[1] is None


def test_numbers_as_names_of_variables_are_refused_with_the_call_that_names_them():
    """A GeoTIFF's bands are numbered, and to_dataset makes variables called 1, 2, ... of them."""
    numbered = stack([1, 2]).to_dataset("band")
    with pytest.raises(MissingBandsError, match=r'ds\.rename\(\{1: "B\.\.", 2: "B\.\."\}\)'):
        match_bands(numbered, ["B04"], missing="mean")
    with pytest.raises(MissingBandsError, match="names of variables must be text"):
        numbered.deo.embed()
    assert match_bands(numbered.rename({1: "B04", 2: "B03"}), ["B03", "B04"]).variables == ("B03", "B04")


def test_bands_of_another_stem_are_offered_where_they_are_all_there():
    rgb = ("B04", "B03", "B02")
    with pytest.raises(MissingBandsError, match=r'bands=\["B04", "B03", "B02"\]'):
        match_bands(dataset(rgb), TEN, alternatives=[TEN, rgb])
    with pytest.raises(MissingBandsError) as error:
        match_bands(dataset(rgb[:2]), TEN, alternatives=[TEN, rgb])
    assert "bands=[" not in str(error.value)


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
    assert "vitb expects B02, B08, B11; the cube lacks B11" in text  # b_08 is B08
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
    with pytest.raises(MissingBandsError, match="expects B02"):
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
    with pytest.raises(MissingBandsError, match="not bands of Sentinel-2"):
        match_bands(dataset(["B02"]), ["VV"])
    with pytest.raises(ValueError, match="missing must be"):
        match_bands(dataset(["B02"]), ["B02"], missing="zero")


@pytest.mark.parametrize("name", ["SCENE_CLASSIFICATION", "scene_classification", "quality_scene_classification"])
def test_a_scene_classification_by_its_long_name(name):
    assert match_bands(dataset(["B02", name]), ["B02"]).scl == name


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
    with pytest.raises(ValueError, match="variables"):
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
