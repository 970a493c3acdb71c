"""The ordinary case of a request in C: what `csrc/` is told of the classes and functions that it works with.

Each of its functions does what one of Python's does, for the case that is met nearly always, and calls that one
for every other. So this library is read, debugged and changed in Python, and is the same without a compiler.
"""

import functools
import sys
from typing import Any

import torch

from interlace import (
    ambient,
    batch,
    calls,
    edit,
    frames,
    invoke,
    passing,
    pieces,
    recompute,
    rows,
    run,
    schedule,
    served,
    site,
    steps,
    switch,
    tap,
    trace,
    tree,
    workers,
    writes,
)
from interlace.capture import body, family, scope, skip
from interlace.compiled import quick
from interlace.config import config
from interlace.errors import NotReachedError, OrderError, RunEnded

METHODS: dict[str, tuple[type, str]] = {
    "run_init": (run.Run, "__init__"),
    "model": (run.Run, "_model"),
    "finish": (run.Run, "finish"),
    "seen": (run.Run, "seen"),
    "report": (run.Run, "report"),
    "ask": (run.Run, "ask"),
    "ahead": (run.Run, "ahead"),
    "number": (steps.Steps, "number"),
    "advance": (steps.Steps, "advance"),
    "switch_init": (switch.Switch, "__init__"),
    "execute": (switch.Switch, "_execute"),
    "resume": (switch.Switch, "resume"),
    "pause": (switch.Switch, "pause"),
    "opened": (tree.Tree, "opened"),
    "closed": (tree.Tree, "closed"),
    "worker_init": (workers.Worker, "__init__"),
    "serve": (workers.Worker, "_serve"),
    "worker_ask": (workers.Worker, "ask"),
    "worker_leave": (workers.Worker, "leave"),
    "turns": (schedule.Schedule, "_turns"),
    "reached": (schedule.Schedule, "reached"),
    "placed": (calls.Called, "_placed"),
    "given_call": (calls.Given, "__call__"),
    "combined": (calls.Given, "combined"),
    "install": (tap.Taps, "install"),
    "remove": (tap.Taps, "remove"),
    "begin": (trace.Trace, "_begin"),
    "close": (trace.Trace, "_close"),
    "leave_run": (trace.Trace, "_leave_run"),
    "invoke_init": (invoke.Invoke, "__init__"),
    "part": (trace.Trace, "_part"),
    "trace_del": (trace.Trace, "__del__"),
    "schedule_init": (schedule.Schedule, "__init__"),
    "invoke_enter": (invoke.Invoke, "__enter__"),
    "invoke_exit": (invoke.Invoke, "__exit__"),
    "bound_call": (body.Bound, "__call__"),
    "settled": (scope.Scope, "_il_settled_"),
    "family_close": (family.Family, "close"),
}
"""The functions of C that take the place of methods, which they call for every other case."""


def hasten(kind: Any, lists: frozenset[type]) -> None:
    """Let the class of envoys ask in C, where that is there.

    Args:
        kind: The class; its own properties serve all other cases.
        lists: Classes of modules whose children are named by their index.
    """
    if quick is None:
        return
    output, taken = kind.output, kind.input
    own = property(quick.get_output, quick.set_output, doc=output.__doc__)
    methods = dict(METHODS, set_attr=(kind, "__setattr__"), get_item=(kind, "__getitem__"))
    known = dict(
        Run=run.Run,
        Edited=edit.Edited,
        Served=served.Served,
        Tally=run.Tally,
        Everything=run.Everything,
        Worker=workers.Worker,
        Schedule=schedule.Schedule,
        RowVisit=pieces.RowVisit,
        Piece=pieces.Piece,
        Rows=rows.Rows,
        Counts=run.Counts,
        NOBODY=run.NOBODY,
        Switch=switch.Switch,
        Home=switch.Home,
        Visit=site.Visit,
        Site=site.Site,
        Opened=frames.Opened,
        Tensor=torch.Tensor,
        RunEnded=RunEnded,
        NotReached=NotReachedError,
        OrderError=OrderError,
        gettrace=sys.gettrace,
        TURN=switch.TURN,
        here=tap.here,
        operators=switch.OPERATORS,
        visit=trace.Trace._visit,
        remember=run.remember,
        replace=writes.replace,
        property=own,
        config=config,
        get_output=output.fget,
        set_output=output.fset,
        get_input=taken.fget,
        LISTS=lists,
        Owner=frames.Owner,
        Given=calls.Given,
        Taps=tap.Taps,
        prepare_input=kind._prepare_input,
        combine=kind._combine,
        copies=kind._copies,
        lock=tap._lock,
        SLOT=tap.SLOT,
        idle=tap._IDLE,
        Changes=recompute.Changes,
        Passing=passing.Passing,
        Steps=steps.Steps,
        Step=steps.Step,
        Invoke=invoke.Invoke,
        Prompts=invoke.Prompts,
        Body=body.Body,
        Template=body.Template,
        Bound=body.Bound,
        Scope=scope.Scope,
        Family=family.Family,
        templates=body._templates,
        Skipped=skip.Skipped,
        partial=functools.partial,
        forget_skip=body._forget_skip,
        owner=frames.owner,
        contextlib=frames._CONTEXTLIB,
        enters=frames._ENTERS,
        concatenate=batch.concatenate,
        join=pieces.join,
        cat=torch.cat,
        strided=torch.strided,
        guard=switch._guard,
        homes=switch._homes,
        GreenletExit=switch.GreenletExit,
        work=switch.work,
        far=switch.FAR,
        deep=switch.DEEP,
        kept=switch.KEPT,
        apply=recompute._APPLY,
        **ambient.READERS,
        **{name: getattr(owner, method) for name, (owner, method) in methods.items()},
    )
    try:
        quick.learn(**known)
    except TypeError as error:
        raise ImportError(
            f"The compiled part of interlace is of another version ({error}).\n"
            "Install it again: `pip install -e .`, or `make` in its folder; or set INTERLACE_COMPILED=0."
        ) from error
    kind.output = own
    kind.input = property(quick.get_input, taken.fset, doc=taken.__doc__)
    batch.concatenate, frames.owner, switch.work = quick.concatenate, quick.owner, quick.work
    for name, (owner, method) in methods.items():
        setattr(owner, method, quick.method(getattr(quick, name)))
