"""What a trace, or a plain call through the wrapper, runs: the module or a method, on prepared input."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from interlace.edit import Edit, Edited, older, replay
from interlace.errors import InputError
from interlace.frames import with_follows
from interlace.rows import Rows
from interlace.switch import carried
from interlace.trace import Trace, no_input
from interlace.trees import map_tensors, tensors
from interlace.workers import Worker

if TYPE_CHECKING:
    from interlace.envoy import Envoy

Input = tuple[tuple[Any, ...], dict[str, Any]]
_PLAIN = (type(None), bool, int, float, str)
Function = str | Callable[..., Any] | None


def resolve(envoy: "Envoy", fn: Function) -> Callable[..., Any]:
    """What `fn` names: the module's own call, a method of it, or an override of the envoy's class."""
    if fn is None:
        return envoy._module
    if isinstance(fn, Method):
        return resolve(fn.envoy, fn.name)
    if not isinstance(fn, str):
        return fn
    for spelling in (f"__interlace_{fn}__", f"__nnsight_{fn}__"):
        own = getattr(type(envoy), spelling, None)
        if own is not None:
            return partial(own, envoy)
    found = getattr(envoy._module, fn, None)
    if not callable(found):
        raise envoy._miss(fn)
    return found  # type: ignore[no-any-return]


def _all_at(device: torch.device, values: Iterable[Any]) -> bool:
    """Whether all tensors of some values, nested ones included, are on a device."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.device != device:
                return False
        elif not isinstance(value, _PLAIN) and any(tensor.device != device for tensor in tensors(value)):
            return False
    return True


class Called:
    """What the module or a method was called with: called, it prepares the call to run."""

    __slots__ = ("args", "envoy", "fn", "kwargs")

    loads = True
    """Whether the run needs the weights."""

    def __init__(self, envoy: "Envoy", fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.envoy = envoy
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    @property
    def waits(self) -> bool:
        """Whether the input may come from `tracer.invoke(...)`."""
        return False

    def __call__(self) -> Callable[[], Any]:
        """The call, on input that the model's class has prepared and that is where the model is."""
        if self.loads:
            self.envoy._tree.load()
        return self._placed(*self._prepared(self.args, self.kwargs))

    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Input:
        """An input as the model's class prepares it."""
        envoy, fn = self.envoy, self.fn
        return (
            envoy._prepare_input(*args, **kwargs) if fn is None else envoy._function_input(fn, args, kwargs)
        )

    def _placed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        """The call on prepared input, moved to where the model is."""
        envoy, fn = self.envoy, self.fn
        device = envoy._tree.device()
        values = (*args, *kwargs.values()) if kwargs else args
        if device is not None and not _all_at(device, values) and device.type != "meta":
            args, kwargs = map_tensors(lambda tensor: tensor.to(device), (args, kwargs))
        return partial(envoy._module if fn is None else resolve(envoy, fn), *args, **kwargs)


class Given(Called):
    """What a trace was opened with."""

    __slots__ = ()

    opens = "trace"
    """What errors call the method that opened it."""

    @property
    def waits(self) -> bool:
        """Whether the input may come from `tracer.invoke(...)`."""
        if self.args or self.fn is not None:
            return not self.args
        return not self.kwargs or not self.envoy._has_input(self.kwargs)

    def __call__(self) -> Callable[[], Any]:
        """The call to run, or `InputError` where nothing was given."""
        if not self.args and not self.kwargs and self.fn is None:
            raise no_input(f"{self.envoy._path}.{self.opens}")
        if self.loads:
            self.envoy._tree.load()
        return self._placed(*self._prepared(self.args, self.kwargs))

    def combined(self, inputs: list[Input]) -> tuple[Callable[[], Any], list[Rows]]:
        """The call on the inputs of several prompts, and the rows of each."""
        if self.args:
            raise InputError(
                f"`{self.envoy._path}.trace(x)` has its input already, and an invoke gives another.\n"
                "Give every input to an invoke of its own."
            )
        envoy, fn = self.envoy, self.fn
        if self.loads:
            envoy._tree.load()
        if fn is None:
            prepared = [envoy._prepare_input(*args, **kwargs) for args, kwargs in inputs]
        else:
            prepared = [envoy._function_input(fn, args, kwargs) for args, kwargs in inputs]
        args, kwargs, rows = envoy._combine(prepared, fn)
        if self.kwargs:
            kwargs = {**kwargs, **self.kwargs}
        copies = envoy._copies(fn, kwargs)
        if copies:
            rows = [replace(own, copies=copies) for own in rows]
        return self._placed(args, kwargs), rows


def plain(envoy: "Envoy", fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run once, without a block; with the stored edits, if there are any."""
    called = Called(envoy, fn, args, kwargs)
    if not envoy._tree.edits:
        return called()()
    trace = Plain(envoy, envoy._tree, called, fn is not None)
    with trace:
        if trace.only is not None:
            replay(trace, trace.only)
        return trace.result


class Plain(Trace):
    """A plain call of a model with stored edits. If there is only one, it is the block; several take turns.

    Attributes:
        only: The edit, if there is only one. Inside another run's model it is not alone: calls that it makes
            itself would be that run's visits.
    """

    _runs = Edited
    only: Edit | None = None

    def _edits(self) -> list[Worker]:
        edits = self._tree.edits
        if len(edits) != 1 or carried() is not None:
            return super()._edits()
        self.only = edits[0].made(self.model)
        self._trees = (*self._trees, *older(self, self.only))
        return []


class Method:
    """A callable of a module: `with model.generate(...):` traces it, a plain call runs it."""

    def __init__(self, envoy: "Envoy", name: str, function: Callable[..., Any]) -> None:
        self.envoy = envoy
        self.name = name
        self.function = function
        self.__doc__ = function.__doc__
        self.__name__ = name
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Open a trace when a `with` follows, else run."""
        if with_follows(sys._getframe(1)):
            return Trace(self.envoy, self.envoy._tree, Given(self.envoy, self.name, args, kwargs), paced=True)
        result = plain(self.envoy, self.name, args, kwargs)
        return self.envoy if result is self.envoy._module else result

    def __getattr__(self, name: str) -> Any:
        if "function" not in self.__dict__:  # a copy asks before it has anything
            raise AttributeError(name)
        return getattr(self.function, name)

    def __repr__(self) -> str:
        return f"<method {self.name} of {self.envoy.path}>"
