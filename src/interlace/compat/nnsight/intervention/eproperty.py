"""`eproperty`: a value that an Envoy class derives from a value of its module."""

import inspect
from collections.abc import Callable
from typing import Any

from interlace.errors import WriteError
from interlace.views import View

PORTS = {"output": "output", "input": "inputs", "inputs": "inputs"}
"""nnsight's name for a value of a module: what it is here. Its `input` is the whole `(args, kwargs)`."""


class eproperty(View):  # noqa: N801  (nnsight's name)
    """A value that an Envoy class derives from an output or from the inputs.

    The decorated function is a stub that gives the name. `il.view` says the same in two functions.

    Args:
        key: `"output"` or `"input"` (which is `(args, kwargs)`), of the envoy or of a module below it; by default
            the name of the stub.
        description: What the repr shows.
        iterate: Accepted; every value is counted by step.

    Raises:
        ValueError: No value of a module has that key.

    Example:
        >>> import torch
        >>> import interlace.compat.nnsight as nnsight
        >>> class ByHead(nnsight.Envoy):
        ...     @nnsight.eproperty(key="output", description="batch head d_head")
        ...     def heads(self): ...
        ...     @heads.preprocess
        ...     def heads(self, value):
        ...         return value.unflatten(-1, (2, -1))
        ...     @heads.postprocess
        ...     def heads(self, value):
        ...         return value.flatten(-2)
        >>> model = nnsight.NNsight(torch.nn.Sequential(torch.nn.Linear(3, 4)), envoys={"0": ByHead})
        >>> with model.trace(torch.ones(1, 3)):
        ...     model[0].heads = torch.ones(1, 2, 2)
        ...     out = model.output.save()
        >>> out
        tensor([[1., 1., 1., 1.]])
    """

    def __init__(self, key: str | None = None, description: str | None = None, iterate: bool = True) -> None:
        self._key, self._description = key, description
        self._post: Callable[..., Any] | None = None
        self._transform: Callable[..., Any] | None = None
        del iterate

    def __call__(self, stub: Callable[..., Any]) -> "eproperty":
        """Take the name of the stub."""
        key = self._key or stub.__name__
        inside, _, name = key.rpartition(".")
        if name not in PORTS:
            raise ValueError(
                f"`eproperty(key={key!r})`: a module has the values {', '.join(map(repr, PORTS))}, and no {name!r}."
            )
        super().__init__(".".join(filter(None, (inside, PORTS[name]))), _as_it_is)
        self.name, self.__doc__ = stub.__name__, self._description or stub.__doc__
        return self

    def preprocess(self, function: Callable[[Any, Any], Any]) -> "eproperty":
        """Say how the value is seen: `function(self, value)`."""
        self.see = function
        return self

    def postprocess(self, function: Callable[[Any, Any], Any]) -> "eproperty":
        """Say what the module gives for an assigned value: `function(self, value)`."""
        self._post = function
        return self

    def transform(self, function: Any) -> "eproperty":
        """Say what the module gives for a value that was edited in place: `function(value)`."""
        self._transform = function.__func__ if isinstance(function, staticmethod) else function
        return self

    def returned(self, envoy: Any, current: Any, value: Any, assigned: bool) -> Any:  # noqa: ARG002
        """What the site gives for a changed value."""
        if assigned:
            return value if self._post is None else self._post(envoy, value)
        if self._transform is None:
            raise WriteError(
                f"`{self.where(envoy)}` was edited in place, and what is edited is a copy: it would be lost.\n"
                f"Declare `@{self.name}.transform`, or assign the new value."
            )
        alone = len(inspect.signature(self._transform).parameters) == 1
        return self._transform(value) if alone else self._transform(envoy, value)


def _as_it_is(envoy: Any, value: Any) -> Any:  # noqa: ARG001
    return value
