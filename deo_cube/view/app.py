"""Routes of the page's server, and its refusals in a sentence. The page names no file, only ids and numbers."""

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
from deo_cube.view.guard import Guard, Rules
from deo_cube.view.places import TOP_ZOOM
from deo_cube.view.requests import MOST_BYTES, BadRequest, LabelSet, chosen, place, places, read_json, whole
from deo_cube.view.view import View

__all__ = ["STATIC", "create_app"]

log = logging.getLogger(__name__)
STATIC = resources.files("deo_cube.view") / "static"
LOCAL = Rules(("127.0.0.1", "localhost", "::1"))


async def _body(request: Request) -> dict[str, Any]:
    # Forms and beacons of other pages cannot send this type without asking first.
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise BadRequest("send application/json", 415)
    if int(request.headers.get("content-length", "0")) > MOST_BYTES:
        raise BadRequest(f"a request holds at most {MOST_BYTES // 2**20} MB", 413)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise BadRequest(f"a request holds at most {MOST_BYTES // 2**20} MB", 413)
    return read_json(body)


def create_app(view: View, rules: Rules = LOCAL) -> Starlette:
    """Return the application behind one page.

    Parameters
    ----------
    view : View
    rules : Rules
        Which requests are answered.
    """
    turns = anyio.CapacityLimiter(max(2, min(os.cpu_count() or 2, 8)))

    def date(value: Any) -> int:
        return whole(value, "the date", 0, len(view.times))

    def layer(value: Any) -> str:
        if not isinstance(value, str) or value not in view.layers:
            raise BadRequest(f"there is no layer {value!r:.40}: there are {', '.join(view.layers)}", 404)
        return value

    async def page(_: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    async def store(_: Request) -> Response:
        return JSONResponse(view.describe())

    async def tile(request: Request) -> Response:
        p = request.path_params
        id, t = layer(p["layer"]), date(p["t"])
        z = whole(p["z"], "the zoom of a tile", 0, TOP_ZOOM + 1)
        x, y = (whole(p[k], f"the {k} of a tile at zoom {z}", 0, 1 << z) for k in ("x", "y"))
        # A tile in the making takes some hundred MB where vectors are long: so many at once and no more.
        async with turns:
            # Of a map that is moved on quickly, the tiles left behind are not drawn.
            if await request.is_disconnected():
                return Response(status_code=204)
            drawn = await run_in_threadpool(view.tile, id, t, z, x, y)
        # A tile that is not complete may be better next time.
        kept = "private, max-age=3600" if drawn.complete and not drawn.zoom_in else "no-store"
        state = "zoom" if drawn.zoom_in else "complete" if drawn.complete else "sampled"
        return Response(drawn.png, media_type="image/png", headers={"cache-control": kept, "x-deo-tile": state})

    async def at(request: Request) -> Response:
        q = request.query_params
        try:
            lon, lat = float(q.get("lon", "")), float(q.get("lat", ""))
        except ValueError:
            raise BadRequest("a place is lon=... and lat=... in degrees") from None
        lon, lat = place([lon, lat])
        async with turns:
            return JSONResponse(await run_in_threadpool(view.place, date(q.get("t", "0")), lon, lat))

    async def find(request: Request) -> Response:
        b = await _body(request)
        t, examples = date(b.get("t")), places(b.get("places"))
        async with turns:
            return JSONResponse(await run_in_threadpool(view.find_similar, t, examples))

    async def forget(request: Request) -> Response:
        id = chosen(request.path_params["layer"], "a layer to remove", ("similar", "classes"))
        with view.lock:
            view.layers.pop(id, None)
        return JSONResponse({"removed": id})

    async def labels(request: Request) -> Response:
        if request.method == "PUT":
            view.labels = await run_in_threadpool(LabelSet.of, await _body(request))
        return JSONResponse(view.labels.to_dict())

    async def labels_file(_: Request) -> Response:
        kept = {"content-disposition": 'attachment; filename="labels.geojson"'}
        body = json.dumps(view.labels.to_dict(), indent=1)
        return Response(body, media_type="application/geo+json", headers=kept)

    async def fit(request: Request) -> Response:
        b = await _body(request)
        kind = chosen(b.get("kind"), "the kind of head", ("knn", "linear"))
        t = None if b.get("t") is None else date(b["t"])
        return JSONResponse((await run_in_threadpool(view.fit, kind, t)).to_dict(), 202)

    async def sharpen(request: Request) -> Response:
        b = await _body(request)
        corners = places(b.get("bounds"))
        if len(corners) != 2:
            raise BadRequest("bounds are two places, south-west and north-east")
        return JSONResponse(view.sharpen(layer(b.get("layer")), date(b.get("t")), corners).to_dict(), 202)

    async def export(request: Request) -> Response:
        b = await _body(request)
        threshold = b.get("threshold", 0.5)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not -1 <= threshold <= 1:
            raise BadRequest(f"the threshold is a number from -1 to 1, got {threshold!r:.40}")
        form = chosen(b.get("format"), "the format", ("cog", "geojson"))
        return JSONResponse(view.export(layer(b.get("layer")), date(b.get("t")), form, float(threshold)).to_dict(), 202)

    def found(request: Request) -> Any:
        job = view.jobs.find(request.path_params["id"])
        if job is None:
            raise BadRequest("there is no such job", 404)
        return job

    async def job(request: Request) -> Response:
        one = found(request)
        if request.method == "DELETE":
            one.stop.set()
        return JSONResponse(one.to_dict())

    async def result(request: Request) -> Response:
        one = found(request)
        path = view.file(one)
        if path is None:
            raise BadRequest("this job has no file: it is not done, or too many were exported since", 404)
        return FileResponse(path, filename=one.result["name"])

    def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
        status = error.status if isinstance(error, BadRequest) else 400
        return JSONResponse({"error": str(error.args[0]) if error.args else "refused"}, status)

    def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=400)  # the client left before its request was complete: nobody reads this

    def failed(_: Request, error: Exception) -> Response:
        log.error("the viewer failed", exc_info=error)
        return JSONResponse({"error": f"the server failed: {type(error).__name__}; its log says more"}, 500)

    routes = [
        Route("/", page),
        Route("/api/store", store),
        Route("/tiles/{layer}/{t}/{z}/{x}/{y}.png", tile),
        Route("/api/place", at),
        Route("/api/similar", find, methods=["POST"]),
        Route("/api/layers/{layer}", forget, methods=["DELETE"]),
        Route("/api/labels", labels, methods=["GET", "PUT"]),
        Route("/api/labels.geojson", labels_file),
        Route("/api/fit", fit, methods=["POST"]),
        Route("/api/sharpen", sharpen, methods=["POST"]),
        Route("/api/export", export, methods=["POST"]),
        Route("/api/jobs/{id}", job, methods=["GET", "DELETE"]),
        Route("/api/jobs/{id}/file", result),
        Mount("/static", StaticFiles(packages=[("deo_cube.view", "static")])),
    ]
    handlers: dict[Any, Any] = {ValueError: refused, DeoCubeError: refused, HTTPException: refused, Exception: failed}
    handlers[ClientDisconnect] = gone
    return Starlette(routes=routes, middleware=[Middleware(Guard, rules=rules)], exception_handlers=handlers)
