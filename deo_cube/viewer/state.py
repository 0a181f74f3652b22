"""The state behind a page: the store, its layers, examples, labels and the head that is fitted on them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer

from deo_cube.constants import Attribute
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.extras import require
from deo_cube.heads.assess import ClassAssessment, assess
from deo_cube.heads.base import Head, check_model
from deo_cube.heads.head import fit_head, load_head
from deo_cube.heads.pca import fit_pca, pca_rgb
from deo_cube.heads.similar import BACKGROUND, direction, similar
from deo_cube.heads.splits import LeakWarning
from deo_cube.heads.tables import form_of, located
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims
from deo_cube.store.open import is_embeddings, open_embeddings
from deo_cube.store.storage import locate
from deo_cube.viewer.index_search import IndexSearch
from deo_cube.viewer.jobs import BackgroundJob, JobQueue
from deo_cube.viewer.layers import (
    ClassLayer,
    ColourLayer,
    PCALayer,
    QuantityLayer,
    ScoreLayer,
    Tile,
    TileVectors,
    TrueColour,
    write_cog,
    write_geojson,
)
from deo_cube.viewer.server import BadRequest, LabelSet
from deo_cube.viewer.tiles import TILE_BYTES, TileGrid, TileSource

__all__ = ["LayerState", "ViewerState", "assess_layer", "mapping_by_name", "result_of", "without_training"]


# --- Assess a class layer of the page against reference labels, as JSON for the page ---

SHOWN = 12
"""Doubtful places that are shown."""


def without_training(labels: LabelSet, training: LabelSet | None) -> LabelSet:
    """Return the labels whose geometry did not train the head."""
    if training is None:
        return labels
    used = {json.dumps(g, sort_keys=True) for g in training.geometries}
    kept = [n for n, g in enumerate(labels.geometries) if json.dumps(g, sort_keys=True) not in used]
    return LabelSet(
        labels.names,
        labels.colors,
        tuple(labels.geometries[n] for n in kept),
        tuple(labels.codes[n] for n in kept),
    )


def mapping_by_name(layer: ClassLayer, labels: LabelSet) -> dict[str, str]:
    """Return the class of the head for each class of the labels; one that the head lacks stays as it is."""
    own = {e["name"]: n for e, n in zip(layer.legend(), layer.head.classes.names, strict=True)}
    # Files often have the codes of the map instead of its names.
    own = {str(k): n for k, n in zip(layer.head.classes.codes, layer.head.classes.names, strict=True)} | own
    return {name: str(own.get(name, name)) for code, name in labels.names.items() if code in labels.codes}


def assess_layer(
    layer: ClassLayer, emb: xr.DataArray, reference: Any, training: LabelSet | None, **options: Any
) -> tuple[ClassAssessment, str]:
    """Return the assessment of a layer on one date of embeddings, and the warning of a leak; "" without one."""
    trained: dict[str, Any] = {}
    if training is not None:
        trained = {"training": training.to_geopandas(), "training_column": "class"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = assess(
            layer.head.predict(emb), reference, embeddings=emb, head=layer.head, look=SHOWN, **trained, **options
        )
    assert isinstance(result, ClassAssessment)
    leaks = [str(w.message) for w in caught if issubclass(w.category, LeakWarning)]
    return result, leaks[0] if leaks else ""


def result_of(result: ClassAssessment, leak: str, layer: ClassLayer, crs: Any) -> dict[str, Any]:
    """Return an assessment as the page reads it, with the names of classes that the user gave them."""
    shown = dict(zip(layer.head.classes.names, (e["name"] for e in layer.legend()), strict=True))
    names = [str(shown.get(n, n)) for n in map(str, result.table.index)]
    keys = ("mapped_ha", "users", "users_low", "users_high", "producers", "producers_low", "producers_high")
    classes = [
        {"name": name, "color": color, "places": int(row["places_reference"])} | {k: _number(row[k]) for k in keys}
        for name, color, (_, row) in zip(names, result.colors, result.table.iterrows(), strict=True)
    ]
    doubtful: list[dict[str, Any]] = result.look_first.to_dict("records")  # type: ignore[assignment]
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    look = []
    for row in doubtful:
        lon, lat = to_degrees.transform(row["x"], row["y"])
        look.append(
            {
                "lon": float(lon),
                "lat": float(lat),
                "class": str(shown.get(row["map"], row["map"])),
                "margin": _number(row["margin"]),
                "dissimilarity": _number(row["dissimilarity"]),
                "reason": str(row["reason"]),
            }
        )
    return {
        "overall": {k: _number(v) for k, v in result.overall._asdict().items()},
        "confidence": result.confidence,
        "places": int(result.confusion.to_numpy().sum()),
        "classes": classes,
        "confusion": result.confusion.to_numpy().astype(int).tolist(),
        "leak": leak,
        "notes": list(result.notes),
        "look_first": look,
    }


def _number(value: Any) -> float | None:
    """Return a number as JSON takes it: None for NaN."""
    return round(float(value), 4) if np.isfinite(value) else None


Array = NDArray[Any]
# --- state of the viewer ---

EXPORT_BYTES = 4 * 2**30
"""Largest size of all exported files on disk, and of each while it is written."""
BEST_PATCHES = 2**24
"""Patches per date among which results are found without an index."""
BEST_STRIP = 64
"""Rows that are compared at a time for results."""
BEST_APART = 3
"""Patches by which results are apart."""
AUTOMATIC_BYTES = 2**30
"""Overviews up to this size (bytes per date) are loaded automatically; larger ones only on request."""


@dataclass
class LayerState:
    """A layer on the page.

    Parameters
    ----------
    title : str
    layer : ColourLayer, ScoreLayer, ClassLayer or TrueColour
    version : int
        Increases with each change, so that browsers drop old tiles.
    note : str
        Explanation for the legend.
    facts : dict
        What else the page needs to know.
    """

    title: str
    layer: Any
    version: int = 1
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class ViewerState:
    """State of a page, and the actions on it.

    Parameters
    ----------
    emb : DataArray
        Embeddings (time, embedding, y, x) or (embedding, y, x), on a map.
    cube : Dataset or DataArray, optional
        Drawn in true colour as the background.
    heads : mapping of str to Head or path
        Drawn as layers, under these names.
    source : TileSource, optional
        How vectors are read. Default: through `emb`.
    title : str
    index : Index or path, optional
        Results are found in it instead of the store.
    reference : table or path, optional
        Reference places for an assessment of class layers.
    """

    def __init__(
        self,
        emb: xr.DataArray,
        *,
        cube: xr.Dataset | xr.DataArray | None = None,
        heads: Mapping[str, Head | str | Path] | None = None,
        source: TileSource | None = None,
        title: str = "embeddings",
        index: Any = None,
        reference: Any = None,
    ) -> None:
        order = ("time", "embedding", *spatial_dims(emb))
        emb = emb.transpose(*(d for d in order if d in emb.dims))
        self.emb = as_embeddings(emb)
        if 0 in self.emb.shape:
            raise ArgumentError(f"emb must have at least one patch, got {dict(self.emb.sizes)}")
        self.title = title
        self.grid = TileGrid(geobox(self.emb))
        self.source = TileSource.of(self.emb) if source is None else source
        self.vectors = TileVectors(self.emb, self.grid, self.source)
        self.times = _times(self.emb)
        apart = (BEST_APART + 0.5) * self.grid.cell
        self.index = None if index is None else IndexSearch.of(index, self.emb, apart)
        self.jobs, self.lock, self.labels = JobQueue(self._delete_file), threading.Lock(), LabelSet()
        self.examples: list[dict[str, Any]] = []
        if reference is not None:
            form_of(reference)
        self.reference = located(reference, "reference") if isinstance(reference, str | Path) else reference
        self.training: LabelSet | None = None
        self.assessment: ClassAssessment | None = None
        self.layers: dict[str, LayerState] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="deo_cube_view_", ignore_cleanup_errors=True)
        if cube is not None:
            true = TrueColour.of(cube, self.emb)
            self.layers["true"] = LayerState("True colour", true, note=true.note)
        basis, note = self._pca_basis()
        self.layers["pca"] = LayerState("PCA of embeddings", PCALayer(self.vectors, basis), note=note)
        for n, (name, value) in enumerate((heads or {}).items()):
            head = load_head(value) if isinstance(value, str | Path) else value
            if not isinstance(head, Head):
                raise ArgumentTypeError(f"heads[{name!r}] must be a head or the path of one, got {type(head).__name__}")
            check_model(head, self.emb)
            if not len(head.classes):
                quantity = QuantityLayer.of(self.vectors, head)
                self.layers[f"head{n}"] = LayerState(name, quantity, note=quantity.note())
                continue
            layer = ClassLayer(self.vectors, head)
            self.layers[f"head{n}"] = LayerState(name, layer, facts={"classes": layer.legend()})

    @classmethod
    def of_store(cls, store: Any, **options: Any) -> ViewerState:
        """Return the state for a store, whose squares are read directly from their chunks."""
        emb = open_embeddings(store)
        tile_bytes = options.pop("tile_bytes", TILE_BYTES)
        if not is_embeddings(store):
            # A store in another layout that `open_embeddings` knows.
            return cls(emb, source=TileSource.of(emb, tile_bytes=tile_bytes), **options)
        # Without Dask: a store of a million chunks answers as fast as a small one.
        whole = xr.open_zarr(locate(store), zarr_format=3, consolidated=False, chunks=None)["embeddings"]
        y, x = spatial_dims(emb)
        # The store may begin with a margin that `open_embeddings` removes; its chunks begin there too.
        top, left = (int(np.abs(whole[d].values - emb[d].values[0]).argmin()) for d in (y, x))
        step = (int(whole.encoding["chunks"][-2]), int(whole.encoding["chunks"][-1]))
        variable = whole.variable

        def read(t: int, rows: slice, cols: slice) -> Array:
            window = (slice(None), slice(rows.start + top, rows.stop + top), slice(cols.start + left, cols.stop + left))
            return np.asarray(variable[(t, *window) if variable.ndim == 4 else window].values)

        shape = (emb.sizes.get("time", 1), emb.sizes["embedding"], emb.sizes[y], emb.sizes[x])
        offset = (top % step[0], left % step[1])
        source = TileSource(
            read, shape, step=step, offset=offset, itemsize=variable.dtype.itemsize, tile_bytes=tile_bytes
        )
        return cls(emb, source=source, **options)

    def _pca_basis(self) -> tuple[Any, str]:
        """Return the basis of PCA colours (None: the one bundled with the model) and a note on it."""
        one = np.zeros((1, self.source.shape[1]), "float32")
        if self.source.shape[1] < 3:
            raise ArgumentError(
                f"emb must have vectors of length 3 or more for PCA colours, got {self.source.shape[1]}"
            )
        if Attribute.MODEL_FINGERPRINT in self.emb.attrs:
            # `pca_rgb` itself states whether a basis comes with the model.
            probe = pca_rgb(self.vectors.frame(one).chunk())
            if probe.attrs["pca_basis"] == "bundled with the model":
                return None, "the model's fixed basis: the same colours everywhere"
        n = len(self.times)
        sample = self.vectors.sample(sorted({0, n // 3, 2 * n // 3, n - 1}))
        if len(sample) < 3:
            raise ArgumentError("emb must have valid vectors, found fewer than 3 in a sample")
        subset = np.linspace(0, len(sample) - 1, min(len(sample), 16384)).astype(int)
        return fit_pca(self.vectors.frame(sample[subset])), "fitted on a sample of these embeddings"

    def describe(self) -> dict[str, Any]:
        """Return what the page needs at its start."""
        a, s = self.emb.attrs, self.source
        return {
            "title": self.title,
            "model": str(a.get(Attribute.MODEL_ALIAS, a.get(Attribute.MODEL, ""))),
            "untrained": a.get(Attribute.WEIGHTS_STATUS) == "untrained",
            "shape": {"times": s.shape[0], "embedding": s.shape[1], "rows": s.shape[2], "columns": s.shape[3]},
            "crs": self.crs,
            "cell": self.grid.cell,
            "times": self.times,
            "bounds": self.grid.bounds,
            "outline": self.grid.outline,
            "zoom": self.grid.native_zoom,
            "layers": [self.layer_facts(k) for k in self.layers],
            "reference": self._reference_name(),
            "index": None if self.index is None else self.index.describe(),
        }

    @property
    def crs(self) -> str:
        """EPSG code or name of the CRS."""
        crs = self.grid.box.crs
        return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)

    def layer_facts(self, id: str) -> dict[str, Any]:
        """Return what the page needs of a layer."""
        s = self.layers[id]
        source = s.layer.source if isinstance(s.layer, TrueColour) else self.source
        facts = {"id": id, "title": s.title, "kind": s.layer.kind, "version": s.version, "note": s.note, **s.facts}
        facts |= {"bytes": source.bytes_per_time, "automatic": source.bytes_per_time <= AUTOMATIC_BYTES}
        if id == "true":
            facts["attribution"] = s.layer.credit
            cube_times = s.layer.times
            if self.times and len(cube_times):
                facts["dates"] = [str(cube_times[s.layer.nearest(t, i)])[:10] for i, t in enumerate(self.times)]
        return facts

    def tile(self, id: str, t: int, z: int, x: int, y: int) -> Tile:
        """Return a tile of a layer."""
        state = self.layers.get(id)
        if state is None:
            raise BadRequest(f"there is no layer {id!r:.40}", 404)
        layer = state.layer
        if isinstance(layer, TrueColour):
            t = layer.nearest(self.times[t], t)
        tile: Tile = layer.tile(t, z, x, y)
        return tile

    def place(self, t: int, lon: float, lat: float) -> dict[str, Any]:
        """Return cell, coordinates and validity at a place."""
        row, col, x, y = self.grid.at(lon, lat)
        valid = bool(np.isfinite(self.source.vector(t, row, col)).all())
        return {"row": row, "column": col, "x": x, "y": y, "crs": self.crs, "valid": valid}

    def find_similar(
        self,
        t: int,
        places: Sequence[tuple[float, float]],
        negatives: Sequence[tuple[float, float]] = (),
        ids: Sequence[int] = (),
        negative_ids: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Compare every patch with those at `places`, and against those at `negatives`, at date `t`; show the scores.

        `ids` and `negative_ids` are patches of the index that are examples too.

        Raises
        ------
        BadRequest
            For places outside or without a valid embedding.
        """
        (examples, vectors), (counter, against) = self._examples(t, places), self._examples(t, negatives)
        marked: list[dict[str, Any]] = []
        unlike: list[dict[str, Any]] = []
        if ids or negative_ids:
            if self.index is None:
                raise BadRequest("ids are patches of an index, and none is open: pass index=, or examples as places")
            (marked, more), (unlike, others) = self.index.examples(ids), self.index.examples(negative_ids)
            vectors, against = np.concatenate([vectors, more]), np.concatenate([against, others])
        sample = self.source.sample(t)
        background = _spread(sample, BACKGROUND) if self.index is None else self.index.background
        fitted = direction(vectors, against, background) if len(against) else vectors
        layer = ScoreLayer(self.vectors, fitted)
        facts = _score_facts(layer.scores(sample))
        facts["examples"] = [[e["lon"], e["lat"]] for e in examples]
        facts["negatives"] = [[e["lon"], e["lat"]] for e in counter]
        facts |= {"marked": marked, "unlike": unlike}
        date = f" of {self.times[t][:10]}" if len(self.times) > 1 else ""
        n = len(vectors)
        others_note = f", unlike {len(against)}" if len(against) else ""
        note = f"cosine similarity to {n} example{'s' * (n > 1)}{others_note}{date}"
        with self.lock:
            self.examples = examples
            self._replace_layer("similar", "Similarity", layer, note, facts)
        return self.layer_facts("similar")

    def _examples(self, t: int, places: Sequence[tuple[float, float]]) -> tuple[list[dict[str, Any]], Array]:
        """Return what is known of the patches at places, and their vectors (n, D)."""
        examples, vectors = [], []
        for lon, lat in places:
            row, col, x, y = self._cell_at(lon, lat)
            vector = self.source.vector(t, row, col)
            if not np.isfinite(vector).all():
                raise BadRequest(
                    f"there is no valid embedding at {lat:.5f}, {lon:.5f} on this date (a cloud, or nodata): choose "
                    "another place or date"
                )
            examples.append({"lon": lon, "lat": lat, "x": x, "y": y, "time": t})
            vectors.append(vector)
        return examples, np.stack(vectors) if vectors else np.empty((0, self.source.shape[1]), "float32")

    def best(
        self,
        t: int,
        count: int,
        *,
        bounds: tuple[float, float, float, float] | None = None,
        time: slice | None = None,
    ) -> BackgroundJob:
        """Find the patches with the greatest scores of the layer `similar` at date `t`, in the background.

        The examples and their neighbours, and neighbours of better results, are left out, so that each result shows
        another place. With an index, results are of any date and store, or only those within `bounds` (west, south,
        east, north in degrees) and `time`.

        Raises
        ------
        BadRequest
            Before there are examples, for stores with more patches than `BEST_PATCHES`, and for `bounds` and `time`
            without an index.
        """
        state = self.layers.get("similar")
        if state is None:
            raise BadRequest("results need examples: find what is similar to a place first")
        if self.index is not None:
            return self._best_of_index(state, count, bounds, time)
        if bounds is not None or time is not None:
            raise BadRequest("bounds and dates limit the results of an index, and none is open: pass index=")
        _, _, rows, cols = self.source.shape
        if rows * cols > BEST_PATCHES:
            raise BadRequest(
                f"results are found among at most {BEST_PATCHES:,} patches, this store has {rows * cols:,} per date: "
                "build an index, deo_cube.build_index, and search it"
            )
        labelled = [*state.facts["examples"], *state.facts["negatives"]]
        taken = [self._cell_at(lon, lat)[:2] for lon, lat in labelled]

        def work() -> Iterator[float]:
            scores = np.full((rows, cols), -np.inf, "float32")
            for top in range(0, rows, BEST_STRIP):
                strip = slice(top, min(top + BEST_STRIP, rows))
                scores[strip] = np.nan_to_num(state.layer.cells(t, strip, slice(0, cols))[0], nan=-np.inf)
                yield strip.stop / rows
            for r, c in taken:
                _blank(scores, r, c)
            for _ in range(count):
                row, col = divmod(int(scores.argmax()), cols)
                if not np.isfinite(scores[row, col]):
                    break
                lon, lat = self.grid.lonlat(row, col)
                found.append({"lon": lon, "lat": lat, "score": round(float(scores[row, col]), 4)})
                _blank(scores, row, col)

        found: list[dict[str, float]] = []
        return self.jobs.start("Finding results", work, lambda _: {"results": found, "version": state.version})

    def _best_of_index(
        self, state: LayerState, count: int, bounds: tuple[float, float, float, float] | None, time: slice | None
    ) -> BackgroundJob:
        """Find results in the index, on any date and in any of its stores."""
        index, f = self.index, state.facts
        assert index is not None
        marked = [(e["lon"], e["lat"]) for e in (*f["marked"], *f["unlike"])]
        taken = [(lon, lat) for lon, lat in (*f["examples"], *f["negatives"], *marked)]
        backgrounds = {"pca": self.grid} | ({"true": self.layers["true"].layer.grid} if "true" in self.layers else {})

        def work() -> list[dict[str, Any]]:
            results = index.search(state.layer.examples, count, taken, bounds=bounds, time=time)
            for r in results:
                r["inside"] = _contains(self.grid, r["lon"], r["lat"])
                dates = [n for n, date in enumerate(self.times) if not date or not r["date"] or date == r["date"]]
                r["t"] = dates[0] if dates else None
                r["pictures"] = [id for id, grid in backgrounds.items() if _contains(grid, r["lon"], r["lat"])]
            return results

        return self.jobs.start("Searching the index", work, lambda r: {"results": r, "version": state.version})

    def _replace_layer(self, id: str, title: str, layer: Any, note: str, facts: dict[str, Any]) -> None:
        """Show a layer instead of the one with the same id. The caller holds the lock."""
        old = self.layers.get(id)
        self.layers[id] = LayerState(title, layer, 1 + (old.version if old else 0), note, facts)

    def _cell_at(self, lon: float, lat: float) -> tuple[int, int, float, float]:
        try:
            return self.grid.at(lon, lat)
        except ValueError as error:
            raise BadRequest(str(error)) from None

    @property
    def similarity(self) -> xr.DataArray | None:
        """Similarity to the examples of the page (time, y, x), lazy; None before there are any."""
        state = self.layers.get("similar")
        if state is None:
            return None
        return similar(self.emb, xr.DataArray(state.layer.examples, dims=("case", "embedding")))

    @property
    def head(self) -> Head | None:
        """Head that was fitted on the labels of the page; None before."""
        state = self.layers.get("classes")
        return None if state is None else state.layer.head

    @property
    def classes(self) -> xr.DataArray | None:
        """Classes of that head (time, y, x), lazy."""
        return None if self.head is None else self.head.predict(self.emb)

    def fit(self, kind: str, t: int | None) -> BackgroundJob:
        """Fit a head on the labels in the background, and show its classes; `t` is None for all dates."""
        labels = self.labels
        if len(set(labels.codes)) < 2:
            raise BadRequest("labels must be of at least two classes for a classified map: add labels of another class")
        require("geopandas", "sklearn", extra="view", purpose="fitting on labels")
        table = labels.to_geopandas()

        def work() -> Head:
            emb = self._window_around(table)
            emb = emb if t is None or "time" not in emb.dims else emb.isel(time=t)
            colors = {k: labels.colors[k] for k in sorted(set(labels.codes))}
            return fit_head(kind, emb, table, column="class", names=dict(labels.names), colors=colors)  # type: ignore[arg-type]

        def finish(head: Head) -> dict[str, Any]:
            layer = ClassLayer(self.vectors, head, tuple(labels.names[k] for k in head.classes.codes))
            facts = {"classes": layer.legend(), "report": _plain(head.report)}
            note = f"{kind} head, fitted on {'all dates' if t is None else self.times[t][:10] or 'these embeddings'}"
            with self.lock:
                self._replace_layer("classes", "My classes", layer, note, facts)
                self.training = labels
            return self.layer_facts("classes")

        return self.jobs.start(f"Fitting the {kind} head", work, finish)

    def _reference_name(self) -> str | None:
        if self.reference is None:
            return None
        return Path(self.reference).name if isinstance(self.reference, str | Path) else "the reference that was passed"

    def assess(self, id: str, t: int, source: str, labels: LabelSet | None = None) -> BackgroundJob:
        """Assess a class layer at date `t` in the background.

        Parameters
        ----------
        id : str
        t : int
        source : {"given", "labels", "file"}
            The reference: `reference`, the labels of the page that did not train the layer, or `labels`.
        labels : LabelSet, optional

        Raises
        ------
        BadRequest
            For layers that are not classes, a reference without places, and stores of more than `BEST_PATCHES` patches.
        """
        state, (_, _, rows, cols) = self.layers[id], self.source.shape
        layer = state.layer
        if not isinstance(layer, ClassLayer):
            raise BadRequest(f"{state.title} is not a map of classes: assess a layer of classes")
        if rows * cols > BEST_PATCHES:
            raise BadRequest(
                f"maps of at most {BEST_PATCHES:,} patches are assessed on the page, this one has {rows * cols:,}: use "
                "deo_cube.assess"
            )
        training = self.training if id == "classes" else None
        reference, options = self.reference, {}
        if source == "given":
            if reference is None:
                raise BadRequest("a reference is missing: pass reference=, or choose labels or a file")
        else:
            places = without_training(self.labels, training) if source == "labels" else labels
            if places is None or not len(places):
                raise BadRequest(
                    "a reference must have at least one place that did not train the map: draw labels after "
                    "classifying, or choose a file"
                )
            require("geopandas", "sklearn", extra="view", purpose="an assessment")
            reference = places.to_geopandas()
            options = {"column": "label", "mapping": mapping_by_name(layer, places)}

        def work() -> tuple[ClassAssessment, str]:
            emb = self.emb.isel(time=t) if "time" in self.emb.dims else self.emb
            return assess_layer(layer, emb, reference, training, **options)

        def finish(assessed: tuple[ClassAssessment, str]) -> dict[str, Any]:
            self.assessment, leak = assessed
            return result_of(self.assessment, leak, layer, self.grid.box.crs.proj)

        return self.jobs.start(f"Assessing {state.title}", work, finish)

    def _window_around(self, table: Any) -> xr.DataArray:
        """Return the window of the embeddings around labels, so that not all of a large store is rasterized."""
        box = self.grid.box
        west, south, east, north = table.to_crs(box.crs.proj).total_bounds
        corners = ~box.transform * (west, south), ~box.transform * (east, north)
        (y, x), (rows, cols) = spatial_dims(self.emb), box.shape
        spans = []
        for k, n in ((1, rows), (0, cols)):
            low, high = sorted(c[k] for c in corners)
            spans.append(slice(int(np.clip(np.floor(low) - 1, 0, n - 1)), int(np.clip(np.ceil(high) + 1, 1, n))))
        return self.emb.isel({y: spans[0], x: spans[1]})

    def load_overview(self, id: str, t: int, bounds: Sequence[tuple[float, float]]) -> BackgroundJob:
        """Read all vectors in the view (south-west and north-east corner) in the background."""
        layer = self.layers[id].layer
        source, grid = (layer.source, layer.grid) if isinstance(layer, TrueColour) else (self.source, self.grid)
        if isinstance(layer, TrueColour):
            t = layer.nearest(self.times[t], t)
        lon, lat = np.meshgrid(*(np.linspace(bounds[0][k], bounds[1][k], 33) for k in (0, 1)))
        r, c = grid.cells_at(lon.ravel(), lat.ravel())
        spans = []
        for v, n in ((r, source.shape[2]), (c, source.shape[3])):
            v = v[np.isfinite(v)]
            if not len(v) or v.max() < 0 or v.min() >= n:
                raise BadRequest("the view must overlap the embeddings")
            spans.append(slice(int(np.clip(v.min() - 1, 0, n - 1)), int(np.clip(np.ceil(v.max()) + 1, 1, n))))

        return self.jobs.start("Reading the overview", lambda: source.load_overview(t, spans[0], spans[1]))

    def export(self, id: str, t: int, form: str, threshold: float) -> BackgroundJob:
        """Write a layer to a file in the background; the result of the job names the file."""
        state = self.layers[id]
        if isinstance(state.layer, TrueColour) or (form == "geojson" and isinstance(state.layer, ColourLayer)):
            raise BadRequest(f"{state.title} is not exported as {form.upper()}: export a layer made of the embeddings")
        date = self.times[t]
        stem = "_".join(re.sub(r"[^A-Za-z0-9-]+", "-", p).strip("-") for p in (self.title, state.title, date[:10]) if p)
        ending = "tif" if form == "cog" else "geojson"
        name = f"{stem.lower()[:100]}.{ending}"
        # A folder per export, so that files of one name do not collide and none is replaced while it is sent.
        path = Path(self._folder.name) / uuid4().hex / name
        if form == "cog":
            self._check_space(state.layer)
        tags = {"date": date, "model": str(self.emb.attrs.get(Attribute.MODEL, "")), "what": state.note or state.title}
        if form == "cog":
            steps: Iterator[float] = write_cog(state.layer, t, path, tags={k: v for k, v in tags.items() if v})
        else:
            steps = write_geojson(state.layer, t, path, threshold=threshold, date=date)
        result = {"name": name, "file": f"{path.parent.name}/{name}"}

        def work() -> Iterator[float]:
            path.parent.mkdir()
            try:
                yield from steps
            except BaseException:
                shutil.rmtree(path.parent, ignore_errors=True)  # an incomplete file of a stopped or failed job
                raise
            self._delete_oldest(path.parent)

        return self.jobs.start(f"Exporting {state.title}", work, lambda _: result)

    def _check_space(self, layer: Any) -> None:
        """Refuse an export that is too large for the page, or for the disk that holds it until it is downloaded."""
        cells = self.source.shape[2] * self.source.shape[3] * int(getattr(layer, "upsample", 1)) ** 2
        itemsize = 4 if isinstance(layer, ScoreLayer) else 1
        # The file written by windows, then the COG with its overviews.
        needed = int(cells * itemsize * len(layer.bands) * 2.4)
        if needed > EXPORT_BYTES:
            raise BadRequest(
                f"exports may take {EXPORT_BYTES / 2**30:.0f} GiB, this one up to {needed / 2**30:.1f} GiB: write it "
                "from Python, deo_cube.to_cog, or export a part, emb.isel(...)",
                413,
            )
        free = shutil.disk_usage(self._folder.name).free
        if needed > free // 2:
            raise BadRequest(
                f"the export takes up to {needed / 2**20:.0f} MiB, and {self._folder.name} has {free / 2**20:.0f} MiB "
                "free: make room, or set TMPDIR to another disk",
                507,
            )

    def _delete_file(self, job: BackgroundJob) -> None:
        name = job.result.get("file") if isinstance(job.result, dict) else None
        if name is not None:
            shutil.rmtree((Path(self._folder.name) / str(name)).parent, ignore_errors=True)

    def _delete_oldest(self, newest: Path) -> None:
        """Delete exported files, the oldest first, until they take no more than `EXPORT_BYTES`."""
        folders: list[tuple[float, int, Path]] = []
        for folder in Path(self._folder.name).iterdir():
            # A request that starts a job deletes the files of jobs that are no longer remembered, on its own thread.
            with contextlib.suppress(FileNotFoundError):
                folders.append((folder.stat().st_mtime, sum(f.stat().st_size for f in folder.iterdir()), folder))
        total = sum(size for _, size, _ in folders)
        for _, size, folder in sorted(folders):
            if total <= EXPORT_BYTES:
                break
            if folder != newest:
                shutil.rmtree(folder, ignore_errors=True)
                total -= size

    def file(self, job: BackgroundJob) -> Path | None:
        """Return the file that an export wrote; None where there is none."""
        name = job.result.get("file") if isinstance(job.result, dict) else None
        path = None if name is None else Path(self._folder.name) / str(name)
        return path if path is not None and path.is_file() else None

    def close(self) -> None:
        """Stop jobs and delete exported files."""
        self.jobs.stop()
        shutil.rmtree(self._folder.name, ignore_errors=True)  # a job that does not stop may still write there
        self._folder.cleanup()


def _times(emb: xr.DataArray) -> list[str]:
    if "time" not in emb.dims:
        one = emb.coords.get("time")
        return ["" if one is None or one.ndim else str(one.values)[:19]]
    if "time" not in emb.coords:
        return [""] * emb.sizes["time"]
    values = emb["time"].values
    return [str(np.datetime64(v, "s")) if values.dtype.kind == "M" else str(v) for v in values]


def _plain(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report of a head as JSON takes it."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in report.items()}


def _spread(vectors: Array, most: int) -> Array:
    """Return at most `most` vectors, evenly spaced among all."""
    return np.asarray(vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), most)).astype(int)])


def _contains(grid: TileGrid, lon: float, lat: float) -> bool:
    """Return whether a place in degrees is on a grid."""
    rows, cols = grid.cells_at(np.array([lon]), np.array([lat]))
    return bool(0 <= rows[0] < grid.box.shape[0] and 0 <= cols[0] < grid.box.shape[1])


def _blank(scores: Array, row: int, col: int) -> None:
    """Leave out a patch and those near it."""
    scores[max(row - BEST_APART, 0) : row + BEST_APART + 1, max(col - BEST_APART, 0) : col + BEST_APART + 1] = -np.inf


def _score_facts(scores: Array) -> dict[str, Any]:
    """Return histogram, first threshold and range of colours of a sample of scores."""
    if not len(scores):
        return {"range": [0.0, 1.0], "histogram": [], "threshold": 0.5, "top": 1.0}
    counts, edges = np.histogram(scores, bins=48, range=(float(scores.min()), 1.0))
    return {
        "range": [float(edges[0]), 1.0],
        "histogram": [int(c) for c in counts],
        "threshold": float(np.percentile(scores, 90)),
        # Only the example itself scores 1, so colours end where the best of the other patches are.
        "top": float(np.percentile(scores, 99.8)),
    }
