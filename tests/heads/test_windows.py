"""Dense heads: what they draw depends on the cells alone, not on chunks, the window asked for, or where tiles lie."""

import itertools

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from deo_cube.heads import windows
from deo_cube.heads.base import ModelId
from deo_cube.heads.classes import Classes
from deo_cube.heads.conv import ConvHead, UPerNetHead
from deo_cube.heads.maps import segment
from tests.heads.fields import embeddings, no_compute, with_patch

CELL, CORNER = 80.0, (500_000.0, 5_200_000.0)


def untrained(kind, upsample=1, dim=6, width=8):
    """A head with random weights: its laws hold without training."""
    classes = Classes((1, 2, 3), ("a", "b", "c"))
    tensors = kind.initial_tensors(dim, width, 3, ())
    # Scores far apart, so that classes vary over the map.
    tensors["out.weight"] = tensors["out.weight"] * 30
    return kind(classes, ModelId(dim), tensors, width=width, upsample=upsample)


def scene(rows=150, cols=90, **options):
    return embeddings(rows, cols, noise=0.6, cell=CELL, corner=CORNER, **options)


@st.composite
def cuts(draw, size):
    inside = draw(st.lists(st.integers(1, size - 1), max_size=5, unique=True))
    edges = [0, *sorted(inside), size]
    return tuple(b - a for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("kind", [ConvHead, UPerNetHead])
@settings(max_examples=3)
@given(data=st.data())
def test_any_chunks_give_the_same_bits(kind, data):
    emb = scene(invalid=[(70, 40), (63, 64)], north_up=data.draw(st.booleans()))
    head = untrained(kind, upsample=data.draw(st.sampled_from([1, 2])))
    whole = head.predict(emb, probabilities=True)
    assert len(np.unique(head.predict(emb).values)) >= 3
    chunks = {"y": data.draw(cuts(150)), "x": data.draw(cuts(90)), "embedding": data.draw(cuts(6))}
    with dask.config.set(scheduler=no_compute):
        lazy = head.predict(emb.chunk(chunks), probabilities=True)
    xr.testing.assert_identical(lazy.compute(scheduler="synchronous"), whole)


@pytest.mark.parametrize("kind", [ConvHead, UPerNetHead])
@settings(max_examples=3)
@given(top=st.integers(0, 40), left=st.integers(0, 20), rows=st.integers(60, 110), cols=st.integers(60, 70))
def test_a_window_equals_the_complete_result_away_from_its_edges(kind, top, left, rows, cols):
    emb, head = scene(), untrained(kind)
    whole = head.predict(emb, probabilities=True)
    part = head.predict(emb.isel(y=slice(top, top + rows), x=slice(left, left + cols)), probabilities=True)
    inner = {"y": slice(head.halo, -head.halo), "x": slice(head.halo, -head.halo)}
    here = whole.isel(y=slice(top, top + rows), x=slice(left, left + cols))
    assert part.isel(inner).size > 0
    np.testing.assert_array_equal(part.isel(inner).values, here.isel(inner).values)


@pytest.mark.parametrize("kind", [ConvHead, UPerNetHead])
@pytest.mark.parametrize("upsample", [1, 4])
def test_tiles_give_the_logits_of_one_pass_over_the_array(kind, upsample):
    emb = scene()
    head = untrained(kind, upsample)
    # Tiles begin where the grid of the world says, so borders lie inside the array.
    world = windows.georeference.anchor(windows.geobox(emb))
    assert (-world.row) % windows.CORE not in (0,) or (-world.col) % windows.CORE not in (0,)
    t = {k: torch.from_numpy(v) for k, v in head.tensors.items()}
    x = np.pad(emb.values, ((0, 0), (head.halo,) * 2, (head.halo,) * 2), constant_values=np.nan)
    with torch.inference_mode():
        once = head.forward(t, torch.from_numpy(x)[None], upsample, ())[0].softmax(0).numpy()
    c = head.halo * upsample
    np.testing.assert_allclose(head.predict(emb, probabilities=True).values, once[:, c:-c, c:-c], atol=2e-5)


def test_a_halo_too_small_would_be_seen():
    """The test above can fail: with less context than the decoder looks at, borders show."""
    emb = scene()
    head = untrained(UPerNetHead)
    whole = head.predict(emb, probabilities=True).values

    class Short(UPerNetHead):
        halo = 2

    short = Short(head.classes, head.model, head.tensors, head.width)
    assert np.abs(short.predict(emb, probabilities=True).values - whole).max() > 1e-2


def test_south_up_arrays_give_the_same_classes():
    head = untrained(ConvHead, 2)
    up, down = head.predict(scene(north_up=True)), head.predict(scene(north_up=False))
    assert (down.y.diff("y") > 0).all()
    np.testing.assert_array_equal(up.values, down.values[::-1])


@settings(max_examples=5)
@given(data=st.data())
def test_pixels_of_segment_do_not_depend_on_chunks(data):
    emb, head = with_patch(scene(70, 90)), untrained(ConvHead)
    whole = segment(emb, head, probabilities=True)
    got = segment(emb.chunk({"y": data.draw(cuts(70)), "x": data.draw(cuts(90))}), head, probabilities=True)
    xr.testing.assert_identical(got.compute(scheduler="synchronous"), whole)


def test_one_task_a_block():
    emb = scene(600, 90).chunk({"y": 100, "x": 45})
    out = untrained(ConvHead).predict(emb)
    (n,) = {len(c) for c in out.chunks[:1]}
    drawn = [k for k in dask.optimize(out.data)[0].__dask_graph__() if isinstance(k, tuple) and "class" in str(k[0])]
    blocks = n * len(out.chunks[1])
    assert n >= 3
    assert blocks <= len(drawn) <= 2 * blocks
