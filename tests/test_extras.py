"""Without an extra the core works, and each verb that needs it names the command that installs it."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deo_cube
from deo_cube.cli import main
from deo_cube.errors import MissingExtraError
from deo_cube.extras import require
from deo_cube.testing import cube_at, registered_means
from tests.core_install import Blocker

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def closure(lines: Sequence[str]) -> set[str]:
    """Distributions that requirements bring, with those that they bring."""
    brought: dict[str, set[str]] = {}
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in brought and requirement.extras <= brought[name]:
            continue
        brought.setdefault(name, set()).update(requirement.extras)
        try:
            needed = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        extras = {"", *requirement.extras}
        waiting += [r for r in needed if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return set(brought)


@functools.cache
def modules_of(distributions: frozenset[str]) -> frozenset[str]:
    """Top-level modules and namespace packages (``odc.stac``) of distributions."""
    modules = set()
    for name in distributions:
        for file in metadata.files(name) or [] if name in installed() else []:
            parts = file.parts
            if file.suffix == ".py" and "site-packages" not in parts and ".." not in parts:
                dotted = ".".join(parts[:2]) if parts[0] == "odc" else parts[0].removesuffix(".py")
                modules.add(dotted)
            elif file.suffix in (".so", ".pyd") and len(parts) == 1:
                modules.add(parts[0].split(".")[0])
    return frozenset(modules)


@functools.cache
def installed() -> frozenset[str]:
    return frozenset(canonicalize_name(d.metadata["Name"]) for d in metadata.distributions())


CORE = closure(PROJECT["dependencies"])
#: Modules that the core does without.
OPTIONAL = modules_of(
    frozenset(closure([line for lines in EXTRAS.values() for line in lines if not line.startswith("deo-cube[")]) - CORE)
) - modules_of(frozenset(CORE))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Block what an extra brings beyond the core."""

    def block(extra: str) -> None:
        blocker = Blocker(sorted(modules_of(frozenset(closure(EXTRAS[extra]) - CORE))))
        for name in [m for m in sys.modules if blocker.blocks(m)]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [blocker])

    return block


@pytest.fixture(scope="module")
def emb() -> Any:
    with registered_means():
        yield cube_at((128, 128), times=2).deo.embed("means").compute()


def labels(emb: Any) -> Any:
    return emb.isel(time=0, embedding=0, drop=True).copy(data=np.indices(emb.shape[2:]).sum(0) % 2 + 1).astype("uint8")


#: Calls of each extra: on embeddings and a folder.
CALLS: dict[str, dict[str, Callable[[Any, Path], Any]]] = {
    "stac": {
        "load_cube": lambda emb, folder: deo_cube.load_cube({"type": "FeatureCollection", "features": []}),
        "search": lambda emb, folder: deo_cube.search("earth-search", bbox=(9, 47, 10, 48)),
        "stac_item": lambda emb, folder: deo_cube.stac_item(folder),
        "collection_of": lambda emb, folder: deo_cube.collection_of(folder),
        "model_item": lambda emb, folder: deo_cube.model_item("tiny"),
        "publish": lambda emb, folder: deo_cube.publish(folder),
    },
    "heads": {
        "fit_head linear": lambda emb, folder: deo_cube.fit_head("linear", emb.isel(time=0), labels(emb)),
        "fit_head finetune": lambda emb, folder: deo_cube.fit_head(
            "linear", cube_at((64, 64)), labels(emb), finetune=1, model="tiny", folder=folder
        ),
        "cluster": lambda emb, folder: emb.deo.cluster(3),
        "fit_head ridge": lambda emb, folder: deo_cube.fit_head("ridge", emb.isel(time=0), labels(emb)),
        "fit_head forest": lambda emb, folder: deo_cube.fit_head("forest", emb.isel(time=0), labels(emb)),
    },
    "cluster": {
        "connect": lambda emb, folder: __import__("deo_cube.store.scheduler").store.scheduler.connect("tcp://h:1"),
        "to_zarr": lambda emb, folder: emb.deo.to_zarr(folder / "e.zarr", scheduler="distributed"),
    },
    "cpu": {"embed": lambda emb, folder: cube_at((64, 64)).deo.embed("tiny", runtime="openvino")},
    "index": {"build_index": lambda emb, folder: deo_cube.build_index(emb, folder / "index")},
    "demo": {"synthetic_cube": lambda emb, folder: deo_cube.synthetic_cube(size=64)},
    "vector": {
        "to_geoparquet": lambda emb, folder: emb.deo.to_geoparquet(folder / "e.parquet"),
        "fit_head knn": lambda emb, folder: deo_cube.fit_head("knn", emb.isel(time=0), geojson(folder), column="c"),
    },
    "store": {"to_zarr": lambda emb, folder: emb.deo.to_zarr("s3://bucket/e.zarr")},
    "view": {"explore": lambda emb, folder: emb.deo.explore()},
    "benchmarks": {
        "evaluate": lambda emb, folder: __import__("deo_cube.evaluate.report").evaluate.report.evaluate("tiny", folder)
    },
    "train": {"train": lambda emb, folder: train(folder)},
    "viz": {
        "SeamReport.plot": lambda emb, folder: seams().plot(),
        "assess": lambda emb, folder: deo_cube.assess(labels(emb), labels(emb)).plot(),
    },
}


def geojson(folder: Path) -> Path:
    path = folder / "labels.gpkg"
    path.write_bytes(b"")
    return path


def train(folder: Path) -> None:
    from deo_cube.train.augment import Augmentation
    from deo_cube.train.config import TrainConfig

    Augmentation(TrainConfig().augment, None)  # type: ignore[arg-type]


def seams() -> Any:
    from deo_cube.evaluate.seam import SeamReport

    return SeamReport("tiny", 32, ())


@pytest.mark.parametrize(("extra", "call"), [(e, c) for e, calls in CALLS.items() for c in calls])
def test_a_verb_without_its_extra_names_the_command_that_installs_it(
    extra: str, call: str, without: Callable[[str], None], emb: Any, tmp_path: Path
) -> None:
    brought = modules_of(frozenset(closure(EXTRAS[extra])))
    without(extra)
    with pytest.raises(MissingExtraError) as error:
        CALLS[extra][call](emb, tmp_path)
    named = re.search(r"needs ([\w.]+), which is not installed: pip install 'deo-cube\[(\w+)\]'$", str(error.value))
    assert named is not None, error.value
    # Followed: that extra brings the module.
    assert named[2] == extra
    assert {named[1], named[1].split(".")[0], ".".join(named[1].split(".")[:2])} & brought


def test_a_command_says_the_same(
    without: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without("demo")
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "pip install 'deo-cube[demo]'" in capsys.readouterr().err


def test_every_extra_is_tried_and_part_of_all() -> None:
    everything = set(re.findall(r"[\w-]+", EXTRAS["all"][0].partition("[")[2]))
    assert everything == EXTRAS.keys() - {"all", "gpu"}
    # stackstac makes the user's cubes, and no call of this package imports it.
    assert CALLS.keys() == everything - {"stackstac"}


def test_a_broken_package_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_part")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"cannot be imported.*no_such_part.*deo-cube\[stac\]"):
        require("half_installed", extra="stac", purpose="a test")


def late(node: ast.AST, path: Path) -> bool:
    """Whether a module is only imported by others after they called `require`."""
    return path.relative_to(ROOT / "deo_cube").as_posix() in {
        "cube/stac_reader.py",  # load_cube
        "store/run_distributed.py",  # to_zarr, after it found a client
        "viewer/server.py",
        "viewer/routes.py",  # explore
    }


def test_modules_import_optional_packages_only_in_functions() -> None:
    for path in (ROOT / "deo_cube").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                optional = {name.split(".")[0], ".".join(name.split(".")[:2])} & OPTIONAL
                assert not optional or late(node, path), f"{path.name} imports {name} at its top"


@pytest.mark.slow
def test_the_core_alone_opens_embeds_and_writes(tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "core_install.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path), *sorted(OPTIONAL)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the core alone works" in done.stdout
