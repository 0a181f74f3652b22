"""Old paths of modules import, warn, and give the same objects."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from deo_cube._moved import MOVED


@pytest.mark.parametrize("old", [old for old, new in MOVED.items() if new])
def test_an_old_path_gives_the_objects_of_the_new_one_and_warns(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        module = import_module(old)
    new = import_module(MOVED[old])
    assert module.__all__
    assert all(getattr(module, name) is getattr(new, name) for name in new.__all__)


def test_the_warning_names_the_line_that_imports() -> None:
    code = "import warnings; warnings.simplefilter('always'); import deo_cube\nfrom deo_cube.engine.match import match"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "<string>:2: DeprecationWarning" in done.stderr


def test_a_path_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("deo_cube.engine.nothing")
