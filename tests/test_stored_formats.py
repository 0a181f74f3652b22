"""Formats that people have files of, and names that caches hold: a change of the code does not change them unnoticed.

`python -m tests.test_stored_formats` records them anew, where a change is meant; the difference is then reviewed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import xarray as xr
import zarr

import deo_cube
from deo_cube import testing
from deo_cube.embedding import metadata
from deo_cube.testing import cube_at, means_card

RECORDED = Path(__file__).parent / "data" / "stored_formats.json"
#: Their versions decide compressed bytes, metadata documents and the tokens of graphs.
LIBRARIES = ("dask", "numcodecs", "numpy", "xarray", "zarr")
DTYPES = ("float32", "float16", "int8")


# Not the function of deo_cube.testing, which may change: the recorded fingerprint depends on this code and docstring.
def means(batch: torch.Tensor, patch: int = 4) -> torch.Tensor:
    """Patch means of each band, and the tile's mean of each band: what a patch is, and what attention sees."""
    patches = torch.nn.functional.avg_pool2d(batch, patch)
    tile = batch.mean((2, 3), keepdim=True).expand(-1, -1, *patches.shape[2:])
    return torch.cat([patches, tile], 1)


@contextmanager
def registered_means() -> Iterator[None]:
    with testing.registered_means():
        deo_cube.register_encoder(means_card(), functools.partial(functools.partial, means))
        yield


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def libraries() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES} | {"python": "{}.{}".format(*sys.version_info)}


def lazy_embeddings(dtype: str) -> xr.DataArray:
    cube = cube_at(chunks={"y": 50, "x": 64})
    return deo_cube.embed(cube, "means", dtype=dtype, units="dn", offset=0, nodata=0, block=48)


def object_digest(file: Path) -> str:
    """Digest of one object; of a metadata document without its attributes, which hold prose and versions."""
    if file.name != "zarr.json":
        return sha(file.read_bytes())
    document = json.loads(file.read_text(encoding="utf-8"))
    for node in (document, *document.pop("consolidated_metadata", {}).get("metadata", {}).values()):
        node.pop("attributes", None)
    return sha(json.dumps(document, sort_keys=True).encode())


def store_facts(dtype: str, folder: Path) -> dict[str, Any]:
    """What a store of `dtype` consists of: `everywhere` holds for all versions of libraries, `pinned` for those."""
    store = folder / f"{dtype}.zarr"
    deo_cube.to_zarr(lazy_embeddings(dtype), store, progress=False)
    group = zarr.open_group(store, mode="r")
    arrays = {n: sha(np.ascontiguousarray(group[n][...]).tobytes()) for n in ("embeddings", "valid")}  # type: ignore[index]
    identity = json.loads(str(group.attrs["deo_cube:identity"]))
    objects = {p.relative_to(store).as_posix(): p for p in sorted(store.rglob("*")) if p.is_file()}
    record = {key: file.read_bytes().hex() for key, file in objects.items() if "crc32/" in key}
    pinned = {k: object_digest(f) for k, f in objects.items() if "sealed" not in k and "spatial_ref/" not in k}
    return {
        "everywhere": {
            "values": arrays,
            "objects": sorted(objects),
            "record": record,
            "attributes": sorted(group.attrs),
            "identity": {k: v for k, v in identity.items() if k != "crs"},
        },
        "pinned": pinned,
    }


def graph_facts(folder: Path) -> dict[str, Any]:
    emb = lazy_embeddings("float16")
    layers = {name: len(layer) for name, layer in emb.__dask_graph__().layers.items()}
    return {"everywhere": sorted(layers.values()), "pinned": layers}


def head_facts(kind: str, folder: Path) -> dict[str, Any]:
    emb = lazy_embeddings("float32").isel(time=0).compute()
    labels = emb.isel(embedding=0, drop=True).round().astype("int64") % 3 + 1
    file = folder / f"{kind}.safetensors"
    deo_cube.fit_head(kind, emb, labels).save(file)
    with safetensors.safe_open(file, framework="numpy") as opened:
        tensors = {k: [str(t.dtype), *t.shape] for k, t in ((k, opened.get_tensor(k)) for k in sorted(opened.keys()))}
        fields = {k: sorted(json.loads(v)) if v.startswith("{") else "" for k, v in opened.metadata().items()}
    return {"everywhere": {"tensors": tensors, "metadata": fields}, "pinned": None}


def card_facts(folder: Path) -> dict[str, Any]:
    cards = {"means": means_card(), "vitb": deo_cube.card("vitb"), "swinb": deo_cube.card("swinb")}
    return {"everywhere": {k: sorted(json.loads(c.to_json())) for k, c in cards.items()}, "pinned": None}


FACTS = {
    **{f"store {dtype}": functools.partial(store_facts, dtype) for dtype in DTYPES},
    "graph": graph_facts,
    "head": functools.partial(head_facts, "knn"),
    "head ridge": functools.partial(head_facts, "ridge"),
    "card": card_facts,
}


@pytest.fixture(autouse=True)
def means_encoder() -> Iterator[None]:
    with registered_means():
        yield


@pytest.mark.parametrize("subject", FACTS)
def test_stored_formats_are_as_recorded(subject: str, tmp_path: Path) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    facts = json.loads(json.dumps(FACTS[subject](tmp_path)))
    assert facts["everywhere"] == recorded[subject]["everywhere"]
    if libraries() == recorded["made with"]:
        assert facts["pinned"] == recorded[subject]["pinned"]


def test_a_store_whose_reasons_were_worded_otherwise_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emb, store = lazy_embeddings("float16"), tmp_path / "emb.zarr"
    radiometry = json.loads(emb.attrs["deo_cube:radiometry"])
    older = emb.assign_attrs({"deo_cube:radiometry": metadata.to_json({**radiometry, "why": ["in other words"]})})
    with monkeypatch.context() as patched:
        patched.setattr(metadata, "decisive", dict)  # earlier versions had the reasons in the identity
        deo_cube.to_zarr(older, store, progress=False)
    assert "in other words" in str(zarr.open_group(store).attrs["deo_cube:identity"])
    entry = next((store / "progress").rglob("c/0/0/0"))
    entry.unlink()
    deo_cube.to_zarr(emb, store, progress=False)
    assert entry.exists()
    assert deo_cube.verify_store(store)


def record(folder: Path) -> None:
    """Write the present facts."""
    with registered_means():
        facts: dict[str, Any] = {"made with": libraries()} | {k: f(folder) for k, f in FACTS.items()}
    RECORDED.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        record(Path(made))
