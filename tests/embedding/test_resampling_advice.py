"""The call that the message about pixel sizes proposes gives a cube whose embeddings are right."""

from __future__ import annotations

import re

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from deo_cube.errors import ResolutionMismatchError

BANDS = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]


@pytest.mark.parametrize("resolution", [40.0, 4.0])
@pytest.mark.parametrize("nodata", [None, 0, -9999])
def test_no_data_is_not_mixed_into_the_pixels_beside_it(resolution: float, nodata: int | None) -> None:
    size = 64
    seen = np.ones((size, size), bool)
    seen[:, : size // 2 + 1] = False
    values = np.where(seen, 2000, nodata or 0).astype("int16")
    attrs = {} if nodata is None else {"_FillValue": nodata}
    steps = resolution * (np.arange(size) + 0.5)
    cube = xr.Dataset(
        {b: (("y", "x"), values, attrs) for b in BANDS}, {"y": 5e6 - steps, "x": 6e5 + steps}
    ).rio.write_crs(32633)
    with pytest.raises(ResolutionMismatchError) as error:
        cube.deo.embed(offset=0)
    call = re.search(r"cube\.odc\.reproject\(.*?\)", str(error.value))
    assert call is not None
    resampled = eval(call[0], {"cube": cube})
    left = set(np.unique(resampled["B02"].values).tolist())
    assert left == {2000, nodata or 0}
    emb = resampled.deo.embed(offset=0).compute()
    assert {0.0, 1.0} <= set(np.unique(emb.valid).tolist())
    assert (np.isnan(emb).all("embedding") == (emb.valid == 0)).all()
