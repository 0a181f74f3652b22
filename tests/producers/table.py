"""The tables of docs/producers.md: python -m tests.producers [NAME ...].

It runs the lines of every producer whose packages are installed, records versions in docs/data/producers.json, and
writes the page. What is not installed keeps the versions of the last run.
"""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import find_shared
from tests.producers import files, loaders
from tests.producers.producers import PRELUDE, Producer, check

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "producers.md"
RECORD = DOCS / "data" / "producers.json"
PRODUCERS: tuple[Producer, ...] = (*loaders.PRODUCERS, *files.PRODUCERS)
GROUPS = tuple(dict.fromkeys(p.group for p in PRODUCERS))
#: Producers that are tried wherever the tests run; others need packages that the extra `dev` leaves out.
ALWAYS = frozenset({"odc-stac", "stackstac", "rioxarray", "netCDF4", "zarr"})


def record() -> dict[str, str]:
    """Versions with which each producer was tried last."""
    found: dict[str, str] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def table(group: str, tried: dict[str, str]) -> str:
    """Return the table of one group of producers, as Markdown."""
    rows = ["| producer | gives | lines | decided | mind | tried with |", "|---|---|---|---|---|---|"]
    for p in PRODUCERS:
        if p.group == group:
            lines = "<br>".join(f"`{line}`" for line in p.lines.splitlines())
            mind = " ".join(filter(None, [p.mind, "Only the service is replaced." if p.service else ""]))
            rows.append(f"| {p.name} | {p.gives} | {lines} | {p.decided} | {mind} | {tried.get(p.name, '')} |")
    return "\n".join(rows) + "\n"


def with_tables(text: str) -> str:
    """Return `text` with what is between each pair of marks replaced."""
    tried = record()
    made = {f"producers, {g}": table(g, tried) for g in GROUPS}
    made["producers, imports"] = f"```python\n{PRELUDE}```\n"
    for name, content in made.items():
        begin, end = f"<!-- table {name}: begin -->\n", f"<!-- table {name}: end -->"
        before, rest = text.split(begin)
        text = before + begin + "\n" + content + "\n" + end + rest.split(end)[1]
    return text


def main(chosen: Sequence[str] = ()) -> int:
    """Run all producers, or those whose names hold one of `chosen`; record versions, write the page.

    Returns
    -------
    int
        How many of them fail.
    """
    tried = record() if RECORD.exists() else {}
    failed = 0
    for producer in (p for p in PRODUCERS if not chosen or any(c in p.name for c in chosen)):
        if producer.missing or (producer.real and find_shared() is None):
            print(f"{producer.name}: not here: {', '.join(producer.missing) or 'the real data'}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                apart = check(producer, Path(folder))
            except Exception:
                failed += 1
                traceback.print_exc()
            else:
                print(f"{producer.name}: largest difference {apart:g}")
                tried[producer.name] = producer.version
    ordered = {p.name: tried[p.name] for p in PRODUCERS if p.name in tried}
    RECORD.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return failed
