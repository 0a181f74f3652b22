"""What items may name: public files, their own host and this machine's files, each from where they came."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.cli import main
from deo_cube.cube.hrefs import Origin, allowed, check_href, internal_host, read_allow
from deo_cube.cube.stac import load_cube
from deo_cube.errors import ArgumentTypeError, CatalogueError, DeoCubeError, HrefRefusedError
from deo_cube.options import set_options
from tests.cube.items import flat, product, remote
from tests.cube.range_server import serve
from tests.cube.stac_api import stac_api

PUBLIC = Origin("remote", frozenset({"stac.example.org"}), "https://stac.example.org/v1")


@pytest.mark.parametrize(
    "href",
    [
        "https://data.example.org/B02.tif",
        "http://data.example.org:8080/B02.tif?token=1",
        "https://1.1.1.1/B02.tif",
        "https://[2606:4700::1111]/B02.tif",
        "s3://bucket/B02.tif",
        "gs://bucket/B02.tif",
        "az://container/B02.tif",
        "/vsis3/bucket/B02.tif",
        "/vsicurl/https://data.example.org/B02.tif",
        "https://sentinel2l2a01.blob.core.windows.net/x/B04.tif",
    ],
)
def test_public_files_are_read_whoever_names_them(href: str) -> None:
    for origin in (PUBLIC, Origin("file"), Origin("memory")):
        check_href(href, origin, (), "asset B02 of item a")


INTERNAL = [
    "http://localhost/B02.tif",
    "http://LOCALHOST./B02.tif",
    "http://a.localhost/B02.tif",
    "http://127.0.0.1:8000/B02.tif",
    "http://127.1/B02.tif",
    "http://2130706433/B02.tif",
    "http://0x7f.0.0.1/B02.tif",
    "http://0177.0.0.1/B02.tif",
    "http://0.0.0.0/B02.tif",
    "http://[::1]/B02.tif",
    "http://[::ffff:127.0.0.1]/B02.tif",
    "http://[::ffff:a9fe:a9fe]/B02.tif",
    "http://10.0.0.5/B02.tif",
    "http://172.16.3.4/B02.tif",
    "http://192.168.1.1/B02.tif",
    "http://100.100.100.200/latest",
    "http://169.254.169.254/latest/meta-data",
    "http://[fe80::1]/B02.tif",
    "http://[fd00::1]/B02.tif",
    "http://metadata.google.internal/B02.tif",
    "http://metadata/B02.tif",
    "http://storage.corp/B02.tif",
    "http://public.example.org@127.0.0.1/B02.tif",
    "HTTP://127.0.0.1/B02.tif",
    "/vsicurl/http://10.0.0.5/B02.tif",
]
LOCAL = [
    "/etc/passwd",
    "/data/B02.tif",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "/vsizip//data/a.zip/B02.tif",
    "/vsizip//vsicurl/http://10.0.0.5/a.zip/B02.tif",
    "/vsisubfile/0_100,/etc/passwd",
    "/vsistdin/",
    "/vsicurl?url=http://10.0.0.5/B02.tif",
    "/vsicached?file=/etc/passwd",
    "zip:///data/a.zip!B02.tif",
    "vrt:///etc/passwd",
    '<VRTDataset rasterXSize="1" rasterYSize="1"/>',
    'NETCDF:"/data/a.nc":B02',
    "ftp://10.0.0.5/B02.tif",
]


@pytest.mark.parametrize("href", [*INTERNAL, *LOCAL])
def test_an_item_from_a_network_names_nothing_inside_this_one(href: str) -> None:
    with pytest.raises(HrefRefusedError, match="allow=") as caught:
        check_href(href, PUBLIC, (), "asset B02 of item a")
    # The advice, to the letter.
    advice = eval(re.search(r"allow=(.*)$", str(caught.value))[1])  # type: ignore[index]
    check_href(href, PUBLIC, read_allow(advice), "asset B02 of item a")


@pytest.mark.parametrize("href", [h for h in INTERNAL if "10.0" in h or "169." in h or "metadata" in h])
def test_no_item_names_services_of_a_network_it_did_not_come_from(href: str) -> None:
    for origin in (Origin("file"), Origin("memory"), Origin("remote", frozenset({"loopback"}), "http://localhost/a")):
        with pytest.raises(HrefRefusedError):
            check_href(href, origin, (), "asset B02 of item a")


def test_items_of_an_internal_host_name_its_own_files() -> None:
    own = Origin("remote", frozenset({"10.0.0.5"}), "http://10.0.0.5/stac")
    check_href("http://10.0.0.5:9000/B02.tif", own, (), "a")
    for other in ("http://10.0.0.6/B02.tif", "http://localhost/B02.tif", "/data/B02.tif"):
        with pytest.raises(HrefRefusedError):
            check_href(other, own, (), "a")


def test_files_of_this_machine_are_named_by_items_of_this_machine() -> None:
    for origin in (Origin("file"), Origin("memory")):
        for href in ("/data/B02.tif", "/vsizip//data/a.zip/B02.tif", 'NETCDF:"/data/a.nc":B02'):
            check_href(href, origin, (), "a")
    check_href("http://127.0.0.1/B02.tif", Origin("memory"), (), "a")
    with pytest.raises(HrefRefusedError, match="allow='127.0.0.1'"):
        check_href("http://127.0.0.1/B02.tif", Origin("file"), (), "a")


@pytest.mark.parametrize(
    ("allow", "yes", "no"),
    [
        ("/data", ["/data/a.tif", "/data/b/../a.tif"], ["/database/a.tif", "/data/../etc/passwd", "/etc/passwd"]),
        ("10.0.0.5", ["http://10.0.0.5/a", "http://10.0.0.5:81/a"], ["http://10.0.0.55/a", "http://10.0.0.5.evil.lan/a"]),
        ("10.0.0.5:80", ["http://10.0.0.5:80/a"], ["http://10.0.0.5:81/a"]),
        (
            "http://10.0.0.5/a/",
            ["http://10.0.0.5/a/b.tif"],
            ["http://10.0.0.5/ab.tif", "http://10.0.0.5/a/../b.tif", "http://10.0.0.5/a/%2e%2e/b.tif",
             "https://10.0.0.5/a/b.tif", "http://10.0.0.5/a@127.0.0.1/", "http://10.0.0.6/a/b.tif"],
        ),
        ("localhost", ["http://localhost/a", "http://127.0.0.1:8/a", "http://[::1]/a"], ["http://10.0.0.5/a"]),
        ("/vsizip", ["/vsizip//data/a.zip/b"], ["/vsizipx/a", "/vsitar//data/a.tar/b"]),
        ("file:///data", ["/data/a.tif"], ["/etc/passwd"]),
    ],
)  # fmt: skip
def test_what_allow_covers(allow: str, yes: list[str], no: list[str]) -> None:
    assert all(allowed(href, read_allow(allow)) for href in yes)
    covered = [href for href in no if allowed(href, read_allow([allow]))]
    assert covered in ([], ["http://10.0.0.5/a@127.0.0.1/"])  # a path of the same host that looks like another


def test_links_out_of_an_allowed_folder_are_followed_to_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "B02.tif").symlink_to("/etc/passwd")
    assert not allowed(str(tmp_path / "data" / "B02.tif"), (str(tmp_path / "data"),))


@given(st.ip_addresses(v=4))
def test_addresses_are_told_however_they_are_written(address: Any) -> None:
    kind = internal_host(f"http://{address}/")
    assert (kind == "") == (address.is_global and not str(address).startswith("100.64"))
    assert internal_host(f"http://{int(address)}/") == kind
    assert internal_host(f"http://{int(address):#x}/") == kind
    assert internal_host(f"http://[::ffff:{address}]/") == kind
    assert socket.inet_aton(str(int(address))) == address.packed


@pytest.mark.parametrize("allow", [3, None, [1], [""], "", b"x"])
def test_allow_of_another_type_is_refused(allow: Any, tmp_path: Path) -> None:
    one = product(tmp_path, "a", {"B02": flat(7)}, offset=0)
    with pytest.raises(ArgumentTypeError, match="allow"):
        load_cube([one], allow=allow)


# --- with real servers ----------------------------------------------------------------------------


def linked(item: dict[str, Any], rel: str, href: str) -> dict[str, Any]:
    return {**json.loads(json.dumps(item)), "links": [{"rel": rel, "href": href, "type": "application/json"}]}


@pytest.mark.parametrize("rel", ["self", "root", "parent", "collection"])
def test_a_local_file_named_by_an_item_from_a_network_is_refused_and_the_advice_reads_it(
    rel: str, tmp_path: Path
) -> None:
    local = product(tmp_path, "a", {"B02": flat(7, (64, 64))}, offset=0)
    foreign = linked(local, rel, "https://stac.example.org/items/a")
    for form in (foreign, pystac.Item.from_dict(foreign), pystac.ItemCollection([foreign])):
        with pytest.raises(HrefRefusedError, match=r"asset B02 of item a.*stac\.example\.org.*allow=") as caught:
            load_cube(form)
    allow = eval(re.search(r"allow=(.*)$", str(caught.value))[1])  # type: ignore[index]
    assert (load_cube([foreign], allow=allow).B02.values == 7).all()
    # The same item as a file of this machine, whose author its owner is.
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [foreign]}))
    assert (load_cube(tmp_path / "items.json").B02.values == 7).all()
    assert (load_cube([local]).B02.values == 7).all()


def test_a_loopback_server_is_asked_only_for_what_came_from_it(
    tmp_path: Path,
    gdal_http: None,
) -> None:
    local = product(tmp_path, "a", {"B02": flat(7, (64, 64))}, offset=0)
    with serve(tmp_path) as server:
        there = remote(local, tmp_path, server.url)
        foreign = linked(there, "self", "https://stac.example.org/items/a")
        with pytest.raises(HrefRefusedError, match="allow='127.0.0.1'"):
            load_cube([foreign])
        assert server.requests == []
        assert (load_cube([foreign], allow="127.0.0.1").B02.values == 7).all()
        own = linked(there, "self", f"{server.url}/a.json")
        assert (load_cube([own]).B02.values == 7).all()
        # Read by its URL, with hrefs relative to it, and one that leads to this machine's files.
        relative = json.loads(json.dumps(local))
        relative["assets"]["B02"]["href"] = "./a/B02.tif"
        (tmp_path / "rel.json").write_text(json.dumps(relative))
        assert (load_cube(f"{server.url}/rel.json").B02.values == 7).all()
        (tmp_path / "abs.json").write_text(json.dumps(local))
        with pytest.raises(HrefRefusedError, match="allow="):
            load_cube(f"{server.url}/abs.json")
        for missing in (f"{server.url}/none.json", "http://127.0.0.1:1/items.json"):
            with pytest.raises(CatalogueError, match="did not answer"):
                load_cube(missing)
        with set_options(offline=True), pytest.raises(CatalogueError, match="offline"):
            load_cube("https://stac.example.org/items.json")


def test_items_of_a_search_name_no_files_of_this_machine(tmp_path: Path, gdal_http: None) -> None:
    pystac_client = pytest.importorskip("pystac_client")
    local = product(tmp_path, "a", {"B02": flat(7, (64, 64))}, offset=0)
    with serve(tmp_path) as server, stac_api([{**local, "collection": "c"}], tmp_path) as url:
        search = pystac_client.Client.open(url).search(collections=["c"])
        for items in (search, search.item_collection(), list(search.items())):
            with pytest.raises(HrefRefusedError, match="allow="):
                load_cube(items)
        assert (load_cube(search, allow=str(tmp_path)).B02.values == 7).all()
        assert server.requests == []


def test_a_vrt_behind_a_server_does_not_lead_to_files_of_this_machine(
    tmp_path: Path,
    gdal_http: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CPL_VSIL_CURL_ALLOWED_EXTENSIONS", ".tif,.vrt")
    secret = tmp_path / "secret.tif"
    local = product(tmp_path / "www", "a", {"B02": flat(7, (64, 64))}, offset=0)
    Path(local["assets"]["B02"]["href"]).rename(secret)
    for name in ("a/B02.vrt", "a/B02.tif"):  # a VRT under its own name, and dressed up
        rasterio.shutil.copy(str(secret), str(tmp_path / "www" / name), driver="VRT")
    with serve(tmp_path / "www") as server:
        for name in ("a/B02.vrt", "a/B02.tif"):
            there = json.loads(json.dumps(local))
            there["assets"]["B02"] |= {"href": f"{server.url}/{name}", "type": "image/tiff"}
            with pytest.raises(HrefRefusedError, match="allow=") as caught:
                load_cube([there]).B02.compute(scheduler="synchronous")
            allow = eval(re.search(r"allow=(.*)$", str(caught.value))[1])  # type: ignore[index]
            np.testing.assert_array_equal(load_cube([there], allow=allow).B02.values[0], flat(7, (64, 64)))


def test_the_command_line_has_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bands = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    local = product(tmp_path, "a", {b: flat(700, (64, 64)) for b in bands}, offset=0)
    for asset in local["assets"].values():
        asset["href"] = f"http://127.0.0.1:9/{asset['href']}"
    (tmp_path / "items.json").write_text(json.dumps(local))
    call = ["plan", str(tmp_path / "items.json")]
    with pytest.raises(SystemExit) as ended:
        main(call)
    assert ended.value.code == 2
    assert "--allow 127.0.0.1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*call, "--allow", "127.0.0.1"])
    assert not ended.value.code


def test_hrefs_of_every_kind_raise_no_foreign_error(tmp_path: Path) -> None:
    one = product(tmp_path, "a", {"B02": flat(7)}, offset=0)
    for href in ("", " ", "\x00", "http://", "http://[", "https://a b/c.tif", "//host/x.tif", "c:\\x.tif", "x" * 5000):
        one["assets"]["B02"]["href"] = href
        with pytest.raises(DeoCubeError):
            load_cube([one])
