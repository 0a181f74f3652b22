"""The command line does what the verbs do, and says mistakes without a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

import deo_cube
from deo_cube.cli import main


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "cube.zarr"
    ds = deo_cube.synthetic_cube(size=192, times=1, clouds=False, gaps=False)
    ds.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in args])
    return int(caught.value.code or 0)


def test_embed_writes_what_the_verb_writes_and_goes_on(
    cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "emb.zarr"
    assert run("embed", cube, out, "--no-progress") == 0
    assert str(out) in capsys.readouterr().out
    got = deo_cube.open_embeddings(out)
    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False)
    xr.testing.assert_equal(got.compute(), ds.deo.embed().compute())
    assert run("embed", cube, out, "--no-progress") == 0
    assert run("verify", out) == 0
    assert "complete" in capsys.readouterr().out


def test_plan_counts(cube: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", cube, "--model", "vitb") == 0
    assert "blocks" in capsys.readouterr().out


def test_models_lists_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    listed = capsys.readouterr().out
    assert all(alias in listed for alias in ("vitb", "swinb", "tiny"))


def test_verify_checks_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "tiny") == 0
    assert "tiny" in capsys.readouterr().out


def test_mistakes_are_one_message_and_status_2(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, says in (
        (("embed", cube, tmp_path / "e.zarr", "--model", "vitc"), "vitc"),
        (("embed", tmp_path / "none.zarr", tmp_path / "e.zarr"), "no cube at"),
        (("embed", cube, tmp_path / "e.zarr", "--tile", "3"), "multiple"),
        (("plan", cube.with_suffix(".xyz")), "no cube at"),
    ):
        assert run(*args) == 2
        error = capsys.readouterr().err
        assert error.startswith("deo-cube: ")
        assert says in error
        assert "Traceback" not in error


def test_a_damaged_store_is_status_1(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "emb.zarr"
    run("embed", cube, out, "--no-progress")
    shard = next(p for p in (out / "embeddings" / "c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run("verify", out) == 1
    assert "DAMAGED" in capsys.readouterr().out


def test_the_demo_writes_a_store_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--out", tmp_path, "--size", "256") == 0
    said = capsys.readouterr().out
    assert (tmp_path / "embeddings.png").stat().st_size > 10_000
    assert "synthetic" in said
    trained = deo_cube.card("tiny").trained
    assert ("UNTRAINED" in said) == (not trained)
    assert deo_cube.verify_store(tmp_path / "embeddings.zarr").complete


def test_help_is_quick_and_names_the_commands() -> None:
    done = subprocess.run([sys.executable, "-m", "deo_cube", "--help"], capture_output=True, text=True, check=True)
    assert all(c in done.stdout for c in ("demo", "embed", "plan", "models", "verify"))
