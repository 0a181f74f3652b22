"""A digest of what a function computes: of its source, so that it is the same under every version of Python.

Bytecode differs between minor versions of Python, and the path of a file differs between machines; neither counts here,
nor do comments, docstrings, annotations and layout. The source is trusted only where compiling it gives the code of the
function: a file that was edited after its import is not the source of what runs. Where there is no source (a function
made by `exec`, or typed at the prompt of a Python before 3.13), the bytecode is digested, which holds for one minor
version of Python. Uses the standard library alone.
"""

from __future__ import annotations
import __future__

import ast
import functools
import hashlib
import linecache
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import NamedTuple

__all__ = ["FunctionSource", "bytecode_digest", "function_source"]

#: Fields of syntax trees that decide no number, or that only some versions of Python have.
IGNORED = frozenset({"annotation", "ctx", "decorator_list", "kind", "returns", "simple", "type_comment", "type_params"})
#: Methods of containers that only read.
READING = frozenset({"copy", "count", "get", "index", "items", "keys", "values"})
_FUTURE = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag, __future__.all_feature_names, 0
)

_Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class FunctionSource(NamedTuple):
    """The source of a function, digested."""

    digest: str
    """Of the syntax tree, or of the bytecode where there is no source."""
    changed: frozenset[str]
    """Global names that the function assigns to or changes in place: state, not input."""


def function_source(function: FunctionType) -> FunctionSource:
    """Return a digest of the source of a function, and the globals that it changes.

    Returns
    -------
    FunctionSource
        Its digest begins with ``source`` or, where no source belongs to the running code, with ``bytecode``.
    """
    code = function.__code__
    node = _node(code, linecache.getlines(code.co_filename, function.__globals__))
    if node is None:
        return FunctionSource("bytecode " + bytecode_digest(code), frozenset())
    digest = hashlib.sha256()
    for part in _parts(node):
        digest.update(part)
    return FunctionSource("source " + digest.hexdigest(), frozenset(_changed(node)))


def bytecode_digest(code: CodeType) -> str:
    """Return a digest of compiled code, equal for equal code of one minor version of Python."""
    digest = hashlib.sha256(code.co_code)
    for names in (code.co_names, code.co_varnames, code.co_freevars):
        digest.update(repr(names).encode())
    digest.update(repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)).encode())
    digest.update(_constant(code.co_consts))
    return digest.hexdigest()


def _constant(value: object) -> bytes:
    if isinstance(value, CodeType):
        return bytecode_digest(value).encode()
    if isinstance(value, tuple):
        return b"(" + b",".join(_constant(v) for v in value) + b")"
    if isinstance(value, frozenset):  # in an order that differs from process to process
        return b"{" + b",".join(sorted(_constant(v) for v in value)) + b"}"
    return f"{type(value).__name__} {value!r}".encode()


def _node(code: CodeType, lines: list[str]) -> _Node | None:
    """Return the definition in `lines` that compiles to `code`, or None."""
    statement, codes = _compiled("".join(lines), code.co_firstlineno, code.co_flags & _FUTURE)
    if statement is None or code not in codes:
        return None
    lambdas = code.co_name == "<lambda>"
    nodes: list[_Node] = [
        n
        for n in ast.walk(statement)
        if isinstance(n, ast.Lambda if lambdas else ast.FunctionDef | ast.AsyncFunctionDef)
        and _first_line(n) == code.co_firstlineno
        and (isinstance(n, ast.Lambda) or n.name == code.co_name)
    ]
    if lambdas:  # one line may hold several: the innermost around all that the code was compiled from
        spans = [p for p in code.co_positions() if None not in p and p[3] != 0]
        first = min(((line, column) for line, _, column, _ in spans), default=None)  # type: ignore[type-var]
        last = max(((line, column) for _, line, _, column in spans), default=None)  # type: ignore[type-var]
        if first is None or last is None:
            return nodes[0] if len(nodes) == 1 else None
        nodes = [
            n
            for n in nodes
            if (n.lineno, n.col_offset) <= first and (n.end_lineno or 0, n.end_col_offset or 0) >= last  # type: ignore[operator]
        ]
        nodes.sort(key=lambda n: (n.lineno, n.col_offset), reverse=True)
    return nodes[0] if nodes else None


@functools.lru_cache(maxsize=32)
def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError):
        return []


def _compiled(source: str, line: int, flags: int) -> tuple[ast.stmt | None, frozenset[CodeType]]:
    """Return the statement of a module that contains `line`, and all code that it compiles to."""
    for statement in _statements(source):
        if _first_line(statement) <= line <= (statement.end_lineno or 0):
            return statement, _codes_of(source, flags)
    return None, frozenset()


@functools.lru_cache(maxsize=32)
def _codes_of(source: str, flags: int) -> frozenset[CodeType]:
    # The whole module, not the one statement: Python compiles `name.function()` otherwise where `name` is imported.
    module = ast.Module(_statements(source), [])
    try:
        return frozenset(_codes(compile(module, "source", "exec", flags=flags, dont_inherit=True)))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()


def _first_line(node: ast.AST) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    lines: list[int] = [n.lineno for n in (node, *decorators)]  # type: ignore[attr-defined]
    return min(lines)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _parts(node: ast.AST) -> Iterator[bytes]:
    """Yield a syntax tree as bytes: kinds and fields by name, without empty ones, which differ between Pythons."""
    yield f"{type(node).__name__}(".encode()
    for field in sorted(set(node._fields) - IGNORED):
        value = getattr(node, field, None)
        if field == "body" and isinstance(value, list) and _is_text(value[:1]):
            value = value[1:]  # a docstring
        if value is None or value == []:
            continue
        yield f"{field}=".encode()
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield from _parts(item)
            else:
                yield f"{type(item).__name__} {item!r},".encode()
    yield b")"


def _is_text(statements: list[ast.AST]) -> bool:
    return any(
        isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str)
        for s in statements
    )


def _changed(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Global):
            yield from part.names
        elif isinstance(part, ast.Subscript | ast.Attribute) and isinstance(part.ctx, ast.Store | ast.Del):
            if isinstance(part.value, ast.Name):
                yield part.value.id
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            if isinstance(part.func.value, ast.Name) and part.func.attr not in READING:
                yield part.func.value.id
