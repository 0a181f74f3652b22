"""What the page sends is checked before anything is done with it."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.viewer.server import BadRequest, LabelSet, parse_int, parse_place, parse_places, read_body

CLASSES = [{"code": 1, "name": "water", "color": "#0000ff"}, {"code": 0, "name": "land", "color": "#00ff00"}]
SQUARE = [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]


def feature(geometry: object, code: object = 1) -> dict:
    return {"type": "Feature", "properties": {"class": code}, "geometry": geometry}


def labels(*features: dict) -> LabelSet:
    return LabelSet.of({"classes": CLASSES, "features": list(features)})


def test_labels_read_back_as_they_were_written() -> None:
    found = labels(
        feature({"type": "Point", "coordinates": [9.5, 47.5]}), feature({"type": "Polygon", "coordinates": SQUARE}, 0)
    )
    assert LabelSet.of(json.loads(json.dumps(found.to_dict()))) == found
    table = found.to_geopandas()
    assert table.crs == "EPSG:4326"
    assert table["label"].tolist() == ["water", "land"]
    assert table["class"].tolist() == [1, 0]
    assert table.geometry.iloc[1].area == 1
    assert LabelSet().to_geopandas().empty


@pytest.mark.parametrize(
    ("geometry", "says"),
    [
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}, "not valid"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, 2], [0, 0]]]}, "not valid|no area"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}, "closed"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 0]]]}, "four places"),
        ({"type": "Polygon", "coordinates": []}, "Point or Polygon"),
        ({"type": "Polygon", "coordinates": [[[0, 0], ["a", 0], [1, 1], [0, 0]]]}, "finite number"),
        ({"type": "Point", "coordinates": [200_000, 5_000_000]}, "in degrees"),
        ({"type": "Point", "coordinates": [True, 5]}, "finite number"),
        ({"type": "Point"}, "longitude"),
        ({"type": "LineString", "coordinates": [[0, 0], [1, 1]]}, "Point or Polygon"),
        (None, "geometry"),
    ],
)
def test_bad_geometries_are_refused_in_a_sentence(geometry: object, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        labels(feature(geometry))


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ([{"code": 255, "name": "a", "color": "#000000"}], "code of a class"),
        ([{"code": 1, "name": " ", "color": "#000000"}], "name of a class"),
        ([{"code": 1, "name": "a", "color": "red"}], "#rrggbb"),
        ([{"code": 1, "name": "a", "color": "#000000"}, {"code": 2, "name": "a", "color": "#000000"}], "two classes"),
        (["a"], "a class must"),
    ],
)
def test_bad_classes_are_refused(classes: list, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        LabelSet.of({"classes": classes, "features": []})


def test_labels_must_have_an_existing_class() -> None:
    with pytest.raises(BadRequest, match="class of a label"):
        labels(feature({"type": "Point", "coordinates": [0, 0]}, 7))
    with pytest.raises(BadRequest, match="class of a label"):
        labels(feature({"type": "Point", "coordinates": [0, 0]}, "1; drop"))


WORDS = ["classes", "features", "type", "coordinates", "properties", "geometry", "code", "name"]
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(WORDS), c, max_size=3),
    max_leaves=6,
)


@given(json_values)
def test_anything_at_all_is_read_or_refused(value: object) -> None:
    for read in (
        parse_place,
        parse_places,
        lambda v: parse_int(v, "it", 0, 5),
        lambda v: LabelSet.of(v if isinstance(v, dict) else {}),
    ):
        # Anything but a refusal fails the test.
        with contextlib.suppress(BadRequest):
            read(value)


def test_json_is_an_object_without_nan() -> None:
    assert read_body(b'{"a": 1}') == {"a": 1}
    for bad in (b"", b"[1]", b"{", b'{"a": NaN}', b'{"a": Infinity}', b"\xff", b"[" * 100_000):
        with pytest.raises(BadRequest):
            read_body(bad)


def test_whole_numbers_are_whole() -> None:
    assert parse_int("3", "it", 0, 5) == 3
    for bad in ("5", "-1", "1e0", "3.0", " 3", "٣", 2.0, True, None, math.nan, "9" * 4000):
        with pytest.raises(BadRequest, match="from 0 to 4"):
            parse_int(bad, "it", 0, 5)
