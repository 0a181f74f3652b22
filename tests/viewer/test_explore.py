"""The server that runs beside a notebook, and from the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deo_cube.errors import ArgumentError, MissingCRSError, MissingExtraError
from tests.heads.fields import embeddings


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def test_explore_serves_until_it_is_stopped() -> None:
    emb = embeddings(times=2)
    ex = emb.deo.explore(title="mine")
    assert ex.url.startswith("http://127.0.0.1:")
    assert get(ex.url + "api/store")["title"] == "mine"
    assert f'<iframe src="{ex.url}?frame=' in ex._repr_html_()
    assert ex.labels.empty
    assert ex.similarity is ex.head is ex.classes is None
    assert ex.url in repr(ex)
    ex.stop()
    assert not ex.running
    assert "iframe" not in ex._repr_html_()
    with pytest.raises(urllib.error.URLError):
        get(ex.url + "api/store")


def test_two_viewers_run_at_once_and_a_used_port_is_refused() -> None:
    emb = embeddings()
    with emb.deo.explore() as a, emb.deo.explore() as b:
        assert a.url != b.url
        for bad in (int(a.url.rsplit(":", 1)[1].strip("/")), 70000, -1):
            with pytest.raises(ArgumentError, match="port"):
                emb.deo.explore(port=bad)
        with pytest.raises(ArgumentError, match="host="):
            emb.deo.explore(host="no.such.host.invalid")


def test_only_this_machine_is_listened_to() -> None:
    with embeddings().deo.explore() as ex:
        port = int(ex.url.rsplit(":", 1)[1].strip("/"))
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((own, port), timeout=2)


def test_arrays_that_cannot_be_shown_are_refused_at_the_call() -> None:
    with pytest.raises((MissingCRSError, ValueError)):
        embeddings().drop_vars("spatial_ref").deo.explore()
    with pytest.raises(ArgumentError, match="emb"):
        embeddings().isel(x=slice(0, 0)).deo.explore()
    with pytest.raises(ArgumentError, match="embedding"):
        embeddings().isel(embedding=0).deo.explore()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"deo-cube\[view\]"):
        embeddings().deo.explore()


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_command_serves_a_store_until_it_is_stopped(store: Path, cube_path: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "deo_cube", "view", str(store), "--cube", str(cube_path), "--no-browser"]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = run.stdout.readline()
        assert str(store) in line, run.stderr.read()
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        found = get(url + "api/store")
        assert [layer["id"] for layer in found["layers"]] == ["true", "pca"]
        # Requests that never end do not keep it.
        head = ("PUT /api/labels HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 9")
        begun = "\r\n".join((*head, "", "")).encode()
        port = int(url.rsplit(":", 1)[1].strip("/"))
        held = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(3)]
        held[0].sendall(begun[:20])
        held[1].sendall(begun)
        get(url + "api/store")
        run.send_signal(stop)
        assert run.wait(300) == 0
        assert run.stderr.read() == ""
        for one in held:
            one.close()
    finally:
        run.kill()
        run.wait()


def test_the_command_refuses_a_path_that_is_not_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deo_cube.cli import main

    with pytest.raises(SystemExit) as end:
        main(["view", str(tmp_path / "none.zarr"), "--no-browser"])
    assert end.value.code == 2
    assert "none.zarr" in capsys.readouterr().err
