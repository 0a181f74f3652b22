"""Import timm, even if torchvision's compiled operators do not fit the installed torch.

timm needs torchvision. A CUDA build of torchvision beside a CPU build of torch (which pip selects when only a CPU wheel
of torch is available) fails on import with ``operator torchvision::nms does not exist`` (pytorch/vision#9077, #8985).
Declaring the two missing signatures first makes the import work; nothing here ever calls those operators. Every import
of timm or torchvision in this package goes through this module.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import sys
import threading
from types import ModuleType
from typing import Any

from deo_cube.errors import MissingExtraError

__all__ = ["import_timm", "prepare_torchvision"]

_lock = threading.RLock()
# The declared signatures last only as long as their library object.
_declared: Any = None


def prepare_torchvision() -> bool:
    """Make `import torchvision` safe in this process.

    Returns
    -------
    bool
        True where torchvision's own operators are there, False where only their signatures were declared.
    """
    global _declared
    with _lock:
        if _declared is not None:
            return False
        if "torchvision" in sys.modules:
            return True
        import torch

        # Untyped functions of torch.
        ops: Any = torch.ops
        new_library: Any = torch.library.Library
        spec = importlib.util.find_spec("torchvision")
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
        compiled = [path for folder in folders for ending in ("so", "pyd", "dylib")
                    for path in glob.glob(os.path.join(folder, f"_C*.{ending}"))]  # fmt: skip
        for path in compiled:
            try:
                ops.load_library(path)
            except (OSError, RuntimeError):
                continue
            if hasattr(ops.torchvision, "nms"):
                return True
        if hasattr(ops.torchvision, "nms"):
            return True
        library = new_library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared = library
        return False


def import_timm() -> ModuleType:
    """Return the module timm, imported safely.

    Raises
    ------
    MissingExtraError
        If timm is not installed.
    """
    with _lock:
        prepare_torchvision()
        try:
            import timm
        except ModuleNotFoundError as error:
            if error.name not in ("timm", "torchvision"):
                raise
            raise MissingExtraError(
                f"the networks need timm, but {error.name} is not installed: pip install timm"
            ) from error
        module: ModuleType = timm
        return module
