"""`doctor` reports an installation that works as healthy, and names the fix of a problem in one that does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deo_cube import doctor
from deo_cube.cli import main
from deo_cube.options import set_options


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> doctor.Diagnosis:
    with set_options(cache_dir=tmp_path_factory.mktemp("cache"), offline=True):
        return doctor.examine()


def test_this_installation_is_healthy(here: doctor.Diagnosis) -> None:
    assert here.healthy, here
    by_name = {f.name: f for f in here.findings}
    assert "proven" in by_name["model"].text
    assert "written and verified" in by_name["end to end"].text
    assert "offline is set" in by_name["hub"].text
    for part in ("packages", "devices", "timm", "cores", "memory", "GDAL", "PROJ", "Dask", "temporary", "cache"):
        assert by_name[part].text
    assert {f.state for f in here.findings} <= {"ok", "note"}


def test_text_and_json_say_the_same(here: doctor.Diagnosis) -> None:
    said = json.loads(here.to_json())
    assert said["healthy"] is True
    assert [f["name"] for f in said["findings"]] == [f.name for f in here.findings]
    assert repr(here).endswith("everything essential works")
    assert all(f.fix in repr(here) for f in here.findings)


def test_requirements_are_those_of_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    wants = ["xarray>=2999.1", "no-such-package>=1", "numpy>=1.0", "pytest-nope; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wants)
    bad = next(f for f in doctor._packages() if f.state == "broken")
    assert "xarray" in bad.text
    assert "expected >=2999.1" in bad.text
    assert "no-such-package is missing" in bad.text
    assert "numpy" not in bad.text
    assert "nope" not in bad.text
    assert "pip install" in bad.fix


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with set_options(cache_dir=tmp_path / "file" / "cache"):
        (found,) = doctor._cache()
    assert found.state == "note"
    assert "DEO_CUBE_CACHE" in found.fix


def test_a_broken_installation_is_status_1_and_the_other_checks_go_on(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise ImportError('half an installation')")
    env = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "DEO_CUBE_OFFLINE": "0",
        "DEO_CUBE_CACHE": str(tmp_path / "cache"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-m", "deo_cube", "doctor", "--json"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    states = {f["name"]: f for f in said["findings"]}
    assert said["healthy"] is False
    assert states["torchvision"]["state"] == "broken"
    assert "half an installation" in states["torchvision"]["text"]
    assert states["hub"]["state"] == "note"
    assert "does not answer" in states["hub"]["text"]
    assert states["GDAL"]["state"] == "ok"


def test_the_command_prints_it(here: doctor.Diagnosis, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: here)
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code in (0, None)
    assert "deo_cube" in capsys.readouterr().out
