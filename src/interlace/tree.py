"""What all envoys of one model share: the modules and their taps, the open traces, who an envoy's class is.

It holds no envoy strongly, so that no cycle keeps a model alive.
"""

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interlace import fakes, ingrad
from interlace.compiled import quick
from interlace.errors import NotReachedError, OutsideTraceError, ThreadError, TraceError
from interlace.frames import Opened, Owner
from interlace.operators import Inside
from interlace.recall import Key, gone, revive, tensors
from interlace.selection import Outline
from interlace.site import Past, Port, Site, Visit, spell
from interlace.switch import OPERATORS, carried, pass_dynamo
from interlace.tap import Taps

if TYPE_CHECKING:
    from interlace.edit import Stored
    from interlace.envoy import Envoy
    from interlace.rename import Names
    from interlace.trace import Trace


REMEMBERED = 16
"""Of how many traces a tree remembers, weakly, what was read in them."""


def _children(module: nn.Module) -> dict[str, Any]:
    """The dictionary that holds the children of a module; scripted modules wrap it."""
    held: Any = module._modules
    return getattr(held, "_python_modules", held)  # type: ignore[no-any-return]


def _are_same(leaves: list[dict[str, Any]], inner: list[dict[str, Any]], kids: list[dict[str, Any]]) -> bool:
    """Whether modules that had no children have none, and the others those that they had."""
    return not any(leaves) and inner == kids


_same = _are_same if quick is None else quick.same


class Tree:
    """The shared state of the envoys of one model.

    Attributes:
        module: The module at the root.
        path: The name of the root in paths.
        envoys: The envoys that exist, by path; children are made when first asked for.
        names: Aliases and envoy classes.
        edits: What every run replays before its own block, in order.
        shapes: What a scan saw at each module, by path.
        loader: Makes the module with its weights, while only its shape is there.
        extras: Sites that the model itself has no module for, by the name that they have at the root.
        strays: Modules that torch does not know as children, by the path at which they were reached.
        kind: The class of the root.
        lineage: The trees that it is a copy of; edits were written with their envoys.
        hub: Where on a hub of models the model is from.
        state: What was assigned to the root, so that one made again has it.
    """

    def __init__(self, module: nn.Module, path: str, names: "Names") -> None:
        self.module = module
        self.path = path
        self.names = names
        self.envoys: weakref.WeakValueDictionary[str, Envoy] = weakref.WeakValueDictionary()
        self.shapes: dict[str, Any] = {}
        self.edits: list[Stored] = []
        self.extras: dict[str, nn.Module] = {}
        self.loader: Callable[[], nn.Module] | None = None
        self.strays: dict[str, nn.Module] = {}
        self.kind: type[Envoy] | None = None
        self.lineage: tuple[Tree, ...] = ()
        self.hub: Any = None
        self.state: dict[str, Any] = {}
        self._open: dict[int, Opened] = {}
        self._taps: Taps | None = None
        self._outline: tuple[Taps, Outline] | None = None
        self._read: deque[dict[Key, Any]] = deque(maxlen=REMEMBERED)
        self._leaves: list[dict[str, Any]] = []
        self._inner: list[dict[str, Any]] = []
        self._kids: list[dict[str, Any]] = []
        self._parameter: tuple[dict[str, nn.Parameter | None], str] | None = None

    def twin(self) -> "Tree":
        """A tree of the same modules and names, with envoys and traces of its own."""
        tree = Tree(self.module, self.path, self.names)
        tree.loader, tree.kind, tree.hub = self.loader, self.kind, self.hub
        tree.shapes, tree.extras = dict(self.shapes), dict(self.extras)
        tree.edits = list(self.edits)
        tree.lineage = (self, *self.lineage)
        tree.strays, tree.state = dict(self.strays), dict(self.state)
        return tree

    # -- open traces -----------------------------------------------------------------------------------------

    def opened(self, owner: Owner, trace: "Trace") -> None:
        """A trace begins to serve the requests of its owner's frame."""
        key = owner.key
        self._open[key] = Opened(owner.code, weakref.ref(trace), self._open.get(key))

    def closed(self, owner: Owner, trace: "Trace") -> None:
        """A trace serves no more requests."""
        others: list[Opened] = []
        opened = self._open.get(owner.key)
        while opened is not None:
            if opened.trace() not in (trace, None):
                others.append(opened)
            opened = opened.before
        for other in reversed(others):
            opened = Opened(other.code, other.trace, opened)
        if opened is not None:
            self._open[owner.key] = opened
        else:
            self._open.pop(owner.key, None)

    def trace_at(self, frame: FrameType | None) -> "Trace | None":
        """The open trace whose owner is nearest outward from `frame`."""
        found, inside = self._open, False
        while frame is not None and found:
            opened = found.get(id(frame))
            while opened is not None:
                trace = opened.trace()
                if trace is not None and opened.code is frame.f_code:
                    return Inside(trace) if inside else trace  # type: ignore[return-value]
                opened = opened.before
            inside = inside or frame.f_code.co_filename in OPERATORS
            frame = frame.f_back
        return None

    def trace_for(self, frame: FrameType | None, what: str, only: str = "inside a trace") -> "Trace":
        """Like `trace_at`, or the error that says why there is none, and where `what` exists."""
        trace = self.trace_at(frame)
        if trace is not None:
            return trace
        traces = [trace for opened in list(self._open.values()) for trace in opened.all()]
        here = threading.get_ident()
        if any(trace is not None and trace._thread != here for trace in traces):
            raise ThreadError(
                f"{what} was asked for in another thread than the one whose trace is open.\n"
                "Open a trace in each thread: they do not disturb each other."
            )
        if carried() is not None:
            raise TraceError(
                f"{what} was asked for from inside the model's own run (a hook, or code of the model).\n"
                "Ask for it in the block of the trace."
            )
        raise OutsideTraceError(
            f"{what} exists only {only}.\n"
            f"Write `with {self.path}.trace(...):` around this line."
            + (" A trace that is open belongs to another frame." if traces else "")
        )

    @property
    def busy(self) -> bool:
        """Whether any trace of this model is open."""
        return any(trace is not None for opened in list(self._open.values()) for trace in opened.all())

    # -- what was read -----------------------------------------------------------------------------------------

    def remember(self, reads: dict[Key, Any]) -> None:
        """A trace that read these is over."""
        self._read.append(reads)

    def recalled(self, frame: FrameType | None, site: Site, port: Port, number: int) -> Visit | None:
        """What was read at a visit, for a block of `il.backward`; None where no such block stands here.

        Raises:
            NotReachedError: No trace read it, nothing kept it, or the backward does not depend on it.
            TraceError: Several traces read it, and the backward depends on more than one of them.
        """
        backward = ingrad.current(frame)
        if backward is None:
            return None
        trace, key = self.trace_at(frame), (site.key, number, port)
        open_reads = [trace._run.reads] if trace is not None and trace._run is not None else []
        where = f"{spell(site.path)}.{port}"
        for group in (open_reads, list(self._read)):
            known = [reads[key] for reads in group if key in reads]
            found = [weak for weak in known if any(map(backward.depends, tensors(weak)))]
            if len(found) > 1:
                raise TraceError(
                    f"`{where}` was read by {len(found)} blocks, and this backward depends on more than one of them.\n"
                    "Keep the tensor that you mean under a name, and ask that name for its `.grad`."
                )
            if found:
                return _read_again(site, port, number, revive(found[0], where), where)
            if any(tensors(weak) for weak in known):
                raise NotReachedError(
                    f"No gradient flows to what was read at `{where}`: the backward does not depend on it."
                )
            if known:
                raise NotReachedError(gone(where))
        raise NotReachedError(
            f"`{where}` was not read with gradients in a trace, so it has none here.\n"
            "Read it in the trace, and keep it under a name."
        )

    # -- modules ---------------------------------------------------------------------------------------------

    def taps(self) -> Taps:
        """The taps of all modules, renewed when the model's structure has changed."""
        taps = self._taps
        if taps is None or not _same(self._leaves, self._inner, self._kids):
            taps = self._survey()
        return taps

    def _survey(self) -> Taps:
        roots = (self.module, *self.extras.values(), *self.strays.values())
        modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        for module in modules:
            if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
                raise TraceError(
                    "nn.DataParallel runs copies of the model in threads of its own, which no trace can "
                    "follow.\nWrap the module inside it (`.module`); to spread a model over devices, use "
                    "device_map."
                )
        if "torch._dynamo" in sys.modules:  # a part of the model may be compiled
            pass_dynamo()
        held = [_children(module) for module in modules]
        self._leaves = [children for children in held if not children]
        self._inner = [children for children in held if children]
        self._kids = [dict(children) for children in self._inner]
        owners = ((held._parameters, name) for held in modules for name in held._parameters.keys())  # noqa: SIM118
        self._parameter = next(((held, name) for held, name in owners if held[name] is not None), None)
        self._follow()
        if self._taps is not None:
            self.names.settle(self)
        self._taps = Taps(modules)
        return self._taps

    def named(self) -> dict[int, tuple[str, nn.Module]]:
        """Every module by the key of its site, with the first path that leads to it."""
        roots = {self.path: self.module}
        roots.update({f"{self.path}.{name}": module for name, module in self.extras.items()}, **self.strays)
        found: dict[int, tuple[str, nn.Module]] = {}
        for top, root in roots.items():
            for name, module in root.named_modules():
                found.setdefault(id(module), (f"{top}.{name}" if name else top, module))
        return found

    def outline(self) -> Outline:
        """The names in the model, renewed when its structure has changed."""
        taps = self._taps if self._taps is not None else self.taps()
        if self._outline is None or self._outline[0] is not taps:
            self._outline = taps, Outline.of(self)
        return self._outline[1]

    def device(self) -> torch.device | None:
        """The device of the first parameter, or None for a model that has none."""
        if self._parameter is not None:
            held, name = self._parameter
            parameter = held[name] if name in held else None  # noqa: SIM401
            if parameter is not None:
                return parameter.device
        elif self._taps is not None:
            return None
        first = next(self.module.parameters(), None)
        return None if first is None else first.device

    def find(self, path: str) -> nn.Module:
        """The module at a path that starts at the root."""
        module: Any = self.module
        parts = path.split(".")[1:]
        if parts and parts[0] in self.extras:
            module = self.extras[parts.pop(0)]
        for part in parts:
            held = module._modules
            found = held[part] if part in held else None  # noqa: SIM401  (scripted modules have no `get`)
            module = found if found is not None else getattr(module, part)
        return module  # type: ignore[no-any-return]

    def load(self) -> None:
        """Put the real weights in place, where only the shape of the model is there yet; a scan needs none."""
        if self.loader is not None and not fakes.active():
            module, self.loader = self.loader(), None
            self.repoint(module)

    def repoint(self, module: nn.Module) -> None:
        """Let the envoys that exist stand for the modules of the same names under another root."""
        self.module = module
        self._parameter = None
        self._follow()
        self.names.settle(self)
        self._taps = None

    def _follow(self) -> None:
        """Let every envoy stand for the module that now has its name; forget those whose name is gone."""
        for path, envoy in sorted(self.envoys.items()):
            try:
                module = self.find(path)
            except (AttributeError, KeyError):
                self.envoys.pop(path, None)
                above = self.envoys.get(path.rpartition(".")[0])
                if above is not None:
                    above.__dict__.pop(path.rpartition(".")[2], None)
            else:
                if envoy._module is not module:
                    envoy._point(module)

    def stray(self, path: str, module: nn.Module) -> None:
        """Know a module that torch does not know as a child of the one that led to it."""
        if self.strays.get(path) is not module:
            self.strays[path] = module
            self._taps = None

    def envoy(self, path: str, make: Callable[[], "Envoy"]) -> "Envoy":
        """The envoy at a path; made when nobody holds one."""
        found = self.envoys.get(path)
        if found is None:
            found = self.envoys[path] = make()
        return found


def _read_again(site: Site, port: Port, number: int, value: Any, where: str) -> Past:
    visit = Visit(site.key, number, (value,) if port == "input" else (), {})
    visit.port, visit.result = port, value if port == "output" else None
    return Past(visit, f"`{where}`")
