"""How large the seams of a model are, per halo: python benchmarks/seams.py [MODEL] [FIGURE.png]."""

from __future__ import annotations

import sys

import deo_cube
from deo_cube.evaluate.seam import seam_report

if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    scene = deo_cube.synthetic_cube(size=1280, times=1, clouds=False, gaps=False).load()
    report = seam_report(scene, model, halos=[0, 8, 16, 24, 32, 48])
    print(report)
    if len(sys.argv) > 2:
        report.plot(sys.argv[2])
