"""The static page compares places as `similar` does, in Chromium, from a server of files and from a file."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("PIL")

import deo_cube
from deo_cube.errors import ArgumentError
from deo_cube.viewer.page import Page, page
from tests.heads.fields import embeddings
from tests.viewer.browser import Browser, chromium

needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def emb() -> xr.DataArray:
    array: xr.DataArray = embeddings(rows=60, cols=80, times=2, dim=24)
    return array


@pytest.fixture(scope="module")
def written(emb: xr.DataArray, tmp_path_factory: pytest.TempPathFactory) -> Page:
    labels = [(float(emb.x[i]), float(emb.y[j]), name) for i, j, name in ((5, 5, "meadow"), (70, 50, "oak wood"))]
    out = tmp_path_factory.mktemp("page") / "out"
    return page(emb, out, dims=24, labels=labels, title="<b>made up</b>", progress=False)


def meta_of(folder: Path) -> dict[str, Any]:
    text = (folder / "data" / "meta.js").read_text()
    found: dict[str, Any] = json.loads(text.removeprefix("const deoMeta = ").rstrip().removesuffix(";"))
    return found


def vectors_of(folder: Path, t: int = 0) -> np.ndarray:
    """Stored vectors (rows, columns, dims)."""
    meta = meta_of(folder)
    texts = [(folder / p).read_text() for p in meta["dates"][t]["parts"]]
    raw = b"".join(base64.b64decode(re.fullmatch(r'deoVectors\(\d+,\d+,"(.*)"\)\n', x)[1]) for x in texts)  # type: ignore[index]
    return np.frombuffer(raw, "int8").reshape(meta["rows"], meta["columns"], meta["dims"])


def cosine(stored: np.ndarray, row: int, col: int) -> np.ndarray:
    v = stored.astype("float64")
    lengths = np.linalg.norm(v, axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (v @ v[row, col]) / (lengths * lengths[row, col])


def test_stored_vectors_have_the_cosines_of_the_embeddings(written: Page, emb: xr.DataArray) -> None:
    stored = vectors_of(written.path.parent)
    place = (float(emb.x[30]), float(emb.y[20]))
    exact = emb.isel(time=0).deo.similar(place).values
    found = cosine(stored, 20, 30)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    assert np.nanmax(np.abs(found - exact)) < 0.03
    assert written.cosine_error < 0.02
    assert written.dates == 2


def test_fewer_numbers_are_less_exact_and_smaller(emb: xr.DataArray, tmp_path: Path, written: Page) -> None:
    small = page(emb, tmp_path / "small", dims=4, progress=False)
    assert small.bytes < written.bytes
    assert small.cosine_error > written.cosine_error


def test_coarsening_averages_by_valid(emb: xr.DataArray, tmp_path: Path) -> None:
    one = emb.isel(time=0)
    found = page(one, tmp_path / "p", coarsen=7, dims=24, progress=False)
    assert found.shape == (9, 12)
    assert vectors_of(tmp_path / "p").shape == (9, 12, 24)
    valid = one["valid"].values if "valid" in one.coords else np.isfinite(one.values).all(axis=0)
    v = np.nan_to_num(one.values) * np.asarray(valid)
    mean = v[:, :7, :7].sum((1, 2))
    again = vectors_of(tmp_path / "p")[0, 0].astype("float64")
    # The projection of the page keeps all directions here, so that lengths and angles to other cells are kept.
    other = v[:, 7:14, 14:21].sum((1, 2))
    stored = vectors_of(tmp_path / "p")[1, 2].astype("float64")
    exact = mean @ other / np.linalg.norm(mean) / np.linalg.norm(other)
    assert again @ stored / np.linalg.norm(again) / np.linalg.norm(stored) == pytest.approx(exact, abs=0.02)


def test_a_south_up_array_gives_the_same_page(emb: xr.DataArray, tmp_path: Path) -> None:
    up = emb.isel(time=[0])
    down = up.isel(y=slice(None, None, -1))
    down = deo_cube.cube.georeference.assign_grid(down, up.odc.geobox.flipy()) if hasattr(down, "odc") else down
    a, b = page(up, tmp_path / "a", progress=False), page(down, tmp_path / "b", progress=False)
    assert meta_of(a.path.parent)["mesh"] == meta_of(b.path.parent)["mesh"]


def test_too_large_pages_are_refused_with_what_fits(emb: xr.DataArray, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"coarsen=(\d+).*time=.*max_bytes") as caught:
        page(emb, tmp_path / "p", max_bytes=100_000, dims=16, progress=False)
    fits = int(re.search(r"coarsen=(\d+)", str(caught.value))[1])  # type: ignore[index]
    assert not (tmp_path / "p").exists()
    page(emb, tmp_path / "p", max_bytes=100_000, dims=16, coarsen=fits, progress=False)  # the advice
    with pytest.raises(ArgumentError):
        page(emb, tmp_path / "q", max_bytes=100_000, dims=16, coarsen=fits - 1, progress=False)


def test_only_a_page_is_replaced(emb: xr.DataArray, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ArgumentError, match="out"):
        page(emb, tmp_path / "mine", overwrite=True, progress=False)
    one = emb.isel(time=0)
    page(one, tmp_path / "p", progress=False)
    with pytest.raises(ArgumentError, match="overwrite"):
        page(one, tmp_path / "p", progress=False)
    page(one, tmp_path / "p", overwrite=True, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "p"]


@pytest.fixture(scope="module")
def url(written: Page) -> Iterator[str]:
    """A server of files, as `python -m http.server` is."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(written.path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def opened(browser: Browser, address: str) -> None:
    browser.send("Page.navigate", url=address)
    browser.wait("window.deo && deo.dates[deo.state.time].picture?.naturalWidth > 0")


def click(browser: Browser, row: int, col: int, *, count: int = 1) -> None:
    x, y = browser.js(
        f"(() => {{ const p = deo.toScreen({col + 0.5}, {row + 0.5}), b = document.getElementById('map')"
        ".getBoundingClientRect(); return [p[0] + b.x, p[1] + b.y]; })()"
    )
    browser.click(x, y)
    browser.wait(f"deo.state.examples.length === {count} && deo.state.scores !== null")


def scores(browser: Browser) -> np.ndarray:
    meta = browser.js("[deoMeta.rows, deoMeta.columns]")
    values = browser.js("Array.from(deo.state.scores, (v) => (v === v ? v : null))")
    return np.array([np.nan if v is None else v for v in values]).reshape(meta)


@needs_chromium
@pytest.mark.parametrize("how", ["server", "file"])
def test_a_click_compares_all_patches(written: Page, url: str, how: str) -> None:
    pytest.importorskip("websockets")
    with Browser(width=1000, height=640) as browser:
        opened(browser, url if how == "server" else written.path.as_uri())
        assert browser.text("#title") == "<b>made up</b>"
        click(browser, 20, 30)
        expected = cosine(vectors_of(written.path.parent), 20, 30)
        np.testing.assert_allclose(scores(browser), expected, atol=1e-5)
        # A negative example hides what is more like it.
        browser.press("#unlike")
        click(browser, 50, 70, count=2)
        worse = cosine(vectors_of(written.path.parent), 50, 70)
        np.testing.assert_array_equal(np.isnan(scores(browser)), np.isnan(expected) | (worse >= expected))
        # The other date is compared with the same examples; the address restores them.
        browser.slide("#date", 1)
        browser.wait("deo.dates[1].inverse && deo.state.scores && deo.state.time === 1")
        before = scores(browser)
        address = browser.js("location.href")
        assert not browser.errors
        outside = [r for r in browser.requests if not r.startswith(("http://127.0.0.1", "file:", "data:", "blob:"))]
        assert not outside
        browser.send("Page.navigate", url="about:blank")
        opened(browser, address)
        browser.wait("deo.state.scores !== null && deo.state.examples.length === 2")
        np.testing.assert_allclose(scores(browser), before, atol=1e-6)


@needs_chromium
def test_labels_are_found_by_typing(written: Page, url: str) -> None:
    pytest.importorskip("websockets")
    with Browser(width=420, height=800) as browser:
        opened(browser, url)
        assert browser.js("document.querySelectorAll('#names button').length") == 2
        browser.slide("#word", "oak")  # type: ignore[arg-type]
        assert browser.text("#names").strip() == "oak wood"
        browser.press("#names button")
        browser.wait("deo.state.label === 1 && deo.state.scores !== null")
        found = scores(browser)
        assert found[50, 70] == pytest.approx(np.nanmax(found), abs=0.02)
        # Nothing is wider than the window.
        assert browser.js("document.documentElement.scrollWidth") <= 420
        assert not browser.errors
