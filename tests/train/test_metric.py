"""The metric of known changes: what it learns, what it leaves, and the file that it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from deo_cube.errors import ArgumentError, InputNotFoundError, MissingBandsError
from deo_cube.train import necks
from deo_cube.train.config import MS_BANDS
from deo_cube.train.necks import cell_shares, fit_metric, read_pairs


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(necks, "STEPS", 60)
    monkeypatch.setattr(necks, "CELLS", 1000)
    monkeypatch.setattr(necks, "PLACES", 300)
    monkeypatch.setattr(necks, "AGAINST", 8)
    monkeypatch.setattr(necks, "RATE", 0.05)


def _dates(seed: int, count: int = 3000) -> tuple[Tensor, Tensor, Tensor]:
    """Two dates of 8 components: the first two vary with the season, the next two with change."""
    random = torch.Generator().manual_seed(seed)
    before = torch.randn(count, 8, generator=random)
    changed = (torch.rand(count, generator=random) < 0.15).float()
    after = before + 0.1 * torch.randn(count, 8, generator=random)
    after[:, :2] += 1.5 * torch.randn(count, 2, generator=random)
    after[:, 2:4] += changed[:, None] * torch.tensor([1.0, -1.0])
    return before, after, changed


def _precision(before: Tensor, after: Tensor, changed: Tensor, transform: Tensor, shift: Tensor) -> float:
    near = F.cosine_similarity((before + shift) @ transform.T, (after + shift) @ transform.T, dim=1)
    return float(average_precision_score(changed.numpy(), 1 - near.numpy()))


def test_distances_of_other_cells_tell_change_better_than_before() -> None:
    transform, shift = fit_metric(*_dates(0))
    other = [t.double() for t in _dates(1)]
    plain = _precision(*other, torch.eye(8).double(), torch.zeros(8).double())  # type: ignore[call-arg, arg-type]
    assert _precision(*other, transform, shift) > plain + 0.2  # type: ignore[call-arg, arg-type]


def test_map_is_invertible_and_near_the_identity_under_a_strong_penalty() -> None:
    transform, _ = fit_metric(*_dates(0))
    assert torch.linalg.matrix_rank(transform) == 8
    held, still = fit_metric(*_dates(0), strength=1e4)
    assert torch.allclose(held, torch.eye(8).double(), atol=0.1)
    assert still.abs().max() < 0.1


def test_other_air_of_one_place_counts_less_than_another_place() -> None:
    random = torch.Generator().manual_seed(5)
    cells = torch.randn(2000, 8, generator=random)
    other = cells.clone()
    other[:, 7] += 2 * torch.randn(2000, generator=random)  # what air changes, and no change of the plots does
    number = torch.arange(200).repeat_interleave(10)
    alone, _ = fit_metric(*_dates(0))
    both, _ = fit_metric(*_dates(0), (cells, other, number), general=3.0)
    assert both[:, 7].norm() / both.norm() < alone[:, 7].norm() / alone.norm()


def test_without_changed_cells_the_places_decide_alone() -> None:
    before, after, _ = _dates(0)
    number = torch.arange(len(before))
    transform, _ = fit_metric(before, after, torch.zeros(len(before)), (before, after, number))
    assert torch.isfinite(transform).all()


def test_cell_shares_are_of_known_pixels() -> None:
    changed = np.zeros((1, 16, 16), "uint8")
    changed[0, :2, :4] = 1
    changed[0, 4:8, :4] = 255
    changed[0, 8:9, :4] = 255
    share = cell_shares(changed, 4)
    assert share.shape == (1, 4, 4)
    assert share[0, 0, 0] == 0.5
    assert np.isnan(share[0, 1, 0])
    assert share[0, 2, 0] == 0


def _write(path: Path, **changes: object) -> Path:
    arrays = {
        "before": np.ones((2, 10, 16, 16), "uint16"),
        "after": np.full((2, 10, 16, 16), 2, "uint16"),
        "changed": np.zeros((2, 16, 16), "uint8"),
        "bands": np.array(MS_BANDS[::-1]),
    }
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})  # type: ignore[arg-type]
    return path


def test_pairs_are_read_in_the_order_of_the_model(tmp_path: Path) -> None:
    before = np.arange(10, dtype="uint16")[None, :, None, None] * np.ones((2, 1, 16, 16), "uint16")
    pairs = read_pairs(_write(tmp_path / "pairs.npz", before=before))
    assert len(pairs) == 2
    assert pairs.before[0, :, 0, 0].tolist() == [*range(9, -1, -1)]


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"changed": None}, InputNotFoundError, "changed"),
        ({"bands": np.array(["B04"] * 10)}, MissingBandsError, "B03"),
        ({"changed": np.zeros((2, 8, 8), "uint8")}, ArgumentError, "changed"),
        ({"after": np.ones((3, 10, 16, 16), "uint16")}, ArgumentError, "after"),
    ],
)
def test_files_of_another_form_are_refused(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        read_pairs(_write(tmp_path / "pairs.npz", **changes))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"none\.npz"):
        read_pairs(tmp_path / "none.npz")
