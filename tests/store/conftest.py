"""The cubes and the encoder that the tests of embeddings use."""

from tests.embedding.conftest import make_cube, means_encoder

__all__ = ["make_cube", "means_encoder"]
