"""Hash a network that has no weights file from its tensors and its code.

Code counts as it was written (see `source_code`), together with default arguments, captured variables, the arguments of
`functools.partial`, and the constants and functions of its own module that it names. Python versions, paths and
addresses of objects do not count. What a function changes itself (a counter, a cache) is state and does not count.

A function that is sent to another process by value (from a notebook, by cloudpickle) may have no source there.
`HashedNetwork.sources` holds the digests of such functions by their bytecode; they travel with the reference.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Set
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deo_cube.encoder.source_code import FunctionSource, bytecode_digest, function_source

__all__ = ["HashedNetwork", "content_hash", "hash_network", "network_hash"]

#: Packages whose code is hashed by name.
LIBRARIES = frozenset(
    {"dask", "geopandas", "numpy", "pandas", "pyproj", "rasterio", "scipy", "shapely", "sklearn", "torch", "xarray"}
)
#: Bytecode -> digest of the source, and the names that it changes.
Sources = Mapping[str, tuple[str, tuple[str, ...]]]
WRITTEN_BY_DATACLASS = ("dataclass", ())


class HashedNetwork(NamedTuple):
    """The hash of a network, and what another process needs to compute the same hash."""

    sha256: str
    sources: dict[str, tuple[str, tuple[str, ...]]]
    """Digests of the source of functions that cannot be imported by name."""


def network_hash(network: nn.Module, sources: Sources | None = None) -> str:
    """Return the SHA-256 of a network's values and code. Equal hashes mean equal numbers."""
    return hash_network(network, sources).sha256


def hash_network(network: nn.Module, sources: Sources | None = None) -> HashedNetwork:
    """Hash a network.

    Parameters
    ----------
    network : module
        A `FunctionNetwork` is hashed by its function, a `TimmNetwork` by its model.
    sources : mapping, optional
        `HashedNetwork.sources` of the process that sent its functions.
    """
    content = _Content(sources or {})
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        content.add(digest, name)
        content.add(digest, tensor)
    inner = getattr(network, "function", None) or getattr(network, "model", network)
    content.add(digest, inner)
    return HashedNetwork(digest.hexdigest(), content.found)


def content_hash(value: Any) -> str:
    """Return the SHA-256 of everything that decides the numbers of a function."""
    digest = hashlib.sha256()
    _Content({}).add(digest, value)
    return digest.hexdigest()


class _Content:
    """One pass over a value and everything that it refers to."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.found: dict[str, tuple[str, tuple[str, ...]]] = {}
        # By identity, beside the object, so that no other one takes its place in memory meanwhile.
        self.digests: dict[int, tuple[Any, bytes]] = {}
        self.under_way: set[int] = set()

    def add(self, digest: Any, value: Any) -> None:
        for part in self.parts(value):
            digest.update(len(part).to_bytes(8, "little") + part)

    def of(self, value: Any) -> bytes:
        digest = hashlib.sha256()
        self.add(digest, value)
        return digest.digest()

    def parts(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, Tensor):
            yield from _tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            yield from self.array(np.asarray(value))
        elif isinstance(value, bool | int | float | complex | str | bytes | type(None) | type(...) | range | slice):
            yield f"{type(value).__name__} {value!r}".encode()
        elif isinstance(value, torch.dtype | torch.device):
            yield repr(value).encode()
        elif id(value) in self.digests:
            yield self.digests[id(value)][1]
        elif id(value) in self.under_way:  # closures may hold themselves
            yield b"itself " + type(value).__name__.encode()
        else:
            self.under_way.add(id(value))
            digest = hashlib.sha256()
            for part in self.composed(value):
                digest.update(len(part).to_bytes(8, "little") + part)
            self.under_way.discard(id(value))
            self.digests[id(value)] = (value, digest.digest())
            yield digest.digest()

    def array(self, value: np.ndarray[Any, Any]) -> Iterator[bytes]:
        if value.dtype.hasobject:
            yield from self.parts([str(value.dtype), value.shape, value.ravel().tolist()])
        else:
            yield f"{value.dtype.str} {value.shape}".encode() + value.tobytes()

    def composed(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, Mapping):
            yield b"mapping"
            for key, item in value.items():
                yield from self.parts(key)
                yield from self.parts(item)
        elif isinstance(value, Set):  # in an order that differs from process to process
            yield b"set"
            yield from sorted(self.of(v) for v in value)
        elif isinstance(value, tuple | list):
            yield f"{type(value).__name__} {len(value)}".encode()
            for item in value:
                yield from self.parts(item)
        elif isinstance(value, functools.partial):
            yield from self.parts(("partial", value.func, value.args, sorted(value.keywords.items())))
        elif inspect.ismethod(value):
            yield from self.parts(("method", value.__func__, value.__self__))
        elif isinstance(value, FunctionType):
            if _of_library(value):
                yield f"{value.__module__} {value.__qualname__} {value.__name__}".encode()
            else:
                yield from self.function(value)
        elif isinstance(value, torch.jit.ScriptModule | torch.jit.ScriptFunction):
            yield str(value.code).encode()
        elif isinstance(getattr(value, "__wrapped__", None), FunctionType):  # functools.cache and their like
            yield from self.parts((type(value).__qualname__, value.__wrapped__))
        elif isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, ModuleType | type(None)):
            yield from self.parts((value.__name__, value.__self__))
        elif inspect.isroutine(value) or inspect.ismodule(value):
            yield getattr(value, "__qualname__", value.__name__).encode()
        elif isinstance(value, type):
            yield from self.kind(value)
        elif isinstance(value, nn.Module):  # its tensors are in its state
            for name, part in value.named_modules():
                yield name.encode()
                yield from self.parts(type(part))
                # Strides, paddings, eps: what no tensor tells. Other members may be anything, handles and caches too.
                plain = {k: v for k, v in vars(part).items() if k != "training" and k[0] != "_" and _decides(v)}
                yield from self.parts(sorted(plain.items()))
        else:
            try:
                made, *state = value.__reduce_ex__(4)  # what pickle would keep: members, slots, and the class
            except Exception:  # locks, handles: anything may refuse in any way
                made, state = type(value), []
            yield from self.parts(made)
            for item in state:
                yield from self.parts(list(item) if hasattr(item, "__next__") else item)

    def function(self, value: FunctionType) -> Iterator[bytes]:
        source = self.source(value)
        yield from self.parts((value.__qualname__, source.digest, value.__defaults__, value.__kwdefaults__))
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if name == "__class__":  # of `super()`: the class that holds the function
                continue
            try:
                yield from self.parts(cell.cell_contents)
            except ValueError:  # not assigned yet
                yield b"empty"
        for name in sorted(_global_names(value.__code__)):
            if name in value.__globals__ and name not in source.changed:
                named = value.__globals__[name]
                own = isinstance(named, FunctionType | type) and named.__module__ == value.__module__
                if own or (_decides(named) and not isinstance(named, FunctionType)):
                    yield name.encode()
                    yield from self.parts(named)

    def source(self, value: FunctionType) -> FunctionSource:
        key = bytecode_digest(value.__code__)
        if key in self.sources:
            digest, changed = self.sources[key]
            self.found[key] = (digest, changed)
            return FunctionSource(digest, frozenset(changed))
        source = function_source(value)
        if not _importable(value):
            self.found[key] = (source.digest, tuple(sorted(source.changed)))
        return source

    def written_by_dataclass(self, member: FunctionType) -> bool:
        """Return whether a dataclass generated the method, which then has no source and is hashed by the fields."""
        code = inspect.unwrap(member).__code__
        key = bytecode_digest(code)
        if code.co_filename != "<string>" and self.sources.get(key) != WRITTEN_BY_DATACLASS:
            return False
        self.found[key] = WRITTEN_BY_DATACLASS
        return True

    def kind(self, value: type) -> Iterator[bytes]:
        yield value.__qualname__.encode()
        for base in value.__mro__:
            if _of_library(base):
                continue
            generated = hasattr(base, "__dataclass_fields__") or hasattr(base, "_fields")
            for name, member in sorted(vars(base).items()):
                if isinstance(member, property):
                    functions: list[Any] = [member.fget, member.fset]
                elif isinstance(member, staticmethod | classmethod):
                    functions = [member.__func__]
                elif isinstance(member, FunctionType):
                    functions = [] if generated and self.written_by_dataclass(member) else [member]
                elif name.startswith("__") or not _decides(member):
                    continue
                else:
                    functions = [member]
                yield name.encode()
                for function in functions:
                    yield from self.parts(function)
            if generated:
                yield repr(sorted(getattr(base, "__annotations__", {}))).encode()


def _tensor(value: Tensor) -> Iterator[bytes]:
    if value.is_meta or value.is_quantized or value.layout != torch.strided:
        yield f"{value.dtype} {tuple(value.shape)} {value.layout}".encode()
        if not value.is_meta:
            yield from _tensor(value.dequantize() if value.is_quantized else value.to_dense())
        return
    # Through bytes, since NumPy has no bfloat16.
    whole = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    yield f"{value.dtype} {tuple(value.shape)}".encode() + whole.reshape(-1).view(torch.uint8).numpy().tobytes()


def _global_names(code: CodeType) -> set[str]:
    """Return the names that code, and the code inside it, looks up among its globals."""
    names = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_global_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _of_library(value: Any) -> bool:
    package = str(getattr(value, "__module__", "")).partition(".")[0]
    return package != "__main__" and (package in LIBRARIES or package in sys.stdlib_module_names)


def _importable(function: FunctionType) -> bool:
    """Return whether another process finds the same function by its name, as pickle does."""
    module = function.__module__
    # None of those that the user has cloudpickle send by value is loaded without it.
    by_value: set[str] = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", set)()
    if module in (None, "__main__") or "<" in function.__qualname__ or module in by_value:
        return False
    try:
        target: Any = importlib.import_module(module)
        for name in function.__qualname__.split("."):
            target = inspect.getattr_static(target, name)
    except (ImportError, AttributeError):
        return False
    return getattr(target, "__func__", target) is function


def _decides(value: Any) -> bool:
    """Return whether a member or global is a plain value or a function, which decides numbers."""
    if isinstance(value, tuple | list):
        return all(_decides(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str | int) and _decides(v) for k, v in value.items())
    if isinstance(value, functools.partial):
        return True
    return isinstance(
        value, bool | int | float | complex | str | bytes | type(None) | np.ndarray | np.generic | Tensor | FunctionType
    )
