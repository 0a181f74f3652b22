import json

import pytest

from deo_cube.evaluate.features import ImageStatistics, RawBands, as_encode, untrained
from deo_cube.evaluate.report import evaluate
from deo_cube.heads.splits import LeakWarning


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
    with pytest.raises(FileNotFoundError, match="eurosat_rgb"):
        evaluate(RawBands(), tmp_path)
    with pytest.raises(ValueError, match="tasks.*'cats'"):
        evaluate(RawBands(), tmp_path, tasks=["cats"])
    with pytest.raises(TypeError, match="model"):
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


@pytest.fixture
def folder(tmp_path):
    """Two data sets in the layouts of EuroSAT, made of noise; the flood folder is empty."""
    import numpy as np
    import rasterio
    from PIL import Image

    rng = np.random.default_rng(0)
    for c, low in (("Forest", 40), ("River", 120)):
        for kind in ("EuroSAT_MS", "EuroSAT_RGB"):
            (tmp_path / "data" / kind / c).mkdir(parents=True)
        for i in range(1, 13):
            bytes_ = (low + rng.integers(0, 60, (16, 16, 3))).astype("uint8")
            Image.fromarray(bytes_).save(tmp_path / "data" / "EuroSAT_RGB" / c / f"{c}_{i * 10}.jpg")
            facts = {"driver": "GTiff", "height": 16, "width": 16, "count": 13, "dtype": "uint16"}
            with rasterio.open(tmp_path / "data" / "EuroSAT_MS" / c / f"{c}_{i * 10}.tif", "w", **facts) as r:
                r.write(10 * low + rng.integers(0, 900, (13, 16, 16)).astype("uint16"))
    (tmp_path / "data" / "Sen1Floods11").mkdir()
    return tmp_path / "data"


def run(folder, out, *tasks, model=None):
    return evaluate(
        model or ImageStatistics(), folder, tasks=tasks, baselines=[RawBands()], quick=True, out=out, progress=False
    )


def test_one_evaluation_may_be_run_task_by_task(folder, tmp_path):
    import deo_cube

    out = tmp_path / "r.json"
    run(folder, out, "eurosat ms")
    first = json.loads(out.read_text())
    assert {s["task"].split("/")[0] for s in first["scores"]} == {"EuroSAT MS"}
    assert {s["version"] for s in first["scores"]} == {deo_cube.__version__}
    run(folder, out, "eurosat")
    both = json.loads(out.read_text())
    for key in ("scores", "differences"):
        assert [x for x in both[key] if x["task"].startswith("EuroSAT MS")] == first[key]
    run(folder, tmp_path / "alone.json", "eurosat")
    alone = json.loads((tmp_path / "alone.json").read_text())
    steady = [{k: v for k, v in s.items() if "seconds" not in k} for s in both["scores"] if "RGB" in s["task"]]
    assert steady == [{k: v for k, v in s.items() if "seconds" not in k} for s in alone["scores"]]
    # A task that runs again takes the place of its old rows; another model takes the whole file.
    run(folder, out, "eurosat ms")
    assert len(json.loads(out.read_text())["scores"]) == len(both["scores"])
    run(folder, out, "eurosat", model=RawBands())
    assert {s["task"].split("/")[0] for s in json.loads(out.read_text())["scores"]} == {"EuroSAT RGB"}
    assert not list(tmp_path.glob("*.part"))


def test_a_run_that_breaks_keeps_the_tasks_that_are_done(folder, tmp_path):
    out = tmp_path / "r.json"
    with pytest.raises(FileNotFoundError, match="LabelHand"):
        run(folder, out, "eurosat ms", "floods", "eurosat")
    assert {s["model"] for s in json.loads(out.read_text())["scores"]} == {"image statistics", "raw bands"}


def test_quick_scores_do_not_mix_with_others(folder, tmp_path):
    out = tmp_path / "r.json"
    run(folder, out, "eurosat ms")
    report = run(folder, None, "eurosat")
    from dataclasses import replace

    replace(report, quick=False).to_json(out)
    assert {s["task"].split("/")[0] for s in json.loads(out.read_text())["scores"]} == {"EuroSAT RGB"}


def test_the_whole_of_sen1floods11_is_split_as_it_says(tmp_path):
    import numpy as np
    import rasterio

    rng, root = np.random.default_rng(0), tmp_path / "sen1floods11" / "v1.1"
    facts = {"driver": "GTiff", "height": 32, "width": 32, "crs": "EPSG:32632"}
    # The sixth, for testing, lies beside the fourth, for training.
    at = [0, 1000, 2000, 3000, 4000, 3032, 6000, 7000]
    for kind in ("S2Hand", "LabelHand", "splits"):
        (root / kind).mkdir(parents=True)
    for i, part in enumerate(["train"] * 4 + ["valid", "test", "test", "bolivia"]):
        wet = rng.random((32, 32)) < 0.4
        image = (2000 - 1500 * wet + rng.normal(0, 50, (13, 32, 32))).astype("int16")
        for kind, a in (("S2Hand", image), ("LabelHand", wet[None].astype("int16"))):
            facts |= {"count": len(a), "dtype": "int16", "transform": rasterio.Affine(10, 0, 10 * at[i], 0, -10, 0)}
            with rasterio.open(root / kind / f"A_{i}_{kind}.tif", "w", **facts) as r:
                r.write(a)
        with open(root / "splits" / f"flood_{part}_data.csv", "a") as f:
            f.write(f"A_{i}_S1Hand.tif,A_{i}_LabelHand.tif\n")
    with pytest.warns(LeakWarning, match="scenes"):
        report = run(tmp_path, None, "floods", model=RawBands())
    assert 0.2 < report.scores[0].leak < 0.4
    assert "LEAKS: floods/pixel" in str(report)
    assert list(report.to_frame().index) == ["floods/pixel", "floods/upernet"]
    assert report.scores[0].value > 0.9
    assert "4 scenes train, 2 test" in report.scores[0].protocol
    assert "chips as they are" in report.scores[1].protocol
