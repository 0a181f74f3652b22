"""The ablation runs, goes on after a kill, and says no more than its intervals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ablation import arms as arms_module
from benchmarks.ablation.arms import ARMS, config_of
from benchmarks.ablation.report import DOCS, blocks, draw, with_blocks
from benchmarks.ablation.runs import run_all
from benchmarks.ablation.score import cka
from benchmarks.ablation.summary import CLAIMS, interval, read_runs, summarise, verdict
from deo_cube.train.loop import train


def test_every_arm_is_a_configuration_that_differs_from_its_reference() -> None:
    for arm in ARMS.values():
        config = config_of(arm, seed=1, steps=5, data=Path("data"), out=Path("out"))
        assert (config.seed, config.steps) == (1, 5)
        if arm.against:
            other = config_of(ARMS[arm.against], seed=1, steps=5, data=Path("data"), out=Path("out"))
            assert config.to_dict() != other.to_dict(), arm.name
            # What all arms share: data, samples a step, views.
            assert (config.data, config.loader, config.optimizer.batch) == (
                other.data, other.loader, other.optimizer.batch
            )  # fmt: skip
            assert config.augment.global_size == other.augment.global_size
    assert {name for _, a, b, _, _ in CLAIMS for name in (a, b)} <= set(ARMS)


def test_nothing_that_is_tested_is_trained_on() -> None:
    text = " ".join(config_of(ARMS["full"], seed=0, steps=1, data=Path("data"), out=Path("out")).data)
    assert not any(name in text for name in ("eurosat", "landcover", "flood"))
    # Two files a plot: every fourth from 0 and 1 are both dates of the even plots.
    assert text.count("every=4,phase=0") == text.count("every=4,phase=1") == 1
    assert text.count("change_barkbeetle") == 2


def test_an_interval_knows_of_seeds_and_of_data() -> None:
    random = np.random.default_rng(0)
    still, moving = np.zeros(400), random.normal(0, 0.1, 400)
    assert interval([0.5, 0.5, 0.5], still)[1:] == (0.5, 0.5)
    # Seeds alone: Student's t with two degrees of freedom, 4.30.
    mean, low, high = interval([0.4, 0.5, 0.6], still)
    assert mean == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    # Data alone: the bootstrap's own.
    mean, low, high = interval([0.5, 0.5, 0.5], moving)
    assert (high - low) / 2 == pytest.approx(1.96 * moving.std(ddof=1), rel=1e-3)
    assert not np.isfinite(interval([0.5], moving)[1])


def test_a_verdict_claims_nothing_within_its_interval() -> None:
    assert verdict(0.1, 0.3, +1) == "agrees"
    assert verdict(0.1, 0.3, -1) == "disagrees"
    assert verdict(-0.3, -0.1, +1) == "disagrees"
    assert verdict(-0.1, 0.3, +1) == "cannot tell"
    assert verdict(-np.inf, np.inf, +1) == "one seed"


def test_unbiased_alignment() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 64))
    turned = np.linalg.qr(random.normal(size=(64, 64)))[0]
    assert cka(x, 3 * x @ turned) == pytest.approx(1)
    # The plain estimator gives 0.24 here.
    assert abs(np.mean([cka(x, random.normal(size=(200, 64))) for _ in range(20)])) < 0.02


@pytest.mark.real
@pytest.mark.slow
def test_two_arms_run_resume_and_make_a_page(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    health = dataclasses.replace(arms_module.BASE.health, checkpoint_every=1, log_every=1)
    few = tuple(s.replace("every=4", "every=80") for s in arms_module.SOURCES if "scenes" not in s)
    monkeypatch.setattr(arms_module, "SOURCES", few)
    monkeypatch.setattr(arms_module, "BASE", dataclasses.replace(arms_module.BASE, health=health))
    out, data = tmp_path / "runs", shared / "data"
    done = run_all(out, data=data, arms=["cls", "masked"], seeds=[0], steps=2, light=True)
    assert [p.name for p in done] == ["cls-seed0.json", "masked-seed0.json"]
    assert not (out / "cls-seed0").exists()
    first = json.loads(done[0].read_text())

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config_of(ARMS["cls"], seed=0, steps=2, data=data, out=tmp_path / "killed" / "cls-seed0"), on_step=stop)
    (again,) = run_all(tmp_path / "killed", data=data, arms=["cls"], seeds=[0], steps=2, light=True)
    second = json.loads(again.read_text())
    assert second["scores"] == first["scores"]
    assert second["last"] == first["last"]

    stamp = done[0].stat().st_mtime_ns
    run_all(out, data=data, arms=["cls", "masked"], seeds=[0], steps=2, light=True)
    assert done[0].stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="give --steps 2"):
        run_all(out, data=data, arms=["cls"], seeds=[0], steps=3, light=True)

    evidence = summarise(read_runs(out))
    assert evidence["arms"]["masked"]["n"] == 1
    assert "optical" in evidence["arms"]["cls"]["scores"]
    page = "".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in blocks(evidence))
    text = with_blocks(page, evidence)
    assert "`masked`" in text
    assert "one seed" not in text or "**" not in text
    assert with_blocks(text, evidence) == text
    assert all(p.stat().st_size for p in draw(evidence, tmp_path))


def test_the_page_shows_what_the_json_says() -> None:
    evidence, longer = (
        json.loads((DOCS / "data" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("evidence", "evidence_longer")
    )
    text = (DOCS / "evidence.md").read_text(encoding="utf-8")
    assert text == with_blocks(text, evidence, longer), "run: python -m benchmarks.ablation.report"
    for arm in [*evidence["arms"].values(), *longer["arms"].values()]:
        for score in arm["scores"].values():
            assert len(score["seeds"]) == arm["n"]
            if score["interval95"]:
                assert score["interval95"][0] <= score["value"] <= score["interval95"][1]
