from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.cube.boa_offset import ADD_OFFSET, Product, decide_offset, stated_offset

COGS = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/29/R/KH/2020/2/x/B02.tif"
RAW = {
    "aws": "s3://sentinel-s2-l2a/tiles/29/R/KH/2020/2/19/0/B02.jp2",
    "azure": "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/32/T/x.SAFE/GRANULE/L2A/IMG_DATA/R10m/B02.tif?sig=1",
    "cdse": "s3://eodata/Sentinel-2/MSI/L2A/2024/x.SAFE/GRANULE/x/IMG_DATA/R10m/B02_10m.jp2",
    "c1": "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/32/T/x/B02.tif",
    "google": "/vsigs/gcp-public-data-sentinel-2/L2/tiles/x.jp2",
    "local": "/data/S2A_MSIL2A_x.SAFE/GRANULE/L2A/IMG_DATA/R10m/B02.jp2",
}
OLD, NEW, C1 = ({"s2:processing_baseline": b} for b in ("02.14", "04.00", "05.10"))


def flag(value):
    return {"earthsearch:boa_offset_applied": value}


def decide(properties, href="", scales=()):
    return decide_offset(Product.read(properties, [href], scales))


# Every agreement and every contradiction of baseline, place, flag and statement.
@pytest.mark.parametrize(
    ("properties", "href", "scales", "add"),
    [
        # Before 04.00 there is nothing to subtract, whatever the flag says.
        (OLD, COGS, [(1e-4, 0)], 0),
        (OLD | flag(False), "", [], 0),
        (OLD | flag(False), RAW["aws"], [], 0),
        # As published.
        (NEW, RAW["aws"], [], -1000),
        (NEW, RAW["azure"], [], -1000),
        (C1, RAW["cdse"], [(1e-4, -0.1)], -1000),
        (C1, RAW["c1"], [(1e-4, -0.1)], -1000),
        (C1 | flag(False), RAW["c1"], [(1e-4, -0.1)], -1000),
        (NEW, RAW["google"], [], -1000),
        (NEW, RAW["local"], [], -1000),
        # Harmonised.
        (NEW, COGS, [], 0),
        (NEW | flag(True), COGS, [(1e-4, 0)], 0),
        (NEW | flag(True), "/data/B02.tif", [], 0),
        # The stale statement on harmonised files: flag and place agree against it.
        (NEW | flag(True), COGS, [(1e-4, -0.1)], 0),
        # A statement alone is a statement.
        (NEW, "/data/B02.tif", [(1e-4, 0)], 0),
        (NEW, "/data/B02.tif", [(1e-4, -0.1)], -1000),
        ({}, "/data/B02.tif", [(0.0001, -0.1)], -1000),
        # Nothing decides.
        (NEW, "/data/B02.tif", [], None),
        (NEW, "/data/B02.tif", [(1, 0)], None),
        (NEW, "/data/B02.tif", [(1e-4, None)], None),
        ({}, "/data/B02.tif", [], None),
        ({}, RAW["aws"], [], None),
        ({"datetime": "2024-06-01T00:00:00Z"}, RAW["aws"], [], None),
    ],
)
def test_what_decides(properties, href, scales, add):
    offset = decide(properties, href, scales)
    assert offset.dn == add
    assert not offset.contradiction
    assert offset.reason


@pytest.mark.parametrize(
    ("properties", "href", "scales"),
    [
        # The flag is false on shifted and unshifted files of this catalogue alike, and -0.1 is stated for both.
        (NEW | flag(False), COGS, [(1e-4, -0.1)]),
        (NEW | flag(False), COGS, []),
        (NEW | flag(False), "/data/copy.tif", [(1e-4, -0.1)]),
        (NEW | flag(False), "/data/copy.tif", []),
        (NEW | flag(True), "/data/copy.tif", [(1e-4, -0.1)]),
        (NEW, COGS, [(1e-4, -0.1)]),
        (NEW | flag(True), RAW["aws"], []),
        (NEW, RAW["aws"], [(1e-4, 0)]),
        (NEW, "/data/copy.tif", [(1e-4, 0), (1e-4, -0.1)]),
        (OLD, COGS, [(1e-4, -0.1)]),
        (OLD | {"s2:product_uri": "S2A_MSIL2A_20200219T112111_N0500_R037_T29RKH_20230619T123947.SAFE"}, COGS, []),
    ],
)
def test_what_contradicts_itself(properties, href, scales):
    offset = decide(properties, href, scales)
    assert offset.dn is None
    assert offset.contradiction


@given(st.dates(), st.sampled_from([OLD, NEW, C1, {}]), st.sampled_from([COGS, *RAW.values(), "/a.tif"]))
def test_the_sensing_date_changes_nothing(date, properties, href):
    dated = {**properties, "datetime": f"{date}T10:00:00Z", "created": str(date)}
    assert decide(dated, href) == decide(properties, href)


@pytest.mark.parametrize(
    "properties",
    [
        {"s2:product_uri": "S2A_MSIL2A_20220305T102921_N0400_R108_T32TMT_20220305T135811.SAFE"},
        {"id": "S2A_MSIL2A_20220305T102921_N0400_R108_T32TMT_20220305T135811"},
        {"s2:datatake_id": "GS2A_20220305T102921_024344_N04.00"},
        {"processing:version": "04.00"},
        {"s2:processing_baseline": "N0400"},
        {"s2:processing_baseline": 4.0},
    ],
)
def test_the_baseline_is_read_wherever_it_stands(properties):
    assert Product.read(properties).baselines == {4.0}
    assert decide(properties, RAW["aws"]).dn == ADD_OFFSET


@pytest.mark.parametrize(
    "properties",
    [
        {"id": "LC08_N0400_x"},
        {"processing:version": "4.12.1"},
        {"s2:product_uri": "S2A_MSIL2A_20220305T102921_N9999_R108_T32TMT_20220305T135811"},
        {"s2:processing_baseline": None},
        {"s2:processing_baseline": float("nan")},
        {"s2:processing_baseline": True},
    ],
)
def test_what_is_no_baseline_is_not_read_as_one(properties):
    assert Product.read(properties).baselines == frozenset()


def test_the_place_is_the_bucket_not_a_word_in_the_path():
    # The harmonised bucket has a folder sentinel-s2-l2a-cogs, a mirror may have any folder.
    assert Product.read({}, [COGS]).places == {"harmonised: sentinel-cogs"}
    assert Product.read({}, ["s3://mine/sentinel-cogs/B02.tif", "/data/sentinel-s2-l2a/B02.tif"]).places == frozenset()
    for href in (
        "s3://sentinel-cogs/x",
        "/vsis3/sentinel-cogs/x",
        "https://s3.us-west-2.amazonaws.com/sentinel-cogs/x",
    ):
        assert Product.read({}, [href]).places == {"harmonised: sentinel-cogs"}
    assert Product.read({"earthsearch:s3_path": "s3://sentinel-cogs/x"}).places == {"harmonised: sentinel-cogs"}


def test_stated_offsets_are_in_dn():
    assert stated_offset(1e-4, -0.1) == -1000
    assert stated_offset("0.0001", "0") == 0
    assert stated_offset(1, -1000) == -1000  # of DN
    assert stated_offset(0.01, -10) == -1000  # of per cent
    for pair in ((None, 0), (1e-4, None), (1, 0), (2.75e-5, -0.2), ("a", 0)):
        assert stated_offset(*pair) is None
