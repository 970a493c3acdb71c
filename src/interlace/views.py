"""Own values: what an Envoy subclass derives from a site, and how an edited value goes back.

A view is declared by two functions: how the value is seen, and what the site gives when the value has been
changed. An edit in place reaches the model by itself where the value shares memory with the site; where it
does not, it goes back when the model goes on. Nothing here knows how a visit is had.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from interlace.errors import TraceError, WriteError
from interlace.site import Port, Visit, spell
from interlace.trees import tensors
from interlace.writes import Insisted, replace

if TYPE_CHECKING:
    from interlace.envoy import Envoy
    from interlace.trace import Trace

See = Callable[[Any, Any], Any]
Back = Callable[[Any, Any, Any], Any]


class View:
    """A value derived from a site of an Envoy subclass; made by `view`."""

    def __init__(self, at: str, see: See) -> None:
        self.inside, _, self.port = at.rpartition(".")
        if self.port not in ("output", "input", "inputs"):
            raise ValueError(
                f"A view is of an `output`, an `input` or the `inputs`, here or of a module below, not of {at!r}."
            )
        self.see = see
        self.name = see.__name__
        self._back: Back | None = None
        self.__doc__ = see.__doc__

    def back(self, function: Back) -> Any:
        """Declare what the site gives when the value has changed: `function(self, of_site, value)`."""
        self._back = function
        return self if function.__name__ == self.name else function

    def returned(self, envoy: Any, current: Any, value: Any, assigned: bool) -> Any:  # noqa: ARG002
        """What the site gives for a changed value, that was assigned or else edited in place."""
        if self._back is None:
            raise WriteError(
                f"`{self.where(envoy)}` can only be read: its class declares no `@{self.name}.back`."
            )
        return self._back(envoy, current, value)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        told = (self.__doc__ or "").strip().partition("\n")[0]
        owner._views = {**getattr(owner, "_views", {}), name: told}  # type: ignore[attr-defined]

    def __get__(self, envoy: "Envoy | None", owner: type) -> Any:
        if envoy is None:
            return self
        trace, visit = self._reach(envoy, sys._getframe(1))
        if trace is None:
            return self._seen(envoy, _value(visit, self.port))
        return self._sight(envoy, trace, visit).value

    def __set__(self, envoy: "Envoy", value: Any) -> None:
        envoy._tree.trace_for(sys._getframe(1), f"`{self.where(envoy)}`")
        trace, visit = self._reach(envoy, sys._getframe(1))
        assert trace is not None
        if self.port != "output":
            trace._before(self._target(envoy)._site)
        sight = self._sight(envoy, trace, visit)
        if value is not sight.value:
            sight.write(replace(sight.value, value, self.where(envoy)), insisted=isinstance(value, Insisted))

    def where(self, envoy: "Envoy") -> str:
        """The place as text."""
        return f"{spell(envoy._path)}.{self.name}"

    def _target(self, envoy: "Envoy") -> "Envoy":
        return envoy.get(self.inside) if self.inside else envoy

    def _reach(self, envoy: "Envoy", frame: Any) -> "tuple[Trace | None, Visit]":
        target = self._target(envoy)
        port: Port = "output" if self.port == "output" else "input"
        trace = envoy._tree.trace_at(frame)
        if trace is None:
            return None, target._scanned(port, frame, self.name, envoy)
        if target._fused:
            trace._unfuse(target._module)
        return trace, trace._visit(target._site, port)

    def _seen(self, envoy: "Envoy", value: Any) -> Any:
        try:
            return self.see(envoy, value)
        except AttributeError as error:  # Python would take it for a name that is missing
            raise TraceError(f"`{self.where(envoy)}` cannot be seen: {error}") from error

    def _sight(self, envoy: "Envoy", trace: "Trace", visit: Visit) -> "Sight":
        """What is seen at a visit: the same object each time, until its site is written to."""
        trace._settle()
        current = _value(visit, self.port)
        for held in trace._running.pending:
            if isinstance(held, Sight) and held.view is self and held.visit is visit and held.fresh(current):
                return held
        sight = Sight(self, envoy, trace, visit, self._seen(envoy, current))
        trace._before_going_on(sight)
        return sight


class Sight:
    """A value that a block has derived at one visit, until the model goes on."""

    __slots__ = ("base", "envoy", "marks", "pending", "stale", "value", "versions", "view", "visit")

    def __init__(self, view: View, envoy: "Envoy", trace: "Trace", visit: Visit, value: Any) -> None:
        self.view = view
        self.envoy = envoy
        self.pending = trace._running.pending
        self.visit = visit
        self.value = value
        self._mark()

    def _mark(self) -> None:
        """Remember the state of the site, and of each tensor whose edits do not reach it by themselves."""
        self.base = _value(self.visit, self.view.port)
        self.stale = False
        held = list(tensors(self.base))
        self.versions = [None if tensor.is_inference() else tensor._version for tensor in held]
        stores = {tensor.untyped_storage()._cdata for tensor in held}
        apart = [tensor for tensor in tensors(self.value) if tensor.untyped_storage()._cdata not in stores]
        # a tensor made in inference mode counts no versions
        self.marks = [
            (tensor, tensor.clone() if tensor.is_inference() else tensor._version) for tensor in apart
        ]

    def fresh(self, current: Any) -> bool:
        """Whether the value still is what would be seen."""
        if self.stale or not _same(self.base, current) or None in self.versions:
            return False
        return not self.marks or self.versions == [tensor._version for tensor in tensors(current)]

    def _edited(self) -> bool:
        return any(
            not torch.equal(tensor, mark) if isinstance(mark, torch.Tensor) else tensor._version != mark
            for tensor, mark in self.marks
        )

    def __call__(self) -> None:
        """Let an edit in place go back to the site."""
        if not self._edited():
            return
        if not _same(_value(self.visit, self.view.port), self.base):
            raise WriteError(
                f"`{self.view.where(self.envoy)}` was edited in place, and what it was derived from was "
                "replaced: one of the two would be lost.\nRead it again after the replacement."
            )
        self.write(self.value)

    def write(self, value: Any, insisted: bool = False) -> None:
        """Let a value go back to the site.

        Raises:
            WriteError: There is no way back, or what comes back does not fit the site.
        """
        view, envoy, current = self.view, self.envoy, _value(self.visit, self.view.port)
        where = view.where(envoy)
        try:
            new = view.returned(envoy, current, value, value is not self.value)
        except WriteError:
            raise
        except Exception as error:
            raise WriteError(f"`{where}` cannot go back: {type(error).__name__}: {error}") from error
        new = new if insisted else replace(current, new, f"{where} (on its way back)")
        _put(self.visit, view.port, new)
        self._mark()
        self.stale = value is not self.value
        for other in self.pending:
            if isinstance(other, Sight) and other.visit is self.visit and _same(other.base, current):
                other.base, other.stale = new, True


def _value(visit: Visit, port: str) -> Any:
    if port == "output":
        return visit.result
    if port == "inputs":
        return visit.args, visit.kwargs
    return visit.args[0] if visit.args else next(iter(visit.kwargs.values()), None)


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a site are the same object; the pair of a call's inputs is made at each look."""
    if one is other:
        return True
    return (
        type(one) is tuple is type(other)
        and len(one) == len(other) == 2
        and one[0] is other[0]
        and one[1] is other[1]
    )


def _put(visit: Visit, port: str, value: Any) -> None:
    if port == "output":
        visit.result = value
    elif port == "inputs":
        visit.args, visit.kwargs = value
    elif visit.args:
        visit.args = (value, *visit.args[1:])
    else:
        visit.kwargs = {**visit.kwargs, next(iter(visit.kwargs)): value}


def view(at: str) -> Callable[[See], View]:
    """Declare a value that an Envoy subclass derives from an output or input.

    The decorated function says how the value is seen, its docstring describes it in the `repr`; `@name.back`
    says what the site gives when the value has been changed. Without it the value can only be read.

    Args:
        at: `"output"`, `"input"` or `"inputs"`, of the envoy itself or of a module below it: `"proj.input"`.

    Raises:
        ValueError: `at` is none of these.

    Example:
        >>> import interlace as il
        >>> class ByHead(il.Envoy):
        ...     @il.view("output")
        ...     def heads(self, output):
        ...         '''By head: batch head d_head.'''
        ...         return output.unflatten(-1, (2, -1))
        ...     @heads.back
        ...     def heads(self, output, heads):
        ...         return heads.flatten(-2)
        >>> model = il.Model(torch.nn.Sequential(torch.nn.Linear(3, 4)), envoys={"0": ByHead})
        >>> with model.trace(torch.ones(1, 3)):
        ...     model[0].heads[:, 1] = 0
        ...     out = model.output
        >>> out[0, 2:]
        tensor([0., 0.], grad_fn=<SliceBackward0>)
    """
    return lambda see: View(at, see)
