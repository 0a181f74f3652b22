"""The page on search shows the committed figures, and the benchmark counts what is near."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.index import PAGE, Index, nearest, neighbour_steps, recall, varied, with_tables


def test_the_page_shows_the_committed_figures() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = json.loads(Index.out.read_text(encoding="utf-8"))
    assert with_tables(text, found) == text, "run: python -m benchmarks.index --data DATA"
    default = next(r for r in found["index"]["rows"] if r["search"] == f"{found['index']['default_probes']} lists")
    assert default["recall10"] >= 0.95
    assert default["ms"] < 50


def test_neighbours_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 8)).astype("float32")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    steps = neighbour_steps(vectors, rng.integers(5, size=300), count=20)
    queries = varied(vectors, steps, 4, seed=1)
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-5)
    whole = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    np.testing.assert_array_equal(nearest(iter(np.array_split(vectors, 3)), queries, 10), whole)
    assert recall(whole, whole) == 1
    assert recall(whole[:, ::-1][:, :5], whole) == 0.5
