"""One optimisation step beside the published code's structure, at equal loss: ``python -m benchmarks.train_step``.

The published structure is re-stated from its description, not copied: torchvision's Swin, which pads every map to whole
windows, behind stems of its own; the two branches as separate multi-crop passes; similarities in a loop over pairs of
views; the covariance of the coding rate in float16; norms clipped tensor by tensor with a read-back each; EMA parameter
by parameter. Both sides have the same weights, views, draws of stochastic depth and fused AdamW, and must give the same
loss before anything is timed: to 1e-4 with the covariance in float32. The frozen optical teacher is left out of both.

``--shape`` chooses a student: ``quick`` (a small Swin on 112 px), ``small`` and ``paper`` (the presets' networks, crop
sizes and windows). ``--bf16`` lets this package's side use bfloat16, which the published loop has no path for (it has
fp16 on CUDA only); losses must then agree to 1e-2.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from deo_cube.encoder.networks.timm_import import prepare_torchvision
from deo_cube.encoder.torch_settings import prefer_onednn
from deo_cube.train.augment import View
from deo_cube.train.config import Augment, Objective, Optimizer, StudentConfig, TrainConfig
from deo_cube.train.student import Student, ema_update, objective
from deo_cube.train.teachers import Targets


def views(batch: int, size: int, small: int, crops: int) -> list[View]:
    random = torch.Generator().manual_seed(0)

    def view(s: int) -> View:
        x = torch.randn(batch, 10, s, s, generator=random)
        return View(x, x[:, :3], x[:, :3], x[:, :3])

    return [view(size) for _ in range(2)] + [view(small) for _ in range(crops)]


class PublishedTrunk(torch.nn.Module):
    """torchvision's Swin behind the interface of this package's, filled with the same tensors."""

    def __init__(self, like: torch.nn.Module, config: StudentConfig) -> None:
        super().__init__()
        prepare_torchvision()
        from torchvision.models.swin_transformer import SwinTransformer

        whole = SwinTransformer(
            [4, 4],
            config.dim,
            list(config.depths),
            list(config.heads),
            [config.window] * 2,
            stochastic_depth_prob=config.drop_path,
        )
        self.features = torch.nn.ModuleList(list(whole.features)[1:])
        self.norm = whole.norm
        self.conv_ms, self.conv_rgb = copy.deepcopy(like.conv_ms), copy.deepcopy(like.conv_rgb)
        state = {k: v for k, v in like.state_dict().items() if not k.startswith("conv_")}
        # Its own stems, copied above, and its own index buffers; all else must come from `like`.
        own = {k: v for k, v in self.state_dict().items() if k.startswith("conv_") or k.endswith("_index")}
        self.load_state_dict(own | state)
        for k, v in self.state_dict().items():
            if k in state and v.shape != state[k].shape:
                raise ValueError(k)

    def forward_features(self, x: torch.Tensor, stem: str) -> dict[str, torch.Tensor]:
        """All stages and the pooled vector."""
        x = (self.conv_ms if stem == "ms" else self.conv_rgb)(x)
        out = {}
        for i, part in enumerate(self.features):
            x = part(x)
            if i % 2 == 0:
                out[f"stage{i // 2 + 1}"] = x.permute(0, 3, 1, 2)
        out["pooled"] = self.norm(x).mean(dim=(1, 2))
        return out


def published(
    student: Student,
    ema: Student,
    crops: list[View],
    t: Targets,
    optimizer: torch.optim.Optimizer,
    covariance: torch.dtype = torch.float16,
) -> float:
    """A step in the published structure."""
    v, n = len(crops), crops[0].rgb.shape[0]
    net, taps = student.network, student.taps

    def multi_crop(stem: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Every layer of every crop is computed and kept, whether a loss asks for it or not.
        pick = (lambda c: c.ms) if stem == "ms" else (lambda c: c.rgb)
        big = net.forward_features(torch.cat([pick(c) for c in crops[:2]]), stem)
        low = net.forward_features(torch.cat([pick(c) for c in crops[2:]]), stem)
        return torch.cat([big[taps.vector], low[taps.vector]]), big[taps.mid], big[taps.late]

    with torch.no_grad():
        both = torch.cat([c.ms for c in crops[:2]])  # type: ignore[misc]
        teacher = list(ema.head_ms(ema.network.forward_features(both, "ms")[taps.vector]).chunk(2))  # type: ignore[misc]
    ms = student.head_ms(multi_crop("ms")[0])  # type: ignore[misc]
    vector, mid, late = multi_crop("rgb")
    cls = student.cls_head(vector)  # type: ignore[misc]
    patch = [
        h(m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for h, m in ((student.patch_head_mid, mid), (student.patch_head_late, late))
    ]  # type: ignore[misc]

    def pairs(s: torch.Tensor, ts: list[torch.Tensor]) -> torch.Tensor:
        total, count = torch.zeros(()), 0
        for i, one in enumerate(ts):
            for j, other in enumerate(s.chunk(v)):
                if i != j:
                    total, count = total + F.cosine_similarity(one, other).mean(), count + 1
        return total / count

    comp = pairs(ms, teacher)
    p, world, eps = ms.shape[1], 1, 0.05
    rates = []
    for i in range(2):
        z = ((ms.chunk(v)[i] + teacher[i]) / 2).to(covariance)
        gram = torch.eye(p) + p / (n * world * eps) * (z.T @ z).float()
        rates.append(torch.linalg.cholesky_ex(gram)[0].diagonal().log().sum())
    expansion = torch.stack(rates).mean() * (p + world * n) / (p * world * n)
    grids = [
        F.interpolate(m, size=g.shape[2:], mode="bilinear", align_corners=False)
        for m, g in zip(patch, (t.mid, t.late), strict=True)
    ]
    mid_s, late_s = (F.cosine_similarity(m, g, dim=1).mean() for m, g in zip(grids, (t.mid, t.late), strict=True))
    loss = -comp - expansion - 0.5 * (0.5 * (mid_s + late_s) + pairs(cls, list(t.cls.chunk(2))))
    optimizer.zero_grad()
    loss.backward()
    for q in student.parameters():
        if q.grad is not None and (norm := q.grad.norm(2).item()) > 3.0:
            q.grad.mul_(3.0 / (norm + 1e-6))
    optimizer.step()
    own = dict(student.named_parameters())
    with torch.no_grad():
        for name, q in ema.named_parameters():
            q.mul_(0.996).add_(own[name].detach(), alpha=0.004)
    return loss.item()


def ours(
    student: Student, ema: Student, crops: list[View], t: Targets, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> float:
    """The same step as the trainer makes it."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.optimizer.precision == "bf16"):
        with torch.no_grad():
            teacher = ema.project_ms(crops)
        out = student(crops)
    terms = objective(out, teacher, t, len(crops), config.objective)
    terms.total.backward()
    grads = [q.grad for q in student.parameters() if q.grad is not None]
    norms = torch._foreach_norm(grads)
    torch._foreach_mul_(grads, [(3.0 / (n + 1e-6)).clamp(max=1.0) for n in norms])
    optimizer.step()
    ema_update(ema, student, 0.996)
    return terms.total.item()


@dataclass(frozen=True)
class Shape:
    """A student and its crops."""

    student: StudentConfig
    size: int
    small: int
    crops: int
    batch: int
    hidden: int
    drop_path: float
    """What the published run has in a network of this size."""


SWIN_T = StudentConfig(dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7)
SHAPES = {
    "quick": Shape(replace(SWIN_T, dim=48), 112, 48, 6, 4, 512, 0.2),
    "small": Shape(SWIN_T, 224, 96, 6, 2, 2048, 0.2),
    "paper": Shape(StudentConfig(), 224, 96, 10, 1, 2048, 0.5),
}


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="quick")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=0, help="samples; 0: the shape's")
    parser.add_argument("--drop-path", type=float, default=0.0, help="stochastic depth of both; -1: the published rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--same-library", action="store_true", help="MKL for both, also on processors of AMD")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    chosen = not a.same_library and prefer_onednn()
    shape = SHAPES[a.shape]
    batch = a.batch or shape.batch
    config = TrainConfig(
        student=replace(shape.student, drop_path=shape.drop_path if a.drop_path < 0 else a.drop_path),
        objective=Objective(world_size=1, hidden=shape.hidden),
        augment=Augment(global_size=shape.size, local_size=shape.small, local_crops=shape.crops),
        optimizer=Optimizer(batch=batch, precision="bf16" if a.bf16 else "fp32"),
    )
    torch.manual_seed(0)
    student = Student(config, (768, 768, 768))
    ema = Student(config, None).requires_grad_(False).eval()
    ema_update(ema, student, 0.0)
    crops = views(batch, shape.size, shape.small, shape.crops)
    grid = shape.size // 16
    t = Targets(*(F.normalize(torch.randn(2 * batch, 768, *s), dim=1) for s in ((), (grid, grid), (grid, grid))))
    sides: list[tuple[str, Callable[[], float], list[float]]] = []
    first = []
    for name, step in (("published structure", published), ("deo_cube", ours)):
        s, e = copy.deepcopy(student), copy.deepcopy(ema)
        if name != "deo_cube":
            s.network, e.network = (PublishedTrunk(m.network, config.student) for m in (s, e))
            e.requires_grad_(False).eval()
        o = torch.optim.AdamW(s.parameters(), lr=1e-5, fused=True)
        again = (config,) if name == "deo_cube" else ()
        exact = (config,) if name == "deo_cube" else (torch.float32,)
        torch.manual_seed(1)
        first.append(step(s, e, crops, t, o, *exact))
        sides.append((name, lambda step=step, s=s, e=e, o=o, again=again: step(s, e, crops, t, o, *again), []))
    assert abs(first[0] - first[1]) < (1e-2 if a.bf16 else 1e-4), f"the two steps do not compute the same loss: {first}"
    for i in range(a.rounds):
        for name, run, seconds in sides:  # interleaved: another process hits both alike
            # The trainer's choice of library is its own (encoder.torch_settings); torch's default is the other's.
            torch.set_float32_matmul_precision("medium" if chosen and name == "deo_cube" else "highest")
            torch.manual_seed(2 + i)
            began = time.process_time()
            run()
            seconds.append(time.process_time() - began)
    best = [min(seconds) for *_, seconds in sides]
    for (name, _, seconds), b in zip(sides, best, strict=True):
        middle = sorted(seconds)[len(seconds) // 2]
        print(f"{name:20} best {b:.3f} s of CPU, median {middle:.3f} s, {batch / b:.2f} samples/s")
    precision = "bfloat16 against float32" if a.bf16 else "float32"
    precision += ", oneDNN against MKL" if chosen else ""
    shown = f"{a.shape}, {a.threads} threads, stochastic depth {config.student.drop_path}"
    print(
        f"loss {first[0]:.5f} and {first[1]:.5f}; {best[0] / best[1]:.2f}x (best of {a.rounds}, {precision}, {shown})"
    )


if __name__ == "__main__":
    main()
