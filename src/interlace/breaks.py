"""Break points: open the debugger when the model comes to a site, or to its first nan.

The debugger is whatever `breakpoint()` opens. It finds itself at the line of the model's code that makes the
call, with the names that this code sees, and `value` beside them; what `value` is afterwards is what the
model goes on with.
"""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from torch import nn

from interlace.errors import InterlaceWarning, NotReachedError, OrderError, TraceError
from interlace.finite import NonFinite, Search
from interlace.frames import code_at
from interlace.run import Run
from interlace.site import Port, Site, Visit
from interlace.switch import waiting
from interlace.trees import describe

_HERE = f"{Path(__file__).parent}/"
_TORCH = "torch/nn/modules/module.py"


class Break(Protocol):
    """A break point."""

    def set(self, run: Run) -> None:
        """Have it act in a run."""


@dataclass(frozen=True, slots=True)
class AtVisit:
    """A break point at one visit of a site."""

    site: Site
    port: Port
    number: int

    def set(self, run: Run) -> None:
        """Have it act in a run."""
        seen: list[bool] = []

        def reached(visit: Visit) -> None:
            if visit.number == self.number:
                seen.append(True)
                stop(visit, self.site.at(self.port, self.number))

        def ended() -> None:
            if not (seen or run.stopped or run.switch.ending or run.switch.error):
                warnings.warn(
                    f"The break point at {self.site.at(self.port, self.number)} was not reached.",
                    InterlaceWarning,
                    stacklevel=2,
                )

        if run.switch.done:
            raise NotReachedError(run._missed(self.site, self.port, self.number))
        if (run.starts if self.port == "input" else run.ends)[self.site.key] > self.number:
            raise OrderError(run._passed(self.site, self.port, self.number))
        run.watch(self.site.key, self.port, reached)
        run.at_end.append(ended)


@dataclass(frozen=True, slots=True)
class AtNonFinite:
    """A break point where the model first makes something that is not finite."""

    modules: dict[Any, tuple[str, nn.Module]]
    root: Any

    def set(self, run: Run) -> None:
        """Have it act in a run."""

        def found(what: NonFinite, visit: Visit) -> None:
            stop(visit, str(what))

        search_in(run, Search(self.modules, self.root, True, found))


def break_at(trace: Any, at: Any, number: int, port: Port | None, nonfinite: bool, frame: FrameType) -> Break:
    """The break point that `tracer.break_at(...)` asks for from `frame`."""
    if (at is None) is not nonfinite:
        raise TraceError(
            "A break point is at one place.\n"
            "Write `tracer.break_at(model.h[3])`, or `tracer.break_at(nonfinite=True)`."
        )
    model = trace.model
    if nonfinite:
        return AtNonFinite(model._tree.named(), model._site.key)
    if isinstance(at, str):
        at, said = _follow(model.root, at)
        port = port or said
    port = port or "output"
    site = getattr(at, "_site", None)
    if callable(site):  # an operation
        site = site(port, frame)[1]
    if not isinstance(site, Site):
        raise TraceError(
            f"A break point is at an envoy, an operation or a path, not at {describe(at)}.\n"
            "Write `tracer.break_at(model.h[3])`, without `.output`: that would ask for the value now."
        )
    if getattr(at, "_fused", False):
        trace._unfuse(at._module)
    return AtVisit(site, port, number)


def _follow(root: Any, path: str) -> tuple[Any, Port | None]:
    """What a path names, and the port at its end."""
    parts = [part for part in path.replace("[", ".").replace("]", "").split(".") if part]
    if parts and parts[0] == root.path and parts[0] not in root._module._modules:
        del parts[0]
    last = parts[-1].removeprefix("nns_") if parts else ""
    if last not in ("input", "inputs", "output"):
        return root.get(".".join(parts)), None
    above = root.get(".".join(parts[:-1]))
    if parts[-1] in getattr(getattr(above, "_module", None), "_modules", ()):
        return root.get(".".join(parts)), None  # a submodule that is called so
    return above, "output" if last == "output" else "input"


def search_in(run: Run, search: Search) -> None:
    """Let a search watch every module of a run."""
    for key in search.modules:
        run.watch(key, "input", search.enter)
        run.watch(key, "output", search.leave)


def stop(visit: Visit, where: str) -> None:
    """Open the debugger at a visit; `value` there is what the model goes on with."""
    frame = _caller(sys._getframe(1))
    names = dict(frame.f_locals)
    value = visit.result if visit.port == "output" else (visit.args, visit.kwargs)
    names.update(value=value, where=where, _breakpointhook=sys.breakpointhook)
    print(f"interlace: {where}", file=sys.stderr)  # noqa: T201  (a debugger talks to the terminal)
    exec(code_at("_breakpointhook()", frame), frame.f_globals, names)
    if names["value"] is value:
        return
    if visit.port == "output":
        visit.result = names["value"]
    else:
        visit.args, visit.kwargs = names["value"]


def _caller(frame: FrameType) -> FrameType:
    """The model's code that makes the call; for a call that the trace made, the block's line that waits."""
    here: FrameType | None = frame
    while here is not None and _is_between(here):
        here = here.f_back
    if here is None:
        here = waiting()
    while here is not None and _is_between(here) and here.f_back is not None:
        here = here.f_back
    assert here is not None
    return here


def _is_between(frame: FrameType) -> bool:
    """Whether a frame is the library's, or torch's way of calling a module."""
    file = frame.f_code.co_filename
    return file.startswith(_HERE) or file.endswith(_TORCH)
