"""Parameters in the reference have each its own type and default (an extension of griffe; mkdocs.yml names it).

griffe, which reads signatures and docstrings, gives all of "tile, halo" what the first of them has.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from griffe import Extension

sys.path.insert(0, str(Path(__file__).parent))

from pages import one_by_one, plain_default


class Parameters(Extension):
    """Rewrites signatures and docstrings of functions before they are shown."""

    def on_function(self, *, func: Any, **_: Any) -> None:
        """Split the entries of several parameters, and show defaults as a user would write them."""
        for parameter in func.parameters:
            if parameter.default is not None and (text := plain_default(str(parameter.default))):
                parameter.default = text
        if func.docstring:
            func.docstring.value = one_by_one(func.docstring.value)
