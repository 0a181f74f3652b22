"""A small model of series with random weights, as the folder of a card."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from deo_cube.encoder.networks.presto import Presto
from deo_cube.encoder.registry import card

SIZES = {"dim": 16, "depth": 1, "heads": 2, "months": 24}


def series_model(folder: Path) -> Path:
    """Write card and weights to `folder`, and return it."""
    torch.manual_seed(0)
    network = Presto(stems={"ms": 10}, **SIZES)
    torch.nn.init.normal_(network.pos_embed)
    save_file(dict(network.state_dict()), folder / "small.safetensors")
    of_presto = card("presto")
    dataclasses.replace(
        of_presto,
        name="small_presto.v1",
        alias="small_presto",
        architecture={"family": "presto", **SIZES},
        layers=(dataclasses.replace(of_presto.layers[0], dim=16),),
        weights=dataclasses.replace(of_presto.weights, file="small.safetensors", key_prefixes=(), url=None),
        reference=None,
        scores=(),
    ).save(folder / "card.json")
    return folder
