"""``python -m deo_cube.train``: the command line, made of the configuration itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from deo_cube import cli_arguments, cli_errors
from deo_cube.errors import ArgumentError, commands_as_remedies
from deo_cube.train.config import PRESETS, TrainConfig

__all__ = ["main", "parse"]

PROGRAM = "deo_cube.train"
CALL = f"python -m {PROGRAM}"


def parse(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Return the configuration of command-line arguments: the preset's, with the changes that they make.

    ``--data`` and ``--preset`` may be anywhere; ``--help`` ends the process.

    Raises
    ------
    ArgumentError
        For flags that do not exist, and for values that are not possible.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    preset = "small"
    for i, a in enumerate(arguments):
        if a == "--preset" and i + 1 < len(arguments):
            preset = arguments[i + 1]
        elif a.startswith("--preset="):
            preset = a.partition("=")[2]
    default = PRESETS.get(preset, PRESETS["small"])
    return cli_arguments.parse_as(
        TrainConfig,
        arguments,
        _spelling(),
        default=default,
        description="Dual-teacher distillation of a student from Sentinel-2 cubes. Defaults are those of --preset "
        f"{preset}: each line says why. A finished run is a model: deo-cube embed CUBE OUT --model DIR.",
    )


def _spelling() -> cli_arguments.Spelling:
    """Return the flags of the configuration as the shell spells them: ``--optimizer.batch``."""

    def flags(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
        hints = get_type_hints(kind)
        for one in fields(kind):
            if is_dataclass(hints[one.name]):
                yield from flags(hints[one.name], f"{prefix}{one.name}.")
            else:
                yield f"{prefix}{one.name}", hints[one.name]

    spelled = {name: (f"--{name.replace('_', '-')}", hint) for name, hint in flags(TrainConfig)}
    return cli_arguments.Spelling(
        "training",
        CALL,
        {name: flag for name, (flag, _) in spelled.items()},
        switches=tuple(flag for flag, hint in spelled.values() if hint is bool),
        usage=f"{CALL} --data SOURCE ... [--out DIR] [OPTIONS]",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, or print the plan with ``--dry-run``."""
    with commands_as_remedies(), cli_errors.warnings_as_lines(program=PROGRAM):
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        config = parse(arguments)
        if config.dry_run:
            from deo_cube.train.loop import plan_run

            print(plan_run(config))
            return 0
        if not config.data:
            raise ArgumentError("nothing to learn from: give --data SOURCE [SOURCE ...]")
        from deo_cube.train.loop import train

        out = train(config)
    except KeyboardInterrupt:
        print("interrupted; the same call resumes from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        return cli_errors.fail(error, program=PROGRAM)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\n{out} is a model now: deo-cube embed CUBE OUT --model {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
