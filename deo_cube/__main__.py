"""`python -m deo_cube`, the same as `deo-cube`."""

from deo_cube.cli import main

if __name__ == "__main__":
    main()
