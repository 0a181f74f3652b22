"""Weights found in a repository whose file names are not known, on a hub served from this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

import deo_cube
from deo_cube.encoder import registry
from deo_cube.encoder.card import Layer, ModelCard, Weights
from deo_cube.encoder.hub import Address, address_of, parse_address, place_in_cache
from deo_cube.encoder.loading import verify
from deo_cube.encoder.networks.adapters import build_network
from deo_cube.encoder.registry import bundled_cards, list_models, load_encoder
from deo_cube.encoder.weights import find_weights, recorded_choice, weights_state
from deo_cube.errors import ArgumentError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import set_options

COMMIT = "a" * 40
REPO = "someone/models"


class Hub:
    """The part of the hub that listing and downloading take: files of one repository at one commit."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        hub = self

        class Answer(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                hub.requests.append(path)
                data = hub.content(path)
                self.send_response(404 if data is None else 200)
                if data is None:
                    self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
                data = data or b""
                self.send_header("X-Repo-Commit", COMMIT)
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

    def content(self, path: str) -> bytes | None:
        if path in {f"/api/models/{REPO}", *(f"/api/models/{REPO}/revision/{r}" for r in ("main", "v1", COMMIT))}:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            return json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode()
        return self.files.get(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def small(alias: str, family: str, **weights: object) -> ModelCard:
    """A card like those of the published models, whose network is small."""
    base = bundled_cards()[{"vit": "vitb", "swin": "swinb"}[family]]
    if family == "vit":
        sizes: dict = {"dim": 24, "depth": 2, "heads": 3, "patch": 8, "grid": 4}
        layers = (Layer("block1", 24, 8), Layer("norm", 24, 8))
    else:
        sizes = {"dim": 12, "depths": [1, 1], "heads": [1, 2], "window": 4, "patch": 4}
        layers = (Layer("stage2", 24, 8), Layer("norm", 24, 8))
    fields: dict = {"status": "published", "file": "unknown.pth", "url": f"https://huggingface.co/{REPO}"} | weights
    return dataclasses.replace(
        base,
        name=f"{alias}.test",
        alias=alias,
        architecture={"family": family, **sizes},
        layers=layers,
        tile=64,
        halo=8,
        weights=Weights(**fields),
    )


def state(card: ModelCard, seed: int, prefix: str = "") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {prefix + name: t.clone().contiguous() for name, t in build_network(card).state_dict().items()}


def as_torch(content: object, path: Path) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModelCard]]:
    """The package with two small published models in place of its own."""
    made = {"smallvit": small("smallvit", "vit"), "smallswin": small("smallswin", "swin")}
    folder = tmp_path / "cards"
    folder.mkdir()
    for alias, card in made.items():
        card.save(folder / f"{alias}.json")
    monkeypatch.setattr("deo_cube.encoder.card.CARDS", folder)
    registry.bundled_cards.cache_clear()
    yield dict(registry.bundled_cards())
    registry.bundled_cards.cache_clear()


PREFIXES = ["", "backbone.", "student.module._orig_mod.backbone.", "module.", "feat_extr."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_file_that_fits_is_taken_recorded_and_compared(
    hub: Hub, cards: dict[str, ModelCard], tmp_path: Path, prefix: str
) -> None:
    swin, vit = cards["smallswin"], cards["smallvit"]
    students = {"student": state(vit, 1, prefix), "epoch": 3} if prefix.startswith("student") else state(vit, 1, prefix)
    hub.files = {
        "README.md": b"# weights",
        "config.json": b"{}",
        "DEO_swin.pth": as_torch(state(swin, 2, prefix), tmp_path / "a"),
        "checkpoints/vit_p8.pth": as_torch(students, tmp_path / "b"),
        "broken.pth": b"<!doctype html>" + b" " * 300_000,
        "thumbnail.bin": b"tiny",
    }
    assert weights_state(vit) == "weights can be fetched from the hub, not proven"
    with set_options(offline=False), pytest.warns(UserWarning, match="NOT PROVEN") as caught:
        encoder = load_encoder("smallvit", device="cpu")
    assert any("checkpoints/vit_p8.pth" in str(w.message) for w in caught)
    torch.testing.assert_close(encoder.network.state_dict(), state(vit, 1))
    choice = recorded_choice(vit)
    assert choice is not None
    assert choice.address == Address(REPO, COMMIT, "checkpoints/vit_p8.pth")
    assert choice.sha256 == hashlib.sha256(hub.files["checkpoints/vit_p8.pth"]).hexdigest()
    assert choice.reference is not None
    assert not any("thumbnail" in path for path in hub.requests), "a file of the wrong size was downloaded"
    # From now on the network is not needed, and what the cache holds must be what was taken.
    asked = len(hub.requests)
    assert weights_state(vit) == "weights here, not proven"
    found = verify("smallvit")
    assert found.recorded
    assert found.distance == pytest.approx(0, abs=1e-6)
    assert not found.proven
    assert len(hub.requests) == asked
    with set_options(offline=False), pytest.warns(UserWarning, match=r"DEO_swin\.pth"):
        load_encoder("smallswin", device="cpu")


def test_a_changed_file_or_vector_is_refused(hub: Hub, cards: dict[str, ModelCard], tmp_path: Path) -> None:
    vit = cards["smallvit"]
    hub.files = {"w.safetensors": save(state(vit, 1))}
    with set_options(offline=False), pytest.warns(UserWarning, match="NOT PROVEN"):
        path = find_weights(vit)
    record = tmp_path / "cache" / "weights_found.json"
    good = record.read_text()
    values = json.loads(good)
    values["smallvit.test"][0]["reference"]["vector"][0] += 1
    record.write_text(json.dumps(values))
    with pytest.raises(WeightsMismatchError, match="reference vector"):
        load_encoder("smallvit", device="cpu")
    record.write_text(good)
    path.resolve().write_bytes(save(state(vit, 2)))
    with pytest.raises(WeightsMismatchError, match="SHA-256"):
        find_weights(vit)
    record.write_text("[1]")
    with pytest.raises(WeightsMismatchError, match=r"weights_found\.json"):
        find_weights(vit)


def test_two_files_that_fit_are_refused_and_one_can_be_chosen(
    hub: Hub, cards: dict[str, ModelCard], tmp_path: Path
) -> None:
    vit = cards["smallvit"]
    hub.files = {"one.safetensors": save(state(vit, 1)), "two.safetensors": save(state(vit, 2, "module."))}
    with set_options(offline=False):
        with pytest.raises(WeightsMismatchError, match="weights='hf://someone/models@") as caught:
            find_weights(vit)
        assert f"hf://{REPO}@{COMMIT}/two.safetensors" in str(caught.value)
        assert recorded_choice(vit) is None
        chosen = load_encoder("smallvit", weights=f"hf://{REPO}@{COMMIT}/two.safetensors", device="cpu")
    torch.testing.assert_close(chosen.network.state_dict(), state(vit, 2))
    # The choice is kept: it needs neither the network nor the address again.
    again = load_encoder("smallvit", device="cpu")
    torch.testing.assert_close(again.network.state_dict(), state(vit, 2))
    # A Path, as the command line makes of the text, is the same address.
    assert find_weights(vit, Path(f"hf://{REPO}@{COMMIT}/two.safetensors")).name == "two.safetensors"


def test_the_same_values_in_two_formats_are_one_model(hub: Hub, cards: dict[str, ModelCard], tmp_path: Path) -> None:
    vit = cards["smallvit"]
    hub.files = {"w.pth": as_torch(state(vit, 1, "backbone."), tmp_path / "w"), "w.safetensors": save(state(vit, 1))}
    with set_options(offline=False), pytest.warns(UserWarning, match=r"w\.safetensors"):
        assert find_weights(vit).name == "w.safetensors"


def test_no_file_that_fits_is_an_error_with_each_reason(hub: Hub, cards: dict[str, ModelCard]) -> None:
    other = dataclasses.replace(cards["smallvit"], architecture={**cards["smallvit"].architecture, "depth": 3})
    hub.files = {"deeper.safetensors": save(state(other, 1)), "small.bin": b"x"}
    with set_options(offline=False), pytest.raises(WeightsMismatchError, match="weights=") as caught:
        find_weights(cards["smallvit"])
    assert "deeper.safetensors: " in str(caught.value)
    assert "small.bin: expected" in str(caught.value)
    assert recorded_choice(cards["smallvit"]) is None


def test_a_renamed_file_of_a_pinned_repository_is_found(hub: Hub, cards: dict[str, ModelCard], tmp_path: Path) -> None:
    pinned = Weights("published", "gone.pth", repo=REPO, revision=COMMIT)
    card = dataclasses.replace(cards["smallswin"], name="pinned.test", alias="pinned", weights=pinned)
    card.save(tmp_path / "cards" / "pinned.json")
    registry.bundled_cards.cache_clear()
    card = registry.bundled_cards()["pinned"]
    hub.files = {"renamed.safetensors": save(state(card, 1))}
    with set_options(offline=False), pytest.warns(UserWarning, match=r"renamed\.safetensors"):
        assert find_weights(card).name == "renamed.safetensors"
    # The file under the stated name is taken without a search, and remembered with its vector all the same.
    stated = dataclasses.replace(card, name="stated.test", weights=dataclasses.replace(card.weights, file="g.pth"))
    hub.files["g.pth"] = save(state(card, 2))
    stated.save(tmp_path / "cards" / "pinned.json")
    registry.bundled_cards.cache_clear()
    with set_options(offline=False):
        load_encoder("pinned", device="cpu")
    choice = recorded_choice(stated)
    assert choice is not None
    assert choice.address == Address(REPO, COMMIT, "g.pth")


def test_offline_and_strangers_ask_nobody(hub: Hub, cards: dict[str, ModelCard], tmp_path: Path) -> None:
    hub.files = {"w.safetensors": save(state(cards["smallvit"], 1))}
    for weights in (None, f"hf://{REPO}", f"hf://{REPO}@v1/w.safetensors"):
        with pytest.raises(WeightsNotFoundError, match="offline"):
            find_weights(cards["smallvit"], weights)
    foreign = dataclasses.replace(
        cards["smallvit"], weights=Weights("published", "unknown.pth", url=f"https://huggingface.co/{REPO}2")
    )
    with set_options(offline=False), pytest.raises(WeightsMismatchError, match=r"weights\.sha256"):
        find_weights(foreign)
    assert hub.requests == []
    with set_options(offline=False):
        with pytest.raises(WeightsNotFoundError, match="weights="):
            find_weights(cards["smallvit"], "hf://someone/else")
        with pytest.raises(WeightsNotFoundError, match="no file"):
            find_weights(cards["smallvit"], f"hf://{REPO}/absent.pth")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://a/b", Address("a", "main")),
        ("hf://a/b@v1", Address("a/b", "v1")),
        ("hf://a/b@0f/x/y.pth", Address("a/b", "0f", "x/y.pth")),
        ("hf://a/b/y.pth", Address("a/b", "main", "y.pth")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    address = dataclasses.replace(address, repo="a/b")
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://a/b@", "hf://a/b/../c", "hf://a/b@1/../../x", "https://a/b"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="weights="):
        parse_address(text)


def test_places_in_the_cache_of_the_hub() -> None:
    assert place_in_cache(Path("/c/hub/models--a--b/snapshots/0f/x/y.pth")) == Address("a/b", "0f", "x/y.pth")
    assert place_in_cache(Path("/c/models/y.pth")) is None
    assert place_in_cache(Path("/c/snapshots/y.pth")) is None
    assert address_of(bundled_cards()["vitb"]) == Address("SolaireTheSun/DEO")
    assert address_of(bundled_cards()["tiny"]) is None


def test_a_publishers_file_of_known_hash_is_downloaded_whole_or_not_at_all(hub: Hub, tmp_path: Path) -> None:
    from deo_cube.encoder.weights import _download_url

    data = save(state(small("x", "vit"), 1))
    hub.files = {"w.safetensors": data}
    w = Weights("published", "w.safetensors", hashlib.sha256(data).hexdigest(), url="https://publisher.test/w")
    # Cards state https addresses only; the downloader itself takes what it is given.
    object.__setattr__(w, "url", f"{hub.url}/{REPO}/resolve/{COMMIT}/w.safetensors")
    place = _download_url(w, "advice")
    assert place.read_bytes() == data
    card = dataclasses.replace(small("x", "vit"), weights=w)
    assert find_weights(card) == place
    other = dataclasses.replace(w, url=None, sha256="1" * 64)
    object.__setattr__(other, "url", w.url)
    with pytest.raises(WeightsMismatchError, match="weights="):
        _download_url(other, "advice")
    object.__setattr__(other, "url", w.url + "2")
    with pytest.raises(WeightsNotFoundError, match="advice"):
        _download_url(other, "advice")
    assert [p for p in (tmp_path / "cache" / "files").rglob("*") if p.is_file()] == [place]


def test_states_of_the_bundled_models(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = dict(zip(list_models()["alias"], list_models()["state"], strict=True))
    assert states["tiny"] == "weights here"
    assert states["vitb"] == states["swinb"] == "weights can be fetched from the hub, not proven"
    assert states["dynamicworld"] == "weights can be fetched from its publisher"
    shown = repr(deo_cube.synthetic_cube(size=64, times=1).deo)
    for alias in ("tiny", "vitb", "dynamicworld"):
        assert states[alias] in shown
    monkeypatch.setenv("DEO_CUBE_WEIGHTS", str(shared / "data/weights"))
    assert weights_state(bundled_cards()["dynamicworld"]) == "weights here"


def test_verify_published_ends_with_a_card_to_contribute(hub: Hub, cards: dict[str, ModelCard], tmp_path: Path) -> None:
    from deo_cube.evaluate.published import verify_published

    swin = cards["smallswin"]
    hub.files = {"w.safetensors": save(state(swin, 1, "feat_extr."))}
    with set_options(offline=False), pytest.warns(UserWarning, match="verify --published"):
        path = find_weights(swin)
    found = verify_published(path, model=swin)
    card = found.contribution
    assert (card.weights.repo, card.weights.revision) == (REPO, COMMIT)
    assert card.weights.sha256 == found.sha256
    assert card.reference is not None
    assert card.weights.sha256 in str(found)
    assert json.loads(found.to_json())["card"] == card.to_dict()
    # The contributed card proves the file.
    card.save(tmp_path / "card.json")
    assert verify(tmp_path / "card.json", weights=path).proven
    save_file(state(swin, 2), tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatchError):
        verify(tmp_path / "card.json", weights=tmp_path / "other.safetensors")
