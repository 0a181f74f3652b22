from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deo_cube.errors import UnknownModelError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.train.config import Optical
from deo_cube.train.teachers import FrozenTeacher, MobileNetTeacher, TimmConvTeacher, TimmTeacher, load_teacher

WEIGHTS = "data/weights/mobilenet_v1_1.0_224_trunk.safetensors"


@pytest.fixture(scope="module")
def mobilenet(shared: Path) -> MobileNetTeacher:
    return MobileNetTeacher(shared / WEIGHTS)


@pytest.mark.real
def test_mobilenet_offers_a_class_vector_and_two_maps(mobilenet: MobileNetTeacher) -> None:
    assert isinstance(mobilenet, FrozenTeacher)
    found = mobilenet(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert found.cls.shape == (2, 512)
    assert found.mid.shape == (2, 256, 16, 16)
    assert found.late.shape == (2, 512, 8, 8)
    assert not found.late.requires_grad
    assert mobilenet.train().training is False


@pytest.mark.real
def test_mobilenet_knows_eurosat(mobilenet: MobileNetTeacher, shared: Path) -> None:
    """The data's README: a linear probe at 128 px reaches 0.93 with 100 labels a class, random weights 0.52 to 0.57.

    Here with 30 labels a class and six classes, to be quick.
    """
    from deo_cube.constants import TCI_SCALE
    from deo_cube.evaluate.readers import read_eurosat
    from deo_cube.heads.probes import linear_probe

    classes = ("AnnualCrop", "Forest", "Highway", "Residential", "River", "SeaLake")
    data = read_eurosat(shared / "data/eurosat_rgb", classes=classes, limit=60, spatial=False)
    with torch.no_grad():
        images = torch.from_numpy(data.images / TCI_SCALE) / 127.5 - 1
        features = np.concatenate([mobilenet(x).cls.numpy() for x in images.split(100)])
    train = np.arange(len(data)) % 60 < 30
    test = np.arange(len(data)) % 60 >= 30
    score = linear_probe(features[train], data.labels[train], strengths=(0.01,)).score(
        features[test], data.labels[test]
    )
    assert score > 0.9


@pytest.mark.real
def test_mobilenet_is_padded_as_tensorflow_pads(mobilenet: MobileNetTeacher) -> None:
    """Stride 2 reads nothing left of and above the image: the first output sees pixels 0 to 2, not -1 to 1."""
    a, b = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    b[..., 2, 2] = 1.0
    stem = [mobilenet.net(x, "rgb")["stem"][0, :, 0, 0] for x in (a, b)]
    assert not torch.equal(*stem)


def test_dino_wiring_without_weights() -> None:
    teacher = TimmTeacher("vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m", mid=8, late=11, pretrained=False)
    found = teacher(torch.randn(1, 3, 64, 70))
    assert teacher.dims == (192, 192, 192)
    assert found.cls.shape == (1, 192)
    assert found.mid.shape == found.late.shape == (1, 192, 4, 4)
    assert not torch.equal(found.mid, found.late)
    assert isinstance(teacher, FrozenTeacher)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    assert load_teacher("none") is None
    with pytest.raises(UnknownModelError, match="mobilenet"):
        load_teacher("resnet")
    with pytest.raises(WeightsNotFoundError, match=r"optical\.weights"):
        load_teacher("mobilenet")
    with pytest.raises(WeightsNotFoundError, match=r"optical\.weights"):
        load_teacher("mobilenet", Optical(weights=str(tmp_path / "none.safetensors")))
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatchError, match="MobileNet"):
        load_teacher("mobilenet", Optical(weights=str(tmp_path / "other.safetensors")))


def test_a_convolutional_network_of_timm_teaches_with_the_published_tensors_in_order(tmp_path: Path) -> None:
    from deo_cube.encoder.networks.timm_import import import_timm

    import_timm()
    timm = import_timm()

    torch.manual_seed(0)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = whole.state_dict()
    torch.save({f"_{i}": v for i, v in enumerate(state.values())}, tmp_path / "lite.pth")
    teacher = load_teacher("timm:tf_efficientnet_lite0", Optical(weights=str(tmp_path / "lite.pth"), enlarge=1.0))
    assert isinstance(teacher, TimmConvTeacher)
    assert isinstance(teacher, FrozenTeacher)
    found = teacher(torch.rand(2, 3, 64, 64))
    assert [tuple(t.shape) for t in (found.cls, found.mid, found.late)] == [
        (2, teacher.dims[0]), (2, teacher.dims[1], 8, 8), (2, teacher.dims[2], 4, 4),
    ]  # fmt: skip
    assert torch.equal(teacher.net.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsMismatchError, match=r"optical\.weights"):
        load_teacher("timm:tf_efficientnet_lite0", Optical(weights=str(tmp_path / "other.pth")))
    with pytest.raises(WeightsNotFoundError, match=r"optical\.weights"):
        load_teacher("timm:tf_efficientnet_lite0", Optical(weights=str(tmp_path / "none.pth")))
