"""Imports point down the list of packages, and importing the package stays light."""

from __future__ import annotations

import ast
import builtins
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "deo_cube"
#: From the top down; a package may import those below it.
LAYERS = ("top", "evaluate", "viewer", "train", "heads", "store", "embedding", "encoder", "cube", "base")
BASE = {
    "arguments",
    "constants",
    "extras",
    "errors",
    "notebook",
    "options",
    "packed",
    "paths",
    "progress",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def layer(module: str) -> str:
    """Return the layer of a dotted module name."""
    parts = module.split(".")
    if len(parts) == 1 or parts[-1] == "__main__":  # a program
        return "top"
    if parts[1] in LAYERS:
        return parts[1]
    return "base" if parts[1] in BASE else "top"


def imports(path: Path) -> set[str]:
    """Every module of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {m for m in found if m.split(".")[0] == "deo_cube"}


def run_time_imports(path: Path) -> set[str]:
    """Return the modules that a file imports when it runs: the submodule where a name is one, else its package."""
    tree = parsed(path)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    modules = {name_of(p) for p in MODULES}
    imported: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}": node.module for alias in node.names}
            imported |= {name if name in modules else module for name, module in names.items()}
    return imported


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = LAYERS.index(layer(name_of(path)))
    up = {m for m in imports(path) if m != "deo_cube" and LAYERS.index(layer(m)) < own}
    assert not up, f"{name_of(path)} ({LAYERS[own]}) imports from above: {sorted(up)}"


def test_no_modules_import_each_other() -> None:
    names = {name_of(p) for p in MODULES} - {"deo_cube"}
    left = {name_of(p): (run_time_imports(p) & names) - {name_of(p)} for p in MODULES}
    # Modules that import none of the others are taken away until only cycles are left.
    while free := {m for m, needed in left.items() if not needed & left.keys()}:
        left = {m: needed for m, needed in left.items() if m not in free}
    assert not left, f"import cycles among {sorted(left)}"


def test_cube_and_encoder_know_nothing_of_dask_and_one_module_builds_graphs() -> None:
    def text(path: Path) -> str:
        return path.read_text(encoding="utf-8")

    for path in [*(PACKAGE / "cube").rglob("*.py"), *(PACKAGE / "encoder").rglob("*.py")]:
        assert not re.search(r"^\s*(import|from) (dask|distributed)\b", text(path), re.M), path
    builders = {p.relative_to(PACKAGE).as_posix() for p in MODULES if re.search(r"HighLevelGraph[.(]", text(p))}
    assert builders == {"embedding/graph.py"}


def test_tiles_are_integers_and_numpy_only() -> None:
    source = (PACKAGE / "embedding" / "tiles.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) (torch|dask|xarray)\b", source, re.M)


def test_names_of_attributes_are_constants() -> None:
    formats = {"deo_cube:radiometry", "deo_cube:normalization"}  # of expressions in STAC
    for path in MODULES:
        if path.name != "constants.py":
            literals = {n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant)}
            names = {v for v in literals if isinstance(v, str) and re.fullmatch(r"deo_cube:\w*", v)}
            assert names <= formats, f"{path}: deo_cube.constants.Attribute names them"


def test_weights_are_never_loaded_loosely() -> None:
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"strict\s*=\s*False", source), path
        assert "weights_only=False" not in source, path
        assert not re.search(r"^\s*import pickle\b|(?<!cloud)pickle\.load", source, re.M), path


#: Code that loads no heavy library, and what else it does not load. One process runs it in this order.
LIGHT: dict[str, tuple[str, ...]] = {
    "import deo_cube.cube.georeference": ("dask.array", "rasterio"),
    "from deo_cube.cube.synthetic import synthetic_cube; synthetic_cube(size=16, chunks=None)": (),
    "import deo_cube.cli": (),
    "import deo_cube.train.config": (),
    "import deo_cube.encoder.networks.timm_import": (),
    "from deo_cube.encoder.registry import card, list_models, resolve; list_models(); card('vitb')": (),
    "import pickle; assert pickle.loads(pickle.dumps(resolve('tiny'))).card.alias == 'tiny'": (),
    "import deo_cube.heads.maps, deo_cube.heads.change, deo_cube.heads.similar, deo_cube.heads.pca": (),
    "import deo_cube.heads.kmeans, deo_cube.evaluate.report, deo_cube.evaluate.seam": (),
}
HEAVY = ("torch", "timm", "distributed", "sklearn", "geopandas", "matplotlib")


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Modules that are loaded after each line of `LIGHT`."""
    code = f"""
import json, sys
loaded = {{}}
for line in {list(LIGHT)!r}:
    exec(line)
    loaded[line] = sorted(sys.modules)
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {line: set(modules) for line, modules in json.loads(done.stdout).items()}


@pytest.mark.parametrize("line", LIGHT)
def test_heavy_libraries_are_loaded_late(line: str, loaded: dict[str, set[str]]) -> None:
    assert not loaded[line] & {*HEAVY, *LIGHT[line]}


def test_importing_adds_little_to_xarray() -> None:
    code = (
        "import sys, xarray; before = set(sys.modules); import deo_cube\n"
        "print(len({m.split('.')[0] for m in set(sys.modules) - before} - {'deo_cube'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Counted, not timed: nothing of weight beyond xarray's own.
    assert int(done.stdout) <= 3


def test_everything_public_is_there_and_documented() -> None:
    import deo_cube

    for name in deo_cube.__all__:
        value = getattr(deo_cube, name)
        assert value.__doc__, name
    assert set(deo_cube.__all__) <= set(dir(deo_cube))
    with pytest.raises(AttributeError, match="no attribute 'embedd'"):
        _ = deo_cube.embedd


#: Builtin exceptions that are raised for a reason, by module: how many at most, and why they are not `DeoCubeError`s.
BUILTIN_RAISES = {
    "accessor": (1, "hasattr asks by AttributeError"),
    "__init__": (1, "hasattr and import ask by AttributeError"),
    "arguments": (1, "caught beside, with what operator.index raises"),
    "cli": (1, "tyro prints a ValueError itself, an ExceptionGroup passes"),
    "cube.georeference": (1, "caught beside, with what pyproj raises"),
    "cube.plain": (1, "the protocol of json.dumps(default=)"),
    "embedding.windows": (1, "a fault of this package"),
    "embedding.graph": (1, "the protocol of mappings"),
    "embedding.tasks": (1, "the protocol of containers"),
    "progress": (1, "a fault of this package"),
    "embedding.chunks": (2, "TimeoutError is retried like those of sockets; and a fault of this package"),
    "store.scheduler": (1, "caught beside, with what a connection raises"),
    "embedding.tiles": (1, "a fault of this package"),
    "heads.base": (4, "caught in load_head, with what a damaged file raises"),
    "heads.rasters": (1, "caught beside, with what a legend raises"),
    "testing": (1, "fails a test"),
}
BUILTINS = {n for n, e in vars(builtins).items() if isinstance(e, type) and issubclass(e, Exception)}


def builtin_raises(path: Path) -> list[int]:
    """Lines on which a module raises a builtin exception."""
    lines = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id in BUILTINS:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_mistakes_of_users_are_errors_of_this_package(path: Path) -> None:
    name = name_of(path).removeprefix("deo_cube").removeprefix(".") or "__init__"
    allowed, reason = BUILTIN_RAISES.get(name, (0, "no exceptions are listed"))
    lines = builtin_raises(path)
    assert len(lines) <= allowed, (
        f"{name}, lines {lines}: raise a class of deo_cube.errors ({reason or 'no exception'})"
    )
