import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.cube.sentinel2 import SENTINEL2, band_of_name, bands_of_common_name, level_of

NUMBERS = {name: name[1:].lstrip("0") for name in SENTINEL2}


def test_the_table_is_the_instrument():
    assert list(SENTINEL2) == "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12".split()
    waves = [b.wavelength for b in SENTINEL2.values()]
    assert waves == sorted(waves)
    assert {b.name for b in SENTINEL2.values() if b.gsd == 10} == {"B02", "B03", "B04", "B08"}
    assert {b.name for b in SENTINEL2.values() if b.gsd == 60} == {"B01", "B09", "B10"}
    assert [a for b in SENTINEL2.values() for a in b.aliases] == list(
        dict.fromkeys(a for b in SENTINEL2.values() for a in b.aliases)
    )


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("B02", "B02"),
        ("b2", "B02"),
        ("band_2", "B02"),
        ("B02_10m", "B02"),
        ("S2-L2A-B02", "B02"),
        ("sentinel2 B02", "B02"),
        ("Sentinel-2 B8A", "B8A"),
        ("T32TMT_20220305T102921_B02_10m", "B02"),
        ("Blue (band 2) - 10m", "B02"),
        ("NIR 2 (band 8A) - 20m", "B8A"),
        ("Band 8A - Vegetation red edge 4 - 20m", "B8A"),
        ("SWIR 1 (band 11) - 20m", "B11"),
        ("Band 12 - SWIR (2.2) - 20m", "B12"),
        ("rededge1", "B05"),
        ("red_edge_2", "B06"),
        ("Red Edge 3", "B07"),
        ("nir", "B08"),
        ("nir08", "B8A"),
        ("swir16", "B11"),
        ("swir22", "B12"),
    ],
)
def test_names_in_use_are_read(name, band):
    assert band_of_name(name)[0] == band


@pytest.mark.parametrize(
    "name",
    [
        *("4", "04", "8A", "11", "B13", "B0", "B00", "B011", "B8_A", "B8B", "B", "band", "", "bandwidth 2"),
        *("SR_B4", "LC08_B4", "nbart_swir_2", "A_B04", "B_B04", "B02_1", "B02 B03", "B02/B03"),
        *("Red (band 1)", "NIR (band 4)", "Near infrared band 5", "wvp", "AOT", "SCL", "VV", "visual", "B4_mask"),
    ],
)
def test_names_that_say_no_band_of_this_sensor_are_not_read(name):
    assert band_of_name(name) is None


decorations = st.sampled_from(["", "S2-", "s2_", "Sentinel-2 ", "L2A ", "S2-L2A-"])
endings = st.sampled_from(["", "_10m", "_20m", "-60m"])


@given(st.sampled_from(list(SENTINEL2)), decorations, endings, st.booleans(), st.booleans())
def test_designations_are_never_confused(name, before, after, padded, lower):
    number = NUMBERS[name]
    text = "B" + (number.zfill(2) if padded else number)
    text = before + (text.lower() if lower else text) + after
    assert band_of_name(text) == (name, "name" if not (before or after) else "alias")


@given(st.text(alphabet="bB0123456789aA_- ", max_size=6))
def test_only_a_whole_designation_counts(text):
    read = band_of_name(text)
    if read is not None:
        digits = re.sub(r"[^0-9a]", "", text.lower().replace("band", "").lstrip("b_- ")).lstrip("0")
        assert digits == NUMBERS[read[0]].lower()


def test_shared_common_names_are_known_as_shared():
    assert bands_of_common_name("rededge") == ("B05", "B06", "B07", "B8A")
    assert bands_of_common_name("NIR") == ("B08", "B8A")
    assert bands_of_common_name("nir08") == ("B8A",)
    assert bands_of_common_name("pan") == ()


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("S2MSI1C", "L1C"),
        ("S2MSI2A", "L2A"),
        ("L1C", "L1C"),
        ("Level-2A", "L2A"),
        ("S2A_MSIL1C_20230701T103631_N0509_R008_T31UFU_20230701T200058.SAFE", "L1C"),
        ("S2B_T31UES_20240730T104209_L2A", "L2A"),
        ("S2A_31UFU_20230701_0_L1C", "L1C"),
        ("L2", None),
        ("LC08_L2SP_190024", None),
        ("S2A_L2A from S2A_MSIL1C_x", None),
        (None, None),
    ],
)
def test_levels_of_products(text, level):
    assert level_of(text) == level


def test_names_of_gdals_driver_of_products():
    assert band_of_name("B4, central wavelength 665 nm") == ("B04", "name")
    assert band_of_name("B8A, central wavelength 865 nm") == ("B8A", "name")
    assert band_of_name("B12, central wavelength 2190 nm") == ("B12", "name")
    # Another sensor's fourth band.
    assert band_of_name("B4, central wavelength 842 nm") is None
    assert band_of_name("AOT, Aerosol Optical Thickness map (at 550nm)") is None
