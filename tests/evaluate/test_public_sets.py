"""Small files in the layout of GEO-Bench 1.0: the sets themselves cannot be had in tests."""

import json
import pickle

import numpy as np
import pytest

from deo_cube.evaluate.features import RawBands
from deo_cube.evaluate.readers import read_geobench_chips, read_geobench_scenes
from deo_cube.evaluate.report import evaluate

h5py = pytest.importorskip("h5py")

NAMES = (
    "01 - Coastal aerosol", "02 - Blue", "03 - Green", "04 - Red", "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge", "07 - Vegetation Red Edge", "08 - NIR", "08A - Vegetation Red Edge",
    "09 - Water vapour", "10 - SWIR - Cirrus", "11 - SWIR", "12 - SWIR",
)  # fmt: skip
STORED = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
TRUE_EUROSAT = (*STORED[:8], "B09", "B10", "B11", "B12", "B8A")


class Bomb:
    """Reading the pickles that stand beside the arrays would run this."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def sample(folder, name, values, label=None, date="", executed=None):
    """`values`: one number a stored name, or an array."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.hdf5", "w") as f:
        for k, v in zip(NAMES, values, strict=True):
            f[k + date] = np.broadcast_to(np.asarray(v), (16, 16)).astype("int16")
        f["Cloud Probability"] = np.zeros((16, 16))
        if label is not None:
            f["label"] = label
        f.attrs["pickle"] = str(pickle.dumps(Bomb(executed or folder / "executed")))


def chips(folder, n=24, **options):
    parts = {"train": [], "valid": [], "test": []}
    by_class, stats = {"0": [], "1": []}, {}
    rng = np.random.default_rng(0)
    for i in range(n):
        name, k = f"id_{i:03d}", i % 2
        sample(folder, name, 1000 + 100 * np.arange(13) + 900 * k + rng.normal(0, 40, 13), **options)
        parts[("train", "train", "train", "test", "test", "valid")[i // 4 % 6]].append(name)
        by_class[str(k)].append(name)
        stats[name] = [1 - k, k]
    for p in ("default", "0.10x_train"):
        small = parts | {"train": parts["train"][: 4 if p.startswith("0") else None]}
        (folder / f"{p}_partition.json").write_text(json.dumps(small))
    (folder / "label_map.json").write_text(json.dumps(by_class))
    (folder / "label_stats.json").write_text(json.dumps(stats))
    (folder / "task_specs.pkl").write_bytes(pickle.dumps(Bomb(folder / "executed")))


def test_chips_with_the_right_bands_and_the_set_s_own_split(tmp_path):
    chips(tmp_path / "m-so2sat", date="_2018-05-06")
    data = read_geobench_chips(tmp_path / "m-so2sat", scale=1)
    assert data.bands == STORED
    assert data.images.shape == (20, 13, 16, 16)
    assert data.train.sum() == 12
    assert list(data.labels[:4]) == [0, 1, 0, 1]
    np.testing.assert_allclose(data.images[0, :, 0, 0], 1000 + 100 * np.arange(13), atol=200)
    assert read_geobench_chips(tmp_path / "m-so2sat", scale=1, partition="0.10x_train").train.sum() == 4
    (tmp_path / "m-so2sat" / "label_map.json").unlink()
    np.testing.assert_array_equal(read_geobench_chips(tmp_path / "m-so2sat", scale=1).labels, data.labels)
    # Neither the attribute nor task_specs.pkl was opened.
    assert not (tmp_path / "m-so2sat" / "executed").exists()


def test_the_names_of_m_eurosat_are_put_right(tmp_path):
    chips(tmp_path / "m-eurosat")
    data = read_geobench_chips(tmp_path / "m-eurosat", limit=2)
    assert data.bands == STORED
    order = [STORED.index(b) for b in TRUE_EUROSAT]
    stored = np.empty(13)
    stored[:] = data.images[0, order, 0, 0]
    # Stored in rising order of their numbers: what stands at each stored name is what EuroSAT keeps there.
    assert (np.diff(stored.round(-2)) >= 0).all()


def scenes(folder):
    parts = {"train": [], "valid": [], "test": []}
    rng = np.random.default_rng(0)
    for i in range(10):
        label = (np.indices((16, 16)).sum(0) // 8 % 2).astype("int16")
        values = [1500 + 800 * label + rng.normal(0, 30, (16, 16)) for _ in NAMES]
        sample(folder, f"s{i}", values, label)
        parts[("train", "train", "train", "valid", "test")[i % 5]].append(f"s{i}")
    (folder / "default_partition.json").write_text(json.dumps(parts))


def test_scenes_and_both_protocols_run_where_the_data_are(tmp_path):
    scenes(tmp_path / "segmentation_v1.0" / "m-SA-crop-type")
    chips(tmp_path / "classification_v1.0" / "m-eurosat")
    train, valid, test = read_geobench_scenes(tmp_path / "segmentation_v1.0" / "m-SA-crop-type")
    assert (len(train), len(valid), len(test)) == (6, 2, 2)
    assert set(np.unique(train[0].label)) == {0, 1}
    report = evaluate(RawBands(), tmp_path, baselines=(), quick=True)
    values = {s.task: s for s in report.scores}
    assert values["m-eurosat/linear10"].value > 0.9
    assert "the split of the data set" in values["m-eurosat/knn5"].protocol
    assert values["m-eurosat/knn5"].leak is None
    assert values["m-SA-crop-type/upernet"].groups == 2
    assert values["m-SA-crop-type/pixel"].value > 0.9


def test_what_cannot_be_read_rightly_is_refused(tmp_path):
    chips(tmp_path / "m-brick-kiln")
    with pytest.raises(ValueError, match="issues/29"):
        read_geobench_chips(tmp_path / "m-brick-kiln")
    some = read_geobench_chips(tmp_path / "m-brick-kiln", bands={"04 - Red": "B04", "02 - Blue": "B02"})
    assert some.bands == ("B02", "B04")
    chips(tmp_path / "m-other")
    with pytest.raises(FileNotFoundError, match="'1x'.*'default'"):
        read_geobench_chips(tmp_path / "m-other", partition="1x")
    with pytest.raises(ValueError, match="label"):
        read_geobench_scenes(tmp_path / "m-other")
    sample(tmp_path / "m-other", "id_000", np.linspace(0, 1, 13) * 200)
    with pytest.raises(ValueError, match="scale="):
        read_geobench_chips(tmp_path / "m-other")
    several = {"0": ["id_000", "id_001"], "1": ["id_000"]}
    (tmp_path / "m-other" / "label_map.json").write_text(json.dumps(several))
    with pytest.raises(ValueError, match="labels"):
        read_geobench_chips(tmp_path / "m-other")


@pytest.mark.real
def test_a_real_sample_is_read_with_its_bands_under_their_right_names(shared, tmp_path):
    source = shared / "data" / "geobench_sample" / "m-eurosat"
    folder = tmp_path / "m-eurosat"
    folder.mkdir()
    (folder / "id_1905.hdf5").symlink_to(source / "id_1905.hdf5")
    # The sample came without the set's labels: those of the test say nothing about it.
    (folder / "default_partition.json").write_text(json.dumps({"train": ["id_1905"], "valid": [], "test": ["id_1905"]}))
    (folder / "label_map.json").write_text(json.dumps({"0": ["id_1905"]}))
    data = read_geobench_chips(folder)
    assert data.images.shape == (2, 13, 64, 64)
    assert 300 < np.median(data.images) < 5000
    image = dict(zip(data.bands, data.images[0], strict=True))
    # Cirrus is dark, and B8A differs little from B07: in this file only after the stored names are corrected.
    assert image["B10"].mean() == min(b.mean() for b in image.values())
    assert np.corrcoef(image["B8A"].ravel(), image["B07"].ravel())[0, 1] > 0.99
