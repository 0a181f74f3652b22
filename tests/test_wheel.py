"""The wheel works without the repository: built, installed into an environment of its own, run in an empty folder.

Its dependencies are those of this environment (a path, not a copy), so that the test takes seconds and no network;
`make wheel` installs everything into an empty environment instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel, and sees the packages of this one."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A folder named in a .pth file is a path and no more: the editable install in there is not followed.
    (inside / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    return folder


def run(environment: Path, cwd: Path, *args: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env |= {"DEO_CUBE_OFFLINE": "1", "DEO_CUBE_CACHE": str(cwd / "cache"), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [str(environment / "bin" / args[0]), *args[1:]], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("py.typed", "encoder/cards/tiny.json", "encoder/cards/tiny.safetensors"):
        assert f"deo_cube/{needed}" in names
    assert {n.split("/")[0].split("-")[0] for n in names} == {"deo_cube"}
    assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]
    # Everything beside the code that the package reads at run time is in it.
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "deo_cube").rglob("*") if p.is_file()}
    here = {n for n in here if "__pycache__" not in n}
    assert here <= set(names)


def test_it_is_the_installed_package_that_runs_and_it_is_whole(environment: Path, tmp_path: Path) -> None:
    said = json.loads(run(environment, tmp_path, "deo-cube", "doctor", "--json"))
    assert said["healthy"], said
    where = next(f["text"] for f in said["findings"] if f["name"] == "deo_cube")
    assert str(environment) in where
    assert str(ROOT / "deo_cube") not in where


@pytest.mark.slow
def test_demo_and_models(environment: Path, tmp_path: Path) -> None:
    assert "tiny" in run(environment, tmp_path, "deo-cube", "models")
    run(environment, tmp_path, "deo-cube", "demo", "--size", "192")
    assert (tmp_path / "demo" / "embeddings.png").stat().st_size > 10_000
    code = "import deo_cube; print(deo_cube.open_embeddings('demo/embeddings.zarr').sizes['embedding'])"
    assert run(environment, tmp_path, "python", "-c", code).strip() == "192"
