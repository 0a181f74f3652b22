"""Encode with networks that NNCF quantised to int8, to compare with the precisions that `embed` has.

`benchmarks.precision` scores them where nncf is installed (``pip install nncf``). The network is the one that
``runtime="openvino"`` runs; it is calibrated on unlabelled scenes, no pixel of which is scored.

``python -m benchmarks.int8 --data DATA`` prints, for each way to quantise, the cosine distance of vectors from
PyTorch's in float32, the share of patches that keep their class, and the time of a tile.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import tyro
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from deo_cube.encoder import openvino_network
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.network_hash import network_hash
from deo_cube.encoder.networks import conv, spectral
from deo_cube.encoder.registry import EncoderRef, describe_timm, resolve
from deo_cube.errors import UnknownModelError
from deo_cube.evaluate import readers

Array = NDArray[Any]

SCENES = ("aquileia_20190416_L2A.tif", "pilbara_20181201_L2A.tif")
"""Scenes of ``DATA/scenes`` that calibrate."""


@dataclass(frozen=True)
class Way:
    """A way to quantise."""

    name: str
    precision: str = "float32"
    """Number format of the layers that stay in floating point."""
    keep: tuple[str, ...] = ()
    """Patterns of the names of layers that stay in floating point."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `nncf.quantize`."""


def calibration(data: Path, bands: Sequence[str], side: int, count: int = 48) -> Array:
    """Return `count` windows of the scenes as DN, ``(count, C, side, side)`` float32, drawn once by a fixed seed."""
    rng = np.random.default_rng(0)
    windows: list[Array] = []
    for name in SCENES:
        with rasterio.open(data / "scenes" / name) as scene:
            order = [list(scene.descriptions).index(b) + 1 for b in bands]
            pixels = scene.read(order).astype("float32")
        for _ in range(count // len(SCENES)):
            top, left = (int(rng.integers(0, size - side + 1)) for size in pixels.shape[1:])
            windows.append(pixels[:, top : top + side, left : left + side])
    return np.stack(windows)


class Recorded(nn.Module):
    """A network that keeps its inputs, which are the normalised pixels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.inputs: list[Array] = []

    def forward_features(self, x: Tensor, stem: str, layers: Sequence[str]) -> dict[str, Tensor]:
        """Keep `x`, and return the maps."""
        self.inputs.extend(tile[None].numpy() for tile in x)
        run: Any = self.network
        maps: dict[str, Tensor] = run.forward_features(x, stem, tuple(layers))
        return maps


def _options(way: Way) -> dict[str, Any]:
    import nncf

    named = {"preset": nncf.QuantizationPreset, "model_type": nncf.ModelType}
    return {name: named[name](value) if name in named else value for name, value in way.options.items()}


class Int8Network(nn.Module):
    """The network of an encoder with one stem and layer quantised, for tiles of one size, on one thread."""

    def __init__(self, encoder: Encoder, dn: Array, way: Way) -> None:
        import nncf
        import openvino

        super().__init__()
        logging.getLogger("nncf").setLevel(logging.ERROR)
        side = dn.shape[-1]
        recorded = Recorded(encoder.network)
        float_network, encoder.network = encoder.network, recorded
        try:
            for tile in dn:
                encoder.encode(tile[None])
        finally:
            encoder.network = float_network
        core = openvino.Core()
        strips = conv.STRIP, spectral.STRIP
        with tempfile.TemporaryDirectory() as scratch:
            # In one strip: else each strip of a tile has a scale of its own, and vectors depend on where they are.
            conv.STRIP = spectral.STRIP = max(side, *strips)
            try:
                openvino_network._convert(
                    encoder.card, float_network, encoder.stem.name, encoder.layer.name, dn.shape[1], side, Path(scratch)
                )
            finally:
                conv.STRIP, spectral.STRIP = strips
            model = core.read_model(str(Path(scratch) / "model.xml"))
            ignored = nncf.IgnoredScope(patterns=list(way.keep), validate=False) if way.keep else None
            quantised = nncf.quantize(
                model,
                nncf.Dataset(recorded.inputs),
                subset_size=len(recorded.inputs),
                ignored_scope=ignored,
                **_options(way),
            )
            compiled = core.compile_model(
                quantised,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[way.precision],
                    "INFERENCE_NUM_THREADS": 1,
                    "NUM_STREAMS": 1,
                    "ENABLE_CPU_PINNING": False,
                },
            )
        self.layers = sum(op.get_type_name() == "FakeQuantize" for op in quantised.get_ops())
        self.request = compiled.create_infer_request()

    def forward_features(self, x: Tensor, stem: str, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the map of the layer."""
        (layer,) = layers
        maps = [np.array(self.request.infer({0: tile[None].contiguous().numpy()})[0]) for tile in x]
        return {layer: torch.from_numpy(np.concatenate(maps))}


TRUNK = (r"^aten::_convolution/.*",)
"""Layers of `tiny` outside a trunk: the local branch and the necks, which have no module of their own name."""
DEPTHWISE = (r".*GroupConvolution.*",)

WAYS = (
    Way("all layers, others float32"),
    Way("all layers, others bfloat16", "bfloat16"),
    Way("all layers, asymmetric activations, others bfloat16", "bfloat16", options={"preset": "mixed"}),
    Way("pointwise and 3 x 3, others bfloat16", "bfloat16", DEPTHWISE),
    Way("trunk, others bfloat16", "bfloat16", TRUNK),
    Way("trunk without depthwise, others bfloat16", "bfloat16", (*TRUNK, *DEPTHWISE)),
    Way("all layers of a transformer, SmoothQuant, others bfloat16", "bfloat16", options={"model_type": "transformer"}),
)
"""What is tried: weights have a scale per output channel in all."""
SCORED = {"int8": WAYS[3], "int8 in the trunk": WAYS[5]}
"""Ways that `benchmarks.precision` scores, by their name there."""


def quantised(ref: EncoderRef, data: Path, side: int, way: Way) -> Encoder:
    """Return an encoder whose network is quantised for tiles of `side` pixels."""
    encoder = ref.load("cpu")
    encoder.network = Int8Network(encoder, calibration(data, ref.stem.bands, side), way)
    return encoder


@dataclass(frozen=True)
class Config:
    """What is quantised."""

    data: Path = Path("data")
    """Folder of the data sets' folders, as for `deo-cube evaluate`."""
    model: str = "tiny"
    """Name of a model, or of one of timm, which gets random weights."""
    rgb: bool = False
    """Take the stem that reads red, green and blue."""
    side: int = 320
    """Pixels of a tile's side."""
    rounds: int = 15
    """Tiles timed per variant, by turns."""


def reference(config: Config) -> EncoderRef:
    """Return the reference of the model, which is described first if it is timm's (with random weights)."""
    bands = ["B04", "B03", "B02"] if config.rgb else None
    try:
        return resolve(config.model, bands=bands)
    except UnknownModelError:
        options = {"img_size": config.side} if config.model.startswith("vit") else {}
        every = resolve("tiny").stem.bands
        return resolve(
            describe_timm(config.model, config.model, bands=bands or every, tile=config.side, halo=0, options=options)
        )


def main(config: Config) -> None:
    """Print distance and time of every way."""
    side = config.side
    ref = reference(config)
    bands = ref.stem.bands
    scenes = test_scenes(config.data, side)
    test = np.stack([s.image[[s.bands.index(b) for b in bands], :side, :side] for s in scenes])

    def by_openvino(precision: str) -> Encoder:
        encoder = ref.load("cpu")
        encoder.network = openvino_network.OpenVINONetwork(
            ref.card, encoder.network, network_hash(encoder.network, dict(ref.sources)), stem=ref.stem.name,
            layer=ref.layer.name, tile=side, precision=precision, threads=1,
        )  # fmt: skip
        return encoder

    exact = np.concatenate([ref.load("cpu").encode(t[None]) for t in test])
    encoders = {"float32": by_openvino("float32")}
    if openvino_network.has_bfloat16():
        encoders["bfloat16"] = by_openvino("bfloat16")
    for way in WAYS:
        encoders[f"int8: {way.name}"] = quantised(ref, config.data, side, way)
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(config.rounds + 1):
        for name, encoder in encoders.items():
            begun = time.process_time()
            encoder.encode(test[turn % len(test)][None])
            if turn:  # the first is a warm-up
                seconds[name].append(time.process_time() - begun)
    print(f"{config.model}, stem {ref.stem.name}, {side} px; nncf {version('nncf')}, openvino {version('openvino')}")
    print("| precision | worst | mean | same class | ms per tile | of bfloat16 |\n|---|---|---|---|---|---|")
    stride = side // exact.shape[-1]
    mapped = [n for n, s in enumerate(scenes) if s.before is None]  # the land-cover tiles
    labels = np.stack([scenes[n].label[stride // 2 : side : stride, stride // 2 : side : stride] for n in mapped])
    base = seconds.get("bfloat16", seconds["float32"])
    for name, encoder in encoders.items():
        maps = np.concatenate([encoder.encode(t[None]) for t in test])
        apart = cosine_distances(np.moveaxis(maps, 1, 0), np.moveaxis(exact, 1, 0))
        same = same_class(maps[mapped], exact[mapped], labels)
        took = statistics.median(seconds[name])
        # Of the same turn, because other processes slow down the cores for seconds at a time.
        ratio = statistics.median(a / b for a, b in zip(seconds[name], base, strict=True))
        print(
            f"| {name} | {apart.max():.1e} | {apart.mean():.1e} | {same:.3f} | {took * 1e3:.0f} | {ratio:.2f} |",
            flush=True,
        )


def test_scenes(data: Path, side: int) -> list[readers.Scene]:
    """Return the land-cover tiles and the bark-beetle plots that hold a whole window of `side` pixels."""
    scenes = [*readers.read_terramesh(data / "landcover_terramesh"), *readers.read_beetle(data / "change_barkbeetle")]
    return [s for s in scenes if min(s.valid.shape) >= side and s.valid[:side, :side].mean() > 0.99]


def same_class(maps: Array, exact: Array, labels: Array) -> float:
    """Return the share of patches whose class by a head that was fitted on exact vectors stays the same.

    Parameters
    ----------
    maps, exact : (N, D, h, w)
        Vectors that are classified, and vectors in float32. The head is fitted on the western half of these.
    labels : (N, h, w)
        Class of each patch; -1 where it has none.
    """
    dim, width = exact.shape[1], exact.shape[3]
    flat, flat_exact = (np.moveaxis(v, 1, -1).reshape(-1, dim) for v in (maps, exact))
    west = np.broadcast_to(np.arange(width) < width // 2, labels.shape).ravel()
    trains = west & (labels.ravel() >= 0)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    head.fit(flat_exact[trains], labels.ravel()[trains])
    return float((head.predict(flat[~west]) == head.predict(flat_exact[~west])).mean())


def cosine_distances(a: Array, b: Array) -> Array:
    """Return the cosine distance of each pair of vectors ``(D, ...)``."""
    a, b = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    lengths = np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12)
    return np.maximum(1 - (a * b).sum(0) / lengths, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Config, description=__doc__))
