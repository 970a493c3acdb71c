"""A rewritten function does what the original does: values, order, errors, lines. (S-58, S-73)"""

import ast
import copy
import functools
import gc
import inspect
import pickle
import random
import sys
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.errors import SourceError
from interlace.source.callables import innermost
from interlace.source.rewrite import rewrite
from tests.source import programs as p
from tests.source.reporting import reporting

X = torch.arange(4.0).reshape(2, 2) - 1
Y = torch.tensor([[2.0, 3.0], [5.0, 7.0]])

CALLS: list[tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    ("arithmetic", p.arithmetic, (X, Y), {}),
    ("short circuit", p.short_circuit, ([],), {}),
    ("order", p.order, ([],), {}),
    ("in place", p.in_place, (X,), {}),
    ("unpacking", p.unpacking, (X,), {}),
    ("walrus", p.walrus, (X,), {}),
    ("cleanup", p.cleanup, ([],), {}),
    ("match dict", p.matched, ({"a": 3},), {}),
    ("match list", p.matched, ([1, 2, 3],), {}),
    ("match none", p.matched, ("x",), {}),
    ("f-string", p.texts, (X,), {}),
    ("del", p.deleting, (X,), {}),
    ("locals", p.own_locals, (X,), {}),
    ("lambda and generator", p.later, (X,), {}),
    ("global and nonlocal", p.globals_and_cells, (), {}),
    ("defaults", p.defaults, (1,), {}),
    ("defaults, all given", p.defaults, (1, 5, 6, 7, 8), {"d": 9, "e": 10}),
    ("inner generator", p.generates, (), {}),
    ("closure", p.closing(Y), (X,), {}),
    ("annotations", p.annotated, (X,), {}),
    ("bound method", p.Base().forward, (X,), {"scale": 2}),
    ("super", p.Derived().forward, (X,), {}),
    ("callable object with super", p.Derived(), (X,), {}),
    ("static method", p.Base.doubled, (X,), {}),
    ("class method", p.Derived.kind, (X,), {}),
    ("three decorators", p.thrice, (X,), {"y": 5}),
    ("callable object", p.Called(3), (X,), {}),
    ("lambda", p.half, (X,), {}),
    *([("lambda one of two", p.PAIR[1], (X,), {})] if sys.version_info >= (3, 11) else []),
    ("partial", functools.partial(p.defaults, 1, d=2), (3,), {}),
    (
        "partial of a partial of a method",
        functools.partial(functools.partial(p.Base().forward), scale=7),
        (X,),
        {},
    ),
]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(("function", "args", "kwargs"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_values_and_effects_are_the_same(function: Any, args: Any, kwargs: Any) -> None:
    """S-58, S-73: decorated forwards, closures, `super()`, defaults, bound methods and callable objects."""
    rewritten, listing = reporting(function)
    ours, theirs = copy.deepcopy((args, kwargs)), copy.deepcopy((args, kwargs))
    assert same(rewritten(*ours[0], **ours[1]), function(*theirs[0], **theirs[1]))
    assert same(
        list(ours[0]), list(theirs[0])
    )  # logs filled in the same order, tensors changed in place alike
    assert set(listing.names) <= {operation.name for operation in listing.rewritten.operations}


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (p.long_chain, (X,)),
        (p.long_operator, (X,)),
        (p.deep_error, (X,)),
        (p.bad_augmented, (X,)),
        (p.matched, ()),
    ],
)
def test_an_error_has_the_same_lines(function: Any, args: Any) -> None:
    """S-73: files and lines of a traceback are those of the model."""

    def lines(call: Callable[..., Any]) -> list[tuple[str, int | None]]:
        with pytest.raises(Exception) as caught:  # any error will do, it is compared
            call(*args)
        frames = traceback.extract_tb(caught.value.__traceback__)
        return [(frame.name, frame.lineno) for frame in frames if frame.filename == p.__file__]

    assert lines(reporting(function)[0]) == lines(function)


def test_a_generator_keeps_its_protocol() -> None:
    rewritten, listing = reporting(p.counting)
    ours, theirs = rewritten(9), p.counting(9)
    assert [next(ours), ours.send(3), next(ours)] == [next(theirs), theirs.send(3), next(theirs)]
    assert listing.names.count("iadd_0") == 3
    ours.close()


def test_looks_like_the_original() -> None:
    """Decorators read the signature, the names and the attributes of what they wrap."""
    function = p.Base.forward
    rewritten, _ = reporting(function)
    assert inspect.signature(rewritten) == inspect.signature(function)
    assert (rewritten.__name__, rewritten.__qualname__) == (function.__name__, function.__qualname__)
    assert (rewritten.__module__, rewritten.__doc__) == (function.__module__, function.__doc__)
    assert rewritten.__code__.co_filename == p.__file__
    count = function.__code__.co_argcount + function.__code__.co_kwonlyargcount
    assert rewritten.__code__.co_varnames[:count] == function.__code__.co_varnames[:count]


def test_operations_report_as_often_as_they_run_inner_first() -> None:
    def loop(n: int) -> float:
        total = 0.0
        for i in range(n):
            if i % 2:
                total += abs(float(-i))
        return total

    rewritten, listing = reporting(loop)
    assert rewritten(4) == 4.0
    turn = ["i_0", "mod_0"]
    odd = ["neg_0", "float_0", "abs_0", "iadd_0", "total_1"]
    assert listing.names == ["total_0", "range_0", *turn, *turn, *odd, *turn, *turn, *odd]


def test_one_rewriting_per_code_object_for_as_long_as_it_lives() -> None:
    def make() -> Callable[[int], int]:
        def function(x: int) -> int:
            return x + 1

        return function

    first, second = make(), make()
    assert rewrite(innermost(first)) is rewrite(innermost(second))


def test_a_rewriting_dies_with_its_code(tmp_path: Path) -> None:
    module = imported(tmp_path, "gone", "def f(x):\n    return x + 1\n")
    seen = weakref.ref(rewrite(module.f))
    assert seen() is not None
    del module.f, sys.modules["gone"]
    del module
    gc.collect()
    assert seen() is None


def imported(folder: Path, name: str, text: str) -> Any:
    path = folder / f"{name}.py"
    path.write_text(text)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    exec(compile(text, str(path), "exec"), vars(module))
    return module


LAYOUTS = {
    "a class and its method share a name": """
class forward:
    def forward(self, x):
        return super().__init__() or [forward, x + 1][1]
f = forward().forward
""",
    "a parameter named like the function": """
def f(x, f=None):
    return f or x + 1
""",
    "recursion": """
def f(x):
    return x + 1 if x > 3 else f(x + 1)
""",
    "a private name in an inner function": """
class A:
    __x = 1
    def f(self, x):
        def g():
            return self.__x
        return g() + x
f = A().f
""",
    "a class in a function": """
def outer():
    class A:
        def f(self, x):
            return (A, x + 1)[1]
    return A
f = outer()().f
""",
    "text that is less indented": """
class B:
    s = '''
not indented'''
    def f(self, x):
        return ('''
 a
'''), x + 1
f = B().f
""",
    "annotations that do not exist": """from __future__ import annotations
def f(x: Nothing) -> Missing:
    y: Nope = x + 1
    return y
""",
    "tabs": """
if True:
\tdef f(x):
\t\treturn x + 1
""",
    "imports, assertions, stars": """
def f(x):
    import os.path as q
    assert x, q
    return [*range(x)], {**{'a': x}}
""",
}
if sys.version_info >= (3, 12):
    LAYOUTS |= {
        "type parameters": """
class A[T]:
    def f[U: T](self, x: U, y: T = None) -> U:
        def g[V](z: V):
            return str(U), str(T), z
        return g(x)
f = A().f
""",
        "a type alias": """
def f(x):
    type T[U] = dict[U, int]
    return str(T.__value__), x
""",
    }


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_scopes_and_layouts(tmp_path: Path, text: str) -> None:
    module = imported(tmp_path, "layout", text)
    rewritten, _ = reporting(module.f)
    assert rewritten(2) == module.f(2)


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="code tells its columns from Python 3.11 on")
def test_of_two_lambdas_on_a_line_nobody_knows_which() -> None:
    with pytest.raises(SourceError, match=r"2 lambdas begin at .*\n?.*a line of its own"):
        reporting(p.PAIR[1])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type` is a statement from Python 3.12 on")
def test_what_an_alias_stands_for_is_not_of_this_call(tmp_path: Path) -> None:
    text = "def f(x):\n    type T = list[x + 1]\n    return T\n"
    rewritten, listing = reporting(imported(tmp_path, "alias", text).f)
    assert rewritten(1).__value__ == list[2]  # type: ignore[valid-type]
    assert listing.names == []


def test_awaiting_works(tmp_path: Path) -> None:
    text = "async def g(x):\n    return x + 1\nasync def f(x):\n    y = await g(x)\n    return y * 2\n"
    rewritten, listing = reporting(imported(tmp_path, "awaits", text).f)
    coroutine = rewritten(1)
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    assert stopped.value.value == 4
    assert listing.names == ["g_0", "y_0", "mul_0"]


def test_a_source_edited_since_import_is_refused(tmp_path: Path) -> None:
    module = imported(tmp_path, "edited", "def f(x):\n    return x + 1\n")
    (tmp_path / "edited.py").write_text("def f(x):\n    return x + 22\n")
    with pytest.raises(SourceError, match="edited after it was imported"):
        rewrite(module.f)


def test_what_has_no_source_says_so() -> None:
    scope: dict[str, Any] = {}
    exec("def f(x): return x", scope)
    with pytest.raises(SourceError, match=r"`f` has no readable Python source"):
        rewrite(scope["f"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.matmul, "`matmul` is not a Python function"),
        (torch.nn.Linear, "`Linear` is a class"),
        (functools.cache(p.arithmetic), "keeps its results"),
        (torch.compile(p.arithmetic, backend="eager"), "compiled by torch"),
        (3, "a `int` is not a Python function"),
    ],
)
def test_what_cannot_be_rewritten_says_so(target: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        innermost(target)


# -- random programs

NAMES = st.sampled_from(["a", "b", "c"])
ATOMS = st.one_of(NAMES, st.integers(0, 9).map(str))


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    op = st.sampled_from(["+", "-", "*", "//", "%", "&", "|", "^", "<", "<=", "==", "!=", "and", "or"])
    return st.one_of(
        st.tuples(inner, op, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} < {t[1]} <= {t[2]})"),
        st.tuples(inner, inner).map(lambda t: f"t({t[0]}, {t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"t(*[{t[0]}], k={t[1]})"),
        st.tuples(NAMES, inner).map(lambda t: f"({t[0]} := {t[1]})"),
        inner.map(lambda e: f"sum([v + ({e}) for v in range(3)])"),
        inner.map(lambda e: f"(-({e}))"),
        inner.map(lambda e: f"d[({e}) % 3]"),
        inner.map(lambda e: f"len(d[({e}) % 3:])"),
    )


EXPRESSIONS = st.recursive(ATOMS, _compound, max_leaves=6)


def _statement(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    def block(
        head: str, body: list[str], tail: str | None = None, after: list[str] | None = None
    ) -> list[str]:
        lines = [head, *("    " + line for line in body)]
        return lines if tail is None else [*lines, tail, *("    " + line for line in after or [])]

    return st.one_of(
        st.tuples(EXPRESSIONS, inner, inner).map(lambda t: block(f"if {t[0]}:", t[1], "else:", t[2])),
        st.tuples(NAMES, inner).map(lambda t: block(f"for {t[0]} in range(3):", t[1])),
        st.tuples(inner, inner).map(lambda t: block("try:", t[0], "except ArithmeticError:", t[1])),
        st.tuples(inner, inner).map(lambda t: block("try:", t[0], "finally:", t[1])),
        st.tuples(inner, inner).map(lambda t: [*t[0], *t[1]]),
    )


SIMPLE = st.one_of(
    st.tuples(NAMES, EXPRESSIONS).map(lambda t: [f"{t[0]} = {t[1]}"]),
    st.tuples(NAMES, NAMES, EXPRESSIONS, EXPRESSIONS).map(lambda t: [f"{t[0]}, {t[1]} = {t[2]}, {t[3]}"]),
    st.tuples(NAMES, EXPRESSIONS).map(lambda t: [f"{t[0]} += {t[1]}"]),
    st.tuples(EXPRESSIONS, EXPRESSIONS).map(lambda t: [f"d[({t[0]}) % 3] -= {t[1]}"]),
    st.tuples(EXPRESSIONS, EXPRESSIONS).map(lambda t: [f"d[({t[0]}) % 3] = {t[1]}"]),
)
BODIES = st.recursive(SIMPLE, _statement, max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(BODIES)
def test_random_programs_run_alike(tmp_path_factory: pytest.TempPathFactory, body: list[str]) -> None:
    """Same result or error, same log of evaluations, same line of the error."""
    text = (
        "def f(t, a, b, c):\n    d = [1, 2, 3]\n"
        + "".join(f"    {line}\n" for line in body)
        + "    return a, b, c, d\n"
    )
    ast.parse(text)
    module = imported(tmp_path_factory.mktemp("programs"), f"program{random.getrandbits(60)}", text)
    del sys.modules[module.__name__]

    def outcome(function: Callable[..., Any]) -> tuple[Any, list[Any]]:
        log: list[Any] = []

        def t(*args: Any, **kwargs: Any) -> Any:
            log.append((args, kwargs))
            return sum(args) + sum(kwargs.values())

        try:
            return function(t, 1, 2, 3), log
        except Exception as error:
            lines = [
                f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == module.__file__
            ]
            return (type(error), str(error), lines), log

    rewritten, listing = reporting(module.f)
    assert outcome(rewritten) == outcome(module.f)
    calls = [name for name in listing.names if name.startswith("t_")]
    assert len(calls) == len(outcome(module.f)[1])


def test_the_rewritten_code_is_not_picklable_by_accident() -> None:
    """Pickle takes functions by name, so what is pickled is the original."""
    assert pickle.loads(pickle.dumps(p.arithmetic)) is p.arithmetic
