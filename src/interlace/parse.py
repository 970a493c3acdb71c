"""Parse and compile where other threads do so too.

Up to Python 3.11.8 and 3.12.2 the interpreter counts how deep the trees of all threads nest in one number, and raises
`SystemError` when two of them are at it (gh-106905). Nothing is wrong then, and it works the next time.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from types import CodeType
from typing import TypeVar

Result = TypeVar("Result")
_TIMES = 100


def parse(source: str, filename: str = "<unknown>") -> ast.Module:
    """`ast.parse`."""
    return _again(lambda: ast.parse(source, filename))


def compile_tree(tree: ast.Module | str, filename: str, flags: int) -> CodeType:
    """`compile` of a module, with these flags and no others."""
    made: CodeType = _again(lambda: compile(tree, filename, "exec", flags=flags, dont_inherit=True))
    return made


def _again(call: Callable[[], Result]) -> Result:
    for _ in range(_TIMES):
        try:
            return call()
        except SystemError:
            continue
    return call()
