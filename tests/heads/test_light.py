"""Importing heads and evaluation loads no heavy library."""

import subprocess
import sys


def test_imports_are_late():
    code = (
        "import sys, deo_cube.heads.maps, deo_cube.heads.change, deo_cube.heads.similar, deo_cube.heads.pca\n"
        "import deo_cube.heads.kmeans, deo_cube.evaluate.report, deo_cube.evaluate.seam\n"
        "print([m for m in ('torch', 'sklearn', 'geopandas', 'distributed', 'matplotlib') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
