"""Requests that another page could make are refused, over real sockets: every path, every method."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette")

from deo_cube.viewer import server
from deo_cube.viewer.explore import Explorer
from deo_cube.viewer.server import AccessRules, refusal
from deo_cube.viewer.state import ViewerState
from tests.heads.fields import embeddings

PATHS = {
    "GET": ("/", "/api/store", "/api/place?lon=0&lat=0", "/static/viewer.js", "/api/labels", "/tiles/pca/0/1/0/0.png",
            "/no"),
    "HEAD": ("/", "/static/viewer.js"),
    "PUT": ("/api/labels", "/", "/api/nothing"),
    "POST": ("/api/similar", "/api/fit", "/api/overview", "/api/export", "/api/labels", "/"),
    "DELETE": ("/api/layers/similar", "/api/jobs/1"),
    "PATCH": ("/api/labels",),
    "OPTIONS": ("/api/labels", "/"),
}  # fmt: skip
EVERY = [(method, path) for method, paths in PATHS.items() for path in paths]
BODY = b'{"classes": [], "features": []}'
#: Seconds that anything may take, far more than it takes on a busy machine.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def explorer() -> Iterator[Explorer]:
    with Explorer(ViewerState(embeddings(times=2), title="guarded")) as one:
        yield one


def port_of(explorer: Explorer) -> int:
    return int(explorer.url.rsplit(":", 1)[1].strip("/"))


def raw(explorer: Explorer, request: bytes) -> bytes:
    """What the server answers to these bytes, until it has answered once or closes."""
    with socket.create_connection(("127.0.0.1", port_of(explorer)), timeout=PATIENCE) as one:
        one.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer and (part := one.recv(65536)):
            answer += part
        return answer


def request(
    explorer: Explorer, method: str, path: str, *headers: str, host: str | None = "own", version: str = "1.1"
) -> tuple[int, str]:
    own = f"127.0.0.1:{port_of(explorer)}"
    lines = [f"{method} {path} HTTP/{version}", *([] if host is None else [f"Host: {own if host == 'own' else host}"])]
    lines += [h.replace("OWN", own) for h in headers]
    body = BODY if method in ("PUT", "POST", "PATCH", "DELETE") else b""
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    answer = raw(explorer, "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
    head = answer.partition(b"\r\n\r\n")[0].decode()
    return int(head.split(" ", 2)[1]) if head else 0, head.lower()


def answers(explorer: Explorer) -> bool:
    """Return whether the server answers, once it has noticed that other connections ended."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if request(explorer, "GET", "/api/store")[0] == 200:
                return True
        time.sleep(0.02)
    return False


FOREIGN_HOSTS = [
    None, "", "evil.com", "evil.com:80", "127.0.0.1.evil.com", "localhost.evil.com", "localhost.", "127.0.0.1.",
    "evil.com@127.0.0.1", "127.0.0.1@evil.com", "user:pw@127.0.0.1", "127.0.0.1:80:80", "127.0.0.1:", "127.0.0.1:x",
    "127.0.0.1:999999", "[::1", "::1", "[::ffff:1.2.3.4]", "[fe80::1%25lo]", "127.0.0.1, evil.com",
    "127.0.0.1 evil.com",
    "127.0.0.1/evil.com", "127.0.0.1#evil.com", "127.0.0.1?evil", "127.0.0.1\\evil.com", "0.0.0.0", "127.1",
    "2130706433", "0x7f.0.0.1", "127.0.0.2", "192.168.0.10", "localhost%00.evil.com", "*",
]  # fmt: skip
FOREIGN_ORIGINS = [
    "null", "", "http://evil.com", "http://127.0.0.1.evil.com", "http://127.0.0.1", "http://127.0.0.1:1",
    "https://evil.com",
    "http://OWN.evil.com", "http://OWN@evil.com", "http://evil.com@OWN", "http://OWN/", "http://OWN/path", "OWN",
    "//OWN",
    "file://", "chrome-extension://abc", "ftp://OWN", "http://localhost", "http://OWN http://evil.com", "http://OWN#",
]  # fmt: skip


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_foreign_and_malformed_hosts_are_refused(explorer: Explorer, host: str | None) -> None:
    for method, path in (("GET", "/api/store"), ("PUT", "/api/labels"), ("POST", "/api/similar"), ("GET", "/")):
        for version in ("1.1", "1.0"):
            status, head = request(explorer, method, path, host=host, version=version)
            assert status in (400, 403), (method, path, version, head)


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_foreign_and_malformed_origins_are_refused(explorer: Explorer, origin: str) -> None:
    for method, path in EVERY:
        status, head = request(explorer, method, path, f"Origin: {origin}")
        assert status in (400, 403), (method, path, head)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "evil", "same-origin, cross-site", "Same-Origin"])
def test_requests_of_other_sites_are_refused(explorer: Explorer, site: str) -> None:
    for method, path in EVERY:
        extra = ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Sec-Fetch-User: ?1")
        status, head = request(explorer, method, path, f"Sec-Fetch-Site: {site}", *extra)
        assert status in (400, 403), (method, path, head)


def test_doubled_headers_are_refused(explorer: Explorer) -> None:
    own = f"127.0.0.1:{port_of(explorer)}"
    for headers in (
        [f"Host: {own}"],
        ["Host: evil.com"],
        [f"Origin: http://{own}", "Origin: http://evil.com"],
        ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"],
    ):
        for version in ("1.0", "1.1"):
            assert request(explorer, "PUT", "/api/labels", *headers, version=version)[0] in (400, 403), headers


@pytest.mark.parametrize(
    "target", ["http://evil.com/api/store", "http://OWN/api/store", "*", "evil.com:80", "api/store"]
)
def test_targets_are_paths(explorer: Explorer, target: str) -> None:
    own = f"127.0.0.1:{port_of(explorer)}"
    for method in ("GET", "PUT", "OPTIONS"):
        assert request(explorer, method, target.replace("OWN", own))[0] in (400, 403), method


def test_a_method_is_not_overridden_and_a_form_is_not_read(explorer: Explorer) -> None:
    before = explorer.state.labels
    override = ("X-HTTP-Method-Override: PUT", "X-Method-Override: PUT", "X-HTTP-Method: PUT")
    assert request(explorer, "GET", "/api/labels?_method=PUT", *override)[0] == 200
    assert explorer.state.labels is before
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "text/json"):
        own = f"127.0.0.1:{port_of(explorer)}"
        head = f"PUT /api/labels HTTP/1.1\r\nHost: {own}\r\nContent-Type: {kind}\r\nContent-Length: {len(BODY)}\r\n\r\n"
        assert b" 415 " in raw(explorer, head.encode() + BODY).splitlines()[0]
    assert explorer.state.labels is before


def test_nothing_is_changed_by_reading(explorer: Explorer) -> None:
    for path in ("/api/similar", "/api/fit", "/api/export", "/api/overview", "/api/layers/pca"):
        for method in ("GET", "HEAD", "OPTIONS"):
            assert request(explorer, method, path)[0] == 405
    assert list(explorer.state.layers) == ["pca"]


def test_web_sockets_are_not_opened(explorer: Explorer) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
    own = f"127.0.0.1:{port_of(explorer)}"
    lines = ["GET /api/store HTTP/1.1", f"Host: {own}", "Connection: Upgrade", *upgrade, "Origin: http://evil.com"]
    answer = raw(explorer, "\r\n".join([*lines, "", ""]).encode())
    assert b" 101 " not in answer
    assert b" 403 " in answer.splitlines()[0]


def test_the_page_itself_is_answered(explorer: Explorer) -> None:
    for host in ("own", "localhost", "LOCALHOST:8123", "[::1]:80"):
        assert request(explorer, "GET", "/api/store", host=host)[0] == 200, host
    for extra in ((), ("Sec-Fetch-Site: same-origin", "Origin: http://OWN"), ("Origin: https://OWN",)):
        assert request(explorer, "PUT", "/api/labels", *extra)[0] == 200
    assert request(explorer, "GET", "/", "Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate")[0] == 200
    assert request(explorer, "PUT", "/api/labels", "Sec-Fetch-Site: none")[0] == 403


def test_every_answer_keeps_other_pages_out(explorer: Explorer) -> None:
    for method, path in EVERY:
        for extra in ((), ("Origin: http://evil.com",)):
            _, head = request(explorer, method, path, *extra)
            assert "frame-ancestors 'none'" in head, (method, path)
            assert "x-frame-options: deny" in head
            assert "x-content-type-options: nosniff" in head
            assert "cross-origin-resource-policy: same-origin" in head
            assert "access-control-allow" not in head
            assert "server:" not in head


def test_only_the_frame_of_the_notebook_shows_the_page(explorer: Explorer) -> None:
    site = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe")
    address = explorer._repr_html_().split('src="')[1].split('"')[0].removeprefix(explorer.url.rstrip("/"))
    status, head = request(explorer, "GET", address, *site)
    assert status == 200
    assert "frame-ancestors *" in head
    assert "x-frame-options" not in head
    secret = address.split("=")[1]
    for wrong in ("/?frame=", "/?frame=guess", "/", f"/api/store?frame={secret}", f"/?frame={secret}&frame=x"):
        assert request(explorer, "GET", wrong, *site)[0] == 403, wrong
    assert request(explorer, "PUT", f"/?frame={secret}", *site)[0] in (403, 405)
    assert request(explorer, "GET", address, *site, host="evil.com")[0] == 403
    assert request(explorer, "GET", address, *site, "Origin: http://evil.com")[0] == 403
    assert secret not in repr(explorer._rules)


def test_other_machines_reach_it_by_address_and_by_its_own_names_alone() -> None:
    with Explorer(ViewerState(embeddings()), host="0.0.0.0", hostnames=["Maps.Example.org"]) as open_to_all:
        for host in ("10.0.0.7", "[2001:db8::1]:80", socket.gethostname(), "maps.example.org", "localhost:1"):
            assert request(open_to_all, "GET", "/api/store", host=host)[0] == 200, host
        for host in ("evil.com", "10.0.0.7.evil.com", "example.org", "localhost."):
            assert request(open_to_all, "GET", "/api/store", host=host)[0] in (400, 403), host


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=24)
PIECES = st.lists(
    st.sampled_from(["127.0.0.1", "localhost", "evil.com", ".", ":", "@", "/", "80", "[::1]", "http://", "%", ","])
)


@given(TEXT | PIECES.map("".join), st.sampled_from(["GET", "POST", "PUT", "DELETE", "TRACE"]))
def test_any_host_but_our_own_is_refused(host: str, method: str) -> None:
    scope = {
        "method": method,
        "path": "/",
        "raw_path": b"/",
        "headers": [(b"host", host.encode())],
        "query_string": b"",
    }
    rules = AccessRules(("127.0.0.1", "localhost", "::1"))
    name, _, port = host.lower().rpartition(":") if not host.endswith("]") and ":" in host else (host.lower(), "", "")
    own = name in ("127.0.0.1", "localhost", "[::1]") and (port == "" or (port.isdigit() and len(port) <= 5))
    own = own and not host.endswith(":")
    assert (refusal(scope, rules) is None) == own


@given(TEXT | PIECES.map("".join))
def test_any_origin_but_our_own_is_refused(origin: str) -> None:
    headers = [(b"host", b"localhost:8000"), (b"origin", origin.encode())]
    scope = {"method": "GET", "path": "/", "raw_path": b"/", "headers": headers, "query_string": b""}
    own = origin in ("http://localhost:8000", "https://localhost:8000")
    assert (refusal(scope, AccessRules(("localhost",))) is None) == own


# Connections


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[Explorer]:
    for name, seconds in (("HEADER_SECONDS", 0.6), ("BODY_SECONDS", 0.8), ("READ_SECONDS", 0.8)):
        monkeypatch.setattr(server, name, seconds)
    with Explorer(ViewerState(embeddings(times=2))) as one:
        yield one


def is_closed(one: socket.socket, drip: bytes = b"") -> bool:
    """Return whether the server closes a connection to which a byte is sent now and then."""
    end = time.monotonic() + PATIENCE
    one.settimeout(0.1)
    while time.monotonic() < end:
        try:
            if drip:
                one.sendall(drip)
            if one.recv(65536) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


@pytest.mark.parametrize("drip", [b"", b"x"])
@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /api/store HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"PUT /api/labels HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: evil.com\r\nContent-Length: 9000000\r\n\r\n",
    ],
)
def test_requests_that_do_not_end_are_dropped(hurried: Explorer, begun: bytes, drip: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port_of(hurried))) as one:
        one.sendall(begun)
        assert is_closed(one, drip)
    assert answers(hurried)


def test_answers_that_are_not_read_are_dropped(hurried: Explorer) -> None:
    features = [
        {"type": "Feature", "properties": {"class": 1}, "geometry": {"type": "Point", "coordinates": [9.5, 47.5]}}
    ]
    body = {"classes": [{"code": 1, "name": "a", "color": "#000000"}], "features": features * 20000}
    hurried.state.labels = type(hurried.state.labels).of(body)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", port_of(hurried)))
        one.sendall(b"GET /api/labels HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        end = time.monotonic() + PATIENCE
        while hurried._server.server_state.connections and time.monotonic() < end:
            time.sleep(0.05)
        assert not hurried._server.server_state.connections
    assert answers(hurried)


def is_open(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 2 * PATIENCE)  # so that none ends because it sends nothing
    with Explorer(ViewerState(embeddings(times=2))) as one, contextlib.ExitStack() as connections:
        address = ("127.0.0.1", port_of(one))
        held = [
            connections.enter_context(socket.create_connection(address)) for _ in range(server.MAX_CONNECTIONS + 40)
        ]
        end = time.monotonic() + PATIENCE
        while sum(map(is_open, held)) > server.MAX_CONNECTIONS and time.monotonic() < end:
            time.sleep(0.02)
        assert sum(map(is_open, held)) == server.MAX_CONNECTIONS
        connections.close()
        assert answers(one)


def test_bodies_are_bounded(explorer: Explorer) -> None:
    own = f"127.0.0.1:{port_of(explorer)}"
    common = f"PUT /api/labels HTTP/1.1\r\nHost: {own}\r\nContent-Type: application/json\r\n"
    assert b" 413 " in raw(explorer, f"{common}Content-Length: 999999999999\r\n\r\n".encode()).splitlines()[0]
    assert b" 400 " in raw(explorer, f"{common}Content-Length: -1\r\n\r\n".encode()).splitlines()[0]
    both = f"{common}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert b" 200 " not in raw(explorer, both.encode()).splitlines()[0]
    long = b"GET /" + b"a" * 200_000
    assert b" 200 " not in raw(explorer, long + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")[:20]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../view.py", "/static/..%2fview.py", "/static/%2e%2e/%2e%2e/errors.py", "/static//etc/passwd",
        "/static/..%5c..%5cerrors.py", "/api/jobs/..%2f..%2fetc%2fpasswd/file", "/static/%00", "/static/leaflet",
    ],
)  # fmt: skip
def test_paths_outside_the_folder_are_refused(explorer: Explorer, path: str) -> None:
    assert request(explorer, "GET", path)[0] in (400, 404)


# Jobs and exports


def test_jobs_and_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deo_cube.viewer import jobs, state
    from deo_cube.viewer.server import BadRequest

    monkeypatch.setattr(jobs, "MAX_FINISHED", 3)
    one = ViewerState(embeddings(times=2))
    made = []
    for _ in range(6):
        made.append(one.export("pca", 0, "cog", 0.5))
        while made[-1].open:
            time.sleep(0.005)
        assert made[-1].state == "done", made[-1]
    one.jobs._drop_old()
    assert [one.file(j) is not None for j in made] == [False] * 3 + [True] * 3
    assert [one.jobs.find(j.id) is not None for j in made] == [False] * 3 + [True] * 3
    # Too large for the page, and too many at once.
    size = one.file(made[-1]).stat().st_size
    monkeypatch.setattr(state, "EXPORT_BYTES", 100)
    with pytest.raises(BadRequest, match="to_cog"):
        one.export("pca", 0, "cog", 0.5)
    cells = int(np.prod(one.source.shape[2:]))
    monkeypatch.setattr(state, "EXPORT_BYTES", max(int(cells * 3 * 2.4), size) + 1)
    last = one.export("pca", 1, "cog", 0.5)
    while last.open:
        time.sleep(0.005)
    kept = sum(one.file(j) is not None for j in (*made, last))
    assert one.file(last) is not None
    assert kept * size <= state.EXPORT_BYTES + size

    def forever() -> Iterator[float]:
        while True:
            yield 0.5
            time.sleep(0.002)

    waiting = [one.jobs.start("wait", forever) for _ in range(jobs.MAX_OPEN)]
    with pytest.raises(BadRequest) as refused:
        one.jobs.start("one more", forever)
    assert refused.value.status == 429
    while waiting[0].state == "waiting":
        time.sleep(0.005)
    monkeypatch.setattr(jobs, "MAX_SECONDS", 0.0)
    while any(j.open for j in waiting):
        time.sleep(0.005)
    assert waiting[0].state == "failed"
    assert "longer than" in waiting[0].message
    assert {j.state for j in waiting[1:]} == {"cancelled"}
    folder = Path(one._folder.name)
    one.close()
    assert not folder.exists()
    with pytest.raises(BadRequest):
        one.jobs.start("after", forever)


def test_too_many_jobs_are_refused_over_http(explorer: Explorer) -> None:
    import urllib.error
    import urllib.request

    def forever() -> Iterator[float]:
        while True:
            yield 0.5
            time.sleep(0.002)

    held = [explorer.state.jobs.start("wait", forever) for _ in range(8)]
    ask = urllib.request.Request(
        explorer.url + "api/export",
        data=json.dumps({"layer": "pca", "t": 0, "format": "cog"}).encode(),
        headers={"content-type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(ask, timeout=PATIENCE)
    assert refused.value.code == 429
    assert "wait for one" in json.load(refused.value)["error"]
    for job in held:
        job.stop.set()
