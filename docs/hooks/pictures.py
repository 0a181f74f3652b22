"""Draw the pictures of a page with the page's own code: `python docs/hooks/pictures.py ten-minutes`.

Its Python blocks run in an empty folder; what they saved as .png goes to docs/img/.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1]


def draw(page: str) -> None:
    """Run the blocks of `docs/PAGE.md` and keep their pictures."""
    import matplotlib
    from PIL import Image

    matplotlib.use("Agg")
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for code in re.findall(r"^```python\n(.*?)```", text, re.S | re.M):
            exec(compile(code, page, "exec"), names)
        for picture in Path(folder).glob("*.png"):
            # A palette keeps maps of many colours small.
            Image.open(picture).convert("RGB").quantize(200).save(DOCS / "img" / picture.name, optimize=True)
            print(f"docs/img/{picture.name}")
        os.chdir(DOCS)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["ten-minutes"]:
        draw(wanted)
