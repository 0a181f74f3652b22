"""Regression heads: numbers with units, the same on any chunks, honest scores, and files without pickle."""

import json

import dask
import numpy as np
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import Lasso, LogisticRegression, PoissonRegressor, Ridge, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, RobustScaler, StandardScaler
from sklearn.svm import SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

import deo_cube
from deo_cube.cube.georeference import geobox
from deo_cube.errors import ArgumentError, ArgumentTypeError, WeightsMismatchError
from deo_cube.heads.base import Head
from deo_cube.heads.head import fit_head, load_head
from deo_cube.heads.intervals import cell_areas, mean_of
from deo_cube.heads.maps import segment
from deo_cube.heads.regression import RegressionHead
from tests.heads.fields import clicks, embeddings, no_compute, on_dask

OPTIONS = {"ridge": {}, "forest": {"trees": 10}}


def field(emb, noise=0.0, seed=11):
    """A quantity that is linear in the vectors."""
    weights = np.random.default_rng(5).normal(size=emb.sizes["embedding"])
    values = np.tensordot(weights, emb.values, ([0], [emb.get_axis_num("embedding")]))
    values = values + noise * np.random.default_rng(seed).normal(size=values.shape)
    return xr.DataArray(values, dims=("y", "x"), coords={"y": emb.y, "x": emb.x}, attrs={"units": "t/ha"})


@pytest.mark.parametrize("kind", OPTIONS)
def test_numbers_with_units_lazy_the_same_on_any_chunks_and_missing_where_vectors_are(kind):
    emb = embeddings(30, 32, noise=1.0, invalid=[(2, 3)])
    head = fit_head(kind, emb, field(emb), quantity="biomass", **OPTIONS[kind])
    assert isinstance(head, RegressionHead)
    assert isinstance(head, Head)
    whole = head.predict(emb)
    assert whole.dtype == np.float32
    assert whole.attrs["units"] == "t/ha"
    assert whole.attrs["long_name"] == "biomass"
    assert np.isnan(whole.values[2, 3])
    assert int(whole.isnull().sum()) == 1
    assert geobox(whole) == geobox(emb.isel(embedding=0))
    with dask.config.set(scheduler=no_compute):
        lazy = head.predict(on_dask(emb, 7, 11))
    np.testing.assert_allclose(lazy.values, whole.values, rtol=1e-6)
    assert head.report["targets"] == 30 * 32 - 1
    assert head.report["r2"][0] > (0.99 if kind == "ridge" else 0.6)
    assert "biomass" in head._repr_html_()


def test_ridge_is_that_of_scikit_learn():
    emb = embeddings(20, 20, noise=1.0)
    head = fit_head("ridge", emb, field(emb, noise=0.5), strengths=[10.0])
    x, y = emb.values.reshape(emb.sizes["embedding"], -1).T.astype("float64"), field(emb, noise=0.5).values.ravel()
    expected = make_pipeline(StandardScaler(), Ridge(10.0)).fit(x, y.astype("float32")).predict(x)
    np.testing.assert_allclose(head.predict(emb).values.ravel(), expected, rtol=1e-4, atol=1e-4)


def test_scores_of_noise_are_not_flattering_and_intervals_hold_the_truth():
    emb = embeddings(40, 40, noise=1.0, dim=4)
    nothing = field(emb) * 0 + np.random.default_rng(3).normal(size=(40, 40))
    report = fit_head("ridge", emb, nothing).report
    assert report["r2"][0] < 0.05
    noisy = fit_head("ridge", emb, field(emb, noise=2.0)).report
    low, high = noisy["rmse"][1:]
    assert low < 2.0 < high + 0.15
    assert noisy["bias"][1] < 0 < noisy["bias"][2]
    assert noisy["error_90"] == pytest.approx(2 * 1.645, rel=0.15)


def test_limits_mean_and_its_interval():
    emb = embeddings(30, 30, noise=1.0)
    target = field(emb, noise=1.0)
    head = fit_head("ridge", emb, target, limits=(0, None))
    assert float(head.predict(emb).min()) >= 0
    head = fit_head("ridge", emb, target)
    estimate = head.mean(emb)
    assert estimate.mean.low < float(target.mean()) < estimate.mean.high
    assert estimate.hectares == pytest.approx(900 * 80 * 80 / 1e4)
    assert estimate.total.value == pytest.approx(estimate.mean.value * estimate.hectares)
    left = xr.DataArray(np.arange(30) < 5, dims="x", coords={"x": emb.x})
    assert head.mean(emb, where=left).hectares == pytest.approx(150 * 80 * 80 / 1e4)
    with pytest.raises(ArgumentError, match="where"):
        head.mean(emb, where=left & ~left)
    several = xr.concat([emb, emb], "time").assign_coords(time=np.array(["2020", "2021"], "datetime64[ns]"))
    with pytest.raises(ArgumentError, match="time"):
        head.mean(several)


def test_cells_in_degrees_and_in_mercator_have_their_area_on_the_ground():
    degrees = embeddings(4, 4, crs="EPSG:4326", corner=(10.0, 60.0), cell=0.001).isel(embedding=0)
    np.testing.assert_allclose(cell_areas(degrees), 111_412 * 0.001 * 55_800 * 0.001, rtol=5e-3)
    mercator = embeddings(4, 4, crs="EPSG:3857", corner=(0.0, 8_399_737.9), cell=100.0).isel(embedding=0)
    np.testing.assert_allclose(cell_areas(mercator), 100.0**2 * 0.25, rtol=1e-2)  # 60 degrees north
    assert mean_of(degrees * 0 + 3)[0] == pytest.approx(3)


@pytest.mark.parametrize("kind", OPTIONS)
def test_saved_and_read_without_pickle(kind, tmp_path):
    emb = embeddings(24, 24, noise=1.0)
    head = fit_head(kind, emb, field(emb), limits=(None, 3.0), **OPTIONS[kind])
    again = load_head(head.save(tmp_path / "head"))
    xr.testing.assert_identical(again.predict(emb), head.predict(emb))
    assert again.report == head.report
    assert again.units == "t/ha"
    assert len(again.tensors["training.places"]) == 576
    bare = fit_head(kind, emb, field(emb), keep_training=False, **OPTIONS[kind])
    assert not any(k.startswith("training") for k in bare.tensors)
    with pytest.raises(ArgumentError, match="training"):
        deo_cube.applicability(emb, bare)


REGRESSORS = [
    Ridge(),
    Lasso(0.01),
    RandomForestRegressor(5, random_state=0),
    ExtraTreesRegressor(5, random_state=0),
    DecisionTreeRegressor(max_leaf_nodes=9, random_state=0),
    GradientBoostingRegressor(n_estimators=8, random_state=0),
    KNeighborsRegressor(3),
    KNeighborsRegressor(4, weights="distance", metric="cosine"),
    MLPRegressor(hidden_layer_sizes=(8,), max_iter=50, random_state=0),
    make_pipeline(StandardScaler(), PCA(3), Ridge()),
    make_pipeline(RobustScaler(), KNeighborsRegressor(3, weights="distance")),
    make_pipeline(Normalizer(), MinMaxScaler(), RandomForestRegressor(4, random_state=0)),
    GridSearchCV(Ridge(), {"alpha": [1, 10]}, cv=2),
]
CLASSIFIERS = [
    LogisticRegression(max_iter=200),
    RandomForestClassifier(5, random_state=0),
    DecisionTreeClassifier(random_state=0),
    KNeighborsClassifier(3),
    RidgeClassifier(),
    LinearSVC(),
    LinearDiscriminantAnalysis(),
    MLPClassifier(hidden_layer_sizes=(8,), max_iter=80, random_state=0),
    make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)),
]


def named(estimator):
    return "+".join(type(s).__name__ for s in getattr(estimator, "named_steps", {"": estimator}).values())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", REGRESSORS, ids=named)
def test_regressors_of_scikit_learn_are_arrays_with_their_own_predictions(estimator, tmp_path):
    emb = embeddings(14, 14, noise=1.0, dim=5)
    head = fit_head(estimator, emb, field(emb))
    x = emb.values.reshape(5, -1).T
    own = clone(estimator).fit(x, field(emb).values.ravel().astype("float32"))
    np.testing.assert_allclose(head.predict(emb).values.ravel(), own.predict(x), rtol=2e-4, atol=2e-4)
    again = load_head(head.save(tmp_path / "head"))
    xr.testing.assert_identical(again.predict(emb), head.predict(emb))
    assert not hasattr(estimator, "n_features_in_")  # the user's own object is not fitted


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=named)
def test_classifiers_of_scikit_learn(estimator, labels, tmp_path):
    emb = embeddings(20, 20, noise=0.6, dim=5)
    places = [c for c in clicks(emb) if labels == 3 or c[2] != "disc"]
    head = fit_head(estimator, emb, places)
    assert head.predict(emb).dtype == np.uint8
    p = head.predict(emb, probabilities=True)
    assert p.sizes["class"] == labels
    np.testing.assert_allclose(p.sum("class"), 1, atol=1e-5)
    again = load_head(head.save(tmp_path / "head"))
    xr.testing.assert_identical(again.predict(emb, probabilities=True), p)
    assert "accuracy" in head.report


class Counting(NearestCentroid):
    """A classifier that takes the classes 0, 1, ... only, as XGBoost's does."""

    def fit(self, X, y):
        if not np.array_equal(np.unique(y), np.arange(len(np.unique(y)))):
            raise ValueError(f"Invalid classes inferred from unique values of `y`, got {np.unique(y)}")
        return super().fit(X, y)


@pytest.mark.parametrize("codes", [(10, 20, 30), (1, 2, 3), (0, 1, 2), ("a", "b", "c")])
def test_a_classifier_that_counts_its_classes_maps_the_codes_of_the_labels(codes):
    emb = embeddings(20, 20, noise=0.6, dim=5)
    named = dict(zip(sorted({c[2] for c in clicks(emb)}), codes, strict=True))
    places = [(x, y, named[c]) for x, y, c in clicks(emb)]
    head, expected = (fit_head(e, emb, places) for e in (Counting(), NearestCentroid()))
    xr.testing.assert_equal(head.predict(emb), expected.predict(emb))
    assert head.report["accuracy"] == expected.report["accuracy"]


def test_estimators_without_a_form_as_arrays_predict_and_say_why_they_are_not_saved(tmp_path):
    emb = embeddings(20, 20, noise=1.0, dim=5)
    log = TransformedTargetRegressor(Ridge(), func=np.log1p, inverse_func=np.expm1)
    positive = abs(field(emb))
    assert load_head(fit_head(log, emb, positive).save(tmp_path / "log")).predict(emb).shape == (20, 20)
    assert fit_head(PoissonRegressor(), emb, positive).save(tmp_path / "poisson").is_file()
    for estimator in (HistGradientBoostingRegressor(max_iter=5), SVR(), KNeighborsRegressor(metric="manhattan")):
        head = fit_head(estimator, emb, positive)
        assert np.isfinite(head.predict(on_dask(emb, 9, 20)).values).all()
        with pytest.raises(ArgumentError, match="because"):
            head.save(tmp_path / "no")
    for classifier in (GaussianNB(), SGDClassifier(loss="modified_huber", random_state=0)):
        head = fit_head(classifier, emb, clicks(emb))
        assert head.predict(emb, probabilities=True).sizes["class"] == 3
        with pytest.raises(ArgumentError, match="path"):
            head.save(tmp_path / "no")


def test_weights_reach_the_estimator():
    emb = embeddings(12, 12, noise=1.0)
    places = [(float(emb.x[i]), float(emb.y[j]), float(i)) for i in range(12) for j in range(12)]
    twice = places + [(x + 1, y, v + 6) for x, y, v in places[:40] for _ in range(3)]
    weighted, even = (fit_head(Ridge(), emb, t).predict(emb) for t in (twice, places))
    assert float(abs(weighted - even).max()) > 0.1


def test_kinds_options_and_damaged_files_are_refused_by_name(tmp_path):
    emb = embeddings(20, 20)
    target = field(emb)
    for kind, error, word in (
        ("spline", ArgumentError, "ridge"),
        (Ridge, ArgumentTypeError, r"\(\)"),
        (StandardScaler(), ArgumentError, "estimator"),
        (PCA(2), ArgumentError, "estimator"),
    ):
        with pytest.raises(error, match=word):
            fit_head(kind, emb, target)
    for options, word in (
        ({"names": {1: "a"}}, "names"),
        ({"estimator": Ridge()}, "estimator"),
        ({"limits": (1, 0)}, "limits"),
        ({"limits": 3}, "limits"),
        ({"block": -1}, "block"),
        ({"units": 3}, "units"),
        ({"finetune": 1, "folder": tmp_path}, "finetune"),
    ):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=word):
            fit_head("ridge", emb, target, **options)
    head = fit_head(DecisionTreeRegressor(max_depth=3), emb, target)
    with pytest.raises(ArgumentError, match="probabilities"):
        head.predict(emb, probabilities=True)
    path = head.save(tmp_path / "tree")
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, "numpy") as f:
        facts, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    damages = [
        {"0.left": np.zeros_like(tensors["0.left"])},  # a cycle
        {"0.left": tensors["0.left"] + 1000},
        {"0.feature": tensors["0.feature"] + 100},
        {"0.values": tensors["0.values"][:2]},
        {"0.threshold": tensors["0.threshold"][:2]},
    ]
    for damage in damages:
        save_file(tensors | damage, tmp_path / "bad.safetensors", metadata=facts)
        with pytest.raises(WeightsMismatchError):
            load_head(tmp_path / "bad")
    own = json.loads(facts["deo_cube.head"])
    for steps in ("[]", "3", "[", '["pickle"]', '["trees", "linear"]', '["softmax"]'):
        own["options"]["steps"] = steps
        save_file(tensors, tmp_path / "bad.safetensors", metadata={"deo_cube.head": json.dumps(own)})
        with pytest.raises(WeightsMismatchError):
            load_head(tmp_path / "bad")


@pytest.mark.real
@pytest.mark.slow
def test_biomass_of_a_real_forest_is_told_from_its_vectors(shared):
    from benchmarks.quantities import biomass

    cube, target = biomass(shared / "data")
    emb = cube.deo.embed("tiny", units="dn", offset=0).compute().squeeze(drop=True)
    west = target.where(target.x < float(target.x.mean()) - 40)
    head = fit_head("ridge", emb, west, limits=(0, None))
    assert head.units == "t/ha"
    assert head.report["targets"] == 64 * 31
    result = deo_cube.assess(head.predict(emb), target.where(target.x > float(target.x.mean()) + 40), head=head)
    assert result.score("r2").value > 0.4
    assert not any("100%" in n for n in result.notes)


def test_a_map_per_pixel_of_the_cube():
    ds = deo_cube.synthetic_cube(size=96, times=1, clouds=False, gaps=False)
    emb = ds.deo.embed("tiny").compute()
    rng = np.random.default_rng(0)
    places = [(float(ds.x[i]), float(ds.y[j]), float(ds.B08[0, j, i])) for i, j in rng.integers(0, 96, (60, 2))]
    head = deo_cube.fit_head("ridge", emb, places, quantity="near infrared")
    pixels = segment(ds, head)
    assert pixels.dtype == np.float32
    assert pixels.name == "value"
    assert pixels.sizes == {"time": 1, "y": 96, "x": 96}
    np.testing.assert_array_equal(pixels.x, ds.x)
    patches = deo_cube.classify(emb, head)
    coarse = pixels.coarsen(y=96 // patches.sizes["y"], x=96 // patches.sizes["x"]).mean()
    assert float(np.corrcoef(coarse.values.ravel(), patches.values.ravel())[0, 1]) > 0.9
    with pytest.raises(ArgumentError, match="blend"):
        segment(ds, head, blend=True)
