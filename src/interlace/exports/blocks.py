"""A captured block from its source alone."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import Any

from interlace.capture import Template, again, block_of
from interlace.capture.find import Block as Found
from interlace.parse import compile_tree

NAME = "edit"
"""What tracebacks call the function of a block."""


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
    names: dict[str, Any] = {"co_name": NAME}
    if hasattr(like, "co_qualname"):
        names["co_qualname"] = NAME
    return again(block, about.reads, about.owner, like.replace(**names))
