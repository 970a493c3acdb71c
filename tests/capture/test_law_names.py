"""Law 4: blocks that run later leave the names that the same blocks leave where they stand, error or not."""

from __future__ import annotations

import linecache
import sys
from itertools import count
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interlace.capture import CaptureError
from tests.capture.later import Group, Native

NAMES = st.sampled_from("abcde")
LEAVES = st.one_of(NAMES, st.integers(0, 9).map(str))
_files = count()


def binary(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, NAMES, inner).map(lambda t: f"sum([{t[0]} for {t[1]} in range(2)], {t[2]})"),
        st.tuples(NAMES, inner, inner).map(lambda t: f"(lambda {t[0]}: {t[1]})({t[2]})"),
        st.tuples(NAMES, inner).map(lambda t: f"({t[0]} := {t[1]})"),
    )


EXPRESSIONS = st.recursive(LEAVES, binary, max_leaves=4)


def indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, min_size=1, max_size=3).map("\n".join)
    return st.one_of(
        st.tuples(EXPRESSIONS, several, several).map(
            lambda t: f"if {t[0]} % 2:\n{indent(t[1])}\nelse:\n{indent(t[2])}"
        ),
        st.tuples(NAMES, several).map(lambda t: f"for {t[0]} in range(3):\n{indent(t[1])}"),
        st.tuples(several, NAMES, several).map(
            lambda t: (
                f"try:\n{indent(t[0])}\nexcept NameError as error:\n    {t[1]} = 3\nfinally:\n{indent(t[2])}"
            )
        ),
        st.tuples(NAMES, several).map(lambda t: f"with native:\n{indent(t[1])}\n    {t[0]} = 1"),
    )


STATEMENTS = st.recursive(
    st.one_of(
        st.tuples(NAMES, EXPRESSIONS).map(lambda t: f"{t[0]} = {t[1]}"),
        st.tuples(NAMES, EXPRESSIONS).map(lambda t: f"{t[0]} += {t[1]}"),
        st.tuples(NAMES, NAMES, EXPRESSIONS).map(lambda t: f"{t[0]}, {t[1]} = {t[2]}, 1"),
        st.tuples(NAMES, NAMES).map(lambda t: f"import math as {t[0]}; {t[0]} = {t[1]}"),
    ),
    compound,
    max_leaves=5,
)
BODIES = st.lists(STATEMENTS, min_size=1, max_size=4).map("\n".join)


def outcome(text: str, group: object, flags: int = 0) -> Any:
    filename = f"/nowhere/law_{next(_files)}.py"
    linecache.cache[filename] = (1, None, text.splitlines(keepends=True), filename)
    names: dict[str, object] = {"g": group, "native": Native()}
    error: object = None
    try:
        exec(compile(text, filename, "exec", flags, dont_inherit=True), names)
        if "main" in names:
            names["main"]()  # type: ignore[operator]
    except Exception as raised:
        links = [raised, *contexts(raised)]
        refused = any(isinstance(link, CaptureError) for link in links)
        error = (CaptureError if refused else type(raised), innermost_line(raised, filename))
    finally:
        del linecache.cache[filename]
    kept = names.get("kept", names)
    assert isinstance(kept, dict)
    return error, {name: kept[name] for name in "abcde" if name in kept}


def is_ambiguous(outcome: object) -> bool:
    """Refused, as it must be: a name bound before the trace, read by one block and bound by a later one."""
    return isinstance(outcome, tuple) and outcome[0] is not None and outcome[0][0] is CaptureError


def contexts(error: BaseException) -> list[BaseException]:
    link = error.__context__
    return [] if link is None else [link, *contexts(link)]


def innermost_line(error: BaseException, filename: str) -> int:
    link, line = error.__traceback__, 0
    while link is not None:
        if link.tb_frame.f_code.co_filename == filename:
            line = link.tb_lineno
        link = link.tb_next
    return line


def blocks(bodies: list[str]) -> str:
    return "with g:\n" + "\n".join(indent(f"with g.later():\n{indent(body)}") for body in bodies)


@settings(max_examples=100, deadline=None)
@given(st.lists(BODIES, min_size=1, max_size=3))
def test_captured_equals_in_place_in_a_module(bodies: list[str]) -> None:
    text = "a, b, c, d, e = 1, 2, 3, 4, 5\n" + blocks(bodies)
    before, after = outcome(text, Native()), outcome(text, Group())
    assume(not is_ambiguous(after))
    assert after == before, text


@settings(max_examples=100, deadline=None)
@given(st.lists(BODIES, min_size=1, max_size=3), st.booleans())
def test_captured_equals_in_place_in_a_function(bodies: list[str], cells: bool) -> None:
    start = "a, b, c, d, e = 1, 2, 3, 4, 5\n" + ("look = lambda: (a, b, c, d, e)\n" if cells else "")
    text = "kept = {}\ndef main():\n" + indent(
        f"{start}try:\n{indent(blocks(bodies))}\nfinally:\n    kept.update(locals())"
    )
    before, after = outcome(text, Native()), outcome(text, Group())
    assume(not is_ambiguous(after))
    assert after == before, text


# Each in a block of a function and of a module where `a` to `e` are 1 to 5; the first numbers are the Python it needs.
SYNTAX = {
    "annotations": (
        3, 10, "class c:\n    x: a\n    y: a = b\ndef d(x: a = b) -> a:\n    x: c\n    return x\n"
        "e = c.__annotations__, d.__annotations__\nc = d = 3",
    ),

    "an alias": (3, 12, "b = int\ntype c = list[b]\na, d = c.__value__, c.__name__\nc = 3"),
    "an alias that names itself": (3, 12, "type b = tuple[b, int]\na = str(b.__value__)\nb = 2"),
    "an alias with parameters": (3, 12, "type c[a] = dict[a, b]\nd = str(c[int]), str(c.__value__)\nc = 3"),
    "an alias in a class": (
        3, 12, "class c:\n    b = str\n    type a = list[b]\nd = c.a.__value__\nc = 3",
    ),
    "a function with parameters": (
        3, 12, "def c[a: b](x: a = a) -> a:\n    return x, str(a)\nd = c(), str(c.__annotations__)\nc = 3",
    ),
    "a class with parameters": (
        3, 12,
        "class c[a](list[a]):\n    x: a\n    def m(self, y: a = b):\n        return str(a), y\n"
        "d = c().m(), str(c.__annotations__), str(c.__orig_bases__)\nc = 3",
    ),
    "a parameter with a default": (3, 13, "def c[a = b](): pass\nd = c.__type_params__[0].__default__\nc = 3"),
    "annotations read later": (3, 14, "class c:\n    x: d\nd = 7\na = c.__annotations__\nc = 3"),
    "a template": (
        3, 14, "a = [(p.value, p.expression, p.format_spec) for p in t'{b} {c!r:>{d}}'.interpolations]",
    ),
    "several errors": (3, 14, "try:\n    a = b / 0\nexcept ValueError, ZeroDivisionError:\n    a = c"),
}  # fmt: skip


@pytest.mark.parametrize(
    "what", [what for what, (*since, _) in SYNTAX.items() if (*since,) <= sys.version_info]
)
def test_syntax_of_all_versions(what: str) -> None:
    *_, body = SYNTAX[what]
    start = "a, b, c, d, e = 1, 2, 3, 4, 5\n"
    in_function = indent(f"{start}{blocks([body])}\nkept.update(locals())")
    for text in (start + blocks([body]), "kept = {}\ndef main():\n" + in_function):
        for flags in (0, annotations.compiler_flag):
            before, after = outcome(text, Native(), flags), outcome(text, Group(), flags)
            assert before[0] is None
            assert after == before, text
