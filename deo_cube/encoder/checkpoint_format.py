"""Read weights files, and fill networks from them strictly.

Every tensor of the network is filled from the file, and every tensor of the file is used, or is known by name to be
unused (the projection heads of training, the index buffers of Swin, the EMA teacher). Anything else is refused, because
a network that is partly random returns numbers that look like embeddings. Nothing in a file is executed.

The key forms are those that the published code writes and that its loader tried to undo by string replacement
(main_dino.py:703-715, misc.py:782-838): a training checkpoint with `student` and `teacher`, or plain tensors, under any
stacking of the prefixes `student.`, `module.`, `_orig_mod.`, `backbone.`, `feat_extr.`.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.hub import file_sha256
from deo_cube.errors import WeightsMismatchError
from deo_cube.paths import local_path

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "KeyForm",
    "check_file",
    "key_form",
    "load_weights",
    "match_state",
    "matched_state",
    "read_state",
    "sniff",
    "split_key",
]

#: Wrappers of training (DDP, torch.compile, the student's trunk, TorchGeo's feature extractor), outermost first or not.
PREFIXES = ("student.", "module.", "_orig_mod.", "backbone.", "feat_extr.")
#: Projection heads, used in training only (main_dino.py:464-523).
HEADS = ("head_ms", "cls_head", "patch_head_mid", "patch_head_late")
#: The stem of a ViT trunk, which the two named stems replace (misc.py:141-173).
REPLACED_STEM = "patch_embed"
#: Bytes of names and shapes at the start of a safetensors file: some 100,000 tensors.
HEADER_BYTES = 16 * 2**20
#: Files of bare values that only their size and hash tell: bytes -> (SHA-256, kind). Dynamic World's is the values file
#: of a TensorFlow checkpoint.
BARE_FILES = {964710: ("c4a38299f2c0a741682cbe48810d55afdc832ff451e3d3708082751fe655fcb1", "dynamicworld")}
#: Counter of a batch normalization, which files may lack and which decides nothing once training is over.
COUNTER = "num_batches_tracked"
#: Where a network that wraps a model of timm holds it. Published files name the tensors of the model alone.
WRAPPER = "model."
INDEX = "relative_position_index"
BIAS = "relative_position_bias_table"


def sniff(path: str | Path) -> str:
    """Return the kind of a weights file from its first bytes: `safetensors`, `torch` or `dynamicworld`.

    Raises
    ------
    WeightsMismatchError
        For an empty or truncated file, a web page, a Git LFS pointer, or anything else that holds no weights.
    """
    path = local_path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    sha256, kind = BARE_FILES.get(size, ("", ""))
    if kind and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return kind
    if not head:
        raise WeightsMismatchError(f"{path} is empty (0 bytes): download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise WeightsMismatchError(
            f"{path} is a web page ({size} bytes), not weights: a login or error page was saved under that name. "
            "Download the file itself (on the hub: the 'download' link, or `hf download REPO FILE`)"
        )
    if text.startswith(b"version https://git-lfs"):
        raise WeightsMismatchError(f"{path} is a Git LFS pointer ({size} bytes), not the weights: run `git lfs pull`")
    if len(head) > 8 and head[8:9] == b"{":
        header_size = 8 + int.from_bytes(head[:8], "little")
        if header_size > size:
            raise WeightsMismatchError(
                f"{path} is cut short: its header alone takes {header_size} bytes, the file has {size}. "
                "Download it again"
            )
        if header_size > HEADER_BYTES:
            raise WeightsMismatchError(
                f"{path} begins with a header of {header_size} bytes, expected at most {HEADER_BYTES}: "
                "these are not weights"
            )
        return "safetensors"
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise WeightsMismatchError(f"{path} is cut short ({size} bytes): a damaged archive. Download it again")
        return "torch"
    if head.startswith(b"\x80"):
        return "torch"
    if text.startswith((b"{", b"[")):
        raise WeightsMismatchError(f"{path} is JSON text, not weights; it begins with {head[:80]!r}")
    raise WeightsMismatchError(f"{path} is neither safetensors nor a torch file; it begins with {head[:16]!r}")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file under their names in the file. Code in the file is never run.

    Parameters
    ----------
    path : path
        A safetensors file, or a torch file that ``torch.load(weights_only=True)`` accepts. `argparse.Namespace`, which
        training checkpoints contain, is accepted because it can only hold values.

    Returns
    -------
    dict of str -> Tensor
        On the CPU; of a training checkpoint, the student.

    Raises
    ------
    WeightsMismatchError
        If the file is damaged, holds anything but tensors, or no student.
    """
    path = local_path(path)
    kind = sniff(path)
    if kind == "dynamicworld":
        from deo_cube.encoder.networks.dynamicworld import read_variables

        return read_variables(path)
    if kind == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsMismatchError(
                f"{path} is a damaged or truncated safetensors file ({path.stat().st_size} bytes): {error}. "
                "Download it again"
            ) from error
    return _student(_load_torch(path), path)


def _load_torch(path: Path) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a foreign or hostile file may raise anything in the unpickler
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if any(w in line for w in ("GLOBAL", "Unsupported", "error:"))), "")
        raise WeightsMismatchError(
            f"{path} could not be read as tensors only ({type(error).__name__}). {reason} It is damaged, or "
            "contains Python objects, which are not unpickled because that would run code from the file. "
            "If you trust its source, load it yourself and save the tensors with safetensors.torch.save_file"
        ) from error


def _student(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    if isinstance(content, Mapping) and isinstance(content.get("student"), Mapping):
        content = content["student"]
    if not isinstance(content, Mapping):
        raise WeightsMismatchError(f"{path}: expected tensors by name, got a {type(content).__name__}")
    others = [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)]
    if others or not content:
        raise WeightsMismatchError(
            f"{path} is a checkpoint with the entries {_few([str(k) for k in content])}, of which {_few(others)} "
            "are not tensors. Expected tensors by name, or a training checkpoint with an entry 'student'"
        )
    return {str(k): v for k, v in content.items()}


def match_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    *,
    where: str | Path,
    prefixes: Sequence[str] = (),
    indices: Mapping[str, Tensor] | None = None,
    unused: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of the network, with each one accounted for.

    Parameters
    ----------
    state : mapping of str -> Tensor
        As read from the file.
    expected : mapping of str -> shape
        Every tensor of the network.
    where : str or path
        The file, for messages.
    prefixes : sequence of str
        Prefixes of this file beyond the usual ones.
    indices : mapping of str -> Tensor, optional
        The network's own relative position indices, which copies in the file must equal.
    unused : sequence of str
        Names of tensors that the file may hold and the network does not have.

    Raises
    ------
    WeightsMismatchError
        If a tensor is missing, left over, of another shape or kind, present twice, or if an index buffer differs.
    """
    named: dict[str, Tensor] = {}
    students = any(k.startswith("student.") for k in state)
    for key, tensor in state.items():
        if students and key.startswith("teacher."):
            continue
        name = split_key(key, (*prefixes, *PREFIXES))[1]
        if name in named:
            raise WeightsMismatchError(f"{where} contains {name!r} twice, once as {key!r}: two networks in one file")
        named[name] = tensor
    used = {
        name: t for name, t in named.items() if name in expected or not (name in unused or _of_no_use(name, expected))
    }
    used = {name: t for name, t in used.items() if not _is_index(name, t, expected, indices, where)}

    _check_window(used, expected, where)
    missing = [name for name in expected if name not in used]
    leftover = [name for name in used if name not in expected]
    if missing or leftover:
        raise WeightsMismatchError(
            f"{where} does not fill the network exactly.\n"
            f"  missing in the file: {len(missing)} of {len(expected)} tensors{_list(missing)}\n"
            f"  left over in the file: {len(leftover)} of {len(state)}{_list(leftover)}\n"
            f"  the file looks like {_looks_like(named)}.\n"
            "Pass the model of these weights, or the weights of this model"
        )
    shapes = [
        f"{name}: {tuple(used[name].shape)} in the file, {tuple(shape)} in the network"
        for name, shape in expected.items()
        if tuple(used[name].shape) != tuple(shape)
    ]
    if shapes:
        raise WeightsMismatchError(
            f"{where} is of another size: {len(shapes)} of {len(expected)} tensors differ in shape{_list(shapes)}\n"
            f"  the file looks like {_looks_like(named)}"
        )
    integers = [name for name, t in used.items() if not t.dtype.is_floating_point]
    if integers:
        raise WeightsMismatchError(f"{where}: {len(integers)} tensors are not floating-point numbers{_list(integers)}")
    return used


def load_weights(
    network: nn.Module, path: str | Path, *, prefixes: Sequence[str] = (), unused: Sequence[str] = ()
) -> None:
    """Fill `network` from the file `path`, strictly, in the network's own dtype.

    Raises
    ------
    WeightsMismatchError
        See `read_state` and `match_state`; or if the file holds NaN or infinite values.
    """
    import torch

    state = matched_state(network, path, prefixes=prefixes, unused=unused)
    broken = [name for name, t in state.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise WeightsMismatchError(f"{path}: {len(broken)} tensors hold NaN or infinite values{_list(broken)}")
    counters = {name: t for name, t in network.state_dict().items() if name.endswith(COUNTER)}
    network.load_state_dict({**counters, **state}, strict=True)


def matched_state(
    network: nn.Module, path: str | Path, *, prefixes: Sequence[str] = (), unused: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of `network`, which may be on the meta device.

    Counters of batch normalizations are left out. The tensors of a wrapped model of timm are known by the names of that
    model, with and without the name of the wrapper.

    Raises
    ------
    WeightsMismatchError
        See `read_state` and `match_state`.
    """
    shapes = {name: t.shape for name, t in network.state_dict().items() if not name.endswith(COUNTER)}
    indices = {n: b for n, b in network.named_buffers() if n.endswith(INDEX) and not b.is_meta}
    state = {name: t for name, t in read_state(path).items() if not name.endswith(COUNTER)}
    wrapper = WRAPPER if shapes and all(name.startswith(WRAPPER) for name in shapes) else ""
    matched = match_state(
        state,
        {name.removeprefix(wrapper): shape for name, shape in shapes.items()},
        where=path,
        prefixes=(*prefixes, wrapper) if wrapper else prefixes,
        indices={name.removeprefix(wrapper): b for name, b in indices.items()},
        unused=unused,
    )
    return {wrapper + name: t for name, t in matched.items()}


def _of_no_use(name: str, expected: Mapping[str, Any]) -> bool:
    first = name.split(".", 1)[0]
    if first in HEADS:
        return True
    return first == REPLACED_STEM and any(k.startswith(f"{REPLACED_STEM}_") for k in expected)


def _is_index(
    name: str, tensor: Tensor, expected: Mapping[str, Any], indices: Mapping[str, Tensor] | None, where: str | Path
) -> bool:
    """Return whether `name` is the index buffer of an attention in the network; its values must be equal."""
    import torch

    if name in expected or not name.endswith(INDEX) or name.removesuffix(INDEX) + BIAS not in expected:
        return False
    own = (indices or {}).get(name)
    if own is not None and own.numel() == tensor.numel() and not torch.equal(own.flatten(), tensor.flatten()):
        raise WeightsMismatchError(f"{where}: {name} orders the window's positions differently from this network")
    return True


def _check_window(used: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], where: str | Path) -> None:
    for name, tensor in used.items():
        if name.endswith(BIAS) and name in expected and tensor.shape[0] != expected[name][0]:
            theirs, ours = tensor.shape[0], expected[name][0]
            raise WeightsMismatchError(
                f"{where}: {name} has {theirs} rows, {_window(theirs)}; the network has {ours}, {_window(ours)}. "
                f"Set the card's architecture to the window of the weights"
            )


def _window(rows: int) -> str:
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        return "which is not a window size"
    return f"that is {side}^2, window {(side + 1) // 2}"


def _looks_like(state: Mapping[str, Tensor]) -> str:
    """Describe in words what a file seems to be."""
    parameters = sum(t.numel() for t in state.values())
    size = f"{len(state)} tensors with {parameters / 1e6:.2f} M values"

    def blocks(prefix: str, position: int) -> int:
        return len({k.split(".")[position] for k in state if k.startswith(prefix)})

    if "cls_token" in state and "blocks.0.attn.qkv.weight" in state:
        stem = next((k for k in state if k.startswith("patch_embed") and k.endswith("proj.weight")), None)
        inputs = f", stem {stem} {tuple(state[stem].shape)}" if stem else ""
        return f"a ViT of {blocks('blocks.', 1)} blocks, {state['cls_token'].shape[-1]} channels{inputs} ({size})"
    table = next((k for k in state if k.endswith(BIAS)), None)
    if table is not None:
        style = "torchvision or DEO" if table.startswith("features.") else "another library"
        return f"a Swin Transformer as named by {style}, {_window(state[table].shape[0])} ({size})"
    return f"{size}, the first named {_few(list(state), 4)}"


def _few(names: Sequence[str], count: int = 6) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(n) for n in names[:count]) + more


def _list(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f"\n    ... and {len(names) - 5} more" if len(names) > 5 else ""
    return ":" + "".join(f"\n    {n}" for n in names[:5]) + more


def check_file(card: ModelCard, path: Path) -> Path:
    """Return `path` if it starts like a weights file and has the hash that the card states.

    Raises
    ------
    WeightsMismatchError
        If not.
    """
    sniff(path)
    stated = card.weights.hashes
    if stated and file_sha256(path) not in stated:
        raise WeightsMismatchError(
            f"{path} is not the weights file that the card of {card.alias} describes: expected SHA-256 "
            f"{' or '.join(sorted(stated))}, got {file_sha256(path)}. Download it again; or, if these weights are your "
            "own, give them a card of their own (ModelCard.save) and pass that folder as model"
        )
    return path


@dataclass(frozen=True)
class KeyForm:
    """The form of the names in a weights file.

    Parameters
    ----------
    container : str
        `safetensors`, `torch, plain tensors` or `torch, training checkpoint`.
    prefixes : mapping of str -> int
        Whole stack of prefixes (`student.module.backbone.`; "" for none) -> tensors of the network that carry it.
    heads, indices, stems, teacher : int
        Numbers of unused tensors: projection heads of training, index buffers of attention, the trunk's own stem of a
        ViT, and tensors of the EMA teacher.
    """

    container: str
    prefixes: Mapping[str, int]
    heads: int = 0
    indices: int = 0
    stems: int = 0
    teacher: int = 0

    def __str__(self) -> str:
        parts = [f"{n} tensors under {p!r}" if p else f"{n} tensors without prefix" for p, n in self.prefixes.items()]
        left = {
            "of projection heads": self.heads,
            "index buffers": self.indices,
            "of the trunk's own stem": self.stems,
            "of the EMA teacher": self.teacher,
        }
        unused = [f"{n} {what}" for what, n in left.items() if n]
        return f"{self.container}: {', '.join(parts)}" + (f"; not used: {', '.join(unused)}" if unused else "")


def key_form(path: str | Path) -> KeyForm:
    """Return how the file at `path` names its tensors. Nothing in it is executed.

    Raises
    ------
    WeightsMismatchError
        See `read_state`.
    """
    state, container = read_state(path), sniff(path)
    if container == "torch":
        checkpoint = isinstance(_load_torch(local_path(path)).get("student"), Mapping)
        container = "torch, training checkpoint (entry 'student')" if checkpoint else "torch, plain tensors"
    counts: Counter[str] = Counter()
    students = any(k.startswith("student.") for k in state)
    named = [(k, *split_key(k)) for k in state if not (students and k.startswith("teacher."))]
    names = {name for _, _, name in named}
    heads = indices = stems = 0
    for _, prefix, name in named:
        first = name.split(".", 1)[0]
        if first in HEADS:
            heads += 1
        elif name.endswith(INDEX) and name.removesuffix(INDEX) + BIAS in names:
            indices += 1
        elif first == REPLACED_STEM and any(n.startswith(f"{REPLACED_STEM}_") for n in names):
            stems += 1
        else:
            counts[prefix] += 1
    return KeyForm(container, dict(counts.most_common()), heads, indices, stems, len(state) - len(named))


def split_key(key: str, prefixes: Sequence[str] = PREFIXES) -> tuple[str, str]:
    """Return the stack of prefixes of a key, and the name behind it."""
    name = key
    while prefix := next((p for p in prefixes if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return key.removesuffix(name), name
