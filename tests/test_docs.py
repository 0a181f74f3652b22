"""Every Python block of README and docs runs, in the order of its page, offline and in an empty folder.

A block that cannot (it needs the network, a cluster or a GPU) says so in a comment on the line before:
``<!-- not run: needs the network -->``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [p for p in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if "```python" in p.read_text()]
BLOCK = re.compile(r"(?P<before>[^\n]*)\n+```python[^\n]*\n(?P<code>.*?)```", re.S)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and code of each block that runs."""
    text = "\n" + page.read_text(encoding="utf-8")
    return [
        (text[: m.start("code")].count("\n"), m["code"]) for m in BLOCK.finditer(text) if "not run:" not in m["before"]
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page):
        # Padded, so that a traceback names the page's own line.
        exec(compile("\n" * line + code, str(page), "exec"), names)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
