"""``python -m deo_cube.train``: the command line, made of the configuration itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from deo_cube import cli_errors
from deo_cube.errors import ArgumentError
from deo_cube.train.config import PRESETS, TrainConfig

__all__ = ["main", "parse"]


def parse(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Return the configuration of command-line arguments: the preset's, with the changes that they make.

    ``--data`` and ``--preset`` may be anywhere. Errors end the process with a message, as on every command line.
    """
    import tyro

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    preset = "small"
    for i, a in enumerate(arguments):
        if a == "--preset" and i + 1 < len(arguments):
            preset = arguments[i + 1]
        elif a.startswith("--preset="):
            preset = a.partition("=")[2]
    default = PRESETS.get(preset, PRESETS["small"])
    return tyro.cli(
        TrainConfig,
        default=default,
        args=arguments,
        prog="python -m deo_cube.train",
        description="Dual-teacher distillation of a student from Sentinel-2 cubes. Defaults are those of --preset "
        f"{preset}: each line says why. A finished run is a model: deo-cube embed CUBE OUT --model DIR.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, or print the plan with ``--dry-run``."""
    config = parse(arguments)
    try:
        if config.dry_run:
            from deo_cube.train.loop import plan

            print(plan(config))
            return 0
        if not config.data:
            raise ArgumentError("nothing to learn from: give --data SOURCE [SOURCE ...]")
        from deo_cube.train.loop import train

        out = train(config)
    except KeyboardInterrupt:
        print("interrupted; the same call resumes from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        return cli_errors.fail(error, program="deo_cube.train")
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\n{out} is a model now: deo-cube embed CUBE OUT --model {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
