"""Until where a block uses the object of each name, and which names of it mean one object that it changes.

A later block that changes an object in place (`total += ...`) has to come after that.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from math import inf

from interlace.capture.bindings import Bindings

_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_LATER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.GeneratorExp)


def uses(body: Iterable[ast.stmt], mangle: Callable[[str], str]) -> Mapping[str, float]:
    """The last line on which some statements use each name; infinite where a function of theirs may, at any time."""
    found: dict[str, float] = {}

    def visit(node: ast.AST, last: float | None) -> None:
        """Look at a node; `last` is the line until which a loop, or a function, around it may use names."""
        inside = last
        if last is None and isinstance(node, ast.stmt) and _is_whole(node):
            inside = last = node.end_lineno
        elif last is None and isinstance(node, ast.expr):
            inside = node.end_lineno  # a header: at its last line all of it may still be in use
        if isinstance(node, _LATER):
            inside = inf
        if isinstance(node, ast.Name):
            name = mangle(node.id)
            found[name] = max(found.get(name, 0), node.lineno if inside is None else inside)
        for child in ast.iter_child_nodes(node):
            visit(child, _until(node) if inside is None and _is_held(child, node) else inside)

    for statement in body:
        visit(statement, None)
    return found


def entangled(body: Iterable[ast.stmt]) -> set[str]:
    """Names whose object some statements give another name and change in place, by whichever of its names."""
    nodes = [node for statement in body for node in ast.walk(statement)]
    changed = {
        node.target.id
        for node in nodes
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    }
    groups: list[set[str]] = []
    for node in nodes:
        if names := _handed(node):
            group = names | Bindings(_targets(node)).bound
            apart = [other for other in groups if not other & group]
            groups = [*apart, group.union(*(other for other in groups if other & group))]
    return {name for group in groups if group & changed for name in group}


def _is_whole(node: ast.stmt) -> bool:
    """Whether no line of a statement is certainly behind us while we are in it: simple ones, and loops."""
    return isinstance(node, _LOOPS) or not any(
        isinstance(part, ast.stmt) for part in ast.iter_child_nodes(node)
    )


def _is_held(part: ast.AST, node: ast.AST) -> bool:
    """Whether a statement goes on using a part of its header while it runs what is below."""
    return isinstance(part, ast.withitem) or (isinstance(node, ast.Match) and part is node.subject)


def _until(node: ast.AST) -> float | None:
    """The last line in which a statement uses what its header holds: of a `match`, that of its last `case`."""
    if not isinstance(node, ast.Match):
        return getattr(node, "end_lineno", None)
    last = node.cases[-1]
    return (last.guard or last.pattern).end_lineno


def _handed(node: ast.AST) -> set[str]:
    """The names whose objects a statement gives another name."""
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.AugAssign)):
        targets = _targets(node)
        own = {part.id for part in targets if isinstance(part, ast.Name)}
        value = node.value
        if isinstance(node, ast.AugAssign) and isinstance(value, ast.Name):
            return set()  # its value goes in, the object does not
        names = set() if value is None else _objects(value)
        return names - own if len(own) == len(targets) == 1 else names
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return _objects(node.iter)
    return set()


def _targets(node: ast.AST) -> list[ast.expr]:
    """What a statement binds."""
    if isinstance(node, ast.Assign):
        return node.targets
    return (
        [node.target]
        if isinstance(node, (ast.AnnAssign, ast.NamedExpr, ast.AugAssign, ast.For, ast.AsyncFor))
        else []
    )


def _objects(node: ast.expr) -> set[str]:
    """The names whose objects, or views of them, an expression may give."""
    if isinstance(node, ast.Name):
        return {node.id}
    parts: list[ast.expr] = []
    if isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        parts = node.elts
    elif isinstance(node, ast.Dict):
        parts = node.values
    elif isinstance(node, (ast.Starred, ast.Subscript, ast.NamedExpr)):
        parts = [node.value]
    elif isinstance(node, ast.Call):
        parts = [*node.args, *(keyword.value for keyword in node.keywords)]
    return {name for part in parts for name in _objects(part)}
