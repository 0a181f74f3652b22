"""Run the parts: `python -m benchmarks.gpu`."""

from __future__ import annotations

import logging
import shutil
import tempfile
from typing import Any

import tyro

import benchmarks.gpu
from benchmarks.gpu import correctness, embed, encoder, training
from benchmarks.gpu.setting import Config, Report, device_facts
from deo_cube.embedding import process
from deo_cube.errors import DeviceError

__all__ = ["main"]


def main(config: Config) -> dict[str, Any]:
    """Measure, print, and write JSON with ``--out``.

    Raises
    ------
    SystemExit
        If the device is not there.
    """
    try:
        device = process.choose_device(config.device)
    except DeviceError as error:
        raise SystemExit(f"nothing measured: {error}") from None
    report = Report(config)
    report.content |= device_facts(device)
    report.write()
    folder = str(config.folder) if config.folder else tempfile.mkdtemp(prefix="deo_cube_gpu")
    try:
        if "correctness" in config.only:
            correctness.measure(report, device, folder)
        if "encoder" in config.only:
            encoder.measure(report, device)
        if "embed" in config.only:
            embed.measure(report, device, folder)
        if "training" in config.only:
            training.measure(report, device, toy=not device.startswith("cuda"))
    finally:
        if not config.folder:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{report.content['device']}, cube of {config.size} px\n\n{embed.table(report.content.get('embed', []))}")
    failed = [row["check"] for row in report.content.get("correctness", []) if not row["passed"]]
    print("checks that failed: " + (", ".join(failed) or "none"))
    return report.content


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    main(tyro.cli(Config, description=benchmarks.gpu.__doc__))
