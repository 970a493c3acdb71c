"""The operations of a function and their names.

Names come from the text alone, so they are the same in every run, on every machine and for every module that
shares the code. Knows syntax, not values.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["call", "operator", "variable"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call, operator or assigned variable in the text of a function.

    Attributes:
        name: What it is called, `self_c_proj_0`.
        kind: What it is.
        line_number: Its line in the file.
        source_code: The text of the expression; of the assigned name for a variable.
        position: Its place in the order in which a run without branches would reach it, from 0.
        function: What an operator computes; None for calls, variables and chains such as `a < b < c`.
    """

    name: str
    kind: Kind
    line_number: int
    source_code: str
    position: int
    function: Callable[..., object] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An operation before its name is settled: a variable may have to give way to a call further down."""

    kind: Kind
    base: str
    line_number: int
    source_code: str
    function: Callable[..., object] | None = None


def callee(node: ast.expr) -> str:
    """What a call is named after: `self.c_proj` is `self_c_proj`, `f(x).contiguous` is `contiguous`."""
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript) and not parts:
            node = node.value  # `self.experts[i](x)`
        elif isinstance(node, ast.Name):
            parts.append(node.id)
            break
        else:
            break
    if not parts:
        return "lambda" if isinstance(node, ast.Lambda) else "call"
    return "_".join(reversed(parts))


def named(found: Iterable[Found]) -> tuple[Operation, ...]:
    """Settle the names, in the order given: each name followed by how often it came before."""
    found = tuple(found)
    taken = {one.base for one in found if one.kind != "variable"}
    variables: dict[str, str] = {}
    for one in found:
        if one.kind == "variable" and one.base not in variables:
            base = one.base
            while base in taken or base in variables.values():
                base += "_var"
            variables[one.base] = base
    seen: Counter[str] = Counter()
    operations = []
    for position, one in enumerate(found):
        base = variables[one.base] if one.kind == "variable" else one.base
        name = f"{base}_{seen[base]}"
        seen[base] += 1
        operations.append(Operation(name, one.kind, one.line_number, one.source_code, position, one.function))
    return tuple(operations)
