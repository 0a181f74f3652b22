"""An assessment of a class layer on the page: the numbers are those of `assess`, and trained labels are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest

pytest.importorskip("starlette")

import deo_cube
from deo_cube.errors import ArgumentTypeError, InputNotFoundError
from deo_cube.heads.head import fit_head
from deo_cube.viewer.explore import Explorer, explore
from deo_cube.viewer.state import ViewerState
from tests.heads.fields import clicks, embeddings, truth
from tests.viewer.browser import Browser, chromium
from tests.viewer.test_routes import client_of, finished, places_of

EMB = embeddings(rows=40, cols=60, dim=8, times=2, noise=0.9)
NAMES = ("left side", "right", "disc")


def labels(view: ViewerState, n: int, seed: int) -> dict[str, Any]:
    """Return labels of `n` cells of each class, as the page sends them."""
    rng, label = np.random.default_rng(seed), truth(40, 60)
    classes = [{"code": k, "name": NAMES[k], "color": f"#{k}08040"} for k in range(3)]
    features = []
    for k in range(3):
        for place in places_of(view, [tuple(c) for c in rng.permutation(np.argwhere(label == k))[:n]]):
            geometry = {"type": "Point", "coordinates": place}
            features.append({"type": "Feature", "properties": {"class": k}, "geometry": geometry})
    return {"classes": classes, "features": features}


@pytest.fixture
def view() -> ViewerState:
    return ViewerState(EMB, heads={"kept": fit_head("linear", EMB.isel(time=0), clicks(EMB))})


@pytest.fixture
def client(view: ViewerState) -> Any:
    client = client_of(view)
    client.put("/api/labels", json=labels(view, 8, 0))
    assert finished(client, client.post("/api/fit", json={"kind": "linear", "t": 0}).json())["state"] == "done"
    return client


def assessed(client: Any, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/assess", json={"layer": "classes", "t": 0, **body})
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json())
    assert job["state"] == "done", job
    return dict(job["result"])


def test_labels_drawn_after_the_fit_are_the_reference(client: Any, view: ViewerState) -> None:
    first, second = labels(view, 8, 0), labels(view, 30, 1)
    fresh = [f for f in second["features"] if f["geometry"] not in [g["geometry"] for g in first["features"]]]
    client.put("/api/labels", json=first | {"features": first["features"] + fresh})
    result = assessed(client, reference="labels")
    assert result["places"] == len(fresh)
    assert [c["name"] for c in result["classes"]] == list(NAMES)
    points = gpd.GeoDataFrame.from_features(fresh, crs=4326)
    expected = deo_cube.assess(view.classes.isel(time=0), points, column="class")
    assert result["overall"]["value"] == pytest.approx(expected.overall.value, abs=1e-3)
    assert result["confusion"] == expected.confusion.to_numpy().tolist()
    assert [c["users"] for c in result["classes"]] == pytest.approx(expected.table["users"].tolist(), abs=1e-3)
    assert view.assessment.confusion.equals(expected.confusion)
    # Doubtful places are on the map, with the names of the user.
    assert {p["class"] for p in result["look_first"]} <= set(NAMES)
    for place in result["look_first"]:
        view.grid.at(place["lon"], place["lat"])


def test_trained_labels_of_a_file_are_a_leak(client: Any, view: ViewerState) -> None:
    result = assessed(client, reference="file", labels=labels(view, 8, 0))
    assert "leak" in result["leak"]
    assert assessed(client, layer="head0", reference="file", labels=labels(view, 8, 3))["leak"] == ""


def test_a_class_that_the_map_lacks_counts_as_wrong(client: Any, view: ViewerState) -> None:
    given = labels(view, 10, 4)
    given["classes"][2]["name"] = "lake"
    result = assessed(client, reference="file", labels=given)
    assert [c["name"] for c in result["classes"]] == [*NAMES, "lake"]
    assert result["classes"][3]["producers"] == 0


def test_a_reference_that_was_passed_is_read(view: ViewerState, tmp_path: Path) -> None:
    given = labels(view, 12, 5)
    table = gpd.GeoDataFrame.from_features(given["features"], crs=4326)
    table["label"] = [("left", "right", "disc")[k] for k in table.pop("class")]
    table.to_file(tmp_path / "checked.gpkg")
    heads = {"kept": fit_head("linear", EMB.isel(time=0), clicks(EMB))}
    state = ViewerState(EMB, heads=heads, reference=tmp_path / "checked.gpkg")
    client = client_of(state)
    assert client.get("/api/store").json()["reference"] == "checked.gpkg"
    result = assessed(client, layer="head0", t=1, reference="given")
    assert result["places"] == 36
    assert result["overall"]["value"] > 0.5
    with pytest.raises(InputNotFoundError):
        explore(EMB, reference=tmp_path / "none.gpkg")
    with pytest.raises(ArgumentTypeError):
        explore(EMB, reference=3)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"reference": "labels"}, "at least one place"),
        ({"reference": "given"}, "reference="),
        ({"reference": "all"}, "given, labels, file"),
        ({"reference": "file"}, "labels of a file"),
        ({"reference": "file", "labels": {"classes": [], "features": []}}, "at least one place"),
        ({"reference": "labels", "layer": "pca"}, "map of classes"),
        ({"reference": "labels", "t": 9}, "date"),
    ],
)
def test_bad_requests_are_refused(client: Any, body: dict[str, Any], says: str) -> None:
    answer = client.post("/api/assess", json={"layer": "classes", "t": 0} | body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


@pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium, or DEO_CUBE_CHROMIUM")
@pytest.mark.parametrize("width", [1280, 420])
def test_an_assessment_in_the_browser(view: ViewerState, width: int) -> None:
    pytest.importorskip("websockets")
    with Explorer(view) as ex, Browser(width=width, height=900) as page:
        page.open(ex.url)
        if width < 720:
            page.press("#fold")
        page.wait("!document.getElementById('assess').hidden")
        page.slide("#assess-layer", "head0")
        for k, feature in enumerate(labels(view, 10, 6)["features"]):
            if k == 20:
                page.press("#add-class")
                page.js("document.querySelectorAll('#classes input[type=text]')[2].id = 'third'")
                page.slide("#third", "disc")
            if k == 0:
                page.js("deo.labels.classes.forEach((c, n) => { c.name = ['left', 'right'][n]; })")
            page.js(f"deo.labels.active = deo.labels.classes[{k // 10}].code, deo.labels.add({feature['geometry']!r})")
        page.press("#run-assess")
        page.wait("!document.getElementById('assessment').hidden")
        assert "Overall accuracy" in page.text("#assess-note")
        assert "30 reference places" in page.text("#assess-note")
        assert page.js("document.querySelectorAll('#accuracies tbody tr').length") == 3
        assert page.js("document.querySelectorAll('.doubt').length") == page.js(
            "document.querySelectorAll('#look-list li').length"
        )
        # Nothing is wider than the panel.
        assert page.js("document.getElementById('panel').scrollWidth <= document.getElementById('panel').clientWidth")
        page.press("#look-list button")
        page.press("#close-assessment")
        page.wait("document.getElementById('assessment').hidden")
        assert page.js("document.querySelectorAll('.doubt').length") == 0
        assert page.errors == []
