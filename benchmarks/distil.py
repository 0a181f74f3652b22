"""What a student learns from an embedding store: python -m benchmarks.distil --data DATA.

The western half of a real scene is embedded with a model, and a small Vision Transformer is trained from that store
alone (``--teacher STORE``). On the eastern half, which neither training nor fit saw, ridge regression predicts the
model's vectors from the student's, from those of the same network untrained, and from the bands themselves (means and
standard deviations of the patch). R2 is the share of the vectors' variance that is predicted, mean over channels.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import deo_cube
from deo_cube.encoder.registry import load_encoder
from deo_cube.train.config import PRESETS, Loader, Objective, Optimizer, StudentConfig, TrainConfig
from deo_cube.train.loop import train

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]
FACTS = {"units": "dn", "offset": 0, "nodata": 0}
PATCH = 4


@dataclass(frozen=True)
class Distil:
    """Distil a model from its store, and predict its vectors elsewhere."""

    data: Path
    """Folder with scenes/aquileia_20190416_L2A.tif."""
    teacher: str = "tiny"
    """Model that makes the store."""
    steps: int = 200
    """Optimisation steps of the student."""
    out: Path = ROOT / "docs" / "data" / "distil.json"
    """File of the figures."""
    picture: Path = ROOT / "docs" / "img" / "distil.png"
    """Picture of the eastern half."""


def config(source: str, store: Path, out: Path, steps: int) -> TrainConfig:
    """Return the configuration of the student: a ViT of 64 channels and three blocks, taught by the store alone."""
    smoke = PRESETS["smoke"]
    return dataclasses.replace(
        smoke,
        data=(source,),
        teacher=str(store),
        out=str(out),
        steps=steps,
        threads=1,
        student=StudentConfig(family="vit", dim=64, depths=(3,), heads=(4,), patch=PATCH),
        objective=Objective(multispectral=False, specialist=1.0, hidden=128, same_view=True),
        augment=dataclasses.replace(smoke.augment, global_size=64, local_size=32, gain=0.1, haze=100.0),
        optimizer=Optimizer(batch=8, lr=3e-2),
        loader=Loader(window=80, workers=0),
        health=dataclasses.replace(smoke.health, log_every=10, checkpoint_every=0),
    )


def bands(cube: xr.DataArray) -> xr.DataArray:
    """Return mean and standard deviation of each band in patches, as (embedding, y, x)."""
    values = cube.astype("float32").transpose("band", "y", "x").values
    c, h, w = values.shape
    cells = values[:, : h // PATCH * PATCH, : w // PATCH * PATCH].reshape(c, h // PATCH, PATCH, w // PATCH, PATCH)
    both = np.concatenate([cells.mean(axis=(2, 4)), cells.std(axis=(2, 4))])
    return xr.DataArray(both, dims=("embedding", "y", "x"))


def vectors(maps: xr.DataArray) -> Array:
    """Return the vectors (n, D) of a map without time."""
    return maps.transpose("y", "x", "embedding").values.reshape(-1, maps.sizes["embedding"]).astype("float64")


def measure(job: Distil) -> dict[str, Any]:
    """Return R2 per input, and draw the picture."""
    scene = deo_cube.open_cube(str(job.data / "scenes" / "aquileia_20190416_L2A.tif"), chunks=None).squeeze(drop=True)
    y, x = scene.dims[-2:]
    side = scene.sizes[y] // 64 * 64
    west, east = (scene.isel({y: slice(0, side), x: slice(a, a + 576)}) for a in (0, 624))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        west.rio.to_raster(root / "west.tif")
        source = f"{root / 'west.tif'},units=dn,offset=0,nodata=0"
        # Tiles that begin with the array, so that the patches of all models are of the same pixels.
        options: dict[str, Any] = {**FACTS, "anchor": "array"}
        west.deo.embed(job.teacher, dtype="int8", **options).deo.to_zarr(root / "store.zarr")
        runs = {"student": job.steps, "the same network untrained": 1}
        models = {
            name: train(dataclasses.replace(config(source, root / "store.zarr", root / name, job.steps), steps=steps))
            for name, steps in runs.items()
        }
        log = [json.loads(line) for line in (models["student"] / "metrics.jsonl").read_text().splitlines()]
        parameters = sum(p.numel() for p in load_encoder(models["student"], device="cpu").network.parameters())  # type: ignore[attr-defined]
        inputs = {
            name: [half.deo.embed(str(path), **options).squeeze(drop=True).compute() for half in (west, east)]
            for name, path in models.items()
        }
        inputs["bands"] = [bands(half) for half in (west, east)]
        own = [half.deo.embed(job.teacher, **options).squeeze(drop=True).compute() for half in (west, east)]
    truth = [vectors(maps) for maps in own]
    known = [np.isfinite(t).all(axis=1) for t in truth]
    scores, predicted = {}, None
    for name, maps in inputs.items():
        z = [vectors(m) for m in maps]
        ok = [k & np.isfinite(v).all(axis=1) for k, v in zip(known, z, strict=True)]
        probe = make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(z[0][ok[0]], truth[0][ok[0]])
        found = probe.predict(np.nan_to_num(z[1]))
        error = ((found - truth[1])[ok[1]] ** 2).mean(axis=0)
        scores[name] = round(float(np.mean(1 - error / truth[1][ok[1]].var(axis=0))), 3)
        predicted = found if name == "student" else predicted
    assert predicted is not None
    draw(job, east, truth[1], np.where(known[1][:, None], predicted, np.nan), own[1].shape[-2:])
    return {
        "teacher": job.teacher,
        "steps": job.steps,
        "parameters": int(parameters),
        "loss": [log[0]["loss"], log[-1]["loss"]],
        "sp_cls": [log[0]["sp_cls"], log[-1]["sp_cls"]],
        "R2": scores,
    }


def draw(job: Distil, east: xr.DataArray, truth: Array, predicted: Array, shape: tuple[int, ...]) -> None:
    """Draw the eastern half, and both sets of vectors in the same three principal components."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ok = np.isfinite(truth).all(axis=1)
    mean = truth[ok].mean(axis=0)
    axes = np.linalg.eigh(np.cov((truth[ok] - mean).T))[1][:, ::-1][:, :3]
    low, high = np.percentile((truth[ok] - mean) @ axes, [2, 98], axis=0)
    names = [str(b) for b in east.indexes["band"]] if "band" in east.indexes else []
    rgb = [names.index(b) if b in names else i for b, i in (("B04", 3), ("B03", 2), ("B02", 1))]
    colour = np.clip(east.transpose("band", ...).values[rgb].transpose(1, 2, 0) / 2750, 0, 1)
    pictures = {
        "eastern half": colour,
        f"vectors of {job.teacher}": (((truth - mean) @ axes - low) / (high - low)).reshape(*shape, 3),
        "predicted from the student": (((predicted - mean) @ axes - low) / (high - low)).reshape(*shape, 3),
    }
    figure, panels = plt.subplots(1, 3, figsize=(9, 3.4), dpi=70, layout="constrained")
    for panel, (title, image) in zip(panels, pictures.items(), strict=True):
        panel.imshow(np.clip(np.nan_to_num(image), 0, 1), interpolation="nearest")
        panel.set_title(title, fontsize=9)
        panel.axis("off")
    figure.savefig(job.picture)
    plt.close(figure)
    # Few colours make a small file.
    with Image.open(job.picture) as image:
        image.convert("RGB").quantize(96).save(job.picture, optimize=True)


def main() -> int:
    """Measure, print and write."""
    import tyro

    job = tyro.cli(Distil, prog="python -m benchmarks.distil", description=__doc__)
    figures = measure(job)
    text = json.dumps(figures, indent=2) + "\n"
    job.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
