"""Attention within windows of a map of any size, at the cost of its own tokens.

The published network pads a map to whole windows with zeros, and its tokens attend to the padding. A padded token's
key and value are the bias of the linear map, all alike: instead of computing them, the padding of a window is one more
key, whose bias is the logarithm of the sum of the exponentials of the biases that it replaces. The numbers are those of
padding, the cost is not: a map of 14 x 14 in windows of 12 is padded to 24 x 24, three tokens for each of its own.
"""

# `network_hash` hashes the source of the classes and functions below, not their docstrings. Untrained networks, and the
# stores made with them, get another identity when it changes: leave the text below as it is, or version the hash.

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deo_cube.encoder.networks.timm_import import import_timm

__all__ = ["window_attention"]

import_timm()
from timm.models.swin_transformer import WindowAttention  # noqa: E402

APART = -100.0
"""Added to the logits of tokens that only the roll brought together (the published network's number)."""


def window_attention(attn: WindowAttention, x: Tensor, shift: int) -> Tensor:
    """Return the attention of `x` within windows, shifted by `shift` tokens along axes of more than one window.

    Parameters
    ----------
    attn : WindowAttention
        The layer: its two linear maps and its table of relative positions. The side of a window is its own.
    x : Tensor [B, h, w, C]
        Normalised tokens of a map of any size.
    shift : int
        0, or half a window.

    Returns
    -------
    Tensor [B, h, w, C]
        As if the map had been padded with zeros at its right and bottom, rolled, cut into windows, and put together
        again.
    """
    h, w = x.shape[1:3]
    side = attn.window_size[0]
    rows, cols = -(-h // side), -(-w // side)
    shifts = (shift if rows > 1 else 0, shift if cols > 1 else 0)
    if (h, w) == (rows * side, cols * side):
        return _whole(attn, x, side, shifts)
    return _cut(attn, x, side, shifts)


def _whole(attn: WindowAttention, x: Tensor, side: int, shifts: tuple[int, int]) -> Tensor:
    """Attend within a map that windows tile."""
    n, h, w, c = x.shape
    rows, cols, heads = h // side, w // side, attn.num_heads
    if any(shifts):
        x = torch.roll(x, (-shifts[0], -shifts[1]), (1, 2))
    qkv = attn.qkv(x).view(n, rows, side, cols, side, 3, heads, c // heads)
    q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, n, rows * cols, heads, side * side, -1).unbind()
    bias = attn._get_rel_pos_bias()
    if any(shifts):
        bias = bias + _masks(rows, cols, side, shifts, x.device)[:, None].to(bias.dtype)
    x = _softmax(q * attn.scale, k, bias) @ v
    x = x.view(n, rows, cols, heads, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6).reshape(n, h, w, c)
    if any(shifts):
        x = torch.roll(x, shifts, (1, 2))
    out: Tensor = attn.proj(x)
    return out


def _cut(attn: WindowAttention, x: Tensor, side: int, shifts: tuple[int, int]) -> Tensor:
    """Attend within a map whose last windows reach beyond it."""
    n, h, w, c = x.shape
    heads = attn.num_heads
    plan = _plan(h, w, side, shifts, x.device)
    padding = attn.qkv.bias.to(x.dtype) if attn.qkv.bias is not None else x.new_zeros(3 * c)
    tokens = attn.qkv(x.view(n, h * w, c))
    tokens = torch.cat([tokens, padding.to(tokens.dtype).expand(n, 1, -1)], dim=1)
    every = attn._get_rel_pos_bias()[0]
    parts = []
    for kind in plan.kinds:
        part = tokens[:, kind.tokens].view(n, kind.windows, -1, 3, heads, c // heads)
        q, k, v = part.permute(3, 0, 1, 4, 2, 5).unbind()
        rows = every[:, kind.here]
        bias = rows[:, :, kind.here] + kind.apart
        if len(kind.gone):
            padded = torch.logsumexp(rows[:, :, kind.gone] + kind.gone_apart, dim=-1, keepdim=True)
            # The padding's own row stays zero: what it would attend to is thrown away.
            bias = F.pad(torch.cat([bias, padded.to(bias.dtype)], dim=-1), (0, 0, 0, 1))
        part = (_softmax(q * attn.scale, k, bias) @ v)[:, :, :, : len(kind.here)]
        parts.append(part.transpose(2, 3).reshape(n, -1, c))
    out: Tensor = attn.proj(torch.cat(parts, dim=1)[:, plan.back]).view(n, h, w, c)
    return out


def _softmax(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    weights = torch.softmax(q @ k.transpose(-2, -1) + bias, dim=-1)
    return weights.to(k.dtype)


@dataclass(frozen=True)
class _Kind:
    """Windows that hold the same of their positions: T tokens of the map, and padding on the others."""

    windows: int
    tokens: Tensor
    """(windows * T,) or, where there is padding, (windows * (T + 1),): numbers of tokens of the map, h * w for it."""
    here: Tensor
    """(T,): positions in the window of the map's tokens."""
    gone: Tensor
    """Positions of the padding."""
    apart: Tensor
    """(T, T): 0 or `APART`."""
    gone_apart: Tensor
    """(T, number of padded positions): the same."""


@dataclass(frozen=True)
class _Plan:
    kinds: tuple[_Kind, ...]
    back: Tensor
    """(h * w,): where each token of the map is in what the kinds give, one after the other."""


@functools.lru_cache(maxsize=64)
def _masks(rows: int, cols: int, side: int, shifts: tuple[int, int], device: torch.device) -> Tensor:
    """Return masks [rows * cols, side**2, side**2] of 0 and `APART`, which separate tokens that the roll joined."""
    # A cached tensor must serve inference and training alike.
    with torch.inference_mode(False):
        r, c = (_regions(n * side, side, s) for n, s in ((rows, shifts[0]), (cols, shifts[1])))
        label = 3 * r[:, None] + c[None, :]
        windows = label.view(rows, side, cols, side).transpose(1, 2).reshape(rows * cols, side * side)
        return ((windows[:, None, :] != windows[:, :, None]) * APART).to(device)


def _regions(length: int, side: int, shift: int) -> Tensor:
    """Return the region of each place of a rolled axis: tokens of two regions were far apart before the roll."""
    i = torch.arange(length, device="cpu")
    return ((i >= length - side).int() + (i >= length - shift).int()) * (1 if shift else 0)


@functools.lru_cache(maxsize=64)
def _plan(h: int, w: int, side: int, shifts: tuple[int, int], device: torch.device) -> _Plan:
    """Return the tokens of each window, windows of one kind together."""
    with torch.inference_mode(False):
        kinds, order = [], []
        for down in _axis(h, side, shifts[0]):
            for across in _axis(w, side, shifts[1]):
                here = (down.here[:, None] * side + across.here[None, :]).flatten()
                label = (3 * down.regions[:, None] + across.regions[None, :]).flatten()
                inside = torch.zeros(side * side, dtype=torch.bool, device="cpu")
                inside[here] = True
                gone = (~inside).nonzero()[:, 0]
                # (windows down, windows across, positions down, positions across) -> (windows, T)
                tokens = down.places[:, None, :, None] * w + across.places[None, :, None, :]
                tokens = tokens.reshape(-1, len(here))
                order.append(tokens.flatten())
                if len(gone):
                    tokens = F.pad(tokens, (0, 1), value=h * w)
                apart = (label[:, None] != label[None, :]) * APART
                kind = _Kind(
                    len(tokens),
                    *(t.to(device) for t in (tokens.flatten(), here, gone, apart[here][:, here], apart[here][:, gone])),
                )
                kinds.append(kind)
        return _Plan(tuple(kinds), torch.argsort(torch.cat(order)).to(device))


@dataclass(frozen=True)
class _Axis:
    """Windows of one axis that hold the same of their positions."""

    places: Tensor
    """(windows, positions held): where each is in the map."""
    here: Tensor
    """(positions held,)"""
    regions: Tensor
    """(side,)"""


def _axis(length: int, side: int, shift: int) -> list[_Axis]:
    padded = -(-length // side) * side
    places = ((torch.arange(padded, device="cpu") + shift) % padded).view(-1, side)
    regions = _regions(padded, side, shift).view(-1, side)
    found: dict[tuple[int, ...], list[int]] = {}
    for i, key in enumerate(torch.cat([(places < length).int(), regions], dim=1).tolist()):
        found.setdefault(tuple(key), []).append(i)
    kinds = []
    for windows in found.values():
        here = (places[windows[0]] < length).nonzero()[:, 0]
        if len(here):
            kinds.append(_Axis(places[windows][:, here], here, regions[windows[0]]))
    return kinds
