"""A backward that pauses: `with il.backward(loss):` reads and replaces gradients while they flow.

The backward runs on a stack of its own, as a trace runs the forward. `tensor.grad` in the block lets it run to
that tensor and pauses it there, in a hook. The block's `.grad` reaches us through a function mode (`ingrad`); nothing
of torch is patched. It knows tensors and their `graph`; a site is looked up in what traces remember (`recall`).
"""

import sys
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch

from interlace import frames, graph
from interlace.errors import NotReachedError, OrderError, TraceError, WriteError
from interlace.graph import Edge
from interlace.ingrad import Mode, put_on, take_off
from interlace.switch import unwind_abandoned
from interlace.tracebacks import trim
from interlace.trees import describe
from interlace.walk import Walk
from interlace.writes import replace

_will_execute: Any = torch._C._will_engine_execute_node


class Flow:
    """The gradient at the tensor at which the backward is paused."""

    __slots__ = ("edge", "given", "value", "version")

    def __init__(self, edge: Edge, given: torch.Tensor | None) -> None:
        self.edge = edge
        self.given = given
        # Branches of a graph may share one buffer, so the block edits a copy.
        self.value = None if given is None else given.clone()
        self.version = 0 if self.value is None else self.value._version

    def changed(self) -> torch.Tensor | None:
        """What the block put in its place, if anything."""
        value = self.value
        return None if value is None or value._version == self.version else value


class Backward:
    """`with il.backward(loss):` walks the graph of a tensor backward and lets the block see each gradient.

    In the block, `tensor.grad` is the gradient that flows at that tensor in this backward, in the order in which
    the backward reaches them: later tensors first. Assigning it, or editing it in place, changes what flows on.
    `model.h[3].output` means what a trace read there. Leaving the block lets the backward finish, and parameters
    have their `.grad` as after `loss.backward()`.

    Args:
        tensor: Where it begins; one number, unless `gradient` is given.
        gradient: The gradient at `tensor`, of its shape.
        retain_graph: Keep the graph for another backward.
        create_graph: Make gradients that can be differentiated again.
        inputs: Accumulate only into these tensors, as in `Tensor.backward`.

    Raises:
        InputError: There is no graph to walk.
        OrderError: The backward has passed the tensor whose gradient was asked for.
        NotReachedError: `tensor` does not depend on it.
        WriteError: What was written differs in shape, dtype or device from what flows there.

    Example:
        >>> import interlace as il
        >>> model = il.Model(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()))
        >>> with model.trace(torch.ones(1, 2)):
        ...     hidden = model[0].output
        ...     loss = model.output.sum()
        >>> with il.backward(loss):
        ...     gradient = hidden.grad
        >>> gradient.shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        gradient: torch.Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    ) -> None:
        self._tensor: torch.Tensor | None = tensor
        self._settings = (gradient, retain_graph, create_graph, inputs)
        self._switch: Walk | None = None
        self._mode: Mode | None = None
        self._flow: Flow | None = None
        self._wanted: _Hook | None = None
        self._positions: dict[Any, int] | None = None
        self._entered = False
        self.owner: frames.Owner | None = None

    def __enter__(self) -> "Backward":
        if self._entered:
            raise TraceError("A backward is opened once; call `il.backward(...)` again for another one.")
        self.owner = frames.owner(sys._getframe(1))
        try:
            self._open()
            return self
        except BaseException as failed:
            if self._entered:
                self._drop()
            trim(failed)
            raise

    def _open(self) -> None:
        tensor = self._tensor
        assert tensor is not None
        graph.check(tensor, self._settings[0])
        self._entered = True
        # The stack must not hold this object: it would never be collected where a block is never left.
        gradient, retain_graph, create_graph, inputs = self._settings

        def walk() -> None:
            torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)

        self._switch = Walk(walk)
        self._run_to(graph.edge(tensor), tensor)
        if self._flow is None:
            raise NotReachedError("This backward reaches nothing: none of its `inputs` is part of the graph.")
        self._mode = Mode(self)
        put_on(self._mode)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._take_off()
            if error is not None:
                trim(error)
            elif self._switch is not None and not self._switch.done:
                self._in_order()
                self._go_on()
        except BaseException as failed:
            trim(failed)
            raise
        finally:
            try:
                self._drop()
            except BaseException:
                self._drop()  # an interrupt fell into it: what is done again does no harm
                raise

    def __del__(self) -> None:
        if getattr(self, "_switch", None) is not None:
            self._drop()

    # -- the block's side ------------------------------------------------------------------------------------

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The gradient that flows at a tensor."""
        value = self._reach(tensor).value
        assert value is not None
        return value

    def write(self, tensor: torch.Tensor, value: Any) -> None:
        """Replace the gradient that flows at a tensor."""
        flow = self._reach(tensor)
        if value is flow.value:
            return  # `tensor.grad *= 2`
        if value is None:
            raise WriteError(
                "A gradient that flows cannot be removed; to stop it, write zeros: `tensor.grad[:] = 0`.\n"
                "To clear what torch keeps in a parameter's `.grad`, do it outside of `il.backward`."
            )
        flow.value = replace(flow.given, value, "tensor.grad")
        flow.version = -1

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether the gradient of a tensor is computed in this backward."""
        self._in_order()
        return tensor.requires_grad and bool(_will_execute(graph.edge(tensor)[0]))

    def _reach(self, tensor: torch.Tensor) -> Flow:
        if not tensor.requires_grad:
            raise NotReachedError(f"{describe(tensor)} has no gradient: {graph.why(tensor)}.")
        edge, flow = graph.edge(tensor), self._flow
        if flow is None or edge != flow.edge:
            self._in_order()
            if not _will_execute(edge[0]):
                raise NotReachedError(
                    f"No gradient flows to {describe(tensor)} in this backward: the loss does not depend on it.\n"
                    "A value computed from what was read is another tensor; ask for the one that the model went on with."
                )
            self._refuse_passed(tensor, edge[0])
            flow = self._run_to(edge, tensor)
        if flow is None:
            raise OrderError(_passed(tensor))
        if flow.given is None:
            raise NotReachedError(
                f"No gradient flows to {describe(tensor)} in this backward: it was not used."
            )
        return flow

    def _in_order(self) -> None:
        """The engine of torch keeps one queue a thread: of nested backwards only the innermost can go on."""
        if self._switch is None or self._switch.done:
            raise OrderError(
                "This backward is over: its gradients have passed.\nAsk for them in the order of the backward."
            )
        self._switch.check()

    def _refuse_passed(self, tensor: torch.Tensor, node: Any) -> None:
        assert self._flow is not None
        assert self._tensor is not None
        current, known = self._flow.edge[0], self._positions
        if known is None:
            leaf = graph.is_leaf(node) or graph.is_leaf(current)
            if not leaf and node._sequence_nr() < current._sequence_nr():
                return  # made before, so reached after
            known = self._positions = graph.order(graph.edge(self._tensor)[0])
        if known.get(node, len(known)) < known.get(current, -1):
            raise OrderError(_passed(tensor))

    def _run_to(self, edge: Edge, tensor: torch.Tensor) -> Flow | None:
        self._wanted = _Hook(weakref.ref(self), edge)
        hook: Any = tensor.register_hook(self._wanted)  # type: ignore[no-untyped-call]
        try:
            self._go_on()
        finally:
            hook.remove()
        return self._flow

    def _go_on(self) -> None:
        switch = self._switch
        assert switch is not None
        switch.resume()
        if switch.done:
            self._flow = None
            error, switch.error = switch.error, None
            if error is not None:
                try:
                    raise error
                finally:
                    del error

    def _take_off(self) -> None:
        if self._mode is not None:
            take_off(self._mode)
            self._mode = None

    def _drop(self) -> None:
        """Serve no more, and end the walk where it is."""
        try:
            self._take_off()
        finally:
            self._close()

    def _close(self) -> None:
        switch = self._switch
        if switch is not None:
            switch.end()
            switch.error = None
            self._switch = None
            unwind_abandoned()  # those that had to wait for this one
        self._tensor = self._flow = self._positions = self._wanted = None
        self._settings = (None, None, False, None)


class _Hook:
    """What stands at a tensor while its gradient is waited for. It must not keep its backward alive."""

    __slots__ = ("backward", "edge")

    def __init__(self, backward: "weakref.ref[Backward]", edge: Edge) -> None:
        self.backward = backward
        self.edge = edge

    def __call__(self, gradient: torch.Tensor | None) -> torch.Tensor | None:
        backward = self.backward()
        if backward is None or backward._wanted is not self or backward._switch is None:
            return None
        switch, flow = backward._switch, Flow(self.edge, gradient)
        backward._flow, backward._wanted = flow, None
        del backward  # this stack pauses
        switch.pause()
        return flow.changed()


def _passed(tensor: torch.Tensor) -> str:
    return (
        f"The gradient at {describe(tensor)} has passed.\n"
        "A backward runs from the end of the model to its start: ask for the gradients of later tensors first."
    )


def backward(
    tensor: torch.Tensor,
    gradient: torch.Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
) -> Backward:
    """Walk a graph backward with a block that reads and replaces gradients: see `Backward`."""
    return Backward(tensor, gradient, retain_graph, create_graph, inputs)
