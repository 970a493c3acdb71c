"""What a block needs of the names around it: which it reads before it has bound them, and which modules it goes to."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from interlace.capture import Bindings

_BRANCHES = ("body", "orelse", "finalbody", "handlers", "cases")


def needed(body: Iterable[ast.stmt], bound: set[str]) -> set[str]:
    """The names that statements may read before they have bound them, none too few.

    Args:
        body: The statements.
        bound: Names that are bound when they begin; those that certainly are at the end are added.
    """
    found: set[str] = set()
    for statement in body:
        branches = [held for name in _BRANCHES if isinstance(held := getattr(statement, name, None), list)]
        if isinstance(statement, (ast.With, ast.AsyncWith)):
            found |= _reads(statement.items) - bound
            bound |= Bindings(statement.items).bound
            found |= needed(statement.body, bound)
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found |= _reads([statement]) - bound
            bound.add(statement.name)
        elif branches:
            found |= _branching(statement, branches, bound)
        else:
            found |= _reads([statement]) - bound
            binds = Bindings([statement])
            bound |= binds.bound - binds.deleted - _perhaps(statement)
    return found


def _branching(statement: ast.stmt, branches: list[list[Any]], bound: set[str]) -> set[str]:
    """A statement whose parts may run or not: none of what they bind is certain."""
    inside = {part for held in branches for part in held}
    header = [part for part in ast.iter_child_nodes(statement) if part not in inside]
    found = _reads(header) - bound
    for held in branches:
        start = bound | Bindings(header).bound
        for part in held:
            if isinstance(part, ast.stmt):
                found |= needed([part], start)
            else:  # a handler, a case
                found |= _reads([part]) - bound
    return found


def _perhaps(statement: ast.stmt) -> set[str]:
    """Names that an expression inside binds, if it comes to that."""
    return {part.target.id for part in ast.walk(statement) if isinstance(part, ast.NamedExpr)}


def _reads(nodes: Iterable[ast.AST]) -> set[str]:
    """Every name that is read anywhere inside, and every target of an `x += 1`."""
    found = set()
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Store):
                found.add(part.id)
            elif isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name):
                found.add(part.target.id)
    return found


class Modules(ast.NodeVisitor):
    """The modules that code goes to by attributes and constant keys, as far as its text tells.

    Args:
        envoys: The envoys that some names stand for.
        keys: The whole numbers and texts that some names stand for.

    Attributes:
        found: Their paths from the root, as they are spelled.
    """

    def __init__(self, envoys: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
        self.found: set[str] = set()
        self._envoys = envoys
        self._keys = keys

    def visit(self, node: ast.AST) -> None:
        """Note a chain that leads to a module, or look inside."""
        found = self._resolve(node)
        if found is None or found[1] == "":
            self.generic_visit(node)
            return
        self.found.add(found[1])
        if isinstance(node, ast.Subscript):
            self.generic_visit(node.slice)

    def _resolve(self, node: ast.AST) -> tuple[Any, str] | None:
        """The envoy that an expression leads to, and how its path is spelled."""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            envoy = self._envoys.get(node.id)
            return None if envoy is None else (envoy, envoy._path.partition(".")[2])
        if isinstance(node, ast.Attribute):
            above = self._resolve(node.value)
            return None if above is None else _step(*above, node.attr)
        if isinstance(node, ast.Subscript):
            above, key = self._resolve(node.value), self._key(node.slice)
            return None if above is None or key is None else _item(*above, key)
        return None

    def _key(self, node: ast.expr) -> Any:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inside = self._key(node.operand)
            return -inside if type(inside) is int else None
        if isinstance(node, ast.Constant) and type(node.value) in (int, str):
            return node.value
        return self._keys.get(node.id) if isinstance(node, ast.Name) else None


def _step(envoy: Any, path: str, name: str) -> tuple[Any, str] | None:
    below = below_of(envoy, name)
    return None if below is None else (below, f"{path}.{name}".lstrip("."))


def _item(envoy: Any, path: str, key: Any) -> tuple[Any, str] | None:
    try:
        below = envoy[key]
        name = below._path.rpartition(".")[2]
    except (TypeError, LookupError, AttributeError):
        return None
    return below, f"{path}.{name}".lstrip(".")


def below_of(envoy: Any, name: str) -> Any:
    """The envoy of a child, by its name or an alias; None where there is none."""
    tree = envoy._tree
    if envoy._module._modules.get(name) is not None:
        return envoy._child(name)
    if name in tree.extras and envoy._path == tree.path:
        return envoy._child(name)
    target = tree.names.aliases.get(envoy._path, {}).get(name)
    if target is not None:
        return walk(envoy, target)
    return envoy._child(name) if f"{envoy._path}.{name}" in tree.strays else None


def walk(envoy: Any, path: str) -> Any:
    """The envoy at a path from another one, or None where a part does not exist."""
    for name in filter(None, path.split(".")):
        envoy = below_of(envoy, name)
        if envoy is None:
            return None
    return envoy
