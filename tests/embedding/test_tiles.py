"""The tile plan covers every patch once, is anchored to the world grid, and never depends on chunks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.embedding.tiles import TileCuts, TilePlan, mirror, plan_tiles
from deo_cube.errors import TilePlanError


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    patch = draw(st.sampled_from([1, 2, 4, 8]))
    core = patch * draw(st.integers(1, 6))
    halo = patch * draw(st.integers(0, 3))
    shape = (draw(st.integers(1, 90)), draw(st.integers(1, 90)))
    origin = (draw(st.integers(-1000, 1000)), draw(st.integers(-1000, 1000)))
    return TilePlan(shape, origin, core + 2 * halo, halo, patch, core * draw(st.integers(1, 4)))


@given(plans())
def test_every_output_patch_is_made_by_exactly_one_block(plan: TilePlan) -> None:
    for axis in (plan.rows, plan.columns):
        blocks = [axis.block(i) for i in range(axis.blocks)]
        assert blocks[0].out_start == 0
        assert blocks[-1].out_stop == axis.out_size
        assert all(a.out_stop == b.out_start for a, b in pairwise(blocks))
        assert axis.chunks == tuple(b.out_size for b in blocks)
        assert sum(axis.chunks) == axis.out_size
        assert all(b.out_size > 0 for b in blocks)


@given(plans())
def test_only_the_first_and_last_blocks_may_be_smaller(plan: TilePlan) -> None:
    for axis in (plan.rows, plan.columns):
        assert all(c == plan.block // plan.patch for c in axis.chunks[1:-1])
        assert max(axis.chunks) <= plan.block // plan.patch


@given(plans())
def test_tiles_lie_on_the_world_grid(plan: TilePlan) -> None:
    for axis in (plan.rows, plan.columns):
        for i in range(axis.blocks):
            b = axis.block(i)
            world = b.read_start + axis.origin + axis.halo
            assert world % axis.core == 0
            assert b.read_size == b.tiles * axis.core + 2 * axis.halo
            first = world // axis.patch + b.skip
            assert first == axis.first_patch + b.out_start


@given(plans())
def test_pad_covers_the_cube_and_drop_stays_inside_it(plan: TilePlan) -> None:
    for axis in (plan.rows, plan.columns):
        start, stop = axis.first_patch * axis.patch, axis.last_patch * axis.patch
        assert start <= axis.origin < start + axis.patch
        assert stop - axis.patch < axis.origin + axis.size <= stop
    try:
        drop = TilePlan(plan.shape, plan.origin, plan.tile, plan.halo, plan.patch, plan.block, "drop")
    except TilePlanError as error:
        assert "edge='pad'" in str(error)  # noqa: PT017
        return
    for axis in (drop.rows, drop.columns):
        assert axis.origin <= axis.first_patch * axis.patch
        assert axis.last_patch * axis.patch <= axis.origin + axis.size


@given(st.integers(1, 40), st.integers(-200, 200))
def test_mirror_repeats_the_edge_pixel_as_numpy_symmetric_does(size: int, start: int) -> None:
    line = np.arange(size)
    padded = np.pad(line, 300, mode="symmetric")
    index = np.arange(start, start + 60)
    assert (mirror(index, size) == padded[index + 300]).all()


def test_block_is_the_multiple_of_the_core_nearest_to_the_wish() -> None:
    assert plan_tiles((4096, 4096), tile=256, halo=16, patch=8, block=1000).block == 896
    assert plan_tiles((4096, 4096), tile=256, halo=16, patch=8, block=1).block == 224
    assert plan_tiles((4096, 4096), tile=256, halo=16, patch=8).block == 1120
    assert plan_tiles((4096, 4096), tile=256, halo=0, patch=8).block == 1024
    assert plan_tiles((4096, 4096), tile=4096, halo=0, patch=8).block == 4096


def test_a_sentinel2_tile_has_the_counts_of_the_design() -> None:
    plan = plan_tiles((10980, 10980), origin=(0, 0), tile=256, halo=0, patch=8)
    assert plan.out_shape == (1373, 1373)
    assert plan_tiles((10980, 10980), tile=256, halo=0, patch=8, edge="drop").out_shape == (1372, 1372)
    assert plan.blocks == (11, 11)
    assert "1373 x 1373 patches" in repr(plan)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"tile": 250}, "tile=250.*pass tile=248"),
        ({"halo": 12}, "halo=12.*pass halo=16"),
        ({"halo": 128}, "leaves no core.*at most 120"),
        ({"block": 0}, "block must be positive"),
        ({"edge": "wrap"}, "edge must be 'pad' or 'drop'"),
        ({"shape": (0, 10)}, "no pixels"),
        ({"shape": (3, 3), "edge": "drop"}, "not one whole patch.*edge='pad'"),
        ({"halo": -8}, "must not be negative"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_size_that_does(sizes: dict[str, object], says: str) -> None:
    good: dict[str, object] = {"shape": (500, 500), "tile": 256, "halo": 16, "patch": 8, "block": 896}
    given = good | sizes
    with pytest.raises(TilePlanError, match=says):
        plan_tiles(given.pop("shape"), **given)  # type: ignore[arg-type]


def test_a_plan_whose_block_is_no_multiple_of_the_core_is_refused() -> None:
    with pytest.raises(TilePlanError, match="block=1000.*pass block=896"):
        TilePlan((500, 500), (0, 0), 256, 16, 8, 1000)


@given(plans(), st.sampled_from([0, 1, 2, 3]))
def test_tiles_cut_shorter_at_the_edge_still_hold_every_kept_patch_and_its_halo(plan: TilePlan, factor: int) -> None:
    trim = factor * plan.patch
    for r in range(plan.rows.blocks):
        rows, columns = plan.rows.block(r), plan.columns.block(0)
        cuts, per = TileCuts(plan, rows, columns, trim), plan.rows.patches_per_core
        canvas = np.full(rows.tiles * per, -1)
        for k in range(rows.tiles):
            window, _ = cuts.pixels((k, 0))
            (into, _), (out_of, _) = cuts.patches((k, 0))
            assert 0 <= window.start < window.stop <= rows.read_size
            assert window.stop - window.start == cuts.size((k, 0))[0]
            assert (window.stop - window.start) % plan.patch == 0
            # The map's patches, by their first pixel in the cube.
            made = np.arange(window.start, window.stop, plan.patch) + rows.read_start
            canvas[into] = made[out_of]
            # What was cut away lies more than a halo outside the cube.
            if window.start > k * plan.core:
                assert window.start + rows.read_start <= -plan.halo
            if window.stop < k * plan.core + plan.tile:
                assert window.stop + rows.read_start >= plan.shape[0] + plan.halo
        kept = canvas[rows.skip : rows.skip + rows.out_size]
        first = plan.rows.first_patch * plan.patch - plan.rows.origin
        expected = first + plan.patch * np.arange(rows.out_start, rows.out_stop)
        assert (kept == expected).all()


def test_trimming_saves_what_lies_outside_the_cube() -> None:
    plan = plan_tiles((500, 500), origin=(300, 700), tile=576, halo=32, patch=4)
    assert plan.encoded_pixels() == 4 * 576**2
    assert plan.encoded_pixels(32) < 0.4 * plan.encoded_pixels()
