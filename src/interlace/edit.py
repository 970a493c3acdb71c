"""Edits that stay: a block that every later run of a model replays, before any other.

`edited = model.edit(function)` and `with model.edit() as edited:` store a block in the tree of a model. A
stored edit is its function and the names that it reads, so that it can be written to a file.
"""

import contextvars
import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from interlace import ambient
from interlace.capture import Body, Bound, Scope, Template, capture, check_function
from interlace.errors import NotReachedError, RunEnded
from interlace.run import Run
from interlace.site import Port, Site
from interlace.switch import IN_TRANSFORM
from interlace.tracebacks import trim
from interlace.workers import Worker

if TYPE_CHECKING:
    from interlace.envoy import Envoy
    from interlace.trace import Trace
    from interlace.tree import Tree


DEFAULT = "__default__"
"""The variant of a file of edits where none is named."""


class Stored(Protocol):
    """What a tree keeps: an edit, or one that was read from a file and is not made yet."""

    @property
    def path(self) -> str:
        """The envoy on which it was made."""

    def made(self, model: "Envoy") -> "Edit":
        """The edit itself, to be run in a model."""


@dataclass(frozen=True, slots=True)
class Place:
    """An envoy among the names that an edit reads: found again in whichever model the edit runs in."""

    path: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One stored edit.

    Attributes:
        path: The envoy on which it was made.
        function: Takes that envoy; or None for a captured block.
        template: The captured block, with its source.
        names: What the captured block reads, envoys of the model by their place.
        run: Runs the captured block in a scope.
        origin: A tree whose envoys the block uses, which no tree that it runs in descends from.
    """

    path: str
    function: Callable[[Any], Any] | None = None
    template: Template | None = None
    names: Mapping[str, object] | None = None
    run: Bound | None = None
    origin: "Tree | None" = None

    def made(self, model: "Envoy") -> "Edit":  # noqa: ARG002
        """Itself. See `Stored`."""
        return self

    def apply(self, model: "Envoy") -> None:
        """Run the edit's block in the run that this is called in."""
        try:
            if self.function is not None:
                self.function(_at(model, self.path))
                return
            assert self.template is not None
            assert self.names is not None
            assert self.run is not None
            names = {
                name: _at(model, value.path) if isinstance(value, Place) else value
                for name, value in self.names.items()
            }
            self.run(Scope(names, self.template.binds, self.run.__globals__))
        except NotReachedError:
            return  # a run of another part of the model: an edit acts where it can


def _at(model: "Envoy", path: str) -> Any:
    root = model.root
    return root.get(path.partition(".")[2])


class EditBlock:
    """`with model.edit() as edited:`: keeps its block for every later run."""

    def __init__(self, envoy: "Envoy", inplace: bool) -> None:
        self._envoy = envoy
        self._inplace = inplace
        self._edited: Envoy | None = None
        self._body: Body | None = None

    def __enter__(self) -> "Envoy":
        try:
            self._body = capture(sys._getframe(1))
        except BaseException as failed:
            trim(failed)
            raise
        self._edited = target(self._envoy, self._inplace)
        self._body.skip()
        return self._edited

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        body, edited, self._body, self._edited = self._body, self._edited, None, None
        if body is None or edited is None or not body.left(error, edited):
            return False
        trees = (edited._tree, *edited._tree.lineage)
        names = {name: _place(value, trees) for name, value in body.before().items()}
        edited._tree.edits.append(Edit(self._envoy._path, None, body.template, names, body.bind()))
        return True


def _place(value: object, trees: tuple["Tree", ...]) -> object:
    tree = value.__dict__.get("_tree") if hasattr(value, "__dict__") else None
    if tree is not None and any(tree is known for known in trees):
        path = value.__dict__.get("_path")
        return Place(path) if isinstance(path, str) else value
    return value


def target(envoy: "Envoy", inplace: bool) -> "Envoy":
    """The envoy that an edit is kept on: this one, or the same place in a copy that shares the weights."""
    if inplace:
        return envoy
    root = envoy.root
    twin = copy.copy(root)
    twin._tree.edits = list(root._tree.edits)
    found = twin.get(envoy._path.partition(".")[2])
    if found is not twin:
        found.__dict__.setdefault("_held_root", twin)
    return found  # type: ignore[no-any-return]


_WANTED = (
    "An edit is a function of one argument, the model, not {}.\n"
    "Write `model.edit(lambda model: ...)`, or `with model.edit() as edited:`."
)


def edit(envoy: "Envoy", function: Callable[[Any], Any] | None, inplace: bool) -> Any:
    """Store a function as an edit, or open the block of one."""
    if function is None:
        return EditBlock(envoy, inplace)
    check_function(function, (envoy,), _WANTED)
    edited = target(envoy, inplace)
    edited._tree.edits.append(Edit(envoy._path, function))
    return edited


def clear(envoy: "Envoy") -> None:
    """Drop the edits that are stored on an envoy."""
    edits = envoy._tree.edits
    edits[:] = [stored for stored in edits if stored.path != envoy._path]


def worker(trace: "Trace", stored: Stored) -> Worker:
    """A worker for a stored edit, over the whole batch."""
    made = stored.made(trace.model)
    trees = (*trace._trees, *older(trace, made))
    return Worker(trace, lambda: _apply(trace, made), None, f"the edit of `{made.path}`", trees, None)


def _apply(trace: "Trace", stored: Edit) -> None:
    if not trace._paced:
        stored.apply(trace.model)
        return
    for _ in trace._here().iter[:]:  # a method such as `generate`: in each of its forwards, as a hook would
        stored.apply(trace.model)


def older(trace: "Trace", stored: Edit) -> tuple["Tree", ...]:
    """The other trees with whose envoys an edit may have been written."""
    lineage = trace._tree.lineage
    return lineage if stored.origin is None else (*lineage, stored.origin)


class Edited(Run):
    """A run whose block is a stored edit. An error of the model is the caller's, and not for the edit to see."""

    __slots__ = ()

    def nothing_came(self, site: Site, port: Port, number: int) -> NotReachedError:
        """The error that says why the model has ended without a visit. See `Run.nothing_came`."""
        if self.switch.error is not None:
            raise RunEnded
        return super().nothing_came(site, port, number)


def replay(trace: "Trace", stored: Edit) -> None:
    """Run a stored edit as the block of a trace, whose run is an `Edited`: it needs no stack of its own."""
    run, mine = trace._running, ambient.read()
    try:
        contextvars.copy_context().run(_apply, trace, stored)  # what it sets there is its own
    except (RunEnded, Exception):
        if run.switch.error is None:
            raise
    finally:
        now = ambient.read()
        if now != mine:  # nor is what it has switched on or off the caller's
            ambient.swap(now, mine)
    if (error := run.switch.error) is not None:
        if str(error) == IN_TRANSFORM:
            note = "A stored edit can ask for it in a trace: `with model.trace(...):`, whose block may be `pass`."
            error.__dict__.setdefault("__notes__", []).append(note)
        run._close()
