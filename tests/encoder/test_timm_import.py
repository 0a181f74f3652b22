from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def torchvision_is_whole() -> bool:
    """Return whether the installed torchvision brings its operators, as one that fits the installed torch does."""
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode == 0


def test_timm_imports_from_many_threads_at_once() -> None:
    out = run(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from deo_cube.encoder.networks.timm_import import import_timm\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    modules = list(pool.map(lambda _: import_timm(), range(8)))\n"
        "import torchvision\n"
        "print(len({id(m) for m in modules}), modules[0].__name__)"
    )
    assert out == "1 timm"


@pytest.mark.slow
def test_nothing_is_declared_where_torchvision_is_whole() -> None:
    # A machine whose torchvision fits its torch has the operators before anything of ours runs.
    declared = (
        "import torch\n"
        "whole = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "for op in ('nms', 'qnms'):\n"
        "    whole.define(f'{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    )
    # Where the installed torchvision is whole it declares them itself, and a second declaration is refused.
    before = "import torchvision\n" if torchvision_is_whole() else declared
    out = run(
        before + "from deo_cube.encoder.networks import timm_import\n"
        "print(timm_import.prepare_torchvision(), timm_import._declared is None)\n"
        "timm_import.import_timm()"
    )
    assert out == "True True"
