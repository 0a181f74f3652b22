"""What tells two networks apart that no weights file names: their tensors, and the code that computes with them.

Code is compared as it was compiled, not as it was written: a function that was defined in a notebook or sent to a
worker by cloudpickle has no source there. Line numbers and file names do not count.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Set
from types import CodeType
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["network_hash"]


def network_hash(network: nn.Module) -> str:
    """SHA-256 over the values of a network and what computes with them: equal if it gives the same numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + b"".join(_content(tensor, set())))
    inner = getattr(network, "function", None) or getattr(network, "model", network)
    for part in _content(inner, set()):
        digest.update(part)
    return digest.hexdigest()


def _content(value: Any, seen: set[int]) -> Iterator[bytes]:
    """What decides the numbers that `value` gives. `seen` are those under way: closures may hold themselves."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode() + value.tobytes()
        return
    if isinstance(value, (int, float, complex, str, bytes, type(None), type(...), np.generic)):
        yield repr(value).encode()
        return
    if id(value) in seen:
        return
    seen = seen | {id(value)}
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, Set):  # in an order that differs from process to process
        yield b"".join(sorted(b"".join(_content(v, seen)) for v in value))
    elif isinstance(value, (tuple, list)):
        yield f"{type(value).__name__} {len(value)}".encode()
        for item in value:
            yield from _content(item, seen)
    elif isinstance(value, functools.partial):
        yield from _content((value.func, value.args, sorted(value.keywords.items())), seen)
    elif isinstance(value, CodeType):
        yield from _content((value.co_code, value.co_names, value.co_consts), seen)
    elif inspect.ismethod(value):
        yield from _content((value.__func__, value.__self__), seen)
    elif inspect.isfunction(value):
        captured = [cell.cell_contents for cell in value.__closure__ or ()]
        yield from _content((value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__), seen)
        yield from _content(captured, seen)
    elif inspect.isroutine(value) or inspect.ismodule(value):
        yield getattr(value, "__qualname__", value.__name__).encode()
    elif isinstance(value, type):
        yield value.__qualname__.encode()
        for base in value.__mro__:
            if base.__module__.partition(".")[0] not in ("builtins", "torch", "abc", "typing"):
                for name, member in sorted(vars(base).items()):
                    if inspect.isfunction(member):
                        yield name.encode()
                        yield from _content(member, seen)
    elif isinstance(value, nn.Module):  # its tensors are in its state
        for name, part in value.named_modules():
            yield name.encode()
            yield from _content(type(part), seen)
            # Strides, paddings, eps: what no tensor tells. Other members may be anything, handles and caches too.
            plain = {k: v for k, v in vars(part).items() if k != "training" and k[0] != "_" and _is_plain(v)}
            yield from _content(sorted(plain.items()), seen)
    else:
        yield from _content(type(value), seen)
        yield from _content(sorted(getattr(value, "__dict__", {}).items()), seen)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str)) or (isinstance(value, tuple) and all(_is_plain(v) for v in value))
