"""Routes of the page's server. The page names no file, only ids and numbers; refusals are one sentence."""

from __future__ import annotations

import json
import logging
import os
from importlib import resources
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from deo_cube.errors import DeoCubeError
from deo_cube.viewer.jobs import BackgroundJob
from deo_cube.viewer.server import (
    MAX_BYTES,
    AccessRules,
    BadRequest,
    HostCheck,
    LabelSet,
    parse_bounds,
    parse_choice,
    parse_dates,
    parse_ids,
    parse_int,
    parse_place,
    parse_places,
    read_body,
)
from deo_cube.viewer.state import ViewerState
from deo_cube.viewer.tiles import TOP_ZOOM

__all__ = ["STATIC", "create_app"]

log = logging.getLogger(__name__)
STATIC = resources.files("deo_cube.viewer") / "static"
LOCAL = AccessRules(("127.0.0.1", "localhost", "::1"))


def create_app(state: ViewerState, rules: AccessRules = LOCAL) -> Starlette:
    """Return the application behind one page.

    Parameters
    ----------
    state : ViewerState
    rules : AccessRules
        Which requests are answered.
    """
    r = _Routes(state)
    routes = [
        Route("/", _page),
        Route("/api/store", r.store),
        Route("/tiles/{layer}/{t}/{z}/{x}/{y}.png", r.tile),
        Route("/api/place", r.place),
        Route("/api/similar", r.find_similar, methods=["POST"]),
        Route("/api/results", r.results, methods=["POST"]),
        Route("/api/layers/{layer}", r.remove_layer, methods=["DELETE"]),
        Route("/api/labels", r.labels, methods=["GET", "PUT"]),
        Route("/api/labels.geojson", r.labels_file),
        Route("/api/fit", r.fit, methods=["POST"]),
        Route("/api/assess", r.assess, methods=["POST"]),
        Route("/api/overview", r.load_overview, methods=["POST"]),
        Route("/api/export", r.export, methods=["POST"]),
        Route("/api/jobs/{id}", r.job, methods=["GET", "DELETE"]),
        Route("/api/jobs/{id}/file", r.job_file),
        Mount("/static", StaticFiles(packages=[("deo_cube.viewer", "static")])),
    ]
    handlers: dict[Any, Any] = {
        ValueError: _refuse,
        DeoCubeError: _refuse,
        HTTPException: _refuse,
        ClientDisconnect: _ignore,
        Exception: _fail,
    }
    return Starlette(routes=routes, middleware=[Middleware(HostCheck, rules=rules)], exception_handlers=handlers)


class _Routes:
    """Handlers of requests for one page."""

    def __init__(self, state: ViewerState) -> None:
        self.state = state
        # A tile takes some hundred MB while it is made, where vectors are long.
        self.tile_limiter = anyio.CapacityLimiter(max(2, min(os.cpu_count() or 2, 8)))

    async def store(self, _: Request) -> Response:
        return JSONResponse(self.state.describe())

    async def tile(self, request: Request) -> Response:
        p = request.path_params
        layer, t = self._layer(p["layer"]), self._date(p["t"])
        z = parse_int(p["z"], "the zoom of a tile", 0, TOP_ZOOM + 1)
        x, y = (parse_int(p[k], f"the {k} of a tile at zoom {z}", 0, 1 << z) for k in ("x", "y"))
        async with self.tile_limiter:
            # While a map is moved quickly, the tiles that it leaves behind are not drawn.
            if await request.is_disconnected():
                return Response(status_code=204)
            tile = await run_in_threadpool(self.state.tile, layer, t, z, x, y)
        # A tile that is not complete may be better next time.
        cache = "private, max-age=3600" if tile.complete and not tile.zoom_in else "no-store"
        quality = "zoom" if tile.zoom_in else "complete" if tile.complete else "sampled"
        return Response(tile.png, media_type="image/png", headers={"cache-control": cache, "x-deo-tile": quality})

    async def place(self, request: Request) -> Response:
        q = request.query_params
        try:
            lon, lat = float(q.get("lon", "")), float(q.get("lat", ""))
        except ValueError:
            raise BadRequest("a place must be lon=... and lat=... in degrees") from None
        lon, lat = parse_place([lon, lat])
        async with self.tile_limiter:
            return JSONResponse(await run_in_threadpool(self.state.place, self._date(q.get("t", "0")), lon, lat))

    async def find_similar(self, request: Request) -> Response:
        body = await _json_body(request)
        t, ids = self._date(body.get("t")), parse_ids(body.get("ids"))
        examples = parse_places(body.get("places")) if body.get("places") or not ids else []
        negatives = parse_places(body["negatives"]) if body.get("negatives") else []
        unlike = parse_ids(body.get("negative_ids"))
        async with self.tile_limiter:
            return JSONResponse(await run_in_threadpool(self.state.find_similar, t, examples, negatives, ids, unlike))

    async def results(self, request: Request) -> Response:
        body = await _json_body(request)
        count = parse_int(body.get("count", 12), "the number of results", 1, 101)
        bounds, dates = parse_bounds(body.get("bounds")), parse_dates(body.get("from"), body.get("to"))
        job = self.state.best(self._date(body.get("t")), count, bounds=bounds, time=dates)
        return JSONResponse(job.to_dict(), 202)

    async def remove_layer(self, request: Request) -> Response:
        id = parse_choice(request.path_params["layer"], "a layer to remove", ("similar", "classes"))
        with self.state.lock:
            self.state.layers.pop(id, None)
        return JSONResponse({"removed": id})

    async def labels(self, request: Request) -> Response:
        if request.method == "PUT":
            self.state.labels = await run_in_threadpool(LabelSet.of, await _json_body(request))
        return JSONResponse(self.state.labels.to_dict())

    async def labels_file(self, _: Request) -> Response:
        headers = {"content-disposition": 'attachment; filename="labels.geojson"'}
        body = json.dumps(self.state.labels.to_dict(), indent=1)
        return Response(body, media_type="application/geo+json", headers=headers)

    async def fit(self, request: Request) -> Response:
        body = await _json_body(request)
        kind = parse_choice(body.get("kind"), "the kind of head", ("knn", "linear"))
        t = None if body.get("t") is None else self._date(body["t"])
        return JSONResponse((await run_in_threadpool(self.state.fit, kind, t)).to_dict(), 202)

    async def assess(self, request: Request) -> Response:
        body = await _json_body(request)
        source = parse_choice(body.get("reference"), "the reference", ("given", "labels", "file"))
        labels = None
        if source == "file":
            if not isinstance(body.get("labels"), dict):
                raise BadRequest('the labels of a file must be {"classes": [...], "features": [...]}')
            labels = await run_in_threadpool(LabelSet.of, body["labels"])
        layer, t = self._layer(body.get("layer")), self._date(body.get("t"))
        return JSONResponse((await run_in_threadpool(self.state.assess, layer, t, source, labels)).to_dict(), 202)

    async def load_overview(self, request: Request) -> Response:
        body = await _json_body(request)
        corners = parse_places(body.get("bounds"))
        if len(corners) != 2:
            raise BadRequest("bounds must be two places, south-west and north-east")
        job = self.state.load_overview(self._layer(body.get("layer")), self._date(body.get("t")), corners)
        return JSONResponse(job.to_dict(), 202)

    async def export(self, request: Request) -> Response:
        body = await _json_body(request)
        threshold = body.get("threshold", 0.5)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not -1 <= threshold <= 1:
            raise BadRequest(f"the threshold must be a number from -1 to 1, got {threshold!r:.40}")
        form = parse_choice(body.get("format"), "the format", ("cog", "geojson"))
        job = self.state.export(self._layer(body.get("layer")), self._date(body.get("t")), form, float(threshold))
        return JSONResponse(job.to_dict(), 202)

    async def job(self, request: Request) -> Response:
        job = self._job(request)
        if request.method == "DELETE":
            job.stop.set()
        return JSONResponse(job.to_dict())

    async def job_file(self, request: Request) -> Response:
        job = self._job(request)
        path = self.state.file(job)
        if path is None:
            raise BadRequest("this job has no file: it is not done, or too many were exported since", 404)
        return FileResponse(path, filename=job.result["name"])

    def _date(self, value: Any) -> int:
        return parse_int(value, "the date", 0, len(self.state.times))

    def _layer(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.state.layers:
            raise BadRequest(f"there is no layer {value!r:.40}: there are {', '.join(self.state.layers)}", 404)
        return value

    def _job(self, request: Request) -> BackgroundJob:
        job = self.state.jobs.find(request.path_params["id"])
        if job is None:
            raise BadRequest("there is no such job", 404)
        return job


async def _page(_: Request) -> Response:
    return Response((STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8")


async def _json_body(request: Request) -> dict[str, Any]:
    # Forms and beacons of other pages cannot send this type without a preflight request.
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise BadRequest("the content type must be application/json", 415)
    too_large = BadRequest(f"a request must have at most {MAX_BYTES // 2**20} MB", 413)
    if int(request.headers.get("content-length", "0")) > MAX_BYTES:
        raise too_large
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise too_large
    return read_body(body)


def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
    status = error.status if isinstance(error, BadRequest) else 400
    return JSONResponse({"error": str(error.args[0]) if error.args else "refused"}, status)


def _ignore(_: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client left before its request was complete, and reads no answer


def _fail(_: Request, error: Exception) -> Response:
    log.error("the viewer failed", exc_info=error)
    return JSONResponse({"error": f"the server failed: {type(error).__name__}; see its log"}, 500)
