"""From the runs to what may be said: values, paired differences, their intervals, the paper's effects beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arms import ARMS

__all__ = ["CLAIMS", "COMPOSITES", "interval", "read_runs", "summarise", "verdict"]

Array = NDArray[Any]
Runs = Mapping[str, Mapping[int, dict[str, Any]]]
"""Arm -> seed -> run."""

#: Means of several scores, as the paper averages its data sets.
COMPOSITES: Mapping[str, tuple[str, ...]] = {
    "optical": ("EuroSAT RGB/knn5", "EuroSAT RGB/linear100"),
    "multispectral": ("land cover/patch", "beetle/patch", "floods/patch"),
}

#: Claim, arm, the arm it is held against, and the paper's effects in points (docs/evidence.md says where from).
CLAIMS: tuple[tuple[str, str, str, float | None, float | None], ...] = (
    ("the class vector of an optical teacher helps", "cls", "ms", +1.20, +2.37),
    ("a second stem helps", "stem", "cls", +2.13, -0.12),
    ("patch tokens help", "patch", "stem", +0.54, -0.23),
    ("optical augmentation helps", "full", "patch", +0.21, +0.56),
    ("all of it against self-distillation alone", "full", "ms", +4.08, +2.58),
    ("two teachers beat the optical one alone", "full", "optical", None, None),
    ("contrastive beats masked, without the optical teacher", "ms", "masked", None, None),
    ("contrastive beats masked, with the optical teacher", "full", "masked+optical", None, None),
    ("training beats the untrained network", "full", "untrained", None, None),
    ("training beats random convolutions", "full", "random-convolutions", None, None),
)


def read_runs(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The finished runs in a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If they are of several lengths.
    """
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        run["draws"] = {t: np.array(s["draws"]) for t, s in run["scores"].items()}
        run["values"] = {t: s["value"] for t, s in run["scores"].items()}
        for name, tasks in COMPOSITES.items():
            run["values"][name] = float(np.mean([run["values"][t] for t in tasks]))
            run["draws"][name] = np.mean([run["draws"][t] for t in tasks], axis=0)
        runs.setdefault(run["arm"], {})[run["seed"]] = run
    if not runs:
        raise FileNotFoundError(f"no finished run in {folder}: python -m benchmarks.ablation --out {folder}")
    if len(steps := {r["steps"] for seeds in runs.values() for r in seeds.values()}) > 1:
        raise ValueError(f"{folder} holds runs of {sorted(steps)} steps: they cannot be compared")
    return {a: runs[a] for a in ARMS if a in runs}


def interval(seeds: Sequence[float], draws: Array) -> tuple[float, float, float]:
    """Mean over seeds, and a 95 % interval that holds both for other seeds and for other test data.

    The variance of the mean is that of the seeds over their number, plus that of the mean's bootstrap `draws`;
    Student's t with the degrees of freedom of Welch and Satterthwaite. Of one seed nothing is known of others: the
    interval is then infinite.
    """
    from scipy.stats import t

    mean, n = float(np.mean(seeds)), len(seeds)
    if n < 2:
        return mean, -np.inf, np.inf
    of_seeds, of_data = float(np.var(seeds, ddof=1)) / n, float(np.var(draws, ddof=1))
    total = of_seeds + of_data
    if total == 0:
        return mean, mean, mean
    freedom = total**2 / max(of_seeds**2 / (n - 1), 1e-300)
    half = float(t.ppf(0.975, freedom)) * total**0.5
    return mean, mean - half, mean + half


def verdict(low: float, high: float, expected: float) -> str:
    """What an interval of a difference says of an expected sign."""
    if not np.isfinite(low):
        return "one seed"
    if low <= 0 <= high:
        return "cannot tell"
    return "agrees" if (low > 0) == (expected > 0) else "disagrees"


def _of(runs: Mapping[int, dict[str, Any]], task: str) -> dict[str, Any] | None:
    held = {s: r for s, r in runs.items() if task in r["values"]}
    if not held:
        return None
    values = [r["values"][task] for r in held.values()]
    mean, low, high = interval(values, np.mean([r["draws"][task] for r in held.values()], axis=0))
    return {
        "value": mean,
        "interval95": _bounds(low, high),
        "seeds": {str(s): r["values"][task] for s, r in held.items()},
    }


def difference(runs: Runs, a: str, b: str, task: str) -> dict[str, Any] | None:
    """Arm `a` minus arm `b` on the seeds that both have: mean, interval, each seed. None where they share none."""
    shared = [s for s in runs.get(a, {}) if s in runs.get(b, {})]
    shared = [s for s in shared if task in runs[a][s]["values"] and task in runs[b][s]["values"]]
    if not shared:
        return None
    each = [runs[a][s]["values"][task] - runs[b][s]["values"][task] for s in shared]
    draws = np.mean([runs[a][s]["draws"][task] - runs[b][s]["draws"][task] for s in shared], axis=0)
    mean, low, high = interval(each, draws)
    return {"value": mean, "interval95": _bounds(low, high), "seeds": dict(zip(map(str, shared), each, strict=True))}


def _bounds(low: float, high: float) -> list[float] | None:
    return [low, high] if np.isfinite(low) else None


def summarise(runs: Runs) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    first = next(iter(next(iter(runs.values())).values()))
    tasks = list(dict.fromkeys(t for seeds in runs.values() for r in seeds.values() for t in r["values"]))
    arms = {
        a: {
            "what": ARMS[a].what, "group": ARMS[a].group, "rgb_stem": ARMS[a].rgb, "n": len(seeds),
            "seconds": [r["seconds"] for r in seeds.values()],
            "scores": {t: found for t in tasks if (found := _of(seeds, t))},
        }
        for a, seeds in runs.items()
    }  # fmt: skip
    claims = []
    for text, a, b, optical, ms in CLAIMS:
        found = {t: difference(runs, a, b, t) for t in tasks}
        claims.append({
            "claim": text, "arm": a, "against": b, "paper": {"optical": optical, "multispectral": ms},
            "differences": {t: d for t, d in found.items() if d},
            "verdict": {t: _said(found[t], e) for t, e in (("optical", optical), ("multispectral", ms))},
        })  # fmt: skip
    switches = [
        {"arm": a, "against": arm.against, "what": arm.what,
         "differences": {t: d for t in tasks if (d := difference(runs, a, arm.against, t))}}
        for a, arm in ARMS.items() if arm.group == "switch" and a in runs
    ]  # fmt: skip
    protocols = {t: s["protocol"] for t, s in first["scores"].items()}
    tested = {t: [s["tested"], s["groups"]] for t, s in first["scores"].items()}
    return {
        "steps": first["steps"], "samples": first["samples"], "protocols": protocols, "tested": tested,
        "arms": arms, "claims": claims, "switches": switches,
    }  # fmt: skip


def _said(found: dict[str, Any] | None, expected: float | None) -> str:
    if found is None:
        return "not run"
    low, high = found["interval95"] or (-np.inf, np.inf)
    # Where the paper gives no number, its claim is that the arm is the better one.
    return verdict(low, high, 1.0 if expected is None else expected)
