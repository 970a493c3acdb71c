"""What a block changed inside a checkpointed region of the model, so that recomputing the region changes it again.

`torch.utils.checkpoint` runs a region of the forward a second time during the backward, when no block is there to
change anything: gradients would be silently wrong. So a region in which a block changed something gets a
recomputation of its own, which repeats the changes and counts no visit. It stays with the graph that needs it and
goes with it. Where changes cannot be repeated (a region that another `autograd.Function` recomputes, with
`use_reentrant=True` above all), the backward is refused.
"""

import gc
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.autograd.function import Function

from interlace import ambient
from interlace.change import REFUSED, Before, Change, unclear, version
from interlace.errors import TraceError
from interlace.run import Run
from interlace.site import Port, Visit

_APPLY: Any = Function.apply.__func__.__code__  # type: ignore[attr-defined]

Place = tuple[Any, Port, tuple[int, ...]]
"""A key, a port, and how many tensors each region around it had saved by then: the same when it is recomputed."""


class Region:
    """One checkpointed region of one forward: what a block changed in it."""

    def __init__(self, taps: Any) -> None:
        self.taps = taps
        self.changes: dict[Place, Change] = {}

    def note(self, place: Place, change: Change) -> None:
        """Have a change repeated.

        Raises:
            TraceError: It could not be told from another one when the region is recomputed.
        """
        if place in self.changes:
            self.changes[place] = unclear(self.changes[place])
        else:
            self.changes[place] = change

    def recompute(self, frame: Any, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run the region again with its changes."""
        run = Replay(lambda: call(*args), self, frame)
        self.taps.install(run)
        try:
            run.switch.resume()
        finally:
            self.taps.remove(run)
        error, run.switch.error = run.switch.error, None
        saved = run.saved()
        if error is None or type(error).__name__ == "_StopRecomputationError":
            missed = [place for place in self.changes if place[2][0] < saved and place not in run.met]
            if missed:
                raise TraceError(REFUSED + "A module of it was not called again as in the forward.")
        if error is not None:
            try:
                raise error
            finally:
                del error


class Replay(Run):
    """The recomputation of a region. No block waits in it; what one did is repeated."""

    __slots__ = ("base", "frame", "met", "region")

    def __init__(self, call: Callable[[], Any], region: Region, frame: Any) -> None:
        super().__init__(call)
        self.region = region
        self.frame = frame
        self.base = sum(frame.recomp_counter.values())
        self.met: set[Place] = set()
        self.tally.before = {key for key, port, _ in region.changes if port == "input"}
        self.tally.after = {key for key, port, _ in region.changes if port == "output"}

    def saved(self) -> int:
        """How many tensors the region has saved so far."""
        return int(sum(self.frame.recomp_counter.values()) - self.base)

    def _arrive(self, visit: Visit, port: Port) -> None:
        inner = tuple(len(frame.weak_holders) for frame in regions_here())
        place = (visit.key, port, (self.saved(), *inner))
        change = self.region.changes.get(place)
        if change is None:
            return
        if place in self.met or change.count < 0:
            raise TraceError(
                REFUSED + "It calls one module several times, and these calls cannot be told apart."
            )
        self.met.add(place)
        change.repeat(visit)


def regions_here() -> list[Any]:
    """The regions of `torch.utils.checkpoint` in whose forward this is called, outermost first."""
    cells = [cell for pack, _ in ambient.saved_hooks() for cell in getattr(pack, "__closure__", None) or ()]
    return [cell.cell_contents for cell in cells if type(cell.cell_contents).__name__ == "_CheckpointFrame"]


def functions_here(frame: FrameType | None) -> list[Any]:
    """The nodes of each `autograd.Function` in whose forward this is called, or their types where none is in sight."""
    found: list[Any] = []
    inner: FrameType | None = None
    while frame is not None:
        if frame.f_code is _APPLY:
            kind, code = frame.f_locals["cls"]._backward_cls, inner.f_code if inner is not None else None
            node = inner.f_locals.get(code.co_varnames[0]) if inner and code and code.co_argcount else None
            found.append(node if type(node) is kind else kind)
        inner, frame = frame, frame.f_back
    return found


def _nodes(functions: list[Any]) -> list[Any]:
    """Their nodes. A forward with a separate `setup_context` has none yet, but its graph's has been made."""
    kinds = {kind for kind in functions if isinstance(kind, type)}
    nodes = [node for node in functions if not isinstance(node, type)]
    if kinds:
        nodes += [one for one in gc.get_objects() if type(one) in kinds and not one._input_metadata]
    return nodes


class Changes:
    """Notes what the blocks of a run change inside of regions that will be recomputed."""

    __slots__ = ("regions", "shown", "taps")

    def __init__(self, taps: Any) -> None:
        self.taps = taps
        self.shown: list[weakref.ref[torch.Tensor]] = []
        self.regions: weakref.WeakKeyDictionary[Any, Region] | None = None  # dear, and rarely needed

    def enter(self, visit: Visit) -> Callable[[], None] | None:
        """Called before blocks get a visit; what it returns is called after."""
        frames = regions_here()
        functions = [] if torch._C._is_fwd_grad_enabled() else functions_here(sys._getframe(1))
        if not frames and not functions:
            return None
        before = Before(visit)
        known = {id(leaf) for leaf, _ in before.leaves}
        earlier = [(tensor, version(tensor)) for ref in self.shown if (tensor := ref()) is not None]
        self.shown += [weakref.ref(leaf) for leaf, _ in before.leaves if isinstance(leaf, torch.Tensor)]

        def leave() -> None:
            if any(version(tensor) != seen and id(tensor) not in known for tensor, seen in earlier):
                for frame in frames:
                    frame.recompute_fn = _refuse_late
            change = before.change(visit)
            if change is None:
                return
            for node in _nodes(functions):
                node.register_prehook(_refuse)
            for at, frame in enumerate(frames):
                self._note(frame, visit, tuple(len(inner.weak_holders) for inner in frames[at:]), change)

        return leave

    def _note(self, frame: Any, visit: Visit, saved: tuple[int, ...], change: Change) -> None:
        if self.regions is None:
            self.regions = weakref.WeakKeyDictionary()
        region = self.regions.get(frame)
        if region is None:
            region = self.regions[frame] = Region(self.taps)
            if frame.recompute_fn is not _refuse_late:
                frame.recompute_fn = _recomputation(weakref.ref(frame), frame.recompute_fn, region)
        if not isinstance(visit.key, int):
            frame.recompute_fn = _refuse_operation
        region.note((visit.key, visit.port, saved), change)


def _recomputation(frame: Any, call: Callable[..., Any], region: Region) -> Callable[..., None]:
    def recompute(*args: Any) -> None:
        region.recompute(frame(), call, args)

    return recompute


def _refuse_operation(*args: Any) -> None:  # noqa: ARG001
    raise TraceError(
        REFUSED + "The change was made at an operation (`.source`); make it at a module's input or output."
    )


def _refuse_late(*args: Any) -> None:  # noqa: ARG001
    raise TraceError(
        REFUSED
        + "A tensor was edited in place after the model had gone on from it; edit it where it is read."
    )


def _refuse(gradients: Any) -> None:  # noqa: ARG001
    raise TraceError(
        REFUSED
        + "Checkpoint with `use_reentrant=False`: in transformers, `model.gradient_checkpointing_enable("
        "gradient_checkpointing_kwargs={'use_reentrant': False})`."
    )
