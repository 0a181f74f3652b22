"""Ratios with intervals, and the tables of docs/throughput.md, from the figures that `measure` kept."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["best_bare", "ratio", "render", "tables"]

OURS = "deo_cube embed"


def ratio(above: Sequence[float], below: Sequence[float], *, draws: int = 4000) -> tuple[float, float, float]:
    """Ratio of medians over paired rounds, and its 95 % interval by bootstrap over rounds."""
    a, b = np.asarray(above, float), np.asarray(below, float)
    n = min(len(a), len(b))
    if n == 0:
        return float("nan"), float("nan"), float("nan")
    a, b = a[:n], b[:n]
    chosen = np.random.default_rng(0).integers(0, n, (draws, n))
    found = np.median(a[chosen], axis=1) / np.median(b[chosen], axis=1)
    low, high = np.percentile(found, [2.5, 97.5])
    return float(np.median(a) / np.median(b)), float(low), float(high)


def best_bare(bare: dict[str, list[float]]) -> str:
    """The threading in which the bare encoder is fastest, by median."""
    return max(bare, key=lambda k: statistics.median(bare[k]) if bare[k] else 0.0)


def _with_interval(found: tuple[float, float, float]) -> str:
    if found[1] == found[2]:
        return f"{found[0]:.2f}"  # one round has no interval
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def _race(race: dict[str, Any]) -> list[str]:
    bare = race["bare"][best_bare(race["bare"])]
    seams = {row["halo"]: row["seam"] for row in race.get("seams", {}).get("rows", [])}
    kind = "" if race["trained"] else ", random weights"
    lines = [
        f"**{race['model']}**{kind}: {race['size']} x {race['size']} px ({race['km2']:.0f} km²), tiles of "
        f"{race['tile']} px, {len(bare)} round{'s' * (len(bare) > 1)}. Bare encoder, best threading "
        f"({best_bare(race['bare'])}): {statistics.median(bare):.2f} tiles/s.",
        "",
        "| halo | | block | km²/s | tiles/s over bare | embed faster by | tasks a block | peak MiB (before) | seam |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for halo in race["halos"]:
        cases = [c | {"key": k} for k, c in race["cases"].items() if c["halo"] == halo and c["seconds"]]
        cases.sort(key=lambda c: (c["runner"] != OURS, statistics.median(c["seconds"])))
        ours = min((c for c in cases if c["runner"] == OURS), key=lambda c: statistics.median(c["seconds"]))
        for c in cases:
            # Tiles cut shorter at the cube's edge count for what they are.
            whole = c["encoded_per_kept"] * race["size"] ** 2 / race["tile"] ** 2
            rates = [(whole if c["runner"] == OURS else c["tiles"]) / s for s in c["seconds"]]
            ahead = "" if c["runner"] == OURS else _with_interval(ratio(c["seconds"], ours["seconds"]))
            peak = race.get("peaks", {}).get(c["key"], {})
            memory = f"{peak['peak_mib']:.0f} ({peak['before_mib']:.0f})" if "peak_mib" in peak else ""
            tasks = "" if c["tasks_per_block"] is None else f"{c['tasks_per_block']:.1f}"
            speed = race["km2"] / statistics.median(c["seconds"])
            seam = f"{seams[halo]:.2g}" if halo in seams else ""
            cells = [halo, c["runner"], c["block"] or "", f"{speed:.1f}", _with_interval(ratio(rates, bare)), ahead]
            lines.append("| " + " | ".join(str(v) for v in [*cells, tasks, memory, seam]) + " |")
    if race["skipped"]:
        lines += ["", *(f"Skipped: {name}: {why}." for name, why in race["skipped"].items())]
    return lines


def _runtimes(found: dict[str, Any]) -> list[str]:
    """Return the table of runtimes and precisions: speed, share of the bare encoder, and lead over the alternatives."""
    cases = found["cases"]

    def seconds(runner: str, variant: str) -> list[float]:
        own = cases.get(f"{runner} | {variant}")
        return own["values"] if own else []

    def best(variant: str) -> list[float]:
        rivals = {c["runner"] for c in cases.values()} - {"bare", "plan", OURS}
        known = [seconds(r, variant) for r in sorted(rivals) if seconds(r, variant)]
        return min(known, key=statistics.median) if known else []

    plain = best("as it comes")
    tile_km2 = 109.8**2
    lines = [
        f"**{found['model']}**: {found['size']} x {found['size']} px ({found['km2']:.0f} km²), tiles of "
        f"{found['tile']} px, halo {found['halo']} px, {len(found['load'])} round{'s' * (len(found['load']) > 1)}, "
        f"load of the machine {statistics.median(found['load']):.1f}. Best alternative with torch as it comes: "
        f"{found['km2'] / statistics.median(plain):.0f} km²/s.",
        "",
        "| runtime, precision | km²/s | minutes per Sentinel-2 tile | share of the bare encoder | faster than the best "
        "alternative as it comes | ... given the same encoder | predicted by `plan` |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in cases:
        runner, _, variant = key.partition(" | ")
        if runner != OURS:
            continue
        own, bare, same = seconds(OURS, variant), seconds("bare", variant), best(variant)
        speed = found["km2"] / statistics.median(own)
        rates = [found["encoded"] / s for s in own]
        predicted = seconds("plan", variant)
        error = 100 * (statistics.median(predicted) / statistics.median(own) - 1)
        cells = [
            variant, f"{speed:.0f}", f"{tile_km2 / speed / 60:.1f}", _with_interval(ratio(rates, bare)),
            _with_interval(ratio(plain, own)), _with_interval(ratio(same, own)) if same else "", f"{error:+.0f} %",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    if found["skipped"]:
        lines += ["", *(f"Left out: {name}: {why}" for name, why in found["skipped"].items())]
    return lines


def _foretold(races: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| model | halo | block | predicted by `plan` | measured | error |", "|---|---|---|---|---|---|"]
    for race in races:
        for c in race["cases"].values():
            if c["runner"] == OURS and c["seconds"] and race["foretold"]:
                encoded = c["encoded_per_kept"] * race["size"] ** 2 / race["tile"] ** 2
                said = encoded / statistics.median(race["foretold"])
                took = statistics.median(c["seconds"])
                lines.append(
                    f"| {race['model']} | {c['halo']} | {c['block']} | {said:.2f} s | {took:.2f} s | "
                    f"{100 * (said / took - 1):+.0f} % |"
                )
    return lines


def _scaling(scaling: dict[str, Any]) -> list[str]:
    bare = scaling["bare"][best_bare(scaling["bare"])]
    lines = [
        f"{scaling['model']}, {scaling['size']} px, tile {scaling['tile']}, halo {scaling['halo']}, "
        f"{scaling['blocks']} blocks of {scaling['block']} px, {len(bare)} round{'s' * (len(bare) > 1)}.",
        "",
        "| scheduler | seconds | km²/s | tiles/s over bare |",
        "|---|---|---|---|",
    ]
    for kind, seconds in scaling["seconds"].items():
        if seconds:
            rates = [scaling["tiles"] / s for s in seconds]
            middle = statistics.median(seconds)
            lines.append(
                f"| {kind} | {middle:.1f} | {scaling['km2'] / middle:.1f} | {_with_interval(ratio(rates, bare))} |"
            )
    return lines


def _memory(memory: dict[str, Any]) -> list[str]:
    lines = [
        f"With {memory['model']}, tiles of 256 px, blocks of 1024 px: peak of a process that does nothing else, and in "
        "brackets what it held before it began.",
        "",
        "| | cube, px | peak MiB (before) |",
        "|---|---|---|",
    ]
    for row in sorted(memory["rows"], key=lambda r: (r["runner"] != OURS, r["runner"], r["size"])):
        figure = f"{row['peak_mib']:.0f} ({row['before_mib']:.0f})" if "peak_mib" in row else row["failed"]
        lines.append(f"| {row['runner']} | {row['size']} | {figure} |")
    return lines


def _whole(whole: dict[str, Any], races: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| cube | " + " | ".join(row["name"] for row in whole["rows"]) + " |"]
    lines.append("|---" * (len(whole["rows"]) + 1) + "|")
    for field, title in whole["fields"].items():
        lines.append(f"| {title} | " + " | ".join(str(row[field]) for row in whole["rows"]) + " |")
    rates = [r for race in races if race["model"] == whole["model"] for r in race["foretold"]]
    if rates:
        rate = statistics.median(rates)
        hours = [int(row["tiles"].replace(",", "")) / rate / 3600 for row in whole["rows"]]
        title = f"hours on this machine, at the {rate:.2f} tiles/s of `plan(measure=True)`"
        lines.append(f"| {title} | " + " | ".join(f"{h:,.3g}" if h < 100 else f"{h:,.0f}" for h in hours) + " |")
    return lines


def tables(figures: dict[str, Any]) -> dict[str, str]:
    """Markdown of every table that the figures suffice for, by the name of its place in the page."""
    found: dict[str, list[str]] = {}
    races = [r for r in figures.get("races", {}).values() if r.get("bare")]
    if races:
        found["race"] = [line for race in races for line in [*_race(race), ""]][:-1]
        found["foretold"] = _foretold(races)
    if "runtimes" in figures:
        found["runtimes"] = [line for r in figures["runtimes"].values() for line in [*_runtimes(r), ""]][:-1]
    if "scaling" in figures:
        sizes = sorted(figures["scaling"].values(), key=lambda s: s["size"])
        found["scaling"] = [line for s in sizes for line in [*_scaling(s), ""]][:-1]
    if "memory" in figures:
        found["memory"] = _memory(figures["memory"])
    if "whole" in figures:
        found["whole"] = _whole(figures["whole"], races)
    return {name: "\n".join(lines) for name, lines in found.items()}


def render(page: Path, figures: dict[str, Any]) -> str:
    """The page's text with each ``<!-- bench: NAME -->`` to ``<!-- /bench -->`` filled from the figures."""
    made = tables(figures)

    def filled(match: re.Match[str]) -> str:
        name = match["name"]
        body = made.get(name, "Not measured.")
        return f"<!-- bench: {name} -->\n\n{body}\n\n<!-- /bench -->"

    pattern = r"<!-- bench: (?P<name>\w+) -->.*?<!-- /bench -->"
    return re.sub(pattern, filled, page.read_text(encoding="utf-8"), flags=re.S)
