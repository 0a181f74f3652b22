import json
import zipfile

import numpy as np
import pytest
import rasterio

from deo_cube.errors import ArgumentError, InputNotFoundError
from deo_cube.evaluate.readers import (
    TERRAMESH_OFFSET,
    read_beetle,
    read_biomassters,
    read_eurosat,
    read_sen1floods11,
    read_terramesh,
    read_worldcereal,
    read_worldcover16,
    worldcover16_training,
)


def tif(path, array, **kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    a = np.atleast_3d(array) if array.ndim == 3 else array[None]
    with rasterio.open(
        path, "w", driver="GTiff", count=len(a), height=a.shape[1], width=a.shape[2], dtype=a.dtype
    ) as r:
        r.write(a)


def test_eurosat_from_zip_and_from_folder_alike(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for c in ("Forest", "River"):
        (tmp_path / "EuroSAT" / c).mkdir(parents=True)
        for n in (1, 49, 50, 120):
            image = np.full((64, 64, 3), rng.integers(0, 255, 3), "uint8")
            Image.fromarray(image).save(tmp_path / "EuroSAT" / c / f"{c}_{n}.jpg", quality=100)
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as z:
        for p in sorted((tmp_path / "EuroSAT").rglob("*.jpg")):
            z.write(p, p.relative_to(tmp_path / "EuroSAT"))
    a, b = read_eurosat(tmp_path / "EuroSAT"), read_eurosat(tmp_path / "e.zip")
    np.testing.assert_array_equal(a.images, b.images)
    assert a.classes == ("Forest", "River")
    assert a.images.shape == (8, 3, 64, 64)
    assert a.images.max() <= 2750
    # Numbers 1 and 49 are one run, 50 and 120 two others; classes share none.
    assert len(np.unique(a.groups)) == 6
    assert a.groups[0] == a.groups[1] != a.groups[2]
    assert len(read_eurosat(tmp_path / "e.zip", limit=2)) == 4
    with pytest.raises(FileNotFoundError, match="'Sea'"):
        read_eurosat(tmp_path / "e.zip", classes=["Sea"])
    with pytest.raises(FileNotFoundError, match="EuroSAT"):
        read_eurosat(tmp_path / "nothing")


def test_the_offset_is_taken_off_the_files_that_carry_it(tmp_path):
    for tile in ("A", "B"):
        tif(tmp_path / tile / "S2L1C.tif", np.full((13, 8, 8), 1500, "int16"))
        tif(tmp_path / tile / "S2L2A.tif", np.full((12, 8, 8), 600, "int16"))
        lulc = np.full((8, 8), 4, "uint8")
        lulc[0, :3] = (0, 8, 1)
        tif(tmp_path / tile / "LULC.tif", lulc)
    a, b = read_terramesh(tmp_path, level="L1C", offset=["A/S2L1C"])
    assert a.image.shape == (12, 8, 8)
    assert a.image.mean() == 500
    assert b.image.mean() == 1500
    assert a.label[0, :4].tolist() == [-1, -1, 1, 4]
    assert [s.name for s in read_terramesh(tmp_path, tiles=["B"])] == ["B"]
    with pytest.raises(ValueError, match="level"):
        read_terramesh(tmp_path, level="L3")


def test_beetle_and_floods(tmp_path):
    two = np.full((12, 20, 30), 700, "uint16")
    two[:, 0] = 0
    tif(tmp_path / "7" / "s2_2019-09.tif", two)
    tif(tmp_path / "7" / "s2_2020-09.tif", two + (two > 0))
    tif(tmp_path / "7" / "damage_mask.tif", np.ones((20, 30), "uint8"))
    (tmp_path / "index.json").write_text(json.dumps([{"id": "7", "height": 20, "width": 30}]))
    (plot,) = read_beetle(tmp_path)
    assert plot.valid.sum() == 19 * 30
    assert (plot.image - plot.before)[:, 5, 5].tolist() == [1] * 12
    assert read_beetle(tmp_path, min_size=25) == []
    tif(tmp_path / "S2Hand" / "X_1_S2Hand.tif", np.full((13, 8, 8), 900, "int16"))
    tif(tmp_path / "LabelHand" / "X_1_LabelHand.tif", np.eye(8, dtype="int16") - 1)
    (tile,) = read_sen1floods11(tmp_path)
    assert tile.image.shape == (12, 8, 8)
    assert sorted(np.unique(tile.label)) == [-1, 0]
    tif(tmp_path / "S2Hand" / "Y_2_S2Hand.tif", np.full((13, 8, 8), 900, "int16"))
    tif(tmp_path / "LabelHand" / "Y_2_LabelHand.tif", np.eye(8, dtype="int16"))
    splits = tmp_path / "splits" / "flood_handlabeled"
    splits.mkdir(parents=True)
    (splits / "flood_test_data.csv").write_text("Y_2_S1Hand.tif,Y_2_LabelHand.tif\nZ_3_S1Hand.tif,Z_3_LabelHand.tif\n")
    assert [s.name for s in read_sen1floods11(tmp_path)] == ["X_1", "Y_2"]
    assert [s.name for s in read_sen1floods11(tmp_path, part="test")] == ["Y_2"]
    with pytest.raises(FileNotFoundError, match="flood_train_data.csv"):
        read_sen1floods11(tmp_path, part="train")


@pytest.mark.real
def test_the_real_data(shared):
    data = shared / "data"
    e = read_eurosat(data / "eurosat_rgb", limit=5)
    assert (len(e), len(e.classes), int(e.train.sum())) == (100, 10, 50)
    assert 200 < e.images.mean() < 2000
    l1c, l2a = (read_terramesh(data / "landcover_terramesh", level=k) for k in ("L1C", "L2A"))
    for a, b in zip(l1c, l2a, strict=True):
        assert a.image.shape == b.image.shape == (12, 224, 224)
        # The air is opaque at 1375 nm: without cirrus B10 is near 0, unless the offset lifts it to 1000.
        with rasterio.open(data / "landcover_terramesh" / a.name / "S2L1C.tif") as r:
            cirrus, blue = np.median(r.read(11)), r.read(2)
        assert (cirrus > 1000) == (f"{a.name}/S2L1C" in TERRAMESH_OFFSET)
        assert np.median(blue - a.image[1]) == (1000 if cirrus > 1000 else 0)
    plots = read_beetle(data / "change_barkbeetle")
    assert len(plots) == 158
    assert np.concatenate([p.label.ravel() for p in plots]).mean() == pytest.approx(0.139, abs=0.02)
    (flood,) = read_sen1floods11(data / "flood_sen1floods11")
    assert set(np.unique(flood.label)) == {-1, 0, 1}


@pytest.fixture
def split_eurosat(tmp_path):
    """Two classes of six tiles each, of which two train, two choose and two test."""
    from PIL import Image

    lists = {"train": [], "val": [], "test": []}
    for c, level in (("Forest", 40), ("River", 120)):
        (tmp_path / "EuroSAT" / c).mkdir(parents=True)
        for n in range(1, 7):
            name = f"{c}_{n}.jpg"
            Image.fromarray(np.full((64, 64, 3), level + n, "uint8")).save(tmp_path / "EuroSAT" / c / name)
            lists[("train", "val", "test")[n % 3]].append(name)
    (tmp_path / "splits").mkdir()
    for part, names in lists.items():
        (tmp_path / "splits" / f"eurosat-spatial-{part}.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def test_eurosat_has_its_official_spatial_split_where_the_lists_are(split_eurosat):
    data = read_eurosat(split_eurosat)
    # Numbers 2 and 5 of each class are of the test list; train and val train.
    assert (~data.train).sum() == 4
    assert data.train.sum() == 8
    to_choose = read_eurosat(split_eurosat, part="val")
    assert len(to_choose) == 8
    assert (~to_choose.train).sum() == 4
    assert read_eurosat(split_eurosat, spatial=False).train is None
    assert read_eurosat(split_eurosat, limit=1).train.sum() == 2
    with pytest.raises(ArgumentError, match="part"):
        read_eurosat(split_eurosat, part="both")
    (split_eurosat / "splits" / "eurosat-spatial-val.txt").unlink()
    assert read_eurosat(split_eurosat).train is None
    with pytest.raises(InputNotFoundError, match="spatial=False"):
        read_eurosat(split_eurosat, spatial=True)


@pytest.mark.real
def test_the_test_part_of_the_spatial_split_is_read_whole_and_apart(shared):
    data = read_eurosat(shared / "data" / "eurosat_rgb", classes=["Forest", "River"])
    names = (shared / "data" / "eurosat_rgb" / "splits" / "eurosat-spatial-test.txt").read_text().split()
    assert 0 < (~data.train).sum() <= sum(n.startswith(("Forest", "River")) for n in names)


@pytest.mark.real
def test_worldwide_chips_biomass_and_series_are_read(shared):
    places = shared / "data" / "places"
    scenes, train = read_worldcover16(places / "gcp_worldcover16", limit=50)
    assert (len(scenes), len(train), scenes[0].image.shape) == (50, 50, (10, 16, 16))
    assert train.tolist() == worldcover16_training(5000)[:50].tolist()
    assert worldcover16_training(5000).sum() == 4000
    assert scenes[0].label.max() <= 8
    chips, values = read_biomassters(places / "biomassters")
    assert [c.image.shape for c in chips] == [(10, 256, 256)] * 2
    assert 0 <= np.nanmin(values) < np.nanmax(values) < 1000
    data = read_worldcereal(shared / "data" / "tables")
    assert data.values.shape == (500, 12, 10)
    # A vegetated field: near infrared above red, in the order of the names.
    near, red = (data.values[data.valid][:, data.bands.index(b)].mean() for b in ("B08", "B04"))
    assert near > 1.5 * red
    assert np.bincount(data.labels).tolist() == [305, 97, 69, 29]
    with pytest.raises(InputNotFoundError, match="gcp_worldcover16"):
        read_worldcover16(places / "biomassters")
