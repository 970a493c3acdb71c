"""Which names a piece of code binds, in its own scope and from the functions inside it."""

from __future__ import annotations

import ast
from collections.abc import Iterable

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Bindings(ast.NodeVisitor):
    """Names bound by some statements.

    Attributes:
        bound: Bound in this scope, comprehensions' own variables excepted.
        annotated: Annotated in this scope without a value, which makes them its own, but binds nothing.
        declared: Named by `global` or `nonlocal` in this scope.
        late: Bound by a function inside, through its own `nonlocal` or `global`.
        deleted: Named by `del` in this scope.
    """

    def __init__(self, nodes: Iterable[ast.AST]) -> None:
        self.bound: set[str] = set()
        self.annotated: set[str] = set()
        self.declared: set[str] = set()
        self.late: set[str] = set()
        self.deleted: set[str] = set()
        self._own: list[set[str]] = []
        for node in nodes:
            self.visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) or any(node.id in own for own in self._own):
            return
        self.bound.add(node.id)
        if isinstance(node.ctx, ast.Del):
            self.deleted.add(node.id)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None or not isinstance(node.target, ast.Name):
            self.generic_visit(node)
        else:
            self.annotated.add(node.target.id)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.bound.add(node.target.id)
        self.visit(node.value)

    def _comprehension(self, node: ast.AST) -> None:
        generators: list[ast.comprehension] = getattr(node, "generators", [])
        self._own.append(Bindings(generator.target for generator in generators).bound)
        self.generic_visit(node)
        self._own.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _function(self, node: Function) -> None:
        if not isinstance(node, ast.Lambda):
            self.bound.add(node.name)
            for decorator in node.decorator_list:
                self.visit(decorator)
            inside = Bindings(node.body)
            self.late |= inside.declared | inside.late - inside.bound
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bound.add(node.name)
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(part)
        inside = Bindings(node.body)
        self.late |= inside.declared | inside.late

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.bound |= {imported(alias) for alias in node.names}

    visit_Import = visit_ImportFrom = _import

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.bound.add(node.name)
        self.generic_visit(node)

    def _match(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self.bound.add(node.name)
        self.generic_visit(node)

    visit_MatchAs = visit_MatchStar = _match

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self.bound.add(node.rest)
        self.generic_visit(node)

    def _declare(self, node: ast.Global | ast.Nonlocal) -> None:
        self.declared |= set(node.names)

    visit_Global = visit_Nonlocal = _declare


def imported(alias: ast.alias) -> str:
    """The name that one part of an `import` binds."""
    return alias.asname or alias.name.partition(".")[0]


def arguments(node: Function) -> set[str]:
    """The names of a function's parameters."""
    args = node.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    return {arg.arg for arg in named if arg is not None}


def loads(nodes: Iterable[ast.AST]) -> set[str]:
    """Every name that is read or written anywhere inside, functions included."""
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}
