import json

import pytest

from deo_cube.evaluate.baselines import ImageStatistics, RawBands
from deo_cube.evaluate.encoders import as_encode, untrained
from deo_cube.evaluate.report import evaluate


@pytest.mark.real
def test_a_model_and_its_baselines_side_by_side(shared, tmp_path):
    report = evaluate("tiny", shared / "data", tasks=["floods"], baselines=[RawBands(), ImageStatistics()], quick=True)
    assert report.model == "tiny"
    table = report.to_frame()
    assert list(table.columns) == ["metric", "tiny", "raw bands", "image statistics"]
    assert table.loc["floods/patch", "metric"] == "mean IoU"
    d = json.loads(report.to_json(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text()) == d
    assert d["scores"][0]["protocol"]
    assert d["differences"][0]["baseline"] == "raw bands"
    assert {"task", "metric", "value", "protocol"} <= set(report.of_model()[0])
    assert [s["task"] for s in report.of_model()] == ["floods/patch"]
    assert all(s["leak"] == 0 and s["labels"] > 0 and s["cpu_seconds"] > 0 for s in report.of_model())
    assert "Labels used, and minutes of processor time" in str(report)
    assert list(report.costs().columns) == ["labels", "tiny", "raw bands", "image statistics"]
    assert "tiny - raw bands" in str(report)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder eurosat_rgb or EuroSAT_RGB"):
        evaluate(RawBands(), tmp_path)
    with pytest.raises(ValueError, match="unknown tasks \\['cats'\\]"):
        evaluate(RawBands(), tmp_path, tasks=["cats"])
    with pytest.raises(TypeError, match="got int"):
        as_encode(3)


def test_the_same_network_untrained():
    import numpy as np

    model = as_encode("tiny", device="cpu")
    blank = untrained(model.card)
    x = np.full((1, 10, model.tile, model.tile), 1200, "float32")
    bands = model.card.bands
    assert blank(x, bands).shape == model(x, bands).shape
    assert blank.name == "tiny, untrained"
    np.testing.assert_array_equal(blank(x, bands), untrained(model.card)(x, bands))
    assert model.halo % model.encoder.layer.stride == 0
