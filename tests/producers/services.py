"""Stand-ins for remote services, so that the client's own code builds what it gives: Earth Engine, Sentinel Hub.

Only what the service would answer is supplied; names, types, coordinates and attributes are made by the package.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

import numpy as np
import xarray as xr

from tests.producers.makers import BANDS, EPSG, NORTH, SHORT, WEST


@contextlib.contextmanager
def earth_engine(plain: xr.Dataset, bands: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """Answer what xee asks of Earth Engine: a description of the collection, then windows of pixels."""
    import ee

    names = bands or dict(zip(SHORT, BANDS, strict=True))
    height, width = plain.sizes["y"], plain.sizes["x"]
    times = plain.time.values.astype("datetime64[ms]").astype(int).tolist()
    size = [height, width]
    described = [
        {
            "id": name,
            "data_type": {"type": "PixelType", "precision": "int", "min": 0, "max": 65535},
            "dimensions": size,
            "crs": f"EPSG:{EPSG}",
            "crs_transform": [10, 0, WEST, 0, -10, NORTH],
        }
        for name in names
    ]
    info = {
        "size": len(times),
        "props": {"system:id": "COPERNICUS/S2_SR_HARMONIZED"},
        "first": {"type": "Image", "bands": described},
        "properties": [[f"20220305T102921_{t}" for t in times], times],
    }

    from xee import ext

    collection = mock.create_autospec(ee.ImageCollection, instance=True)
    original = ext.EarthEngineStore.image_to_array

    class _Image:
        def unmask(self, *_: Any) -> _Image:
            return self

    def image_to_array(store: Any, image: Any, **kwargs: Any) -> np.ndarray:
        where = kwargs["grid"]
        left = round((where["affineTransform"]["translateX"] - WEST) / 10)
        top = round((NORTH - where["affineTransform"]["translateY"]) / 10)
        name, steps = image
        values = plain[names[name]].values[steps, top : top + where["dimensions"]["height"]]
        values = values[..., left : left + where["dimensions"]["width"]]
        # Earth Engine fills masked pixels with the value that xee asks for.
        filled = np.where(values > 0, values.astype("<i4"), np.int32(store.mask_value))
        answer = np.ascontiguousarray(np.moveaxis(filled, 0, -1)).view([(f"b{i}", "<i4") for i in range(len(filled))])

        class Answers:
            def __getitem__(self, _: Any) -> np.ndarray:
                return answer[..., 0]

        return original(store, _Image(), pixels_getter=Answers(), **kwargs)

    def one_image(array: Any, steps: slice) -> tuple[str, slice]:
        return array.variable_name, steps

    with (
        mock.patch.object(ext.EarthEngineStore, "get_info", info),
        mock.patch.object(ext.EarthEngineStore, "image_to_array", image_to_array),
        mock.patch.object(ext.EarthEngineBackendArray, "_slice_collection", one_image),
        mock.patch.object(ee, "ImageCollection", type(collection)),
    ):
        yield {"collection": collection}


@contextlib.contextmanager
def sentinel_hub(answer: bytes) -> Iterator[str]:
    """Serve one GeoTIFF to whoever asks the Process API on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return None

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = "oauth" in self.path
            body = (
                json.dumps({"access_token": "t", "expires_in": 3600, "expires_at": 4e9}).encode() if token else answer
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if token else "image/tiff")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
