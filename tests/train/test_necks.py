from __future__ import annotations

import dataclasses

import pytest
import torch

from deo_cube.encoder.networks.conv import DeoConv
from deo_cube.errors import ArgumentError
from deo_cube.train.config import PRESETS, Neck
from deo_cube.train.necks import fit_local, fit_necks, neck_of
from deo_cube.train.samples import Mixture, open_source, windows_for
from deo_cube.train.student import describe_run, untrained_stems

LOCAL, DEEP, DIM = 12, 20, 16
PARTS = {"local": LOCAL, "pw3": 8, "pw5": 12}


def features(n: int = 400) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    mixed = torch.randn(n, 10, generator=random, dtype=torch.float64) @ torch.randn(
        10, LOCAL + DEEP, generator=random, dtype=torch.float64
    )
    return 5 + mixed + 0.05 * torch.randn(n, LOCAL + DEEP, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("neck", [Neck(8, 8), Neck(0, 12, of="chips"), Neck(4, 4, 0.25, 0.5), Neck(12, 4)])
def test_channels_are_centred_and_even(neck: Neck) -> None:
    x = features()
    weight, bias = neck_of(x, PARTS, DIM, neck)
    z = x.float() @ weight.T + bias
    assert weight.shape == (DIM, LOCAL + DEEP)
    torch.testing.assert_close(z.mean(0), torch.zeros(DIM), atol=1e-4, rtol=0)
    assert z.var(0).mean().item() == pytest.approx(1, rel=0.01)
    # The rotation spreads the variance: no channel carries what a principal component would.
    assert z.std(0).max() < 3 * z.std(0).mean()
    assert torch.linalg.matrix_rank(weight, rtol=1e-4) == neck.local + neck.deep
    if neck.local == 0:
        assert (weight[:, :LOCAL] == 0).all()


def test_distances_are_those_of_the_components() -> None:
    """Without whitening and rescaling the neck is a rotation: it keeps distances up to one factor."""
    x = features()
    weight, bias = neck_of(x, PARTS, DIM, Neck(LOCAL, 0, local_power=0.0))
    z = x.float() @ weight.T + bias
    ratio = torch.pdist(z[:50]) / torch.pdist(x[:50, :LOCAL].float())
    assert ratio.std() / ratio.mean() < 1e-3


def test_gains_are_shares_of_a_distance() -> None:
    """Blocks that know nothing of each other: the part of the variance that each has is its gain squared."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(4000, LOCAL + DEEP + LOCAL, generator=random, dtype=torch.float64)
    parts = PARTS | {"contrast": LOCAL}
    neck = Neck(4, 4, contrast=4, contrast_gain=2.0, deep_gain=0.5)
    weight, bias = neck_of(x, parts, DIM, neck)
    assert (x.float() @ weight.T + bias).var(0).mean().item() == pytest.approx(1, rel=0.01)
    shares = [(weight[:, a:b] ** 2).sum().item() for a, b in ((0, 12), (12, 32), (32, 44))]
    expected = [v / (1 + 0.25 + 4) for v in (1, 0.25, 4)]
    assert [s / sum(shares) for s in shares] == pytest.approx(expected, rel=0.1)


def test_contrast_that_the_network_does_not_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="contrast"):
        neck_of(features(), PARTS, DIM, Neck(4, 4, contrast=4))


def test_a_neck_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="neck"):
        neck_of(features(), PARTS, DIM, Neck(10, 10))


def test_necks_and_local_branches_are_fitted_for_the_stems_that_have_windows() -> None:
    torch.manual_seed(0)
    network = DeoConv(stems={"ms": 10, "rgb": 3}, dim=24, local=16, depth=6)
    config = dataclasses.replace(
        PRESETS["smoke"],
        student=dataclasses.replace(PRESETS["smoke"].student, family="conv", dim=24, depths=(6,), local=16),
        neck_ms=Neck(8, 12),
    )
    before = {k: v.clone() for k, v in network.state_dict().items()}
    windows = {"ms": torch.randn(12, 10, 32, 32)}
    fit_local(network, windows, seed=0)
    fit_necks(network, windows, config)
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"local.ms.weight", "local.ms.bias", "necks.ms.weight", "necks.ms.bias"}
    fused = network.forward_features(windows["ms"], "ms", ("fused",))["fused"]
    assert abs(fused.mean().item()) < 0.05
    assert fused.var().item() == pytest.approx(1, rel=0.2)


def test_a_local_branch_may_prefer_patches_that_are_like_many_others() -> None:
    # Nine windows of ten show one surface, the tenth another.
    common, rare = torch.randn(1, 10, 1, 1), torch.randn(1, 10, 1, 1)
    x = torch.cat([common.expand(54, 10, 16, 16), rare.expand(6, 10, 16, 16)]) + 0.1 * torch.randn(60, 10, 16, 16)

    def answers(typical: float) -> float:
        """Filters that answer more to the rare surface."""
        network = DeoConv(stems={"ms": 10}, dim=24, local=64, depth=6)
        fit_local(network, {"ms": x}, seed=0, typical=typical)
        with torch.no_grad():
            local = network.local_map(x, "ms").mean(dim=(2, 3))
        return (local[54:].mean(0) > local[:54].mean(0)).double().mean().item()

    assert answers(3.0) < answers(0.0)
    assert answers(3.0) == answers(3.0)


def test_the_card_of_a_run_says_what_it_is_and_that_nothing_was_measured() -> None:
    config = dataclasses.replace(PRESETS["tiny"], data=("a.zarr", "b.zip"))
    card = describe_run(config, 7, 12.0, {"effective_rank": 9.5})
    assert card.trained
    assert card.architecture["family"] == "conv"
    assert [s.name for s in card.stems] == ["ms", "rgb"]
    assert "7 steps" in card.training_data
    assert "a.zarr; b.zip" in card.training_data
    assert "effective_rank 9.5" in card.training_data
    assert any("No score" in limit for limit in card.limits)
    assert card.tile % card.patch == 0


def test_stems_that_no_arm_feeds_are_named(cube_source: str) -> None:
    smoke = PRESETS["smoke"]
    assert untrained_stems(smoke) == ["rgb"]
    assert any("'rgb' was not trained" in limit for limit in describe_run(smoke, 1, 1.0, {}).limits)
    optical = dataclasses.replace(
        smoke, teacher="mobilenet", objective=dataclasses.replace(smoke.objective, multispectral=False)
    )
    assert untrained_stems(optical) == ["ms"]
    # A cube alone serves both stems' necks.
    windows = windows_for(Mixture((open_source(cube_source),), smoke.loader, 0), smoke, count=3)
    assert {k: tuple(v.shape) for k, v in windows.items()} == {"ms": (3, 10, 32, 32), "rgb": (3, 3, 32, 32)}


def test_filters_that_are_blind_to_haze_do_not_respond_to_it() -> None:
    haze = torch.linspace(1.0, 0.1, 10)
    windows = {"ms": torch.rand(8, 10, 32, 32), "rgb": torch.rand(8, 3, 32, 32)}
    network = DeoConv(stems={"ms": 10, "rgb": 3}, dim=16, local=12, depth=6).eval()
    x = torch.rand(1, 10, 16, 16)
    with torch.inference_mode():
        for blind in (False, True):
            fit_local(network, windows, seed=0, haze=haze if blind else None)
            clear, hazy = (network.local_map(y, "ms")[:, :, 1:-1, 1:-1] for y in (x, x + 0.5 * haze.view(1, -1, 1, 1)))
            assert torch.allclose(clear, hazy, atol=1e-4) == blind
            assert clear.std() > 0.01


def test_components_rotated_apart_keep_their_own_channels() -> None:
    torch.manual_seed(0)
    features = torch.randn(400, 20, dtype=torch.float64)
    parts = {"local": 8, "mixed": 6, "spectral": 6}
    neck = Neck(local=8, deep=4, deep_gain=0.25, deep_of=("spectral",), turned="apart")
    weight, _ = neck_of(features, parts, 12, neck)
    assert weight[:8, 8:].abs().max() < 1e-6
    assert weight[8:, :14].abs().max() < 1e-6
    spread = (features @ weight.double().T).var(0)
    assert float(spread[8:].mean()) == pytest.approx(float(spread[:8].mean()) / 16, rel=0.01)
    with pytest.raises(ArgumentError, match="deep_of"):
        neck_of(features, parts, 12, dataclasses.replace(neck, deep_of=("pw5",)))
