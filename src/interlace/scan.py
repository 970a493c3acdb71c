"""What `with model.scan(...):` opens: a trace on tensors without values, and what is read after it.

Both sides, block and model, run on `fakes`. The input is prepared for real, for it may be text; what the run
leaves in the model is taken back; what every module was called with and gave stays in the tree, by path.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interlace.calls import Function, Given, Input, resolve
from interlace.errors import ScanError
from interlace.fakes import Fakes, counting, is_here
from interlace.rows import Rows
from interlace.run import Run
from interlace.site import Port, Visit
from interlace.snapshot import Snapshot
from interlace.tap import SLOT
from interlace.trace import Trace
from interlace.trees import map_leaves, map_tensors
from interlace.valueless import NO_VALUES, said, unwound
from interlace.workers import Worker

if TYPE_CHECKING:
    from interlace.envoy import Envoy
    from interlace.tree import Tree


class Faked(Given):
    """What a scan was opened with: the input is prepared for real, and handed on without its values."""

    __slots__ = ("before", "fakes", "opens")

    loads = False

    fakes: Fakes
    before: Snapshot

    def combined(self, inputs: list[Input]) -> tuple[Callable[[], Any], list[Rows]]:
        """The call on the inputs of several prompts, and the rows of each."""
        with self.fakes.off():
            return super().combined(inputs)

    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Input:
        with self.fakes.off():
            return super()._prepared(args, kwargs)

    def _placed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        self.before.add((args, kwargs))
        moves = self.envoy._tree.device() is not None
        with self.fakes.off():
            args, kwargs = map_tensors(lambda tensor: self.fakes.given(tensor, moves), (args, kwargs))
        return partial(resolve(self.envoy, self.fn), *args, **kwargs)


class Scan(Trace):
    """A trace of a model in which tensors have a shape, a dtype and a device, and no values.

    Args:
        model: The envoy to scan.
        fn: What to run in place of the module's own call.
        args: What it is called with.
        kwargs: Likewise.
    """

    _opened_by = "scan"
    _fakes: Fakes | None = None
    _snapshot: Snapshot | None = None
    _stance: Any = None

    def __init__(self, model: "Envoy", fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given = Faked(model, fn, args, kwargs)
        self._given.opens = self._opened_by
        self._seen: dict[Any, Visit] = {}
        super().__init__(model, model._tree, self._given, fn is not None)

    @property
    def _waits(self) -> bool:
        """Whether its input may come from `tracer.invoke(...)`."""
        return self._given.waits

    def _again(self) -> "Scan":
        """Another scan of the same, with the result of this one."""
        given = self._given
        scan = type(self)(given.envoy, given.fn, given.args, given.kwargs)
        scan._result, scan._no_result = self._result, self._no_result
        return scan

    def __enter__(self) -> "Scan":
        try:
            if self._call is not None:
                self._fakes = self._given.fakes = Fakes(_destination(self._tree))
                self._snapshot = self._given.before = Snapshot(self._tree.taps().modules)
                self._fakes.__enter__()
                self._stance = _uncompiled(self._tree.taps().modules)
            super().__enter__()
            return self
        except BaseException:
            try:
                self._drop()
            finally:
                self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
            self._leave()
        except BaseException:
            try:
                self._drop()
            finally:
                self._leave()  # an interrupt may have fallen into it: what is done again does no harm
            raise

    def __del__(self) -> None:
        super().__del__()
        if getattr(self, "_thread", None) == threading.get_ident():
            self._leave()

    def _begin(self, call: Callable[[], Any], blocks: Sequence[Worker] = ()) -> Run:
        run = super()._begin(partial(_on_models_side, call), blocks)
        for module in self._tree.taps().modules:
            for port in PORTS:
                run.watch(id(module), port, self._record)
        return run

    def _record(self, visit: Visit) -> None:
        """Keep the first visit of every module: what it was called with, and what it gave."""
        self._seen.setdefault(visit.key, visit)
        if self._fakes is not None:
            self._without_stale(visit, self._fakes)

    def _without_stale(self, visit: Visit, fakes: Fakes) -> None:
        """Let nobody see values that are no longer right."""
        visit.args, visit.kwargs = map_tensors(fakes.settled, (visit.args, visit.kwargs))
        visit.result = map_tensors(fakes.settled, visit.result)

    def _leave(self) -> None:
        fakes, before = self._fakes, self._snapshot
        if fakes is None or before is None:
            return
        try:
            self._tell(fakes)
        finally:
            fakes.__exit__()
            stance, self._stance = self._stance, None
            if stance is not None:
                stance.__exit__(None, None, None)
            fakes.forget()
            before.put_back()
            self._seen.clear()
            self._fakes = self._snapshot = None

    def _tell(self, fakes: Fakes) -> None:
        """Let the tree know what was seen, in place of what an earlier scan of the same modules saw."""
        if not self._seen:
            return
        tree, keep = self._tree, Keep(fakes)
        kept = {key: keep.visit(visit) for key, visit in self._seen.items() if visit.port == "output"}
        top = self.model._path
        others = {
            path: visit
            for path, visit in tree.shapes.items()
            if path != top and not path.startswith(top + ".")
        }
        tree.shapes = others | {path: kept[key] for path, key in _paths(tree) if key in kept}


PORTS: tuple[Port, ...] = ("input", "output")


def _on_models_side(call: Callable[[], Any]) -> Any:
    """Run the model; what it makes to count with has values here, and nothing else has."""
    counting.set(True)  # in the context of the model's stack, which ends with it
    try:
        return call()
    except NO_VALUES as error:
        raise ScanError(said(error, str(getattr(error, "func", "")), unwound(error))) from None


def _uncompiled(modules: Iterable[nn.Module]) -> Any:
    """Have the compiled parts of a model run as they are written, as a compiler would trace this scan into them.

    The setting is the process's: a second scan at a time leaves it to the first one.
    """
    slots = (module.__dict__.get(SLOT) for module in modules)
    compiled = any(slot is not None and not hasattr(slot, "tap") for slot in slots)
    compiled = compiled or any(hasattr(module, "_orig_mod") for module in modules)
    if not compiled or not hasattr(torch.compiler, "set_stance"):
        return None
    from torch._dynamo import eval_frame  # heavy, and there already where something is compiled

    return None if eval_frame._stance.stance == "force_eager" else torch.compiler.set_stance("force_eager")


def _destination(tree: "Tree") -> torch.device:
    """Where a model is, or will be when it has its weights."""
    device = tree.device()
    if device is not None and device.type != "meta":
        return device
    asked = getattr(tree.loader, "keywords", {}).get("device_map")
    if isinstance(asked, dict):
        asked = next(iter(asked.values()), None)
    if isinstance(asked, str) and asked in SPREAD:
        asked = "cuda"
    elif asked is None or asked == "disk":
        asked = torch.get_default_device()
    found = torch.device(asked)
    return found if is_here(found) else torch.device("cpu")


SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread a model over the devices that are there."""


def _paths(tree: "Tree") -> Iterator[tuple[str, int]]:
    """Every path of every module, by which key it is known to a run."""
    roots = {tree.path: tree.module, **tree.strays}
    roots.update({f"{tree.path}.{name}": module for name, module in tree.extras.items()})
    for path, root in roots.items():
        for name, module in root.named_modules(remove_duplicate=False):
            yield f"{path}.{name}" if name else path, id(module)


class Keep:
    """Values that outlive a scan: of each tensor its shape, dtype and device, of objects around them a copy."""

    def __init__(self, fakes: Fakes) -> None:
        self._fakes = fakes
        self._made: dict[int, tuple[Any, Any]] = {}

    def visit(self, visit: Visit) -> Visit:
        """A visit with such values."""
        kept = Visit(visit.key, visit.number, self.value(visit.args), self.value(visit.kwargs))
        kept.port, kept.result, kept.skipped = "output", self.value(visit.result), visit.skipped
        return kept

    def value(self, value: Any) -> Any:
        """Such a value."""
        return map_leaves(self._leaf, value)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, ATOMS):
            return value
        held = self._made.get(id(value))
        if held is None:
            self._made[id(value)] = (value, value)  # an object that holds itself ends here
            made = self._fakes.kept(value) if isinstance(value, torch.Tensor) else self._object(value)
            held = self._made[id(value)] = (value, made)
        return held[1]

    def _object(self, value: Any) -> Any:
        """A copy of an object that holds tensors (a cache of keys and values), else the object itself."""
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict):
            return value
        parts = {name: self.value(part) for name, part in own.items()}
        if all(part is own[name] for name, part in parts.items()):
            return value
        copy = object.__new__(type(value))
        copy.__dict__.update(parts)
        return copy


ATOMS = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    nn.Module,
    FunctionType,
    torch.dtype,
    torch.device,
)
"""What holds no activations."""
