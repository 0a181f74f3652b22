"""`deo-cube doctor`: check an installation, and name the command that fixes a problem.

Packages are compared with the requirements of the wheel, the bundled model with its reference vector, and a small
scene is embedded, written and verified. A check that fails is reported, and the others still run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from deo_cube import options
from deo_cube.paths import local_path

__all__ = ["Diagnosis", "Finding", "examine"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: Literal["ok", "note", "broken"]
    """`note`: a limitation that embedding does without. `broken`: embedding does not work until it is fixed."""
    text: str
    fix: str = ""
    """Command or setting that fixes it."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """True if nothing is broken."""
        return not self._broken()

    def to_json(self) -> str:
        """Return `healthy` and one object per finding as JSON."""
        return json.dumps({"healthy": self.healthy, "findings": [asdict(f) for f in self.findings]}, indent=2)

    def _broken(self) -> list[str]:
        return [f.name for f in self.findings if f.state == "broken"]

    def __repr__(self) -> str:
        lines = []
        for f in self.findings:
            first, *rest = f.text.splitlines() or [""]
            lines.append(f"{f.state:<7} {f.name:<13} {first}")
            lines += [f"{'':<21} {line}" for line in (*rest, *([f"fix: {f.fix}"] if f.fix else []))]
        broken = self._broken()
        return "\n".join([*lines, "", f"broken: {', '.join(broken)}" if broken else "everything essential works"])


def examine() -> Diagnosis:
    """Check everything that embedding depends on. The hub is not contacted where the option `offline` is set."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "devices": _devices,
        "torchvision": _torchvision,
        "cores": _machine,
        "GDAL": _gdal,
        "Dask": _dask,
        "temporary": _temporary,
        "cache": _cache,
        "weights": _weights,
        "hub": _hub,
        "model": _model,
        "end to end": _end_to_end,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings += check()
        except Exception as error:  # a broken installation may raise anything
            findings.append(Finding(name, "broken", f"{type(error).__name__}: {error}"))
    return Diagnosis(tuple(findings))


def _packages() -> Iterator[Finding]:
    where = f"Python {platform.python_version()} in {sys.prefix}, {platform.system()} {platform.machine()}"
    yield Finding("deo_cube", "ok", f"{metadata.version('deo-cube')} in {Path(__file__).parent}\n{where}")
    requirements = [Requirement(r) for r in metadata.requires("deo-cube") or []]
    versions, problems = _compare([r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})])
    lines = textwrap.wrap(", ".join(versions), 95, break_long_words=False, break_on_hyphens=False)
    yield Finding("packages", "ok", "\n".join(lines))
    if problems:
        yield Finding("packages", "broken", ", ".join(problems), "pip install --upgrade deo-cube")
    by_extra = {
        extra: _compare([r for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})])
        for extra in metadata.metadata("deo-cube").get_all("Provides-Extra") or []
        if extra != "all"
    }
    incomplete = [extra for extra, (_, lacking) in by_extra.items() if lacking]
    text = f"complete: {', '.join(e for e in by_extra if e not in incomplete) or 'none'}"
    if incomplete:
        text += f"; not installed, or older than expected: {', '.join(incomplete)}"
    yield Finding("extras", "ok", text, f"pip install 'deo-cube[{','.join(incomplete)}]'" if incomplete else "")


def _compare(requirements: Iterable[Requirement]) -> tuple[list[str], list[str]]:
    """Return the installed versions that fit `requirements`, and what is missing or does not fit."""
    versions, problems = [], []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            versions.append(f"{requirement.name} {version}")
        else:
            problems.append(f"{requirement.name} {version} (expected {requirement.specifier})")
    return versions, problems


def _devices() -> Iterator[Finding]:
    import torch

    devices = []
    for i in range(torch.cuda.device_count()):
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info(i))
        devices.append(f"cuda:{i} {torch.cuda.get_device_name(i)}, {free:.1f} of {total:.1f} GiB free")
    devices += ["mps"] if torch.backends.mps.is_available() else []
    yield Finding("devices", "ok", "\n".join([*devices, "cpu"]))
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        cuda = vars(torch.version)["cuda"]
        yield Finding(
            "devices",
            "note",
            f"this machine has nvidia-smi, but torch {torch.__version__} "
            + (f"for CUDA {cuda} finds no device" if cuda else "is built without CUDA")
            + ": everything runs on the CPU",
            "install the build of torch for your driver (pytorch.org, Get Started), or check nvidia-smi",
        )


def _torchvision() -> Iterator[Finding]:
    from deo_cube.encoder.networks.timm_import import import_timm, prepare_torchvision

    complete = prepare_torchvision()
    yield Finding("timm", "ok", f"{import_timm().__version__} imports")
    if not complete:
        yield Finding(
            "torchvision",
            "note",
            "its compiled operators do not fit this torch; deo_cube and timm do not need them, other packages may",
            "install torch and torchvision together, from one index",
        )


def _machine() -> Iterator[Finding]:
    from deo_cube.embedding.process import cpu_threads

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = options.OMP_NUM_THREADS or "not set"
    text = f"{usable} of {os.cpu_count()} usable, OMP_NUM_THREADS is {threads}: {cpu_threads()} encode at once"
    yield Finding("cores", "ok", text)
    if importlib.util.find_spec("psutil") is None:
        return  # it comes with the extra `cluster`
    import psutil

    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available")


def _gdal() -> Iterator[Finding]:
    import rasterio
    from pyproj import CRS, proj_version_str
    from pyproj.datadir import get_data_dir
    from rasterio.crs import CRS as GdalCRS

    yield Finding("GDAL", "ok", f"{rasterio.__gdal_version__} by rasterio {rasterio.__version__}")
    with rasterio.Env() as env:
        missing = sorted({"GTiff", "COG", "JP2OpenJPEG"} - set(env.drivers()))
    if missing:
        text = f"cannot read or write {', '.join(missing)}"
        yield Finding("GDAL", "note", text, "pip install rasterio (its wheel can)")
    variables = {k: os.environ[k] for k in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA") if k in os.environ}
    try:
        assert CRS("EPSG:32633").to_epsg() == GdalCRS.from_epsg(32633).to_epsg() == 32633
        yield Finding("PROJ", "ok", proj_version_str + (f"; {variables} set" if variables else ""))
    except Exception as error:
        text = f"{proj_version_str} cannot look up EPSG:32633 ({error}); database {get_data_dir()}; {variables}"
        fix = "unset PROJ_LIB PROJ_DATA GDAL_DATA, if another installation set them"
        yield Finding("PROJ", "broken", text, fix)


def _dask() -> Iterator[Finding]:
    import dask

    scheduler = dask.config.get("scheduler", None) or "not set (threads, or the client of the process)"
    files = [str(f) for p in dask.config.paths if os.path.isdir(p) for f in sorted(Path(p).glob("*.y*ml"))]
    settings = [*files, *sorted(k for k in os.environ if k.startswith("DASK_"))]
    configured = f"; configured by {', '.join(settings)}" if settings else ""
    yield Finding("Dask", "ok", f"{dask.__version__}; scheduler {scheduler}{configured}")


def _temporary() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * 4096)
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding("temporary", "ok" if free > 1 else "note", f"{folder} is writable, {free:.1f} GB free")


def _cache() -> Iterator[Finding]:
    folder = Path(options.get_option("cache_dir"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder} is not writable ({error}): weights from the hub cannot be kept"
        yield Finding("cache", "note", text, "set DEO_CUBE_CACHE to a writable folder")
        return
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    yield Finding("cache", "ok", f"{folder} is writable; {sum(sizes) / 1e6:,.0f} MB in {len(sizes)} files")


def _weights() -> Iterator[Finding]:
    from deo_cube.encoder.registry import known_cards
    from deo_cube.encoder.weights import FOLDER_VARIABLE, local_weights

    lines = []
    for alias, entry in sorted(known_cards().items()):
        file = entry.card.weights.file
        path: Any = local_weights(entry.card) or f"{file} is not on this machine" if file else "made by its factory"
        lines.append(f"{alias}: {path}")
    yield Finding("weights", "ok", "\n".join(lines))
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and not local_path(folder).is_dir():
        yield Finding("weights", "note", f"{FOLDER_VARIABLE} = {folder} is not a folder", f"unset {FOLDER_VARIABLE}")


def _hub() -> Iterator[Finding]:
    from deo_cube.encoder.hub import HUB, hub_silence

    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    if options.get_option("offline"):
        yield Finding("hub", "ok", f"{endpoint} was not contacted: offline is set")
    elif (failure := hub_silence(timeout=3, tries=1)) is None:
        yield Finding("hub", "ok", f"{endpoint} answers")
    else:
        text = f"{endpoint} does not answer ({failure}): the bundled model works, published weights cannot be fetched"
        fix = "set HTTPS_PROXY if there is a proxy, or copy weights into the folder DEO_CUBE_WEIGHTS"
        yield Finding("hub", "note", text, fix)


def _model() -> Iterator[Finding]:
    from deo_cube.encoder.loading import verify

    result = verify("tiny")
    yield Finding("model", "ok" if result.ok else "broken", str(result), "" if result.ok else "reinstall deo-cube")


def _end_to_end() -> Iterator[Finding]:
    from deo_cube.embedding.embed import embed
    from deo_cube.store.open import verify_store
    from deo_cube.store.write import to_zarr
    from deo_cube.testing import cube_at

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "emb.zarr"
        # On threads, whatever cluster is configured: this checks the installation.
        to_zarr(embed(cube_at((128, 128), times=1), "tiny"), store, progress=False, scheduler="threads")
        complete = verify_store(store).complete
    seconds = time.perf_counter() - start
    if complete:
        yield Finding("end to end", "ok", f"a cube of 128 px was written and verified in {seconds:.1f} s")
    else:
        yield Finding("end to end", "broken", "the store does not verify")
