"""Parse the arguments of a command, and refuse wrong ones in one line of error and one of remedy.

tyro parses. What it does not know of a whole program is done here: a verb or a flag that does not exist is compared
with those of this program and of this verb, and the report of any other mistake is taken out of its box.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

import tyro

from deo_cube.errors import ArgumentError

__all__ = ["Spelling", "check_command", "parse", "spelling_of"]

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
        Name of the command; empty for none.
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
    flags: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, str] = field(default_factory=dict)
    switches: tuple[str, ...] = ()
    usage: str = "deo-cube COMMAND"

    @property
    def all_flags(self) -> list[str]:
        """Flags of the command, those that negate switches included."""
        negated = [flag.replace("--", "--no-", 1) for flag in self.switches]
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
    return Spelling(command, flags, positions, tuple(switches), usage)


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
        raise _refusal(lacks + meant, f"deo-cube {spelling.command} --help describes its flags")


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
    """Return a call of `verb` with the arguments of a command line (without the command); help ends the process.

    Raises
    ------
    ArgumentError
        For arguments that are missing, unknown, too many, or of the wrong kind.
    """
    if "--help" not in args and "-h" not in args:
        check_flags(args, spelling)

    @functools.wraps(verb)
    def later(*positional: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(verb, *positional, **named)

    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            call: Callable[[], Any] = tyro.cli(
                later, prog=f"deo-cube {spelling.command}", args=list(args), description=description
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise _refusal(*_in_plain_words(report.getvalue(), spelling)) from None
    sys.stderr.write(report.getvalue())  # warnings
    return call


def _refusal(message: str, remedy: str) -> ArgumentError:
    error = ArgumentError(message)
    error.add_note(remedy)
    return error


#: Reports of tyro, and the same in the words of this package.
_REPORTS = (
    (r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*?),?\)\.?", r"\2 must be one of \3, got '\1'"),
    (r"Error parsing (.+?): invalid literal for int\(\) with base 10: (.*)", r"\1 must be an integer, got \2"),
    (r"Error parsing (.+?): could not convert string to float: (.*)", r"\1 must be a number, got \2"),
    (r"Error parsing (.+?): (.*)", r"\1: \2"),
    (r"Missing value for argument '(.*?)'\. Expected 1 values\.", r"\1 needs a value"),
    (r"Missing value for argument '(.*?)'\. Expected (\d+) values\.", r"\1 needs \2 values"),
)


def _in_plain_words(report: str, spelling: Spelling) -> tuple[str, str]:
    """Return the message and the remedy of a report of tyro."""
    remedy = f"usage: {spelling.usage}; deo-cube {spelling.command} --help describes the arguments"
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
