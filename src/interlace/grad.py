"""A backward that pauses: `with il.backward(loss):` reads and replaces gradients while they flow.

The backward runs on a stack of its own, as a trace runs the forward. `tensor.grad` in the block lets it run to
that tensor and pauses it there, in a hook. The block's `.grad` reaches us through a function mode that stands on
the block's side only; nothing of torch is patched. It knows tensors and their graph; a site is looked up in what
traces remember (`recall`).
"""

import sys
import weakref
from collections.abc import Sequence
from heapq import heappop, heappush
from types import FrameType, TracebackType
from typing import Any, cast

import torch
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode

from interlace import frames
from interlace.errors import InputError, NotReachedError, OrderError, TraceError, WriteError
from interlace.switch import Switch, unwind_abandoned
from interlace.trees import describe
from interlace.writes import replace

Edge = tuple[Any, int]
"""A node of the graph and which of its outputs: where the gradient of a tensor flows."""

_GRAD: Any = torch.Tensor.grad
_will_execute: Any = torch._C._will_engine_execute_node
_task: Any = torch._C._current_graph_task_id
_threads: Any = torch._C._is_multithreading_enabled
_set_threads: Any = torch._C._set_multithreading_enabled


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
        self._switch: Switch | None = None
        self._mode: _Mode | None = None
        self._flow: Flow | None = None
        self._wanted: Edge | None = None
        self._number = -1
        self._threads = True
        self._positions: dict[Any, int] | None = None
        self._entered = False
        self.owner: frames.Owner | None = None

    def __enter__(self) -> "Backward":
        if self._entered:
            raise TraceError("A backward is opened once; call `il.backward(...)` again for another one.")
        tensor = self._tensor
        assert tensor is not None
        _check(tensor, self._settings[0])
        unwind_abandoned()
        self._entered = True
        self.owner = frames.owner(sys._getframe(1))
        self._threads = _threads()
        # The stack must not hold this object: it would never be collected where a block is never left.
        gradient, retain_graph, create_graph, inputs = self._settings

        def walk() -> None:
            with torch.autograd.set_multithreading_enabled(False):
                torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)

        self._switch = Switch(walk, None)
        try:
            self._run_to(_edge(tensor), tensor)
        except BaseException:
            self._close()
            raise
        if self._flow is None:
            self._close()
            raise NotReachedError("This backward reaches nothing: none of its `inputs` is part of the graph.")
        self._mode = _Mode(self)
        push_function_mode(self._mode)  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._take_off()
        try:
            if error is None and self._switch is not None and not self._switch.done:
                self._go_on()
        finally:
            self._close()

    def __del__(self) -> None:
        if getattr(self, "_switch", None) is not None:
            self._take_off()
            self._close()

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
        return tensor.requires_grad and bool(_will_execute(_edge(tensor)[0]))

    def _reach(self, tensor: torch.Tensor) -> Flow:
        if not tensor.requires_grad:
            raise NotReachedError(f"{describe(tensor)} has no gradient: {_why(tensor)}.")
        edge, flow = _edge(tensor), self._flow
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
        if self._number >= 0 and _task() != self._number:
            raise TraceError(
                "A backward that was opened after this one is not over, and torch can go on with the innermost only.\n"
                "Leave the inner `with il.backward(...)` first."
            )

    def _refuse_passed(self, tensor: torch.Tensor, node: Any) -> None:
        here = self._flow
        assert here is not None
        current = here.edge[0]
        if not _is_leaf(node) and not _is_leaf(current) and node._sequence_nr() < current._sequence_nr():
            positions = self._positions
            if positions is None:
                return  # made before, so reached after
        if self._positions is None:
            assert self._tensor is not None
            self._positions = _order(_edge(self._tensor)[0])
        known = self._positions
        if known.get(node, len(known)) < known.get(current, -1):
            raise OrderError(_passed(tensor))

    def _run_to(self, edge: Edge, tensor: torch.Tensor) -> Flow | None:
        self._wanted = edge
        hook: Any = tensor.register_hook(_Hook(weakref.ref(self), edge))  # type: ignore[no-untyped-call]
        try:
            self._go_on()
        finally:
            hook.remove()
        return self._flow

    def _go_on(self) -> None:
        switch = self._switch
        assert switch is not None
        if self._number >= 0:
            self._in_order()
        self._turn(switch.resume)
        if switch.done:
            self._flow = None
            error, switch.error = switch.error, None
            if error is not None:
                try:
                    raise error
                finally:
                    del error

    def _turn(self, call: Any) -> None:
        """The engine's threads are off on its side only."""
        mine = _threads()
        _set_threads(self._threads)
        try:
            call()
        finally:
            self._threads = _threads()
            _set_threads(mine)

    def _take_off(self) -> None:
        """Take our mode off, wherever it stands: blocks of generators are left in any order."""
        mode, self._mode = self._mode, None
        modes: list[Any] = list(function_modes())  # type: ignore[no-untyped-call]
        if mode is None or mode not in modes:
            return
        at = modes.index(mode)
        for _ in modes[at:]:
            pop_function_mode()  # type: ignore[no-untyped-call]
        for other in modes[at + 1 :]:
            push_function_mode(other)  # type: ignore[no-untyped-call]

    def _close(self) -> None:
        switch, self._switch = self._switch, None
        if switch is not None and not switch.done:
            self._turn(switch.end)
            switch.error = None
        self._tensor = self._flow = self._positions = self._wanted = None
        self._settings = (None, None, False, None)


def _paused(switch: Switch, flow: Flow) -> torch.Tensor | None:
    switch.pause()
    return flow.changed()


class _Hook:
    """What stands at a tensor while its gradient is waited for. It must not keep its backward alive."""

    __slots__ = ("backward", "edge")

    def __init__(self, backward: "weakref.ref[Backward]", edge: Edge) -> None:
        self.backward = backward
        self.edge = edge

    def __call__(self, gradient: torch.Tensor | None) -> torch.Tensor | None:
        reached = _reached_by(self.backward, self.edge, gradient)
        return None if reached is None else _paused(*reached)


def _reached_by(
    ref: "weakref.ref[Backward]", edge: Edge, gradient: torch.Tensor | None
) -> "tuple[Switch, Flow] | None":
    """Note where the backward is. No reference to it is left on the stack that pauses next."""
    backward = ref()
    if backward is None or backward._wanted != edge or backward._switch is None:
        return None
    backward._wanted = None
    flow = backward._flow = Flow(edge, gradient)
    backward._number = _task()
    return backward._switch, flow


class _Mode(TorchFunctionMode):
    """Serves `tensor.grad` in the block of a backward. Torch hands it every call of that thread."""

    def __init__(self, backward: Backward) -> None:
        super().__init__()
        self._backward = weakref.ref(backward)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is _GRAD:
            backward = self._backward()
            if backward is not None and _stands_in(backward, sys._getframe(1)):
                if func.__name__ == "__get__":
                    return backward.read(args[0])
                backward.write(args[0], args[1] if len(args) > 1 else None)
                return None
        return func(*args, **(kwargs or {}))


def _stands_in(backward: Backward, frame: FrameType | None) -> bool:
    """Whether the block of a backward is on this stack: a parked generator's must not serve others."""
    owner = backward.owner
    while frame is not None and owner is not None:
        if id(frame) == owner.key and frame.f_code is owner.code:
            return True
        frame = frame.f_back
    return False


def current(frame: FrameType | None) -> Backward | None:
    """The open backward in whose block a frame stands."""
    if not torch._C._len_torch_function_stack():
        return None
    for mode in reversed(cast(list[Any], function_modes())):  # type: ignore[no-untyped-call]
        backward = mode._backward() if isinstance(mode, _Mode) else None
        if backward is not None and _stands_in(backward, frame):
            return backward
    return None


# -- graphs ------------------------------------------------------------------------------------------------------


def _edge(tensor: torch.Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _is_leaf(node: Any) -> bool:
    return hasattr(node, "variable")


def _order(root: Any) -> dict[Any, int]:
    """In which order the engine runs the nodes below `root`: of those that are ready, the one made last."""
    uses: dict[Any, int] = {root: 0}
    found = [root]
    for node in found:  # grows while it is walked
        for below, _ in node.next_functions:
            if below is not None:
                if below not in uses:
                    uses[below] = 0
                    found.append(below)
                uses[below] += 1
    positions: dict[Any, int] = {}
    ready: list[tuple[float, int, Any]] = [(0.0, 0, root)]
    while ready:
        _, _, node = heappop(ready)
        positions[node] = len(positions)
        for below, _ in node.next_functions:
            if below is not None:
                uses[below] -= 1
                if not uses[below]:
                    made = float("inf") if _is_leaf(below) else below._sequence_nr()
                    heappush(ready, (-made, len(positions) + len(ready), below))
    return positions


def _check(tensor: Any, gradient: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"`il.backward` begins at a tensor, not at {describe(tensor)}.")
    if not tensor.requires_grad:
        raise InputError(f"There is no graph to walk backward from {describe(tensor)}: {_why(tensor)}.")
    if gradient is None and tensor.numel() != 1:
        raise InputError(
            f"`il.backward` begins at one number, and this is {describe(tensor)}.\n"
            "Reduce it (`.sum()`, or pick one element), or give `gradient=` of its shape."
        )


def _why(tensor: torch.Tensor) -> str:
    if tensor.is_inference():
        return "it was made in inference mode.\nRun the trace outside of `torch.inference_mode()`"
    if not torch.is_floating_point(tensor) and not torch.is_complex(tensor):
        return f"{str(tensor.dtype).removeprefix('torch.')} values have no gradients"
    return (
        "it was computed under `torch.no_grad()` (`generate` runs so, and a checkpoint with "
        "`use_reentrant=True`),\nwas detached, or depends on nothing that requires gradients. Compute it with gradients "
        "enabled, or set\n`x.requires_grad_()` on the input"
    )


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
