"""Score a model and baselines by every protocol whose data are there, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deo_cube.embedding.metadata import package_version
from deo_cube.errors import ArgumentError, InputNotFoundError
from deo_cube.evaluate import readers
from deo_cube.evaluate.features import (
    BASELINES,
    BurnRatio,
    ModelEncode,
    SeriesEncode,
    as_encode,
    encode_scenes,
    fitted_on,
    untrained,
)
from deo_cube.evaluate.protocols import (
    change,
    class_shares,
    classification,
    land_cover,
    level_shift,
    plots_apart,
    regression,
    segmentation,
    series,
    transfer,
    upernet,
    upernet_halves,
)
from deo_cube.evaluate.scores import Difference, Score, compare
from deo_cube.extras import require
from deo_cube.paths import local_path, not_found

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TASKS", "Report", "evaluate"]

EUROSAT_MS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""Channels of EuroSAT's GeoTIFFs, which carry no names: B8A is the last."""
LIGHT_RUN = {"limit": 160, "seeds": 2, "plots": 40}
"""Amounts that `quick` reads and repeats."""


@dataclass(frozen=True)
class Report:
    """Scores of a model and of the baselines, and the differences with their paired intervals.

    Parameters
    ----------
    model : str
        Name of the model.
    scores : tuple of Score
        The model's first in each task.
    differences : tuple of Difference
        Model minus baseline, one per task and baseline; "better" is proven where `low` is above zero (for losses: where
        `high` is below).
    skipped : mapping
        Tasks that did not run, and why.
    quick : bool
        Whether it was a run to see that it runs.
    """

    model: str
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False

    def to_frame(self) -> pd.DataFrame:
        """Return a row per task and a column per model: value and interval."""
        import pandas as pd

        names = list(dict.fromkeys(s.model for s in self.scores))
        tasks = list(dict.fromkeys(s.task for s in self.scores))
        cell = {(s.task, s.model): f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in self.scores}
        metric = {s.task: s.metric for s in self.scores}
        rows = [[metric[t], *(cell.get((t, n), "") for n in names)] for t in tasks]
        return pd.DataFrame(rows, index=pd.Index(tasks, name="task"), columns=["metric", *names])

    def of_model(self) -> list[dict[str, Any]]:
        """Return the model's own scores as a card's `scores` cites them."""
        return [s.to_dict() for s in self.scores if s.model == self.model]

    def to_json(self, path: str | Path | None = None) -> str:
        """Return all scores and differences as JSON text; written to `path` where one is given, whole or not at all.

        Tasks that are in that file and not in this report stay in it, if they are of the same model and as thorough
        (`quick`): one evaluation may be run task by task. Each score says which version measured it.
        """
        d = {
            "model": self.model,
            "quick": self.quick,
            "scores": [s.to_dict() | {"version": package_version()} for s in self.scores],
            "differences": [
                {"task": x.task, "model": x.a, "baseline": x.b, "value": round(x.value, 4),
                 "interval95": [round(x.low, 4), round(x.high, 4)]}
                for x in self.differences
            ],
            "skipped": dict(self.skipped),
        }  # fmt: skip
        if path is not None:
            path = local_path(path)
            d = _beside(d, path)
        text = json.dumps(d, indent=2) + "\n"
        if path is not None:
            part = path.with_name(path.name + ".part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        return text

    def costs(self) -> pd.DataFrame:
        """Return a row per task and a column per model: labels used, and minutes of processor time."""
        import pandas as pd

        rows = [(s.task, s.labels, s.model, f"{s.cpu_seconds / 60:.1f}") for s in self.scores]
        frame = pd.DataFrame(rows, columns=["task", "labels", "model", "minutes"])
        table = frame.pivot_table(
            index=["task", "labels"], columns="model", values="minutes", aggfunc="first", sort=False
        )
        return table[list(dict.fromkeys(frame["model"]))].fillna("").reset_index("labels").rename_axis(columns=None)

    def __str__(self) -> str:
        lines = [
            self.to_frame().to_string(),
            "",
            "Labels used, and minutes of processor time:",
            self.costs().to_string(),
        ]
        lines += [
            "",
            *(f"LEAKS: {s.task}, {s.leak:.0%} of the test cases" for s in self.scores if (s.leak or 0) > 0.01),
        ]
        lines += ["95 % intervals: bootstrap over groups (and seeds); differences on the same draws:"]
        for x in self.differences:
            lines.append(f"  {x.task}: {x.a} - {x.b} = {x.value:+.3f} [{x.low:+.3f}, {x.high:+.3f}]")
        lines += [f"skipped {task}: {why}" for task, why in self.skipped.items()]
        return "\n".join(lines)


def _beside(new: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return `new` with the tasks and other entries that only the file has."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return new
    if not isinstance(old, dict) or (old.get("model"), old.get("quick", False)) != (new["model"], new["quick"]):
        return new
    own = {s["task"] for s in new["scores"]}
    kept = {k: [x for x in old.get(k, []) if x["task"] not in own] for k in ("scores", "differences")}
    return old | new | {k: [*kept[k], *new[k]] for k in kept}


def _eurosat(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    data = readers.read_eurosat(folder, limit=LIGHT_RUN["limit"] if quick else None)
    few = (10,) if quick else (1, 10, 100)
    return lambda e: classification(e, data, few=few, seeds=LIGHT_RUN["seeds"] if quick else 5)


def _eurosat_ms(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    data = replace(
        readers.read_chips(folder, bands=EUROSAT_MS, limit=LIGHT_RUN["limit"] if quick else None), name="EuroSAT MS"
    )
    return lambda e: classification(e, data, few=(10,) if quick else (1, 10, 100), seeds=2 if quick else 5)


def _land_cover(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    a, c = (readers.read_terramesh(folder, level=level) for level in ("L2A", "L1C"))
    return lambda e: land_cover(e, a, pixels=not quick, **_cut(e)) + level_shift(e, a, c, **_cut(e))


WORLD_CHIPS = 2500
"""Worldwide chips that are read, the first of the file (their order is random): about 2000 train, 500 test."""


def _world(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    chips, train = readers.read_worldcover16(folder, limit=500 if quick else WORLD_CHIPS)
    near = next((p / TILES for p in folder.parents[:2] if (p / TILES).is_dir()), None)
    levels = () if near is None else ("L1C", "L2A")
    tiles = {v: [_with_bands(s, chips[0].bands) for s in readers.read_terramesh(near, level=v)] for v in levels}  # type: ignore[arg-type]
    esri = np.array([readers.WORLDCOVER_AS_ESRI[c] for c in sorted(readers.WORLDCOVER_AS_ESRI)], "int16")
    renamed = [replace(c, label=esri[c.label]) for c in chips]
    fit, held = np.flatnonzero(train), np.flatnonzero(~train)

    def run(e: Any) -> list[Score]:
        cut = _cut(e)
        known = fitted_on(e, [chips[i].image for i in fit], chips[0].bands)
        tokens = encode_scenes(known, chips, **cut)

        def part(scenes: Sequence[readers.Scene], which: Any) -> tuple[list[readers.Scene], list[Any]]:
            return [scenes[i] for i in which], [tokens[i] for i in which]

        (a, ta), (b, tb) = part(chips, fit), part(chips, held)
        scores = transfer(e, a, b, task="world", step=4, encoded=(ta, tb), **cut)
        scores += regression(
            e, chips, class_shares(chips, 1), train, task="tree cover", unit="share of the patch", patch=16,
            encoded=tokens,
        )  # fmt: skip
        (a, ta), (b, tb) = part(renamed, fit), part(renamed, held)
        for level, own in tiles.items():
            to = encode_scenes(known, own, **cut)
            scores += transfer(e, a, own, task=f"world to tiles, {level}", step=4, encoded=(ta, to), **cut)
            scores += transfer(e, own, b, task=f"tiles to world, {level}", step=4, encoded=(to, tb), **cut)
        return scores

    return run


def _with_bands(scene: readers.Scene, bands: Sequence[str]) -> readers.Scene:
    return replace(scene, image=scene.image[[scene.bands.index(b) for b in bands]], bands=tuple(bands))


def _biomass(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    scenes, values = readers.read_biomassters(folder)
    each = np.eye(len(scenes), dtype=bool)
    return lambda e: regression(e, scenes, values, each, task="biomass", unit="t/ha", **_cut(e))


def _series(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    data = readers.read_worldcereal(folder)
    return lambda e: series(e, data)


def _beetle(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    plots = plots_apart(readers.read_beetle(folder))
    plots = plots[: LIGHT_RUN["plots"]] if quick else plots
    return lambda e: change(e, plots, seeds=1 if quick else 3, **_cut(e))


def _floods(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    if any(folder.rglob("flood_train_data.csv")):
        # The whole set, with the split that it comes with.
        parts = [readers.read_sen1floods11(folder, part=p) for p in ("train", "valid", "test")]
        train, valid, test = (p[:20] for p in parts) if quick else parts
        return _segmented(train, valid, test, "floods", quick, chip=min(128, *train[0].label.shape), mirrored=False)
    tiles = readers.read_sen1floods11(folder)

    def run(e: Any) -> list[Score]:
        linear = land_cover(e, tiles, task="floods", metric="mean IoU", patch=4, pixels=not quick, **_cut(e))
        return linear if quick else [*linear, *upernet_halves(e, tiles, task="floods", epochs=30, batch=8, rate=1e-3)]

    return run


def _oscd(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    cities = readers.read_oscd(folder)
    return lambda e: change(e, cities, task="oscd", seeds=1 if quick else 3, **_cut(e))


def _pastis(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    limit = 20 if quick else None
    train, valid, test = (readers.read_pastis(folder, folds=f, limit=limit) for f in ((1, 2, 3), (4,), (5,)))
    return _segmented(train, valid, test, "pastis", quick)


def _segmented(
    train: Any, valid: Any, test: Any, task: str, quick: bool, **options: Any
) -> Callable[[Any], list[Score]]:
    """Return a linear probe on pixels, and UPerNet as in the paper."""
    sizes = options | ({"epochs": 2, "width": 16, "seeds": 1, "mirrored": False} if quick else {})

    def run(e: Any) -> list[Score]:
        linear = segmentation(e, train, test, task=task, **_cut(e))
        return [*linear, *upernet(e, train, valid, test, task=task, **sizes)]

    return run


def _geobench_chips(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    data = readers.read_geobench_chips(folder, limit=LIGHT_RUN["limit"] if quick else None)
    return lambda e: classification(e, data, few=(10,) if quick else (10, 100), gains=(), seeds=2 if quick else 5)


def _geobench_scenes(folder: Path, quick: bool) -> Callable[[Any], list[Score]]:
    parts = readers.read_geobench_scenes(folder, limit=20 if quick else None)
    return _segmented(*parts, folder.name, quick)


def _cut(encode: Any) -> dict[str, Any]:
    """Return how scenes are cut for an encoder: its own tile and halo, else the defaults."""
    return {k: int(getattr(encode, k)) for k in ("tile", "halo") if hasattr(encode, k)}


WORLD, TILES = "places/gcp_worldcover16", "landcover_terramesh"
EXTRA = {"beetle": (BurnRatio(),)}
"""Baselines that belong to one task."""

TASKS: dict[str, tuple[tuple[str, ...], Callable[[Path, bool], Callable[[Any], list[Score]]]]] = {
    "eurosat": (("eurosat_rgb", "EuroSAT_RGB", "EuroSAT", "2750"), _eurosat),
    "eurosat ms": (("EuroSAT_MS", "EuroSATallBands", "eurosat_ms"), _eurosat_ms),
    "land cover": (("landcover_terramesh", "TerraMesh"), _land_cover),
    "world": ((WORLD, "gcp_worldcover16"), _world),
    "biomass": (("places/biomassters", "biomassters"), _biomass),
    "series": (("tables",), _series),
    "beetle": (("change_barkbeetle",), _beetle),
    "floods": (("flood_sen1floods11", "sen1floods11", "Sen1Floods11"), _floods),
    "oscd": (("OSCD", "oscd"), _oscd),
    "pastis": (("PASTIS", "pastis"), _pastis),
    **{m: ((f"classification_v1.0/{m}", m), _geobench_chips) for m in ("m-eurosat", "m-so2sat")},
    **{m: ((f"segmentation_v1.0/{m}", m), _geobench_scenes) for m in ("m-SA-crop-type", "m-cashew-plant")},
}
"""Tasks by name: the folder names under which their data are looked for, and what runs them."""


def evaluate(
    model: Any,
    data: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    baselines: Sequence[Any] | None = None,
    quick: bool = False,
    device: str | None = None,
    progress: bool = False,
    out: str | Path | None = None,
) -> Report:
    """Score a model, and the baselines beside it, on the labelled data in a folder.

    Parameters
    ----------
    model : str, path, ModelCard, encoder or function
        A model's name, card or folder; a loaded encoder; or ``(array (B, C, H, W) DN, bands) -> (B, D, h, w)``.
    data : path
        Folder that holds the data sets' folders (`TASKS` says under which names).
    tasks : sequence of str, optional
        Of `TASKS`. Default: all whose data are there.
    baselines : sequence, optional
        Default: image statistics, raw bands, random convolutions, and the model's own network untrained (for a
        function: a small untrained network). An empty sequence runs the model alone.
    quick : bool
        Fewer chips, plots and seeds: to see that it runs, not to publish.
    device : str, optional
        Where the model runs.
    progress : bool
        Print each score as it comes.
    out : path, optional
        JSON file that is brought up to date after each task (`Report.to_json`): what is done when a run is killed is
        kept, and `tasks` names the others for the next.

    Returns
    -------
    Report
        Print it, or `to_frame()`, `to_json(path)`.

    Raises
    ------
    MissingExtraError
        Without the extra ``benchmarks``.
    FileNotFoundError
        If none of the data are in the folder.
    ValueError
        For an unknown task.

    Examples
    --------
    >>> print(evaluate("tiny", "data", tasks=["eurosat"]))  # doctest: +SKIP
    """
    require("sklearn", "scipy", extra="benchmarks", purpose="evaluate")
    chosen = list(TASKS) if tasks is None else list(tasks)
    unknown = [t for t in chosen if t not in TASKS]
    if unknown:
        raise ArgumentError(f"unknown tasks {unknown}: the tasks are {list(TASKS)}")
    encode = as_encode(model, device=device)
    if isinstance(encode, SeriesEncode):
        chosen = ["series"] if tasks is None else chosen
        if chosen != ["series"]:
            raise ArgumentError(f"tasks: {encode.name} reads series, and is scored on tasks=['series'], got {chosen}")
    baselines = _baselines_for(encode) if baselines is None else baselines
    data, skipped, scores, differences = local_path(data), {}, [], []
    if not data.is_dir():
        raise not_found("data", data, "the folder that holds the labelled data sets")
    for task in chosen:
        names, prepare = TASKS[task]
        folder = next((data / n for n in names if (data / n).is_dir()), None)
        if folder is None:
            skipped[task] = f"no folder {' or '.join(names)} in {data}"
            continue
        run = prepare(folder, quick)
        own: list[Score] = []
        for scored in (encode, *baselines, *(EXTRA.get(task, ()) if baselines else ())):
            measured = run(scored)
            for s in measured if progress else ():
                print(f"{s.model}: {s.task} {s.value:.3f} [{s.low:.3f}, {s.high:.3f}]", flush=True)
            scores += measured
            differences += [compare(a, b) for a, b in zip(own, measured, strict=True)] if own else []
            own = own or measured
        if out is not None:
            Report(own[0].model, tuple(scores), tuple(differences), skipped, quick).to_json(out)
    if not scores:
        raise InputNotFoundError("no data to score on: " + "; ".join(skipped.values()))
    report = Report(scores[0].model, tuple(scores), tuple(differences), skipped, quick)
    if out is not None:
        report.to_json(out)
    return report


def _baselines_for(encode: Any) -> Sequence[Any]:
    if not isinstance(encode, ModelEncode | SeriesEncode):
        return BASELINES
    # The model's own shape is the fairer untrained network.
    own_shape = [untrained(encode.card)] if encode.card.trained else []
    return [*(b for b in BASELINES if b.name != "untrained network"), *own_shape]
