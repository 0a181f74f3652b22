"""A store on S3, spoken by a real server on loopback: written, resumed, verified, crowded, mended."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import xarray as xr

from deo_cube.cube.open import open_cube
from deo_cube.embedding.embed import embed
from deo_cube.errors import ArgumentError, MissingExtraError, StorageUnreachableError, StoreMismatchError
from deo_cube.store import layout, scheduler, storage
from deo_cube.store.open import is_embeddings, open_embeddings, status, verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at

obstore = pytest.importorskip("obstore")
moto_server = pytest.importorskip("moto.server")

SMALL: dict[str, Any] = {"model": "means", "dtype": "float32", "block": 48}
KEYS = {"access_key_id": "S3RVER", "secret_access_key": "S3RVER", "region": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    # Or any other S3, named by hand: DEO_CUBE_TEST_S3=http://127.0.0.1:4568
    if "DEO_CUBE_TEST_S3" in os.environ:
        yield os.environ["DEO_CUBE_TEST_S3"]
        return
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def options(endpoint: str) -> dict[str, Any]:
    return {"endpoint": endpoint, **KEYS}


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> str:
    import hashlib
    import urllib.request

    name = "b" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return f"s3://{name}/area/emb.zarr"


def objects(url: str, options: dict[str, Any]) -> dict[str, bytes]:
    store = storage.locate(url, options).store
    names = [o["path"] for batch in obstore.list(store) for o in batch]
    return {n: bytes(obstore.get(store, n).bytes()) for n in names}


def test_written_reopened_and_verified_by_url(bucket: str, options: dict[str, Any]) -> None:
    emb = embed(cube_at((100, 100)), **SMALL)
    got = to_zarr(emb, bucket, progress=False, storage_options=options)
    xr.testing.assert_equal(got.compute(), emb.compute())
    xr.testing.assert_equal(open_embeddings(bucket, storage_options=options).compute(), emb.compute())
    assert verify_store(bucket, storage_options=options).complete
    assert is_embeddings(bucket, storage_options=options)
    # The same by a store of one's own, and by fsspec's words for options.
    theirs = storage.locate(bucket, {"endpoint_url": options["endpoint"], "key": "S3RVER", "secret": "S3RVER"})
    xr.testing.assert_equal(to_zarr(emb, theirs, progress=False).compute(), emb.compute())
    nested = {"client_kwargs": {"endpoint_url": options["endpoint"]}, "key": "S3RVER", "secret": "S3RVER"}
    assert is_embeddings(bucket, storage_options=nested)  # as s3fs takes them
    with pytest.raises(ArgumentError, match="storage_options"):
        open_embeddings(bucket, storage_options={**options, "no_such_option": "x"})
    assert status(theirs.store).complete


@pytest.fixture
def mortal() -> Iterator[tuple[Callable[[], None], dict[str, Any]]]:
    """What stops a server for good, which has a bucket ``gone``, and the server's options."""
    import socket
    import urllib.request

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint": f"http://{host}:{port}", **KEYS}
    urllib.request.urlopen(urllib.request.Request(f"{options['endpoint']}/gone", method="PUT")).close()
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def stop() -> None:
            server.stop()
            holder.bind((host, port))  # so that no other server gets the port, and answers

        yield stop, options


def test_a_write_that_finds_no_store_is_an_error_of_ours(
    mortal: tuple[Callable[[], None], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, options = mortal
    write = layout.Writer.write

    def late(*args: Any) -> None:
        stop()
        write(*args)

    monkeypatch.setattr(layout.Writer, "write", late)
    emb = embed(cube_at((60, 60), times=1), **SMALL)
    with pytest.raises(StorageUnreachableError):
        to_zarr(emb, "s3://gone/late.zarr", progress=False, scheduler="synchronous", storage_options=options)


def test_a_store_that_does_not_answer_is_unreachable_and_not_damaged(
    mortal: tuple[Callable[[], None], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, options = mortal
    cube, path = cube_at((100, 100), times=1), "s3://gone/emb.zarr"
    place = storage.locate("s3://gone/cube.zarr", options)
    cube.to_zarr(place, consolidated=True, zarr_format=3)
    assert dict(open_cube(place).sizes)
    to_zarr(embed(cube, **SMALL), path, progress=False, storage_options=options)
    entry = layout.Record.entry
    answers = True

    def first_answers(record: Any, block: Any) -> Any:
        nonlocal answers
        found = entry(record, block)
        if answers:
            answers = False
            stop()  # between the entries and the blocks, when all else has been read
        return found

    monkeypatch.setattr(layout.Record, "entry", first_answers)
    with pytest.raises(StorageUnreachableError):
        verify_store(path, storage_options=options)
    assert not answers
    for call in (
        lambda: verify_store(path, storage_options=options),
        lambda: open_embeddings(path, storage_options=options),
        lambda: status(path, storage_options=options),
        lambda: open_cube(place),
        lambda: to_zarr(embed(cube, **SMALL), path, progress=False, storage_options=options),
    ):
        with pytest.raises(StorageUnreachableError):
            call()


def test_a_run_that_died_is_resumed_to_the_same_bytes_and_each_entry_is_an_object_written_last(
    bucket: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = embed(cube_at((100, 100), times=1), **SMALL)
    to_zarr(emb, bucket.replace("emb", "whole"), progress=False, storage_options=options)
    wanted = objects(bucket.replace("emb", "whole"), options)
    done: list[tuple[int, int, int]] = []
    from deo_cube.store import write

    run_job = write.run_job

    def dies(job: Any) -> None:
        if len(done) == 3:
            raise OSError("the machine is gone")
        run_job(job)
        done.append(job.block)

    monkeypatch.setattr(write, "run_job", dies)
    with pytest.raises(OSError, match="gone"):
        to_zarr(emb, bucket, progress=False, scheduler="synchronous", storage_options=options)
    there = objects(bucket, options)
    entries = {f"{layout.PATH}/c/{'/'.join(map(str, b))}" for b in done}
    assert {n for n in there if n.startswith(f"{layout.PATH}/c/")} == entries
    assert status(bucket, storage_options=options).done == 3
    with pytest.warns(UserWarning, match="not complete: 3 of 9 blocks"):
        open_embeddings(bucket, storage_options=options)
    monkeypatch.setattr(write, "run_job", run_job)
    to_zarr(emb, bucket, progress=False, storage_options=options)
    assert objects(bucket, options) == wanted


def test_two_that_begin_the_same_store_at_once_do_not_delete_each_others_blocks(
    bucket: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deo_cube.store import create

    emb = embed(cube_at((60, 60), times=1), **SMALL)
    existing, asked = create.existing, []

    def late(store: Any, *args: Any) -> Any:
        # The first look of the second process comes before the first process has begun.
        asked.append(1)
        return None if len(asked) == 1 else existing(store, *args)

    to_zarr(emb, bucket, progress=False, storage_options=options)
    before = objects(bucket, options)
    monkeypatch.setattr(create, "existing", late)
    to_zarr(emb, bucket, progress=False, storage_options=options)
    # Not the group's own object: servers without conditional writes have its metadata in another order.
    assert [v for n, v in objects(bucket, options).items() if n != "zarr.json" and before[n] != v] == []
    assert verify_store(bucket, storage_options=options).complete
    monkeypatch.setattr(create, "existing", existing)
    with pytest.raises(StoreMismatchError, match="dtype"):
        to_zarr(embed(cube_at((60, 60), times=1), **{**SMALL, "dtype": "float16"}), bucket, storage_options=options)
    to_zarr(emb, bucket, progress=False, overwrite=True, storage_options=options)
    assert objects(bucket, options) == before


def test_damage_is_found_and_mended(bucket: str, options: dict[str, Any]) -> None:
    emb = embed(cube_at((100, 100), times=1), **SMALL)
    to_zarr(emb, bucket, progress=False, storage_options=options)
    before = objects(bucket, options)
    store = storage.locate(bucket, options).store
    shard = next(n for n in sorted(before) if n.startswith("embeddings/c/"))
    obstore.put(store, shard, before[shard][:-7])
    found = verify_store(bucket, repair=True, storage_options=options)
    assert (len(found.damaged), found.repaired) == (1, True)
    assert not status(bucket, storage_options=options).complete
    to_zarr(emb, bucket, progress=False, storage_options=options)
    assert objects(bucket, options) == before


def test_the_options_travel_with_the_blocks(bucket: str, options: dict[str, Any], monkeypatch: Any) -> None:
    from deo_cube.store import write

    run_job = write.run_job
    monkeypatch.setattr(write, "run_job", lambda job: scheduler.unpickled_call(run_job, scheduler.pickled(job)))
    to_zarr(embed(cube_at((60, 60), times=1), **SMALL), bucket, progress=False, storage_options=options)
    assert verify_store(bucket, storage_options=options).complete


def test_a_bucket_that_is_not_there_is_said_with_what_mends_it(options: dict[str, Any]) -> None:
    emb = embed(cube_at((60, 60), times=1), **SMALL)
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        to_zarr(emb, "s3://nosuchbucket/e.zarr", progress=False, storage_options=options)
    gone = {**options, "endpoint": "http://127.0.0.1:9", "retry_config": {"max_retries": 0}}
    with pytest.raises(ConnectionError, match="(?s)cannot be reached.*storage_options"):
        open_embeddings("s3://bucket/e.zarr", storage_options=gone)


def test_what_is_no_store_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreMismatchError, match="are for URLs"):
        storage.locate(tmp_path / "e.zarr", {"key": "me"})
    with pytest.raises(StoreMismatchError, match="has its own already"):
        storage.locate(obstore.store.MemoryStore(), {"key": "me"})
    with pytest.raises(StoreMismatchError, match="a Zarr store object"):
        storage.locate({"a": 1})
    fake = type("Session", (), {"__module__": "icechunk.session"})()
    with pytest.raises(StoreMismatchError, match="icechunk session is not written to"):
        storage.locate(fake)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingExtraError, match=r"deo-cube\[store\]"):
        storage.locate("s3://bucket/e.zarr")
