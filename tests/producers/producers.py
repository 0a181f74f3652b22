"""The producers that are tried: what each gives, and the lines that make embeddings of it.

The lines are those of docs/producers.md, executed as they are shown after `PRELUDE`; `emb` must be the embeddings of
the scene. `python -m tests.producers` runs all producers whose packages are installed and writes the page.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from deo_cube.errors import DeoCubeError

PRELUDE = """\
import deo_cube
import numpy as np
import odc.geo.xr
import rioxarray
import xarray as xr

BANDS = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
"""

TOLERANCE = 0.02
"""Of embeddings (float16, up to about 10 in size) of values that went through the producer's float32."""

Made = tuple[dict[str, Any], xr.Dataset]
"""Names that the lines use, and the plain cube whose embeddings are the right ones."""


@dataclass(frozen=True)
class Producer:
    """One producer: what it gives, and the lines that make embeddings of it."""

    name: str
    group: str
    gives: str
    lines: str
    decided: str
    """What is decided from which evidence."""
    mind: str
    """What a user has to know."""
    make: Callable[[Path], AbstractContextManager[Made]]
    packages: tuple[str, ...] = ()
    """Distributions that must be installed; the first is the producer."""
    modules: tuple[str, ...] = ()
    """Modules that must be importable, and that the lines may use."""
    exact: bool = True
    """Whether the embeddings are those of the plain cube bit for bit; else up to the rounding of floats."""
    real: bool = False
    """Whether the file is one of the shared real data."""
    service: bool = False
    """Whether the package only talks to a remote service, which a stand-in replaces."""

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [m for m in self.modules if importlib.util.find_spec(m.split(".")[0]) is None]

    @property
    def version(self) -> str:
        """Versions tried, as text."""
        return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in self.packages)

    def __str__(self) -> str:
        return self.name


def check(producer: Producer, folder: Path) -> float:
    """Run a producer's lines in `folder`, and return the largest difference of their embeddings from the right ones.

    The lines run as they are shown, and then without the arguments of `embed`, each of which is passed once a message
    names it: what is not asked for must not be needed.

    Raises
    ------
    AssertionError
        Where the embeddings are not those of the plain cube, or a message names none of the arguments.
    """
    last = ast.parse(producer.lines).body[-1]
    assert isinstance(last, ast.Assign)
    call = last.value
    assert isinstance(call, ast.Call)
    with executed(producer, folder) as (names, plain):
        exec(compile(producer.lines, producer.name, "exec"), names)
        expected = plain.deo.embed(units="dn", offset=0, nodata=plain.attrs.get("nodata", 0)).compute()
        apart = difference(names["emb"], expected)
        if call.keywords:
            apart = max(apart, difference(_as_asked(call, names), expected))
    assert apart <= (0 if producer.exact else TOLERANCE), f"{producer.name}: {apart}"
    return apart


def _as_asked(call: ast.Call, names: dict[str, Any]) -> xr.DataArray:
    wanted = {str(k.arg): k for k in call.keywords}
    call.keywords = []
    while True:
        try:
            emb: xr.DataArray = eval(ast.unparse(call), names).compute()
            return emb
        except DeoCubeError as error:
            asked = [k for k in wanted if f"{k}=" in str(error)]
            if not asked:
                raise AssertionError(f"the message names none of {list(wanted)}: {error}") from error
            call.keywords.append(wanted.pop(asked[0]))


@contextlib.contextmanager
def executed(producer: Producer, folder: Path) -> Iterator[Made]:
    """Stand in `folder` with what the producer makes, and with the imports executed."""
    before = Path.cwd()
    with producer.make(folder) as (names, plain):
        os.chdir(folder)
        try:
            exec(compile("\n".join([PRELUDE, *(f"import {m}" for m in producer.modules)]), "imports", "exec"), names)
            yield names, plain
        finally:
            os.chdir(before)


def difference(found: xr.DataArray, right: xr.DataArray) -> float:
    """Return the largest difference of two sets of embeddings; all else must agree: shape, place, dates, `valid`."""
    found = found.compute() if found.y[0] > found.y[-1] else found.isel(y=slice(None, None, -1)).compute()
    assert found.sizes == right.sizes, (found.sizes, right.sizes)
    assert found.odc.crs == right.odc.crs, (found.odc.crs, right.odc.crs)
    for axis in ("y", "x"):
        np.testing.assert_allclose(found[axis], right[axis], rtol=0, atol=1e-6)
    if "time" in right.dims:
        np.testing.assert_array_equal(found.time.values.astype("M8[s]"), right.time.values.astype("M8[s]"))
    np.testing.assert_array_equal(found.valid, right.valid)
    assert 0 < float(right.valid.min()) + float(right.valid.mean()) < 2, "the scene has pixels with and without data"
    a, b = found.values.astype("float32"), right.values.astype("float32")
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    return float(np.nanmax(np.abs(a - b)))
