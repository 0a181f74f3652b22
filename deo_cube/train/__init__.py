"""Dual-teacher distillation from cubes: `python -m deo_cube.train`."""
