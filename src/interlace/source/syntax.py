"""The syntax tree of a function, changed so that its operations report.

The tree is walked in the order in which Python evaluates it, so that operations are found in that order.
Nested functions, lambdas and classes keep their bodies: those run when they are called, and belong to
that call.
"""

# ruff: noqa: D102, N815  # `visit_Call` and the rest are the protocol of `ast.NodeVisitor`

import ast
import copy
import operator
from collections.abc import Callable, Iterable
from typing import TypeVar

from interlace.source.names import Found, callee
from interlace.source.text import Definition, Text

Node = TypeVar("Node", bound=ast.AST)

PREFIX = "_interlace_"
CALL, OPERATOR, VALUE = PREFIX + "call", PREFIX + "operator", PREFIX + "value"
SLICE, LOCALS = PREFIX + "slice", PREFIX + "locals"
NAMES = (CALL, OPERATOR, VALUE, SLICE, LOCALS)

# These look at the frame that calls them, which must stay the model's own.
SEES_FRAME = frozenset({"super", "locals", "vars", "dir", "globals", "eval", "exec", "breakpoint"})
SHOWS_LOCALS = frozenset({"locals", "vars"})

BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.MatMult: "matmul", ast.Div: "truediv",
    ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.Pow: "pow", ast.LShift: "lshift", ast.RShift: "rshift",
    ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor",
}  # fmt: skip
UNARY: dict[type[ast.unaryop], str] = {ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert"}
# `is`, `in`, `not`, `and`, `or` only decide what runs.
COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
}  # fmt: skip


def _function(name: str) -> Callable[..., object]:
    found: Callable[..., object] = getattr(operator, name + "_" if name in ("and", "or") else name)
    return found


class Instrumenter(ast.NodeTransformer):
    """Rewrites one definition and lists in `found` the operations met, in the order of evaluation."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.found: list[Found] = []
        self._temporaries = 0
        self._in_string = 0

    def rewritten(self) -> Definition:
        definition = copy.deepcopy(self.text.definition)
        if isinstance(definition, ast.Lambda):
            definition.body = self.visit(definition.body)
        else:
            definition.body = self._all(definition.body)
        return definition

    # -- reports

    def _text(self, node: ast.expr) -> str:
        # Before Python 3.12 the columns inside an f-string are not those of the file.
        return ast.unparse(node) if self._in_string else self.text.segment(node)

    def _report(self, found: Found) -> ast.Constant:
        self.found.append(found)
        return ast.Constant(len(self.found) - 1)

    def _made(
        self, name: str, args: list[ast.expr], like: ast.AST, keywords: Iterable[ast.keyword] = ()
    ) -> ast.Call:
        made = ast.Call(ast.Name(name, ast.Load()), args, list(keywords))
        for node in (made, made.func, *(arg for arg in args if isinstance(arg, ast.Constant))):
            if not hasattr(node, "lineno"):
                ast.copy_location(node, like)
        return made

    def _operator(self, name: str, node: ast.expr, *operands: ast.expr) -> ast.Call:
        text = self._text(node)
        visited = [self._index(operand) for operand in operands]
        at = self._report(Found("operator", name, node.lineno, text, _function(name)))
        return self._made(OPERATOR, [at, *visited], node)

    def _variable(self, name: ast.Name, value: ast.expr) -> ast.Call:
        at = self._report(Found("variable", name.id, name.lineno, name.id))
        return self._made(VALUE, [at, value], value)

    def _assigned(self, targets: Iterable[ast.expr]) -> list[ast.stmt]:
        """For names that were bound natively (unpacking, loops, `with`): report each and bind it again."""
        again: list[ast.stmt] = []
        for target in targets:
            for name in _names(target):
                held = ast.copy_location(ast.Name(name.id, ast.Load()), name)
                made = ast.Assign([ast.Name(name.id, ast.Store())], self._variable(name, held))
                ast.copy_location(made.targets[0], name)
                again.append(ast.copy_location(made, name))
        return again

    # -- expressions

    def visit_Call(self, node: ast.Call) -> ast.expr:
        text, line, base = self._text(node), _call_line(node), callee(node.func)
        if isinstance(node.func, ast.Name) and node.func.id in SEES_FRAME:
            self.generic_visit(node)
            if node.func.id in SHOWS_LOCALS and not node.args and not node.keywords:
                return self._made(LOCALS, [node], node)
            return node
        self.generic_visit(node)
        at = self._report(Found("call", base, line, text))
        made = self._made(CALL, [at, node.func, *node.args], node, node.keywords)
        if line != node.lineno and isinstance(node.func, ast.Attribute):
            made.lineno, made.col_offset = line, (node.func.end_col_offset or 0) - len(node.func.attr)
        return made

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        return self._operator(BINARY[type(node.op)], node, node.left, node.right)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        if isinstance(node.op, ast.Not) or isinstance(node.operand, ast.Constant):
            self.generic_visit(node)
            return node
        return self._operator(UNARY[type(node.op)], node, node.operand)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        names = [COMPARE[type(op)] for op in node.ops if type(op) in COMPARE]
        if len(node.ops) == 1 and names:
            return self._operator(names[0], node, node.left, *node.comparators)
        text = self._text(node)
        self.generic_visit(node)
        if not names:
            return node
        # A chain evaluates its middle once and may stop early: it stays native, and its outcome is reported.
        return self._made(VALUE, [self._report(Found("operator", names[0], node.lineno, text)), node], node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if isinstance(node.ctx, ast.Load):
            return self._operator("getitem", node, node.value, node.slice)
        self.generic_visit(node)
        return node

    def _index(self, node: ast.expr) -> ast.expr:
        """An index as an ordinary expression: `[a:b, 0]` is `slice(a, b, None), 0`."""
        if isinstance(node, ast.Slice):
            parts = [
                ast.copy_location(ast.Constant(None), node) if part is None else self.visit(part)
                for part in (node.lower, node.upper, node.step)
            ]
            return self._made(SLICE, parts, node)
        if isinstance(node, ast.Tuple) and any(isinstance(part, ast.Slice) for part in node.elts):
            node.elts = [self._index(part) for part in node.elts]
            return node
        made: ast.expr = self.visit(node)
        return made

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.expr:
        node.value = self._variable(node.target, self.visit(node.value))
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        for at, key in enumerate(node.keys):
            node.keys[at] = key and self.visit(key)
            node.values[at] = self.visit(node.values[at])
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        self._in_string += 1
        self.generic_visit(node)
        self._in_string -= 1
        return node

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> ast.expr:
        self._generators(node.generators)
        node.elt = self.visit(node.elt)
        return node

    visit_ListComp = visit_SetComp = visit_GeneratorExp = _comprehension

    def visit_DictComp(self, node: ast.DictComp) -> ast.expr:
        self._generators(node.generators)
        node.key, node.value = self.visit(node.key), self.visit(node.value)
        return node

    def _generators(self, generators: list[ast.comprehension]) -> None:
        for generator in generators:
            generator.iter = self.visit(generator.iter)
            generator.ifs = self._each(generator.ifs)

    def _each(self, nodes: Iterable[ast.expr]) -> list[ast.expr]:
        return [self.visit(node) for node in nodes]

    # -- what runs later, elsewhere

    def _whole(self, node: ast.AST) -> ast.AST:
        return node

    visit_Lambda = visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_TypeAlias = _whole

    # -- statements

    def _all(self, body: list[ast.stmt]) -> list[ast.stmt]:
        done: list[ast.stmt] = []
        for statement in body:
            made = self.visit(statement)
            done.extend(made if isinstance(made, list) else [made])
        return done

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt]:
        value = self.visit(node.value)
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            node.value = self._variable(node.targets[0], value)
            return [node]
        node.value, node.targets = value, self._each(node.targets)
        return [node, *self._assigned(node.targets)]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is not None:
            node.value = self.visit(node.value)
        if not isinstance(node.target, ast.Name):
            node.target = self.visit(node.target)
        elif node.value is not None:
            node.value = self._variable(node.target, node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> list[ast.stmt]:
        """`x[i] += y`: its parts are evaluated once, in Python's order, and the operator works in place."""
        name = "i" + BINARY[type(node.op)]
        text = self.text.segment(node)
        before: list[ast.stmt] = []
        temporaries: list[str] = []

        def kept(value: ast.expr) -> Callable[[], ast.Name]:
            temporaries.append(f"{PREFIX}{self._temporaries}")
            self._temporaries += 1
            temporary = temporaries[-1]
            before.append(_located(ast.Assign([ast.Name(temporary, ast.Store())], value), node))
            return lambda: ast.Name(temporary, ast.Load())

        target = node.target
        if isinstance(target, ast.Name):
            load: ast.expr = ast.Name(target.id, ast.Load())
            store: ast.expr = target
        elif isinstance(target, ast.Attribute):
            base = kept(self.visit(target.value))
            load = ast.Attribute(base(), target.attr, ast.Load())
            store = ast.Attribute(base(), target.attr, ast.Store())
        else:
            base, index = kept(self.visit(target.value)), kept(self._index(target.slice))
            load = ast.Subscript(base(), index(), ast.Load())
            store = ast.Subscript(base(), index(), ast.Store())
        _located(load, target)
        _located(store, target)
        value = self.visit(node.value)
        at = self._report(Found("operator", name, node.lineno, text, _function(name)))
        made: ast.expr = self._made(OPERATOR, [at, load, value], node)
        if isinstance(target, ast.Name):
            made = self._variable(target, made)
        statements = [*before, _located(ast.Assign([store], made), node)]
        if temporaries:  # they must not keep a tensor alive
            gone: list[ast.expr] = [ast.Name(temporary, ast.Del()) for temporary in temporaries]
            statements.append(_located(ast.Delete(gone), node))
        return statements

    def visit_For(self, node: ast.For | ast.AsyncFor) -> ast.stmt:
        node.iter, node.target = self.visit(node.iter), self.visit(node.target)
        node.body = [*self._assigned([node.target]), *self._all(node.body)]
        node.orelse = self._all(node.orelse)
        return node

    visit_AsyncFor = visit_For

    def visit_With(self, node: ast.With | ast.AsyncWith) -> ast.stmt:
        for item in node.items:
            item.context_expr = self.visit(item.context_expr)
            item.optional_vars = item.optional_vars and self.visit(item.optional_vars)
        targets = [item.optional_vars for item in node.items if item.optional_vars is not None]
        node.body = [*self._assigned(targets), *self._all(node.body)]
        return node

    visit_AsyncWith = visit_With

    def visit_match_case(self, node: "ast.match_case") -> "ast.match_case":
        node.guard = node.guard and self.visit(node.guard)
        node.body = self._all(node.body)
        return node


def _names(target: ast.expr) -> list[ast.Name]:
    """The names that an assignment to `target` binds, in order."""
    if isinstance(target, ast.Name):
        return [target]
    if isinstance(target, ast.Starred):
        return _names(target.value)
    if isinstance(target, ast.Tuple | ast.List):
        return [name for part in target.elts for name in _names(part)]
    return []


def _call_line(node: ast.Call) -> int:
    """The line that Python gives a call: that of the method's name, in a chain over several lines."""
    plain = not any(isinstance(arg, ast.Starred) for arg in node.args) and all(k.arg for k in node.keywords)
    if plain and isinstance(node.func, ast.Attribute):
        return node.func.end_lineno or node.lineno
    return node.lineno


def _located(node: Node, like: ast.AST) -> Node:
    """`node`, and what it holds that has no place yet, at the place of `like`."""
    for part in ast.walk(node):
        if "lineno" in part._attributes and not hasattr(part, "lineno"):
            ast.copy_location(part, like)
    return node
