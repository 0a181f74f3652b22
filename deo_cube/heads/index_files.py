"""The files of a search index: a manifest, segments of inverted lists, and what each has been made from.

An index is a folder or a prefix of an object store::

    index.json               manifest: model, sources with their grids and dates, names and sizes of the files
    segment-<uuid>.faiss     inverted lists of at most `SEGMENT` vectors: int8 codes and the numbers of the patches
    covered-<uuid>.npy       per source, (dates, rows, columns) of blocks: the record's number of each indexed block
    sample-<uuid>.npy        float16 (n, D): a sample of the vectors, with which negatives are completed

Files other than the manifest never change, so that a cached copy is right as long as its name is in the manifest. The
manifest is replaced last: a process that is killed leaves the index as it was, with files that no manifest names.

A patch has a number: the first number of its layer (one date of one source) plus its row times the columns plus its
column. Numbers are never given twice, and stay when the index is extended.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import StorageError, StoreMismatchError, remedy
from deo_cube.options import get_option
from deo_cube.paths import is_url, not_found
from deo_cube.store import storage

__all__ = ["MANIFEST", "SEGMENT", "Files", "Layer", "Manifest", "Segment", "Source"]

Array = NDArray[Any]

MANIFEST = "index.json"
FORMAT = 1
SEGMENT = 2**21
"""Vectors of a segment, which is held in memory while it is filled: 0.4 GB at 192 numbers."""


@dataclass(frozen=True)
class Layer:
    """One date of a source."""

    time: str | None
    """ISO 8601, the text of a label that is not a date, or None without time."""
    first: int
    """Number of its first patch."""


@dataclass(frozen=True)
class Source:
    """A store, or an array, whose patches are in the index."""

    store: str | None
    """Path or URL; None for an array."""
    crs: str
    transform: tuple[float, ...]
    shape: tuple[int, int]
    layers: tuple[Layer, ...] = ()
    covered: str = ""
    """File of the blocks that are in the index."""

    @property
    def patches(self) -> int:
        """Patches of one layer."""
        return self.shape[0] * self.shape[1]

    def same_grid(self, other: Source) -> bool:
        """Return whether both have the same CRS, transform and shape."""
        return (self.crs, self.shape) == (other.crs, other.shape) and bool(
            np.allclose(self.transform, other.transform, rtol=1e-12, atol=1e-9)
        )


@dataclass(frozen=True)
class Segment:
    """One file of inverted lists."""

    file: str
    vectors: int


@dataclass(frozen=True)
class Manifest:
    """Contents of an index."""

    model: Mapping[str, str]
    """Attributes that decide whether vectors can be compared."""
    dim: int
    lists: int
    min_valid: float = 0.0
    sources: tuple[Source, ...] = ()
    segments: tuple[Segment, ...] = ()
    sample: str = ""
    revision: str = ""
    """Changes at every write."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of the index, under which its files are cached."""
    format: int = FORMAT

    @property
    def numbers(self) -> int:
        """Number after the last patch, indexed or not."""
        return sum(len(s.layers) * s.patches for s in self.sources)

    @property
    def vectors(self) -> int:
        """Indexed vectors."""
        return sum(s.vectors for s in self.segments)

    def files(self) -> set[str]:
        """Return the names of all files but the manifest."""
        return {self.sample, *(s.file for s in self.segments), *(s.covered for s in self.sources)} - {""}

    def to_json(self) -> bytes:
        """Return the manifest as it is stored."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read a manifest.

        Raises
        ------
        ValueError, KeyError, TypeError
            For anything else.
        """
        fields = json.loads(data)
        sources = [
            Source(**{**s, "transform": tuple(s["transform"]), "shape": tuple(s["shape"]), "layers": tuple(layers)})
            for s in fields.pop("sources")
            for layers in [[Layer(**x) for x in s["layers"]]]
        ]
        segments = tuple(Segment(**s) for s in fields.pop("segments"))
        return cls(**fields, sources=tuple(sources), segments=segments)


class Files:
    """Files of an index on disk or on an object store, of which this machine keeps a copy.

    Parameters
    ----------
    path : path, URL or zarr store
    storage_options : mapping, optional
        As for `to_zarr`.
    """

    def __init__(self, path: Any, storage_options: Mapping[str, Any] | None = None) -> None:
        self.place = storage.locate(path, storage_options if is_url(path) else None)
        self.store = storage.store_at(self.place)
        self.local = storage.is_local(self.place)
        self.shown = str(path)

    def manifest(self) -> Manifest | None:
        """Return the manifest; None where nothing is.

        Raises
        ------
        StoreMismatchError
            If something else is there, or the manifest is damaged or of a later version.
        """
        data = storage.read(self.store, MANIFEST)
        if data is None:
            if self.local and _foreign(Path(self.place)):
                raise StoreMismatchError(f"path: {self.shown} exists and is not a search index: choose another")
            return None
        try:
            version = json.loads(data)["format"]
            if version == FORMAT:
                return Manifest.from_json(data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreMismatchError(
                f"{self.shown}/{MANIFEST} is not the manifest of a search index ({error}): choose another path, or "
                "delete it and build it anew, "
                + remedy("deo_cube.build_index(store, path)", "deo-cube index STORE INDEX")
            ) from error
        raise StoreMismatchError(
            f"{self.shown} is a search index of format {version}, this version reads {FORMAT}: update deo_cube"
        )

    def existing(self) -> Manifest:
        """Return the manifest.

        Raises
        ------
        InputNotFoundError
            Where nothing is.
        StoreMismatchError
            As `manifest`.
        """
        found = self.manifest()
        if found is None:
            call = remedy(f"deo_cube.build_index(store, {self.shown!r})", f"deo-cube index STORE {self.shown}")
            raise not_found("path", self.shown, f"a search index: {call} writes one")
        return found

    def folder(self, name: str) -> Path:
        """Return the folder of this machine that holds the files of the index called `name`."""
        folder = Path(self.place) if self.local else Path(get_option("cache_dir")) / "indexes" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fetched(self, manifest: Manifest, file: str) -> Path:
        """Return the path of a file on this machine; it is fetched once from an object store.

        Raises
        ------
        StorageError
            If it is missing.
        """
        path = self.folder(manifest.name) / file
        if path.exists():
            return path
        data = None if self.local else storage.read(self.store, file)
        if data is None:
            raise StorageError(f"{self.shown}/{file} is missing: build the index anew with overwrite=True")
        partial = path.with_name(f"{file}.{uuid.uuid4().hex}{storage.PARTIAL}")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def written(self, manifest: Manifest, path: Path) -> None:
        """Write a file that is complete in the folder of this machine: synced on disk, sent to an object store."""
        if not self.local:
            storage.write(self.store, path.name, path.read_bytes())
            return
        with path.open("rb") as file:
            os.fsync(file.fileno())
        storage.sync_folder(path.parent)

    def array(self, manifest: Manifest, kind: str, values: Array) -> str:
        """Write an array and return the name of its file."""
        path = self.folder(manifest.name) / f"{kind}-{uuid.uuid4().hex}.npy"
        with path.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        self.written(manifest, path)
        return path.name

    def replace(self, manifest: Manifest, new: Manifest) -> None:
        """Write a new manifest in the place of `manifest`, and delete the files that only the old one names.

        Raises
        ------
        StoreMismatchError
            If another process wrote the index meanwhile.
        """
        data = storage.read(self.store, MANIFEST)
        present = None if data is None else Manifest.from_json(data)
        if present is not None and present.revision != manifest.revision:
            raise StoreMismatchError(
                f"{self.shown} was written by another process meanwhile: make the same call again, which adds what is "
                "missing"
            )
        storage.write(self.store, MANIFEST, new.to_json())
        gone = set() if present is None else present.files() - new.files()
        for file in gone:
            storage.delete(self.store, file)
            if not self.local and present is not None:
                (self.folder(present.name) / file).unlink(missing_ok=True)


def _foreign(path: Path) -> bool:
    """Return whether something else than the files of an index is at a path; a killed build may have left those."""
    if not path.is_dir():
        return path.exists()
    return any(name.partition("-")[0] not in ("segment", "covered", "sample") for name in os.listdir(path))
