"""The saved-tensor hooks of each thread, for torch before 2.8, which does not tell them.

Both functions by which torch's own Python changes them are replaced by ones that also keep a list. They do
what they did; a newer torch is left as it is.
"""

import threading
from typing import Any

import torch

_autograd: Any = torch._C._autograd


class _Kept(threading.local):
    """The hooks of one thread, outermost first."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []


_kept = _Kept()


def _top(_ignore_is_tracing: bool) -> tuple[Any, Any] | None:
    """The innermost hooks."""
    return _kept.pairs[-1] if _kept.pairs else None


def _kept_beside(push: Any, pop: Any) -> None:
    def push_and_keep(pack: Any, unpack: Any) -> None:
        push(pack, unpack)
        _kept.pairs.append((pack, unpack))

    def pop_and_drop() -> None:
        pop()
        if _kept.pairs:  # else they stood before this was imported
            _kept.pairs.pop()

    _autograd._push_saved_tensors_default_hooks = push_and_keep
    _autograd._pop_saved_tensors_default_hooks = pop_and_drop


top = getattr(_autograd, "_top_saved_tensors_default_hooks", None)
"""Gives the innermost hooks of this thread, None if there are none."""

if top is None:
    _kept_beside(_autograd._push_saved_tensors_default_hooks, _autograd._pop_saved_tensors_default_hooks)
    top = _top
