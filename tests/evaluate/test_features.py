import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.evaluate.features import Tokens, encode_scene, pool_chips


def averages(stride):
    def encode(array, bands):
        b, c, h, w = array.shape
        return array.reshape(b, c, h // stride, stride, w // stride, stride).mean(axis=(3, 5))

    return encode


@given(rows=st.integers(20, 90), cols=st.integers(20, 90), stride=st.sampled_from([1, 2, 4, 8]))
def test_tiles_of_a_local_encoder_equal_the_whole(rows, cols, stride):
    image = np.random.default_rng(0).normal(size=(2, rows, cols)).astype("float32")
    tokens = encode_scene(averages(stride), image, ("a", "b"), tile=32, halo=8)
    assert tokens.stride == stride
    whole = image[:, : rows // stride * stride, : cols // stride * stride]
    want = whole.reshape(2, rows // stride, stride, cols // stride, stride).mean(axis=(2, 4))
    np.testing.assert_allclose(tokens.values[:, : rows // stride, : cols // stride], want, atol=1e-6)
    assert tokens.values.shape[1:] == (-(-rows // stride), -(-cols // stride))


@given(row=st.integers(0, 31), col=st.integers(0, 31))
def test_pixels_are_interpolated_as_torch_does(row, col):
    import torch

    v = np.random.default_rng(0).normal(size=(3, 8, 8)).astype("float32")
    want = torch.nn.functional.interpolate(torch.from_numpy(v)[None], scale_factor=4, mode="bilinear")[0].numpy()
    t = Tokens(v, 4, (32, 32))
    np.testing.assert_allclose(t.at(np.array([row]), np.array([col]))[0], want[:, row, col], atol=1e-6)
    np.testing.assert_allclose(t.pixels(), want, atol=1e-6)


def test_patches_are_means_of_tokens():
    v = np.random.default_rng(0).normal(size=(3, 9, 8)).astype("float32")
    got = Tokens(v, 4, (35, 32)).patches(8)
    np.testing.assert_allclose(got, v[:, :8].reshape(3, 4, 2, 4, 2).mean(axis=(2, 4)), atol=1e-6)


def test_nodata_never_reaches_the_encoder():
    image = np.full((1, 40, 40), 100.0, "float32")
    valid = np.ones((40, 40), bool)
    image[:, 10:20], valid[10:20] = 0, False
    seen = []
    encode_scene(lambda a, b: seen.append(a) or averages(4)(a, b), image, ("a",), valid=valid, tile=32, halo=8)
    assert min(s.min() for s in seen) == 100


def test_a_stride_that_does_not_fit_is_told_so():
    with pytest.raises(ValueError, match="stride 16.*halo 8"):
        encode_scene(averages(16), np.zeros((1, 64, 64), "float32"), ("a",), tile=64, halo=8)


def test_a_chip_is_pooled_by_the_encoder_itself_where_it_can():
    class Own:
        def __call__(self, array, bands):
            raise AssertionError

        def pool(self, array, bands):
            return array.max(axis=(2, 3))

    chips = np.random.default_rng(0).normal(size=(70, 2, 8, 8)).astype("float32")
    np.testing.assert_array_equal(pool_chips(Own(), chips, ("a", "b"), batch=32), chips.max(axis=(2, 3)))
    np.testing.assert_allclose(pool_chips(averages(4), chips, ("a", "b")), chips.mean(axis=(2, 3)), atol=1e-6)
