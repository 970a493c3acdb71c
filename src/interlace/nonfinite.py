"""Find where a model first makes a nan or an infinity."""

from typing import Any

import torch

from interlace.breaks import search_in
from interlace.errors import InputError, RunEnded
from interlace.finite import NonFinite, Search
from interlace.site import Visit


def find_nonfinite(
    model: Any, *args: Any, fn: str | None = None, inf: bool = True, **kwargs: Any
) -> NonFinite | None:
    """Run a model, and find the first module that makes a nan or an infinity.

    It is the first to return one without having been given one; masks of -inf may be given. Where an operation
    between the modules of a block is at fault, it is the block. The run ends there; no gradients are kept.

    Args:
        model: An `il.Model`, an `il.LanguageModel`, or an envoy of one.
        *args: What it is traced on.
        fn: A method to run in place of the model's own call: `"generate"`.
        inf: Whether infinities count. False looks for nan alone, as for a model that makes masks of -inf.
        **kwargs: Like `args`.

    Returns:
        Where it is, or None when everything is finite. `print` it to read it.

    Raises:
        TypeError: `model` is a plain module.
        InputError: There is nothing to run on.

    Example:
        >>> import torch, interlace as il
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> net[2].weight.data[0, 1] = float("nan")
        >>> model = il.Model(net)
        >>> print(il.find_nonfinite(model, torch.ones(4, 2)))
        `model[2].output` has 4 nan of 4 values; the first at [0, 0].
        Its inputs: all finite.
        Not finite in its weights: weight.
    """
    if isinstance(model, torch.nn.Module):
        raise TypeError("Wrap the model first: `il.find_nonfinite(il.Model(net), x)`.")
    if fn is None and not args and not kwargs:
        raise InputError(
            "`il.find_nonfinite(model)` was called without an input.\n"
            "Write `il.find_nonfinite(model, x)` with what the model takes."
        )
    told: list[NonFinite] = []
    with torch.no_grad(), model.trace(*args, fn=fn, **kwargs) as tracer:
        run = tracer._model_run

        def found(what: NonFinite, visit: Visit) -> None:  # noqa: ARG001
            told.append(what)
            run.stopped = True
            raise RunEnded

        search_in(run, Search(model._tree.named(), model._site.key, inf, found))
    return told[0] if told else None
