from __future__ import annotations

import dataclasses
import re

import pytest

from deo_cube.train.__main__ import main, parse
from deo_cube.train.config import PRESETS, Objective, TrainConfig, from_dict
from deo_cube.train.loop import plan_run


def test_fixed_flags() -> None:
    config = parse(
        "--preset smoke --data a.zarr b.zip --out DIR --steps 7 --seed 3 --resume --teacher dinov2 --loss.x".split()[
            :-1
        ]
    )
    assert config.data == ("a.zarr", "b.zip")
    assert (config.out, config.steps, config.seed, config.resume, config.teacher) == ("DIR", 7, 3, True, "dinov2")
    assert config.student == PRESETS["smoke"].student


def test_a_preset_gives_the_defaults_and_flags_change_them() -> None:
    tiny = parse(["--data", "a.zarr", "--preset=tiny", "--optimizer.lr", "0.5", "--objective.no-gather"])
    assert tiny.student.family == "conv"
    assert tiny.optimizer == dataclasses.replace(PRESETS["tiny"].optimizer, lr=0.5)


def test_help_is_grouped_and_gives_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = re.sub(r"[\s│╭╮╰╯─]+", " ", capsys.readouterr().out)
    for group in ("student options", "objective options", "augment options", "optimizer options", "health options"):
        assert group in text
    for flag in ("--preset", "--data", "--out", "--steps", "--seed", "--resume", "--teacher", "--dry-run"):
        assert flag in text
    assert "the paper's 16" in text


def test_every_field_has_a_reason() -> None:
    """Each default is explained where it stands: a field without a text is a field without a reason."""
    import inspect

    from deo_cube.train import config as module

    source = inspect.getsource(module)
    groups = ("StudentConfig", "Optical", "Objective", "Augment", "Optimizer", "Loader", "Health", "Neck")
    groups += ("Specialist", "TrainConfig")
    for name in groups:
        body = source[source.index(f"class {name}:") :].split("\n@dataclass")[0]
        names = [f.name for f in dataclasses.fields(getattr(module, name)) if str(f.type) not in groups]
        for field in names:
            found = re.search(rf'\n    {field}: .*?\n    """', body, re.DOTALL)
            assert found, f"{name}.{field}"
            between = found.group().splitlines()[2:]
            assert not any(re.match(r"    [a-z_]+: ", line) for line in between), f"{name}.{field}"


def test_a_config_survives_json() -> None:
    for config in PRESETS.values():
        assert from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="speed"):
        from_dict({**PRESETS["smoke"].to_dict(), "speed": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps"),
        ({"objective": Objective(multispectral=False)}, "teacher none"),
        ({"optimizer": dataclasses.replace(PRESETS["smoke"].optimizer, batch=0, rgb_batch=4)}, "optimizer.batch"),
        ({"augment": dataclasses.replace(PRESETS["smoke"].augment, local_scale=(0.5, 0.1))}, "local-scale"),
        ({"augment": dataclasses.replace(PRESETS["smoke"].augment, blur_kernel=4)}, "blur-kernel"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PRESETS["smoke"], **changes)


def test_the_plan_of_the_paper() -> None:
    found = plan_run(PRESETS["paper"], processes=16)
    assert found.trunk == pytest.approx(86.90e6, rel=1e-3)  # reference/deo-paper.md 1
    assert found.samples == 1024
    assert found.samples * PRESETS["paper"].steps / 500_000 == pytest.approx(100, rel=0.01)
    text = str(found)
    assert "expansion at most 0.280" in text
    assert "Swin" in text or "swin" in text


def test_dry_run_opens_sources_and_trains_nothing(cube_source: str, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert main(["--preset", "smoke", "--data", cube_source, "--out", str(out), "--dry-run"]) == 0
    assert "times" in capsys.readouterr().out
    assert not out.exists()


def test_mistakes_end_with_a_message_and_a_code(tmp_path, capsys, images_path) -> None:
    assert main(["--preset", "smoke", "--out", str(tmp_path / "a")]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["--preset", "smoke", "--out", str(tmp_path / "b"), "--data", "nowhere.zarr"]) == 2
    assert "nowhere.zarr" in capsys.readouterr().err
    assert main(["--preset", "smoke", "--out", str(tmp_path / "c"), "--data", str(images_path)]) == 2
    assert "names no cube" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--preset", "smoky"], "--preset"),
        (["--optimizer.lrate", "0.1"], "--optimizer.lr"),
        (["--objective.no-gathers"], "--objective.no-gather"),
        (["--steps", "many"], "--steps"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_mistaken_flags_are_plain_lines(arguments: list[str], flag: str, capsys) -> None:
    assert main(["--data", "a.zarr", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("deo_cube.train: ") for line in lines)
    assert flag in lines[0]
    assert "--help" in lines[1]
    assert not set("╭│╰") & set("".join(lines))


def test_defaults_of_the_class_are_consistent() -> None:
    assert TrainConfig().to_dict()["objective"]["world_size"] == 16
