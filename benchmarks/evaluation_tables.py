"""Write the tables of the pages in `PAGES` from docs/data/*.json: python -m benchmarks.evaluation_tables.

``deo-cube evaluate tiny DATA --out docs/data/evaluation_tiny.json``, `benchmarks.seams` and `benchmarks.clicks`
write them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
#: Pages with tables, below docs/.
PAGES = ("evaluation.md", "heads.md", "howto/quantities.md", "explain/good-for.md")


def read(name: str) -> dict[str, Any]:
    path = DOCS / "data" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |\n"


def table(head: list[str], rows: list[list[Any]]) -> str:
    return row(head) + "|---" * len(head) + "|\n" + "".join(row(r) for r in rows)


def _measured() -> list[dict[str, Any]]:
    """Scores of the tasks whose places are known; EuroSAT by its official split is in a table of its own."""
    return [s for s in read("evaluation_tiny")["scores"] if not s["task"].startswith("EuroSAT")]


def apart() -> str:
    """Scores on the official spatial split of EuroSAT, on worldwide chips, and between places."""
    found = read("evaluation_apart")["scores"]
    models = list(dict.fromkeys(s["model"] for s in found))
    by_task: dict[str, dict[str, Any]] = {}
    for s in found:
        by_task.setdefault(s["task"], {})[s["model"]] = s
    rows = []
    for task, own in by_task.items():
        one = next(iter(own.values()))
        cells = [
            "{:.2f} [{:.2f}, {:.2f}]".format(own[m]["value"], *own[m]["interval95"]) if m in own else "" for m in models
        ]
        rows.append([task, one["metric"], one["places"], *cells])
    return table(["task", "metric", "tested on", *models], rows)


def scores() -> str:
    """Value and interval of every task and model."""
    found = _measured()
    models = list(dict.fromkeys(s["model"] for s in found))
    tasks = list(dict.fromkeys(s["task"] for s in found))
    cell = {(s["task"], s["model"]): s for s in found}

    def shown(task: str, model: str) -> str:
        s = cell.get((task, model))
        return "" if s is None else "{:.2f} [{:.2f}, {:.2f}]".format(s["value"], *s["interval95"])

    metric = {s["task"]: s["metric"] for s in found}
    return table(["task", "metric", *models], [[t, metric[t], *(shown(t, m) for m in models)] for t in tasks])


def costs() -> str:
    """Labels, cases and minutes of every task."""
    found = _measured()
    models = list(dict.fromkeys(s["model"] for s in found))
    rows = []
    for t in dict.fromkeys(s["task"] for s in found):
        own = {s["model"]: s for s in found if s["task"] == t}
        one = next(iter(own.values()))
        minutes = [f"{own[m].get('cpu_seconds', own[m]['seconds']) / 60:.1f}" if m in own else "" for m in models]
        rows.append([t, one["labels"], one["tested"], one["groups"], *minutes])
    return table(["task", "labels", "tested", "groups", *(f"{m}, min" for m in models)], rows)


def beetle() -> str:
    """What is change and what is recognition."""
    found = [s for s in read("evaluation_tiny")["scores"] if s["task"].startswith("beetle/") and "by_group" in s]
    models = list(dict.fromkeys(s["model"] for s in found))
    cell = {(s["task"], s["model"]): s for s in found}
    names = {
        "beetle/pixel": "both dates, labels (may recognise)", "beetle/second": "second date alone, labels (recognises)",
        "beetle/cosine": "distance of the dates, no labels (change alone)",
    }  # fmt: skip

    def shown(task: str, model: str) -> str:
        s = cell.get((task, model))
        if s is None:
            return ""
        return "{:.2f} [{:.2f}, {:.2f}]; {:.2f}".format(s["value"], *s["interval95"], s["by_group"])

    return table(["pixels", *models], [[what, *(shown(t, m) for m in models)] for t, what in names.items()])


def seams(model: str) -> str:
    """A row a halo."""
    d = read(f"seams_{model}")
    rows = [
        [
            f"{r['halo']}{' (card)' if r['halo'] == d['card_halo'] else ''}",
            *(f"{r[k]:.2g}" for k in ("border", "border95", "interior", "neighbours", "seam")), f"{r['cost']:.2f}",
        ]
        for r in d["rows"]
    ]  # fmt: skip
    head = [
        "halo, px",
        "at borders",
        "95th percentile",
        "inside",
        "neighbouring patches",
        "seam",
        "pixels encoded a pixel kept",
    ]
    return table(head, rows)


def clicks() -> str:
    """Heads from points, on a real flood."""
    rows = []
    for r in read("clicks_flood")["rows"]:
        value = "{:.2f} [{:.2f}, {:.2f}]".format(r["mean IoU"], *r["draws95"])
        rows.append([r["features"], r["head"], r["points"], value, r["seconds"]])
    return table(["features", "head", "points", "mean IoU [2.5, 97.5 % of draws]", "head and map, s"], rows)


def default_map() -> str:
    """Accuracy of the bundled land-cover head."""
    by_task: dict[str, dict[str, Any]] = {}
    for s in read("default_map")["scores"]:
        place, metric = s["task"].rsplit(": ", 1)
        by_task.setdefault(place, {"tested": s["tested"], "groups": s["groups"]})[metric] = s

    def shown(s: dict[str, Any]) -> str:
        return "{:.2f} [{:.2f}, {:.2f}]".format(s["value"], *s["interval95"])

    head = ["places kept apart", "patches", "share right", "mean F1 of classes"]
    return table(head, [[p, d["tested"], shown(d["accuracy"]), shown(d["macro F1"])] for p, d in by_task.items()])


def confusion() -> str:
    """Patches by class of WorldCover (rows) and of the map (columns)."""
    t = read("default_map")["confusion"]["1000 chips, L1C"]
    return table(["label, drawn as", *t["classes"]], [[n, *r] for n, r in zip(t["classes"], t["patches"], strict=True)])


def worth() -> str:
    """What `tiny` is better at than what has learnt nothing, and what it is not."""
    found = [s for name in ("apart", "tiny") for s in read(f"evaluation_{name}")["scores"]]
    rows = []
    for task, what in (
        ("EuroSAT RGB/linear10", "Kind of land on chips, ten labels per class (EuroSAT, accuracy)"),
        ("EuroSAT RGB/light", "... the same chips 20 % brighter or darker (accuracy lost)"),
        ("world/patch", "Land cover of other places, many labels (world, macro F1)"),
        ("beetle/cosine", "Change between two dates, no labels (bark beetle, average precision)"),
        ("beetle/patch", "Change between two dates, with labels (the same)"),
        ("floods/pixel", "Flood, pixel by pixel (mean IoU)"),
    ):
        own = [s for s in found if s["task"] == task]
        ours = next(s for s in own if s["model"] == "tiny")
        others = [s for s in own if s["model"] not in ("tiny", "tiny_v1")]
        best = (min if "loss" in ours["metric"] else max)(others, key=lambda s: s["value"])
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(s["value"], *s["interval95"]) for s in (ours, best)]
        rows.append([what, cells[0], f"{cells[1]} ({best['model']})"])
    return table(["", "`tiny`", "without learning"], rows)


def pooling() -> str:
    """A row per way to pool a chip's vectors."""
    found = read("pooling")["scores"]
    tasks = list(dict.fromkeys(s["task"] for s in found))
    rows: dict[str, list[str]] = {}
    for s in found:
        rows.setdefault(s["model"], []).append("{:.2f} [{:.2f}, {:.2f}]".format(s["value"], *s["interval95"]))
    head = ["pooling", *(f"{t}{' (R2)' if t == 'tree cover' else ''}" for t in tasks)]
    return table(head, [[name, *cells] for name, cells in rows.items()])


def quantities() -> str:
    """A row per data set and head."""
    rows = [
        [target, head, *("{:.2f} [{:.2f}, {:.2f}]".format(*s[k]) for k in ("validated_r2", "r2", "rmse", "bias"))]
        for target, heads in read("quantities").items()
        for head, s in heads.items()
    ]
    return table(["target", "head", "R2, cross-validated", "R2", "RMSE", "bias"], rows)


def precision() -> str:
    """Scores and vectors in other runtimes and precisions, as differences from PyTorch in float32."""
    from benchmarks.precision import distance_table, score_table

    found = read("precision")
    scored = "\n".join(f"`{model}`:\n\n{score_table(own)}" for model, own in found.items())
    return scored + "\n" + distance_table([*found.values()])


TABLES = {
    "precision": precision,
    "apart": apart,
    "worth": worth,
    "pooling": pooling,
    "quantities": quantities,
    "default map": default_map, "default map confusion": confusion,
    "scores": scores, "costs": costs, "beetle": beetle, "seams tiny": lambda: seams("tiny"),
    "seams vitb": lambda: seams("vitb"), "seams swinb": lambda: seams("swinb"), "clicks": clicks,
}  # fmt: skip


def with_tables(text: str) -> str:
    """`text` with what stands between each pair of marks replaced."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table {name}: begin -->\n", f"<!-- table {name}: end -->"
        if begin in text:
            before, rest = text.split(begin)
            text = before + begin + "\n" + make() + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    for page in PAGES:
        path = DOCS / page
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
