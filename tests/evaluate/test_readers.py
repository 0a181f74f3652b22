import json
import zipfile

import numpy as np
import pytest
import rasterio

from deo_cube.evaluate.readers import TERRAMESH_OFFSET, read_beetle, read_eurosat, read_sen1floods11, read_terramesh


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
    with pytest.raises(FileNotFoundError, match="wanted classes \\['Sea'\\]"):
        read_eurosat(tmp_path / "e.zip", classes=["Sea"])
    with pytest.raises(FileNotFoundError, match="EuroSAT not found at"):
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
    with pytest.raises(ValueError, match="'L2A' or 'L1C'"):
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
    with pytest.raises(FileNotFoundError, match="no flood_train_data.csv"):
        read_sen1floods11(tmp_path, part="train")


@pytest.mark.real
def test_the_real_data(shared):
    data = shared / "data"
    e = read_eurosat(data / "eurosat_rgb", limit=5)
    assert (len(e), len(e.classes)) == (50, 10)
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
