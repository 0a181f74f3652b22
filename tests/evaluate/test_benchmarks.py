"""The layouts are made up here after their publishers' descriptions: the data themselves cannot be had in tests."""

import json

import numpy as np
import pytest

from deo_cube.constants import WAVELENGTH_BANDS
from deo_cube.evaluate.features import RawBands
from deo_cube.evaluate.readers import S2_13, read_oscd, read_pastis
from deo_cube.evaluate.report import evaluate
from tests.evaluate.test_readers import tif


def oscd(folder, rng):
    for i, city in enumerate(("paris", "abudhabi", "norcia", "mumbai")):
        label = np.zeros((40 + i, 50), "uint8") + 1
        label[10:20, 10:30] = 2
        for n in (1, 2):
            for b in S2_13:
                image = rng.normal(1500, 60, (41 + i, 50)) + 700 * (n == 2) * np.pad(label == 2, ((0, 1), (0, 0)))
                tif(folder / "Images" / city / f"imgs_{n}_rect" / f"{b}.tif", image.astype("uint16"))
        if city != "mumbai":
            tif(folder / "Train Labels" / city / "cm" / f"{city}-cm.tif", label)


def pastis(folder, rng):
    features = []
    for n in range(1, 11):
        label = rng.integers(0, 3, (4, 4)).repeat(32, 0).repeat(32, 1)
        label[0, 0] = 19
        series = 1000 + 500 * (label % 19)[None, None] + rng.normal(0, 50, (5, 10, 128, 128))
        for name, a in (
            (f"DATA_S2/S2_{n}.npy", series.astype("int16")),
            (f"ANNOTATIONS/TARGET_{n}.npy", label[None].astype("uint8")),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / name, a)
        features.append({"properties": {"ID_PATCH": n, "Fold": (n - 1) % 5 + 1}})
    (folder / "metadata.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_oscd(tmp_path):
    oscd(tmp_path, np.random.default_rng(0))
    scenes = read_oscd(tmp_path)
    assert [s.name for s in scenes] == ["abudhabi", "norcia", "paris"]
    assert scenes[0].image.shape == (12, 41, 50)
    assert scenes[0].label.sum() == 200
    assert (scenes[0].image - scenes[0].before)[:, 15, 20].mean() > 400
    assert len(read_oscd(tmp_path, cities=["paris"])) == 1
    with pytest.raises(FileNotFoundError, match="city"):
        read_oscd(tmp_path, cities=["rome"])


def test_pastis(tmp_path):
    pastis(tmp_path, np.random.default_rng(0))
    scenes = read_pastis(tmp_path, folds=(1, 5))
    assert [s.name for s in scenes] == ["1/1", "5/5", "1/6", "5/10"]
    assert scenes[0].bands == WAVELENGTH_BANDS
    assert scenes[0].label[0, 0] == -1
    assert len(read_pastis(tmp_path, limit=1)) == 5
    np.save(tmp_path / "DATA_S2" / "S2_1.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_pastis(tmp_path)
    with pytest.raises(FileNotFoundError, match="metadata"):
        read_pastis(tmp_path / "nothing")


def test_both_run_where_the_data_are(tmp_path):
    oscd(tmp_path / "OSCD", np.random.default_rng(0))
    pastis(tmp_path / "PASTIS", np.random.default_rng(0))
    report = evaluate(RawBands(), tmp_path, baselines=(), quick=True)
    values = {s.task: s.value for s in report.scores}
    assert values["oscd/pixel"] > 0.8
    assert values["pastis/pixel"] > 0.9
    assert values["pastis/upernet"] >= 0
    assert {"eurosat", "land cover", "beetle", "floods", "m-eurosat"} <= set(report.skipped)
