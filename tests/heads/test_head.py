import functools
import json
import pickle

import dask
import numpy as np
import pytest
import xarray as xr

from deo_cube.cube.georeference import geobox
from deo_cube.errors import ArgumentError, ArgumentTypeError, InputNotFoundError, LabelsError, WeightsMismatchError
from deo_cube.heads.base import KEY
from deo_cube.heads.classes import Classes
from deo_cube.heads.head import Head, fit_head, load_head
from deo_cube.heads.labels import rasterize_labels as rasterize
from tests.heads.fields import clicks, embeddings, no_compute, on_dask, raster, truth

KINDS = {"knn": {}, "linear": {}, "conv": {"steps": 60, "width": 16}, "upernet": {"steps": 40, "width": 16}}


DENSE = ("conv", "upernet")


def fitted(kind, emb, **options):
    labels = raster(emb) if kind in DENSE else clicks(emb)
    return fit_head(kind, emb, labels, **KINDS[kind] | options)


@functools.cache
def known(kind, rows=30, cols=30, noise=0.5, **more):
    """Return embeddings and a head that was fitted on them, neither of which a test changes."""
    emb = embeddings(rows, cols, noise=noise, **more)
    return emb, fitted(kind, emb)


def accuracy(head, emb):
    found = head.predict(emb).values
    codes = {n: c for c, n in zip(head.classes.codes, head.classes.names, strict=True)}
    order = [codes[n] for n in (("left", "right", "disc") if "left" in codes else ("1", "2", "3"))]
    return float((found == np.array(order)[truth(emb.sizes["y"], emb.sizes["x"])]).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_labels_give_the_map(kind):
    emb = embeddings(48, 48, noise=0.4)
    head = fitted(kind, emb)
    assert isinstance(head, Head)
    assert accuracy(head, embeddings(48, 48, noise=0.4, seed=7)) > 0.95
    assert head.report["seconds"] >= 0
    assert sum(head.report["cells"].values()) == (18 if kind not in DENSE else 48 * 48)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_lazy_the_same_on_any_chunks_and_nothing_invalid_has_a_class(kind, probabilities):
    emb, head = known(kind, 40, 44, times=2, noise=0.6, invalid=((2, 3), (39, 43)))
    whole = head.predict(emb, probabilities=probabilities)
    for rows, cols in ((40, 44), (9, 11), (33, 5)):
        with dask.config.set(scheduler=no_compute):
            lazy = head.predict(on_dask(emb, rows, cols), probabilities=probabilities)
        assert lazy.chunks is not None
        got = lazy.compute()
        if probabilities:
            np.testing.assert_allclose(got.values, whole.values, atol=1e-5)
        else:
            xr.testing.assert_identical(got, whole)
    if probabilities:
        assert whole.dims == ("time", "class", "y", "x")
        assert np.isnan(whole.values[:, :, 2, 3]).all()
        np.testing.assert_allclose(whole.sum("class").values[:, 5, 5], 1, atol=1e-5)
        best = np.array(head.classes.codes)[whole.fillna(0).argmax("class").values]
        np.testing.assert_array_equal(best[:, 4:30, 4:30], head.predict(emb).values[:, 4:30, 4:30])
    else:
        assert whole.dims == ("time", "y", "x")
        assert (whole.values[:, 2, 3] == 255).all()
        assert (whole.values == 255).sum() == 4
        assert whole.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("north_up", [True, False])
def test_on_the_map_with_flags(kind, north_up):
    emb, head = known(kind)
    other = embeddings(30, 30, noise=0.5, north_up=north_up)
    got = head.predict(other)
    assert geobox(got) == geobox(other.isel(embedding=0))
    assert list(got.attrs["flag_values"]) == list(head.classes.codes)
    assert got.attrs["flag_meanings"].split() == list(head.classes.names)
    assert len(got.attrs["flag_colors"].split()) == 3
    if kind not in DENSE:  # The decoder learnt from neighbours as they lie; turned over it may differ at edges.
        np.testing.assert_array_equal(got.sortby("y").values, head.predict(emb).sortby("y").values)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_predicts_the_same(kind, tmp_path):
    emb, head = known(kind)
    path = head.save(tmp_path / "my head")
    assert path.suffix == ".safetensors"
    again = load_head(tmp_path / "my head")
    assert again.kind == kind
    assert again.classes == head.classes
    assert again.report == head.report
    xr.testing.assert_identical(again.predict(emb), head.predict(emb))


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_twice_gives_the_same(kind):
    emb, head = known(kind)
    a, b = (h.predict(emb, probabilities=True) for h in (head, fitted(kind, emb)))
    xr.testing.assert_identical(a, b)


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("where", ["file", "folder", "suffix", "torch", "zip"])
def test_reading_an_untrusted_file_executes_nothing(tmp_path, where):
    import io
    import zipfile

    import torch

    mark, bomb = tmp_path / "executed", Bomb(tmp_path / "executed")
    # The control: this very object executes where it is unpickled.
    pickle.loads(pickle.dumps(bomb)).close()
    assert mark.exists()
    mark.unlink()
    data = pickle.dumps(bomb)
    if where in ("torch", "zip"):
        buffer = io.BytesIO()
        if where == "torch":
            torch.save(bomb, buffer)
        else:
            with zipfile.ZipFile(buffer, "w") as z:
                z.writestr("archive/data.pkl", data)
        data = buffer.getvalue()
    path = {"folder": tmp_path / "model" / "head.safetensors", "suffix": tmp_path / "head"}.get(
        where, tmp_path / "b.pt"
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with pytest.raises(WeightsMismatchError, match="safetensors"):
        load_head(path.parent if where == "folder" else path)
    assert not mark.exists()


def test_no_head_module_can_unpickle():
    """Heads, calibrations and bases are read by modules that import no pickle and call no loader that would."""
    import ast
    from pathlib import Path

    import deo_cube.heads

    for path in Path(deo_cube.heads.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        named = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {"pickle", "joblib", "cloudpickle", "dill", "marshal"} & (named | modules), path.name
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and "allow_pickle=False" not in ast.unparse(n)]
        loads = {ast.unparse(n.func) for n in calls if isinstance(n.func, ast.Attribute | ast.Name)}
        assert not {"torch.load", "np.load", "eval", "exec", "__import__", "importlib.import_module"} & loads, path.name


def test_a_tampered_head_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    path = known("linear")[1].save(tmp_path / "h")
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:
        facts = json.loads(f.metadata()[KEY])
    for change, message in (
        ({"kind": "os.system"}, "holds a head of kind 'os.system'"),
        ({"kind": ["linear"]}, "holds a head of kind"),
        ({"format": 99}, "format 99"),
        ({"model": {"dim": 3}}, "weights and bias"),
        ({"model": {"dim": 6, "evil": 1}}, "evil"),
        ({"classes": {"codes": [0], "names": ["a"], "colors": ["red;x"]}}, "#rrggbb"),
        ({"options": {}}, "estimator"),
    ):
        save_file(tensors, tmp_path / "t.safetensors", metadata={KEY: json.dumps(facts | change)})
        with pytest.raises(WeightsMismatchError, match=message):
            load_head(tmp_path / "t.safetensors")
    wild = tensors | {"bias": tensors["bias"] * np.nan}
    save_file(wild, tmp_path / "t.safetensors", metadata={KEY: json.dumps(facts)})
    with pytest.raises(WeightsMismatchError, match="bias"):
        load_head(tmp_path / "t.safetensors")
    save_file({"weights": tensors["weights"]}, tmp_path / "t.safetensors", metadata={KEY: json.dumps(facts)})
    with pytest.raises(WeightsMismatchError, match="bias"):
        load_head(tmp_path / "t.safetensors")
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(WeightsMismatchError, match="deo_cube.head"):
        load_head(tmp_path / "t.safetensors")
    with pytest.raises(InputNotFoundError, match="nothing"):
        load_head(tmp_path / "nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_claims_other_sizes_is_refused_without_making_them(kind, tmp_path):
    import resource

    from deo_cube.heads import base

    facts, tensors = base.read_head(known(kind)[1].save(tmp_path / "h"))
    few = {k: v.ravel()[:1] for k, v in tensors.items()}
    claims = [({"model": facts["model"] | {"dim": 10**9}}, tensors), ({}, few)]
    for option, value in (
        ("width", 10**7),
        ("scales", [10**9] * 3),
        ("scales", [-1, 7]),
        ("upsample", 10**6),
        ("k", 0),
    ):
        if option in facts["options"]:
            claims.append(({"options": facts["options"] | {option: value}}, tensors))
    claims += [({}, {k: v.astype("int8") for k, v in tensors.items()})] if kind in ("conv", "upernet") else []
    more = {k: [*v, v[0]] for k, v in facts["classes"].items()} | {"codes": [*facts["classes"]["codes"], 250]}
    claims.append(({"classes": more}, tensors))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for change, parts in claims:
        path = base.write_head(tmp_path / "t", facts | change, parts)
        with pytest.raises(WeightsMismatchError, match="safetensors"):
            load_head(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_linear_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    emb = embeddings(30, 30, noise=0.8)
    label_map = rasterize(clicks(emb, 20), emb).values
    x, y = emb.values[:, label_map != 255].T.astype("float64"), label_map[label_map != 255]
    head = fit_head("linear", emb, clicks(emb, 20), strengths=[0.5])
    scaler = StandardScaler().fit(x)
    want = LogisticRegression(C=0.5, class_weight="balanced", max_iter=500).fit(scaler.transform(x), y)
    every = emb.values.reshape(6, -1).T.astype("float64")
    got = head.predict(emb, probabilities=True).values.reshape(3, -1).T
    np.testing.assert_allclose(got, want.predict_proba(scaler.transform(every)), atol=1e-4)


@pytest.mark.parametrize("estimator", ["logistic", "ridge"])
def test_two_classes(estimator):
    emb = embeddings(30, 30, noise=0.8)
    two = [(x, y, k) for x, y, k in clicks(emb, 20) if k != "disc"]
    head = fit_head("linear", emb, two, estimator=estimator)
    p = head.predict(emb, probabilities=True)
    np.testing.assert_allclose(p.sum("class").values, 1, atol=1e-5)
    label = truth(30, 30)
    right = (p.sel({"class": "right"}) > 0.5).values
    assert (right[label != 2] == (label[label != 2] == 1)).mean() > 0.9


def test_strength_is_chosen_in_blocks_of_space():
    emb = embeddings(48, 48, noise=1.5)
    head = fit_head("linear", emb, clicks(emb, 40))
    assert head.report["C"] in (0.001, 0.01, 0.1, 1.0, 10.0)
    assert "blocks of" in head.report["validation"]
    assert 0.5 < head.report["accuracy"] <= 1
    few = fit_head("linear", emb, [p for k in ("left", "disc") for p in clicks(emb, 1) if p[2] == k])
    assert few.report["validation"] == "none"


def test_knn_weighs_rare_classes():
    emb = embeddings(48, 48, noise=0.5)
    label, rng = truth(48, 48), np.random.default_rng(0)

    def at(k, n):
        return [(float(emb.x[c]), float(emb.y[r]), str(k)) for r, c in rng.permutation(np.argwhere(label == k))[:n]]

    head = fit_head("knn", emb, at(0, 100) + at(1, 100) + at(2, 3))
    found = head.predict(emb).values
    assert (found[label == 2] == 2).mean() > 0.9


def test_a_decoder_draws_on_a_finer_grid():
    emb = embeddings(24, 24, noise=0.3)
    head = fitted("conv", emb, upsample=4)
    whole = head.predict(emb)
    box = geobox(emb.isel(embedding=0))
    assert whole.shape == (96, 96)
    assert geobox(whole).boundingbox == box.boundingbox
    assert float(whole.x[1] - whole.x[0]) == 20
    xr.testing.assert_identical(head.predict(on_dask(emb, 7, 10)).compute(), whole)
    want = truth(24, 24).repeat(4, 0).repeat(4, 1) + 1
    assert (whole.values == want).mean() > 0.93


def test_several_scenes_and_one_time():
    a, b = embeddings(30, 30, noise=0.4), embeddings(30, 30, noise=0.4, seed=5, crs="EPSG:32633")
    code = {"left": 1, "right": 2, "disc": 3}
    labels = [[(x, y, code[k]) for x, y, k in clicks(e)] for e in (a, b)]
    names = {v: k for k, v in code.items()}
    # Each scene lacks a class; together they have all.
    labels[0] = [p for p in labels[0] if p[2] != 3]
    head = fit_head("linear", [a, b], labels, names=names)
    assert head.classes.names == ("left", "right", "disc")
    assert accuracy(head, embeddings(30, 30, noise=0.4, seed=9)) > 0.95
    times = embeddings(30, 30, times=3, noise=0.4)
    assert fit_head("linear", times, clicks(times), time="2020").report["vectors"] == 18
    assert fit_head("linear", times, clicks(times)).report["vectors"] == 54


def test_embeddings_of_another_model_are_refused():
    emb = embeddings(30, 30)
    named = emb.assign_attrs({"deo_cube:model_fingerprint": "aa11", "deo_cube:model_alias": "tiny"})
    head = fit_head("knn", named, clicks(emb))
    head.predict(emb)
    with pytest.raises(ArgumentError, match="vitb.*tiny"):
        head.predict(emb.assign_attrs({"deo_cube:model_fingerprint": "bb22", "deo_cube:model_alias": "vitb"}))
    with pytest.raises(ArgumentError, match="vectors of 5"):
        head.predict(embeddings(30, 30, dim=5))


def test_errors():
    emb = embeddings(30, 30)
    with pytest.raises(ArgumentError, match="kind"):
        fit_head("jungle", emb, clicks(emb))
    with pytest.raises(ArgumentError, match="estimator"):
        fit_head("linear", emb, clicks(emb), estimator="svm")
    with pytest.raises(LabelsError, match="labels must"):
        fit_head("linear", emb, clicks(emb)[:5])
    with pytest.raises(ArgumentError, match="labels must"):
        fit_head("conv", emb, clicks(emb)[:5])
    with pytest.raises(ArgumentTypeError, match="shape"):
        fit_head("linear", emb, clicks(emb), shape=3)


@pytest.mark.parametrize(
    "names", [["land", "water"], ["water", "wood"], ["forest", "trees"], ["a", "snow", "ice"], list("abcdefghijklm")]
)
def test_no_two_classes_look_alike(names):
    shades = Classes.of(names).colors
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in shades])
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)[~np.eye(len(rgb), dtype=bool)]
    assert apart.min() >= 40
    if "water" in names:
        assert shades[sorted(names).index("water")] == "#1f78b4"


def test_classes_keep_integers_and_number_names():
    assert Classes.of([7, 2, 2]).codes == (2, 7)
    assert Classes.of(["b", "a"]).names == ("a", "b")
    assert Classes.of(["b", "a"]).codes == (0, 1)
    assert Classes.of([1000, 2000]).codes == (0, 1)
    worldcover = Classes.of(["Tree cover", "Cropland", "Rice", "Snow and ice"])
    assert dict(zip(worldcover.names, worldcover.colors, strict=True)) == {
        "Tree cover": "#1b7837", "Cropland": "#e6ab02", "Rice": "#0072b2", "Snow and ice": "#e6f5ff"
    }  # fmt: skip
    assert Classes.of(["water", "x"], colors={"x": "#010203"}).colors == ("#1f78b4", "#010203")
    with pytest.raises(ArgumentError, match="no class"):
        Classes.of(["a"]).code_of("b")
    with pytest.raises(ArgumentError, match="codes"):
        Classes((3, 1), ("a", "b"))


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_a_rare_class_is_not_lost_where_labels_are_thinned(kind):
    emb = embeddings(40, 40, noise=0.05)
    labels = [(float(x), float(y), "common" if x < float(emb.x[20]) else "other") for x in emb.x for y in emb.y]
    emb.values[:, 7, 7] = 9.0
    labels.append((float(emb.x[7]), float(emb.y[7]), "rare"))
    head = fit_head(kind, emb, labels, most=50)
    assert head.classes.names == ("common", "other", "rare")
    assert int(head.predict(emb)[7, 7]) == head.classes.code_of("rare")


def test_a_head_and_its_classes_show_themselves_in_notebooks() -> None:
    emb = embeddings(30, 30, noise=0.3)
    head = fit_head("knn", emb, clicks(emb))
    shown = head._repr_html_()
    assert "knn head" in shown
    assert "6 cells" in shown
    assert all(name in shown for name in head.classes.names)
    assert all(color in shown for color in head.classes.colors)
    legend = Classes((0, 1), ("<a>", "b"))._repr_html_()
    assert "&lt;a&gt;" in legend
    assert "<a>" not in legend
