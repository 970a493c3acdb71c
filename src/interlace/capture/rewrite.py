"""Turn a block's names into attributes of its scope: `n += 1` becomes `_il_.n += 1`.

Only names of the block's own scope change; parameters, comprehension variables and whatever a function or
class inside binds for itself stay as they are. Every node keeps its position, so that errors point at the
user's own lines.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from interlace.capture.bindings import Bindings, Function, arguments, imported

SCOPE = "_il_"
SET = "_il_set_"
ALONE = "_il_alone_"
KEEPS = "_il_keeps_"
_VALUE = "_il_value_"
_OF, _KEY = "_il_of_", "_il_key_"

_IN_PLACE: dict[type[ast.operator], str] = {
    ast.Add: "__iadd__", ast.Sub: "__isub__", ast.Mult: "__imul__", ast.MatMult: "__imatmul__", ast.Div: "__itruediv__",
    ast.FloorDiv: "__ifloordiv__", ast.Mod: "__imod__", ast.Pow: "__ipow__", ast.LShift: "__ilshift__",
    ast.RShift: "__irshift__", ast.BitAnd: "__iand__", ast.BitOr: "__ior__", ast.BitXor: "__ixor__",
}  # fmt: skip
"""What an object has that `+=` and its like change in place."""

Node = TypeVar("Node", bound=ast.AST)


class Rewrite(ast.NodeTransformer):
    """Rewrite statements of a block.

    Args:
        is_shared: Whether a name of the block's own scope lives in the scope object; others are globals.
        mangle: What a name is called in the compiled code of the class around.
        texts: Whether annotations are never evaluated, but kept as they are written.
    """

    def __init__(
        self, is_shared: Callable[[str], bool], mangle: Callable[[str], str], *, texts: bool = False
    ) -> None:
        self._is_shared = is_shared
        self.mangle = mangle
        self._texts = texts
        self._functions: list[set[str]] = []  # names of functions and comprehensions around the node
        self._class: set[str] | None = None  # names of the class body directly around the node
        self._late: set[str] = set()  # names that functions of the block bind

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """The statements of the block, rewritten."""
        if not self._functions and self._class is None:
            self._late = Bindings(body).late
        return [new for statement in body for new in self._statements(statement)]

    def _statements(self, node: ast.stmt) -> list[ast.stmt]:
        new = self.visit(node)
        return new if isinstance(new, list) else [new]

    def _shared(self, name: str) -> bool:
        if (name.startswith("__") and name.endswith("__")) or name.startswith("_il_"):
            return False
        hidden = any(name in names for names in self._functions) or (self._class and name in self._class)
        return not hidden and self._is_shared(name)

    @contextmanager
    def _inside(self, names: set[str]) -> Iterator[None]:
        outer, self._class = self._class, None
        self._functions.append(names)
        yield
        self._functions.pop()
        self._class = outer

    # Names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not self._shared(node.id):
            return node
        return ast.copy_location(ast.Attribute(_name(SCOPE, node), node.id, node.ctx), node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        value = self.visit(node.value)
        if not self._shared(node.target.id):
            return ast.copy_location(ast.NamedExpr(node.target, value), node)
        key = ast.Constant(self.mangle(node.target.id))
        return placed(node, ast.Call(ast.Attribute(_name(SCOPE, node), SET, ast.Load()), [key, value], []))

    def _bind(self, names: Iterable[str], node: ast.AST) -> list[ast.stmt]:
        """Statements that hand what Python bound to a plain name over to the scope."""
        shared = [name for name in names if self._shared(name)]
        return [placed(node, ast.Assign([self._target(name)], ast.Name(name, ast.Load()))) for name in shared]

    def _target(self, name: str) -> ast.Attribute:
        return ast.Attribute(ast.Name(SCOPE, ast.Load()), name, ast.Store())

    # Statements that bind in other ways than by a target

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST | list[ast.stmt]:
        """The right side first: it may wait for the model, and the name may be someone else's until then.

        What changes in place waits until the blocks before have no more use for it. An entry of a container and an
        attribute, which other blocks may change as well, are read after the right side too.
        """
        if self._class is None and isinstance(node.target, ast.Subscript) and _is_entry(node.target):
            return self._augment_entry(node, node.target)
        if self._class is None and isinstance(node.target, ast.Attribute):
            return self._augment_attribute(node, node.target)
        if not isinstance(node.target, ast.Name) or not self._shared(node.target.id):
            return self.generic_visit(node)
        binds = self._binds(node.value, node.target.id)
        names: list[ast.expr] = [
            ast.Constant(self.mangle(node.target.id)),
            ast.Constant(_IN_PLACE[type(node.op)]),
        ]
        alone = ast.Expr(ast.Call(ast.Attribute(ast.Name(SCOPE, ast.Load()), ALONE, ast.Load()), names, []))
        node.target = self.visit(node.target)
        if binds:
            node.value = self.visit(node.value)
            return [placed(node, alone), node]
        return [self._kept(_VALUE, node.value, node), placed(node, alone), _with_value(node)]

    def _augment_entry(self, node: ast.AugAssign, target: ast.Subscript) -> list[ast.stmt]:
        kept = [self._kept(_OF, target.value, node), self._kept(_KEY, target.slice, node)]
        entry = ast.Subscript(ast.Name(_OF, ast.Load()), ast.Name(_KEY, ast.Load()), ast.Store())
        node.target = placed(target, ast.copy_location(entry, target))
        return [*kept, self._kept(_VALUE, node.value, node), _with_value(node)]

    def _augment_attribute(self, node: ast.AugAssign, target: ast.Attribute) -> list[ast.stmt]:
        """An attribute of an envoy asks the model, and is read first as Python would."""
        of = self._kept(_OF, target.value, node)
        node.target = ast.copy_location(
            ast.Attribute(ast.Name(_OF, ast.Load()), target.attr, ast.Store()), target
        )
        node.value = self.visit(node.value)
        asked = copy.deepcopy(node)
        value = ast.Assign([ast.Name(_VALUE, ast.Store())], node.value)
        name = ast.Constant(self.mangle(target.attr))
        keeps = ast.Attribute(ast.Name(SCOPE, ast.Load()), KEEPS, ast.Load())
        test = ast.Call(keeps, [ast.Name(_OF, ast.Load()), name], [])
        return [of, placed(node, ast.If(test, [value, _with_value(node)], [asked]))]

    def _kept(self, name: str, value: ast.expr, node: ast.AST) -> ast.stmt:
        return placed(
            node, ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], self.visit(value)), value)
        )

    def _binds(self, value: ast.expr, target: str) -> bool:
        """Whether an expression binds names, maybe the target's, which Python has read by then."""
        calls = (part.func for part in ast.walk(value) if isinstance(part, ast.Call))
        by_function = target in self._late and any(isinstance(function, ast.Name) for function in calls)
        return by_function or bool(Bindings([value]).bound)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if not isinstance(node.target, ast.Name) or not self._shared(node.target.id):
            node.target = self.visit(node.target)
            node.annotation = self._annotation(node.annotation)
            node.value = node.value and self.visit(node.value)
            return node
        if node.value is None:
            return placed(node, ast.Pass())
        return placed(node, ast.Assign([self.visit(node.target)], self.visit(node.value)))

    def _import(self, node: ast.Import | ast.ImportFrom) -> list[ast.stmt]:
        return [node, *self._bind((imported(alias) for alias in node.names), node)]

    visit_Import = visit_ImportFrom = _import

    def _declaration(self, node: ast.Global | ast.Nonlocal) -> ast.AST:
        if not self._functions and self._class is None:
            return placed(node, ast.Pass())
        node.names = [name for name in node.names if not self._shared(name)]
        return node if node.names else placed(node, ast.Pass())

    visit_Global = visit_Nonlocal = _declaration

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        if node.name and self._shared(node.name):
            name, gone = self._target(node.name), ast.Attribute(_name(SCOPE, node), node.name, ast.Del())
            unbind = [ast.Assign([name], ast.Constant(None)), ast.Delete([gone])]
            guarded = ast.Try(node.body, [], [], [placed(node, part) for part in unbind])
            node.body = [*self._bind([node.name], node), placed(node, guarded)]
        return node

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        names = sorted(Bindings([node.pattern]).bound)
        self.generic_visit(node)
        bind = self._bind(names, node.pattern)
        if node.guard is not None and bind:
            made = [
                ast.Call(
                    ast.Attribute(ast.Name(SCOPE, ast.Load()), SET, ast.Load()),
                    [ast.Constant(self.mangle(name)), ast.Name(name, ast.Load())],
                    [],
                )
                for name in names
                if self._shared(name)
            ]
            last = ast.Tuple([*made, node.guard], ast.Load())
            node.guard = placed(node.guard, ast.Subscript(last, ast.Constant(-1), ast.Load()))
        node.body = [*bind, *node.body]
        return node

    # Scopes inside the block

    def visit_FunctionDef(self, node: ast.FunctionDef) -> list[ast.stmt]:
        return self._define(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> list[ast.stmt]:
        return self._define(node)

    def _define(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
        node.decorator_list = [self.visit(part) for part in node.decorator_list]
        self._defaults(node)
        with self._generic(node):
            self._annotations(node)
            with self._inside(arguments(node) | self._own(Bindings(node.body))):
                node.body = self.block(node.body)
        return [node, *self._bind([node.name], node)]

    @contextmanager
    def _generic(self, node: ast.AST) -> Iterator[None]:
        """The type parameters of a definition (Python 3.12), in a scope that also sees the class around."""
        parameters: list[Any] = getattr(node, "type_params", [])  # nodes that 3.10 has no name for
        self._functions.append({parameter.name for parameter in parameters})
        for parameter in parameters:
            self.visit(parameter)
        yield
        self._functions.pop()

    def visit_TypeAlias(self, node: Any) -> list[ast.stmt]:
        with self._generic(node):
            node.value = self.visit(node.value)
        return [node, *self._bind([node.name.id], node)]

    def _own(self, inside: Bindings) -> set[str]:
        foreign = {name for name in inside.declared if self._shared(name)}
        return (inside.bound | inside.annotated | inside.declared) - foreign

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self._defaults(node)
        with self._inside(arguments(node) | Bindings([node.body]).bound):
            node.body = self.visit(node.body)
        return node

    def _defaults(self, node: Function) -> None:
        args = node.args
        args.defaults = [self.visit(part) for part in args.defaults]
        args.kw_defaults = [part and self.visit(part) for part in args.kw_defaults]

    def _annotations(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        args = node.args
        node.returns = node.returns and self._annotation(node.returns)
        for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
            if arg is not None and arg.annotation is not None:
                arg.annotation = self._annotation(arg.annotation)

    def _annotation(self, node: ast.expr) -> ast.expr:
        made: ast.expr = node if self._texts else self.visit(node)
        return made

    def visit_ClassDef(self, node: ast.ClassDef) -> list[ast.stmt]:
        node.decorator_list = [self.visit(part) for part in node.decorator_list]
        with self._generic(node):
            node.bases = [self.visit(part) for part in node.bases]
            node.keywords = [self.visit(part) for part in node.keywords]
            outer, self._class = self._class, self._own(Bindings(node.body))
            node.body = self.block(node.body)
            self._class = outer
        return [node, *self._bind([node.name], node)]

    def _comprehension(self, node: Node) -> Node:
        generators: list[ast.comprehension] = node.generators  # type: ignore[attr-defined]
        first = generators[0]
        source = self.visit(first.iter)
        first.iter = ast.Constant(None)
        with self._inside(Bindings(generator.target for generator in generators).bound):
            self.generic_visit(node)
        first.iter = source
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


def _name(name: str, at: ast.AST) -> ast.Name:
    return ast.copy_location(ast.Name(name, ast.Load()), at)


def placed(where: ast.AST, node: Node) -> Node:
    """The node and the new ones below it, placed where another one stands."""
    for part in ast.walk(node):
        if "lineno" in part._attributes and not hasattr(part, "lineno"):
            ast.copy_location(part, where)
    return node


def _is_entry(target: ast.expr) -> bool:
    """Whether a target is an entry of a container that a name leads to; of an envoy it is not: that asks the model."""
    if not isinstance(target, ast.Subscript) or any(
        isinstance(part, ast.Slice) for part in ast.walk(target.slice)
    ):
        return False
    return isinstance(target.value, ast.Name) or _is_entry(target.value)


def _with_value(node: ast.AugAssign) -> ast.AugAssign:
    node.value = ast.copy_location(ast.Name(_VALUE, ast.Load()), node.value)
    return node
