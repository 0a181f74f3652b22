from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deo_cube.encoder import devices

CODE = """
import torch
{before}
import deo_cube
deo_cube.load_encoder("tiny", device="cpu")
a, b = (torch.randn(384, 384, generator=torch.Generator().manual_seed(i)) for i in range(2))
exact = a.double() @ b.double()
print(torch.get_float32_matmul_precision(), float((a @ b - exact).abs().max() / exact.abs().max()))
"""


def after_loading(before: str = "") -> tuple[str, float]:
    """What a process says of its precision once it has loaded an encoder, and its products' error."""
    run = subprocess.run([sys.executable, "-c", CODE.format(before=before)], capture_output=True, text=True, check=True)
    said, error = run.stdout.split()
    return said, float(error)


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch):
    """Each test decides anew, and leaves the process as it was."""
    before = torch.get_float32_matmul_precision()
    devices.prefer_onednn.cache_clear()
    torch.set_float32_matmul_precision("highest")
    yield
    devices.prefer_onednn.cache_clear()
    torch.set_float32_matmul_precision(before)


def test_whatever_is_chosen_products_are_float32s() -> None:
    said, error = after_loading()
    assert error < 1e-6
    assert said == ("medium" if devices._amd() and not torch.cuda.is_available() else "highest")


def test_what_somebody_chose_is_left_alone() -> None:
    assert after_loading('torch.set_float32_matmul_precision("high")')[0] == "high"


def test_where_products_would_become_coarse_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_amd", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []
    monkeypatch.setattr(devices, "_error", lambda: seen.append(torch.get_float32_matmul_precision()) or 2e-3)
    assert not devices.prefer_onednn()
    assert seen == ["medium"]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("reason", ["intel", "gpu"])
def test_other_processors_and_processes_with_a_gpu_are_left_alone(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(devices, "_amd", lambda: reason != "intel")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: reason == "gpu")
    assert not devices.prefer_onednn()
    assert torch.get_float32_matmul_precision() == "highest"


def test_bfloat16_would_be_noticed() -> None:
    a, b = (torch.randn(512, 512) for _ in range(2))
    exact = a.double() @ b.double()
    coarse = (a.bfloat16() @ b.bfloat16()).double()
    assert float((coarse - exact).abs().max() / exact.abs().max()) > 10 * devices._EXACT
