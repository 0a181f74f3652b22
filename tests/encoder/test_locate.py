from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.catalog import bundled_cards
from deo_cube.encoder.locate import file_sha256, find_weights, hub_silence, local_weights
from deo_cube.errors import WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import set_options

REVISION = "f973d29f6324fb12fca734778cf9d2ae539524bb"


def weights_file(path: Path, value: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.full(8, value, np.float32)}, path)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The folder of the (empty) cache."""
    return tmp_path


def a_card(folder: str = "", **weights: object) -> ModelCard:
    fields: dict = dict(status="published", file="net.pth", repo="someone/models", revision=REVISION) | weights
    return dataclasses.replace(bundled_cards()["swinb"], alias="net", weights=Weights(**fields), folder=folder)


class Hub:
    """As much of the hub as a download takes: the file at one revision, with the headers that identify it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Answer(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                hub.requests.append((self.command, self.path))
                data = hub.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                if data is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                    data = b""
                self.send_header("X-Repo-Commit", REVISION)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, data: bytes, name: str = "net.pth") -> None:
        self.files[f"/someone/models/resolve/{REVISION}/{name}"] = data


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_order_given_then_folder_then_card_then_hub(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = a_card(folder=str(elsewhere / "run"))
    with pytest.raises(WeightsNotFoundError):
        find_weights(card)
    cached = weights_file(elsewhere / "cache" / "hub" / "models--someone--models" / "snapshots" / REVISION / "net.pth")
    assert find_weights(card) == cached
    beside = weights_file(elsewhere / "run" / "net.pth")
    assert find_weights(card) == beside
    folder = weights_file(elsewhere / "mine" / "net.pth")
    monkeypatch.setenv("DEO_CUBE_WEIGHTS", str(elsewhere / "mine"))
    assert find_weights(card) == local_weights(card) == folder
    given = weights_file(elsewhere / "other.bin")
    assert find_weights(card, given) == given
    assert find_weights(card, str(elsewhere / "run")) == beside


def test_a_safetensors_file_goes_before_the_published_one(elsewhere: Path) -> None:
    card = a_card(folder=str(elsewhere))
    pth = weights_file(elsewhere / "net.pth", 1)
    safe = weights_file(elsewhere / "net.safetensors", 2)
    assert find_weights(card) == safe
    stated = a_card(folder=str(elsewhere), sha256=file_sha256(pth))
    assert find_weights(stated) == pth


def test_what_to_put_where_is_said(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsNotFoundError) as caught:
        find_weights(a_card(folder="/somewhere/cards"))
    message = str(caught.value)
    for said in ("net.safetensors or net.pth", "DEO_CUBE_WEIGHTS (not set)", "/somewhere/cards", "someone/models",
                 REVISION, "offline is set", "weights=PATH", str(elsewhere / "cache")):  # fmt: skip
        assert said in message, said
    monkeypatch.setenv("DEO_CUBE_WEIGHTS", "/data/weights")
    with pytest.raises(WeightsNotFoundError, match="DEO_CUBE_WEIGHTS = /data/weights"):
        find_weights(a_card())
    with pytest.raises(WeightsNotFoundError, match="no such file"):
        find_weights(a_card(), elsewhere / "typo.pth")
    with pytest.raises(WeightsNotFoundError, match="a folder without net.safetensors or net.pth"):
        find_weights(a_card(), elsewhere)


def test_vitb_is_not_downloaded_and_says_why(elsewhere: Path) -> None:
    card = bundled_cards()["vitb"]
    with pytest.raises(WeightsNotFoundError, match="Get DEO_vit_b.pth from https://huggingface.co/SolaireTheSun/DEO"):
        find_weights(card, offline=False)
    assert any("not known" in limit for limit in card.limits)


def test_another_hash_is_refused(elsewhere: Path) -> None:
    path = weights_file(elsewhere / "net.pth")
    good = a_card(folder=str(elsewhere), sha256=file_sha256(path))
    assert find_weights(good) == path
    bad = a_card(folder=str(elsewhere), sha256="0" * 64)
    with pytest.raises(WeightsMismatchError, match=f"is {file_sha256(path)}, the card states 0000"):
        find_weights(bad)
    with pytest.raises(WeightsMismatchError):
        find_weights(bad, path)


def test_hash_is_of_the_file_as_it_is_now(elsewhere: Path) -> None:
    path = weights_file(elsewhere / "net.pth")
    first = file_sha256(path)
    assert first == hashlib.sha256(path.read_bytes()).hexdigest()
    weights_file(path, 1.0)
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() != first


def test_hub_download_is_pinned_and_happens_once(elsewhere: Path, hub: Hub) -> None:
    content = weights_file(elsewhere / "up").read_bytes()
    hub.put(content)
    with set_options(offline=False):
        path = find_weights(a_card())
        assert path.read_bytes() == content
        assert (elsewhere / "cache") in path.parents
        assert {p for _, p in hub.requests} == {f"/someone/models/resolve/{REVISION}/net.pth"}
        asked = len(hub.requests)
        assert find_weights(a_card()) == path
    assert find_weights(a_card(), offline=True) == path
    assert len(hub.requests) == asked


def test_offline_asks_nobody(elsewhere: Path, hub: Hub) -> None:
    hub.put(b"x")
    with pytest.raises(WeightsNotFoundError):
        find_weights(a_card())
    assert hub.requests == []


def test_a_first_download_is_remembered(elsewhere: Path, hub: Hub) -> None:
    hub.put(weights_file(elsewhere / "up", 1).read_bytes())
    with set_options(offline=False):
        path = find_weights(a_card())
        record = json.loads((elsewhere / "cache" / "weights_seen.json").read_text())
        assert record == {f"someone/models@{REVISION}/net.pth": file_sha256(path)}
        path.resolve().write_bytes(weights_file(elsewhere / "up", 2).read_bytes())
        with pytest.raises(WeightsMismatchError, match="was downloaded before with SHA-256"):
            find_weights(a_card())


def test_a_download_is_held_against_the_stated_hash(elsewhere: Path, hub: Hub) -> None:
    hub.put(weights_file(elsewhere / "up").read_bytes())
    with set_options(offline=False), pytest.raises(WeightsMismatchError, match="Download it again"):
        find_weights(a_card(sha256="1" * 64))


def test_a_login_page_from_the_hub_is_named(elsewhere: Path, hub: Hub) -> None:
    hub.put(b"<!doctype html><html>Sign in to continue</html>")
    with set_options(offline=False), pytest.raises(WeightsMismatchError, match="web page"):
        find_weights(a_card())


def test_no_such_file_on_the_hub(elsewhere: Path, hub: Hub) -> None:
    with (
        set_options(offline=False),
        pytest.raises(WeightsNotFoundError, match=r"could not be downloaded.*EntryNotFound"),
    ):
        find_weights(a_card())


def test_no_hub(elsewhere: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with set_options(offline=False), pytest.raises(WeightsNotFoundError, match="does not answer") as caught:
        find_weights(a_card())
    assert "weights=PATH" in str(caught.value)
    assert sum(waits) <= 1  # the hub's own client would wait 23 s before it said so


@pytest.mark.parametrize(("code", "silent"), [(404, False), (401, False), (503, True)])
def test_what_counts_as_an_answer_of_the_hub(code: int, silent: bool) -> None:
    class Says(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(code)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        why = hub_silence(f"http://127.0.0.1:{server.server_port}/x", tries=1)
        server.shutdown()
    assert (why is not None) == silent
    assert str(code) in (why or "404 401")
