"""Saved bases, clusters and calibrations, and arguments of no use: refused by name, whatever is wrong."""

import json

import numpy as np
import pytest

from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, InputNotFoundError
from deo_cube.heads.change import Calibration, change, fit_calibration
from deo_cube.heads.head import fit_head
from deo_cube.heads.kmeans import Clusters, cluster, fit_clusters
from deo_cube.heads.pca import PCA, fit_pca, pca_rgb
from tests.heads.fields import embeddings


def fitted(kind):
    emb = embeddings(times=2)
    makers = {
        PCA: fit_pca,
        Clusters: lambda e: fit_clusters(e, 3),
        Calibration: lambda e: fit_calibration(e, "2019", "2020"),
    }
    return makers[kind](emb)


@pytest.mark.parametrize("kind", [PCA, Clusters, Calibration])
def test_saved_results_are_read_and_damaged_files_refused(tmp_path, kind):
    path = tmp_path / "kept.json"
    fitted(kind).save(path)
    again = kind.load(path)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()
    good = json.loads(path.read_text())
    name = next(iter(good))
    for damage in (
        "", "{", "[" * 10_000, "null", "[]", json.dumps(good | {name: "x"}), json.dumps(good | {name: [[[1]]]}),
        json.dumps(good | {name: [1e999]}), json.dumps(good | {"model": 3}),
        json.dumps(good | {"__class__": "os.system"}),
        json.dumps({k: v for k, v in good.items() if k != name}), "\0\xff",
    ):  # fmt: skip
        path.write_text(damage, encoding="latin-1")
        with pytest.raises(DeoCubeError):
            kind.load(path)
    for missing in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(InputNotFoundError):
            kind.load(missing)
    with pytest.raises(ArgumentTypeError, match="path"):
        kind.load(None)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda e, c: cluster(e, 1), "k"),
        (lambda e, c: cluster(e, 2.5), "k"),
        (lambda e, c: cluster(e, 255), "k"),
        (lambda e, c: cluster(e, 3, seed="a"), "seed"),
        (lambda e, c: cluster(e, 3, clusters=3), "clusters"),
        (lambda e, c: pca_rgb(e, basis=3), "basis"),
        (lambda e, c: pca_rgb(e, basis="nothing.json"), "nothing.json"),
        (lambda e, c: fit_pca([]), "emb"),
        (lambda e, c: change(e, "2019", "2020", method="cosinus"), "method"),
        (lambda e, c: change(e, "2019", "2020", method="calibrated", calibration=3), "calibration"),
        (lambda e, c: change(e, "2019", "2020", method="calibrated", unchanged="2019"), "unchanged"),
        (lambda e, c: change(e, "2019", "2020", method="calibrated", unchanged=["2019", "2020"]), "unchanged"),
        (lambda e, c: change(e, "2019", "2020", method="calibrated", unchanged=[("2019",)]), "unchanged"),
        (lambda e, c: change(e, "2019", "2020", method="calibrated", unchanged=[]), "unchanged"),
        (lambda e, c: change(e, "2019", "2077"), "after"),
        (lambda e, c: change(e.isel(time=0), "2019", "2020"), "before"),
        (lambda e, c: fit_head("knn", e, c, k=0), "k"),
        (lambda e, c: fit_head("knn", e, c, k=1.5), "k"),
        (lambda e, c: fit_head("knn", e, c, balanced="yes"), "balanced"),
        (lambda e, c: fit_head("linear", e, c, strengths=[]), "strengths"),
        (lambda e, c: fit_head("linear", e, c, strengths=["a"]), "strengths"),
        (lambda e, c: fit_head("linear", e, c, strengths=[-1]), "strengths"),
        (lambda e, c: fit_head("linear", e, c, block=-5), "block"),
        (lambda e, c: fit_head("linear", e, c, depth=3), "depth"),
        (lambda e, c: fit_head("conv", e, c, steps=0), "steps"),
        (lambda e, c: fit_head("conv", e, c, upsample=99), "upsample"),
        (lambda e, c: fit_head("conv", e, c, rate=float("nan")), "rate"),
        (lambda e, c: fit_head(["knn"], e, c), "kind"),
        (lambda e, c: fit_head("knn", e, c, finetune="all"), "finetune"),
        (lambda e, c: fit_head("knn", e, c, finetune=2), "folder"),
        (lambda e, c: fit_head("knn", [e, e], [c]), "2 embeddings, 1 sets"),
        (lambda e, c: fit_head("knn", [e, e], "labels.csv"), "labels"),
        (lambda e, c: fit_head("knn", [], []), "0 embeddings"),
        (lambda e, c: fit_head("knn", np.zeros((3, 4)), c), "emb"),
        (lambda e, c: fit_head("knn", e, c, rule="most"), "rule"),
        (lambda e, c: fit_head("knn", e, c, overlap="first"), "overlap"),
        (lambda e, c: fit_head("knn", e, c, colors=["#000000"]), "colors"),
        (lambda e, c: fit_head("knn", e, c, colors={0: "red"}), "#rrggbb"),
        (lambda e, c: fit_head("knn", e, c, names=["a"]), "names"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused_by_name(call, named):
    emb = embeddings(times=2)
    clicks = [(float(emb.x[i]), float(emb.y[i]), i % 2) for i in range(8)]
    with pytest.raises(DeoCubeError, match=named):
        call(emb, clicks)


def test_a_basis_of_other_shape_is_refused():
    with pytest.raises(ArgumentError, match="mean"):
        PCA(1.0, [[1]], [1], [1])
