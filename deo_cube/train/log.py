"""What a run leaves of its steps: metrics.jsonl, the progress bar, TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from deo_cube.errors import MissingExtraError
from deo_cube.progress import Progress
from deo_cube.train.config import TrainConfig
from deo_cube.train.losses import coding_rate_bound

__all__ = ["Log"]


class Log:
    """metrics.jsonl, the progress bar, and TensorBoard where asked for. Silent in all processes but the first."""

    def __init__(self, config: TrainConfig, first: bool, out: Path, start: int) -> None:
        self.config, self.first, self.out, self.start = config, first, out, start
        o = config.optimizer
        self.bound = coding_rate_bound(
            config.objective.ms_dim, max(o.batch, 1), eps=config.objective.eps, world_size=config.objective.world_size
        )

    def __enter__(self) -> Log:
        self.file: Any = None
        self.board: Any = None
        if not self.first:
            return self
        path = self.out / "metrics.jsonl"
        if path.exists():
            # Lines written after the checkpoint that is resumed will be written again.
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) < self.start]
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        if self.config.health.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError("--health.tensorboard needs tensorboard: pip install tensorboard") from error
            self.board = SummaryWriter(str(self.out / "tensorboard"))
        self.bar = Progress(self.config.steps, title=self.out.name, unit="step", done=self.start)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.file is not None:
            self.file.close()
            self.bar.__exit__(*error)
        if self.board is not None:
            self.board.close()

    def step(self, step: int, measured: dict[str, Any]) -> None:
        """Write down what one step measured."""
        if self.file is None:
            return
        note = ""
        if step % self.config.health.log_every == 0 or step + 1 == self.config.steps or "knn" in measured:
            line = {"step": step, **measured, **measured["parts"]}
            line.pop("parts")
            if "expansion" in line:
                line["expansion_bound"] = self.bound
            line = {k: round(v, 6) if isinstance(v, float) and math.isfinite(v) else v for k, v in line.items()}
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            short = {k: f"{line[k]:.3f}" for k in ("loss", "compression", "expansion", "cls", "knn") if k in line}
            note = ", ".join(f"{k} {v}" for k, v in short.items()) + f", {line['samples_per_s']:.1f} samples/s"
            if self.board is not None:
                for k, v in line.items():
                    self.board.add_scalar(k, v, step)
        self.bar.advance(note=note)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62  # torn by a kill
