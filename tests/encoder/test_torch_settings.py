from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from deo_cube.encoder import torch_settings

PROCESS = """
import numpy as np, torch
import deo_cube
a, b = (torch.randn(384, 384, generator=torch.Generator().manual_seed(i)) for i in range(2))
seen = []
real = torch.nn.functional.conv2d
def conv2d(*args, **more):
    seen.append(torch.get_float32_matmul_precision())
    return real(*args, **more)
torch.nn.functional.conv2d = conv2d
for chosen in (None, "high"):
    if chosen:
        torch.set_float32_matmul_precision(chosen)
    before, was = a @ b, torch.get_float32_matmul_precision()
    seen.clear()
    deo_cube.synthetic_cube(size=64, times=1).deo.embed(tile=64, halo=0).compute()
    deo_cube.load_encoder("tiny", device="cpu").pool(np.zeros((1, 10, 32, 32), "float32"))
    print(was, torch.get_float32_matmul_precision(), bool(torch.equal(a @ b, before)), *sorted(set(seen)))
"""


@pytest.fixture(scope="module")
def around_encoding() -> list[list[str]]:
    """Precision before and after a process encodes, whether its products are the same, and the precision meanwhile.

    First as PyTorch starts, then as a user chose it.
    """
    run = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True)
    return [line.split() for line in run.stdout.splitlines()]


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch):
    """Each test decides anew, and leaves the process as it was."""
    before, decided = torch.get_float32_matmul_precision(), torch_settings._onednn_is_faster
    decided.cache_clear()
    torch.set_float32_matmul_precision("highest")
    yield
    decided.cache_clear()
    torch.set_float32_matmul_precision(before)


def test_encoding_leaves_the_process_as_it_was(around_encoding: list[list[str]]) -> None:
    was, after, same, *during = around_encoding[0]
    assert (was, after, same) == ("highest", "highest", "True")
    assert during == (["medium"] if torch_settings._onednn_is_faster() else ["highest"])


def test_what_somebody_chose_is_left_alone(around_encoding: list[list[str]]) -> None:
    assert around_encoding[1] == ["high", "high", "True", "high"]


def test_the_first_thread_sets_it_and_the_last_one_restores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_settings, "_onednn_is_faster", lambda: True)
    inside, leave = threading.Barrier(9), threading.Event()

    def encode() -> None:
        with torch_settings.encoder_products("cpu"), torch_settings.encoder_products("cpu"):
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=encode) for _ in range(8)]
    for thread in threads:
        thread.start()
    inside.wait()
    with torch_settings.encoder_products("cpu"):
        pass
    assert torch.get_float32_matmul_precision() == "medium"
    leave.set()
    for thread in threads:
        thread.join()
    assert torch.get_float32_matmul_precision() == "highest"


def test_what_another_thread_chooses_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_settings, "_onednn_is_faster", lambda: True)
    with torch_settings.encoder_products("cpu"):
        torch.set_float32_matmul_precision("high")
    assert torch.get_float32_matmul_precision() == "high"


def test_it_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_settings, "_onednn_is_faster", lambda: True)
    with pytest.raises(ZeroDivisionError), torch_settings.encoder_products("cpu"):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_gpu_computes_float32_in_float32() -> None:
    """TF32 is torch's default for convolutions, and a user's choice for products."""
    before = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    with torch_settings.encoder_products("cuda:0"):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_gets_what_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_settings, "_onednn_is_faster", lambda: True)
    with torch_settings.encoder_products("cpu"):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if torch.get_float32_matmul_precision() == "highest" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_where_products_would_become_coarse_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_settings, "_amd", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []
    monkeypatch.setattr(torch_settings, "_error", lambda: seen.append(torch.get_float32_matmul_precision()) or 2e-3)
    assert not torch_settings.prefer_onednn()
    assert seen == ["medium"]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("reason", ["intel", "gpu"])
def test_other_processors_and_processes_with_a_gpu_are_left_alone(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(torch_settings, "_amd", lambda: reason != "intel")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: reason == "gpu")
    assert not torch_settings.prefer_onednn()
    assert torch.get_float32_matmul_precision() == "highest"


def test_bfloat16_would_be_noticed() -> None:
    a, b = (torch.randn(512, 512) for _ in range(2))
    exact = a.double() @ b.double()
    coarse = (a.bfloat16() @ b.bfloat16()).double()
    assert float((coarse - exact).abs().max() / exact.abs().max()) > 10 * torch_settings._EXACT
