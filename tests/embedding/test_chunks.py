"""A chunk is read once while there is room, tried again when it fails, and let go when the run ends."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from deo_cube.embedding import chunks
from deo_cube.embedding.chunks import ChunkReader, Load, forget, reader


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deo_cube.embedding.chunks.PAUSE", 0.0)


class Source:
    """Counts its reads; the first `fails` of each chunk fail."""

    def __init__(self, fails: int = 0, size: int = 1000) -> None:
        self.reads: Counter[str] = Counter()
        self.fails, self.size, self.lock = fails, size, threading.Lock()

    def load(self, key: str) -> np.ndarray:
        with self.lock:
            self.reads[key] += 1
            if self.reads[key] <= self.fails:
                raise OSError(f"cannot read {key}")
        return np.full(self.size, ord(key[0]), "uint8")

    def loads(self, keys: str, readers: int = 0) -> list[Load]:
        return [Load(k, lambda k=k: self.load(k), readers) for k in keys]


def test_values_come_in_order_and_each_is_read_once() -> None:
    source, r = Source(), ChunkReader()
    for asked in ("abc", "cba", "bd"):
        got = r.read(source.loads(asked), retries=0)
        assert [chr(v[0]) for v in got] == list(asked)
    assert source.reads == Counter("abcd")


def test_chunks_asked_for_at_once_by_many_are_read_once() -> None:
    source, r, gate = Source(), ChunkReader(), threading.Barrier(6)

    def ask() -> None:
        gate.wait()
        r.read(source.loads("abcdefgh"), retries=0)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert source.reads == Counter("abcdefgh")


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    source, r = Source(), ChunkReader(capacity=3500)
    for key in "abcd":
        r.read(source.loads(key), retries=0)
    r.read(source.loads("d"), retries=0)
    assert source.reads["d"] == 1
    r.read(source.loads("a"), retries=0)
    assert source.reads["a"] == 2
    assert r._bytes <= 3500


def test_a_chunk_is_let_go_when_all_who_want_it_have_had_it() -> None:
    source, r = Source(), ChunkReader()
    r.read(source.loads("a", readers=1) + source.loads("b", readers=2) + source.loads("c"), retries=0)
    assert list(r._held) == ["b", "c"]
    r.read(source.loads("b", readers=2) + source.loads("c"), retries=0)
    assert list(r._held) == ["c"]
    assert r._bytes == 1000
    assert source.reads == Counter("abc")


def test_a_failed_read_is_tried_again_and_only_that_one() -> None:
    source, r = Source(fails=2), ChunkReader()
    assert [chr(v[0]) for v in r.read(source.loads("ab"), retries=2)] == ["a", "b"]
    assert source.reads == Counter(a=3, b=3)


def test_a_read_that_keeps_failing_says_what_and_how_often_and_is_tried_anew_by_the_next_block() -> None:
    source, r = Source(fails=4), ChunkReader()
    with pytest.raises(OSError, match="cannot read a") as caught:
        r.read(source.loads("a"), retries=2)
    assert "3 attempts" in "".join(caught.value.__notes__)
    assert chr(r.read(source.loads("a"), retries=2)[0][0]) == "a"


def test_a_run_that_ended_is_forgotten() -> None:
    first = reader("one")
    assert reader("one") is first
    first.read(Source().loads("a"), retries=0)
    forget("one")
    assert first._bytes == 0
    assert reader("one") is not first
    forget("one")
    forget("never began")


def test_at_most_two_runs_are_held() -> None:
    for run in ("r1", "r2", "r3"):
        reader(run)
    assert list(chunks._readers)[-2:] == ["r2", "r3"]
    for run in ("r2", "r3"):
        forget(run)
