from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.hub import file_sha256, hub_silence
from deo_cube.encoder.networks.timm_import import import_timm
from deo_cube.encoder.registry import bundled_cards, describe_timm, load_encoder
from deo_cube.encoder.weights import find_weights, local_weights
from deo_cube.errors import UnknownModelError, WeightsMismatchError, WeightsNotFoundError
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


def published() -> ModelCard:
    """The card of a model whose publisher gives no hash."""
    return bundled_cards()["swinb"]


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

    def put(self, data: bytes, name: str = "DEO_swin_b.pth", repo: str = "SolaireTheSun/DEO") -> None:
        self.files[f"/{repo}/resolve/{REVISION}/{name}"] = data


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
    with pytest.raises(WeightsNotFoundError, match="/data/weights"):
        find_weights(a_card())
    with pytest.raises(WeightsNotFoundError, match="weights: .*typo"):
        find_weights(a_card(), elsewhere / "typo.pth")
    with pytest.raises(WeightsNotFoundError, match="weights=.*net.safetensors"):
        find_weights(a_card(), elsewhere)


def test_vitb_is_looked_for_on_the_hub(elsewhere: Path, hub: Hub) -> None:
    card = bundled_cards()["vitb"]
    with pytest.raises(WeightsNotFoundError, match="DEO_vit_b.pth.*SolaireTheSun/DEO"):
        find_weights(card, offline=True)
    assert hub.requests == []
    with pytest.raises(WeightsNotFoundError, match="weights="):
        find_weights(card, offline=False)
    assert {p.partition("?")[0] for _, p in hub.requests} >= {"/api/models/SolaireTheSun/DEO/revision/main"}
    assert any("not known" in limit for limit in card.limits)


def test_another_hash_is_refused(elsewhere: Path) -> None:
    path = weights_file(elsewhere / "net.pth")
    good = a_card(folder=str(elsewhere), sha256=file_sha256(path))
    assert find_weights(good) == path
    bad = a_card(folder=str(elsewhere), sha256="0" * 64)
    with pytest.raises(WeightsMismatchError, match=f"card of net .*{file_sha256(path)}"):
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
        path = find_weights(published())
        assert path.read_bytes() == content
        assert (elsewhere / "cache") in path.parents
        assert {p for _, p in hub.requests} == {f"/SolaireTheSun/DEO/resolve/{REVISION}/DEO_swin_b.pth"}
        asked = len(hub.requests)
        assert find_weights(published()) == path
    assert find_weights(published(), offline=True) == path
    assert len(hub.requests) == asked


def test_offline_asks_nobody(elsewhere: Path, hub: Hub) -> None:
    hub.put(b"x")
    with pytest.raises(WeightsNotFoundError):
        find_weights(published())
    assert hub.requests == []


def test_a_first_download_is_remembered(elsewhere: Path, hub: Hub) -> None:
    hub.put(weights_file(elsewhere / "up", 1).read_bytes())
    with set_options(offline=False):
        path = find_weights(published())
        record = json.loads((elsewhere / "cache" / "weights_seen.json").read_text())
        assert record == {f"SolaireTheSun/DEO@{REVISION}/DEO_swin_b.pth": file_sha256(path)}
        path.resolve().write_bytes(weights_file(elsewhere / "up", 2).read_bytes())
        with pytest.raises(WeightsMismatchError, match="SHA-256"):
            find_weights(published())


def test_a_download_is_held_against_the_stated_hash(elsewhere: Path, hub: Hub) -> None:
    content = weights_file(elsewhere / "up").read_bytes()
    hub.put(content, "net.pth", "someone/models")
    with set_options(offline=False), pytest.raises(WeightsMismatchError, match="SHA-256"):
        find_weights(a_card(sha256="1" * 64))
    with set_options(offline=False):
        assert find_weights(a_card(sha256=hashlib.sha256(content).hexdigest())).read_bytes() == content


def test_what_no_hash_proves_is_not_downloaded_for_a_card_from_elsewhere(elsewhere: Path, hub: Hub) -> None:
    content = weights_file(elsewhere / "up").read_bytes()
    hub.put(content, "net.pth", "someone/models")
    with set_options(offline=False), pytest.raises(WeightsMismatchError, match=r"weights\.sha256.*weights=PATH"):
        find_weights(a_card())
    assert hub.requests == []
    assert find_weights(a_card(), elsewhere / "up").read_bytes() == content  # weights=PATH, as the message says


def test_a_link_out_of_the_folder_of_a_card_is_refused(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = weights_file(elsewhere / "home" / "private")
    run = elsewhere / "run"
    run.mkdir()
    (run / "net.pth").symlink_to(secret)
    with pytest.raises(WeightsMismatchError, match="weights=PATH"):
        find_weights(a_card(folder=str(run)))
    assert find_weights(a_card(folder=str(run)), secret) == secret
    # A snapshot of the hub's cache is a folder of links to the blobs beside it, and may be named as model.
    blob = weights_file(elsewhere / "hub" / "models--a--b" / "blobs" / "0123")
    snapshot = elsewhere / "hub" / "models--a--b" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "net.pth").symlink_to(blob)
    assert find_weights(a_card(folder=str(snapshot))).resolve() == blob
    # A folder that the user names may hold links to anywhere.
    monkeypatch.setenv("DEO_CUBE_WEIGHTS", str(run))
    assert find_weights(a_card()).resolve() == secret


def test_a_damaged_record_of_first_downloads_is_named(elsewhere: Path, hub: Hub) -> None:
    hub.put(weights_file(elsewhere / "up", 1).read_bytes())
    record = elsewhere / "cache" / "weights_seen.json"
    with set_options(offline=False):
        find_weights(published())
        record.write_text("{")
        with pytest.raises(WeightsMismatchError, match=r"weights_seen\.json.*delete it"):
            find_weights(published())
        record.unlink()
        find_weights(published())
    assert json.loads(record.read_text())


def test_a_login_page_from_the_hub_is_named(elsewhere: Path, hub: Hub) -> None:
    hub.put(b"<!doctype html><html>Sign in to continue</html>")
    with set_options(offline=False), pytest.raises(WeightsMismatchError, match="login|page"):
        find_weights(published())


def test_no_such_file_on_the_hub(elsewhere: Path, hub: Hub) -> None:
    with (
        set_options(offline=False),
        pytest.raises(WeightsNotFoundError, match=r"weights="),
    ):
        find_weights(published())
    # A file that is gone may have been renamed, so the repository's files are listed.
    assert any("/api/models/" in path for _, path in hub.requests)


def test_no_hub(elsewhere: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    waits: list[float] = []
    sleep, own = time.sleep, threading.get_ident()

    def wait(seconds: float) -> None:
        if threading.get_ident() == own:
            waits.append(seconds)
        else:  # a thread of another test
            sleep(seconds)

    monkeypatch.setattr("time.sleep", wait)
    with set_options(offline=False), pytest.raises(WeightsNotFoundError, match="weights=PATH|network") as caught:
        find_weights(published())
    assert "weights=PATH" in str(caught.value)
    assert sum(waits) <= 1  # the hub's own client would wait 23 s before it said so


@pytest.mark.parametrize(("code", "silent"), [(404, False), (401, False), (302, False), (503, True)])
def test_what_counts_as_an_answer_of_the_hub(code: int, silent: bool) -> None:
    asked: list[str] = []

    class Says(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        why = hub_silence(f"http://127.0.0.1:{server.server_port}/x", tries=1)
        server.shutdown()
    assert (why is not None) == silent
    assert str(code) in (why or "404 401 302")
    assert asked == ["/x"]  # a redirect leads nowhere


REPOSITORY = "timm/resnet10t.c3_in1k"


def published_resnet(hub: Hub, folder: Path) -> tuple[ModelCard, str]:
    """A timm model's weights on the hub, and a card that asks for them."""
    import torch
    from safetensors.torch import save

    torch.manual_seed(5)
    data = save({k: v.contiguous() for k, v in import_timm().create_model("resnet10t").state_dict().items()})
    hub.files[f"/{REPOSITORY}/resolve/main/model.safetensors"] = data
    hub.files[f"/{REPOSITORY}/resolve/{REVISION}/model.safetensors"] = data
    card = describe_timm("resnet", "resnet10t", bands=["B04", "B03", "B02"], tile=64, pretrained=True)
    folder.mkdir()
    card.save(folder / "card.json")
    return card, hashlib.sha256(data).hexdigest()


def test_published_weights_of_timm_are_downloaded_as_the_hub_has_them(elsewhere: Path, hub: Hub) -> None:
    card, sha256 = published_resnet(hub, elsewhere / "run")
    with pytest.raises(WeightsNotFoundError, match="set_options"):
        load_encoder(card, device="cpu")
    assert hub.requests == []
    untrained = dataclasses.replace(card, architecture={**card.architecture, "pretrained": False})
    tile = np.random.default_rng(0).normal(1000, 300, (1, 3, 64, 64)).astype("float32")
    with set_options(offline=False):
        got = load_encoder(card, device="cpu").encode(tile)
        assert {p for _, p in hub.requests} <= {
            f"/{REPOSITORY}/resolve/{r}/model.safetensors" for r in ("main", REVISION)
        }
        # A card in a file must say what it wants, and the file must be that.
        with pytest.raises(WeightsMismatchError, match=r"weights\.sha256"):
            load_encoder(elsewhere / "run", device="cpu")
        stated = dataclasses.replace(card, weights=dataclasses.replace(card.weights, sha256=sha256))
        stated.save(elsewhere / "run" / "card.json")
        np.testing.assert_array_equal(load_encoder(elsewhere / "run", device="cpu").encode(tile), got)
        wrong = dataclasses.replace(card, weights=dataclasses.replace(card.weights, sha256="0" * 64))
        wrong.save(elsewhere / "run" / "card.json")
        with pytest.raises(WeightsMismatchError, match="0000"):
            load_encoder(elsewhere / "run", device="cpu")
    again = load_encoder(card, device="cpu").encode(tile)  # from the cache, offline
    np.testing.assert_array_equal(again, got)
    assert not np.allclose(load_encoder(untrained, device="cpu").encode(tile), got)


def test_a_card_makes_no_request_to_an_address_of_its_own(elsewhere: Path, hub: Hub) -> None:
    card, _ = published_resnet(hub, elsewhere / "run")
    d = card.to_dict()
    d["architecture"]["options"] = {"pretrained_cfg_overlay": {"url": f"{hub.url}/internal", "hf_hub_id": None}}
    (elsewhere / "run" / "card.json").write_text(json.dumps(d))
    for offline in (True, False):
        with set_options(offline=offline), pytest.raises(UnknownModelError, match="pretrained_cfg_overlay"):
            load_encoder(elsewhere / "run")
    assert hub.requests == []
