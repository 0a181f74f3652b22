"""Fit the basis of colours that is bundled for a model: python -m benchmarks.pca_basis DATA [MODEL].

The scenes are those of DATA/scenes with all bands; the file goes to deo_cube/heads/bases/FINGERPRINT.json, found by
`pca_rgb` for embeddings of that very model, weights and layer. Run it again when the weights change.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rioxarray

import deo_cube
from deo_cube.heads.pca import fit_pca

if __name__ == "__main__":
    data, model = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "tiny"
    scenes = []
    for name in ("aquileia_20190416_L2A", "pilbara_20181201_L2A"):
        cube = rioxarray.open_rasterio(data / "scenes" / f"{name}.tif")
        cube = cube.assign_coords(band=list(cube.attrs["long_name"]))
        scenes.append(cube.deo.embed(model, units="dn", offset=0).compute())
    basis = fit_pca(scenes)
    folder = Path(deo_cube.__file__).parent / "heads" / "bases"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    basis.save(folder / f"{basis.model}.json")
    print(folder / f"{basis.model}.json")
