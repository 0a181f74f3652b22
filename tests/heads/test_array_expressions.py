"""With Dask's array expressions heads, periods and samples give what they give without."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own, as the kind of arrays is chosen once.
CODE = """
import dask
dask.config.set({"array.query-planning": True})
import numpy as np
import shapely
import xarray as xr
from deo_cube.heads.aggregate import aggregate
from deo_cube.heads.sample import sample
from tests.heads.fields import embeddings, on_dask
from tests.heads.test_windows import ConvHead, scene, untrained

emb, head = scene(70, 90), untrained(ConvHead)
lazy = emb.chunk({"y": 30, "x": 41})
assert hasattr(lazy.data, "expr"), "array expressions are not on"
xr.testing.assert_identical(head.predict(lazy, probabilities=True).compute(), head.predict(emb, probabilities=True))
emb = embeddings(times=3)
lazy = on_dask(emb, 8, 8)
for how in ("mean", "median"):
    np.testing.assert_array_equal(aggregate(lazy, "year", how=how).compute(), aggregate(emb, "year", how=how))
places = [shapely.Point(500_700, 5_199_300).buffer(400), shapely.Point(500_700, 5_199_300)]
np.testing.assert_allclose(sample(lazy, places).compute(), sample(emb, places), rtol=1e-6)
"""


def test_array_expressions_give_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
