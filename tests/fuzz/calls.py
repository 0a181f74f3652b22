"""Public verbs with arguments that work, and values that no argument takes: what `test_bad_inputs` crosses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import deo_cube

NAN, INF = float("nan"), float("inf")

#: No count or size of pixels, for any verb.
NOT_SIZES = (-1, 1.5, NAN, INF, "3", True, 2**31, 10**30, [64], {}, b"3", 2j, np.float64(2.5), pd.Timestamp(0))
#: No number.
NOT_NUMBERS = (NAN, INF, "many", True, [1, 2], {}, 2j, pd.Timestamp(0))
#: No name of a choice.
NOT_WORDS = ("", "no such word", 3, ["x"], NAN)
#: Neither True nor False.
NOT_FLAGS = ("yes", 2, NAN, [True])


@cache
def cube() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=64, times=2, clouds=False, gaps=False).compute()


@cache
def emb() -> xr.DataArray:
    return cube().deo.embed().compute()


@cache
def head() -> Any:
    return deo_cube.fit_head("knn", emb().isel(time=0), points())


@cache
def classes() -> xr.DataArray:
    return deo_cube.classify(emb().isel(time=[0]), head()).compute()


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="deo_cube-fuzz-", ignore_cleanup_errors=True)


@cache
def _stored() -> Path:
    """Return a store that no call may change, for each is refused."""
    path = Path(_folder().name) / "store.zarr"
    emb().deo.to_zarr(path, progress=False)
    return path


@cache
def small_series() -> Path:
    from tests.series_model import series_model

    folder = Path(_folder().name) / "series"
    folder.mkdir()
    return series_model(folder)


def points() -> list[tuple[float, float, str]]:
    return [(float(emb().x[i]), float(emb().y[j]), "a" if i < 8 else "b") for i in (2, 5, 11, 14) for j in (3, 12)]


def place() -> tuple[float, float]:
    return float(emb().x[3]), float(emb().y[3])


@dataclass(frozen=True)
class Verb:
    """A verb with arguments that work, and what to try for each argument."""

    name: str
    call: Callable[..., Any]
    """Takes the arguments that are tried by keyword; `folder` (a temporary one) goes first."""
    bad: dict[str, tuple[Any, ...]]


def _verb(verb: str, call: Callable[..., Any], /, **bad: tuple[Any, ...]) -> Verb:
    return Verb(verb, call, bad)


def objects() -> dict[str, Any]:
    """Objects that are neither cubes nor embeddings, by what they are."""
    import geopandas as gpd
    from shapely.geometry import Point

    return {
        "path": Path("cube.zarr"),
        "text": "cube.zarr",
        "numpy": np.zeros((1, 2, 4, 4)),
        "none": None,
        "number": 3,
        "tree": xr.DataTree.from_dict({"/a": cube(), "/b": cube()}),
        "list": [cube(), cube()],
        "table": gpd.GeoDataFrame(geometry=[Point(0, 0)], crs=4326),
        "variable": cube().B02.variable,
        "items": {"type": "FeatureCollection", "features": []},
        "empty": xr.Dataset(),
        "scalar": xr.DataArray(1),
    }


def verbs() -> list[Verb]:
    sizes: dict[str, tuple[Any, ...]] = {n: NOT_SIZES for n in ("tile", "halo", "block")}
    radiometry = {
        "units": (*NOT_WORDS, None),
        "offset": (*NOT_NUMBERS[:4], {}, "raw", None),
        "nodata": ("none", True, {}, [1, 2], 2j),
    }
    c, e = cube(), emb()
    return [
        _verb(
            "embed",
            lambda _, **k: c.deo.embed(**k),
            **sizes,
            **radiometry,
            batch_size=(0, *NOT_SIZES),
            missing=NOT_WORDS,
            anchor=NOT_WORDS,
            edge=NOT_WORDS,
            dtype=("float8", 3, "", ["x"]),
            precision=NOT_WORDS,
            runtime=NOT_WORDS,
            layer=("no such layer", 3),
            device=("gpu", 3, ""),
            model=("vitc", 3, "", ["tiny"], NAN),
            normalize=("no such", 3),
            bands=("B02", 3, ["B99"], {"B99": "x"}, []),
            mask=(3, "no such", "", [True], np.zeros((4, 4))),
            weights=("no such file", 3),
        ),
        _verb(
            "plan",
            lambda _, **k: c.deo.plan(**k),
            **sizes,
            batch_size=(0, -1, "2"),
            dtype=("float8",),
            precision=("float8",),
            runtime=("onnx",),
            device=("gpu",),
            measure=NOT_FLAGS,
            edge=("x",),
        ),
        _verb(
            "match",
            lambda _, **k: c.deo.match(**k),
            bands=("B02", 3, ["B99"], {"B99": "x"}),
            missing=NOT_WORDS,
            model=("vitc", 3, ""),
            wavelength=NOT_FLAGS,
        ),
        _verb(
            "composite",
            lambda _, **k: c.deo.composite(**k),
            how=NOT_WORDS,
            **radiometry,
            freq=("no such", 3, ""),
            mask=(True, "scl", 3, np.zeros((4, 4))),
        ),
        _verb(
            "synthetic_cube",
            lambda _, **k: deo_cube.synthetic_cube(**{"size": 64, "times": 1, **k}),
            size=(0, *NOT_SIZES),
            times=(0, -1, 1.5, NAN, True, "x", 10**30),
            seed=(-1, 1.5, "x", NAN, True),
            bands=("B02", ["B99"], 3),
            units=NOT_WORDS,
            offset=(NAN, 5, "x", True),
            clouds=(2, -1, NAN, "x"),
            gaps=NOT_FLAGS,
            crs=("EPSG:0", "no such", 3, ""),
            resolution=(0, -10, NAN, INF, "10", True),
            dtype=("no such", 3),
            south_up=NOT_FLAGS,
            chunks=("x", 3),
        ),
        _verb(
            "segment",
            lambda _, **k: deo_cube.segment(c.isel(time=0), **{"head": head(), **k}),
            head=("no such head", 3, Path("none.safetensors")),
            probabilities=NOT_FLAGS,
            blend=NOT_FLAGS,
            tile=(-1, "3"),
        ),
        _verb(
            "classify",
            lambda _, **k: deo_cube.classify(e, **{"head": head(), **k}),
            head=("no such head", 3),
            probabilities=NOT_FLAGS,
        ),
        _verb(
            "seam_report",
            lambda _, **k: deo_cube.seam_report(c.isel(time=0), **k),
            tile=(-1, "3", NAN),
            halos=(3, ["x"], [-4], [NAN], []),
        ),
        _verb(
            "to_zarr",
            lambda f, **k: e.deo.to_zarr(**{"path": f / "e.zarr", "progress": False, **k}),
            path=(None, 3, "", ["x"]),
            retries=(-1, 1.5, "3", True, NAN),
            read_timeout=(-1, 0, "x", NAN, True),
            scheduler=("sometimes", 3, ""),
            num_workers=(0, -1, 1.5, "2", True),
            worker_timeout=(-1, "x", NAN, True),
            resume=("maybe", 3),
            overwrite=NOT_FLAGS,
            storage_options=(3, {"key": "x"}),
        ),
        _verb(
            "to_cog",
            lambda f, **k: deo_cube.to_cog(**{"array": e.isel(time=0), "path": f / "e.tif", **k}),
            path=(None, 3, ""),
            overviews=NOT_WORDS,
            compress=NOT_WORDS,
        ),
        _verb(
            "to_geoparquet",
            lambda f, **k: deo_cube.to_geoparquet(**{"emb": e.isel(time=0), "path": f / "e.parquet", **k}),
            path=(None, 3),
            pool=(0, *NOT_SIZES),
            geometry=NOT_WORDS,
            min_valid=(-1, 2, NAN, "x", True),
        ),
        _verb(
            "similar",
            lambda _, **k: e.deo.similar(**{"to": place(), "time": str(e.time.values[0])[:10], **k}),
            to=(None, 3, "x", (1,), (NAN, NAN), (1e9, 1e9), [], ("a", "b"), np.zeros(3)),
            metric=NOT_WORDS,
            time=("1999", 3.5, "x"),
            crs=("EPSG:0", "no such", 3),
        ),
        _verb(
            "change",
            lambda _, **k: e.deo.change(
                **{"before": str(e.time.values[0])[:10], "after": str(e.time.values[1])[:10], **k}
            ),
            before=("1999", None, 3.5, "x"),
            after=("1999", None, "x"),
            method=NOT_WORDS,
            calibration=(3, "x"),
            unchanged=([], 3, "x", [("1999", "2000")]),
        ),
        _verb("pca_rgb", lambda _, **k: e.deo.pca_rgb(**k), basis=(3, "no such", ["x"], np.zeros(3))),
        _verb(
            "cluster",
            lambda _, **k: e.deo.cluster(**k),
            k=(0, 1, *NOT_SIZES),
            seed=(-1, 1.5, "x", True),
            clusters=(3, "no such"),
        ),
        _verb(
            "fit_head",
            lambda _, **k: deo_cube.fit_head(**{"kind": "knn", "embeddings": e.isel(time=0), "labels": points(), **k}),
            kind=NOT_WORDS,
            labels=(None, 3, [], "no such.gpkg", [(0, 0)], [(NAN, NAN, "a")], pd.DataFrame()),
            time=("1999",),
            k=(0, -1, 1.5, "3", NAN, True),
            finetune=(-1, 1.5, "x", True),
        ),
        _verb("load_head", lambda _, **k: deo_cube.load_head(**k), path=("no such", 3, None, "", Path("."))),
        _verb(
            "open_cube",
            lambda _, **k: deo_cube.open_cube(**k),
            path=("no such.zarr", "no such.tif", 3, None, "", ["x"], "http://127.0.0.1:9/x.zarr", "s3x://b/x.zarr"),
        ),
        _verb(
            "load_cube",
            lambda _, **k: deo_cube.load_cube(**k),
            items=(None, 3, [], "no such.json", {}, {"type": "x"}, [3], {"type": "FeatureCollection", "features": 3}),
        ),
        _verb(
            "open_embeddings",
            lambda _, **k: deo_cube.open_embeddings(**k),
            store=("no such", 3, None, "", ["x"], "http://127.0.0.1:9/x"),
        ),
        _verb("verify_store", lambda _, **k: deo_cube.verify_store(**k), store=("no such", 3, None, "")),
        _verb("publish", lambda _, **k: deo_cube.publish(**k), store=("no such", 3, None, "")),
        _verb("stac_item", lambda _, **k: deo_cube.stac_item(**k), store=("no such", 3, None, "")),
        _verb("collection_of", lambda _, **k: deo_cube.collection_of(**k), store=("no such", 3, None)),
        _verb("model_item", lambda _, **k: deo_cube.model_item(**k), model=("vitc", 3, "")),
        _verb("card", lambda _, **k: deo_cube.card(**k), model=("vitc", 3, "", None)),
        _verb(
            "load_encoder",
            lambda _, **k: deo_cube.load_encoder(**{"name": "tiny", **k}),
            name=("vitc", 3, ""),
            device=("gpu", 3),
        ),
        _verb(
            "verify", lambda _, **k: deo_cube.verify(**{"name": "tiny", **k}), name=("vitc", 3, ""), device=("gpu", 3)
        ),
        _verb(
            "describe",
            lambda _, **k: deo_cube.describe(**{"alias": "x", "bands": ["B02"], "dim": 8, "patch": 4, **k}),
            alias=("", 3),
            bands=([], "B02", ["B99"], 3),
            dim=(0, *NOT_SIZES),
            patch=(0, *NOT_SIZES),
            tile=(0, *NOT_SIZES),
            halo=NOT_SIZES,
            units=NOT_WORDS,
            gsd=(0, -1, NAN, "x", True),
            status=NOT_WORDS,
            statistics=(3, {"B02": 1}),
        ),
        _verb(
            "describe_timm",
            lambda _, **k: deo_cube.describe_timm(
                **{"alias": "x", "model": "vit_tiny_patch16_224", "bands": ["B02"], **k}
            ),
            model=("no such", 3, ""),
            bands=([], ["B99"], 3),
            tile=(0, -1, "x"),
        ),
        _verb("register_encoder", lambda _, **k: deo_cube.register_encoder(**k), card=(3, "", None)),
        _verb(
            "search",
            lambda _, **k: deo_cube.search(**{"bbox": (9, 47, 9.1, 47.1), "catalogue": "http://127.0.0.1:9", **k}),
            bbox=(3, (1, 2), ("a",) * 4, (9, 47, 9, 47), (NAN,) * 4),
            max_cloud=(-1, 101, NAN, "x", True),
            max_items=(0, -1, 1.5, "x", True),
            timeout=(0, -1, NAN, "x", True),
            catalogue=("no such", 3, ""),
        ),
        _verb(
            "sample",
            lambda _, **k: deo_cube.sample(**{"data": e, "places": [place()], **k}),
            data=(3, None, "no such.zarr", np.zeros((2, 2)), [1]),
            places=(None, 3, "no such.gpkg", [], (1,), ("a", "b"), pd.DataFrame()),
            how=NOT_WORDS,
            weights=("none", 3, ["x"], NAN),
            time=("1999", 3.5, "x"),
            crs=("EPSG:0", "no such", 3),
            table=NOT_FLAGS,
        ),
        _verb(
            "embed_series",
            lambda _, **k: deo_cube.embed_series(**{"cube": c, "model": small_series(), **k}),
            cube=(3, None, "no such.zarr", np.zeros((2, 2))),
            model=("tiny", "prest", 3, "", None),
            freq=(3, "", "no such", [], [1], [("2024", "x")], NAN),
            how=NOT_WORDS,
            weights=("no such.pt", 3),
            bands=(["B02"], 3, {"B02": "no such"}),
            missing=NOT_WORDS,
            units=NOT_WORDS,
            offset=("x", NAN, [1, 2, 3]),
            nodata=("x", [1]),
            mask=("no such", 3, np.zeros((2, 2))),
            dtype=("int8", "float64", 3),
            device=("gpu", 3),
        ),
        _verb(
            "aggregate",
            lambda _, **k: deo_cube.aggregate(**{"emb": e, "freq": "year", **k}),
            emb=(3, None, "no such.zarr", np.zeros((2, 2))),
            freq=(None, 3, "", "no such", [], [1], [("2024", "x")], NAN),
            how=NOT_WORDS,
        ),
        _verb(
            "change_series",
            lambda _, **k: deo_cube.change_series(**{"emb": e, "min_dates": 1, **k}),
            emb=(3, None, "no such.zarr", np.zeros((2, 2))),
            season=NOT_WORDS,
            stable=(3, "x", True, np.zeros((4, 4), bool), e.isel(time=0)),
            false_alarms=(0, 0.6, -1, *NOT_NUMBERS),
            min_dates=(0, *NOT_SIZES),
        ),
        _verb(
            "applicability",
            lambda _, **k: deo_cube.applicability(**{"embeddings": e, "training": points(), **k}),
            embeddings=(3, None, "no such.zarr", np.zeros((2, 2))),
            training=(None, 3, "no such.gpkg", [], [(0, 0)], [(NAN, NAN, "a")], pd.DataFrame()),
            crs=("EPSG:0", "no such", 3),
            block=(0, -1, *NOT_NUMBERS),
        ),
        _verb(
            "assess",
            lambda _, **k: deo_cube.assess(**{"map": classes(), "reference": points(), **k}),
            map=(3, None, "no such.tif", np.zeros((4, 4)), e),
            reference=(None, 3, "no such.gpkg", [], [(0, 0)], [(NAN, NAN, "a")], pd.DataFrame()),
            time=("1999", "x"),
            crs=("EPSG:0", "no such", 3),
            mapping=(3, "x", [1]),
            strata=(3, "no such.tif", np.zeros((4, 4))),
            probabilities=(3, "x", e.isel(time=0)),
            embeddings=(3, "no such.zarr", np.zeros((4, 4))),
            head=(3, "no such", np.zeros(3)),
            training=(3, "no such.gpkg", []),
            reach=(0, -1, *NOT_NUMBERS),
            look=(-1, *NOT_SIZES),
            confidence=(0, 1, 2, *NOT_NUMBERS),
        ),
        _verb(
            "build_index",
            lambda f, **k: deo_cube.build_index(**{"emb": e, "path": f / "e.index", **k}),
            emb=(3, None, "no such.zarr", np.zeros((2, 2))),
            path=(None, 3, "", ["x"]),
            min_valid=(-1, 2, *NOT_NUMBERS),
            lists=(0, *NOT_SIZES),
            overwrite=NOT_FLAGS,
        ),
        _verb(
            "open_index",
            lambda _, **k: deo_cube.open_index(**{"path": "no such.index", **k}),
            path=("no such", 3, None, "", ["x"]),
        ),
        _verb(
            "add_overviews",
            lambda _, **k: deo_cube.add_overviews(**{"store": _stored(), "progress": False, **k}),
            store=("no such", 3, None, "", ["x"]),
            levels=(0, *NOT_SIZES),
            vectors=NOT_FLAGS,
            colors=NOT_FLAGS,
            basis=(3, "no such", ["x"], np.zeros(3)),
        ),
        _verb(
            "mosaic",
            lambda _, **k: deo_cube.mosaic(**{"embs": [e, e], **k}),
            embs=(3, None, [], "no such", ["no such.zarr"], [3], [np.zeros((2, 2))]),
        ),
        _verb(
            "page",
            lambda f, **k: deo_cube.page(**{"emb": e, "out": f / "page", "progress": False, **k}),
            emb=(3, None, "no such.zarr", np.zeros((2, 2))),
            out=(None, 3, ""),
            time=("1999", 3.5, "x"),
            labels=(3, "no such.gpkg", [], [(0, 0)], pd.DataFrame()),
            coarsen=(0, *NOT_SIZES),
            dims=(0, *NOT_SIZES),
            title=(3, ["x"]),
            max_bytes=(0, -1, 1.5, NAN, "3", True),
            overwrite=NOT_FLAGS,
        ),
        _verb(
            "plot",
            lambda _, **k: deo_cube.plot(**{"array": classes(), **k}),
            array=(3, None, "no such.tif", np.zeros((4, 4))),
            time=("1999", "x"),
            ax=(3, "x"),
            title=(3, ["x"]),
            legend=NOT_FLAGS,
            scale=NOT_FLAGS,
            height=(0, -1, *NOT_NUMBERS),
        ),
        _verb(
            "info",
            lambda _, **k: deo_cube.info(**{"x": "tiny", **k}),
            x=(3, None, "", "no such.zarr", ["x"], np.zeros(3)),
        ),
        _verb(
            "from_array",
            lambda _, **k: deo_cube.from_array(
                **{
                    "values": np.zeros((8, 6, 3)),
                    "bands": ["B02", "B03", "B04"],
                    "bbox": (500000, 5200000, 500060, 5200080),
                    "crs": 32632,
                    **k,
                }
            ),
            values=(3, None, "x", np.zeros(3), np.zeros((2, 2)), [], [np.zeros(3), np.zeros(4)], np.array(["x"])),
            bands=("B02", 3, None, [], ["B02"], ["B02"] * 3, [1, 2, 3]),
            bbox=(3, None, "x", (1, 2), ("a",) * 4, (NAN,) * 4, (1, 1, 1, 1), (2, 2, 1, 1)),
            crs=("EPSG:0", "no such", None),
            time=("no such", 3.5, ["2024-01-01", "2024-02-01"], ["x"]),
            dims=(3, "yxb", ["y", "x"], ["y", "x", "no such"], ["y", "y", "band"]),
        ),
        _verb(
            "explore",
            lambda _, **k: deo_cube.explore(**{"emb": e, **k}),
            port=(-1, 70000, "x", 1.5, True),
            heads=(3, {"a": 3}, {"a": "no such"}),
            cube=(3, "no such.zarr"),
            host=("no such host.", 3),
            height=(0, -1, "x"),
        ),
        _verb(
            "set_options",
            lambda _, **k: deo_cube.set_options(**k),
            model=(3, ""),
            dtype=("float8", 3),
            precision=("x",),
            compile=(3,),
            offline=("yes", 3),
            cache_dir=(3, None),
            nonsense=(1,),
        ),
    ]


def of_objects() -> Iterator[tuple[str, Callable[[Any], Any], str]]:
    """Verbs of a cube, then verbs of embeddings, each with the name of its first argument."""
    for name in ("embed", "plan", "match", "composite", "seam_report"):
        yield name, getattr(deo_cube, name), "cube"
    yield "embed_series", lambda o: deo_cube.embed_series(o, small_series()), "cube"
    yield "segment", lambda o: deo_cube.segment(o, head()), "cube"
    yield "classify", lambda o: deo_cube.classify(o, head()), "cube"
    p = place()
    yield "to_zarr", lambda o: deo_cube.to_zarr(o, "never.zarr"), "emb"
    yield "to_cog", lambda o: deo_cube.to_cog(o, "never.tif"), "array|emb"
    yield "to_geoparquet", lambda o: deo_cube.to_geoparquet(o, "never.parquet"), "emb"
    yield "similar", lambda o: deo_cube.similar(o, p), "emb"
    yield "change", lambda o: deo_cube.change(o, "2024-01", "2024-02"), "emb|before"
    yield "pca_rgb", deo_cube.pca_rgb, "emb"
    yield "cluster", deo_cube.cluster, "emb"
    yield "explore", deo_cube.explore, "emb"
    yield "fit_head", lambda o: deo_cube.fit_head("knn", o, points()), "emb"
    yield "aggregate", lambda o: deo_cube.aggregate(o, "year"), "emb"
    yield "change_series", deo_cube.change_series, "emb"
    yield "applicability", lambda o: deo_cube.applicability(o, points()), "emb"
    yield "build_index", lambda o: deo_cube.build_index(o, "never.index"), "emb"
    yield "page", lambda o: deo_cube.page(o, "never"), "emb"
