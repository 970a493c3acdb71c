"""Say in a block where each of its names is settled: bound for the last time. Other blocks may wait for it."""

from __future__ import annotations

import ast
from collections.abc import Callable

from interlace.capture.bindings import Bindings
from interlace.capture.rewrite import SCOPE, placed
from interlace.capture.uses import entangled

SETTLED = "_il_settled_"


def settle(body: list[ast.stmt], mangle: Callable[[str], str]) -> list[ast.stmt]:
    """Say after the last statement that can bind a name that the name is settled; other blocks may wait for it.

    The last statement may be inside a `with`, an `if` or a `try`; in a loop it is the loop. Names that a function
    inside binds, and those of an object that has several and is changed in place, are settled by the end of the block.
    """
    late = Bindings(body).late | entangled(body)
    return _settle(body, Bindings(body).bound - late, mangle)


def _settle(body: list[ast.stmt], names: set[str], mangle: Callable[[str], str]) -> list[ast.stmt]:
    out: list[ast.stmt] = []
    left = set(names)
    last: list[set[str]] = []
    for statement in reversed(body):
        last.append(left & Bindings([statement]).bound)
        left -= last[-1]
    for statement, here in zip(body, reversed(last), strict=True):
        if here:
            _descend(statement, here, mangle)
        out.append(statement)
        if here:
            call = ast.Call(
                ast.Attribute(ast.Name(SCOPE, ast.Load()), SETTLED, ast.Load()),
                [ast.Constant(mangle(name)) for name in sorted(here)],
                [],
            )
            # At the statement's first line: to coverage and debuggers its last one may never have run.
            start = ast.Pass()
            start.lineno = start.end_lineno = statement.lineno
            start.col_offset = start.end_col_offset = statement.col_offset
            out.append(placed(start, ast.Expr(call)))
    return out


def _descend(statement: ast.stmt, names: set[str], mangle: Callable[[str], str]) -> None:
    if isinstance(statement, ast.With):
        statement.body = _settle(statement.body, names & Bindings(statement.body).bound, mangle)
    elif isinstance(statement, ast.If):
        statement.body = _settle(statement.body, names & Bindings(statement.body).bound, mangle)
        statement.orelse = _settle(statement.orelse, names & Bindings(statement.orelse).bound, mangle)
    elif isinstance(statement, ast.Try):
        later = Bindings([*statement.handlers, *statement.orelse, *statement.finalbody]).bound
        statement.body = _settle(statement.body, names & Bindings(statement.body).bound - later, mangle)
