"""The command line writes its own completion for the shells, and a shell can read it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deo_cube import cli


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_written_and_knows_every_command(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    with pytest.raises(SystemExit) as end:
        cli.main(["--tyro-write-completion", shell, str(script)])
    assert end.value.code in (0, None)
    text = script.read_text()
    assert all(name in text for name in cli.COMMANDS)
    assert "--scheduler" in text


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_a_command(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    with pytest.raises(SystemExit):
        cli.main(["--tyro-write-completion", "bash", str(script)])
    program = tmp_path / "deo-cube"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m deo_cube "$@"\n')
    program.chmod(0o755)
    ask = (
        f"source {script}; COMP_WORDS=(deo-cube ver); COMP_CWORD=1; COMP_LINE='deo-cube ver'; COMP_POINT=12; "
        "f=$(complete -p deo-cube | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f deo-cube ver deo-cube; "
        'echo "${COMPREPLY[@]}"'
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, env=env)
    assert "verify" in done.stdout.split(), done.stderr
