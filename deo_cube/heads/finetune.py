"""Train the last blocks of an encoder on labels, then fit a head on the tuned features.

A linear map on the frozen features is fitted first and trained further together with the blocks (linear probing, then
fine-tuning: Kumar et al. 2022, arXiv:2202.10054), so that an untrained head does not destroy the features it starts
from. The requested head is then fitted on the tuned features. The result is a folder with card and weights, as a
training run writes them, and the head; none of it is a pickle.
"""

from __future__ import annotations

import dataclasses
import time as clock
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer
from deo_cube.cube.esa import opened_cube
from deo_cube.cube.units import canonical
from deo_cube.embedding.embed import embed
from deo_cube.embedding.options import split_options
from deo_cube.embedding.prepare import Prepared, prepare
from deo_cube.embedding.tiles import plan_tiles
from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.normalize import normalize
from deo_cube.errors import ArgumentError
from deo_cube.extras import require
from deo_cube.heads.base import ModelId
from deo_cube.heads.classes import NO_CLASS
from deo_cube.heads.labels import LabelOptions, rasterize_all
from deo_cube.heads.linear import LinearHead, LinearOptions
from deo_cube.heads.splits import blocks as spatial_blocks
from deo_cube.heads.vectors import as_embeddings

__all__ = ["HEAD_FILE", "fit_tuned"]

Array = NDArray[Any]
Cube = xr.Dataset | xr.DataArray

HEAD_FILE = "head.safetensors"
"""Name of the head in the folder."""


def fit_tuned(
    head_of: Any,
    cube: Cube,
    labels: Any,
    label_options: LabelOptions,
    *,
    finetune: int,
    folder: str | Path,
    model: Any = "tiny",
    time: Any = None,
    embed_options: Mapping[str, Any] | None = None,
    tune_steps: int = 100,
    tune_rate: float = 1e-4,
    tune_batch: int = 2,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Fine-tune an encoder and fit a head on it: `fit_head` with ``finetune=K``.

    Parameters
    ----------
    head_of : type
        Class of the head, which is fitted on the tuned features.
    labels, label_options, time, options
        As in `fit_head`.
    cube : Dataset or DataArray
        Pixels (embeddings are refused): blocks cannot be trained on embeddings.
    finetune : int
        Number of blocks that are trained: the last ones that the layer depends on, and the norm or neck after them.
    folder : path
        Where card, weights and head are written.
    model : str, path or ModelCard
        Where training starts.
    embed_options : mapping, optional
        Of `embed`: units, offset, layer, tile, ...
    tune_steps, tune_rate, tune_batch, seed
        Of the training with AdamW; a batch has `tune_batch` tiles.

    Returns
    -------
    Head
        Its `report` has, under ``finetune``, the blocks trained, the loss, and the accuracy (balanced over classes) of
        a linear head on held-out blocks of space before and after. They are never trained on; the accuracy is None
        where labels are in too few places to hold any out.
    """
    import torch

    from deo_cube.encoder.loading import write_model

    require("sklearn", "scipy", extra="heads", purpose="fine-tuning")
    start = clock.perf_counter()
    own_options = head_of.options(**options)
    cube = opened_cube(cube)
    integer("finetune", finetune)
    embed_options = {k: v for k, v in (embed_options or {}).items() if k not in ("dtype", "model")}
    if time is not None:
        cube = cube.sel(time=time)
    prepared = prepare(cube, split_options({"model": model, "dtype": "float32"} | embed_options)[0])
    frozen = as_embeddings(embed(cube, model, dtype="float32", **embed_options))
    raster = rasterize_all([labels], [frozen], label_options)[0]
    training, held_out = _held_out(raster)
    linear = _fit_linear(frozen, training)
    windows = list(_training_tiles(cube, prepared, training.values, np.array(linear.classes.codes)))
    network: Any = prepared.ref.load("cpu").network
    from deo_cube.encoder.torch_settings import encoder_products

    with encoder_products("cpu"):
        trained = _unfreeze(network, prepared, windows[0][0], finetune)
        losses = _train(network, prepared, windows, linear, tune_steps, tune_rate, tune_batch, seed)
    card = _tuned_card(prepared.ref.card, trained, int((training.values != NO_CLASS).sum()))
    network.requires_grad_(False)
    with torch.inference_mode():
        sample = np.stack([pixels for pixels, _ in windows[:4]])
        write_model(card, network, folder, sample=sample if prepared.ref.stem == card.stem() else None)
    tuned = as_embeddings(embed(cube, folder, dtype="float32", **embed_options))
    report = {
        "blocks": trained, "steps": tune_steps, "rate": tune_rate, "tiles": len(windows), "seed": seed,
        "loss_frozen": round(losses[0], 4), "loss_tuned": round(losses[1], 4),
        "held_out": None if held_out is None else {
            "cells": int((held_out.values != NO_CLASS).sum()),
            "frozen": _balanced_accuracy(linear, frozen, held_out),
            "tuned": _balanced_accuracy(_fit_linear(tuned, training), tuned, held_out),
        },
    }  # fmt: skip
    head: Any = head_of.fit([tuned], [raster], LabelOptions(), ModelId.of(tuned), own_options)
    head.report.update(finetune=report, seconds=round(clock.perf_counter() - start, 2))
    head = dataclasses.replace(head, model=dataclasses.replace(head.model, alias=str(Path(folder).resolve())))
    head.save(Path(folder) / HEAD_FILE)
    return head


def _fit_linear(emb: xr.DataArray, raster: xr.DataArray) -> LinearHead:
    return LinearHead.fit([emb], [raster], LabelOptions(), ModelId.of(emb), LinearOptions())


def _held_out(raster: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Return labels to train on, and those of about a quarter of the blocks of space to test on."""
    rows, cols = np.nonzero(raster.values != NO_CLASS)
    side = max(int(np.ptp(rows)), int(np.ptp(cols)), 6) / 6
    try:
        folds = spatial_blocks(cols, rows, side, folds=4, buffer=1.5)
    except ArgumentError:
        return raster, None
    classes = set(np.unique(raster.values[rows, cols]))
    for train, test in folds:
        if set(np.unique(raster.values[rows[train], cols[train]])) == classes and test.any():
            return _only_cells(raster, rows[train], cols[train]), _only_cells(raster, rows[test], cols[test])
    return raster, None


def _only_cells(raster: xr.DataArray, rows: Array, cols: Array) -> xr.DataArray:
    values = np.full(raster.shape, NO_CLASS, "uint8")
    values[rows, cols] = raster.values[rows, cols]
    return raster.copy(data=values)


def _balanced_accuracy(head: LinearHead, emb: xr.DataArray, held_out: xr.DataArray) -> float:
    """Return the accuracy on held-out labels of all times, averaged over classes."""
    predicted = np.asarray(head.predict(emb).values)
    truth = np.broadcast_to(held_out.values, predicted.shape)
    known = (truth != NO_CLASS) & (predicted != NO_CLASS)
    per_class = [float((predicted[known & (truth == c)] == c).mean()) for c in np.unique(truth[known])]
    return round(float(np.mean(per_class)), 3) if per_class else float("nan")


def _training_tiles(cube: Cube, p: Prepared, codes: Array, classes: Array) -> Iterator[tuple[Array, Array]]:
    """Yield tiles with labels: pixels (C, tile, tile) in the card's units, and the class index per token (-1: none)."""
    # One tile per block, at the places where `embed` has them, so that the encoder sees the same tiles.
    plan = plan_tiles(
        p.plan.shape, origin=p.plan.origin, tile=p.plan.tile, halo=p.plan.halo, patch=p.plan.patch, block=p.plan.core
    )
    codes = codes[::-1] if p.window_reader.south_up else codes
    class_index = np.full(NO_CLASS + 1, -1)
    class_index[classes] = np.arange(len(classes))
    tokens, edge = plan.tile // plan.patch, plan.halo // plan.patch
    for t, r, c in product(range(p.times), range(plan.blocks[0]), range(plan.blocks[1])):
        rows, cols = plan.rows.block(r), plan.columns.block(c)
        core_codes = codes[rows.out_start : rows.out_stop, cols.out_start : cols.out_stop]
        if (core_codes == NO_CLASS).all():
            continue
        pixels, valid = _pixels(cube, p, t, rows.source_index(plan.shape[0]), cols.source_index(plan.shape[1]))
        target = np.full((tokens, tokens), -1)
        top, left = edge + rows.skip, edge + cols.skip
        target[top : top + core_codes.shape[0], left : left + core_codes.shape[1]] = class_index[core_codes]
        valid_tokens = valid.reshape(tokens, plan.patch, tokens, plan.patch).any(axis=(1, 3))
        target[~valid_tokens] = -1
        if (target >= 0).any():
            yield pixels, target


def _pixels(cube: Cube, p: Prepared, t: int, rows: Array, cols: Array) -> tuple[Array, Array]:
    """Return north-up pixels (C, h, w) in the card's units, invalid ones neutral, and which of them are valid."""
    rows = p.plan.shape[0] - 1 - rows if p.window_reader.south_up else rows
    top, left = int(rows.min()), int(cols.min())
    window = {p.dims.y: slice(top, int(rows.max()) + 1), p.dims.x: slice(left, int(cols.max()) + 1)}
    stem, card = p.ref.stem, p.ref.card
    pixels = np.empty((len(stem.bands), len(rows), len(cols)), "float32")
    valid = np.ones((len(rows), len(cols)), bool)
    indices = p.match.indices or (None,) * len(p.match.variables)
    for i, (name, index) in enumerate(zip(p.match.variables, indices, strict=True)):
        if name is None:
            pixels[i] = stem.fill[i]
            continue
        layer = cube[name] if p.match.band_dim is None else cube.isel({p.match.band_dim: index})
        layer = layer.isel(window | ({p.dims.time: t} if p.dims.time else {})).transpose(p.dims.y, p.dims.x)
        dn = canonical(np.asarray(layer.values), p.radiometry, t)[np.ix_(rows - top, cols - left)]
        valid &= np.isfinite(dn)
        pixels[i] = np.where(np.isfinite(dn), dn if card.units == "dn" else dn * 1e-4, stem.fill[i])
    return pixels, valid


def _unfreeze(network: Any, p: Prepared, tile: Array, count: int) -> list[str]:
    """Make the last `count` blocks that the layer depends on trainable, and the norm or neck after them.

    Returns their names.
    """
    network.requires_grad_(True)
    out = _features(network, p, tile[None])
    out.square().mean().backward()
    # Parameters without a gradient do not contribute to the layer.
    used = {n for n, q in network.named_parameters() if q.grad is not None}
    blocks = [u for u in _block_names(network) if any(n.startswith(f"{u}.") for n in used)]
    if count > len(blocks):
        raise ArgumentError(
            f"finetune={count}, but layer {p.ref.layer.name!r} of {p.ref.card.alias} depends on {len(blocks)} blocks: "
            f"pass finetune={len(blocks)} or less"
        )
    last = blocks[-count:]
    after = [n for n in ("norm", "necks", "model.norm", "model.fc_norm") if any(u.startswith(f"{n}.") for u in used)]
    for name, parameter in network.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(name in used and any(name.startswith(f"{u}.") for u in (*last, *after)))
    return [*last, *after]


def _block_names(network: Any) -> list[str]:
    """Return the names of a network's blocks, first to last."""
    from torch import nn

    modules = dict(network.named_modules())
    if "spectral.block1" in modules:
        # Two trunks, of which the layer depends on one.
        return [
            "spectral.block1",
            "spectral.block2",
            "spectral.block3",
            *(f"trunk.pairs.{i}" for i in range(len(network.trunk.pairs))),
        ]
    for name in ("blocks", "features", "trunk.pairs", "model.blocks", "model.stages", "model.layers"):
        if isinstance(modules.get(name), nn.ModuleList | nn.Sequential):
            names = []
            for i, part in enumerate(modules[name]):
                inner = range(len(part)) if isinstance(part, nn.Sequential) else None
                names += [f"{name}.{i}"] if inner is None else [f"{name}.{i}.{k}" for k in inner]
            return names
    raise ArgumentError(
        f"finetune must be 0 for a {type(network).__name__}, whose blocks are not known: it works for the families "
        "vit, swin, conv, spectral and timm"
    )


def _features(network: Any, p: Prepared, batch: Array) -> Any:
    import torch

    x = normalize(torch.from_numpy(batch), p.ref.stem, p.ref.normalization)
    return network.forward_features(x, p.ref.stem.name, (p.ref.layer.name,))[p.ref.layer.name]


def _train(
    network: Any, p: Prepared, tiles: list[tuple[Array, Array]], linear: LinearHead, steps: int, rate: float,
    batch: int, seed: int,
) -> tuple[float, float]:  # fmt: skip
    """Train the unfrozen blocks and the linear head; return the loss over all tiles before and after."""
    import torch
    import torch.nn.functional as F

    weight = torch.tensor(linear.weights.T, dtype=torch.float32)[:, :, None, None].requires_grad_()
    bias = torch.tensor(linear.bias, dtype=torch.float32).requires_grad_()
    labels = np.concatenate([t[t >= 0] for _, t in tiles])
    count = np.bincount(labels, minlength=len(linear.bias))
    class_weight = torch.tensor(count.sum() / (len(count) * np.maximum(count, 1)), dtype=torch.float32)
    tuned = [q for q in network.parameters() if q.requires_grad]
    optimizer = torch.optim.AdamW([*tuned, weight, bias], lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2))
    rng = np.random.default_rng(seed)

    def loss_of(pixels: Array, target: Array) -> Any:
        features = _features(network, p, np.ascontiguousarray(pixels))
        truth = torch.from_numpy(np.ascontiguousarray(target))
        return F.cross_entropy(F.conv2d(features, weight, bias), truth, weight=class_weight, ignore_index=-1)

    def loss_of_all() -> float:
        with torch.no_grad():
            return float(np.mean([float(loss_of(pixels[None], target[None])) for pixels, target in tiles]))

    loss_before = loss_of_all()
    for _ in range(steps):
        chosen = rng.integers(0, len(tiles), min(batch, len(tiles)))
        quarter_turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        pixels, target = (np.rot90(np.stack([tiles[i][k] for i in chosen]), quarter_turns, (-2, -1)) for k in (0, 1))
        if mirror:
            pixels, target = pixels[..., ::-1], target[..., ::-1]
        loss = loss_of(pixels, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss_before, loss_of_all()


def _tuned_card(card: ModelCard, blocks: list[str], cells: int) -> ModelCard:
    """Return the card of the tuned model, without the scores of the model that it comes from."""
    return dataclasses.replace(
        card,
        name=f"{card.name}.tuned",
        alias=f"{card.alias}-tuned",
        summary=f"{card.alias} with {', '.join(blocks)} fine-tuned on {cells} labelled cells. {card.summary}",
        weights=Weights("trained" if card.trained else "untrained", "weights.safetensors"),
        reference=None,
        training_data=f"{card.training_data}; then labels of one user on {cells} cells",
        scores=(),
        limits=(
            "Fine-tuned on few labels of one place: suitable for that question, not evaluated for any other.",
            *card.limits,
        ),
    )
