"""The cubes and the encoder that the tests of embeddings use, and a store that nothing disturbed."""

from __future__ import annotations

import pytest

from deo_cube.embedding.embed import embed
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at, registered_means
from tests.embedding.conftest import make_cube, means_encoder
from tests.store.test_write import SMALL, tree

__all__ = ["make_cube", "means_encoder"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`tree` of a store that one run wrote on threads."""
    path = tmp_path_factory.mktemp("undisturbed") / "e.zarr"
    with registered_means():
        to_zarr(embed(cube_at(), **SMALL), path, progress=False, scheduler="threads")
    return tree(path)
