"""`python -m benchmarks.ablation.report --runs DIR`: docs/data/evidence.json, the tables of docs/evidence.md, figures.

Without `--runs` tables and figures are made again from the JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from .arms import ARMS
from .summary import read_runs, summarise

__all__ = ["blocks", "with_blocks"]

DOCS = Path(__file__).parents[2] / "docs"
Evidence = Mapping[str, Any]

COLUMNS = {
    "EuroSAT RGB/knn5": "EuroSAT kNN",
    "EuroSAT RGB/linear100": "EuroSAT linear",
    "land cover/patch": "land cover F1",
    "beetle/patch": "beetle AP",
    "beetle/cosine": "beetle cosine AP",
    "floods/patch": "floods mIoU",
}
INSIDE = {
    "effective rank/ms": "rank, ten bands",
    "effective rank/rgb": "rank, RGB",
    "CKA to teacher/ms": "CKA, ten bands",
    "CKA to teacher/rgb": "CKA, RGB",
    "CKA to teacher/EuroSAT": "CKA, EuroSAT",
}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def _value(score: Mapping[str, Any] | None, digits: int = 3) -> str:
    if score is None:
        return ""
    if score["interval95"] is None:
        return f"{score['value']:.{digits}f}"
    low, high = score["interval95"]
    return f"{score['value']:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def _points(found: Mapping[str, Any] | None) -> str:
    """A difference in points, bold where its interval leaves zero out."""
    if found is None:
        return "not run"
    text = f"{100 * found['value']:+.1f}"
    if found["interval95"] is None:
        return f"{text} (one seed)"
    low, high = (100 * v for v in found["interval95"])
    return (f"**{text}**" if low > 0 or high < 0 else text) + f" [{low:+.1f}, {high:+.1f}]"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows])


def _arms(evidence: Evidence, columns: Mapping[str, str]) -> str:
    rows = [
        [f"`{name}`", str(arm["n"]), *(_value(arm["scores"].get(t), 1 if "rank" in t else 3) for t in columns)]
        for name, arm in evidence["arms"].items()
        if any(t in arm["scores"] for t in columns)
    ]
    return _table(["arm", "seeds", *columns.values()], rows)


def _claims(evidence: Evidence) -> str:
    rows = []
    for c in evidence["claims"]:
        row = [c["claim"], f"`{c['arm']}` - `{c['against']}`"]
        for t in ("optical", "multispectral"):
            effect = c["paper"][t]
            row += [_points(c["differences"].get(t)), "better" if effect is None else f"{effect:+.2f}", c["verdict"][t]]
        rows.append(row)
    head = ["claim", "difference", "optical", "paper", "", "multispectral", "paper", ""]
    return _table(head, rows)


def _verdicts(evidence: Evidence) -> str:
    """Which claims agree, disagree, and are left open, in words that follow from the intervals."""
    heads = {
        "agrees": "Agrees with the paper",
        "disagrees": "Disagrees with the paper",
        "cannot tell": "This scale cannot tell (the interval holds zero)",
        "one seed": "One seed only, nothing claimed",
        "not run": "Not run yet",
    }
    lines = []
    for said, head in heads.items():
        found = []
        for c in evidence["claims"]:
            sides = [t for t, v in c["verdict"].items() if v == said]
            if sides:
                found.append(f"{c['claim']} (`{c['arm']}` - `{c['against']}`; {', '.join(sides)})")
        lines.append(f"- **{head}**: {'; '.join(found) if found else 'nothing'}.")
    return "\n".join(lines)


def _switches(evidence: Evidence) -> str:
    tasks = {"optical": "optical", "multispectral": "multispectral", "beetle/cosine": "beetle cosine"}
    rows = [
        [f"`{s['arm']}`", s["what"], str(evidence["arms"][s["arm"]]["n"]),
         *(_points(s["differences"].get(t)) for t in tasks)]
        for s in evidence["switches"]
    ]  # fmt: skip
    return _table(["arm", "what differs from `full`", "seeds", *tasks.values()], rows)


def _what(evidence: Evidence) -> str:
    rows = []
    for name, arm in evidence["arms"].items():
        spent = [s["train"] + s["score"] for s in arm["seconds"]]
        rows.append([f"`{name}`", arm["what"], str(arm["n"]), f"{sum(spent) / len(spent):.0f}"])
    done, all_of_it = sum(a["n"] for a in evidence["arms"].values()), 3 * len(ARMS)
    missing = [f"`{a}`" for a in ARMS if a not in evidence["arms"]]
    state = f"{done} of {all_of_it} runs ({len(ARMS)} arms of three seeds) are finished."
    if missing:
        state += f" Not run yet: {', '.join(missing)}."
    return f"{state}\n\n" + _table(["arm", "what it is", "seeds", "processor seconds a run"], rows)


def blocks(evidence: Evidence, longer: Evidence | None = None) -> dict[str, str]:
    """The tables of the page, by the name of the place where they stand; those of `longer` runs where there are any."""
    found = {
        "what": _what(evidence),
        "claims": _claims(evidence),
        "verdicts": _verdicts(evidence),
        "arms": _arms(evidence, COLUMNS),
        "inside": _arms(evidence, INSIDE),
        "switches": _switches(evidence),
    }
    if longer is not None:
        found["longer"] = _claims(longer)
        found["longer arms"] = _arms(longer, COLUMNS)
    return found


def with_blocks(text: str, evidence: Evidence, longer: Evidence | None = None) -> str:
    """The page with its tables made anew: what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""
    for name, table in blocks(evidence, longer).items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"the page has no place {begin} ... {end}")
        text = re.sub(f"{begin}.*?{end}", lambda _, t=table, b=begin, e=end: f"{b}\n{t}\n{e}", text, flags=re.DOTALL)
    return text


def draw(evidence: Evidence, folder: Path) -> list[Path]:
    """The figures: what each step of the recipe changes, beside the paper's numbers, and where each arm stands."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "deo_cube", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    folder.mkdir(parents=True, exist_ok=True)
    claims = [c for c in evidence["claims"] if "multispectral" in c["differences"]]
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.42 * len(claims) + 1), sharey=True)
    for axis, t in zip(axes, ("optical", "multispectral"), strict=True):
        for i, c in enumerate(claims):
            d = c["differences"].get(t)
            if d is None:
                continue
            y = -i
            if d["interval95"] is not None:
                axis.plot([100 * v for v in d["interval95"]], [y, y], color="#00796b", lw=2)
            axis.plot([100 * v for v in d["seeds"].values()], [y] * len(d["seeds"]), "|", color="#00796b", ms=7)
            axis.plot(100 * d["value"], y, "o", color="#00796b", ms=5)
            if c["paper"][t] is not None:
                axis.plot(c["paper"][t], y, "D", color="#d84315", ms=5)
        axis.axvline(0, color="#888", lw=0.8)
        axis.set(title=t, xlabel="points")
    axes[0].set_yticks([-i for i in range(len(claims))], [f"{c['arm']} - {c['against']}" for c in claims])
    figure.legend(
        handles=[
            mpl.lines.Line2D([], [], marker="o", color="#00796b", label="here, 95 % (ticks: seeds)"),
            mpl.lines.Line2D([], [], marker="D", ls="", color="#d84315", label="paper"),
        ],
        loc="upper right", frameon=False, ncols=2,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(folder / "evidence_claims.svg", metadata={"Date": None})
    figure, axis = plt.subplots(figsize=(6, 4))
    colours = {"ladder": "#00796b", "pretext": "#d84315", "switch": "#9e9e9e", "baseline": "#1565c0"}
    for name, arm in evidence["arms"].items():
        x, y = (100 * arm["scores"][t]["value"] for t in ("optical", "multispectral"))
        axis.plot(x, y, "o", color=colours[arm["group"]], ms=5)
        axis.annotate(name, (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7)
    axis.set(xlabel="optical (EuroSAT RGB), points", ylabel="multispectral, points")
    figure.tight_layout()
    figure.savefig(folder / "evidence_arms.svg", metadata={"Date": None})
    plt.close("all")
    return [folder / "evidence_claims.svg", folder / "evidence_arms.svg"]


def main(runs: Path | None = None, longer: Path | None = None, docs: Path = DOCS) -> None:
    """Make the page.

    Parameters
    ----------
    runs
        Folder of `python -m benchmarks.ablation`.
    longer
        Folder of the same arms, trained for longer.
    docs
        Folder with evidence.md.
    """
    evidence, beside = (
        _kept(docs / "data" / name, of) for name, of in (("evidence", runs), ("evidence_longer", longer))
    )
    if evidence is None:
        raise SystemExit("no evidence.json yet: name --runs")
    page = docs / "evidence.md"
    page.write_text(with_blocks(page.read_text(encoding="utf-8"), evidence, beside), encoding="utf-8")
    for figure in draw(evidence, docs / "img"):
        print(figure)


def _kept(stem: Path, runs: Path | None) -> Evidence | None:
    """What a folder of runs says, kept as JSON; without one, what was kept before, if anything was."""
    path = stem.with_suffix(".json")
    if runs is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(summarise(read_runs(runs))), indent=1) + "\n", encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


if __name__ == "__main__":
    tyro.cli(main)
