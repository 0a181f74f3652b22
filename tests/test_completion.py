"""The command line writes its own completion for the shells, and a shell can read it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deo_cube import cli
from deo_cube.cli_arguments import completion_script
from deo_cube.errors import ArgumentError


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


def completed(script: Path, line: str, tmp_path: Path) -> list[str]:
    """Words that bash offers at the end of a line."""
    program = tmp_path / "deo-cube"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m deo_cube "$@"\n')
    program.chmod(0o755)
    words = line.split(" ")
    quoted = " ".join(f"'{w}'" for w in words)
    ask = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
        f"COMP_POINT={len(line)}; f=$(complete -p deo-cube | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        f"$f deo-cube '{words[-1]}' '{words[-2]}'; echo \"${{COMPREPLY[@]}}\""
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, env=env, check=False)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("deo-cube pag", "page"),
        ("deo-cube embed a b --model tiny_", "tiny_v1"),
        ("deo-cube verify vit", "vitb"),
        ("deo-cube info swi", "swinb"),
        ("deo-cube embed a b --resu", "--resume"),
        ("deo-cube embed a b --resume ch", "changed"),
    ],
)
def test_bash_completes_commands_flags_choices_and_models(line: str, offered: str, tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(completion_script("bash", cli.COMMANDS))
    assert offered in completed(script, line, tmp_path)


def test_zsh_knows_models_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["completion", "zsh"])
    assert end.value.code in (0, None)
    text = capsys.readouterr().out
    assert text.startswith("#compdef deo-cube")
    assert re.search(r"'choices': \[[^]]*'dynamicworld'", text)  # other tests may have registered models before
    assert all(name in text for name in cli.COMMANDS)


def test_other_shells_are_refused() -> None:
    with pytest.raises(ArgumentError, match="shell"):
        completion_script("fish", cli.COMMANDS)  # type: ignore[arg-type]


def test_help_groups_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code in (0, None)
    text = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +\S", text, re.M), command
