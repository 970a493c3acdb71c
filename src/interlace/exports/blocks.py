"""A captured block from its source alone."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from types import CodeType

from interlace.capture import Template, again, block_of
from interlace.capture.find import Block as Found
from interlace.parse import compile_tree


@dataclass(frozen=True, slots=True)
class Block:
    """What is known of a captured block besides its source. See `capture.Template`."""

    item: int
    owner: str | None
    future: int
    reads: frozenset[str]


def parsed(statement: ast.With, item: int, source: str) -> Found:
    """The block of a `with` statement."""
    return block_of(statement, item, "the file of edits", source)


def recompiled(statement: ast.With, about: Block, filename: str, source: str) -> Template:
    """Compile a block; nothing of it runs."""
    block = parsed(copy.deepcopy(statement), about.item, source)
    like = compile_tree("", filename, about.future)
    return again(block, about.reads, about.owner, like.replace(co_name="edit", **_qualname(like)))


def _qualname(code: CodeType) -> dict[str, str]:
    return {"co_qualname": "edit"} if hasattr(code, "co_qualname") else {}
