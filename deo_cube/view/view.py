"""What one page shows and what was made on it: the store, its layers, examples, labels and the head fitted on them."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError, ArgumentTypeError, MissingExtraError
from deo_cube.heads.head import Head, check_model, fit_head, load_head
from deo_cube.heads.pca import fit_pca, pca_rgb
from deo_cube.heads.similar import similar
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims
from deo_cube.store.open import is_embeddings, open_embeddings
from deo_cube.store.storage import locate
from deo_cube.view.export import write_cog, write_geojson
from deo_cube.view.jobs import Job, Jobs
from deo_cube.view.layers import ClassLayer, PCALayer, ScoreLayer, Vectors
from deo_cube.view.places import Places
from deo_cube.view.requests import BadRequest, LabelSet
from deo_cube.view.source import TILE_BYTES, Source
from deo_cube.view.truecolour import TrueColour

__all__ = ["Shown", "View"]

Array = NDArray[Any]
EXPORT_BYTES = 4 * 2**30
"""That exported files may take on disk, all together and each while it is written."""
AUTOMATIC_BYTES = 2**30
"""Up to so many bytes of a date the page reads of itself to complete a low zoom; beyond that it asks."""


@dataclass
class Shown:
    """A layer on the page; `version` rises with each change, so that browsers drop old tiles."""

    title: str
    layer: Any
    version: int = 1
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class View:
    """State behind a page.

    Parameters
    ----------
    emb : DataArray
        Embeddings (time, embedding, y, x) or (embedding, y, x), on a map.
    cube : Dataset or DataArray, optional
        Drawn as true colour beneath.
    heads : mapping of str to Head or path
        Drawn as layers, under these names.
    source : Source, optional
        How pixels are read. Default: through `emb`.
    title : str
    """

    def __init__(
        self,
        emb: xr.DataArray,
        *,
        cube: xr.Dataset | xr.DataArray | None = None,
        heads: Mapping[str, Head | str | Path] | None = None,
        source: Source | None = None,
        title: str = "embeddings",
    ) -> None:
        wanted = ("time", "embedding", *spatial_dims(emb))
        emb = emb.transpose(*(d for d in wanted if d in emb.dims))
        self.emb = as_embeddings(emb)
        if 0 in self.emb.shape:
            raise ArgumentError(f"there is nothing to show: the embeddings are {dict(self.emb.sizes)}")
        self.title = title
        self.places = Places(geobox(self.emb))
        self.source = Source.of(self.emb) if source is None else source
        self.vectors = Vectors(self.emb, self.places, self.source)
        self.times = _times(self.emb)
        self.jobs, self.lock, self.labels = Jobs(self._delete_file), threading.Lock(), LabelSet()
        self.examples: list[dict[str, Any]] = []
        self.layers: dict[str, Shown] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="deo_cube_view_", ignore_cleanup_errors=True)
        if cube is not None:
            true = TrueColour.of(cube, self.emb)
            self.layers["true"] = Shown("True colour", true, note=true.note)
        basis, note = self._basis()
        self.layers["pca"] = Shown("PCA of embeddings", PCALayer(self.vectors, basis), note=note)
        for n, (name, given) in enumerate((heads or {}).items()):
            head = load_head(given) if isinstance(given, str | Path) else given
            if not isinstance(head, Head):
                raise ArgumentTypeError(f"heads[{name!r}] must be a head or the path of one, got {type(head).__name__}")
            check_model(head, self.emb)
            layer = ClassLayer(self.vectors, head)
            self.layers[f"head{n}"] = Shown(name, layer, facts={"classes": layer.legend()})

    @classmethod
    def of_store(cls, store: Any, **options: Any) -> View:
        """A view of a store, whose squares are read straight from their chunks."""
        emb = open_embeddings(store)
        tile_bytes = options.pop("tile_bytes", TILE_BYTES)
        if not is_embeddings(store):
            # Of another layout that `open_embeddings` knows.
            return cls(emb, source=Source.of(emb, tile_bytes=tile_bytes), **options)
        # Without Dask: a store of a million chunks answers as fast as a small one.
        whole = xr.open_zarr(locate(store), zarr_format=3, consolidated=False, chunks=None)["embeddings"]
        y, x = spatial_dims(emb)
        # The store may begin with a margin that `open_embeddings` cuts off; its chunks begin there too.
        top, left = (int(np.abs(whole[d].values - emb[d].values[0]).argmin()) for d in (y, x))
        step = (int(whole.encoding["chunks"][-2]), int(whole.encoding["chunks"][-1]))
        variable = whole.variable

        def read(t: int, rows: slice, cols: slice) -> Array:
            at = (slice(None), slice(rows.start + top, rows.stop + top), slice(cols.start + left, cols.stop + left))
            return np.asarray(variable[(t, *at) if variable.ndim == 4 else at].values)

        shape = (emb.sizes.get("time", 1), emb.sizes["embedding"], emb.sizes[y], emb.sizes[x])
        lead = (top % step[0], left % step[1])
        source = Source(read, shape, step=step, lead=lead, itemsize=variable.dtype.itemsize, tile_bytes=tile_bytes)
        return cls(emb, source=source, **options)

    def _basis(self) -> tuple[Any, str]:
        # Asked of the verb itself on one vector: whether a basis comes with the model.
        one = np.zeros((1, self.source.shape[1]), "float32")
        if self.source.shape[1] < 3:
            raise ArgumentError(f"the embeddings have {self.source.shape[1]} numbers per patch: colours need 3 or more")
        if "deo_cube:model_fingerprint" in self.emb.attrs:
            probe = pca_rgb(self.vectors.frame(one).chunk())
            if probe.attrs["pca_basis"] == "bundled with the model":
                return None, "the model's fixed basis: the same colours everywhere"
        n = len(self.times)
        some = self.vectors.some(sorted({0, n // 3, 2 * n // 3, n - 1}))
        if len(some) < 3:
            raise ArgumentError(
                "the embeddings hold fewer than 3 valid vectors where they were sampled: nothing to show"
            )
        keep = np.linspace(0, len(some) - 1, min(len(some), 16384)).astype(int)
        return fit_pca(self.vectors.frame(some[keep])), "fitted on a sample of these embeddings"

    def describe(self) -> dict[str, Any]:
        """All that the page has to know at its start."""
        a, s = self.emb.attrs, self.source
        return {
            "title": self.title,
            "model": str(a.get("deo_cube:model_alias", a.get("deo_cube:model", ""))),
            "untrained": a.get("deo_cube:weights_status") == "untrained",
            "shape": {"times": s.shape[0], "embedding": s.shape[1], "rows": s.shape[2], "columns": s.shape[3]},
            "crs": self.crs,
            "cell": self.places.cell,
            "times": self.times,
            "bounds": self.places.bounds,
            "outline": self.places.outline,
            "zoom": self.places.native_zoom,
            "layers": [self.layer_facts(k) for k in self.layers],
        }

    @property
    def crs(self) -> str:
        """EPSG code or name."""
        crs = self.places.box.crs
        return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)

    def layer_facts(self, id: str) -> dict[str, Any]:
        """What the page knows of a layer."""
        s = self.layers[id]
        source = s.layer.source if isinstance(s.layer, TrueColour) else self.source
        facts = {"id": id, "title": s.title, "kind": s.layer.kind, "version": s.version, "note": s.note, **s.facts}
        facts |= {"bytes": source.whole_bytes, "automatic": source.whole_bytes <= AUTOMATIC_BYTES}
        if id == "true":
            facts["attribution"] = s.layer.credit
            cube = s.layer.times
            if self.times and len(cube):
                near = [str(cube[s.layer.nearest(t, i)])[:10] for i, t in enumerate(self.times)]
                facts["dates"] = near
        return facts

    def tile(self, id: str, t: int, z: int, x: int, y: int) -> Any:
        """A tile of a layer."""
        shown = self.layers.get(id)
        if shown is None:
            raise BadRequest(f"there is no layer {id!r:.40}", 404)
        layer = shown.layer
        if isinstance(layer, TrueColour):
            t = layer.nearest(self.times[t], t)
        return layer.tile(t, z, x, y)

    def place(self, t: int, lon: float, lat: float) -> dict[str, Any]:
        """What lies at a place."""
        row, col, x, y = self.places.at(lon, lat)
        valid = bool(np.isfinite(self.source.vector(t, row, col)).all())
        return {"row": row, "column": col, "x": x, "y": y, "crs": self.crs, "valid": valid}

    def find_similar(self, t: int, places: Sequence[tuple[float, float]]) -> dict[str, Any]:
        """Compare every place with those given at date `t`, and show the scores.

        Raises
        ------
        BadRequest
            For places outside or without a valid embedding.
        """
        at, vectors = [], []
        for lon, lat in places:
            row, col, x, y = self._inside(lon, lat)
            v = self.source.vector(t, row, col)
            if not np.isfinite(v).all():
                raise BadRequest(
                    f"there is no valid embedding at {lat:.5f}, {lon:.5f} on this date (a cloud, or nodata): choose "
                    "another place or date"
                )
            at.append({"lon": lon, "lat": lat, "x": x, "y": y, "time": t})
            vectors.append(v)
        layer = ScoreLayer(self.vectors, np.stack(vectors))
        scores = layer.scores(self.source.scatter(t))
        counts: Any
        edges: Any
        counts, edges = np.histogram(scores, bins=48, range=(float(scores.min()), 1.0)) if len(scores) else ([], [0, 1])
        with self.lock:
            self.examples = at
            old = self.layers.get("similar")
            facts = {
                "range": [float(edges[0]), 1.0],
                "histogram": [int(c) for c in counts],
                "threshold": float(np.percentile(scores, 90)) if len(scores) else 0.5,
                # The example itself scores 1, and little else does: colours end where the best of the others are.
                "top": float(np.percentile(scores, 99.8)) if len(scores) else 1.0,
                "examples": [[e["lon"], e["lat"]] for e in at],
            }
            dated = f" of {self.times[t][:10]}" if len(self.times) > 1 else ""
            note = f"cosine similarity to {len(at)} example{'s' * (len(at) > 1)}{dated}"
            self.layers["similar"] = Shown("Similarity", layer, 1 + (old.version if old else 0), note, facts)
        return self.layer_facts("similar")

    def _inside(self, lon: float, lat: float) -> tuple[int, int, float, float]:
        try:
            return self.places.at(lon, lat)
        except ValueError as error:
            raise BadRequest(str(error)) from None

    @property
    def similarity(self) -> xr.DataArray | None:
        """Similarity to the examples of the page (time, y, x), lazily; None before there are any."""
        shown = self.layers.get("similar")
        return (
            None if shown is None else similar(self.emb, xr.DataArray(shown.layer.examples, dims=("case", "embedding")))
        )

    @property
    def head(self) -> Head | None:
        """The head fitted on the labels of the page; None before."""
        shown = self.layers.get("classes")
        return None if shown is None else shown.layer.head

    @property
    def classes(self) -> xr.DataArray | None:
        """Classes by that head (time, y, x), lazily."""
        return None if self.head is None else self.head.predict(self.emb)

    def fit(self, kind: str, t: int | None) -> Job:
        """Fit a head on the labels, in the background, and show its classes; `t` is None for all dates."""
        labels = self.labels
        if len(set(labels.codes)) < 2:
            raise BadRequest("a classified map wants labels of at least two classes: draw some more")
        try:
            table = labels.to_geopandas()
        except ImportError:
            raise MissingExtraError.wanted("geopandas", "view", "fitting on labels") from None

        def work() -> Head:
            emb = self._around(table)
            emb = emb if t is None or "time" not in emb.dims else emb.isel(time=t)
            used = sorted(set(labels.codes))
            colors = {k: labels.colors[k] for k in used}
            return fit_head(kind, emb, table, column="class", names=dict(labels.names), colors=colors)  # type: ignore[arg-type]

        def finish(head: Head) -> dict[str, Any]:
            names = tuple(labels.names[k] for k in head.classes.codes)
            layer = ClassLayer(self.vectors, head, names)
            with self.lock:
                old = self.layers.get("classes")
                facts = {"classes": layer.legend(), "report": _plain(head.report)}
                note = (
                    f"{kind} head, fitted on {'all dates' if t is None else self.times[t][:10] or 'these embeddings'}"
                )
                self.layers["classes"] = Shown("My classes", layer, 1 + (old.version if old else 0), note, facts)
            return self.layer_facts("classes")

        return self.jobs.start(f"Fitting the {kind} head", work, finish)

    def _around(self, table: Any) -> xr.DataArray:
        """The part of the embeddings that the labels lie in: a map of a continent is not burnt for a village."""
        box = self.places.box
        west, south, east, north = table.to_crs(box.crs.proj).total_bounds
        corners = ~box.transform * (west, south), ~box.transform * (east, north)
        (y, x), (rows, cols) = spatial_dims(self.emb), box.shape
        spans = []
        for k, n in ((1, rows), (0, cols)):
            low, high = sorted(c[k] for c in corners)
            spans.append(slice(int(np.clip(np.floor(low) - 1, 0, n - 1)), int(np.clip(np.ceil(high) + 1, 1, n))))
        return self.emb.isel({y: spans[0], x: spans[1]})

    def sharpen(self, id: str, t: int, bounds: Sequence[tuple[float, float]]) -> Job:
        """Read all of the view (south-west and north-east corner), so that its overview is complete."""
        layer = self.layers[id].layer
        source, places = (layer.source, layer.places) if isinstance(layer, TrueColour) else (self.source, self.places)
        if isinstance(layer, TrueColour):
            t = layer.nearest(self.times[t], t)
        lon, lat = np.meshgrid(*(np.linspace(bounds[0][k], bounds[1][k], 33) for k in (0, 1)))
        px, py = places._to_degrees.transform(lon.ravel(), lat.ravel(), direction="INVERSE")
        r, c = places._cells(np.asarray(px), np.asarray(py))
        spans = []
        for v, n in ((r, source.shape[2]), (c, source.shape[3])):
            v = v[np.isfinite(v)]
            if not len(v) or v.max() < 0 or v.min() >= n:
                raise BadRequest("the view does not touch the embeddings")
            spans.append(slice(int(np.clip(v.min() - 1, 0, n - 1)), int(np.clip(np.ceil(v.max()) + 1, 1, n))))

        return self.jobs.start("Reading the overview", lambda: source.fill(t, spans[0], spans[1]))

    def export(self, id: str, t: int, form: str, threshold: float) -> Job:
        """Write a layer to a file in the background; the job's result names it."""
        shown = self.layers[id]
        if isinstance(shown.layer, TrueColour) or (form == "geojson" and isinstance(shown.layer, PCALayer)):
            raise BadRequest(f"{shown.title} is not exported as {form.upper()}: export a layer made of the embeddings")
        date = self.times[t]
        stem = "_".join(re.sub(r"[^A-Za-z0-9-]+", "-", p).strip("-") for p in (self.title, shown.title, date[:10]) if p)
        ending = "tif" if form == "cog" else "geojson"
        name = f"{stem.lower()[:100]}.{ending}"
        # A folder per export: two of one name do not meet, and a file is not replaced while it is sent.
        path = Path(self._folder.name) / uuid4().hex / name
        if form == "cog":
            self._check_space(shown.layer)
        tags = {"date": date, "model": str(self.emb.attrs.get("deo_cube:model", "")), "what": shown.note or shown.title}
        if form == "cog":
            steps: Iterator[float] = write_cog(shown.layer, t, path, tags={k: v for k, v in tags.items() if v})
        else:
            steps = write_geojson(shown.layer, t, path, threshold=threshold, date=date)
        result = {"name": name, "file": f"{path.parent.name}/{name}"}

        def work() -> Iterator[float]:
            path.parent.mkdir()
            try:
                yield from steps
            except BaseException:
                shutil.rmtree(path.parent, ignore_errors=True)  # stopped or failed: half a file is of no use
                raise
            self._delete_oldest(path.parent)

        return self.jobs.start(f"Exporting {shown.title}", work, lambda _: result)

    def _check_space(self, layer: Any) -> None:
        """Refuse an export that is too large for the page, or for the disk that holds it until it is downloaded."""
        cells = self.source.shape[2] * self.source.shape[3] * int(getattr(layer, "fine", 1)) ** 2
        each = 4 if isinstance(layer, ScoreLayer) else 1
        # The windows as they are written, then the COG with its overviews.
        needed = int(cells * each * len(layer.bands) * 2.4)
        if needed > EXPORT_BYTES:
            raise BadRequest(
                f"the layer takes up to {needed / 2**30:.1f} GiB while it is exported, more than the page's "
                f"{EXPORT_BYTES / 2**30:.0f} GiB. Write it from Python: deo_cube.to_cog, or emb.isel(...) first",
                413,
            )
        free = shutil.disk_usage(self._folder.name).free
        if needed > free // 2:
            raise BadRequest(
                f"the export takes up to {needed / 2**20:.0f} MiB, and {self._folder.name} has {free / 2**20:.0f} MiB "
                "free: make room, or set TMPDIR to another disk",
                507,
            )

    def _delete_file(self, job: Job) -> None:
        name = job.result.get("file") if isinstance(job.result, dict) else None
        if name is not None:
            shutil.rmtree((Path(self._folder.name) / str(name)).parent, ignore_errors=True)

    def _delete_oldest(self, newest: Path) -> None:
        """Delete exported files, the oldest first, until they take no more than `EXPORT_BYTES`."""
        folders = sorted(Path(self._folder.name).iterdir(), key=lambda p: p.stat().st_mtime)
        sizes = {p: sum(f.stat().st_size for f in p.iterdir()) for p in folders}
        for folder in folders:
            if sum(sizes.values()) <= EXPORT_BYTES:
                break
            if folder != newest:
                shutil.rmtree(folder, ignore_errors=True)
                del sizes[folder]

    def file(self, job: Job) -> Path | None:
        """The file that an export wrote."""
        name = job.result.get("file") if isinstance(job.result, dict) else None
        path = None if name is None else Path(self._folder.name) / str(name)
        return path if path is not None and path.is_file() else None

    def close(self) -> None:
        """Stop jobs, delete exported files."""
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
    """A head's report as JSON takes it."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in report.items()}
