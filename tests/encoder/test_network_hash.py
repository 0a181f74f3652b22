from __future__ import annotations

import functools
import importlib.util
import linecache
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from deo_cube.encoder import source_code
from deo_cube.encoder.network_hash import content_hash, hash_network, network_hash
from deo_cube.encoder.networks.adapters import FunctionNetwork, seeded_network
from deo_cube.encoder.registry import bundled_cards, describe


def network_of(function: Any) -> nn.Module:
    return FunctionNetwork(function, describe("x", bands=["B04"], dim=1, patch=8))


def of(function: Any) -> str:
    return network_hash(network_of(function))


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


def test_it_is_the_same_in_a_process_that_has_no_source(tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        here = [hash_network(network_of(function)) for function in FUNCTIONS]
        sent = [cloudpickle.dumps((network_of(f), h.sources)) for f, h in zip(FUNCTIONS, here, strict=True)]
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    (tmp_path / "sent").write_bytes(cloudpickle.dumps(sent))
    code = f"""
import linecache, pickle
from deo_cube.encoder.network_hash import content_hash, hash_network, network_hash
linecache.getlines = lambda *a: []
for one in pickle.loads(open({str(tmp_path / "sent")!r}, "rb").read()):
    print(network_hash(*pickle.loads(one)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.split() == [h.sha256 for h in here]


GAIN, TABLE, CALLS, CACHE = 2.0, {"B04": (1.0, 2.0)}, 0, dict[int, float]()


def scaled(x: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    CACHE[CALLS] = 1.0
    return helper(x) * TABLE["B04"][0]


def helper(x: Tensor) -> Tensor:
    return x * GAIN


def test_constants_and_functions_of_its_module_count_but_not_what_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(scaled)
    scaled(torch.ones(1))
    assert of(scaled) == before
    found = {before}
    for name, value in (("GAIN", 3.0), ("TABLE", {"B04": (1.5, 2.0)}), ("helper", lambda x: x)):
        monkeypatch.setattr(sys.modules[__name__], name, value)
        found.add(of(scaled))
    assert len(found) == 3 + 1 - ("helper" not in scaled.__code__.co_names)


def test_comments_docstrings_annotations_and_paths_do_not_count(tmp_path: Path) -> None:
    plain = "def f(x, n=2):\n    y = x * n\n    return y\n"
    spoken = 'def f(x: "T", n: int = 2) -> "T":\n    """Double."""\n\n    y = (x * n)  # twice\n    return y\n'
    other = plain.replace("*", "+")
    given = [imported(tmp_path / name / "made.py", text) for name, text in
             (("a", plain), ("b", spoken), ("c", plain), ("d", other))]  # fmt: skip
    a, b, c, d = (of(f) for f in given)
    assert a == b == c != d
    # A file that was edited after its import is not the source of what runs.
    again = imported(tmp_path / "e" / "made.py", plain)
    (tmp_path / "e" / "made.py").write_text(other)
    linecache.checkcache()
    assert of(again) != d


def test_a_function_of_a_notebook_is_known_by_its_cell(tmp_path: Path) -> None:
    text = "def f(x, n=2):\n    return x * n\n"
    cells = [text, "\n\n# again\n" + text, text.replace("*", "+")]
    made = []
    for i, cell in enumerate(cells):
        name = f"<cell {i}>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(cell, name, "exec"), scope)
        made.append(scope["f"])
    first, second, other = (of(f) for f in made)
    assert first == second == of(imported(tmp_path / "m" / "made.py", text)) != other
    assert source_code.function_source(made[0]).digest.startswith("source ")


def imported(path: Path, text: str) -> Any:
    path.parent.mkdir()
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("made", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.f


def test_two_functions_of_one_line_differ() -> None:
    one, two = lambda x: x + 1, lambda x: x + 2
    assert of(one) != of(two)
    assert of(one) == of(lambda x: x + 1) or one.__qualname__ != "<lambda>"


def test_a_table_that_a_function_captured_counts() -> None:
    def of_table(values: list[float]) -> str:
        frame, array = pd.DataFrame({"mean": values}), xr.DataArray(values)
        return of(lambda x: x * frame["mean"][0] * float(array[0]))

    assert of_table([1.0]) == of_table([1.0]) != of_table([2.0])


def test_bfloat16_and_objects_count() -> None:
    def layer(value: float) -> nn.Module:
        network = nn.Linear(1, 1).bfloat16()
        nn.init.constant_(network.weight, value)
        nn.init.zeros_(network.bias)
        return network

    assert network_hash(layer(1.0)) == network_hash(layer(1.0)) != network_hash(layer(2.0))
    arrays = [np.array([f], dtype=object) for f in (1.0, 1.0, 2.0)]
    assert content_hash(arrays[0]) == content_hash(arrays[1]) != content_hash(arrays[2])


#: The digest of `EXAMPLE` under every version of Python.
GOLDEN = "source 3b00b66492a7d525b4f360218730733deab168664291a8703ac419263aa4fccf"
EXAMPLE = """
from functools import reduce

def before():
    pass

class Net:
    SIZE = 3

    @staticmethod
    def mean(batch, size: int = 8, *rest, gain=1.0, **more):
        "The mean of each square."
        total = 0.0
        for i, (a, b) in enumerate(zip(batch, batch[1:])):
            if i % 2 and not (a is None or b < 3):
                continue
            total += a * b if a else -b
        try:
            text = f"{total:.{size}f} of {len(rest)!r} and " f"{gain}"
        except* ValueError as errors:
            raise RuntimeError("no number") from errors
        while (left := total - 1) > 0:
            total = left
        match rest:
            case [first, *_]:
                total += first
            case {"gain": g}:
                total *= g
        with open(text) as file, open(file.name):
            pick = lambda x, *, k=2: [v ** k for v in x if v] + [*{*x}]
        return pick(batch)[::-1], {**more, "total": total}, reduce(max, (yield from before()))
"""


def test_the_digest_of_a_source_is_the_same_under_every_version_of_python(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLE)
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("source_code", {source_code.__file__!r})
module = importlib.util.module_from_spec(spec)
sys.modules["source_code"] = module
spec.loader.exec_module(module)
import example
print(module.function_source(example.Net.mean).digest)
"""
    names = {f"python3.{minor}" for minor in range(11, 16)}
    installed = [str(p) for n in names for p in Path.home().glob(f".pyenv/versions/*/bin/{n}")]
    for python in {sys.executable, *installed, *filter(None, map(shutil.which, names))}:
        run = subprocess.run([python, "-B", "-c", code], capture_output=True, text=True, cwd=tmp_path)
        if "command not found" in run.stderr:  # a launcher without a Python behind it
            continue
        assert run.stdout.strip() == GOLDEN, (python, run.stderr)


def test_a_function_that_calls_an_imported_module_is_known_by_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python compiles the call of an imported name otherwise than that of another one.
    (tmp_path / "calling.py").write_text("import torch\n\n\ndef joined(x):\n    return torch.cat([x, x], 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert source_code.function_source(importlib.import_module("calling").joined).digest.startswith("source ")
