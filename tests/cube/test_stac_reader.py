from __future__ import annotations

import json
import pickle
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import rasterio

from deo_cube.cube.stac import load_cube
from deo_cube.cube.stac_reader import Access, access, sign_planetary_computer
from deo_cube.errors import MissingExtraError
from tests.cube.items import flat, product, remote
from tests.cube.range_server import serve

BLOB = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/06/V/VN/B04.tif"


def test_an_href_is_signed_at_each_read_and_not_before(tmp_path, gdal_http):
    local = product(tmp_path, "a", {"B02": flat(7, (64, 64))}, offset=0)
    asked = []

    def sign(href):
        asked.append(href)
        return f"{href}?token={len(asked)}"

    with serve(tmp_path) as server:
        ds = load_cube([remote(local, tmp_path, server.url)], patch_url=sign)
        assert asked == []
        plain = f"{server.url}/a/B02.tif"
        for turn in (1, 2):
            assert (ds.B02.compute(scheduler="synchronous") == 7).all()
            assert asked == [plain] * turn
            assert any(f"token={turn}" in path for _, path in server.requests)


def test_a_server_that_falls_silent_is_given_up(tmp_path, gdal_http, monkeypatch):
    local = product(tmp_path, "a", {"B02": flat(7, (64, 64))}, offset=0)
    with serve(tmp_path) as server:
        ds = load_cube([remote(local, tmp_path, server.url)], patch_url=lambda href: f"{href}?silent")
        monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")  # the process's own settings come first
        began = time.monotonic()
        with pytest.raises(rasterio.RasterioIOError):
            ds.B02.compute(scheduler="synchronous")
        assert time.monotonic() - began < 60
    monkeypatch.delenv("GDAL_HTTP_LOW_SPEED_TIME")
    reader = access([], None)
    with reader.restore_env({}, reader.new_load({})):
        assert rasterio.env.getenv()["GDAL_HTTP_LOW_SPEED_TIME"] in (120, "120")


def test_a_reader_travels(tmp_path):
    own = access([BLOB], None)
    assert pickle.loads(pickle.dumps(own)).gdal == own.gdal
    assert pickle.loads(pickle.dumps(Access(sign_planetary_computer))).sign is sign_planetary_computer
    assert own.__dask_tokenize__() == access([BLOB], None).__dask_tokenize__()


def test_what_needs_signing_is_known_by_where_it_lies(monkeypatch):
    pytest.importorskip("planetary_computer")
    assert access([BLOB], "auto").sign is sign_planetary_computer
    assert access([BLOB], None).sign is None
    assert access(["https://sentinel-cogs.s3.us-west-2.amazonaws.com/x.tif", "/data/x.tif"], "auto").sign is None
    monkeypatch.setitem(__import__("sys").modules, "planetary_computer", None)
    with pytest.raises(MissingExtraError, match=r"deo-cube\[stac\]"):
        access([BLOB], "auto")
    assert access([f"{BLOB}?se=2024&sig=abc"], "auto").sign is None  # signed by other means


@pytest.fixture
def tokens(monkeypatch):
    """The Planetary Computer's token service on loopback; counts what it gave."""
    pc = pytest.importorskip("planetary_computer")
    given = []
    life = {"s": 3600}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            return None

        def do_GET(self):
            given.append(self.path)
            until = datetime.now(UTC) + timedelta(seconds=life["s"])
            body = json.dumps({"msft:expiry": until.isoformat(), "token": f"se=1&sig={len(given)}"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PC_SDK_SAS_URL", f"http://127.0.0.1:{server.server_port}/token")
    pc.settings.Settings.get.cache_clear()
    pc.sas.TOKEN_CACHE.clear()
    yield given, life
    server.shutdown()
    server.server_close()
    pc.settings.Settings.get.cache_clear()
    pc.sas.TOKEN_CACHE.clear()


def test_tokens_of_the_planetary_computer_are_kept_while_good_and_renewed(tokens):
    given, life = tokens
    assert sign_planetary_computer("https://example.org/a.tif") == "https://example.org/a.tif"
    assert given == []
    assert sign_planetary_computer(BLOB) == f"{BLOB}?se=1&sig=1"
    assert sign_planetary_computer(BLOB) == f"{BLOB}?se=1&sig=1"
    assert given == ["/token/sentinel2l2a01/sentinel2-l2"]
    # An href that was signed long ago is signed anew, which planetary_computer.sign alone does not do.
    assert sign_planetary_computer(f"{BLOB}?st=1&se=0&sig=old") == f"{BLOB}?se=1&sig=1"
    import planetary_computer

    planetary_computer.sas.TOKEN_CACHE.clear()
    life["s"] = 30  # tokens that run out within the minute
    assert sign_planetary_computer(BLOB).endswith("sig=2")
    assert sign_planetary_computer(BLOB).endswith("sig=3")


def test_files_of_the_copernicus_data_space_are_asked_for_at_its_own_endpoint(tmp_path, monkeypatch):
    """`s3://eodata/...` is no bucket of Amazon's: the preset's endpoint, here replaced by one on loopback."""
    import rasterio

    own = access(["s3://eodata/Sentinel-2/x.jp2"], "auto")
    assert dict(own.gdal) == {
        "AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
    assert access(["s3://sentinel-s2-l2a/x.jp2"], "auto").gdal == ()
    local = product(tmp_path, "eodata", {"B02": flat(1700, (64, 64))}, offset=-0.1)
    local["properties"]["s2:processing_baseline"] = "05.11"
    local["assets"]["B02"]["href"] = "s3://eodata/B02.tif"
    for key, value in {
        "AWS_NO_SIGN_REQUEST": "YES",
        "AWS_HTTPS": "NO",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    }.items():
        monkeypatch.setenv(key, value)
    with serve(tmp_path) as server:
        preset = {"AWS_S3_ENDPOINT": server.url.removeprefix("http://"), "AWS_VIRTUAL_HOSTING": "FALSE"}
        monkeypatch.setattr("deo_cube.cube.stac_reader.CATALOGUES", {"cdse": stand_in(tuple(preset.items()))})
        ds = load_cube([local])
        assert server.requests == []
        with rasterio.Env():
            np.testing.assert_array_equal(ds.B02.values[0], flat(1700, (64, 64)))
        assert {Path(p).name for _, p in server.requests} == {"B02.tif"}
        assert all(p.startswith("/eodata/") for _, p in server.requests)


def stand_in(gdal):
    from dataclasses import replace

    from deo_cube.cube.stac_catalogs import CATALOGUES

    return replace(CATALOGUES["cdse"], gdal=gdal)
