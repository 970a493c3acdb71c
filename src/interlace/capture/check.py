"""Refuse, before anything runs, what a block that runs later cannot do."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from interlace.errors import CaptureError

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
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
