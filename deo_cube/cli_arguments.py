"""Arguments of the command line: their types and spelling, how they are parsed, and the pages of help."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import inspect
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_type_hints

import tyro

from deo_cube.errors import ArgumentError

__all__ = [
    "EXAMPLES",
    "GROUPS",
    "Spelling",
    "check_command",
    "completion_script",
    "description",
    "overview",
    "parse",
    "parse_as",
    "spelling_of",
]


T = TypeVar("T")

#: Arguments of the functions behind the commands whose parameter is called otherwise in `cli`, as "verb.argument" or,
#: for all verbs, "argument". The parameter is looked for in the verb, and is skipped where the verb lacks it.
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "emb": ("store", "data"),
    "embs": ("stores",),
    "heads": ("head",),
    "num_workers": ("workers",),
    "map_": ("map",),
    "store": ("data", "what"),
    "cube": ("data",),
    "embed.path": ("cube",),
    "embed-series.path": ("cube",),
    "plan.path": ("cube",),
    "segment.path": ("cube",),
    "segment.emb": ("cube",),
    "sample.path": ("data",),
    "index.path": ("out",),
    "search.path": ("index",),
    "similar.to": ("x", "y"),
    "verify.model": ("what",),
}


@dataclass(frozen=True)
class Spelling:
    """The arguments of a command as the shell spells them.

    Parameters
    ----------
    command : str
        Name of the command in messages; empty for none.
    call : str
        Program and command, as they are typed.
    flags : mapping of str to str
        ``--flag`` of each parameter that is one, by its Python name, and of arguments of functions that it is passed on
        to under another name.
    positions : mapping of str to str
        Word of each positional parameter, as the help shows it, likewise.
    switches : tuple of str
        Flags without a value, which exist as ``--no-flag`` too.
    usage : str
        The command with its positional parameters.
    """

    command: str = ""
    call: str = "deo-cube"
    flags: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, str] = field(default_factory=dict)
    switches: tuple[str, ...] = ()
    usage: str = "deo-cube COMMAND"

    @property
    def all_flags(self) -> list[str]:
        """Flags of the command, those that negate switches included."""
        # --progress is negated as --no-progress, --objective.gather as --objective.no-gather.
        negated = [re.sub(r"^(--(?:.*\.)?)", r"\1no-", flag) for flag in self.switches]
        return [*dict.fromkeys(self.flags.values()), *negated, "--help"]


def spelling_of(command: str, verb: Callable[..., Any]) -> Spelling:
    """Return how the shell spells the arguments of a command."""
    flags, positions, switches = dict[str, str](), dict[str, str](), list[str]()
    plain = get_type_hints(verb)
    for name, hint in get_type_hints(verb, include_extras=True).items():
        if name == "return":
            continue
        members = {name: hint}
        if is_dataclass(plain[name]):
            own = get_type_hints(plain[name], include_extras=True)
            members = {member.name: own[member.name] for member in fields(plain[name])}
        for member, kind in members.items():
            if "Positional" in str(kind):
                positions[member] = _metavar(kind) or member.upper()
                continue
            flags[member] = f"--{member.replace('_', '-')}"
            if getattr(kind, "__origin__", kind) is bool:
                switches.append(flags[member])
    usage = " ".join(["deo-cube", command, *dict.fromkeys(positions.values())])
    for argument, parameters in _PARAMETERS.items():
        own_command, _, name = argument.rpartition(".")
        if own_command not in ("", command) or name in flags or name in positions:
            continue
        if placed := [positions[p] for p in parameters if p in positions]:
            positions[name] = " ".join(placed) if name == "to" else placed[0]
        elif passed := [flags[p] for p in parameters if p in flags]:
            flags[name] = passed[0]
    return Spelling(command, f"deo-cube {command}", flags, positions, tuple(switches), usage)


def _metavar(hint: Any) -> str | None:
    """Return the word that the help shows for a positional parameter."""
    return next((m.metavar for m in hint.__metadata__ if hasattr(m, "help_behavior_hint") and m.metavar), None)


def check_command(args: Sequence[str], commands: Collection[str]) -> None:
    """Refuse a first word that is not a command.

    Raises
    ------
    ArgumentError
        With the nearest commands.
    """
    word = args[0]
    if word in commands:
        return
    if word.startswith("-"):
        raise _refusal(
            f"{word} must follow a command", "usage: deo-cube COMMAND ...; deo-cube --help lists the commands"
        )
    similar = _similar(word.replace("_", "-").lower(), commands)
    meant = f": did you mean {' or '.join(similar)}?" if similar else ""
    raise _refusal(f"{word!r} is not a command{meant}", "deo-cube --help lists the commands")


def check_flags(args: Sequence[str], spelling: Spelling) -> None:
    """Refuse the first flag in `args` (without the command) that the command does not have.

    Raises
    ------
    ArgumentError
        With the nearest flags of this command, or the position of an argument that is not a flag.
    """
    known = spelling.all_flags
    for token in args:
        given = token.partition("=")[0]
        flag = given.replace("_", "-")
        if not re.match(r"--?[A-Za-z]", flag) or flag in ("-h", *known) or _is_number(token):
            continue
        lacks = f"{spelling.command} has no flag {given}"
        name = flag.lstrip("-").replace("-", "_")
        word = spelling.positions.get(name) or ("OUT" if name in _OUTPUT and "OUT" in spelling.usage else None)
        if word is not None:
            raise _refusal(
                f"{lacks}: {word} {'are' if ' ' in word else 'is'} given by position", f"usage: {spelling.usage}"
            )
        similar = _similar(flag, known)
        meant = f": did you mean {' or '.join(similar)}?" if similar else ""
        raise _refusal(lacks + meant, f"{spelling.call} --help describes its flags")


#: What other programs call the path that is written.
_OUTPUT = ("o", "out", "output", "outfile", "dst")


def _similar(word: str, known: Collection[str]) -> list[str]:
    """Return at most three of the known words: those that begin or end like `word`, or differ by few letters."""
    bare = word.lstrip("-")
    prefix = "--" if word.startswith("-") else ""
    alike = [k for k in known if k.startswith(prefix + bare) or (len(bare) > 3 and k.endswith(bare))]
    if len(bare) > 1:
        close = difflib.get_close_matches(prefix + bare, known, 3, 0.7)
        # Exchanged letters are likelier than other ones.
        alike += sorted(close, key=lambda k: sorted(k) != sorted(prefix + bare))
    return list(dict.fromkeys(alike))[:3]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse(
    verb: Callable[..., Any], args: Sequence[str], spelling: Spelling, *, description: str | None = None
) -> Callable[[], Any]:
    """Return a call of `verb` with the arguments of a command line (without the command), as `parse_as`."""

    @functools.wraps(verb)
    def later(*positional: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(verb, *positional, **named)

    return parse_as(later, args, spelling, description=description)


def parse_as(made: Callable[..., T], args: Sequence[str], spelling: Spelling, **options: Any) -> T:
    """Return what `made`, a function or dataclass, makes of the arguments of a command line; help ends the process.

    Raises
    ------
    ArgumentError
        For arguments that are missing, unknown, too many, or of the wrong kind. A note says what describes them.
    """
    if "--help" not in args and "-h" not in args:
        check_flags(args, spelling)
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            result: T = tyro.cli(made, prog=spelling.call, args=list(args), **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise _refusal(*_in_plain_words(report.getvalue(), spelling)) from None
    sys.stderr.write(report.getvalue())  # warnings
    return result


def _refusal(message: str, remedy: str) -> ArgumentError:
    error = ArgumentError(message)
    error.add_note(remedy)
    return error


#: Reports of tyro, and the same in the words of this package.
_REPORTS = (
    (r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*?),?\)\.?", r"\2 must be one of \3, got '\1'"),
    (r"Error parsing (.+?): invalid literal for int\(\) with base 10: (.*)", r"\1 must be an integer, got \2"),
    (r"Error parsing (.+?): could not convert string to float: (.*)", r"\1 must be a number, got \2"),
    (r"Error parsing [A-Z]\w*[a-z]\w*: (.*)", r"\1"),  # of a dataclass, whose message names the flag
    (r"Error parsing (.+?): (.*)", r"\1: \2"),
    (r"Missing value for argument '(.*?)'\. Expected 1 values\.", r"\1 needs a value"),
    (r"Missing value for argument '(.*?)'\. Expected (\d+) values\.", r"\1 needs \2 values"),
)


def _in_plain_words(report: str, spelling: Spelling) -> tuple[str, str]:
    """Return the message and the remedy of a report of tyro."""
    remedy = f"usage: {spelling.usage}; {spelling.call} --help describes the arguments"
    lines = _unboxed(report)
    text = " ".join(" ".join(lines).split())
    if "Missing from" in text:
        needed = [line.strip().partition(" ")[0] for line in lines if re.match(r" {4}\S", line)]
        apart = "; x and y are two words, without a comma" if {"x", "y"} <= spelling.positions.keys() else ""
        return f"{spelling.command} needs {_joined(needed)}", remedy + apart
    if text.startswith("Unrecognized"):
        surplus = text.partition(":")[2].strip().split(", ")
        return f"{spelling.command} takes no further argument, got {_joined([repr(s) for s in surplus])}", (
            f"{remedy}; a path with spaces or a pattern is written in quotes"
        )
    for pattern, plain in _REPORTS:
        if found := re.fullmatch(pattern, text):
            return found.expand(plain), remedy
    return text, remedy


def _unboxed(report: str) -> list[str]:
    """Return the lines of a report up to its first rule, without title, borders and colours."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in report.splitlines()]
    title = next((i for i, line in enumerate(lines) if line.startswith("╭")), 0)
    content: list[str] = []
    for line in lines[title + 1 :]:
        if re.fullmatch(r"\W*[─-]{3,}\W*", line):
            if content:
                break
        else:
            content.append(re.sub(r"\s*│?$", "", line[2:]))
    return content


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1] if words else "")))


# --- help ---


#: Commands in the order of a first project.
GROUPS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "doctor", "info", "models", "completion"),
    "Embed a cube": ("plan", "embed", "embed-series", "verify", "aggregate", "mosaic"),
    "Maps and numbers": ("segment", "assess", "sample", "change", "change-series"),
    "Search": ("similar", "index", "search"),
    "Look and publish": ("view", "page", "pca", "export", "overviews", "publish"),
    "Measure": ("evaluate", "bench"),
}

#: Calls of each command, without the command: the commonest one, and one with the flags that are asked for most.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("", "--live --bbox 8.60 47.30 8.70 47.40 --datetime 2024-06"),
    "doctor": ("",),
    "info": ("emb.zarr", "tiny"),
    "models": ("",),
    "completion": ("bash",),
    "plan": ("cube.zarr --measure", "'scenes/*.tif' --offset 0 --tile 512"),
    "embed": ("cube.zarr emb.zarr", "S2A.SAFE emb.zarr --model tiny --dtype int8 --tile 512"),
    "embed-series": ("months.zarr series.zarr --freq year",),
    "verify": ("emb.zarr", "tiny"),
    "aggregate": ("emb.zarr yearly.zarr --freq year --how median",),
    "mosaic": ("west.zarr east.zarr whole.zarr",),
    "segment": ("cube.zarr head.safetensors classes.tif",),
    "assess": ("classes.tif checked.gpkg --column class --plot accuracy.png",),
    "sample": ("emb.zarr fields.gpkg vectors.parquet --how mean",),
    "change": ("2019.zarr 2024.zarr change.tif", "emb.zarr emb.zarr change.tif --before 2019 --after 2024"),
    "change-series": ("emb.zarr changes.tif --false-alarms 0.01",),
    "similar": ("emb.zarr 8.65 47.35 similar.tif --crs EPSG:4326",),
    "index": ("emb.zarr country.index",),
    "search": ("country.index 8.65,47.35 --crs EPSG:4326 --out found.geojson",),
    "view": ("emb.zarr --cube cube.zarr --head head.safetensors",),
    "page": ("emb.zarr page --time 2024-06",),
    "pca": ("emb.zarr colours.tif --time 2024-06-05",),
    "export": ("emb.zarr vectors.tif --time 2024-06-05", "emb.zarr vectors.parquet --pool 4 --min-valid 0.5"),
    "overviews": ("emb.zarr",),
    "publish": ("emb.zarr --license CC-BY-4.0",),
    "evaluate": ("tiny data --quick",),
    "bench": ("tiny --size 2048 --rounds 3",),
}


def description(command: str, verb: Callable[..., Any]) -> str:
    """Return what the help of a command says first: what it does, and examples, in lines of the terminal's width."""
    # tyro joins lines that begin with a letter, and does not wrap them.
    does = textwrap.wrap(" ".join((inspect.getdoc(verb) or "").split()), _width(), subsequent_indent="  ")
    examples = [f"$ deo-cube {command} {example}".rstrip() for example in EXAMPLES.get(command, ())]
    return "\n".join([*does, "", "Examples:", *examples]).strip()


def _width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 110)


def overview(commands: Mapping[str, Callable[..., Any]], description: str) -> str:
    """Return the help of the program: usage, and the first sentence of each command, in groups."""
    width = _width()
    lines = [
        "usage: deo-cube [-h] [--version] COMMAND ...",
        "",
        *textwrap.wrap(description.partition("\n\n")[0], width),
    ]
    named = {name for group in GROUPS.values() for name in group}
    others = tuple(name for name in commands if name not in named)
    column = max(len(name) for name in commands) + 4
    for title, names in [*GROUPS.items(), ("Further", others)]:
        present = [name for name in names if name in commands]
        if not present:
            continue
        lines += ["", f"{title}:"]
        for name in present:
            first = (inspect.getdoc(commands[name]) or "").partition("\n")[0]
            text = textwrap.wrap(first, width - column) or [""]
            lines += [f"  {name:<{column - 2}}{text[0]}", *(" " * column + rest for rest in text[1:])]
    exits = description.partition("\n\n")[2].strip()
    lines += ["", *textwrap.wrap(exits, width), "", "deo-cube COMMAND --help describes a command."]
    return "\n".join(lines)


# --- completion of the shell ---


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
