"""Run the network of a loaded encoder by OpenVINO on the CPU, for tiles of one size.

A network is converted from the verified PyTorch network once per machine, and compiled once per process. The converted
model is kept in ``<cache_dir>/openvino``, under a hash of the network's values and code, of the tile and of OpenVINO's
version. With it are kept vectors that PyTorch gave for the reference input; before the first use in a process the
compiled network must give them as well, within `TOLERANCE`.

Tiles are run one by one, so that the vectors of a tile do not depend on its neighbours in a batch, and because a batch
gains nothing: a tile of 256 px or more keeps a core busy.

Tiles of another size (those that are cut at the edge of the cube) are left to PyTorch: compiling each size would take
longer than encoding those tiles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deo_cube.constants import OPENVINO_CONVERSION
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.encoder import reference_input
from deo_cube.encoder.torch_settings import plain_torch
from deo_cube.errors import DeviceError
from deo_cube.options import get_option

__all__ = ["TOLERANCE", "OpenVINONetwork", "compile_logarithms", "has_bfloat16", "relative_error", "separate_biases"]

log = logging.getLogger("deo_cube")

#: Largest length of the difference of a vector from PyTorch's float32 vector, relative to the median length. In
#: bfloat16 twice the difference that PyTorch has in bfloat16, if that is more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
_HINTS = {"float32": "f32", "bfloat16": "bf16"}
#: Patches of the reference input whose vectors are kept for the proof.
PROOF_PATCHES = 64


def has_bfloat16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor by instructions of its own."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def relative_error(vectors: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest length of a difference of two sets of vectors ``(n, D)``, relative to the median length.

    Relative to the median, because the direction of a vector near 0 is not defined in any precision.
    """
    lengths = np.linalg.norm(expected, axis=1)
    scale = float(np.median(lengths)) or float(lengths.max()) or 1.0
    # NaN compares as false with every tolerance: a network that gives it is refused.
    return float(np.linalg.norm(vectors.astype(np.float64) - expected, axis=1).max() / scale)


class OpenVINONetwork(nn.Module):
    """A network of an `Encoder` of which one stem and layer run in OpenVINO for tiles of one size.

    Parameters
    ----------
    card : ModelCard
        Describes the network.
    network : module
        The verified PyTorch network in float32, in eval mode on the CPU.
    sha256 : str
        Hash of its values and code, see `network_hash`.
    stem, layer : str
        Input and output.
    tile : int
        Side of the tiles that OpenVINO runs, pixels.
    precision : {"float32", "bfloat16"}
        Number format of matrix products.
    threads : int
        Tiles that are run at a time by as many calling threads, each on one core.

    Raises
    ------
    DeviceError
        If OpenVINO cannot convert or compile the network, or its vectors differ from PyTorch's by more than
        `TOLERANCE`.
    """

    def __init__(
        self,
        card: ModelCard,
        network: nn.Module,
        sha256: str,
        *,
        stem: str,
        layer: str,
        tile: int,
        precision: str,
        threads: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.stem, self.layer, self.tile = stem, layer, tile
        self._requests = threading.local()
        channels = len(card.stem(stem).bands)
        if precision == "bfloat16" and not has_bfloat16():
            raise DeviceError(
                f"precision='bfloat16' was requested for {card.alias} by OpenVINO, but it reports no bfloat16 for this "
                "processor: pass precision='float32'"
            )
        # Errors of cleaning up are ignored: on Windows a file that is mapped cannot be removed.
        with tempfile.TemporaryDirectory(prefix="deo_cube-openvino-", ignore_cleanup_errors=True) as scratch:
            with plain_torch():  # what is traced is kept for later processes
                folder = _cached(card, network, sha256, stem, layer, channels, tile, Path(scratch))
            try:
                self._compiled = _compile(folder, precision, threads)
            except Exception as error:  # RuntimeError and others of the library
                raise DeviceError(_refusal(card, f"OpenVINO cannot compile it ({_first_line(error)})")) from error
            x, expected = reference_input(channels, tile), np.load(folder / "expected.npy")
            #: Error of the reference vectors, see `relative_error`.
            self.error = relative_error(_some_patches(self._run(x.numpy())), expected)
        allowed = TOLERANCE[precision]
        if precision == "bfloat16" and not self.error <= allowed:
            # Some networks are far from float32 in bfloat16 by any library: no more than twice as far is required.
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                by_torch = _Traced(network, stem, layer)(x).float().numpy()
            allowed = max(allowed, 2 * relative_error(_some_patches(by_torch), expected))
        if not self.error <= allowed:
            raise DeviceError(
                _refusal(
                    card,
                    f"its vectors by OpenVINO in {precision} differ from PyTorch's in float32 by {self.error:.2g} of "
                    f"their length (allowed: {allowed:.2g})",
                )
            )
        log.debug("compiled %s by OpenVINO in %s: off by %.1e", card.alias, precision, self.error)

    def forward_features(self, x: Tensor, stem: str, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps of `layers`, as the PyTorch network does.

        Parameters
        ----------
        x : Tensor [B, C, H, W]
            Normalized pixels, float32.
        stem : str
            Input.
        layers : sequence of str
            Outputs.
        """
        if (stem, tuple(layers), *x.shape[2:]) != (self.stem, (self.layer,), self.tile, self.tile):
            run: Any = self.network
            maps: dict[str, Tensor] = run.forward_features(x, stem, tuple(layers))
            return maps
        pixels = x.detach().contiguous().numpy()
        if len(pixels) == 1:  # not copied twice
            return {self.layer: torch.from_numpy(self._run(pixels))}
        return {self.layer: torch.from_numpy(np.concatenate([self._run(tile[None]) for tile in pixels]))}

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        request = getattr(self._requests, "request", None)
        if request is None:
            # One per calling thread, which is kept: it holds the maps of the network.
            request = self._requests.request = self._compiled.create_infer_request()
        # Copied: the next call of this thread overwrites the request's own output.
        return np.array(request.infer({0: pixels})[0])


class _Traced(nn.Module):
    def __init__(self, network: nn.Module, stem: str, layer: str) -> None:
        super().__init__()
        self.network, self.stem, self.layer = network, stem, layer

    def forward(self, x: Tensor) -> Tensor:
        run: Any = self.network
        maps: Tensor = run.forward_features(x, self.stem, (self.layer,))[self.layer]
        return maps


def _core() -> Any:
    import openvino

    return openvino.Core()


def _compile(folder: Path, precision: str, threads: int) -> Any:
    return _core().compile_model(
        str(folder / "model.xml"),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # One thread per tile: `threads` tiles are run at a time.
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            # Pinned threads of two processes would share the first cores and leave the others idle.
            "ENABLE_CPU_PINNING": False,
            "CACHE_DIR": str(folder / "compiled"),
        },
    )


def _cached(
    card: ModelCard, network: nn.Module, sha256: str, stem: str, layer: str, channels: int, tile: int, scratch: Path
) -> Path:
    """Return a folder with the converted network and its expected vectors; `scratch` where the cache is read-only."""
    fields = (sha256, stem, layer, channels, tile, version("openvino"), OPENVINO_CONVERSION)
    key = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:24]
    folder = Path(get_option("cache_dir")) / "openvino" / f"{card.alias}-{tile}-{key}"
    if (folder / "expected.npy").exists():
        return folder
    _convert(card, network, stem, layer, channels, tile, scratch)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError:
        return scratch
    try:
        for file in scratch.iterdir():
            shutil.copy2(file, part)
        with contextlib.suppress(OSError):  # another process was first
            os.rename(part, folder)
    except OSError:  # the disk is full
        return scratch
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder if (folder / "expected.npy").exists() else scratch


def _convert(
    card: ModelCard, network: nn.Module, stem: str, layer: str, channels: int, tile: int, folder: Path
) -> None:
    """Write a network as OpenVINO's model, and vectors of PyTorch's for the reference input.

    Raises
    ------
    DeviceError
        If the network cannot be traced or converted.
    """
    # Traced with another input than the one that proves it: what a trace took for a constant shows as a difference.
    proof, x = reference_input(channels, tile, batch=2).split(1)
    traced = _Traced(network, stem, layer).eval()
    with torch.inference_mode():
        expected = traced(proof).numpy()
    try:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        with torch.no_grad(), warnings.catch_warnings():
            # Sizes become constants, as they should: the model is of one size.
            warnings.simplefilter("ignore")
            script: Any = torch.jit.trace(traced, x, check_trace=False)
            # Not openvino.convert_model, which reports its use over the network.
            # Kept in variables: the library does not hold references to them.
            manager, decoder = FrontEndManager(), TorchScriptPythonDecoder(script, example_input=x)
            frontend = manager.load_by_framework("pytorch")
            model = frontend.convert(frontend.load(decoder))
        model.reshape(list(x.shape))
        compile_logarithms(model)
        separate_biases(model)
        openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
    except Exception as error:  # of torch's tracer, of the library, or of the network's own code
        raise DeviceError(_refusal(card, f"OpenVINO cannot convert it ({_first_line(error)})")) from error
    np.save(folder / "expected.npy", _some_patches(expected))


def compile_logarithms(model: Any) -> int:
    """Replace logarithms of numbers of 1 and more by operations for which OpenVINO has vector code; return how many.

    It computes `Log` number by number. Here ``log z = 16 log u`` with ``u = z ** (1 / 16)``, and
    ``log u = 2 artanh((u - 1) / (u + 1))`` by its series. Up to 1e5 the error is below 5e-6. Only logarithms whose
    input is a maximum with a constant of 1 or more are replaced.
    """
    from openvino import opset13 as op

    def constant(value: float) -> Any:
        return op.constant(np.float32(value))

    logs = [node for node in model.get_ops() if node.get_type_name() == "Log" and _at_least_one(node)]
    for node in logs:
        root = node.input_value(0)
        for _ in range(4):
            root = op.sqrt(root)
        ratio = op.divide(op.subtract(root, constant(1)), op.add(root, constant(1)))
        square = op.multiply(ratio, ratio)
        series = constant(32 / 11)
        for power in (9, 7, 5, 3, 1):
            series = op.add(op.multiply(series, square), constant(32 / power))
        node.output(0).replace(op.multiply(ratio, series).output(0))
    model.validate_nodes_and_infer_types()
    return len(logs)


def separate_biases(model: Any) -> int:
    """Give each convolution a constant of its own as bias; return how many.

    OpenVINO adds a bias, and applies what follows it, within the convolution, but not where several convolutions have
    one constant: there, the maps are written to memory and read again. A network that computes strip by strip applies
    one convolution many times.
    """
    from openvino import opset13 as op

    changed = 0
    for node in model.get_ops():
        if node.get_type_name() != "Add":
            continue
        inputs = [value.get_node() for value in node.input_values()]
        for i, (bias, other) in enumerate(zip(inputs, reversed(inputs), strict=True)):
            if bias.get_type_name() != "Reshape" or not other.get_type_name().endswith("Convolution"):
                continue
            source = bias.input_value(0).get_node()
            if source.get_type_name() == "Constant":
                own = op.constant(source.get_data().reshape(tuple(bias.get_output_shape(0))))
                node.input(i).replace_source_output(own.output(0))
                changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _at_least_one(log_node: Any) -> bool:
    before = log_node.input_value(0).get_node()
    inputs = [value.get_node() for value in before.input_values()]
    constants = [n.get_data() for n in inputs if n.get_type_name() == "Constant"]
    return before.get_type_name() == "Maximum" and any(c.size and c.min() >= 1 for c in constants)


def _some_patches(maps: NDArray[Any]) -> NDArray[np.float32]:
    """Return vectors ``(n, D)`` of patches spread over the map of the first tile."""
    flat = maps[0].reshape(maps.shape[1], -1).T
    chosen: NDArray[np.float32] = flat[:: max(1, len(flat) // PROOF_PATCHES)].astype(np.float32)
    return chosen


def _refusal(card: ModelCard, why: str) -> str:
    advice = "pass runtime='torch'"
    if card.architecture.get("options", {}).get("dynamic_img_size"):
        # The bicubic interpolation of position embeddings is another in OpenVINO, by some thousandths of a vector.
        advice += (
            f", or describe the model with options={{'img_size': {card.tile}}} instead of 'dynamic_img_size', which "
            "enlarges position embeddings once"
        )
    return f"runtime='openvino' was requested for {card.alias}, but {why}: {advice}"


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
