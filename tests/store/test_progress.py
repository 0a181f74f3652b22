"""Progress: a bar on a terminal, plain lines elsewhere, nothing where it is off; earlier runs are never speed."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube import progress
from deo_cube.cli import main
from deo_cube.embedding.embed import embed
from deo_cube.progress import Progress, duration
from deo_cube.store import create, storage
from deo_cube.store.open import verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at
from tests.store.test_write import SMALL

LINE = re.compile(r"embed means: (\d+) of 18 blocks done, [\d.e+-]+ km²/s, [\d.]+ (s|min|h) left")


class Terminal(io.StringIO):
    """A stream that a bar is drawn on."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(progress, "time", one)
    return one


def test_without_a_terminal_a_write_prints_a_line_per_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_zarr(embed(cube_at(), **SMALL), tmp_path / "e.zarr")
    error = capsys.readouterr().err
    assert "\r" not in error
    first, *steps, last = error.splitlines()
    assert first == "embed means: 0 of 18 blocks done"
    assert all(LINE.fullmatch(line) for line in steps), steps
    assert 5 <= len(steps) <= 10
    assert re.fullmatch(r"embed means: 18 of 18 blocks done in [\d.]+ s, [\d.e+-]+ km²/s", last)


def test_a_resumed_write_starts_at_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "e.zarr"
    to_zarr(embed(cube_at(), **SMALL), path, progress=False)
    assert capsys.readouterr().err == ""
    create.restart(storage.store_at(str(path)))
    record = create.record_of(str(path), create.attributes(str(path)))
    for column in range(3):
        record.forget((1, 0, column))
    to_zarr(embed(cube_at(), **SMALL), path)
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "compare inputs: 0 of 15 blocks done"
    lines = [line for line in printed if line.startswith("embed")]
    assert lines[0] == "embed means: 15 of 18 blocks done by earlier runs"
    assert lines[-1].startswith("embed means: 18 of 18 blocks done in ")
    verify_store(path, progress=True)
    assert capsys.readouterr().err.splitlines()[-1].startswith("verify: 18 of 18 blocks done in ")


def test_rate_and_time_left_count_this_run_alone(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, title="job", done=50, rate_unit="km²/s") as bar:
        clock.now = 10.0
        bar.advance(10, amount=20.0)
        assert (bar.rate, bar.seconds_left) == (2.0, 40.0)
        # Found done by another process meanwhile: less to do, no more speed. The first 50 were counted before.
        bar.count_existing(50)
        assert (bar.done, bar.ran) == (60, 10)
        bar.count_existing(20)
        assert (bar.done, bar.ran, bar.seconds_left) == (80, 10, 20.0)
    assert "60 of 100 blocks done, 2 km²/s, 40 s left" in capsys.readouterr().err


def test_a_slow_job_prints_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100_000, title="job") as bar:
        for second in range(1, 601):
            clock.now = float(second)
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "job: 0 of 100000 blocks done"
    assert lines[1] == "job: 1 of 100000 blocks done, 1 blocks/s, 27.8 h left" or "30 of 100000" in lines[1]
    assert 18 <= len(lines) <= 24


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, title="job", done=4) as bar:
        bar.advance(3)
        with bar.aside():
            print("aside", file=sys.stderr)
    drawn = terminal.getvalue()
    assert "\r" in drawn
    assert "4/10" in drawn
    assert "7/10" in drawn
    assert "\naside" not in drawn.strip("\n")
    assert "blocks done" not in drawn


@pytest.mark.parametrize("stream", [None, Terminal()])
def test_nothing_is_printed_where_it_is_off(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(3, title="job", shown=stream is None) as bar:
        bar.advance(3)
    assert stream is None or stream.getvalue() == ""


@given(st.integers(0, 50), st.lists(st.integers(1, 30), max_size=20))
def test_any_sequence_of_steps_is_counted_exactly(done: int, steps: list[int]) -> None:
    total = done + sum(steps)
    bar = Progress(total, title="job", done=done, shown=False)
    for n in steps:
        bar.advance(n)
    assert (bar.done, bar.ran, bar.earlier) == (total, sum(steps), done)
    assert bar.seconds_left is None if not steps else bar.seconds_left == 0


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(s) for s in (0.04, 3.21, 45, 600, 20000)] == ["0.04 s", "3.2 s", "45 s", "10 min", "5.6 h"]


def test_the_command_begins_and_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cube_at().to_zarr(tmp_path / "cube.zarr", zarr_format=3, consolidated=False)
    call = ["embed", str(tmp_path / "cube.zarr"), str(tmp_path / "e.zarr"), "--model", "means", "--block", "48"]
    with pytest.raises(SystemExit) as ended:
        main([*call, "--workers", "3"])
    assert ended.value.code == 0
    first, *_, last = capsys.readouterr().err.splitlines()
    begins = (
        r"deo-cube: \S+e\.zarr: 18 of 18 blocks to do, means, 3 threads on \w+(:\d)?, (about [\d.]+ |time not known)"
    )
    assert re.match(begins, first), first
    assert re.fullmatch(r"deo-cube: \S+e\.zarr: 18 blocks in [\d.]+ s, [\d.e+-]+ km²/s, [\d.]+ [kM]B on disk", last), (
        last
    )
    with pytest.raises(SystemExit):
        main([*call, "--overwrite", "--no-progress"])
    assert capsys.readouterr().err == ""


def test_a_map_of_classes_is_announced_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from deo_cube.store.report import log_computation

    emb = embed(cube_at(chunks={"time": 1}), **SMALL)
    out = tmp_path / "mean.zarr"
    with caplog.at_level("INFO", logger="deo_cube"), log_computation(emb, out):
        mean = emb.mean("embedding").drop_vars("valid").chunk(-1).to_dataset(name="mean")
        mean.to_zarr(out, zarr_format=3, consolidated=False)
    begins, ends = caplog.messages
    assert re.match(rf"{re.escape(str(out))}: 18 blocks to do, means on \w+", begins)
    assert re.fullmatch(rf"{re.escape(str(out))}: 18 blocks in [\d.]+ s, [\d.]+ [kM]?B on disk", ends)
