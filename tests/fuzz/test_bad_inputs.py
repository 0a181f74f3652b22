"""Every public verb and every command, given what it cannot take: refused by name, or right; never a foreign error.

The table crosses each argument of each verb with values that it does not take (`calls.py`); Hypothesis adds numbers and
texts. A refusal is a `DeoCubeError` whose message names the argument or repeats its value.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube.cli import COMMANDS, main
from deo_cube.errors import DeoCubeError
from tests.fuzz import calls

#: Arguments whose messages go by another name.
ALSO = {
    "name": "model",
    "heads": "head",
    "path": "store",
    "labels": "label",
    "card": "model",
    "items": "item|a mapping",
}

TABLE = [
    pytest.param(verb, argument, value, id=f"{verb.name}-{argument}-{i}")
    for verb in calls.verbs()
    for argument, values in verb.bad.items()
    for i, value in enumerate(values)
]
KINDS = [
    pytest.param(call, argument, given, id=f"{name}-{kind}")
    for name, call, argument in calls.of_objects()
    for kind, given in {**calls.objects(), "other": calls.emb() if argument == "cube" else calls.cube()}.items()
    if not (kind == "other" and name in ("segment", "classify"))  # which take embeddings as well
]


def refusal(call: Any) -> str | None:
    """Message of the `DeoCubeError` that a call raises; None where it returns."""
    try:
        call()
    except DeoCubeError as error:
        return str(error)
    return None


def refused(call: Any, argument: str, value: Any) -> None:
    with pytest.raises(DeoCubeError) as caught:
        call()
    text = str(caught.value)
    quoted = isinstance(value, str | Path) and str(value) and str(value) in text
    names = "|".join((argument, ALSO.get(argument, argument)))
    assert quoted or re.search(rf"\b({names})", text), f"{argument} is not named: {text}"


@pytest.mark.parametrize(("verb", "argument", "value"), TABLE)
@pytest.mark.filterwarnings("ignore")
def test_a_value_that_an_argument_does_not_take(
    verb: calls.Verb, argument: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: verb.call(tmp_path, **{argument: value}), argument, value)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(("call", "argument", "value"), KINDS)
def test_an_object_of_another_kind(call: Any, argument: str, value: Any) -> None:
    refused(lambda: call(value), argument, None)


COMMAND_LINES = [
    ("plan", "{cube}", "--tile", "-1"),
    ("plan", "{cube}", "--tile", "2147483648"),
    ("plan", "{cube}", "--tile", "7"),
    ("plan", "{cube}", "--tile", "x"),
    ("plan", "{cube}", "--halo", "1000000000"),
    ("plan", "{cube}", "--block", "0"),
    ("plan", "{cube}", "--units", "permille"),
    ("plan", "{cube}", "--offset", "many"),
    ("plan", "{cube}", "--offset", "nan"),
    ("plan", "{cube}", "--nodata", "many"),
    ("plan", "{cube}", "--model", "vitc"),
    ("plan", "{cube}", "--layer", "no such"),
    ("plan", "{cube}", "--device", "gpu"),
    ("plan", "{cube}", "--dtype", "float8"),
    ("plan", "{cube}", "--bands", "B04"),
    ("plan", "{cube}", "--bands", "B99=red"),
    ("plan", "{cube}", "--bands", "B04=no_such"),
    ("plan", "{cube}", "--missing", "guess"),
    ("plan", "{cube}", "--no-such-flag"),
    ("plan", "no such.zarr"),
    ("plan", "{text}"),
    ("plan", "{emb}"),
    ("plan",),
    ("embed", "{cube}", "{out}", "--batch-size", "0"),
    ("embed", "{cube}", "{out}", "--workers", "0"),
    ("embed", "{cube}", "{out}", "--retries", "-1"),
    ("embed", "{cube}", "{out}", "--read-timeout", "-1"),
    ("embed", "{cube}", "{out}", "--worker-timeout", "nan"),
    ("embed", "{cube}", "{out}", "--scheduler", "sometimes"),
    ("embed", "{cube}", "{out}", "--mask", "no_such"),
    ("embed", "{cube}", "{out}", "--normalize", "no such"),
    ("embed", "{cube}", "{out}", "--weights", "no such"),
    ("embed", "{cube}", "{out}", "--anchor", "x"),
    ("embed", "{cube}", "{cube}"),
    ("embed", "{cube}", "{text}/below"),
    ("embed", "{cube}", ""),
    ("embed", "{emb}", "{out}"),
    ("verify",),
    ("verify", "no such"),
    ("verify", "{cube}"),
    ("verify", "--published", "no such"),
    ("segment", "{cube}", "no such", "{out}"),
    ("segment", "{cube}", "{text}", "{out}"),
    ("segment", "{cube}", "no such", "{cube}"),
    ("segment", "{cube}", "no such", "{out}.xyz"),
    ("evaluate", "tiny", "no such"),
    ("evaluate", "vitc", "{folder}"),
    ("bench", "tiny", "--rounds", "0"),
    ("bench", "tiny", "--size", "0"),
    ("bench", "vitc"),
    ("publish", "no such"),
    ("publish", "{cube}"),
    ("view", "no such"),
    ("view", "{cube}"),
    ("view", "{emb}", "--port", "70000"),
    ("view", "{emb}", "--host", "no such host."),
    ("view", "{emb}", "--head", "no such"),
    ("demo", "--out", "{folder}/demo", "--size", "0"),
    ("demo", "--out", "{folder}/demo", "--model", "vitc"),
    ("demo", "--out", "{folder}/demo", "--live", "--catalogue", "no such"),
    *(
        (command, "no such", *more)
        for command, more in {
            "sample": ("{text}", "{out}"),
            "aggregate": ("{out}", "--freq", "year"),
            "embed-series": ("{out}",),
            "change": ("no such", "{out}"),
            "change-series": ("{out}",),
            "assess": ("{text}",),
            "similar": ("0", "0", "{out}"),
            "index": ("{out}",),
            "search": ("0,0",),
            "mosaic": ("no such", "{out}"),
            "completion": (),
            "info": (),
            "pca": ("{out}.tif",),
            "export": ("{out}.tif",),
            "overviews": (),
            "page": ("{out}",),
        }.items()
    ),
    ("no such command",),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("fuzz")
    calls.cube().to_zarr(folder / "cube.zarr", zarr_format=3, consolidated=False)
    calls.emb().deo.to_zarr(folder / "emb.zarr", progress=False)
    (folder / "text").write_text("no cube, no head, no store")
    names = {"cube": "cube.zarr", "emb": "emb.zarr", "text": "text", "out": "out.zarr", "folder": ""}
    return {k: str(folder / v) for k, v in names.items()}


@pytest.mark.parametrize("line", COMMAND_LINES, ids=" ".join)
@pytest.mark.filterwarnings("ignore")
def test_a_command_that_cannot_be_done(
    line: tuple[str, ...], places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([part.format(**places) for part in line])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    assert not Path(places["out"]).exists()


def test_the_table_is_long() -> None:
    """There are more than 1200 bad inputs, of which at least 150 are of one kind each, and all commands are tried."""
    assert len(TABLE) + len(KINDS) + len(COMMAND_LINES) >= 1200
    assert len({(p.values[0].name, p.values[1]) for p in TABLE}) + len(KINDS) >= 150  # type: ignore[attr-defined]
    assert {line[0] for line in COMMAND_LINES} >= set(COMMANDS) - {"models", "doctor"}
    verbs = {v.name for v in calls.verbs()}
    functions = {n for n in deo_cube.__all__ if callable(getattr(deo_cube, n)) and n[0].islower()}
    assert functions <= verbs | {"list_models"}


numbers = st.one_of(
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.none(),
    st.text(max_size=4),
    st.integers(-300, 300).map(np.int16),
    st.sampled_from([np.float32(0.5), np.int64(320), np.uint8(16), np.array(320), np.array([1, 2]), b"1", (), {}]),
)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@given(tile=numbers, halo=numbers, block=numbers, batch=numbers)
def test_sizes_are_refused_or_meant(tile: Any, halo: Any, block: Any, batch: Any) -> None:
    options = {"tile": tile, "halo": halo, "block": block, "batch_size": batch}
    refused_with = refusal(lambda: calls.cube().deo.plan(**options))
    if refused_with is not None:
        assert re.search(r"tile|halo|block|batch_size", refused_with)
        return
    # What is accepted is what was asked for.
    plan = calls.cube().deo.plan(**options).tiling
    assert plan.tile == (320 if tile is None else tile)
    assert halo is None or plan.halo == halo
    assert block is None or abs(plan.block - block) <= max(plan.core, abs(block))
    assert all(type(n) is int for n in (plan.tile, plan.halo, plan.block))


@quick
@given(offset=numbers, nodata=numbers)
def test_offsets_and_nodata_are_refused_or_meant(offset: Any, nodata: Any) -> None:
    cube = calls.cube().isel(time=0)
    refused_with = refusal(lambda: cube.deo.embed(units="dn", offset=offset, nodata=nodata))
    if refused_with is not None:
        assert re.search(r"offset|nodata", refused_with)
        return
    emb = cube.deo.embed(units="dn", offset=offset, nodata=nodata)
    decided = json.loads(emb.attrs["deo_cube:radiometry"])
    assert float(np.ravel(decided["add"])[0]) == float(np.ravel(offset)[0])
    if nodata is None or not math.isfinite(nodata):
        assert decided["nodata"] is None
    else:
        assert decided["nodata"] == nodata


@quick
@given(name=st.text(max_size=12), verb=st.sampled_from(["layer", "model", "normalize", "mask", "device", "weights"]))
def test_texts_are_refused_by_name(name: str, verb: str) -> None:
    refused_with = refusal(lambda: calls.cube().deo.embed(**{verb: name}))
    if refused_with is not None:
        assert verb in refused_with or (name and name in refused_with) or "name" in refused_with
    else:
        known = {"tiny", "vitb", "swinb", "cpu", "auto", *map(str, calls.cube().variables)}
        assert name.lower() in known | {"fixed", "own", "scl", "fused", "local", "cpu:0"}


@quick
@given(to=st.one_of(st.tuples(numbers, numbers), numbers, st.lists(numbers, max_size=3)))
def test_places_are_refused_or_inside(to: Any) -> None:
    emb = calls.emb().isel(time=0)
    refused_with = refusal(lambda: emb.deo.similar(to=to))
    if refused_with is not None:
        assert re.search(r"\bto\b|point|place", refused_with)
    else:
        assert emb.deo.similar(to=to).sizes == {d: n for d, n in emb.sizes.items() if d != "embedding"}


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.intp])
def test_integers_of_numpy_give_what_those_of_python_give(kind: Any) -> None:
    cube = calls.cube().isel(time=0)
    for options in ({"halo": 16}, {"batch_size": 2}, {"tile": 64, "halo": 16}):
        ours, theirs = (cube.deo.embed(**{k: of(v) for k, v in options.items()}) for of in (int, kind))
        assert theirs.data.name == ours.data.name
        xr.testing.assert_identical(theirs.compute(), ours.compute())
