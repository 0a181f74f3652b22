"""Results of the viewer from a search index: of other places, dates and stores than the one that is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("faiss")

from deo_cube.errors import StoreMismatchError
from deo_cube.heads.index_build import build_index
from deo_cube.viewer.explore import Explorer, explore
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


def results_of(client: Any, count: int = 12) -> list[dict[str, Any]]:
    job = finished(client, client.post("/api/results", json={"t": 0, "count": count}).json())
    assert job["state"] == "done", job
    return list(job["result"]["results"])


def test_the_best_result_is_that_of_brute_force(view: ViewerState) -> None:
    client = client_of(view)
    assert client.get("/api/store").json()["index"] == {"patches": 60 * 80 * 2, "stores": 1}
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
        assert page.errors == []
