from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from deo_cube.encoder.catalog import bundled_cards
from deo_cube.encoder.describe import describe
from deo_cube.encoder.families import FunctionNetwork, seeded_network
from deo_cube.encoder.network_hash import network_hash


def of(function: Any) -> str:
    return network_hash(FunctionNetwork(function, describe("x", bands=["B04"], dim=1, patch=8)))


def pooled(size: int, names: tuple[str, ...] = ()):
    def pool(x: Tensor) -> Tensor:
        if "never" in {"among", "some", "names"}:
            return x
        return torch.nn.functional.avg_pool2d(x, size)

    return pool


@dataclass
class Pool:
    size: int

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, self.size)


class Larger(Pool):
    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, self.size)


def test_every_value_counts() -> None:
    network = seeded_network(bundled_cards()["tiny"], None)
    before = network_hash(network)
    with torch.no_grad():
        list(network.parameters())[-1].view(-1)[-1] += 1e-6
    assert network_hash(network) != before


class Twice(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Thrice(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def test_strides_and_the_code_of_parts_count_though_no_tensor_tells_them() -> None:
    def made(stride: int, part: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3, stride), nn.BatchNorm2d(2), part)

    given = [made(1, Twice()), made(2, Twice()), made(1, Thrice())]
    assert len({network_hash(g) for g in given}) == 3
    assert network_hash(made(2, Twice())) == network_hash(made(2, Twice()).train()) == network_hash(given[1].eval())


def test_what_a_function_captured_and_what_it_does_count() -> None:
    other = lambda x: nn.functional.avg_pool2d(x, 8)  # noqa: E731
    another = lambda x: nn.functional.avg_pool2d(x, 9)  # noqa: E731
    given = [
        pooled(8),
        pooled(9),
        other,
        another,
        functools.partial(nn.functional.avg_pool2d, kernel_size=8),
        functools.partial(nn.functional.avg_pool2d, kernel_size=9),
        Pool(8),
        Pool(9),
        Larger(8),
        Pool(8).__call__,
    ]
    assert len({of(f) for f in given}) == len(given)
    assert of(pooled(8)) == of(pooled(8))
    assert of(Pool(8)) == of(Pool(8))


def test_a_function_that_holds_itself_ends() -> None:
    def count(x: Tensor, n: int = 3) -> Tensor:
        return count(x, n - 1) if n else x

    assert of(count) == of(count)


FUNCTIONS = [pooled(8), Pool(8), functools.partial(pooled(8)), lambda x: max([x], key=lambda t: 0)]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_it_is_the_same_in_a_process_that_has_no_source(function: Any, tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        sent = cloudpickle.dumps((of, function))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    (tmp_path / "f").write_bytes(sent)
    code = f"import pickle\nof, f = pickle.loads(open({str(tmp_path / 'f')!r}, 'rb').read())\nprint(of(f))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.strip() == of(function)
