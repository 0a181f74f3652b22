"""The server without a browser: what it answers, and what it refuses."""

from __future__ import annotations

import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

import deo_cube
from deo_cube.heads.head import fit_head
from deo_cube.heads.pca import pca_rgb
from deo_cube.viewer.layers import open_for_viewing, read_scores
from deo_cube.viewer.state import ViewerState
from deo_cube.viewer.tiles import TileSource
from tests.heads.fields import embeddings, on_dask, truth
from tests.viewer.conftest import tile_at

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from deo_cube.viewer.routes import create_app


def client_of(view: ViewerState, **options: Any) -> TestClient:
    return TestClient(create_app(view, **options), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def view(store: Path, cube_path: Path) -> ViewerState:
    return ViewerState.of_store(store, cube=open_for_viewing(cube_path), title="scene")


@pytest.fixture
def client(view: ViewerState) -> TestClient:
    return client_of(view)


@pytest.fixture(scope="module")
def refusing(store: Path, cube_path: Path) -> TestClient:
    """A client whose requests are refused, and so change nothing."""
    return client_of(ViewerState.of_store(store, cube=open_for_viewing(cube_path)))


def middle(view: ViewerState) -> tuple[float, float]:
    (s, w), (n, e) = view.grid.bounds
    return (w + e) / 2, (s + n) / 2


def tile_url(view: ViewerState, layer: str, t: int = 0, dz: int = 0) -> str:
    z = view.grid.native_zoom + dz
    x, y = tile_at(*middle(view), z)
    return f"/tiles/{layer}/{t}/{z}/{x}/{y}.png"


def pixels(png: bytes, mode: str = "RGBA") -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert(mode))


def finished(client: TestClient, job: dict) -> dict:
    for _ in range(6000):
        job = client.get(f"/api/jobs/{job['id']}").json()
        if job["state"] not in ("waiting", "running"):
            return job
        time.sleep(0.02)
    raise AssertionError(f"never finished: {job}")


def places_of(view: ViewerState, cells: list[tuple[int, int]]) -> list[list[float]]:
    from pyproj import Transformer

    box = view.grid.box
    t = Transformer.from_crs(box.crs.proj, 4326, always_xy=True)
    return [list(t.transform(*(box.transform * (c + 0.5, r + 0.5)))) for r, c in cells]


def label_set(view: ViewerState, cells: dict[int, list[tuple[int, int]]]) -> dict:
    classes = [{"code": k, "name": f"class {k}", "color": f"#{k:02d}8040"} for k in cells]
    features = [
        {"type": "Feature", "properties": {"class": k}, "geometry": {"type": "Point", "coordinates": p}}
        for k, some in cells.items()
        for p in places_of(view, some)
    ]
    return {"classes": classes, "features": features}


def cells_under(view: ViewerState, url: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, x, y = (int(v.removesuffix(".png")) for v in url.split("/")[-3:])
    rows, cols = view.grid.tile(z, x, y)
    height, width = view.grid.box.shape
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    return rows.clip(0, height - 1).astype(int), cols.clip(0, width - 1).astype(int), inside


def test_the_page_and_all_it_loads_come_from_this_server(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    names = ["viewer.js", "tiles.js", "labels.js", "page.js", "viewer.css", "icon.svg", "leaflet/leaflet.js"]
    for name in [*names, "leaflet/leaflet.css", "leaflet/LICENSE", "LICENSES.md"]:
        found = client.get(f"/static/{name}")
        assert found.status_code == 200, name
        own = not name.startswith("leaflet") and name.endswith((".js", ".css"))
        assert not own or ("http://" not in found.text.replace("http://www.w3.org", "") and "url(" not in found.text), (
            name
        )
    assert 'src="http' not in page.text


def test_the_store_is_described(client: TestClient, view: ViewerState) -> None:
    d = client.get("/api/store").json()
    assert d["shape"] == {"times": 2, "embedding": 192, "rows": 32, "columns": 32}
    assert d["crs"] == "EPSG:32633"
    assert [layer["id"] for layer in d["layers"]] == ["true", "pca"]
    assert d["model"] == "tiny"
    assert d["cell"] == pytest.approx(40, rel=0.01)
    assert len(d["times"]) == 2


def test_pca_tiles_have_the_colours_of_pca_rgb(client: TestClient, view: ViewerState, store: Path) -> None:
    url = tile_url(view, "pca", t=1, dz=1)
    answer = client.get(url)
    assert answer.headers["x-deo-tile"] == "complete"
    assert "max-age" in answer.headers["cache-control"]
    found = pixels(answer.content)
    r, c, inside = cells_under(view, url)
    rgb = pca_rgb(deo_cube.open_embeddings(store).isel(time=1)).transpose("y", "x", "band").values[r, c]
    valid = inside & np.isfinite(rgb).all(axis=-1)
    assert ((found[..., 3] == 255) == valid).all()
    assert abs(found[valid][:, :3] - rgb[valid] * 255).max() <= 0.51


def test_true_colour_is_that_of_the_cube(client: TestClient, view: ViewerState, cube: Any) -> None:
    url = tile_url(view, "true", t=1, dz=2)
    found = pixels(client.get(url).content)
    z, x, y = (int(v.removesuffix(".png")) for v in url.split("/")[-3:])
    rows, cols = view.layers["true"].layer.grid.tile(z, x, y)
    r, c = int(rows[128, 128]), int(cols[128, 128])
    dn = [
        float(cube[b].isel(time=1, y=r, x=c)) + float(cube.attrs.get("boa_add_offset", 0))
        for b in ("B04", "B03", "B02")
    ]
    assert found[128, 128, :3] == pytest.approx([255 * min(v / 3000, 1) ** 0.8 for v in dn], abs=1)


@pytest.mark.parametrize("labels", [("before", "after"), (152, 182), ("2021-06-01", "20210611"), (20210601, 20210611)])
def test_true_colour_is_of_the_date_shown_whatever_the_labels(cube: Any, labels: tuple) -> None:
    from deo_cube.viewer.layers import TrueColour

    labelled = cube.assign_coords(time=list(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        emb = labelled.deo.embed("tiny")
    layer = TrueColour.of(labelled, emb)
    assert [layer.nearest(str(t)[:19], i) for i, t in enumerate(emb.time.values)] == [0, 1]


def test_a_click_finds_what_is_similar(client: TestClient, view: ViewerState, store: Path) -> None:
    emb = deo_cube.open_embeddings(store).compute()
    row, col = map(int, np.argwhere(np.isfinite(emb.isel(time=0)).all("embedding").values)[300])
    answer = client.post("/api/similar", json={"t": 0, "places": places_of(view, [(row, col)])})
    assert answer.status_code == 200, answer.text
    facts = answer.json()
    assert facts["kind"] == "score"
    assert sum(facts["histogram"]) > 0
    url = tile_url(view, "similar", t=1, dz=1)
    scores = read_scores(client.get(url).content)
    point = float(emb.x[col]), float(emb.y[row])
    wanted = deo_cube.similar(emb, to=emb.isel(time=0, y=row, x=col, drop=True)).isel(time=1).values
    r, c, inside = cells_under(view, url)
    both = inside & np.isfinite(wanted[r, c])
    assert (np.isfinite(scores) == both).all()
    assert abs(scores - wanted[r, c])[both].max() < 1e-4
    assert view.grid.at(*places_of(view, [(row, col)])[0])[2:] == pytest.approx(point, abs=1e-5)
    np.testing.assert_allclose(view.similarity.isel(time=1).values, wanted, atol=1e-6)
    # Clicked again, the version rises, so that no browser shows the old tiles.
    again = client.post("/api/similar", json={"t": 0, "places": places_of(view, [(row, col)])}).json()
    assert again["version"] == facts["version"] + 1
    assert client.delete("/api/layers/similar").status_code == 200
    assert client.get(url).status_code == 404


@pytest.mark.parametrize(
    ("kind", "crs", "north_up"),
    [("knn", "EPSG:32632", True), ("linear", "EPSG:4326", False), ("knn", "EPSG:32632", False)],
)
def test_labels_become_a_classified_map_and_files(kind: str, crs: str, north_up: bool) -> None:
    corner, cell = ((500_000.0, 5_200_000.0), 80.0) if crs == "EPSG:32632" else ((10.0, 47.0), 0.001)
    emb = embeddings(rows=24, cols=32, crs=crs, corner=corner, cell=cell, north_up=north_up, invalid=((2, 3),))
    view = ViewerState(emb, title="made up/../x")
    client = client_of(view)
    assert client.post("/api/fit", json={"kind": kind, "t": 0}).status_code == 400
    flip = (lambda r: r) if north_up else (lambda r: 23 - r)
    # In the order of the array: (row, column) by class, as `truth` has them north-up.
    cells = {0: [(1, 2), (20, 3)], 1: [(2, 28), (21, 30)], 2: [(12, 16), (11, 15)]}
    labels = label_set(view, {k: [(flip(r), c) for r, c in v] for k, v in cells.items()})
    assert client.put("/api/labels", json=labels).status_code == 200
    assert client.get("/api/labels.geojson").json()["features"][0]["properties"]["label"] == "class 0"
    job = finished(client, client.post("/api/fit", json={"kind": kind, "t": None}).json())
    assert job["state"] == "done", job
    assert [c["name"] for c in job["result"]["classes"]] == ["class 0", "class 1", "class 2"]
    expected = truth(24, 32).astype("uint8")
    expected[2, 3] = 255
    np.testing.assert_array_equal(view.classes.values if north_up else view.classes.values[::-1], expected)
    url = tile_url(view, "classes", dz=1)
    shown = pixels(client.get(url).content, "RGB")
    r, c, inside = cells_under(view, url)
    np.testing.assert_array_equal(shown[inside][:, 0], view.classes.values[r, c][inside])
    assert (shown[~inside] == [255, 0, 255]).all()

    job = finished(client, client.post("/api/export", json={"layer": "classes", "t": 0, "format": "cog"}).json())
    assert job["state"] == "done", job
    answer = client.get(f"/api/jobs/{job['id']}/file")
    assert "made-up-x_my-classes" in answer.headers["content-disposition"]
    with rasterio.MemoryFile(answer.content) as memory, memory.open() as tif:
        np.testing.assert_array_equal(tif.read(1), expected)
        assert tif.nodata == 255
        assert tif.crs.to_epsg() == int(crs[5:])
        assert tif.transform.almost_equals(Affine(cell, 0, corner[0], 0, -cell, corner[1]))
        assert tif.colormap(1)[1][:3] == (0x01, 0x80, 0x40)
        assert tif.profile["tiled"]

    job = finished(client, client.post("/api/export", json={"layer": "classes", "t": 0, "format": "geojson"}).json())
    features = client.get(f"/api/jobs/{job['id']}/file").json()["features"]
    assert {f["properties"]["label"] for f in features} == {"class 0", "class 1", "class 2"}
    import geopandas as gpd

    table = gpd.GeoDataFrame.from_features(features, crs="EPSG:4326").to_crs(crs)
    disc = shapely.area(table.geometry[table["class"] == 2].values).sum() / cell**2
    assert disc == pytest.approx((expected == 2).sum(), rel=1e-3)


def test_similarity_is_exported_with_its_numbers(client: TestClient, view: ViewerState, store: Path) -> None:
    client.post("/api/similar", json={"t": 0, "places": [list(middle(view))]})
    job = finished(client, client.post("/api/export", json={"layer": "similar", "t": 1, "format": "cog"}).json())
    with rasterio.MemoryFile(client.get(f"/api/jobs/{job['id']}/file").content) as memory, memory.open() as tif:
        np.testing.assert_allclose(tif.read(1), view.similarity.isel(time=1).values, atol=1e-6)
        assert tif.tags()["model"] == "deo_spectral_tiny.v2"
    ask = {"layer": "similar", "t": 1, "format": "geojson", "threshold": 0.5}
    job = finished(client, client.post("/api/export", json=ask).json())
    features = client.get(f"/api/jobs/{job['id']}/file").json()["features"]
    import geopandas as gpd

    area = gpd.GeoDataFrame.from_features(features, crs="EPSG:4326").to_crs(view.grid.box.crs.proj).area.sum() / 1600
    assert area == pytest.approx(int((view.similarity.isel(time=1) >= 0.5).sum()), rel=1e-3)
    job = finished(client, client.post("/api/export", json={"layer": "pca", "t": 0, "format": "cog"}).json())
    with rasterio.MemoryFile(client.get(f"/api/jobs/{job['id']}/file").content) as memory, memory.open() as tif:
        assert tif.count == 3


def test_saved_heads_are_layers(store: Path, tmp_path: Path) -> None:
    emb = deo_cube.open_embeddings(store).isel(time=0).compute()
    valid = np.argwhere(np.isfinite(emb).all("embedding").values)
    points = [(float(emb.x[c]), float(emb.y[r]), "ab"[i % 2]) for i, (r, c) in enumerate(valid[::50])]
    head = fit_head("knn", emb, points)
    head.save(tmp_path / "mine")
    path = next(tmp_path.iterdir())
    view = ViewerState.of_store(store, heads={"mine": path})
    client = client_of(view)
    (facts,) = (layer for layer in client.get("/api/store").json()["layers"] if layer["id"] == "head0")
    assert facts["title"] == "mine"
    url = tile_url(view, "head0", dz=1)
    r, c, inside = cells_under(view, url)
    np.testing.assert_array_equal(
        pixels(client.get(url).content, "RGB")[inside][:, 0], head.predict(emb).values[r, c][inside]
    )
    with pytest.raises(ValueError, match="the head is for"):
        ViewerState(embeddings(), heads={"mine": head})


def test_a_quantity_is_a_layer_of_colours(tmp_path: Path) -> None:
    emb = embeddings(rows=48, cols=64, dim=6, noise=1.0, invalid=[(3, 4)])
    target = emb.isel(embedding=0, drop=True) * 10 + 50
    head = fit_head("ridge", emb, target, units="t/ha")
    view = ViewerState(emb, heads={"biomass": head})
    client = client_of(view)
    (facts,) = (layer for layer in client.get("/api/store").json()["layers"] if layer["id"] == "head0")
    assert facts["kind"] == "colour"
    assert "t/ha" in facts["note"]
    url = tile_url(view, "head0", dz=3)
    r, c, inside = cells_under(view, url)
    shown, values = pixels(client.get(url).content, "RGBA"), head.predict(emb).values[r, c]
    assert (shown[inside][:, 3] == 255 * np.isfinite(values[inside])).all()
    # A larger quantity is darker.
    dark = shown[inside][:, :3].sum(axis=1).astype(float)
    seen = np.isfinite(values[inside])
    order = np.argsort(values[inside][seen])
    assert (np.diff(dark[seen][order]) <= 2).all()
    job = finished(client, client.post("/api/export", json={"layer": "head0", "t": 0, "format": "cog"}).json())
    with rasterio.MemoryFile(client.get(f"/api/jobs/{job['id']}/file").content) as memory, memory.open() as tif:
        assert tif.count == 3


def test_heads_that_see_neighbours_have_no_seams_and_wait_for_zoom(tmp_path: Path) -> None:
    emb = embeddings(rows=48, cols=64, dim=6)
    fitted = fit_head(
        "conv",
        emb,
        [(float(emb.x[c]), float(emb.y[r]), int(truth(48, 64)[r, c])) for r in (5, 24, 40) for c in (5, 32, 60)],
        steps=5,
        width=8,
    )
    view = ViewerState(emb, heads={"conv": fitted})
    client = client_of(view)
    url = tile_url(view, "head0", dz=3)
    r, c, inside = cells_under(view, url)
    whole = fitted.predict(emb).values
    fine = whole.shape[0] // 48
    shown = pixels(client.get(url).content, "RGB")[..., 0]
    if fine == 1:
        np.testing.assert_array_equal(shown[inside], whole[r, c][inside])
    view.source.max_squares = 0
    far = client.get(tile_url(view, "head0", dz=-1))
    assert far.headers["x-deo-tile"] == "zoom"
    assert far.headers["cache-control"] == "no-store"


def test_an_overview_is_sharpened_on_request() -> None:
    emb = on_dask(embeddings(rows=320, cols=320, dim=4), 32, 32)
    view = ViewerState(emb, source=TileSource.of(emb, tile_bytes=8 * 32 * 32 * 4 * 4))
    client = client_of(view)
    url = tile_url(view, "pca", dz=-1)
    assert client.get(url).headers["x-deo-tile"] == "sampled"
    (s, w), (n, e) = view.grid.bounds
    body = {"layer": "pca", "t": 0, "bounds": [[w - 1, s - 1], [e + 1, n + 1]]}
    job = finished(client, client.post("/api/overview", json=body).json())
    assert (job["state"], job["share"]) == ("done", 1.0)
    assert client.get(url).headers["x-deo-tile"] == "complete"
    off = {"layer": "pca", "t": 0, "bounds": [[100, -50], [101, -49]]}
    assert client.post("/api/overview", json=off).status_code == 400


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/tiles/pca/0/3/8/0.png", 400, "x of a tile at zoom 3"),
        ("/tiles/pca/0/3/0/-1.png", 400, "y of a tile at zoom 3"),
        ("/tiles/pca/0/99/0/0.png", 400, "zoom of a tile"),
        ("/tiles/pca/0/a/b/c.png", 400, "zoom of a tile"),
        ("/tiles/pca/7/3/0/0.png", 400, "date"),
        ("/tiles/nothing/0/3/0/0.png", 404, "no layer"),
        ("/tiles/..%2f..%2fetc/0/3/0/0.png", 404, ""),
        ("/api/place?lon=0&lat=0&t=0", 400, "outside"),
        ("/api/place?lon=nan&lat=0&t=0", 400, "finite"),
        ("/api/place?lon=x", 400, "degrees"),
        ("/api/jobs/1", 404, "no such job"),
        ("/api/jobs/..%2f..%2fetc%2fpasswd/file", 404, ""),
        ("/static/../view.py", 404, ""),
        ("/static/%2e%2e/app.py", 404, ""),
        ("/static/..%2fapp.py", 404, ""),
        ("/nowhere", 404, ""),
    ],
)
def test_unknown_paths_are_refused_in_a_sentence(refusing: TestClient, path: str, status: int, says: str) -> None:
    answer = refusing.get(path)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/api/similar", {"t": 0, "places": []}, "1 to 200 places"),
        ("/api/similar", {"t": 5, "places": [[9, 45]]}, "date"),
        ("/api/similar", {"t": 0, "places": [[9, 45]]}, "outside"),
        ("/api/similar", {"t": 0, "places": "all"}, "1 to 200 places"),
        ("/api/similar", {"t": 0, "places": [[9, 45]], "negatives": "all"}, "1 to 200 places"),
        ("/api/results", {"t": 0, "count": 0}, "number of results"),
        ("/api/fit", {"kind": "conv", "t": 0}, "knn, linear"),
        ("/api/fit", {"kind": "knn", "t": 0}, "two classes"),
        ("/api/export", {"layer": "pca", "t": 0, "format": "exe"}, "cog, geojson"),
        ("/api/export", {"layer": "pca", "t": 0, "format": "geojson"}, "not exported as GEOJSON"),
        ("/api/export", {"layer": "true", "t": 0, "format": "cog"}, "not exported"),
        ("/api/export", {"layer": "pca", "t": 0, "format": "cog", "threshold": 7}, "threshold"),
        ("/api/overview", {"layer": "pca", "t": 0, "bounds": [[0, 0]]}, "two places"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(refusing: TestClient, path: str, body: dict, says: str) -> None:
    answer = refusing.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]


def test_clouds_have_nothing_similar() -> None:
    view = ViewerState(embeddings(invalid=((5, 6),)))
    answer = client_of(view).post("/api/similar", json={"t": 0, "places": places_of(view, [(5, 6)])})
    assert answer.status_code == 400
    assert "no valid embedding" in answer.json()["error"]


def test_bodies_are_json_of_a_bounded_size(client: TestClient) -> None:
    assert client.post("/api/similar", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    huge = b'{"a": "' + b"x" * (17 * 2**20) + b'"}'
    assert client.put("/api/labels", content=huge, headers={"content-type": "application/json"}).status_code == 413
    parts = (huge[i : i + 2**20] for i in range(0, len(huge), 2**20))
    assert client.put("/api/labels", content=parts, headers={"content-type": "application/json"}).status_code == 413


def test_a_failure_of_the_server_shows_no_traceback(
    client: TestClient, view: ViewerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "tile", lambda *a: 1 / 0)
    answer = client.get(tile_url(view, "pca"))
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["error"]
    assert "Traceback" not in json.dumps(answer.json())


def test_jobs_can_be_stopped() -> None:
    from deo_cube.viewer.jobs import JobQueue

    jobs = JobQueue()

    def forever() -> Any:
        while True:
            yield 0.5
            time.sleep(0.001)

    first, second = jobs.start("one", forever), jobs.start("two", lambda: 3)
    while first.share is None:
        time.sleep(0.001)
    assert second.state == "waiting"
    first.stop.set()
    while second.state != "done":
        time.sleep(0.001)
    assert (first.state, second.result) == ("cancelled", 3)
    bad = jobs.start("three", lambda: int("x"))
    while bad.state != "failed":
        time.sleep(0.001)
    assert "invalid literal" in bad.message
