"""Refuse, before anything runs, what a block that runs later cannot do."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from types import FunctionType
from typing import Any

from interlace.errors import CaptureError

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_SUSPENDS = 0x20 | 0x80 | 0x200  # code flags: a generator, a coroutine, an asynchronous generator
_LOOPS = (ast.For, ast.While)
_WHY = {
    ast.Return: "`return` would leave a function that has gone on",
    ast.Yield: "`yield` would suspend a function that has gone on",
    ast.YieldFrom: "`yield from` would suspend a function that has gone on",
    ast.Await: "`await` would suspend a function that has gone on",
    ast.AsyncFor: "`async for` would suspend a function that has gone on",
    ast.AsyncWith: "`async with` would suspend a function that has gone on",
    ast.Break: "`break` would end a loop outside the block",
    ast.Continue: "`continue` would go on with a loop outside the block",
}


def check(body: Iterable[ast.stmt], filename: str) -> None:
    """Look through the statements of a block.

    Raises:
        CaptureError: a statement that only makes sense where the block stands; names its line.
    """
    for statement in body:
        _look(statement, filename, in_loop=False)


def check_function(function: object, takes: tuple[object, ...], wanted: str) -> None:
    """Look at a function that is to run later in place of a block.

    Args:
        function: What was given.
        takes: What it will be called with.
        wanted: What an error says that it must be, and what to write.

    Raises:
        TypeError: It cannot be called with that.
        CaptureError: Calling it would only begin it.
    """
    if isinstance(function, FunctionType):  # quickly, since there may be one for each of many prompts
        code = function.__code__
        most = code.co_argcount
        least = most - len(function.__defaults__ or ())
        if not code.co_flags & _SUSPENDS and not code.co_kwonlyargcount and least <= len(takes) <= most:
            return
    name = getattr(function, "__qualname__", function)
    if not callable(function) or not _binds(function, takes):
        raise TypeError(wanted.format(repr(name)))
    for part in (function, getattr(function, "__call__", None)):  # noqa: B004  (of an object, its method)
        if inspect.iscoroutinefunction(part) or inspect.isasyncgenfunction(part):
            raise CaptureError(_begun(name, "an `async def`"))
        if inspect.isgeneratorfunction(part):
            raise CaptureError(_begun(name, "a function with `yield`"))


def _binds(function: Any, takes: tuple[object, ...]) -> bool:
    """Whether a function can be called so, as far as that can be known."""
    try:
        inspect.signature(function).bind(*takes)
    except TypeError:
        return False
    except ValueError:  # built in, without a signature
        return True
    return True


def _begun(name: object, kind: str) -> str:
    return (
        f"`{name}` is to run later, in place of a block, and {kind} would only be begun there.\n"
        "Nothing has run. Write a plain function, which may call others."
    )


def _look(node: ast.AST, filename: str, *, in_loop: bool) -> None:
    if isinstance(node, _SCOPES):
        return
    refused = _WHY.get(type(node))
    if in_loop and isinstance(node, ast.Break | ast.Continue):
        refused = None
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        refused = "`import *` binds names that nobody can know in advance"
    if isinstance(node, ast.comprehension) and node.is_async:
        refused = "an asynchronous comprehension would suspend a function that has gone on"
    if refused:
        line = getattr(node, "lineno", "?")
        raise CaptureError(
            f"{filename}:{line}: this block runs later, as a function: {refused}.\n"
            "Nothing has run. Move the statement out of the block."
        )
    inner = list(ast.iter_child_nodes(node))
    if isinstance(node, _LOOPS):
        for part in inner:
            _look(part, filename, in_loop=in_loop or part in node.body)
        return
    for part in inner:
        _look(part, filename, in_loop=in_loop)
