"""What a program should give, had with hand-written hooks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def outputs(module: nn.Module) -> Iterator[list[Any]]:
    """The outputs of a module, call after call."""
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda m, args, out: seen.append(copied(out)))
    try:
        yield seen
    finally:
        hook.remove()


@contextlib.contextmanager
def changed(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """The module gives `change(output)`; None for an output that was changed in place."""
    hook = module.register_forward_hook(lambda m, args, out: change(out))
    try:
        yield
    finally:
        hook.remove()


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return type(value)(map(copied, value)) if type(value) in (tuple, list) else value


def first(value: Any) -> torch.Tensor:
    """The hidden states of a block, which some versions of transformers return in a tuple."""
    found: torch.Tensor = value[0] if isinstance(value, tuple) else value
    return found


def encoded(text: str) -> dict[str, torch.Tensor]:
    """Token ids and mask of a prompt. Tokenizers of transformers 4 give token types too, which GPT-2 would embed."""
    from tests.tiny import tokenizer

    found = tokenizer()(text, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}
