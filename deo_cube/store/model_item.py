"""A model card as a STAC Item of the Machine Learning Model extension (MLM)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deo_cube.cube.sentinel2 import SENTINEL2
from deo_cube.embedding.metadata import model_url
from deo_cube.encoder.card import ModelCard, Stem
from deo_cube.encoder.registry import card as find_card
from deo_cube.errors import UnknownModelError

if TYPE_CHECKING:
    import pystac

__all__ = ["MLM_EXTENSION", "model_item"]

MLM_EXTENSION = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
_FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
_SCIENTIFIC = "https://stac-extensions.github.io/scientific/v1.0.0/schema.json"
_TASKS = ["similarity-search"]


def model_item(model: str | Path | ModelCard, *, weights_sha256: str | None = None) -> pystac.Item:
    """Describe a model as an MLM Item (stac-extensions/mlm v1.4.0).

    Parameters
    ----------
    model : str, path or ModelCard
        A model's name, the folder of a training run, or a card.
    weights_sha256 : str, optional
        Hash of the weights that were used, as a store records it: a card that states another is refused.

    Returns
    -------
    pystac.Item
        Inputs for each stem, with bands in model order and their scaling; outputs for each layer; the weights as its
        asset ``model``. The extension knows no task for an encoder of features: "similarity-search" is the nearest.

    Raises
    ------
    UnknownModelError
        If there is no such model, or its card states other weights.
    """
    import pystac

    card = model if isinstance(model, ModelCard) else find_card(model)
    stated = card.weights.sha256
    if weights_sha256 and stated and weights_sha256 != stated:
        raise UnknownModelError(
            f"{card.alias} states weights {stated[:12]}..., and {weights_sha256[:12]}... were used: the card is of "
            "another version. Pass the card or the folder of that version"
        )
    checksum = stated or weights_sha256
    weights: dict[str, Any] = {"mlm:artifact_type": "safetensors" if _is_safetensors(card) else "torch.save"}
    extensions = [MLM_EXTENSION]
    if checksum:
        weights["file:checksum"] = f"1220{checksum}"  # a multihash: sha2-256, 32 bytes
        extensions.append(_FILE)
    properties: dict[str, Any] = {
        "title": card.summary,
        "description": "; ".join(card.limits) or card.summary,
        "license": "other",
        "gsd": card.gsd,
        "mlm:name": card.name,
        "mlm:architecture": str(card.architecture["family"]),
        "mlm:framework": "PyTorch",
        "mlm:tasks": _TASKS,
        "mlm:pretrained": card.trained,
        "mlm:pretrained_source": card.training_data or None if card.trained else None,
        "mlm:batch_size_suggestion": card.batch,
        "mlm:accelerator_constrained": False,
        "mlm:input": [_input(card, stem) for stem in card.stems],
        "mlm:output": [
            {
                "name": layer.name,
                "tasks": _TASKS,
                "result": {
                    "shape": [-1, layer.dim, card.tile // layer.stride, card.tile // layer.stride],
                    "dim_order": ["batch", "embedding", "height", "width"],
                    "data_type": "float32",
                },
            }
            for layer in card.layers
        ],
        "deo_cube:card": card.alias,
        "deo_cube:license_code": card.license_code,
        "deo_cube:license_weights": card.license_weights,
        "deo_cube:weights_status": card.weights.status,
    }
    if card.paper:
        properties["sci:citation"] = card.paper
        extensions.append(_SCIENTIFIC)
    # A model is of no place or day: the extension's own examples take the globe, and this century and those around it.
    globe = [-180.0, -90.0, 180.0, 90.0]
    ring = [[-180.0, -90.0], [180.0, -90.0], [180.0, 90.0], [-180.0, 90.0], [-180.0, -90.0]]
    item = pystac.Item(
        id=card.name,
        geometry={"type": "Polygon", "coordinates": [ring]},
        bbox=globe,
        datetime=None,
        start_datetime=datetime(1900, 1, 1, tzinfo=UTC),
        end_datetime=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        properties=properties,
        stac_extensions=extensions,
    )
    bands = dict.fromkeys(b for stem in card.stems for b in stem.bands)
    item.add_asset(
        "model",
        pystac.Asset(
            model_url(card),
            title=card.weights.file,
            media_type="application/octet-stream; application=" + weights["mlm:artifact_type"],
            roles=["mlm:model", "mlm:weights"],
            extra_fields={**weights, "bands": [_band(b) for b in bands]},
        ),
    )
    return item


def _input(card: ModelCard, stem: Stem) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": stem.name,
        "description": f"{card.product_level} in {card.units}: reflectance x 10000 without offset"
        if card.units == "dn"
        else f"{card.product_level} reflectance, 0..1",
        "bands": list(stem.bands),
        "input": {
            "shape": [-1, len(stem.bands), card.tile, card.tile],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "pre_processing_function": None,
    }
    scaling = stem.normalization()
    if scaling.kind == "fixed":
        told["value_scaling"] = [
            {"type": "z-score", "mean": m, "stddev": s} for m, s in zip(scaling.mean, scaling.std, strict=True)
        ]
    else:
        told["pre_processing_function"] = {"format": "deo_cube:normalization", "expression": scaling.name}
    return told


def _band(name: str) -> dict[str, Any]:
    band = SENTINEL2[name]
    found = {
        "name": name,
        "eo:common_name": band.common_name,
        "eo:center_wavelength": band.wavelength / 1000,
        "eo:full_width_half_max": band.fwhm / 1000,
    }
    return {k: v for k, v in found.items() if v is not None}


def _is_safetensors(card: ModelCard) -> bool:
    return card.weights.file.endswith(".safetensors")
