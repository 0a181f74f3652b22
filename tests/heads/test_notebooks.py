"""The worked examples run as they are, in a folder of their own; those on real data where it is."""

import runpy
from pathlib import Path

import pytest

BOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.py"))
#: What they do is tested on smaller data in `tests/heads` and `tests/train`, and a cluster in `tests/store`.
SLOW = ("dask_cluster", "real_change", "real_similar", "train")
RUNS = [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in BOOKS]


@pytest.mark.parametrize("book", RUNS)
def test_runs(book, tmp_path, monkeypatch, request):
    matplotlib = pytest.importorskip("matplotlib")
    if "DEO_CUBE_DATA" in book.read_text(encoding="utf-8"):
        monkeypatch.setenv("DEO_CUBE_DATA", str(request.getfixturevalue("shared") / "data"))
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(book), run_name="__main__")
    plt.close("all")


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: p.stem)
def test_the_notebook_beside_it_is_the_same_and_was_executed(book):
    import json

    notebook = json.loads(book.with_suffix(".ipynb").read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    script = book.read_text(encoding="utf-8")
    for cell, source in zip([c for c in notebook["cells"] if c["cell_type"] == "code"], code, strict=True):
        assert source.strip() in script
        assert cell["execution_count"] is not None
    errors = [o for c in notebook["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert not errors
