"""Results of the viewer from a search index: of other places, dates and stores than the one that is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette")
pytest.importorskip("faiss")

from deo_cube.errors import StoreMismatchError
from deo_cube.heads.index import build_index
from deo_cube.viewer.explore import Explorer, explore
from deo_cube.viewer.index_search import _boxes
from deo_cube.viewer.state import ViewerState
from tests.heads.fields import embeddings, on_dask
from tests.viewer.browser import Browser, chromium
from tests.viewer.test_routes import client_of, finished, places_of

WHOLE = embeddings(rows=60, cols=80, times=2, dim=8)
#: The left part of it, on one of its dates.
SHOWN = WHOLE.isel(time=[1], x=slice(0, 30))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_index(on_dask(WHOLE, 20, 20), tmp_path_factory.mktemp("index") / "whole")


@pytest.fixture
def view(index: Any) -> ViewerState:
    index.attach(WHOLE)
    return ViewerState(SHOWN, index=index)


def results_of(client: Any, count: int = 12, **limits: Any) -> list[dict[str, Any]]:
    job = finished(client, client.post("/api/results", json={"t": 0, "count": count, **limits}).json())
    assert job["state"] == "done", job
    return list(job["result"]["results"])


def test_the_best_result_is_that_of_brute_force(view: ViewerState) -> None:
    client = client_of(view)
    described = client.get("/api/store").json()["index"]
    assert described == {"patches": 60 * 80 * 2, "stores": 1, "dates": ["2019-06-15", "2020-06-15"]}
    body = {"t": 0, "places": places_of(view, [(30, 10)])}
    assert client.post("/api/similar", json=body).status_code == 200
    results = results_of(client)
    scores = WHOLE.deo.similar(SHOWN.isel(time=0, y=30, x=10)).values
    scores[:, 27:34, 7:14] = -1
    assert results[0]["score"] == pytest.approx(scores.max(), abs=0.01)
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
    # Each is of another place.
    cells = [((r["x"] - 500_000) / 80, (5_200_000 - r["y"]) / 80) for r in results] + [(10.5, 30.5)]
    apart = [max(abs(a[0] - b[0]), abs(a[1] - b[1])) for i, a in enumerate(cells) for b in cells[:i]]
    assert min(apart) > 3


def test_results_are_limited_to_the_view_and_to_dates(view: ViewerState) -> None:
    client = client_of(view)
    client.post("/api/similar", json={"t": 0, "places": places_of(view, [(30, 10)])})
    (west, north), (east, south) = places_of(view, [(20, 5), (50, 28)])
    corners = [[west, south], [east, north]]
    for shift in (0, 360, -360):  # maps repeat beyond 180 degrees
        bounds = [[lon + shift, lat] for lon, lat in corners]
        found = results_of(client, 100, bounds=bounds)
        assert found
        assert all(west <= r["lon"] <= east and south <= r["lat"] <= north for r in found)
    limits: dict[str, Any]
    for limits, year in (({"from": "2020-01-01"}, "2020"), ({"to": "2019-12-31"}, "2019")):
        found = results_of(client, 20, **limits)
        assert {r["date"][:4] for r in found} == {year}
        assert len(found) == 20
    world = [[-540, -90], [540, 90]]
    assert results_of(client, 20, bounds=world) == results_of(client, 20)
    assert results_of(client, **{"from": "2030-01-01"}) == []
    assert results_of(client, bounds=[[-100, -60], [-90, -50]]) == []
    # Fewer than are asked for where the limits leave fewer that are apart.
    few = results_of(client, 100, bounds=corners, **{"from": "2020-01-01", "to": "2020-12-31"})
    assert 0 < len(few) < 100


@pytest.mark.parametrize(
    "limits",
    [
        {"bounds": [[9, 47], [8, 48]]},
        {"bounds": [[8, 47], [8, 48]]},
        {"bounds": [[8, 47]]},
        {"bounds": "all"},
        {"from": "yesterday"},
        {"to": 2020},
        {"from": "2020-02-01", "to": "2020-01-01"},
    ],
)
def test_limits_that_are_not_such_are_refused(view: ViewerState, limits: dict[str, Any]) -> None:
    client = client_of(view)
    client.post("/api/similar", json={"t": 0, "places": places_of(view, [(30, 10)])})
    assert client.post("/api/results", json={"t": 0, **limits}).status_code == 400


def test_limits_without_an_index_are_refused() -> None:
    state = ViewerState(SHOWN)
    client = client_of(state)
    client.post("/api/similar", json={"t": 0, "places": places_of(state, [(30, 10)])})
    answer = client.post("/api/results", json={"t": 0, "from": "2020-01-01"})
    assert answer.status_code == 400
    assert "index=" in answer.json()["error"]


@given(
    west=st.floats(-540, 539), width=st.floats(1e-3, 400), lon=st.floats(-180, 180, exclude_max=True)
)  # fmt: skip
def test_boxes_hold_what_the_bounds_of_a_map_hold(west: float, width: float, lon: float) -> None:
    boxes = _boxes((west, -10.0, west + width, 95.0))
    assert all(-180 <= a < b <= 180 and (s, n) == (-10.0, 90.0) for a, s, b, n in boxes)
    shown = any(west <= lon + 360 * k <= west + width for k in range(-4, 5))
    edges = [v for a, _, b, _ in boxes for v in (a, b)]
    if min((abs(lon - e) for e in edges), default=1) > 1e-9:
        assert any(a <= lon <= b for a, _, b, _ in boxes) == shown


def test_marked_results_outside_the_store_are_examples(view: ViewerState) -> None:
    client = client_of(view)
    client.post("/api/similar", json={"t": 0, "places": places_of(view, [(30, 10)])})
    # Row 30, column 70 of the first date: neither the place nor the date is of the store that is shown.
    right = 30 * 80 + 70
    facts = client.post("/api/similar", json={"t": 0, "ids": [right]}).json()
    assert [m["id"] for m in facts["marked"]] == [right]
    assert "1 example" in facts["note"]
    results = results_of(client, 6)
    assert not any(r["inside"] for r in results)
    assert all(r["pictures"] == [] for r in results)
    assert {r["date"][:4] for r in results} <= {"2019", "2020"}
    body = {"t": 0, "places": places_of(view, [(30, 10)]), "negative_ids": [right]}
    facts = client.post("/api/similar", json=body).json()
    assert "unlike 1" in facts["note"]
    assert all(r["x"] < 500_000 + 80 * 45 for r in results_of(client, 6))
    scores = view.similarity.isel(time=0).values
    assert np.isfinite(scores).all()


def test_an_index_of_another_model_is_refused(index: Any) -> None:
    other = SHOWN.assign_attrs({"deo_cube:model": "another"})
    with pytest.raises(StoreMismatchError, match="another"):
        explore(other, index=index)
    with pytest.raises(StoreMismatchError, match="length"):
        explore(embeddings(dim=6), index=index)


@pytest.mark.parametrize("ids", [[10**9], ["a"], "all", [-1], [0] * 300])
def test_unknown_ids_are_refused(view: ViewerState, ids: Any) -> None:
    answer = client_of(view).post("/api/similar", json={"t": 0, "ids": ids})
    assert answer.status_code == 400
    assert "id" in answer.json()["error"]


def test_ids_without_an_index_are_refused() -> None:
    answer = client_of(ViewerState(SHOWN)).post("/api/similar", json={"t": 0, "ids": [3]})
    assert answer.status_code == 400
    assert "index=" in answer.json()["error"]


@pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium, or DEO_CUBE_CHROMIUM")
def test_results_of_the_index_in_the_browser(view: ViewerState) -> None:
    pytest.importorskip("websockets")
    with Explorer(view) as ex, Browser(width=1000, height=700) as page:
        page.open(ex.url)
        (lon, lat) = places_of(view, [(30, 27)])[0]
        page.click(*page.place(lon, lat))
        page.wait("deo.layers.has('similar')")
        page.settled()
        assert "index of 9,600 patches" in page.text("#index-note")
        page.press("#find-results")
        page.wait("document.querySelectorAll('#result-list li').length === 12")
        page.wait("!document.getElementById('result-list').inert")
        assert page.js("document.querySelectorAll('#result-list .place').length") == 12
        # The first of another date or place has no picture of it, and is an example when it is marked.
        elsewhere = ".picture.plain"
        page.wait(f"document.querySelectorAll('{elsewhere}').length > 0")
        page.press(f"li:has({elsewhere}) button[aria-label=Right]")
        page.wait("deo.layers.get('similar').facts.marked.length === 1")
        page.wait("!document.getElementById('result-list').inert")
        page.wait("location.hash.includes('marked=')")
        page.press(elsewhere)
        page.wait("document.querySelector('#toasts').innerText.match(/Outside the store|not a date/)")
        # The view and the dates limit what is found.
        page.js("document.getElementById('in-view').click()")
        first = "document.getElementById('from-date')"
        page.js(f"{first}.value = '2020-01-01'; {first}.dispatchEvent(new Event('change'))")
        page.wait("!document.getElementById('result-list').inert")
        dates = "[...document.querySelectorAll('#result-list .place span:first-child')].map((e) => e.innerText)"
        page.wait(f"{dates}.length > 0 && {dates}.every((date) => date.startsWith('2020'))")
        assert page.errors == []
