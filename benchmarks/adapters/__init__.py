"""The tools that take part: one module each, with a class `Tool` that does every workload its own way.

To let another tool take part, add a module; where the tool is not installed, its module is passed over.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol

from torch import Tensor

from benchmarks.models import Subject


class Tool(Protocol):
    """Every workload on one subject. Each method returns the tensors that it is about, for comparison.

    `untraced` and `empty` return the model's own result; a read, what was read; a replacement, the result
    that follows from it; `cache_all`, the first tensor that each module gave, by the order of `named_modules`;
    `sweep`, one such result per block; a generation, what was read at each step, and
    the tokens.
    """

    def settings(self) -> AbstractContextManager[None]:
        """What has to be in force while this tool runs."""

    def untraced(self) -> list[Tensor]: ...
    def empty(self) -> list[Tensor]: ...
    def read_one(self) -> list[Tensor]: ...
    def read_all(self) -> list[Tensor]: ...
    def cache_all(self) -> list[Tensor]: ...
    def replace_one(self) -> list[Tensor]: ...
    def replace_all(self) -> list[Tensor]: ...
    def sweep(self) -> list[Tensor]: ...
    def generate(self, steps: int) -> list[Tensor]: ...


OURS = ["bare", "hooks", "interlace", "interlace_unchecked"]


def tools() -> dict[str, Callable[[Subject], Tool]]:
    """Those that are here, by name: the bare call first, which does none of the work, then the hooks."""
    others = sorted({module.name for module in iter_modules(__path__)} - set(OURS))
    found = {name: import_module(f"{__name__}.{name}").Tool for name in OURS}
    for name in others:
        with suppress(ModuleNotFoundError):
            found[name] = import_module(f"{__name__}.{name}").Tool
    return found
