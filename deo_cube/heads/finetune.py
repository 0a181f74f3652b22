"""Train the last blocks of an encoder on labels, then fit a head on what it has become.

A linear map on the frozen features comes first and goes on training with the blocks (linear probing, then fine-tuning:
Kumar et al. 2022, arXiv:2202.10054), so that an untrained head does not tear up the features it starts from. The head
that was asked for is fitted anew on the tuned features. The result is a folder: card and weights, as a training run
leaves them, and the head, none of it a pickle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import cube_of, integer
from deo_cube.cube.units import canonical
from deo_cube.embedding.embed import embed
from deo_cube.embedding.options import split_options
from deo_cube.embedding.prepare import Prepared, prepare
from deo_cube.embedding.tiles import plan_tiles
from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.errors import ArgumentError
from deo_cube.heads.classes import NO_CLASS
from deo_cube.heads.head import fit_head
from deo_cube.heads.labels import burn
from deo_cube.heads.splits import blocks as space_blocks

__all__ = ["HEAD_FILE", "fit_tuned"]

Array = NDArray[Any]
Cube = xr.Dataset | xr.DataArray

HEAD_FILE = "head.safetensors"
"""Where the head lies in the folder."""


def fit_tuned(
    kind: Any,
    cube: Cube,
    labels: Any,
    *,
    finetune: int,
    folder: str | Path,
    model: Any = "tiny",
    time: Any = None,
    burn_options: Mapping[str, Any] | None = None,
    embed_options: Mapping[str, Any] | None = None,
    tune_steps: int = 100,
    tune_rate: float = 1e-4,
    tune_batch: int = 2,
    seed: int = 0,
    **options: Any,
) -> Any:
    """What `fit_head` does with ``finetune=K``; see there.

    Parameters
    ----------
    kind, labels, time, options
        Of `fit_head`.
    cube : Dataset or DataArray
        Pixels (embeddings are refused): the blocks cannot be trained on embeddings.
    finetune : int
        How many blocks are trained: the last that the model's layer rests on, and the norm or neck behind them.
    folder : path
        Where card, weights and head are written.
    model : str, path or ModelCard
        Where training starts.
    embed_options : mapping, optional
        Of `embed`: units, offset, layer, tile, ...
    tune_steps, tune_rate, tune_batch, seed
        Of the training with AdamW; a batch is so many tiles.

    Returns
    -------
    Head
        Its `report` has, under ``finetune``, the blocks trained, the loss, and the accuracy (balanced over classes) of
        a linear head on held-out blocks of space before and after. They are never trained on; where labels lie in too
        few places to hold any out, it is None.
    """
    import torch

    cube = cube_of(cube)
    integer("finetune", finetune)
    embed_options = {k: v for k, v in (embed_options or {}).items() if k not in ("dtype", "model")}
    if time is not None:
        cube = cube.sel(time=time)
    prepared = prepare(cube, split_options({"model": model, "dtype": "float32"} | embed_options)[0])
    before = embed(cube, model, dtype="float32", **embed_options)
    burnt = burn(labels, before, **(burn_options or {}))
    training, held = _held_out(burnt)
    first = fit_head("linear", before, training)
    codes = np.array(first.classes.codes)
    windows = list(_windows(cube, prepared, training.values, codes))
    network: Any = prepared.ref.load("cpu").network
    names = _release(network, prepared, windows[0][0], finetune)
    losses = _train(network, prepared, windows, first, tune_steps, tune_rate, tune_batch, seed)
    card = _card(prepared.ref.card, names, int((training.values != NO_CLASS).sum()))
    from deo_cube.encoder.loading import write_model

    network.requires_grad_(False)
    with torch.inference_mode():
        sample = np.stack([w for w, _ in windows[:4]])
        write_model(card, network, folder, sample=sample if prepared.ref.stem == card.stem() else None)
    after = embed(cube, folder, dtype="float32", **embed_options)
    report = {
        "blocks": names, "steps": tune_steps, "rate": tune_rate, "tiles": len(windows), "seed": seed,
        "loss_frozen": round(losses[0], 4), "loss_tuned": round(losses[1], 4),
        "held_out": None if held is None else {
            "cells": int((held.values != NO_CLASS).sum()),
            "frozen": _score(first, before, held),
            "tuned": _score(fit_head("linear", after, training), after, held),
        },
    }  # fmt: skip
    head: Any = fit_head(kind, after, burnt, **options)
    head.report["finetune"] = report
    head = dataclasses.replace(head, model=dataclasses.replace(head.model, alias=str(Path(folder).resolve())))
    head.save(Path(folder) / HEAD_FILE)
    return head


def _held_out(burnt: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Labels to train on, and those of about a quarter of the blocks of space to test on."""
    rows, cols = np.nonzero(burnt.values != NO_CLASS)
    side = max(int(np.ptp(rows)), int(np.ptp(cols)), 6) / 6
    try:
        folds = space_blocks(cols, rows, side, folds=4, buffer=1.5)
    except ValueError:
        return burnt, None
    wanted = set(np.unique(burnt.values[rows, cols]))
    for train, test in folds:
        if set(np.unique(burnt.values[rows[train], cols[train]])) == wanted and test.any():
            parts = []
            for keep in (train, test):
                values = np.full(burnt.shape, NO_CLASS, "uint8")
                values[rows[keep], cols[keep]] = burnt.values[rows[keep], cols[keep]]
                parts.append(burnt.copy(data=values))
            return parts[0], parts[1]
    return burnt, None


def _score(head: Any, emb: xr.DataArray, held: xr.DataArray) -> float:
    """Accuracy balanced over classes on the labels held out, every time counting."""
    found = np.asarray(head.predict(emb).values)
    truth = np.broadcast_to(held.values, found.shape)
    known = (truth != NO_CLASS) & (found != NO_CLASS)
    each = [float((found[known & (truth == c)] == c).mean()) for c in np.unique(truth[known])]
    return round(float(np.mean(each)), 3) if each else float("nan")


def _windows(cube: Cube, p: Prepared, codes: Array, present: Array) -> Iterator[tuple[Array, Array]]:
    """Tiles with labels: pixels (C, tile, tile) in the card's units, and the class index of each token, -1 for none."""
    # One tile a block, where `embed` has it: the encoder sees what it sees there.
    plan = plan_tiles(
        p.plan.shape, origin=p.plan.origin, tile=p.plan.tile, halo=p.plan.halo, patch=p.plan.patch, block=p.plan.core
    )
    codes = codes[::-1] if p.gather.south_up else codes
    index = np.full(NO_CLASS + 1, -1)
    index[present] = np.arange(len(present))
    tokens, edge = plan.tile // plan.patch, plan.halo // plan.patch
    for t, r, c in product(range(p.times), range(plan.blocks[0]), range(plan.blocks[1])):
        rows, cols = plan.rows.block(r), plan.columns.block(c)
        own = codes[rows.out_start : rows.out_stop, cols.out_start : cols.out_stop]
        if (own == NO_CLASS).all():
            continue
        pixels, known = _pixels(cube, p, t, rows.source_index(plan.shape[0]), cols.source_index(plan.shape[1]))
        target = np.full((tokens, tokens), -1)
        top, left = edge + rows.skip, edge + cols.skip
        target[top : top + own.shape[0], left : left + own.shape[1]] = index[own]
        seen = known.reshape(tokens, plan.patch, tokens, plan.patch).any(axis=(1, 3))
        target[~seen] = -1
        if (target >= 0).any():
            yield pixels, target


def _pixels(cube: Cube, p: Prepared, t: int, rows: Array, cols: Array) -> tuple[Array, Array]:
    """Pixels (C, h, w) in the card's units, invalid ones neutral; and which are valid. North up."""
    rows = p.plan.shape[0] - 1 - rows if p.gather.south_up else rows
    top, left = int(rows.min()), int(cols.min())
    span = {p.dims.y: slice(top, int(rows.max()) + 1), p.dims.x: slice(left, int(cols.max()) + 1)}
    stem, card = p.ref.stem, p.ref.card
    out, known = np.empty((len(stem.bands), len(rows), len(cols)), "float32"), np.ones((len(rows), len(cols)), bool)
    indices = p.match.indices or (None,) * len(p.match.variables)
    for i, (name, index) in enumerate(zip(p.match.variables, indices, strict=True)):
        if name is None:
            out[i] = stem.fill[i]
            continue
        layer = cube[name] if p.match.band_dim is None else cube.isel({p.match.band_dim: index})
        layer = layer.isel(span | ({p.dims.time: t} if p.dims.time else {})).transpose(p.dims.y, p.dims.x)
        dn = canonical(np.asarray(layer.values), p.radiometry, t)[np.ix_(rows - top, cols - left)]
        known &= np.isfinite(dn)
        out[i] = np.where(np.isfinite(dn), dn if card.units == "dn" else dn * 1e-4, stem.fill[i])
    return out, known


def _release(network: Any, p: Prepared, tile: Array, wanted: int) -> list[str]:
    """Let the last `wanted` blocks that the layer rests on train, and the norm or neck behind them; their names."""
    network.requires_grad_(True)
    out = _features(network, p, tile[None])
    out.square().mean().backward()
    used = {n for n, q in network.named_parameters() if q.grad is not None}
    units = [u for u in _units(network) if any(n.startswith(f"{u}.") for n in used)]
    if wanted > len(units):
        raise ArgumentError(
            f"finetune={wanted}, but layer {p.ref.layer.name!r} of {p.ref.card.alias} rests on {len(units)} blocks"
        )
    kept = units[-wanted:]
    behind = [n for n in ("norm", "necks", "model.norm", "model.fc_norm") if any(u.startswith(f"{n}.") for u in used)]
    for name, parameter in network.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(name in used and any(name.startswith(f"{u}.") for u in (*kept, *behind)))
    return [*kept, *behind]


def _units(network: Any) -> list[str]:
    """Names of a network's blocks, first to last."""
    from torch import nn

    modules = dict(network.named_modules())
    for name in ("blocks", "features", "trunk.pairs", "model.blocks", "model.stages", "model.layers"):
        if isinstance(modules.get(name), nn.ModuleList | nn.Sequential):
            found = []
            for i, part in enumerate(modules[name]):
                inner = range(len(part)) if isinstance(part, nn.Sequential) else None
                found += [f"{name}.{i}"] if inner is None else [f"{name}.{i}.{k}" for k in inner]
            return found
    raise ArgumentError(
        f"where the blocks of a {type(network).__name__} are is not known: finetune works for the families vit, swin, "
        "conv and timm"
    )


def _features(network: Any, p: Prepared, batch: Array) -> Any:
    import torch

    from deo_cube.encoder.normalize import normalize

    x = normalize(torch.from_numpy(batch), p.ref.stem, p.ref.normalization)
    return network.forward_features(x, p.ref.stem.name, (p.ref.layer.name,))[p.ref.layer.name]


def _train(
    network: Any, p: Prepared, windows: list[tuple[Array, Array]], first: Any, steps: int, rate: float, batch: int,
    seed: int,
) -> tuple[float, float]:  # fmt: skip
    """Loss over all tiles before and after."""
    import torch
    import torch.nn.functional as F

    weight = torch.tensor(first.weights.T, dtype=torch.float32)[:, :, None, None].requires_grad_()
    bias = torch.tensor(first.bias, dtype=torch.float32).requires_grad_()
    truth = np.concatenate([t[t >= 0] for _, t in windows])
    count = np.bincount(truth, minlength=len(first.bias))
    balance = torch.tensor(count.sum() / (len(count) * np.maximum(count, 1)), dtype=torch.float32)
    tuned = [q for q in network.parameters() if q.requires_grad]
    adam = torch.optim.AdamW([*tuned, weight, bias], lr=rate, weight_decay=1e-2)
    plan = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=max(steps, 2))
    rng = np.random.default_rng(seed)

    def loss_of(pixels: Array, target: Array) -> Any:
        z = _features(network, p, np.ascontiguousarray(pixels))
        wanted = torch.from_numpy(np.ascontiguousarray(target))
        return F.cross_entropy(F.conv2d(z, weight, bias), wanted, weight=balance, ignore_index=-1)

    def whole() -> float:
        with torch.no_grad():
            return float(np.mean([float(loss_of(w[None], t[None])) for w, t in windows]))

    first_loss = whole()
    for _ in range(steps):
        pick = rng.integers(0, len(windows), min(batch, len(windows)))
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        pixels, target = (np.rot90(np.stack([windows[i][k] for i in pick]), turn, (-2, -1)) for k in (0, 1))
        if flip:
            pixels, target = pixels[..., ::-1], target[..., ::-1]
        loss = loss_of(pixels, target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        plan.step()
    return first_loss, whole()


def _card(card: ModelCard, names: list[str], cells: int) -> ModelCard:
    """Of the tuned model: the scores of the one it comes from are not its own."""
    return dataclasses.replace(
        card,
        name=f"{card.name}.tuned",
        alias=f"{card.alias}-tuned",
        summary=f"{card.alias} with {', '.join(names)} fine-tuned on {cells} labelled cells. {card.summary}",
        weights=Weights("trained" if card.trained else "untrained", "weights.safetensors"),
        reference=None,
        training_data=f"{card.training_data}; then labels of one user on {cells} cells",
        scores=(),
        limits=(
            "Fine-tuned on few labels of one place: good for that question, not proven for any other.",
            *card.limits,
        ),
    )
