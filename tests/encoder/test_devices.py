import pytest
import torch

from deo_cube.encoder.devices import choose_device
from deo_cube.encoder.registry import load_encoder
from deo_cube.errors import DeviceError


def test_the_cpu_and_what_is_there() -> None:
    assert choose_device("cpu") == "cpu"
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert choose_device(None) == "cpu"


@pytest.mark.parametrize("wanted", ["gpu", "cuda:93", "gpu7"])
def test_others_are_refused_with_what_to_pass(wanted: str) -> None:
    with pytest.raises(DeviceError, match="pass 'cpu'|pass device='cpu'"):
        choose_device(wanted)
    with pytest.raises(DeviceError):
        load_encoder("tiny", device=wanted)
