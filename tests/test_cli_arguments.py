"""Wrong arguments of a command are refused in two plain lines, whose advice works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import deo_cube
from deo_cube import cli
from deo_cube.cli_arguments import EXAMPLES, check_command, check_flags, parse, spelling_of
from deo_cube.errors import ArgumentError

SPELLINGS = {name: spelling_of(name, verb) for name, verb in cli.COMMANDS.items()}


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in args])
    return int(caught.value.code or 0)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines of standard error, which are plain: no colours and no boxes."""
    error = capsys.readouterr().err
    assert not re.search(r"\x1b|[│╭─╰]", error)
    assert "Traceback" not in error
    lines = error.strip().splitlines()
    assert all(line.startswith("deo-cube: ") for line in lines)
    return lines


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arguments")
    ds = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    ds.to_zarr(folder / "cube.zarr", zarr_format=3, consolidated=False)
    deo_cube.to_zarr(ds.deo.embed(), folder / "emb.zarr", progress=False)
    return folder / "emb.zarr"


def middle_of(store: Path) -> tuple[float, float]:
    emb = deo_cube.open_embeddings(store)
    return float(emb.x[3]), float(emb.y[3])


@pytest.mark.parametrize(
    ("slip", "meant"), [("embd", "embed"), ("Similar", "similar"), ("change_series", "change-series"), ("inf", "info")]
)
def test_the_nearest_command_is_suggested(slip: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(slip, "a", "b") == 2
    error = lines_of(capsys)
    assert re.search(rf"\b{meant}\b", error[0])
    assert len(error) == 2
    check_command([meant], cli.COMMANDS)


@pytest.mark.parametrize("wrong", [["--overwrite", "embed"], ["xyzzy"], ["help", "embed"]])
def test_what_is_not_a_command_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*wrong) == 2
    assert "--help" in lines_of(capsys)[-1]


def test_without_arguments_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "embed" in capsys.readouterr().err
    assert run("help") == 0
    assert "embed" in capsys.readouterr().out


@pytest.mark.parametrize("command", SPELLINGS)
def test_a_slip_in_a_flag_names_the_flag(command: str) -> None:
    spelling = SPELLINGS[command]
    for flag in spelling.all_flags:
        check_flags([flag], spelling)
        check_flags([f"{flag}=1"], spelling)
        check_flags([flag.replace("-", "_").replace("__", "--", 1)], spelling)
        if len(flag) < 7:
            continue
        for slip in (flag[:-1], flag[:4] + flag[5] + flag[4] + flag[6:], flag + "s"):
            if slip not in spelling.all_flags:
                with pytest.raises(ArgumentError) as caught:
                    check_flags([slip], spelling)
                assert flag in suggested(str(caught.value)) or flag.replace("--no-", "--") in str(caught.value)


def suggested(message: str) -> list[str]:
    return re.findall(r"--[\w-]+", message.partition(":")[2])


@given(command=st.sampled_from(sorted(SPELLINGS)), name=st.from_regex(r"--?[a-z][a-z-]{0,12}", fullmatch=True))
def test_only_flags_of_the_command_are_suggested(command: str, name: str) -> None:
    spelling = SPELLINGS[command]
    assume(name not in (*spelling.all_flags, "-h", "-inf", "-nan", "-infinity"))
    with pytest.raises(ArgumentError) as caught:
        check_flags([name], spelling)
    assert set(suggested(str(caught.value))) <= set(spelling.all_flags)
    assert f"{command} has no flag {name}" in str(caught.value)
    assert caught.value.__notes__


def test_numbers_and_paths_are_not_flags() -> None:
    check_flags(["-5", "-1e3", "-.5", "-inf", "a-b", "-", "--", "-12.5,47"], SPELLINGS["similar"])


def test_an_argument_that_is_given_by_position_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = middle_of(store)
    assert run("similar", store, "--to", x, y, store.with_name("s.tif")) == 2
    message, usage = lines_of(capsys)
    assert "--to" in message
    assert "X Y" in message
    # The usage is followed to the letter.
    places = {"STORE": store, "X": x, "Y": y, "OUT": store.with_name("s.tif")}
    words = usage.removeprefix("deo-cube: usage: deo-cube ").split()
    assert run(*(places.get(w, w) for w in words)) == 0
    assert run("export", store, "-o", store.with_name("s.tif")) == 2
    assert "OUT" in lines_of(capsys)[0]


def test_a_slip_is_corrected_as_suggested(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cube = store.with_name("cube.zarr")
    assert run("plan", cube, "--tlie", 320) == 2
    flag = suggested(lines_of(capsys)[0].removeprefix("deo-cube: "))[0]
    assert run("plan", cube, flag, 320) == 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["similar", "a.zarr", "1"], ["Y", "OUT"]),
        (["embed"], ["CUBE", "OUT"]),
        (["change", "a", "b", "c.tif", "d.tif"], ["'d.tif'"]),
        (["search", "i", "1,2", "--k", "ten"], ["--k", "'ten'"]),
        (["search", "i", "1,2", "--bbox", "1", "2", "3"], ["--bbox", "4"]),
        (["similar", "a", "one", "2", "s.tif"], ["X", "'one'"]),
        (["similar", "a", "1", "2", "s.tif", "--metric", "dot"], ["--metric", "cosine", "euclidean", "dot"]),
        (["plan", "c.zarr", "--batch-size"], ["--batch-size"]),
        (["completion", "fish"], ["bash", "zsh", "fish"]),
        (["assess", "m.tif", "r.gpkg", "--confidence", "high"], ["--confidence", "high"]),
    ],
)
def test_missing_surplus_and_wrong_values_are_named(
    wrong: list[str], named: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in ("200", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        assert run(*wrong) == 2
        message, remedy = lines_of(capsys)
        assert all(name in message for name in named), message
        assert f"deo-cube {wrong[0]} --help" in remedy


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["info", "em.zarr"], "X: "),
        (["plan", "cub.zarr"], "CUBE: "),
        (["pca", "em.zarr", "p.tif"], "STORE: "),
        (["index", "em.zarr", "i"], "STORE: "),
        (["search", "emb.inde"], "INDEX: "),
        (["sample", "emb.zarr", "place.csv", "o.csv"], "PLACES: "),
        (["sample", "em.zarr", "places.csv", "o.csv"], "STORE: "),
        (["similar", "em.zarr", "1", "2", "s.tif"], "STORE: "),
        (["similar", "emb.zarr", "600100", "4999900", "s.tif", "--negatives", "place.csv"], "--negatives: "),
        (["change", "em.zarr", "emb.zarr", "c.tif"], "A: "),
        (["change", "emb.zarr", "em.zarr", "c.tif"], "B: "),
        (["change-series", "em.zarr", "c.tif"], "STORE: "),
        (["aggregate", "em.zarr", "y.zarr"], "STORE: "),
        (["mosaic", "em.zarr", "emb.zarr", "m.zarr"], "STORE"),
        (["segment", "emb.zarr", "hea.safetensors", "m.tif"], "HEAD: "),
        (["assess", "ma.tif", "places.csv"], "MAP: "),
        (["assess", "map.tif", "place.csv"], "REFERENCE: "),
        (["assess", "map.tif", "places.csv", "--head", "hea.safetensors"], "--head: "),
        (["overviews", "em.zarr"], "STORE: "),
        (["evaluate", "tiny", "emb.inde"], "DATA: "),
        (["page", "em.zarr", "p"], "STORE: "),
        (["export", "em.zarr", "e.tif"], "STORE: "),
        (["publish", "em.zarr"], "STORE: "),
        (["verify", "em.zarr"], "NAME|STORE: "),
        (["view", "em.zarr", "--no-browser"], "STORE: "),
        (["view", "emb.zarr", "--no-browser", "--cube", "cub.zarr"], "--cube: "),
        (["view", "emb.zarr", "--no-browser", "--index", "emb.inde"], "--index: "),
    ],
)
def test_a_missing_path_names_its_argument_and_the_nearest_file(
    args: list[str], named: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("emb.zarr", "cube.zarr"):
        (tmp_path / name).symlink_to(store.with_name(name))
    (tmp_path / "emb.index").mkdir()
    (tmp_path / "head.safetensors").touch()
    (tmp_path / "places.csv").write_text("x,y,label\n1,2,a\n")
    deo_cube.open_embeddings(store).isel(time=0, embedding=0, drop=True).rio.to_raster(
        tmp_path / "map.tif", dtype="float32"
    )
    assert run(*args) == 2
    error = "\n".join(lines_of(capsys))
    assert f"deo-cube: {named}" in error
    assert "does not exist" in error
    missing = [a for a in args if "." in a and not (tmp_path / a).exists()]
    nearest = re.search(r"but (\S+) does", error)
    assert nearest, error
    assert (tmp_path / nearest[1]).exists()
    assert any(nearest[1].startswith(a[:2]) for a in missing)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b"hello world", "a text file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"II*\0 cut off", "a TIFF"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (bytes(range(64)), "damaged"),
    ],
)
@pytest.mark.parametrize("command", ["info", "plan", "assess", "pca"])
def test_a_file_that_is_not_a_raster_is_named_with_its_kind(
    command: str, content: bytes, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk.tif").write_bytes(content)
    (tmp_path / "places.csv").write_text("x,y,label\n1,2,a\n")
    rest = {"assess": [tmp_path / "places.csv"], "pca": [tmp_path / "out.tif"]}.get(command, [])
    assert run(command, tmp_path / "junk.tif", *rest) == 2
    (error,) = lines_of(capsys)
    assert error.startswith(f"deo-cube: {next(iter(SPELLINGS[command].positions.values()))}: ")
    assert "junk.tif" in error
    assert kind in error
    assert "Expected" in error


def test_the_index_is_opened_before_the_examples_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", tmp_path / "missing.index", "nowhere.gpkg") == 2
    assert "INDEX: " in lines_of(capsys)[0]


@pytest.mark.parametrize("command", SPELLINGS)
def test_help_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(command, "--help") == 0
    printed = capsys.readouterr().out
    assert max(map(len, (line for line in printed.splitlines() if not line.startswith("usage: ")))) <= 80
    assert not re.search(r"None[)}]|default: \)", printed)
    assert "\x1b" not in printed
    for word in SPELLINGS[command].positions.values():
        assert word.split()[0] in printed


@pytest.mark.parametrize("command", SPELLINGS)
def test_the_help_has_examples_that_are_calls(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    printed = capsys.readouterr().out
    assert f"$ deo-cube {command}" in printed
    for example in EXAMPLES[command]:
        parse(cli.COMMANDS[command], shlex.split(example), SPELLINGS[command])


def test_every_command_has_examples() -> None:
    assert EXAMPLES.keys() == cli.COMMANDS.keys()


@pytest.mark.parametrize(
    ("args", "said", "python"),
    [
        (["pca", "map.tif", "p.tif"], ["STORE: map.tif", "deo-cube embed"], "open_cube"),
        (["info", "head.safetensors"], ["X: head.safetensors", "an empty file"], "head.save(path) writes, not"),
        (["segment", "emb.zarr", "head.safetensors", "m.tif"], ["HEAD: head.safetensors", "an empty file"], "model="),
        (["assess", "map.tif", "places.csv", "--head", "head.safetensors"], ["--head: head.safetensors"], "path:"),
        (["search", "emb.zarr", "1,2"], ["INDEX: emb.zarr"], "path:"),
        (["plan", "emb.zarr"], ["CUBE", "deo-cube pca"], "emb.deo"),
        (["plan", "folder"], ["CUBE: folder"], "open_cube"),
        (["assess", "emb.zarr", "places.csv"], ["MAP", "deo-cube segment"], "head.predict"),
        (["change-series", "emb.zarr", "c.tif"], ["deo-cube change A B OUT"], "change(before"),
        (["sample", "emb.zarr", "map.tif", "o.csv"], ["PLACES: map.tif", ".gpkg"], "geopandas cannot"),
        (["info"], ["info needs X"], "comma"),
        (["change", "emb.zarr", "cube.zarr", "c.tif"], ["B: cube.zarr", "deo-cube embed"], "open_zarr"),
        (["change", "two.zarr", "emb.zarr", "c.tif"], ["A holds 2 dates", "--before"], "before.sel"),
        (["change", "emb.zarr", "two.zarr", "c.tif"], ["B holds 2 dates", "--after"], "after.sel"),
        (["similar", "two.zarr", "600100", "4999900", "s.tif"], ["--time"], "isel"),
        (["verify", "tinny"], ["NAME|STORE", "tiny"], "model="),
        (["similar", "emb.zarr", "1", "2", "s.png"], ["OUT", ".zarr"], "path:"),
    ],
)
def test_messages_are_in_words_of_the_shell(
    args: list[str], said: list[str], python: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emb.zarr").symlink_to(store)
    (tmp_path / "cube.zarr").symlink_to(store.with_name("cube.zarr"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "head.safetensors").touch()
    (tmp_path / "places.csv").write_text("x,y,label\n1,2,a\n")
    emb = deo_cube.open_embeddings(store)
    emb.isel(time=0, embedding=0, drop=True).rio.to_raster(tmp_path / "map.tif", dtype="float32")
    if "two.zarr" in args:
        deo_cube.synthetic_cube(size=64, times=2).deo.embed().deo.to_zarr(tmp_path / "two.zarr", progress=False)
    if args[0] == "change-series":
        emb.isel(time=0, drop=True).deo.to_zarr(tmp_path / "one.zarr", progress=False)
        args = [a.replace("emb.zarr", "one.zarr") for a in args]
    assert run(*args) == 2
    error = lines_of(capsys)[0]
    assert all(word in error for word in said), error
    assert python not in error


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_without_colours_has_none(environment: dict[str, str], coloured: bool) -> None:
    import pty

    own, terminal = pty.openpty()
    command = [sys.executable, "-m", "deo_cube", "models", "--help"]
    plain = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run(command, stdout=terminal, env=plain | environment, check=True)
    os.close(terminal)
    assert (b"\x1b[" in os.read(own, 100_000)) == coloured
    os.close(own)
