"""The pictures of docs/viewer.md, taken in Chromium. `python -m benchmarks.viewer_pictures SCENE.tif [--out docs/img]`.

Made for the Aquileia scene; the places that are clicked are shares of its width and height from the south-west.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
import xarray as xr
from PIL import Image
from tyro.conf import Positional

import deo_cube
from deo_cube.viewer.explore import explore
from tests.viewer.browser import Browser

FIELD = (0.663, 0.765)
LABELS = {
    "water": [(0.108, 0.364), (0.231, 0.19), (0.478, 0.13), (0.938, 0.618), (0.186, 0.072), (0.36, 0.16)],
    "built-up": [(0.327, 0.657), (0.343, 0.618), (0.523, 0.970), (0.545, 0.960)],
    "bare field": [
        (0.085, 0.91),
        (0.097, 0.715),
        (0.26, 0.61),
        (0.534, 0.85),
        (0.77, 0.657),
        (0.433, 0.637),
        (0.32, 0.325),
        (0.61, 0.384),
        (0.613, 0.267),
        (0.747, 0.364),
        (0.893, 0.423),
    ],
    "green field": [
        (0.05, 0.50),
        (0.164, 0.42),
        (0.248, 0.433),
        (0.837, 0.84),
        (0.77, 0.57),
        (0.663, 0.735),
        (0.68, 0.59),
        (0.435, 0.325),
    ],
}
#: Places that are labelled after the map was fitted. They illustrate the panel, and were not checked on the ground.
REFERENCE = {
    "water": [(0.15, 0.30), (0.30, 0.19), (0.42, 0.10), (0.24, 0.10), (0.10, 0.25), (0.965, 0.50)],
    "built-up": [(0.35, 0.70), (0.31, 0.69), (0.555, 0.925), (0.36, 0.62)],
    "bare field": [(0.09, 0.80), (0.28, 0.57), (0.70, 0.45), (0.46, 0.70), (0.35, 0.36), (0.58, 0.42), (0.80, 0.32)],
    "green field": [(0.03, 0.47), (0.19, 0.38), (0.86, 0.86), (0.23, 0.40), (0.65, 0.65), (0.90, 0.98)],
}
COLORS = ["#1f78b4", "#c51b3a", "#d9c58b", "#1b7837"]


def small(path: Path, width: int = 1180, colors: int = 256) -> None:
    """256 colours: a third of the bytes. Pictures of a panel have little of the map."""
    Image.open(path).convert("RGB").crop((0, 0, width, 720)).quantize(colors, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def assess(b: Browser, click: Callable[[float, float], None], path: Path) -> None:
    """Draw places that trained nothing, assess the map, and photograph the panel."""
    for n, name in enumerate(LABELS):
        b.js(f"document.querySelectorAll('#classes input[type=radio]')[{n}].click()")
        for place in REFERENCE[name]:
            click(*place)
    b.js("document.activeElement.blur()")
    b.press("#run-assess")
    b.wait("!document.getElementById('assessment').hidden")
    b.settled()
    b.js("document.querySelector('#assess').scrollIntoView()")
    small(b.picture(path), 900, 128)


def results_of_index(stored: xr.DataArray, scene: Path, folder: Path, path: Path) -> None:
    """Show the western half, search an index of the whole, and photograph the results."""
    index = deo_cube.build_index(folder / "aquileia.zarr", folder / "index")
    west = stored.isel(x=slice(0, stored.sizes["x"] // 2))
    shown = explore(west, cube=scene, title="Aquileia, west", index=index)
    with shown as running, Browser(width=1180, height=720) as b:
        b.open(running.url + "#base=true")
        (south, left), (north, right) = b.js("deo.store.bounds")
        b.click(*b.place(left + 0.2 * (right - left), south + 0.71 * (north - south)))
        b.wait("deo.layers.has('similar')")
        b.settled()
        b.press("#find-results")
        b.wait("document.querySelectorAll('#result-list li').length === 12")
        pictures = "[...document.querySelectorAll('#result-list img')].every((i) => i.complete)"
        b.wait(f"!document.getElementById('result-list').inert && {pictures}")
        b.js("document.querySelector('#search').scrollIntoView()")
        small(b.picture(path), 700, 96)
        print(b.errors)


def main(scene: Annotated[Positional[Path], tyro.conf.arg()], out: Path = Path("docs/img"), offset: float = 0) -> None:
    """Embed the scene, look at it as a person would, and photograph what is seen."""
    with tempfile.TemporaryDirectory() as folder:
        emb = deo_cube.open_cube(scene).deo.embed("tiny", offset=offset)
        stored = emb.deo.to_zarr(Path(folder) / "aquileia.zarr", progress=False)
        with explore(stored, cube=scene, title="Aquileia") as running, Browser(width=1180, height=720) as b:
            b.open(running.url + "#base=true&opacity=0.8")
            (south, west), (north, east) = b.js("deo.store.bounds")

            def click(u: float, v: float) -> None:
                b.click(*b.place(west + u * (east - west), south + v * (north - south)))

            click(*FIELD)
            b.wait("deo.layers.has('similar')")
            b.settled()
            small(b.picture(out / "viewer_similar.png"))
            b.press("#overlay-similar button[aria-label^=Remove]")
            b.key("2")
            for n, (name, places) in enumerate(LABELS.items()):
                if n > 1:
                    b.press("#add-class")
                b.js(f"document.querySelectorAll('#classes input[type=text]')[{n}].id = 'named'")
                b.slide("#named", name)
                b.js(f"document.querySelectorAll('#classes input[type=color]')[{n}].id = 'shaded'")
                b.slide("#shaded", COLORS[n])
                b.js(f"document.querySelectorAll('#classes input[type=radio]')[{n}].click()")
                for place in places:
                    click(*place)
            b.js("document.activeElement.blur()")
            b.slide("#kind", "linear")
            b.press("#fit")
            b.wait("deo.layers.has('classes')")
            b.settled()
            b.js("document.getElementById('panel').scrollTo(0, 190)")
            small(b.picture(out / "viewer_classes.png"))
            print(running.head.report, b.errors)
            assess(b, click, out / "viewer_assessment.png")
            print(running.assessment, len(running.labels))
        results_of_index(stored, scene, Path(folder), out / "viewer_index.png")
    for path in sorted(out.glob("viewer_*.png")):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    tyro.cli(main)
