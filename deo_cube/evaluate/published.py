"""Check published weights: that they load, and for which preprocessing they were evidently trained.

The published Swin-B and ViT-B leave open how their input is to be normalised, in which order red, green and blue come,
and whether the final LayerNorm belongs to a chip's vector (docs/evidence.md). A labelled set decides: each variant is
probed on the same chips, and one is named only if it beats every other by more than its paired interval.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from deo_cube.encoder.card import ModelCard, Normalization, Stem
from deo_cube.encoder.checkpoint_format import KeyForm, key_form, load_weights
from deo_cube.encoder.encoder import with_reference
from deo_cube.encoder.hub import file_sha256, place_in_cache
from deo_cube.encoder.loading import card_for
from deo_cube.encoder.networks.adapters import build_network
from deo_cube.encoder.normalize import normalize
from deo_cube.errors import MissingBandsError, WeightsNotFoundError
from deo_cube.evaluate.protocols import classification
from deo_cube.evaluate.readers import RGB, ChipSet, read_chips
from deo_cube.evaluate.scores import Difference, Score, compare
from deo_cube.paths import local_path

__all__ = ["Published", "Question", "Variant", "verify_published"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Variant:
    """One way to feed a network and to read its vector.

    Parameters
    ----------
    network : module
        With `forward_features(x, stem, layers)`.
    stem : Stem
        Which stem reads, with its bands in the model's order.
    how : Normalization
        Of the stem.
    layer : str
        `pooled` is the published features after the final LayerNorm; any other layer is averaged over its map.
    blue_first : bool
        Red and blue are exchanged after normalisation: the network is shown B02, B03, B04.
    offset : float
        DN added: 1000 as if the offset of baseline 04.00 had been left in.
    size : int
        Chips are enlarged to this side, bilinearly; 0 for none.
    fill : bool
        Bands that the chips lack are set to their mean.
    """

    network: Any = field(repr=False)
    stem: Stem
    how: Normalization
    layer: str
    name: str = ""
    blue_first: bool = False
    offset: float = 0.0
    size: int = 0
    fill: bool = False
    device: str = "cpu"

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """Return the vectors as maps of one token."""
        return self.pool(array, bands)[:, :, None, None]

    def pool(self, array: Array, bands: Sequence[str]) -> Array:
        """Return vectors (B, D) of chips (B, C, H, W), DN."""
        bands = list(bands)
        fill = np.asarray(self.how.mean or self.stem.fill, "float32")
        x = np.empty((len(array), len(self.stem.bands), *array.shape[2:]), "float32")
        for i, band in enumerate(self.stem.bands):
            x[:, i] = array[:, bands.index(band)] + self.offset if band in bands else fill[i]
        t = normalize(torch.from_numpy(x).to(self.device), self.stem, self.how)
        if self.blue_first:
            red, blue = self.stem.bands.index("B04"), self.stem.bands.index("B02")
            order = list(range(t.shape[1]))
            order[red], order[blue] = blue, red
            t = t[:, order]
        if self.size:
            t = F.interpolate(t, size=(self.size, self.size), mode="bilinear", align_corners=False)
        with torch.inference_mode():
            out = self.network.forward_features(t, self.stem.name, (self.layer,))[self.layer]
        return np.asarray((out if out.ndim == 2 else out.mean(dim=(2, 3))).float().cpu())


@dataclass(frozen=True)
class Question:
    """One open question: its answers with their scores, and the one that the labelled set decides for, if any."""

    text: str
    answers: tuple[str, ...]
    scores: tuple[tuple[Score, ...], ...]
    """One tuple an answer: accuracy of neighbours, then of the linear probe."""
    differences: tuple[tuple[Difference, ...], ...]
    """Best answer minus each other, on both metrics."""

    @property
    def best(self) -> int:
        """Number of the answer with the highest mean of both accuracies."""
        return int(np.argmax([np.mean([s.value for s in both]) for both in self.scores]))

    @property
    def decided(self) -> bool:
        """Best beats every other: at least one interval above zero, none below."""
        return all(any(d.low > 0 for d in both) and not any(d.high < 0 for d in both) for both in self.differences)

    @property
    def verdict(self) -> str:
        """The best answer, or ``undecided``."""
        return self.answers[self.best] if self.decided else "undecided"

    def __str__(self) -> str:
        lines = [f"{self.text}: {self.verdict}"]
        for name, both in zip(self.answers, self.scores, strict=True):
            cells = [f"{s.task.rsplit('/', 1)[-1]} {s.value:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in both]
            lines.append(f"  {name:34} {'  '.join(cells)}")
        for pair in self.differences:
            cells = [f"{d.task.rsplit('/', 1)[-1]} {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for d in pair]
            lines.append(f"    best minus {pair[0].b:23} {'  '.join(cells)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Published:
    """Report on a file of published weights: its form, its network, and what a labelled set says."""

    file: str
    sha256: str
    form: KeyForm
    card: ModelCard
    known: bool
    """The sizes are those of a published model."""
    contribution: ModelCard
    """The card completed by what was measured: hash, place on the hub where known, and reference vector."""
    data: str = ""
    questions: tuple[Question, ...] = ()

    @property
    def decided(self) -> bool:
        """The labelled set decides for a normalisation."""
        return bool(self.questions) and self.questions[0].decided

    def to_json(self, path: str | Path | None = None) -> str:
        """Return everything as JSON text; written to `path` where one is given."""
        d = {
            "file": self.file, "sha256": self.sha256, "keys": dataclasses.asdict(self.form), "model": self.card.name,
            "published_sizes": self.known, "data": self.data, "card": self.contribution.to_dict(),
            "questions": [
                {"question": q.text, "verdict": q.verdict,
                 "answers": {a: [s.to_dict() for s in both] for a, both in zip(q.answers, q.scores, strict=True)},
                 "best_minus": [dataclasses.asdict(x) for both in q.differences for x in both]}
                for q in self.questions
            ],
        }  # fmt: skip
        text = json.dumps(d, indent=2) + "\n"
        if path is not None:
            local_path(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        sizes = self.card.architecture
        size = ", ".join(f"{k} {v}" for k, v in sizes.items() if k != "family")
        lines = [
            f"{self.file}: loaded strictly, every tensor accounted for",
            f"  SHA-256   {self.sha256}",
            f"  keys      {self.form}",
            f"  network   {sizes['family']}: {size}"
            + ("" if self.known else "; no published model has these sizes: read off the file"),
        ]
        if not self.questions:
            lines.append("no labelled set given (--data), so the preprocessing of the weights was not tested")
        else:
            lines += ["", f"on {self.data}; 95 % intervals, paired for differences:", ""]
            lines += [str(q) for q in self.questions]
        proof = {k: self.contribution.to_dict()[k] for k in ("name", "weights", "reference")}
        lines += ["", "To contribute: these fields of the card, as measured here (--json has the whole card).", ""]
        lines.append(json.dumps(proof, indent=2))
        return "\n".join(lines)


def verify_published(
    path: str | Path,
    data: str | Path | ChipSet | None = None,
    *,
    model: str | ModelCard | None = None,
    bands: Sequence[str] | None = None,
    offset: float = 0.0,
    limit: int = 400,
    sizes: Sequence[int] = (224,),
    device: str = "cpu",
) -> Published:
    """Load published weights strictly, and ask a labelled set which preprocessing they were trained for.

    Parameters
    ----------
    path : path
        The weights: a torch or safetensors file in any of the published key forms.
    data : path or ChipSet, optional
        Labelled chips, see `read_chips`. Without it only the file is looked at.
    model : str or ModelCard, optional
        Which network it is. Default: what the sizes of its tensors say.
    bands, offset, limit
        Of `read_chips`.
    sizes : sequence of int
        Sides to which chips are enlarged, beside their own.
    device : str
        A torch device.

    Returns
    -------
    Published
        Its text is the report.

    Raises
    ------
    WeightsNotFoundError, WeightsMismatchError, UnknownModelError
        For a file that is not there, damaged, or fills no such network.
    MissingBandsError
        If the chips have neither the ten bands nor red, green and blue.
    """
    path = local_path(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"no weights at {path}: give the file, not its folder")
    card = card_for(path, model=model)
    network = build_network(card)
    load_weights(network, path, prefixes=card.weights.key_prefixes, unused=card.weights.unused)
    network.eval().requires_grad_(False).to(device)
    known = not card.name.endswith(".file")
    sha256 = file_sha256(path)
    proven = with_reference(_with_place(card, path, sha256), network)
    found = Published(str(path), sha256, key_form(path), card, known, proven)
    if data is None:
        return found
    chips = data if isinstance(data, ChipSet) else read_chips(data, bands=bands, offset=offset, limit=limit)
    return dataclasses.replace(
        found, data=f"{len(chips)} chips of {chips.name}", questions=_ask(network, card, chips, sizes, device)
    )


def _with_place(card: ModelCard, path: Path, sha256: str) -> ModelCard:
    """Return the card with the hash of the file, and where the hub has it if the file is in the hub's cache."""
    weights = dataclasses.replace(card.weights, file=path.name, sha256=sha256)
    address = place_in_cache(path)
    if address is not None and address.file is not None:
        weights = dataclasses.replace(weights, file=address.file, repo=address.repo, revision=address.revision)
    return dataclasses.replace(card, weights=weights)


def _ask(network: Any, card: ModelCard, chips: ChipSet, sizes: Sequence[int], device: str) -> tuple[Question, ...]:
    stem = _stem(card, chips)
    raw = card.layers[-2].name
    kinds = {"statistics of this set": _of_set(stem, chips)} | {n.name: n for n in stem.normalizations}
    plain = {name: Variant(network, stem, how, "pooled", name, device=device) for name, how in kinds.items()}
    first = _question("Normalisation", plain, chips)
    best = list(plain.values())[first.best]
    asked = [first]

    def also(text: str, base: str, **others: Variant) -> None:
        asked.append(_question(text, {base: best, **{k.replace("_", " "): v for k, v in others.items()}}, chips))

    if {"B04", "B02"} <= set(stem.bands):
        also("Order of red and blue", "B04 first", B02_first=dataclasses.replace(best, blue_first=True))
    also("Final LayerNorm", "with it", without_it=dataclasses.replace(best, layer=raw))
    also("Offset of baseline 04.00", "taken off", left_in=dataclasses.replace(best, offset=1000.0))
    own = chips.images.shape[-1]
    larger = {f"enlarged to {s}": dataclasses.replace(best, size=s) for s in sizes if s != own}
    if larger:
        also("Size", f"{own} px as they are", **larger)
    if set(RGB) <= set(chips.bands):
        asked.append(_rgb_question(network, card, chips, best, device))
    return tuple(asked)


def _stem(card: ModelCard, chips: ChipSet) -> Stem:
    for stem in card.stems:
        if set(stem.bands) <= set(chips.bands):
            return stem
    raise MissingBandsError(
        f"{chips.name} has the bands {list(chips.bands)}; expected all of "
        + " or all of ".join(str(list(s.bands)) for s in card.stems)
    )


def _of_set(stem: Stem, chips: ChipSet) -> Normalization:
    """Return mean and standard deviation per band over the chips, which the paper's own evaluation uses."""
    x = chips.images[:, [chips.bands.index(b) for b in stem.bands]].astype("float64")
    mean, std = x.mean(axis=(0, 2, 3)), x.std(axis=(0, 2, 3)) + 1e-6
    return Normalization("statistics of this set", "fixed", tuple(map(float, mean)), tuple(map(float, std)))


def _rgb_question(network: Any, card: ModelCard, chips: ChipSet, best: Variant, device: str) -> Question:
    """Ask for red, green and blue alone: through their own stem, or through the other with the rest at the mean."""
    ms, rgb = card.stems[0], card.stems[-1]

    def through(stem: Stem) -> Variant:
        kinds = {n.name: n for n in stem.normalizations}
        how = _of_set(rgb, chips) if best.how.name not in kinds else kinds[best.how.name]
        if stem is ms and best.how.name not in kinds:
            rest = ms.normalizations[0]
            how = Normalization(how.name, "fixed", how.mean + rest.mean[3:], how.std + rest.std[3:])
        return Variant(network, stem, how, "pooled", device=device)

    where = [chips.bands.index(b) for b in RGB]
    only = dataclasses.replace(chips, images=chips.images[:, where], bands=RGB)
    return _question("RGB alone", {f"stem {s.name!r}": through(s) for s in (rgb, ms)}, only)


def _question(text: str, variants: dict[str, Variant], chips: ChipSet) -> Question:
    per_class = int(np.bincount(chips.labels).min())
    few = max(2, min(100, per_class // 3))
    scores = tuple(
        tuple(classification(dataclasses.replace(v, name=name), chips, few=(few,), gains=(), seeds=3))
        for name, v in variants.items()
    )
    best = Question(text, tuple(variants), scores, ()).best
    differences = tuple(
        tuple(compare(a, b) for a, b in zip(scores[best], other, strict=True))
        for i, other in enumerate(scores)
        if i != best
    )
    return Question(text, tuple(variants), scores, differences)
