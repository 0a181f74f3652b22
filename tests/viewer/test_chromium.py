"""The page in headless Chromium, end to end: open, click, label, classify, export, reload."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

pytest.importorskip("starlette")
pytest.importorskip("websockets")

from deo_cube.viewer.explore import Explorer
from deo_cube.viewer.state import ViewerState
from tests.heads.fields import embeddings, truth
from tests.viewer.browser import SECONDS, Browser, chromium

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium: apt-get install chromium, or DEO_CUBE_CHROMIUM"
)

ROWS, COLS = 60, 80


@pytest.fixture(scope="module")
def explorer() -> Iterator[Explorer]:
    emb = embeddings(rows=ROWS, cols=COLS, times=2, dim=8)
    with Explorer(ViewerState(emb, title="made up")) as ex:
        yield ex


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def page(explorer: Explorer, downloads: Path) -> Iterator[Browser]:
    with Browser(width=1000, height=640, downloads=downloads) as b:
        b.open(explorer.url)
        yield b


def cell(page: Browser, explorer: Explorer, row: int, col: int) -> tuple[float, float]:
    """Where the middle of a cell is in the window."""
    from pyproj import Transformer

    box = explorer.state.grid.box
    to_degrees = Transformer.from_crs(box.crs.proj, 4326, always_xy=True)
    return page.place(*to_degrees.transform(*(box.transform * (col + 0.5, row + 0.5))))


def colour(page: Browser, layer: str, x: float, y: float) -> list[int]:
    """Pixel of a layer's canvas at a place in the window."""
    return page.js(f"""(() => {{
      for (const {{el}} of Object.values(deo.layers.get({layer!r})._tiles)) {{
        const b = el.getBoundingClientRect();
        if ({x} < b.left || {x} >= b.right || {y} < b.top || {y} >= b.bottom) continue;
        const s = 256 / b.width;
        return [...el.getContext('2d').getImageData(({x} - b.left) * s, ({y} - b.top) * s, 1, 1).data];
      }}
    }})()""")


def saved(folder: Path, ending: str) -> Path:
    """The file that was downloaded, once it is whole."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        # The browser may reserve the name with an empty file before it moves the download there.
        found = [p for p in folder.iterdir() if p.name.endswith(ending) and p.stat().st_size]
        if found and not any(folder.glob("*.crdownload")):
            return found[0]
        time.sleep(0.03)
    raise AssertionError(f"no {ending} among {list(folder.iterdir())}")


def it_opens_with_pca_tiles_and_nothing_from_elsewhere(page: Browser, explorer: Explorer, downloads: Path) -> None:
    assert page.text("#title") == "made up"
    assert "80 × 60 patches of 80 m" in page.text("#facts")
    assert page.text("#date") == "2020-06-15"
    x, y = cell(page, explorer, 30, 10)
    rgba = colour(page, "pca", x, y)
    wanted = explorer.state.layers["pca"].layer.cells(1, slice(30, 31), slice(10, 11))[:, 0, 0]
    assert rgba[3] == 255
    assert abs(np.array(rgba[:3]) - (wanted.astype(float) - 1) / 254 * 255).max() <= 2
    assert page.js("document.querySelectorAll('.leaflet-control-scale-line').length") == 1
    assert "made-up" not in page.text(".leaflet-control-attribution")
    assert not page.errors
    assert [u for u in page.requests if not u.startswith((explorer.url, "data:", "blob:", "about:"))] == []


def a_click_shows_what_is_similar(page: Browser, explorer: Explorer, downloads: Path) -> None:
    x, y = cell(page, explorer, 30, 10)
    page.click(x, y)
    page.wait("deo.layers.has('similar')")
    page.settled()
    assert "cosine similarity to 1 example" in page.text("#overlay-similar")
    scores = explorer.similarity.isel(time=1).values
    assert scores[30, 10] == pytest.approx(1)
    low = float(page.js("deo.layers.get('similar').style.threshold"))
    unlike = cell(page, explorer, 30, 70)
    assert colour(page, "similar", x, y)[3] == 255
    assert scores[30, 70] < low
    assert colour(page, "similar", *unlike)[3] == 0
    # The slider answers without another request, and the number under the cursor is the score.
    before = len(page.requests)
    page.slide("#threshold", float(scores[30, 70]) - 0.05)
    assert colour(page, "similar", *unlike)[3] == 255
    assert len(page.requests) == before
    page.move(*unlike)
    page.wait(f"document.getElementById('reading').innerText.includes('Similarity {scores[30, 70]:.3f}')")
    page.click(*unlike, shift=True)
    page.wait("deo.layers.get('similar').facts.examples.length === 2")
    page.settled()
    assert len(explorer.state.examples) == 2


def results_are_marked_as_right_and_wrong(page: Browser, explorer: Explorer, downloads: Path) -> None:
    page.press("#find-results")
    page.wait("document.querySelectorAll('#result-list li').length === 12")
    loaded = "[...document.querySelectorAll('#result-list img')].every((i) => i.complete && i.naturalWidth === 256)"
    page.wait(loaded)
    assert "Mark results" in page.text("#results-note")
    page.press("#result-list li:nth-of-type(1) button[aria-label=Right]")
    page.wait("deo.layers.get('similar').facts.examples.length === 3")
    # No second mark is taken until the list shows what the first one found.
    page.wait("!document.getElementById('result-list').inert")
    page.wait(loaded)
    page.press("#result-list li:nth-of-type(2) button[aria-label=Wrong]")
    page.wait("deo.layers.get('similar').facts.negatives.length === 1")
    page.wait("location.hash.includes('unlike=')")
    page.settled()
    assert "similarity to 3 examples, unlike 1" in page.text("#overlay-similar")
    # Each result is of another place, and none is near an example.
    state = explorer.state
    job = state.best(1, 12)
    while job.open:
        time.sleep(0.02)
    cells = [state.grid.at(r["lon"], r["lat"])[:2] for r in job.result["results"]]
    cells += [state.grid.at(*e)[:2] for e in state.layers["similar"].facts["examples"][-1:]]
    apart = [max(abs(a[0] - b[0]), abs(a[1] - b[1])) for i, a in enumerate(cells) for b in cells[:i]]
    assert min(apart) > 3
    page.press("#close-results")
    first, second = cell(page, explorer, 30, 10), cell(page, explorer, 30, 70)
    page.click(*first)
    page.wait("deo.layers.get('similar').facts.examples.length === 1")
    page.click(*second, shift=True)
    page.wait("deo.layers.get('similar').facts.examples.length === 2")
    page.settled()
    assert not page.errors


def the_address_brings_the_view_back(page: Browser, explorer: Explorer, downloads: Path) -> None:
    page.key("[")
    page.wait("document.getElementById('date').textContent === '2019-06-15'")
    page.js("void deo.map.setZoom(deo.map.getZoom() + 1)")
    page.wait("location.hash.includes('date=2019-06-15')")
    page.settled()
    page.wait("location.hash.includes(`z=${deo.map.getZoom()}`)")
    address, zoom = page.js("location.href"), page.js("deo.map.getZoom()")
    page.send("Page.navigate", url="about:blank")
    page.open(address)
    page.wait("deo.layers.has('similar') && deo.layers.get('similar').facts.examples.length === 2")
    page.settled()
    assert page.text("#date") == "2019-06-15"
    assert page.js("deo.map.getZoom()") == zoom
    page.press("#overlay-similar button[aria-label^=Remove]")
    page.wait("!deo.layers.has('similar')")
    page.js("void deo.map.fitBounds(deo.store.bounds, {animate: false})")
    page.settled()


def labels_become_a_classified_map(page: Browser, explorer: Explorer, downloads: Path) -> None:
    assert page.js("document.getElementById('fit').disabled")
    page.key("2")
    page.click(*cell(page, explorer, 30, 10))
    page.key("3")
    corners = [cell(page, explorer, r, c) for r, c in ((5, 60), (5, 75), (15, 75))]
    for at in [*corners, corners[0]]:
        page.click(*at)
    page.wait("deo.labels.features.length === 2")
    # Both are positive so far; the area is made a class of its own by inspecting it.
    page.key("4")
    page.click(*cell(page, explorer, 8, 72))
    page.wait("document.querySelector('.leaflet-popup select')")
    page.slide(".leaflet-popup select", 0)
    page.wait("deo.labels.features[1].properties.class === 0")
    page.press("#add-class")
    page.js("document.querySelectorAll('#classes input[type=text]')[2].id = 'third'")
    page.slide("#third", "disc")
    page.js("document.activeElement.blur()")
    page.key("2")
    page.click(*cell(page, explorer, 30, 40))
    page.click(*cell(page, explorer, 50, 50))
    page.key("z", modifiers=2)
    page.wait("deo.labels.features.length === 3")
    page.js("void deo.labels.saving")
    page.press("#fit")
    page.wait("deo.layers.has('classes')")
    page.settled()
    assert explorer.labels["label"].tolist() == ["positive", "negative", "disc"]
    assert explorer.head.kind == "knn"
    shown = explorer.classes.isel(time=0).values
    assert (np.array([1, 0, 2])[truth(ROWS, COLS)] == shown).mean() > 0.98
    for row, col in ((40, 10), (50, 70), (30, 44)):
        code = int(shown[row, col])
        wanted = page.js(f"deo.labels.color({code})")
        found = colour(page, "classes", *cell(page, explorer, row, col))
        assert "#" + "".join(f"{v:02x}" for v in found[:3]) == wanted
    assert "Fitted on" in page.text("#fit-note")
    assert "disc" in page.text("#overlay-classes")


def labels_and_layers_are_saved(page: Browser, explorer: Explorer, downloads: Path) -> None:
    page.press("#save")
    labels = json.loads(saved(downloads, "labels.geojson").read_text())
    assert [f["properties"]["label"] for f in labels["features"]] == ["positive", "negative", "disc"]
    assert [f["geometry"]["type"] for f in labels["features"]] == ["Point", "Polygon", "Point"]
    page.press("#overlay-classes button:nth-of-type(1)")
    with rasterio.open(saved(downloads, ".tif")) as tif:
        np.testing.assert_array_equal(tif.read(1), explorer.classes.isel(time=0).values)
        assert tif.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    page.press("#overlay-classes button:nth-of-type(2)")
    polygons = json.loads(saved(downloads, "my-classes_2019-06-15.geojson").read_text())
    assert {f["properties"]["label"] for f in polygons["features"]} == {"positive", "negative", "disc"}


def the_layer_requested_last_is_on_top(page: Browser, explorer: Explorer, downloads: Path) -> None:
    page.key("1")
    page.click(*cell(page, explorer, 30, 10))
    page.wait("deo.layers.has('similar')")
    page.settled()
    depth = "['similar', 'classes'].map((id) => Number(deo.layers.get(id).getContainer().style.zIndex))"
    similar, classes = page.js(depth)
    assert similar > classes
    page.press("#fit")
    page.wait(f"(([similar, classes]) => classes > similar)({depth})")
    page.settled()
    page.press("#overlay-similar button[aria-label^=Remove]")
    page.wait("!deo.layers.has('similar')")


def errors_are_shown_on_the_page(page: Browser, explorer: Explorer, downloads: Path) -> None:
    page.key("1")
    page.click(420, 598)
    page.wait("document.getElementById('toasts').innerText.includes('outside the embeddings')")
    page.js("document.getElementById('toasts').replaceChildren()")
    # An area whose lines cross is refused by the server and taken back.
    page.key("3")
    corners = [cell(page, explorer, r, c) for r, c in ((5, 5), (20, 30), (5, 30), (20, 5))]
    for at in [*corners, corners[0]]:
        page.click(*at)
    page.wait("document.getElementById('toasts').innerText.includes('without crossing lines')")
    page.wait("deo.labels.features.length === 3")
    page.key("Escape")


def the_keyboard_is_enough(page: Browser, explorer: Explorer, downloads: Path) -> None:
    page.key("2")
    page.js("document.getElementById('map').focus()")
    page.js("window.panned = false, void deo.map.once('moveend', () => { window.panned = true; })")
    page.key("ArrowRight")
    page.wait("window.panned")
    page.key("Enter")
    page.wait("deo.labels.features.length === 4")
    lon, lat = page.js("(() => { const c = deo.map.getCenter(); return [c.lng, c.lat]; })()")
    assert page.js("deo.labels.features[3].geometry.coordinates") == pytest.approx([lon, lat])
    assert page.js("getComputedStyle(document.getElementById('cross')).display") == "block"
    unnamed = page.js(
        "[...document.querySelectorAll('button, input:not([type=file]), select')].filter((e) => !(e.ariaLabel"
        " || e.getAttribute('aria-labelledby') || e.innerText || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert unnamed == []


#: In this order: each continues where the one before it left the page.
SESSION = (
    it_opens_with_pca_tiles_and_nothing_from_elsewhere,
    a_click_shows_what_is_similar,
    results_are_marked_as_right_and_wrong,
    the_address_brings_the_view_back,
    labels_become_a_classified_map,
    labels_and_layers_are_saved,
    the_layer_requested_last_is_on_top,
    errors_are_shown_on_the_page,
    the_keyboard_is_enough,
)


def test_a_session_in_the_browser(
    page: Browser, explorer: Explorer, downloads: Path, subtests: pytest.Subtests
) -> None:
    for step in SESSION:
        with subtests.test(step.__name__):
            step(page, explorer, downloads)


def test_it_starts_small_and_dark(explorer: Explorer) -> None:
    with Browser(width=500, height=600, dark=True) as b:
        b.open(explorer.url)
        assert b.js("getComputedStyle(document.getElementById('panel')).display") == "none"
        assert b.js("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"
        b.press("#fold")
        assert b.js("getComputedStyle(document.getElementById('panel')).display") == "block"
        assert not b.errors


def contrast(a: list[float], b: list[float]) -> float:
    """Contrast of two colours (WCAG 2.2)."""

    def light(c: Any) -> float:
        v = np.array(c[:3]) / 255
        return float(np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read(dark: bool) -> None:
    """The colours of the style sheet, as they are used on each other."""
    import re

    from deo_cube.viewer.routes import STATIC

    css = (STATIC / "viewer.css").read_text()
    blocks = re.findall(r":root \{([^}]*)\}", css)
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[1] if dark else blocks[0]))
    rgb = {k: [int(v[i : i + 2], 16) for i in (1, 3, 5)] for k, v in found.items()}
    pairs = [("text", "back"), ("text", "raised"), ("quiet", "back"), ("on-accent", "accent"), ("warn", "warn-back")]
    assert {p: round(contrast(rgb[p[0]], rgb[p[1]]), 1) for p in pairs if contrast(rgb[p[0]], rgb[p[1]]) < 4.5} == {}


def test_the_page_opens_with_the_true_colour_of_a_passed_cube(store: Path, cube: Any) -> None:
    with Explorer(ViewerState.of_store(store, cube=cube)) as ex, Browser(width=1000, height=640) as b:
        b.open(ex.url)
        assert b.js("document.querySelector('#base [aria-checked=true]').innerText") == "True colour"
        assert "units as the embeddings record them" in b.text("#base-note")
        assert not b.errors
        b.open(f"{ex.url}#base=pca")
        b.send("Page.reload")
        b.wait("window.deo && document.querySelector('#base [aria-checked=true]')?.innerText === 'PCA'")


def test_another_page_neither_frames_it_nor_reads_nor_writes(store: Path, tmp_path: Path) -> None:
    """A notebook's frame works from there; a page of another port of this machine is another origin."""
    import functools
    import html
    import http.server
    import threading

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with (
        Explorer(ViewerState.of_store(store)) as ex,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other,
        Browser(width=1000, height=900) as b,
    ):
        threading.Thread(target=other.serve_forever, daemon=True).start()
        shown = ex._repr_html_()
        address = html.unescape(shown.split('src="')[1].split('"')[0])
        (tmp_path / "notebook.html").write_text(f"<html><body>{shown}</body></html>")
        (tmp_path / "evil.html").write_text(f'<html><body><iframe src="{ex.url}" width=500 height=400></iframe></body>')
        here = f"http://127.0.0.1:{other.server_address[1]}"
        before = ex.state.labels

        def frames() -> list[str]:
            tree = b.send("Page.getFrameTree")["frameTree"]
            return [f["frame"]["url"] for f in tree.get("childFrames", [])]

        b.send("Page.navigate", url=f"{here}/notebook.html")
        b.wait("document.readyState === 'complete'")
        b.wait("document.querySelectorAll('iframe').length === 1")
        assert frames() == [address]
        b.send("Page.navigate", url=f"{here}/evil.html")
        b.wait("document.readyState === 'complete' && location.pathname === '/evil.html'")
        assert all(not url.startswith(ex.url) for url in frames())
        body = '{"classes": [], "features": []}'
        put = f"{{method: 'PUT', body: '{body}', headers: {{'content-type': 'application/json'}}}}"
        socket = f"new WebSocket('{ex.url.replace('http', 'ws')}')"
        attacks = [
            f"fetch('{ex.url}api/store')",
            # An opaque answer is one that the page cannot read, if it came at all.
            f"fetch('{ex.url}api/store', {{mode: 'no-cors'}}).then(() => Promise.reject())",
            f"fetch('{ex.url}api/labels', {put})",
            f"fetch('{ex.url}api/export', {{method: 'POST', body: '{body}'}})",
            f"new Promise((y, n) => {{ const w = {socket}; w.onopen = y; w.onerror = n; }})",
            f"new Promise((y, n) => {{ const i = new Image(); i.onload = y; i.onerror = n; "
            f"i.src = '{ex.url}static/icon.svg'; }})",
        ]
        for attack in attacks:
            assert b.js(f"{attack}.then(() => 'answered', () => 'refused')") == "refused", attack
        b.js(f"document.body.insertAdjacentHTML('beforeend', '<a id=link href=\"{ex.url}\">map</a>')")
        b.js("document.getElementById('link').click()")
        b.wait(f"location.href === '{ex.url}' && document.body.innerText.includes('address bar')")
        assert ex.state.labels is before
