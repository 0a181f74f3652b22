"""The assessment of a map: the published example, laws of the estimators, and places that deserve a look."""

import json

import dask
import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

import deo_cube
from deo_cube.cube.georeference import assign_grid
from deo_cube.errors import ArgumentError, ArgumentTypeError, InputNotFoundError, LabelsError, MissingCRSError
from deo_cube.heads.applicability import applicability
from deo_cube.heads.assess import ClassAssessment, QuantityAssessment, assess
from deo_cube.heads.classes import Classes
from deo_cube.heads.head import fit_head
from deo_cube.heads.intervals import Interval, StratifiedSample, difference, regression_scores
from deo_cube.heads.splits import LeakWarning
from tests.heads.fields import clicks, embeddings, on_dask, truth

#: Olofsson et al. 2014, table 8: rows the map, columns the reference; deforestation, gain, stable forest, non-forest.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
NAMES = ("deforestation", "forest gain", "stable forest", "stable non-forest")


def class_map(values, names, cell=30.0, crs="EPSG:32632"):
    values = np.asarray(values, "uint8")
    array = xr.DataArray(values, dims=("y", "x"), name="class", attrs=Classes(tuple(range(len(names))), names).attrs())
    box = GeoBox(values.shape, Affine(cell, 0, 500_000, 0, -cell, 5_200_000), crs)
    return assign_grid(array, box, dims=("y", "x"))


def published():
    """Return the map and the sample of the published example."""
    flat = np.repeat(np.arange(4), PIXELS)
    drawn = class_map(flat.reshape(2500, 4000), NAMES)
    places, rng = [], np.random.default_rng(0)
    for i in range(4):
        cells = rng.choice(np.flatnonzero(flat == i), COUNTS[i].sum(), replace=False)
        labels = np.repeat(np.arange(4), COUNTS[i])
        places += [
            (float(drawn.x[c % 4000]), float(drawn.y[c // 4000]), NAMES[k]) for c, k in zip(cells, labels, strict=True)
        ]
    return drawn, places


def test_the_published_example_of_olofsson():
    drawn, places = published()
    result = assess(drawn, places)
    assert isinstance(result, ClassAssessment)
    np.testing.assert_array_equal(result.confusion.to_numpy(), COUNTS)
    table = result.table
    # Section 5.1.3: areas in hectares, with their 95 % intervals, of pixels of 30 m.
    np.testing.assert_allclose(table["area_ha"], [21_158, 11_686, 285_770, 581_386], atol=1)
    half = (table["area_ha_high"] - table["area_ha_low"]) / 2
    np.testing.assert_allclose(half, [6158, 3756, 15_510, 16_282], rtol=2e-3)
    np.testing.assert_allclose(table["users"], [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(table["producers"], [0.75, 0.85, 0.93, 0.96], atol=0.005)
    # Equation 7; an interval ends at 1.
    n, size = COUNTS.sum(axis=1), PIXELS.astype("float64")
    share = COUNTS / n[:, None]
    for j, name in enumerate(table.index):
        p, others = table["producers"].iloc[j], np.arange(4) != j
        own = size[j] ** 2 * (1 - p) ** 2 * share[j, j] * (1 - share[j, j]) / (n[j] - 1)
        rest = p**2 * (size**2 * share[:, j] * (1 - share[:, j]) / (n - 1))[others].sum()
        expected = 1.96 * np.sqrt(own + rest) / (size * share[:, j]).sum()
        assert p - table.loc[name, "producers_low"] == pytest.approx(expected, rel=1e-3)
    assert result.overall.value == pytest.approx(0.95, abs=0.005)
    assert (result.overall.high - result.overall.low) / 2 == pytest.approx(0.02, abs=0.005)
    assert table["mapped_ha"].tolist() == pytest.approx((PIXELS * 0.09).tolist())


def reference_of(drawn, values):
    return [
        (float(drawn.x[c]), float(drawn.y[r]), drawn.attrs["flag_meanings"].split()[values[r, c]])
        for r, c in np.ndindex(drawn.shape)
    ]


@given(st.integers(0, 2**31 - 1))
def test_a_census_has_the_scores_of_scikit_learn_and_no_sampling_error(seed):
    rng = np.random.default_rng(seed)
    mapped, real = rng.integers(0, 3, (2, 6, 7))
    drawn = class_map(mapped, ("a", "b", "c"))
    result = assess(drawn, reference_of(drawn, real))
    expected = confusion_matrix(mapped.ravel(), real.ravel(), labels=[0, 1, 2])
    np.testing.assert_array_equal(result.confusion, expected)
    for name, score in (("users", precision_score), ("producers", recall_score), ("f1", f1_score)):
        own = score(real.ravel(), mapped.ravel(), labels=[0, 1, 2], average=None, zero_division=np.nan)
        occurs = np.isfinite(result.table[name])
        np.testing.assert_allclose(result.table[name][occurs], own[occurs])
    assert result.overall.value == pytest.approx((mapped == real).mean())
    assert result.overall.high - result.overall.low < 1e-9
    np.testing.assert_allclose(result.table["area_ha"], np.bincount(real.ravel(), minlength=3) * 0.09)


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    mapped = rng.integers(0, 2, 4000)
    real = np.where(rng.random(4000) < 0.85, mapped, 1 - mapped)
    sizes = np.bincount(mapped).astype("float64")
    covered = []
    for _ in range(400):
        cells = np.concatenate([rng.choice(np.flatnonzero(mapped == k), 60, replace=False) for k in (0, 1)])
        sample = StratifiedSample(mapped[cells], sizes, sizes / sizes.sum())
        interval = sample.ratio(real[cells] == 1, np.ones(120))
        covered.append(interval.low <= real.mean() <= interval.high)
    assert 0.91 < np.mean(covered) < 0.98


def test_scores_of_a_regression_and_the_difference_estimator():
    rng = np.random.default_rng(0)
    t = rng.normal(10, 3, 500)
    p = t + rng.normal(0.5, 1, 500)
    scores = regression_scores(t, p, np.ones(500), None)
    assert scores["rmse"].value == pytest.approx(np.sqrt(((p - t) ** 2).mean()))
    assert scores["r2"].value == pytest.approx(1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())
    assert scores["bias"].low < 0.5 < scores["bias"].high
    corrected = difference(float(p.mean()), t - p, np.ones(500), None)
    assert corrected.value == pytest.approx(t.mean())
    grouped = difference(float(p.mean()), t - p, np.ones(500), np.arange(500) // 100)
    assert grouped.value == pytest.approx(corrected.value)
    assert format(Interval(1.234, 1.0, 1.5), ".2f") == "1.23 [1.00, 1.50]"


def test_classes_are_matched_by_name_and_code_and_others_need_a_mapping():
    drawn = class_map(truth(20, 20), ("open water", "crops", "trees"))
    x, y = float(drawn.x[2]), float(drawn.y[2])
    names = assess(drawn, [(x, y, "Open_water"), (x + 30, y, "crops")])
    codes = assess(drawn, [(x, y, 0), (x + 30, y, 1)])
    pd.testing.assert_frame_equal(names.confusion, codes.confusion)
    unknown = [(x, y, "open water"), (x + 30, y, "lake"), (x + 60, y, "ice"), (x + 90, y, "swamp")]
    with pytest.raises(LabelsError, match=r"mapping=\{'lake'"):
        assess(drawn, unknown)
    result = assess(drawn, unknown, mapping={"lake": "open water", "ice": None, "swamp": "swamp"})
    assert result.confusion.to_numpy().sum() == 3
    assert result.confusion.loc["open_water", "swamp"] == 1
    assert result.table.loc["swamp", "users"] != result.table.loc["swamp", "users"]
    assert result.table.loc["swamp", "producers"] == 0


def test_cells_of_a_polygon_are_one_cluster_and_a_raster_is_every_cell():
    rng = np.random.default_rng(0)
    values = truth(40, 40)
    drawn = class_map(values, ("a", "b", "c"))
    corners = [(float(drawn.x[c]) - 15, float(drawn.y[r]) + 15) for r in range(0, 40, 8) for c in range(0, 40, 8)]
    polygons = [(shapely.box(x, y - 120, x + 120, y), "abc"[int(rng.integers(3))]) for x, y in corners]
    clustered = assess(drawn, polygons)
    points = [
        (x + 15 + 30 * i, y - 15 - 30 * j, label)
        for (x, y), (_, label) in zip(corners, polygons, strict=True)
        for i in range(4)
        for j in range(4)
    ]
    single = assess(drawn, points)
    pd.testing.assert_frame_equal(clustered.confusion, single.confusion)
    assert clustered.overall.value == pytest.approx(single.overall.value)
    widths = [r.overall.high - r.overall.low for r in (clustered, single)]
    assert widths[0] > 2 * widths[1]
    assert any("25 polygons" in n for n in clustered.notes)
    whole = assess(drawn, drawn)
    assert whole.overall.value == 1
    assert any("raster" in n for n in whole.notes)


def test_strata_of_another_map():
    rng = np.random.default_rng(0)
    drawn = class_map(rng.integers(0, 2, (30, 30)), ("a", "b"))
    strata = class_map((np.arange(900) < 90).reshape(30, 30), ("rest", "special"))
    cells = np.concatenate([rng.choice(90, 40, replace=False), 90 + rng.choice(810, 40, replace=False)])
    places = [(float(drawn.x[c % 30]), float(drawn.y[c // 30]), "a" if c < 90 else "b") for c in cells]
    result = assess(drawn, places, strata=strata)
    assert result.table.loc["a", "area_ha"] == pytest.approx(90 * 0.09)  # known from the strata, without error
    assert result.table.loc["a", "area_ha_high"] == pytest.approx(90 * 0.09)
    with pytest.raises(ArgumentError, match="strata"):
        assess(drawn, places, strata=strata.isel(x=slice(0, 5)))


def test_files_dates_dask_and_missing_values(tmp_path):
    drawn = class_map(truth(24, 24), ("left", "right", "disc"))
    drawn.values[0, 0] = 255
    places = reference_of(drawn, truth(24, 24))[:200]
    result = assess(drawn, places)
    assert any("1 reference place" in n for n in result.notes)
    drawn.to_dataset(name="class").to_zarr(tmp_path / "map.zarr", zarr_format=3, consolidated=False)
    drawn.rio.to_raster(tmp_path / "map.tif")
    drawn.to_netcdf(tmp_path / "map.nc")
    decoded = xr.open_zarr(tmp_path / "map.zarr", consolidated=False)
    small = drawn.where(drawn != 255, 9).astype("int8").assign_attrs(drawn.attrs | {"_FillValue": 9})
    files = (tmp_path / "map.zarr", tmp_path / "map.tif", tmp_path / "map.nc")
    for other in (*files, decoded, small, drawn.chunk(y=7, x=9)):
        same = assess(other, places)
        pd.testing.assert_frame_equal(same.table, result.table)
    several = xr.concat([drawn, drawn], "time").assign_coords(time=pd.to_datetime(["2020-06-01", "2021-06-01"]))
    with pytest.raises(ArgumentError, match="time"):
        assess(several, places)
    pd.testing.assert_frame_equal(assess(several, places, time="2021-06-01").table, result.table)


def test_what_is_no_map_and_no_reference_is_refused(tmp_path):
    drawn = class_map(truth(20, 20), ("a", "b", "c"))
    place = [(float(drawn.x[3]), float(drawn.y[3]), "a")]
    emb = embeddings()
    with pytest.raises(ArgumentTypeError, match="map"):
        assess(emb, place)
    with pytest.raises(ArgumentTypeError, match="map"):
        assess(3, place)
    with pytest.raises(InputNotFoundError, match="map"):
        assess(tmp_path / "none.tif", place)
    with pytest.raises(LabelsError, match="EPSG:4326"):
        assess(drawn, [(9.0, 46.9, "a")])
    with pytest.raises(ArgumentError, match="confidence"):
        assess(drawn, place, confidence=95)
    with pytest.raises(ArgumentTypeError, match="mapping"):
        assess(drawn, place, mapping=["a"])
    with pytest.raises(ArgumentTypeError, match="probabilities"):
        assess(drawn, place, probabilities=drawn)
    with pytest.raises(ArgumentTypeError, match="head"):
        assess(drawn, place, head="head")
    quantity = drawn.astype("float32").drop_attrs()
    with pytest.raises(LabelsError, match="column="):
        assess(quantity, place)


def test_doubtful_places_and_leaks():
    emb = embeddings(60, 60, noise=0.8, dim=4)
    emb = xr.where((emb.x < emb.x[6]) & (emb.y > emb.y[6]), emb + 40, emb, keep_attrs=True)
    labels = clicks(emb, n=20)
    head = fit_head("linear", emb, labels)
    drawn = head.predict(emb)
    rng = np.random.default_rng(5)
    names = ("left", "right", "disc")
    checked = [(float(emb.x[c]), float(emb.y[r]), names[truth(60, 60)[r, c]]) for r, c in rng.integers(0, 60, (150, 2))]
    with pytest.warns(LeakWarning):
        result = assess(drawn, labels, embeddings=emb, head=head, training=labels)
    assert any(n.startswith("100%") for n in result.notes)
    result = assess(drawn, checked, embeddings=emb, head=head, training=labels, reach=1.0, look=10)
    first = result.look_first
    assert 6 <= len(first) <= 10
    assert set(first["reason"]) == {"low margin", "unlike the training data"}
    margins = first[first["reason"] == "low margin"]["margin"]
    assert margins.max() < float(np.nanquantile(head.predict(emb, probabilities=True).max("class"), 0.5))
    elsewhere = [(x + 1e5, y, k) for x, y, k in labels]
    result = assess(drawn, checked, embeddings=emb, head=head, training=elsewhere)
    assert sum("trained the head" in n or "applicability" in n for n in result.notes) == 2
    assert set(result.look_first["reason"]) == {"low margin"}
    odd = first[first["reason"] == "unlike the training data"]
    assert ((odd["x"] < float(emb.x[6])) & (odd["y"] > float(emb.y[6]))).any()
    assert any("lowest margin" in n for n in result.notes)


@pytest.mark.parametrize("margin", [1.0, np.nan])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_places_of_one_margin_are_not_compared(margin):
    emb = embeddings(30, 30)
    head = fit_head("linear", emb, clicks(emb, n=10))
    probabilities = head.predict(emb, probabilities=True)
    votes = xr.zeros_like(probabilities).load()
    votes[{"class": 0}] = margin
    result = assess(head.predict(emb), clicks(emb, n=12), probabilities=votes)
    assert not any("lowest margin" in n for n in result.notes)


def test_applicability_is_that_of_the_paper():
    emb = embeddings(20, 22, noise=0.5, dim=5)
    labels = clicks(emb, n=15)
    d = applicability(emb, labels)
    rows = [int(np.argmin(abs(emb.y.values - y))) for _, y, _ in labels]
    cols = [int(np.argmin(abs(emb.x.values - x))) for x, _, _ in labels]
    known = emb.values[:, rows, cols].T.astype("float64")
    mean, scale = known.mean(axis=0), known.std(axis=0)
    known = (known - mean) / scale
    every = (emb.values.reshape(5, -1).T - mean) / scale
    apart = np.linalg.norm(known[:, None] - known[None], axis=-1)
    nearest = np.linalg.norm(every[:, None] - known[None], axis=-1).min(axis=1)
    expected = nearest / apart[np.triu_indices(len(known), 1)].mean()
    np.testing.assert_allclose(d.values.ravel(), expected, atol=1e-4)
    assert d.values[rows, cols].max() < 1e-5
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_allclose(applicability(on_dask(emb, 7, 9), labels).values, d.values, atol=1e-6)
    far = applicability(emb + 50, labels)  # the labels are at the shifted places: known again
    assert float(far.max()) == pytest.approx(float(d.max()), rel=1e-3)
    assert 0.2 < d.attrs["threshold"] < 3
    target = xr.DataArray(emb.values[0], dims=("y", "x"), coords={"y": emb.y, "x": emb.x})
    head = fit_head("ridge", emb, target)
    shifted = applicability(emb + 50, head)
    assert float((shifted > shifted.attrs["threshold"]).mean()) == 1
    with pytest.raises(ArgumentError, match="training"):
        applicability(emb.isel(embedding=slice(0, 3)), head)
    with pytest.raises(LabelsError, match="two training places"):
        applicability(emb, labels[:1])


def test_a_map_of_a_quantity():
    emb = embeddings(40, 40, noise=1.0, dim=4)
    values = emb.values[0] * 3 + 10 + np.random.default_rng(9).normal(0, 0.5, (40, 40))
    target = xr.DataArray(values, dims=("y", "x"), coords={"y": emb.y, "x": emb.x}, attrs={"units": "m"})
    west = target.where(target.x < emb.x[15])
    head = fit_head("ridge", emb, west, quantity="height")
    rng = np.random.default_rng(0)
    places = [(float(emb.x[c]), float(emb.y[r]), float(values[r, c])) for r, c in rng.integers(20, 40, (200, 2))]
    result = assess(head.predict(emb), places, embeddings=emb, head=head)
    assert isinstance(result, QuantityAssessment)
    assert result.units == "m"
    assert result.quantity == "height"
    assert result.score("rmse").value == pytest.approx(0.5, abs=0.1)
    assert result.score("r2").value > 0.9
    assert result.score("mean").low < values.mean() < result.score("mean").high + 0.1
    assert len(result.pairs) == 200
    with pytest.warns(LeakWarning):
        assess(head.predict(emb), west, head=head)
    assert assess(head.predict(emb), target.where(target.x > emb.x[20]), head=head).score("r2").value > 0.9


def test_shown_as_text_html_json_and_a_plot(tmp_path):
    import matplotlib
    import rioxarray  # noqa: F401 - registers .rio

    matplotlib.use("Agg")
    drawn, emb = class_map(truth(20, 20), ("a", "b", "c")), embeddings(12, 12)
    target = xr.DataArray(emb.values[0], dims=("y", "x"), coords={"y": emb.y, "x": emb.x})
    target = target.rio.write_crs("EPSG:32632")
    for result in (assess(drawn, reference_of(drawn, truth(20, 20))), assess(target.rename("value"), target + 0.1)):
        assert str(len(getattr(result, "pairs", range(400)))) in str(result)
        assert "<table" in result._repr_html_()
        again = json.loads(result.to_json(tmp_path / "result.json"))
        assert again == json.loads((tmp_path / "result.json").read_text())
        assert again["notes"]
        figure = result.plot()
        figure.savefig(tmp_path / "result.png")
        assert (tmp_path / "result.png").stat().st_size > 5000
        matplotlib.pyplot.close(figure)


def test_the_verb_of_the_accessor_is_the_function():
    drawn = class_map(truth(20, 20), ("a", "b", "c"))
    place = [(float(drawn.x[3]), float(drawn.y[3]), "a"), (float(drawn.x[15]), float(drawn.y[3]), "b")]
    pd.testing.assert_frame_equal(drawn.deo.assess(place).table, deo_cube.assess(drawn, place).table)


def test_training_data_of_another_model_are_refused():
    emb = embeddings(24, 24, dim=5)
    target = xr.DataArray(emb.values[0], dims=("y", "x"), coords={"y": emb.y, "x": emb.x})
    head = fit_head("ridge", emb.assign_attrs({"deo_cube:model_fingerprint": "a"}), target)
    assert applicability(emb.assign_attrs({"deo_cube:model_fingerprint": "a"}), head).dims == ("y", "x")
    with pytest.raises(ArgumentError, match="training"):
        applicability(emb.assign_attrs({"deo_cube:model_fingerprint": "b"}), head)


@pytest.mark.parametrize("chunks", [None, 7])
@pytest.mark.parametrize("codes", [(311, 211, 112), (-5, 3, 300), (10, 255, 20)])
def test_classes_of_any_number_are_assessed(codes, chunks):
    label = truth(24, 32)
    drawn = class_map(label, ("a", "b", "c")).copy(data=np.array(codes, "int32")[label]).drop_attrs(deep=False)
    if 255 in codes:
        drawn.attrs |= {"flag_values": sorted(codes), "flag_meanings": "low middle high", "_FillValue": -1}
    drawn = drawn if chunks is None else drawn.chunk(y=chunks, x=chunks)
    rng = np.random.default_rng(0)
    picks = [(int(r), int(c)) for r, c in rng.integers(0, (24, 32), (80, 2))]
    places = [(float(drawn.x[c]), float(drawn.y[r]), codes[label[r, c]]) for r, c in picks]
    result = assess(drawn, places)
    assert result.overall.value == 1
    hectares = np.array([(label == codes.index(k)).sum() * 0.09 for k in sorted(codes)])
    np.testing.assert_allclose(result.table["mapped_ha"], hectares)
    assert result.confusion.to_numpy().sum() == 80
    wrong = [(x, y, codes[(codes.index(k) + 1) % 3]) for x, y, k in places]
    assert assess(drawn, wrong).overall.value == 0


def test_numbers_of_the_reference_that_are_read_as_the_maps_are_named():
    drawn = class_map(truth(24, 32), ("water", "trees", "grass"))
    centre = [(float(drawn.x[c]), float(drawn.y[r]), int(truth(24, 32)[r, c])) for r in range(24) for c in range(32)]
    read = "1 trees"
    assert any(read in note and "mapping=" in note for note in assess(drawn, centre).notes)
    named = {0: "water", 1: "trees", 2: "grass"}
    for result in (assess(drawn, centre, mapping=named), assess(drawn, [(x, y, named[k]) for x, y, k in centre])):
        assert not any(read in note for note in result.notes)


@pytest.mark.parametrize("kind", ["tif", "nc", "array", "floats"])
def test_packed_numbers_are_a_quantity(tmp_path, kind):
    import rasterio

    values = (np.arange(24 * 32) % 97).astype("int16").reshape(24, 32)
    drawn = class_map(np.zeros((24, 32)), ("a",)).copy(data=values).drop_attrs(deep=False)
    drawn.attrs = {"scale_factor": 0.1, "add_offset": 2.0, "_FillValue": np.int16(-1), "grid_mapping": "spatial_ref"}
    places = [
        (float(drawn.x[i]), float(drawn.y[j]), float(values[j, i]) * 0.1 + 2)
        for j in range(0, 24, 3)
        for i in range(0, 32, 3)
    ]
    given: object = drawn
    if kind == "tif":
        given = tmp_path / "q.tif"
        profile = {"driver": "GTiff", "height": 24, "width": 32, "count": 1, "dtype": "int16", "nodata": -1}
        with rasterio.open(given, "w", **profile, crs=drawn.rio.crs, transform=drawn.rio.transform()) as file:
            file.write(values, 1)
            file.scales, file.offsets = (0.1,), (2.0,)
    elif kind == "nc":
        given = tmp_path / "q.nc"
        drawn.to_dataset(name="biomass").to_netcdf(given)
    elif kind == "floats":
        given = drawn.where(drawn >= 0)
    result = assess(given, places)
    assert isinstance(result, QuantityAssessment)
    assert result.table.loc["rmse", "value"] == pytest.approx(0, abs=1e-6)


def test_a_reference_without_a_crs_must_be_within_the_map(tmp_path):
    drawn = class_map(truth(24, 32), ("a", "b", "c"))
    places = pd.DataFrame({"x": drawn.x.values[:6], "y": drawn.y.values[:6], "class": list("abcabc")})
    assess(drawn, places)
    beyond = places.assign(x=places.x + 1e4 * (places.index == 5))
    with pytest.raises(MissingCRSError, match="crs="):
        assess(drawn, beyond)
    with pytest.warns(UserWarning, match="outside the map"):
        assess(drawn, beyond, crs="EPSG:32632")


def test_marks_of_missing_values_in_a_map_of_a_quantity_are_refused():
    values = np.arange(24 * 32, dtype="float32").reshape(24, 32)
    drawn = class_map(np.zeros((24, 32)), ("a",)).copy(data=values).drop_attrs(deep=False)
    places = [(float(drawn.x[i]), float(drawn.y[j]), float(values[j, i])) for j in range(24) for i in range(32)]
    marked = drawn.where(drawn > 40, -9999)
    with pytest.raises(ArgumentError, match="map.where"):
        assess(marked, places)
    result = assess(marked.where(marked != -9999), places)
    assert result.table.loc["rmse", "value"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(LabelsError, match="reference holds -9999.*nodata="):
        assess(drawn, [*places, (*places[0][:2], -9999)])
