"""Write the completion of the command line for bash and zsh: commands, flags, choices, files and names of models.

tyro writes the script, which holds a description of all commands. The names of models are added to it here: as choices
after ``--model``, and as words after the commands that take a model.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from deo_cube.errors import ArgumentError

__all__ = ["completion_script"]

#: Commands whose first word may be the name of a model.
OF_MODELS = ("bench", "evaluate", "info", "verify")
_SPEC = re.compile(r"^COMPLETION_SPEC = (\{.*\})$", re.M)


def completion_script(shell: Literal["bash", "zsh"], commands: Mapping[str, Callable[..., Any]]) -> str:
    """Return the script that completes `deo-cube` in a shell.

    Parameters
    ----------
    shell : {"bash", "zsh"}
    commands : mapping
        Functions of the commands by name.

    Raises
    ------
    ArgumentError
        For other shells.
    """
    if shell not in ("bash", "zsh"):
        raise ArgumentError(f"shell must be 'bash' or 'zsh', got {shell!r}")
    from deo_cube.encoder.registry import list_models

    text = _of_tyro(shell, commands)
    found = _SPEC.search(text)
    if found is None:
        return text  # of a version of tyro that writes it otherwise
    spec = _with_models(ast.literal_eval(found[1]), [str(name) for name in list_models()["alias"]])
    text = text[: found.start(1)] + repr(spec) + text[found.end(1) :]
    # Words that are neither a command nor a flag are files.
    return text.replace("complete -F ", "complete -o bashdefault -o default -F ")


def _of_tyro(shell: str, commands: Mapping[str, Callable[..., Any]]) -> str:
    import tyro

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(dict(commands), prog="deo-cube", args=["--tyro-print-completion", shell])
    return printed.getvalue()


def _with_models(spec: dict[str, Any], models: list[str]) -> dict[str, Any]:
    for name, command in spec["subcommands"].items():
        for option in command["options"]:
            if "--model" in option["flags"]:
                option |= {"type": "choice", "choices": models}
        if name in OF_MODELS:
            own = {k: v for k, v in command.items() if k != "subcommands"}
            command["subcommands"] |= {m: {**own, "description": f"model {m}", "subcommands": {}} for m in models}
    return spec
