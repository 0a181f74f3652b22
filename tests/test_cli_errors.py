"""Commands end with one message in the shell's words, whatever library noticed a mistake; faults show a traceback."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import deo_cube
from deo_cube import cli, cli_arguments, cli_errors
from deo_cube.errors import ArgumentError, InputNotFoundError, MissingBandsError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            'pass offset=0, offset=-1000 or units="dn"; tile=320',
            "pass --offset 0, --offset -1000 or --units dn; --tile 320",
        ),
        ("pass overwrite=True, or another path", "pass --overwrite, or another path"),
        ("with progress=False", "with --no-progress"),
        ('bands={"B04": "red", "B08": "..."}; or', "--bands B04=red B08=...; or"),
        ("bands={'SCL': ...}, or leave mask out", "--bands SCL=..., or leave mask out"),
        ('say bands=["B04", "B03", "B02"].', "say --bands B04 B03 B02."),
        ("pass units= and offset=.", "pass --units and --offset."),
        ("tile must be an integer", "--tile must be an integer"),
        ("nodata=None", "--nodata none"),
        ("edge='pad' keeps them", "--edge pad keeps them"),
        ("ds.odc.reproject(resolution=10)", "ds.odc.reproject(resolution=10)"),
        ("weights=/data/w.safetensors", "--weights /data/w.safetensors"),
    ],
)
def test_arguments_become_flags(message: str, shown: str) -> None:
    flags = ["workers", "batch_size", "units", "offset", "tile", "overwrite", "measure", "progress", "bands", "nodata"]
    assert cli_errors.in_flags(message, [*flags, "edge", "weights", "mask"]) == shown
    assert cli_errors.in_flags(message, []) == message


def test_arguments_by_position_become_their_words() -> None:
    spelling = cli_arguments.spelling_of("similar", cli.COMMANDS["similar"])
    flags, positions = spelling.flags, spelling.positions
    for message, shown in (
        ("emb: x.zarr does not exist", "STORE: x.zarr does not exist"),
        ("to must be within the embeddings", "X Y must be within the embeddings"),
        ("negatives: n.gpkg does not exist", "--negatives: n.gpkg does not exist"),
        ("crs='EPSG:0' is not a CRS", "--crs EPSG:0 is not a CRS"),
        ("2 problems:\n1. emb must be of one model", "2 problems:\n1. STORE must be of one model"),
    ):
        assert cli_errors.in_flags(message, flags, positions) == shown
    view = cli_arguments.spelling_of("view", cli.COMMANDS["view"])
    assert cli_errors.in_flags("heads must be", view.flags) == "--head must be"
    embed = cli_arguments.spelling_of("embed", cli.COMMANDS["embed"])
    assert cli_errors.in_flags("num_workers=2", embed.flags) == "--workers 2"


#: Calls that a command, a flag or a variable does the job of.
_CALLS = re.compile(
    r"\.deo\.\w+\(|(?<![\w.])(?:deo_cube\.|head\.)?(?:"
    r"aggregate|assess|bench|build_index|change|change_series|classify|embed|embed_series|export|load_cube|mosaic|"
    r"open_cube|open_embeddings|overviews|plan|predict|publish|sample|segment|set_options|similar|verify|verify_store)\((?!s\))"
)
#: Functions whose messages are about objects that no command passes, or that are read with objects beside them.
_OF_PYTHON = {
    "arguments._cube_call": "the value is not an xarray object",
    "arguments._embeddings_call": "the value is not an xarray object",
    "cube.arrays._array": "of from_array",
    "cube.open._store_of": "the value is not text",
    "encoder.encoder._refuse_series": "of Encoder",
    "heads.assess.doubt_sources": "commands pass a head",
    "heads.estimators.refuse_opaque": "of heads in memory",
    "heads.sample._as_vectors": "the value is not a path",
}


def _texts(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Function and text of each string that is part of a sentence, without docstrings and arguments of `remedy`."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "remedy":
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = node.name
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield function, node.value
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    return walk(tree, "")


def test_messages_name_no_call_that_the_shell_has_a_command_for() -> None:
    package = Path(deo_cube.__file__).parent
    calls = {}
    for file in package.rglob("*.py"):
        module = ".".join(file.relative_to(package).with_suffix("").parts)
        for function, text in _texts(ast.parse(file.read_text(encoding="utf-8"))):
            if _CALLS.search(text) and " " in text:
                calls[f"{module}.{function}"] = text
    assert {name: text for name, text in calls.items() if name not in _OF_PYTHON} == {}, "use errors.remedy"
    assert set(_OF_PYTHON) <= set(calls), "remove these names from _OF_PYTHON"


def test_remedies_are_calls_in_python_and_commands_in_the_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "a.index"
    with pytest.raises(InputNotFoundError) as caught:
        deo_cube.open_index(missing)
    assert f"deo_cube.build_index(store, {str(missing)!r})" in str(caught.value)
    assert run("search", missing, "8.65,47.35") == 2
    error = capsys.readouterr().err
    assert f"deo-cube index STORE {missing}" in error
    assert "build_index" not in error
    with pytest.raises(InputNotFoundError, match="build_index"):
        deo_cube.open_index(missing)


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in args])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shell") / "cube.zarr"
    deo_cube.synthetic_cube(size=64, times=1).to_zarr(path, zarr_format=3, consolidated=False)
    return path


def foreign(kind: str, folder: Path) -> Path:
    """An input that a library underneath cannot read."""
    path = folder / f"input.{kind}"
    match kind:
        case "tif":
            path.write_bytes(b"II*\0 not a tiff")
        case "nc":
            path.write_bytes(b"CDF\x01 not netCDF")
        case "json":
            path.write_text('{"type": "FeatureCollection", "features": [}')
        case "zarr":
            path.mkdir()
            (path / "zarr.json").write_text("{ not json")
        case "empty.zarr":
            path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["tif", "nc", "json", "zarr", "empty.zarr"])
def test_what_libraries_cannot_read_is_one_message(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (("plan", foreign(kind, tmp_path)), ("embed", tmp_path / f"input.{kind}", tmp_path / "out.zarr")):
        assert run(*args) == 2
        error = capsys.readouterr().err
        assert error.startswith("deo-cube: ")
        assert "Traceback" not in error
        assert len(error.strip().splitlines()) <= 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_message(
    cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert run("embed", cube, tmp_path / "emb.zarr", "--no-progress") == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_path_below_a_file_is_one_message(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run("embed", cube, tmp_path / "file" / "emb.zarr", "--no-progress") == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert "Traceback" not in error


def test_errors_of_the_network_and_of_projections_are_one_message() -> None:
    from pyproj import CRS

    def caught(call: Any) -> BaseException:
        with pytest.raises(Exception) as info:
            call()
        return info.value

    import urllib.request

    refused = caught(lambda: urllib.request.urlopen("http://127.0.0.1:9/", timeout=2))
    assert "refused" in str(cli_errors.cause(refused))
    assert str(cli_errors.cause(caught(lambda: CRS.from_user_input("EPSG:0")))).startswith("PROJ: ")
    assert cli_errors.cause(MemoryError()) is not None
    assert cli_errors.cause(ExceptionGroup("tasks", [MissingBandsError("no B08")])) == "no B08"


def test_a_fault_of_ours_shows_its_traceback_and_how_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        """Break."""
        raise ValueError("a slip of ours")

    monkeypatch.setitem(cli.COMMANDS, "models", broken)
    assert run("models") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "a slip of ours" in error
    assert "deo-cube doctor" in error


def test_messages_of_a_command_name_its_flags(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "emb.zarr"
    assert run("embed", cube, out, "--no-progress") == 0
    assert run("embed", cube, out, "--no-progress", "--tile", "256") == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error
    assert "overwrite=True" not in error
    assert run("embed", cube, out, "--no-progress", "--tile", "256", "--overwrite") == 0
    assert run("plan", cube, "--tile", "3") == 2
    advised = capsys.readouterr().err.split("--tile ")[-1].split()[0]
    assert run("plan", cube, "--tile", advised, "--halo", "0") == 0
    assert "--measure" in capsys.readouterr().out


def test_bands_are_advised_as_flags_and_the_advice_works(
    cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ds = xr.open_zarr(cube, consolidated=False, decode_coords="all", mask_and_scale=False)
    odd = tmp_path / "odd.zarr"
    ds.rename(B08="nir_band").drop_attrs(deep=False).to_zarr(odd, zarr_format=3, consolidated=False)
    assert run("plan", odd, "--bands", "B08=nir_band") == 0
    assert run("plan", odd.with_name("none.zarr")) == 2
    bare = tmp_path / "bare.zarr"
    ds.drop_vars("B08").to_zarr(bare, zarr_format=3, consolidated=False)
    capsys.readouterr()
    assert run("plan", bare) == 2
    error = capsys.readouterr().err
    assert "--missing nearest" in error
    assert "--bands B08=..." in error
    assert run("plan", bare, "--missing", "nearest") == 0


def test_segment_does_not_delete_its_inputs(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "precious.zarr"
    other.mkdir()
    (other / "data").write_text("")
    for out in (cube, other, tmp_path / "out.xyz"):
        assert run("segment", cube, tmp_path / "head", out) == 2
        assert str(out) in capsys.readouterr().err
    assert xr.open_zarr(cube, consolidated=False).sizes["x"] == 64
    assert (other / "data").exists()


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), cli_errors.warnings_as_lines(["offset"]):
        warnings.simplefilter("always")
        warnings.warn("offset=0 is taken\nas given", UserWarning, stacklevel=1)
        warnings.warn("'decade' is deprecated", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == "deo-cube: warning: --offset 0 is taken as given\n"


def test_ctrl_c_is_status_130(cube: Path, tmp_path: Path) -> None:
    code = (
        "import sys, threading, os, signal, deo_cube.cli as c\n"
        "def slow():\n    'Wait.'\n    import time\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "c.COMMANDS['models'] = slow\nc.main(['models'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in error


def test_every_error_of_a_verb_names_its_argument() -> None:
    with pytest.raises(ArgumentError, match="dtype"):
        deo_cube.synthetic_cube(size=64, times=1).deo.embed(dtype="float8")
