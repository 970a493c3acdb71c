"""What a captured block can hold, each in a module, a function, a closure, a method, a generator and a class body."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.capture.later import Group, Native

BLOCKS = {
    "one line": "with g.later(): out = seed + 1",
    "one line, several": "with g.later(): out = seed; other = out + 1",
    "one line, a local copied": "with g.later() as block: out = seed",
    "try first": """
        with g.later():
            try:
                out = seed / 0
            except ZeroDivisionError as error:
                out = str(error)
            else:
                out = 1
            finally:
                last = 2
        """,
    "while first": """
        with g.later():
            while seed < 9:
                seed += 1
                if seed == 7:
                    break
            else:
                seed = 0
        """,
    "for first": """
        with g.later():
            for at in range(4):
                if at == 1:
                    continue
                seed += at
        """,
    "header of several lines": """
        with (
            g.later()
        ) as block:
            out = seed
        """,
    "header with a closing line": """
        with g.later(
        ) as block:
            out = seed
        """,
    "second of two items": """
        with open_nothing() as first, g.later() as block:
            out = seed
        """,
    "first of two items": """
        with g.later() as block, open_nothing() as second:
            out = (seed, type(second).__name__)
        """,
    "pass": "with g.later(): pass",
    "pass on a line of its own": """
        with g.later():
            pass
        """,
    "nothing but a string": """
        with g.later():
            "words"
        """,
    "text shallower than the block": '''
        with g.later():
            text = """
        not the end
        """
            out = text + "after"
        ''',
    "comment shallower than the block": """
        with g.later():
            out = 1
    # a comment
            out += seed
        """,
    "comprehensions": """
        with g.later():
            twice = [seed * x for x in range(3) if x != seed]
            pairs = {x: [y + seed for y in range(x)] for x in twice}
            some = {x for x in twice}
            lazy = list(x + seed for x in twice)
            shadow = [seed for seed in range(seed, 5)]
        """,
    "lambdas and functions": """
        with g.later():
            add = lambda x, by=seed: x + by + seed
            def double(x, *more, key=seed, **rest):
                inner = x * 2
                return inner + key + seed
            out = add(1) + double(2)
            seed = 100
            out += add(1)
            del add, double
        """,
    "recursion": """
        with g.later():
            def factorial(n):
                return 1 if n < 2 else n * factorial(n - 1)
            out = factorial(5)
            del factorial
        """,
    "nonlocal in a function of the block": """
        with g.later():
            count = 0
            def step():
                nonlocal count, seed
                count += 1
                seed += 1
            step(), step()
            del step
        """,
    "a class": """
        with g.later():
            class Box:
                size = seed
                def grow(self):
                    self.size += seed
                    return self
            out = Box().grow().size
            del Box
        """,
    "walrus": """
        with g.later():
            if (out := seed + 1) > 1:
                out2 = [last := x for x in range(out)]
        """,
    "imports": """
        with g.later():
            import os.path
            import json as j
            from math import pi, e as euler
            out = (os.path.sep, j.dumps(1), pi, euler)
        """,
    "with inside": """
        with g.later():
            with open_nothing() as inner:
                out = (type(inner).__name__, seed)
        """,
    "unpacking": """
        with g.later():
            first, (second, *rest) = seed, (2, 3, 4)
            box = {}
            box["key"], box["other"] = first, second
        """,
    "annotated": """
        with g.later():
            out: int = seed
            bare: int
        """,
    "accumulators": """
        with g.later():
            seed += 1
        with g.later():
            seed *= 10
            best = max(best, seed)
        with g.later():
            best = max(best, 7)
        """,
    "names across blocks": """
        with g.later():
            out = seed
            for i in range(3):
                out += i
        with g.later():
            for i in range(5):
                out += i
            here = i
        """,
    "blocks in a loop": """
        for at in range(3):
            with g.later():
                seed += at
                best = at
        """,
    "a conditional binding": """
        with g.later():
            if seed > 100:
                best = 1
            out = best
        """,
    "f-strings and starred": """
        with g.later():
            out = f"{seed!r:>4}" + "".join(map(str, (*[seed], best)))
        """,
    "match": """
        with g.later():
            match [seed, {"a": 2, "b": 3}]:
                case [x, {"a": y, **rest}] if y > x:
                    out = (x, y, rest)
                case _:
                    out = None
        """,
    "many locals of its own": "with g.later():\n    " + "; ".join(f"v{i} = seed + {i}" for i in range(300)),
}

FRAMES = {
    "module": "seed, best = 1, 3\nwith g:\n{4}\nresult = dict(globals())",
    "function": "def main():\n    seed, best = 1, 3\n    with g:\n{8}\n    return dict(locals())\nresult = main()",
    "closure": (
        "def outer():\n    seed, best = 1, 3\n    def main():\n        nonlocal seed, best\n        with g:\n{12}\n"
        "        return dict(locals())\n    return main()\nresult = outer()"
    ),
    "cells": (
        "def main():\n    seed, best = 1, 3\n    look = lambda: (seed, best)\n    with g:\n{8}\n"
        "    return dict(locals(), looked=look(), look=None)\nresult = main()"
    ),
    "method": (
        "class Some:\n    def main(self):\n        seed, best = 1, 3\n        with g:\n{12}\n"
        "        return dict(locals(), self=None)\nresult = Some().main()"
    ),
    "generator": (
        "def main():\n    seed, best = 1, 3\n    yield 0\n    with g:\n{8}\n    yield dict(locals())\n"
        "*_, result = main()"
    ),
    "class body": "class Main:\n    seed, best = 1, 3\n    with g:\n{8}\nresult = dict(vars(Main))",
    "global": (
        "seed, best = 1, 3\ndef main():\n    global seed, best\n    with g:\n{8}\n    return dict(locals())\n"
        "result = dict(main(), seed=seed, best=best)"
    ),
}
HIDDEN = {"g", "result", "block", "self", "main", "Some", "Main", "outer", "open_nothing"}


@pytest.fixture
def run() -> Iterator[Callable[[str, object], dict[str, object]]]:
    made: list[str] = []

    def execute(text: str, group: object) -> dict[str, object]:
        name = f"/nowhere/captured_{len(made)}.py"
        made.append(name)
        lines = (text + "\n").splitlines(keepends=True)
        linecache.cache[name] = (len(text), None, lines, name)
        names: dict[str, object] = {"__name__": "nowhere", "g": group, "open_nothing": Native}
        exec(compile(text, name, "exec"), names)
        result = names["result"]
        assert isinstance(result, dict)
        return {k: plain(v) for k, v in result.items() if k not in HIDDEN and not k.startswith("__")}

    yield execute
    for name in made:
        linecache.cache.pop(name, None)


def plain(value: object) -> object:
    return "object" if type(value).__module__ in ("nowhere", "tests.capture.later") else value


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("block", BLOCKS)
def test_captured_equals_executed_in_place(
    block: str, frame: str, run: Callable[[str, object], dict[str, object]]
) -> None:
    """S-74, S-76 and law 4: the same names with the same values."""
    text = textwrap.dedent(BLOCKS[block]).strip("\n")
    if "nonlocal" in text and frame in ("module", "class body", "global"):
        text = text.replace("nonlocal", "global") if frame == "module" else ""
    if frame == "class body" and any(word in text for word in ("lambda", "def ", "class ", " for x in")):
        text = ""  # a class body lends its names to nothing inside it; captured blocks are kinder
    depth = next(part for part in ("4", "8", "12") if "{" + part + "}" in FRAMES[frame])
    source = FRAMES[frame].replace("{" + depth + "}", textwrap.indent(text or "pass", " " * int(depth)))
    assert run(source, Group()) == run(source, Native())
