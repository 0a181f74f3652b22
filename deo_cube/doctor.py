"""`deo-cube doctor`: what this installation is made of, what works, and what mends what does not.

Nothing is guessed: packages are held against the requirements that the wheel states, the bundled model against its
reference vector, and a small scene goes the whole way from pixels to a verified store. A check that fails says so and
the others go on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from deo_cube.paths import local_path

__all__ = ["Diagnosis", "Finding", "examine"]

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    """`note`: worth knowing, nothing essential. `broken`: embedding does not work until it is mended."""
    text: str
    mend: str = ""
    """Command or setting that mends it."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order in which they were made."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """True where nothing essential is broken."""
        return all(f.state != "broken" for f in self.findings)

    def to_json(self) -> str:
        """The findings as JSON text: `healthy`, and one object a finding."""
        return json.dumps({"healthy": self.healthy, "findings": [asdict(f) for f in self.findings]}, indent=2)

    def __repr__(self) -> str:
        lines = []
        for f in self.findings:
            first, *rest = f.text.splitlines() or [""]
            lines.append(f"{f.state:<7} {f.name:<13} {first}")
            lines += [f"{'':<21} {line}" for line in (*rest, *([f"mend: {f.mend}"] if f.mend else []))]
        broken = [f.name for f in self.findings if f.state == "broken"]
        return "\n".join([*lines, "", f"broken: {', '.join(broken)}" if broken else "all that is essential works"])


def examine(*, hub_timeout: float = 3.0) -> Diagnosis:
    """Look at everything that embedding stands on.

    Parameters
    ----------
    hub_timeout : float
        Seconds to wait for the model hub. It is not asked where the option `offline` is set.

    Returns
    -------
    Diagnosis
    """
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("packages", _packages),
        ("extras", _extras),
        ("torch", _torch),
        ("torchvision", _torchvision),
        ("cores", _cores),
        ("memory", _memory),
        ("GDAL", _gdal),
        ("Dask", _dask),
        ("temporary", _temporary),
        ("cache", _cache),
        ("weights", _weights),
        ("hub", lambda: _hub(hub_timeout)),
        ("model", _model),
        ("end to end", _end_to_end),
    )
    found: list[Finding] = []
    for name, check in checks:
        try:
            found += check()
        except Exception as error:  # what a broken installation raises is not known beforehand
            found.append(Finding(name, "broken", f"{type(error).__name__}: {error}"))
    return Diagnosis(tuple(found))


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    where = f"Python {platform.python_version()} in {sys.prefix}, {platform.system()} {platform.machine()}"
    yield Finding("deo_cube", "ok", f"{metadata.version('deo-cube')} in {Path(__file__).parent}\n{where}")
    good: list[str] = []
    bad: list[str] = []
    for line in metadata.requires("deo-cube") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            bad.append(f"{wanted.name} is missing")
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        (good if fits else bad).append(f"{wanted.name} {version}" + ("" if fits else f" (wanted {wanted.specifier})"))
    yield Finding("packages", "ok", _wrapped(good))
    if bad:
        yield Finding("packages", "broken", ", ".join(bad), "pip install --upgrade deo-cube")


def _extras() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wanted: dict[str, list[str]] = {}
    for line in metadata.requires("deo-cube") or []:
        requirement = Requirement(line)
        for extra in metadata.metadata("deo-cube").get_all("Provides-Extra") or []:
            marker = requirement.marker
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                wanted.setdefault(extra, []).append(requirement.name)
    there: list[str] = []
    absent: list[str] = []
    for extra, names in wanted.items():
        if extra in ("dev", "docs"):
            continue
        missing = [n for n in names if not _installed(n)]
        (absent if missing else there).append(extra)
    text = f"installed: {', '.join(there) or 'none'}"
    if absent:
        text += f"; not installed: {', '.join(absent)} (pip install 'deo-cube[{absent[0]}]', if you want what it does)"
    yield Finding("extras", "ok", text)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _torch() -> Iterator[Finding]:
    import torch

    built: Any = torch.version
    gpu = torch.cuda.is_available()
    devices = []
    for i in range(torch.cuda.device_count() if gpu else 0):
        free, total = torch.cuda.mem_get_info(i)
        devices.append(f"cuda:{i} {torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield Finding("devices", "ok", "\n".join([*devices, "cpu"]))
    if not gpu and shutil.which("nvidia-smi"):
        why = f"built for CUDA {built.cuda}, which finds no device" if built.cuda else "built without CUDA"
        yield Finding(
            "devices",
            "note",
            f"this machine has nvidia-smi, but torch {torch.__version__} is {why}: everything runs on the CPU",
            "install the build of torch for your driver (pytorch.org, Get Started), or see what nvidia-smi says",
        )


def _torchvision() -> Iterator[Finding]:
    from deo_cube.encoder.networks.timm_import import import_timm, prepare_torchvision

    whole = prepare_torchvision()
    timm = import_timm()
    yield Finding("timm", "ok", f"{timm.__version__} imports")
    if not whole:
        yield Finding(
            "torchvision",
            "note",
            "its compiled operators do not fit this torch; deo_cube and timm do without them, other packages may not",
            "install torch and torchvision together, from one index (constraints.txt of the repository names a pair)",
        )


def _cores() -> Iterator[Finding]:
    from deo_cube import options
    from deo_cube.embedding.runtime import cpu_lanes

    may = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding(
        "cores",
        "ok",
        f"{may} of {os.cpu_count()} may be used, OMP_NUM_THREADS is {options.OMP_NUM_THREADS or 'not set'}: "
        f"{cpu_lanes()} encode at once",
    )


def _memory() -> Iterator[Finding]:
    import psutil  # comes with distributed

    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available")


def _gdal() -> Iterator[Finding]:
    import rasterio
    import rasterio.drivers
    from pyproj import CRS, proj_version_str
    from pyproj.datadir import get_data_dir
    from rasterio.crs import CRS as GdalCRS

    yield Finding("GDAL", "ok", f"{rasterio.__gdal_version__} by rasterio {rasterio.__version__}")
    with rasterio.Env() as env:
        lacking = sorted({"GTiff", "COG", "JP2OpenJPEG"} - set(env.drivers()))
    if lacking:
        yield Finding(
            "GDAL", "note", f"cannot read or write {', '.join(lacking)}", "pip install rasterio (its wheel can)"
        )
    variables = {k: os.environ[k] for k in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA") if k in os.environ}
    try:
        assert CRS("EPSG:32633").to_epsg() == GdalCRS.from_epsg(32633).to_epsg() == 32633
    except Exception as error:
        yield Finding(
            "PROJ",
            "broken",
            f"{proj_version_str} cannot look up EPSG:32633 ({error}); database {get_data_dir()}; {variables}",
            "unset PROJ_LIB PROJ_DATA GDAL_DATA, if another installation set them",
        )
        return
    yield Finding("PROJ", "ok", f"{proj_version_str}" + (f"; {variables} set" if variables else ""))


def _dask() -> Iterator[Finding]:
    import dask

    scheduler = dask.config.get("scheduler", None)
    folder = dask.config.get("temporary-directory", None)
    files = [str(f) for p in dask.config.paths if os.path.isdir(p) for f in sorted(Path(p).glob("*.y*ml"))]
    variables = sorted(k for k in os.environ if k.startswith("DASK_"))
    said = [f"scheduler {scheduler or 'not set (threads, or the client of the process)'}"]
    said += [f"temporary directory {folder}"] if folder else []
    said += [f"configured by {', '.join(files)}"] if files else []
    said += [f"variables {', '.join(variables)}"] if variables else []
    yield Finding("Dask", "ok", f"{dask.__version__}; {'; '.join(said)}")


def _temporary() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * 4096)
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding("temporary", "ok" if free > 1 else "note", f"{folder} is writable, {free:.1f} GB free")


def _cache() -> Iterator[Finding]:
    from deo_cube.options import get_option

    folder = Path(get_option("cache_dir"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            "cache",
            "note",
            f"{folder} is not writable ({error}): weights from the hub cannot be kept",
            "set DEO_CUBE_CACHE to a folder that is",
        )
        return
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    size = sum(p.stat().st_size for p in files) / 1e6
    yield Finding("cache", "ok", f"{folder} is writable; {size:,.0f} MB in {len(files)} files")


def _weights() -> Iterator[Finding]:
    from deo_cube.encoder.registry import known_cards
    from deo_cube.encoder.weights import FOLDER_VARIABLE, local_weights

    given = os.environ.get(FOLDER_VARIABLE)
    lines = []
    for alias, entry in sorted(known_cards().items()):
        w = entry.card.weights
        path = local_weights(entry.card) if w.file else None
        here = "made by its factory" if not w.file else str(path) if path else f"{w.file} is not on this machine"
        lines.append(f"{alias}: {here}")
    yield Finding("weights", "ok", "\n".join(lines))
    if given and not local_path(given).is_dir():
        yield Finding("weights", "note", f"{FOLDER_VARIABLE} = {given}, which is no folder", f"unset {FOLDER_VARIABLE}")


def _hub(timeout: float) -> Iterator[Finding]:
    from deo_cube.encoder.weights import HUB, hub_silence
    from deo_cube.options import get_option

    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    if get_option("offline"):
        yield Finding("hub", "ok", f"{endpoint} was not asked: offline is set")
        return
    silence = hub_silence(timeout=timeout, tries=1)
    if silence is None:
        yield Finding("hub", "ok", f"{endpoint} answers")
        return
    yield Finding(
        "hub",
        "note",
        f"{endpoint} does not answer ({silence}): the bundled model works, published weights cannot be fetched",
        "set HTTPS_PROXY if there is a proxy; or bring weights by hand into the folder DEO_CUBE_WEIGHTS",
    )


def _model() -> Iterator[Finding]:
    from deo_cube.encoder.loading import verify

    found = verify("tiny")
    yield Finding("model", "ok" if found.ok else "broken", str(found), "" if found.ok else "reinstall deo-cube")


def _end_to_end() -> Iterator[Finding]:
    from deo_cube.cube.synthetic import synthetic_cube
    from deo_cube.embedding.embed import embed
    from deo_cube.store.open import verify_store
    from deo_cube.store.write import to_zarr

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "emb.zarr"
        # On threads of this process, whatever cluster is configured: the installation is what is looked at here.
        to_zarr(embed(synthetic_cube(size=128, times=1), "tiny"), store, progress=False, scheduler="threads")
        whole = verify_store(store).complete
    seconds = time.perf_counter() - start
    text = f"a scene of 128 px embedded, written and verified in {seconds:.1f} s"
    yield Finding("end to end", "ok", text) if whole else Finding("end to end", "broken", "the store does not verify")


def _wrapped(names: list[str], width: int = 95) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(", ".join(names), width, break_long_words=False, break_on_hyphens=False))
