"""Use the package without extras: `python tests/core_install.py FOLDER [MODULE ...]`, in `make wheel` and in tests.

The modules named are not importable, as if they were not installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class Blocker:
    """The finders of Python, without `modules`: put it in their place in `sys.meta_path`."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = tuple(modules)
        self.finders = list(sys.meta_path)

    def blocks(self, name: str) -> bool:
        return any(name == m or name.startswith(f"{m}.") for m in self.modules)

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if self.blocks(name):
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, *context: Any) -> Iterator[Any]:
        for finder in self.finders:
            for found in getattr(finder, "find_distributions", lambda *_: ())(*context):
                if not self.blocks((found.name or "").replace("-", "_")):
                    yield found


def use(folder: Path) -> None:
    """Open a GeoTIFF, embed it, write, open and verify the store, and map it with heads that need no extra."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin

    import deo_cube
    from deo_cube import doctor

    bands = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
    tif = folder / "scene.tif"
    profile = {"driver": "GTiff", "count": len(bands), "height": 96, "width": 96, "dtype": "uint16", "nodata": 0}
    with rasterio.open(tif, "w", crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10), **profile) as file:
        file.write(np.random.default_rng(0).integers(500, 4000, (len(bands), 96, 96), dtype="uint16"))
        for i, band in enumerate(bands, 1):
            file.set_band_description(i, band)
    units: dict[str, Any] = {"units": "dn", "offset": 0}
    cube = deo_cube.open_cube(tif)
    print(cube.deo)
    print(cube.deo.plan("tiny", **units))
    store = folder / "emb.zarr"
    cube.deo.embed("tiny", **units).deo.to_zarr(store, progress=False)
    assert deo_cube.verify_store(store).complete
    emb = deo_cube.open_embeddings(store)
    emb.deo.pca_rgb().compute()
    emb.deo.similar(to=(float(emb.x[3]), float(emb.y[3]))).compute()
    emb.deo.to_cog(folder / "emb.tif")
    ground = emb.isel(embedding=0, drop=True)
    labels = ground.copy(data=np.indices(ground.shape).sum(0) % 2 + 1).astype("uint8")
    deo_cube.fit_head("knn", emb, labels).predict(emb).compute()
    cube.deo.segment(**units).compute()
    health = doctor.examine()
    assert health.healthy, health
    print(health)


if __name__ == "__main__":
    if sys.argv[2:]:
        sys.meta_path[:] = [Blocker(sys.argv[2:])]
    use(Path(sys.argv[1]))
    if not sys.argv[2:]:
        command = str(Path(sys.executable).with_name("deo-cube"))
        for arguments in (["--help"], ["embed", "--help"], ["models"], ["verify", str(Path(sys.argv[1]) / "emb.zarr")]):
            subprocess.run([command, *arguments], check=True, stdout=subprocess.DEVNULL)
    print("the core alone works")
