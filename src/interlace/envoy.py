"""The stand-in of one module: navigation, and the values at its ports.

The tree of envoys mirrors the tree of modules and is made as it is walked. An envoy knows where it is and
asks the trace that its caller stands in; how a value is had, is not its business.
"""

import difflib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from interlace import batch, calls, edit
from interlace.batch import Batch, alone
from interlace.cache import chosen_ports
from interlace.edit import DEFAULT
from interlace.errors import InputError, InterlaceWarning, NameMissError, OutsideTraceError, nearest
from interlace.explain import Plan
from interlace.frames import with_follows
from interlace.keeping import Positions
from interlace.quick import hasten
from interlace.record import record
from interlace.recorder import Job
from interlace.recording import Recording
from interlace.rename import Aliases, Names
from interlace.repr import show
from interlace.scan import Scan
from interlace.selection import FUSED, Modules
from interlace.session import Session
from interlace.shards import SHARD_BYTES
from interlace.site import Port, Site, Visit, spell
from interlace.source.view import ForwardSource
from interlace.trace import Trace
from interlace.tree import Tree
from interlace.writes import replace, replace_first, replace_inputs

if TYPE_CHECKING:
    from interlace.typing import Activation

_OWN = frozenset({"_tree", "_module", "_path", "_site", "_fused", "__weakref__"})


class Envoy:
    """The stand-in of one module of a model.

    Child modules are envoys under the same names. Inside a trace, `output`, `input` and `inputs` are the real
    values at the visit that the trace is at; assigning to them replaces what the model goes on with.

    Args:
        module: The module to stand for.
        path: The name of the root in paths and messages.
        rename: Other names for modules: `{"h": "layers", ".transformer.h": ".blocks", "h.*.attn": "mixer"}`.
        envoys: An Envoy class for all modules, or a map from module class, path suffix or wildcard to one.

    Raises:
        RenameError: An alias would hide something, or a key is ambiguous.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> model = Envoy(net)
        >>> with model.trace(torch.ones(1, 2)):
        ...     hidden = model[0].output
        >>> hidden.shape
        torch.Size([1, 3])
    """

    envoys: Any = None
    """A default for the `envoys=` of this class of model."""

    _tree: Tree
    _module: nn.Module
    _path: str
    _site: Site
    _fused: bool

    def __init__(
        self, module: nn.Module, path: str = "model", rename: Aliases | None = None, envoys: Any = None
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"An envoy stands for a torch.nn.Module, not for {type(module).__name__}."
                + (" It is wrapped already." if isinstance(module, Envoy) else "")
                + (' A name goes to `il.LanguageModel("...")`.' if isinstance(module, str) else "")
            )
        envoys = type(self).envoys if envoys is None else envoys
        for cls in envoys.values() if isinstance(envoys, Mapping) else [envoys] if envoys is not None else []:
            if not (isinstance(cls, type) and issubclass(cls, Envoy)):
                raise TypeError(f"`envoys=` takes subclasses of Envoy, not {getattr(cls, '__name__', cls)}.")
        names = Names(rename, envoys, FEATURES)
        tree = Tree(module, path, names)
        tree.kind = type(self)
        self._stand(tree, module, path, False)
        tree.envoys[path] = self
        names.settle(tree)

    def _stand(self, tree: Tree, module: nn.Module, path: str, fused: bool) -> None:
        own = self.__dict__
        own["_tree"], own["_path"], own["_fused"] = tree, path, fused
        self._point(module)

    def _point(self, module: nn.Module) -> None:
        """Stand for another module of the same name from now on."""
        own = self.__dict__
        own["_module"], own["_site"] = module, Site(id(module), self._path)
        hidden = [name for name in module._modules.keys() if name in FEATURES]  # noqa: SIM118  (scripted)
        if hidden or "_hides" in vars(type(self)):
            plain = _plain(type(self))
            object.__setattr__(self, "__class__", _shadowed(plain, frozenset(hidden)) if hidden else plain)

    # -- values ----------------------------------------------------------------------------------------------

    def _at(self, port: Port, feature: str) -> Visit:
        """The visit that a request made two frames up means."""
        tree = self._tree
        trace = tree.trace_at(sys._getframe(2))
        if trace is None:
            trace = tree.trace_for(sys._getframe(2), f"`{spell(self._path)}.{feature}`")
        if self._fused:
            trace._unfuse(self._module)
        return trace._visit(self._site, port)

    @property
    def output(self) -> "Activation":
        """What the module returned: the live object, so that in-place edits reach the model.

        Raises:
            OutsideTraceError: No trace is open here, and no scan has been made.
            OrderError: The model has passed it.
            NotReachedError: The model ended without calling the module.
        """
        tree = self._tree
        trace = tree.trace_at(sys._getframe(1))
        if trace is None:
            return self._scanned("output", sys._getframe(1)).result  # type: ignore[no-any-return]
        if self._fused:
            trace._unfuse(self._module)
        return trace._visit(self._site, "output").result  # type: ignore[no-any-return]

    @output.setter
    def output(self, value: Any) -> None:
        tree, frame = self._tree, sys._getframe(1)
        trace = tree.trace_at(frame) or tree.trace_for(frame, f"`{spell(self._path)}.output`")
        if self._fused:
            trace._unfuse(self._module)
        visit = trace._visit(self._site, "output")
        visit.result = replace(visit.result, value, self._path, ".output")

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the module was called with: `(args, kwargs)`. Still at hand when its output has been read."""
        visit = self._visit_or_scan("inputs", sys._getframe(1))
        return visit.args, visit.kwargs

    @inputs.setter
    def inputs(self, value: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        replace_inputs(self._at_input("inputs", sys._getframe(1)), value, f"{self._path}.inputs")

    @property
    def input(self) -> "Activation":
        """The first positional argument of the call, else the first keyword one.

        Raises:
            IndexError: The module was called with nothing.
        """
        visit = self._visit_or_scan("input", sys._getframe(1))
        if visit.args:
            return visit.args[0]  # type: ignore[no-any-return]
        if visit.kwargs:
            return next(iter(visit.kwargs.values()))  # type: ignore[no-any-return]
        raise IndexError(
            f"`{spell(self._path)}` was called with no arguments, so it has no `input`; see `inputs`."
        )

    @input.setter  # noqa: A003
    def input(self, value: Any) -> None:
        visit = self._at_input("input", sys._getframe(1))
        if not replace_first(visit, value, f"{self._path}.input"):
            raise IndexError(
                f"`{spell(self._path)}` was called with no arguments, so there is no `input` to replace."
            )

    def _visit_or_scan(self, feature: str, frame: Any) -> Visit:
        trace = self._tree.trace_at(frame)
        if trace is None:
            return self._scanned("input", frame, feature)
        if self._fused:
            trace._unfuse(self._module)
        return trace._visit(self._site, "input")

    def _at_input(self, feature: str, frame: Any) -> Visit:
        trace = self._tree.trace_for(frame, f"`{spell(self._path)}.{feature}`")
        if self._fused:
            trace._unfuse(self._module)
        return trace._before(self._site)

    def _scanned(self, port: Port, frame: Any, feature: str = "output", of: "Envoy | None" = None) -> Visit:
        """What a scan saw, or what a backward asks for again; `feature` is of this envoy, or of another one."""
        recalled = self._tree.recalled(frame, self._site, port, 0)
        if recalled is not None:
            return recalled
        found = self._tree.shapes.get(self._path)
        if found is None:
            what = f"`{spell((of or self)._path)}.{feature}`"
            if not self._tree.shapes or self._tree.busy:
                self._tree.trace_for(frame, what, "inside a trace, or after a scan")
            raise OutsideTraceError(
                f"{what} was not reached by the last scan: the model has not called the module to the end.\n"
                f"Scan with an input for which it does, or the module itself: `{spell(self._path)}.scan(...)`."
            )
        return found  # type: ignore[no-any-return]

    def wait_for_output(self) -> None:
        """Let the model run until the module has returned."""
        self._at("output", "wait_for_output()")

    def wait_for_input(self) -> None:
        """Let the model run until the module is about to be called."""
        self._at("input", "wait_for_input()")

    def skip(self, replacement: Any) -> None:
        """Do not run the module; `replacement` becomes its output.

        Raises:
            OrderError: The module has been called already.
        """
        trace = self._tree.trace_for(sys._getframe(1), f"`{spell(self._path)}.skip()`")
        trace._skip(self._site, replacement)

    @property
    def source(self) -> ForwardSource:
        """The operations of the module's forward: calls, operators and assigned variables, by name.

        Raises:
            SourceError: The forward has no readable Python source, or is compiled.
        """
        return ForwardSource(self._tree, lambda: self._module, self._path)

    @property
    def interleaving(self) -> bool:
        """Whether a run of this model is in progress."""
        return self._tree.busy

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Call the module on the side: unseen by an open trace.

        With `hook=True`, inside a trace, the call counts as the module's next visit.
        """
        if hook:
            trace = self._tree.trace_for(sys._getframe(1), f"`{spell(self._path)}(..., hook=True)`")
            return trace._running.beside(self._site, self._module, args, kwargs)
        if self._tree.busy and self._tree.trace_at(sys._getframe(1)) is not None:
            return self._module(*args, **kwargs)
        return calls.plain(self, None, args, kwargs)

    # -- runs ------------------------------------------------------------------------------------------------

    def trace(
        self,
        *args: Any,
        fn: str | Callable[..., Any] | None = None,
        trace: bool | None = None,
        tracer_cls: type[Trace] = Trace,
        **kwargs: Any,
    ) -> Any:
        """Open a trace: `with model.trace(x):` runs the model and lets the block read and change it.

        Args:
            *args: What the module, or `fn`, is called with.
            fn: A method name or a callable to run in place of the module's own call.
            trace: False runs once, without a block, and returns the result.
            tracer_cls: A subclass of `Trace` to open.
            **kwargs: Like `args`.

        Raises:
            InputError: There is nothing to run on.
        """
        if trace is False:
            return calls.plain(self, fn, args, kwargs)
        if trace is not None:
            warnings.warn("`trace=True` is the default; leave it out.", DeprecationWarning, stacklevel=2)
        return tracer_cls(self, self._tree, calls.Given(self, fn, args, kwargs), fn is not None)

    def scan(self, *args: Any, fn: str | Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        """Like `trace`, without values: shapes, dtypes and devices, with no compute and no weights.

        Tensors in the block are torch's fake ones, those that it makes itself too. Afterwards `.output`,
        `.input` and `.inputs` of every module give what the scan saw at its first call, and the `repr` of the
        model shows it. Without a `with`, the model is scanned at once.

        Args:
            *args: What the module, or `fn`, is called with.
            fn: A method name or a callable to run in place of the module's own call.
            **kwargs: Like `args`.

        Raises:
            InputError: There is nothing to run on.
            ScanError: The model branches on the values of tensors.

        Example:
            >>> model = Envoy(nn.Sequential(nn.Linear(2, 3, device="meta"), nn.ReLU()))
            >>> with model.scan(torch.ones(1, 2)):
            ...     model[0].output += torch.zeros(3)
            >>> model[0].output.shape, model[0].output.dtype
            (torch.Size([1, 3]), torch.float32)
        """
        scan = Scan(self, fn, args, kwargs)
        if scan._waits or with_follows(sys._getframe(1)):
            return scan
        with scan:
            pass
        return scan._again()

    def explain(self, *args: Any, fn: str | Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        """What a block asks for, what that costs, and whether it works, before anything runs.

        `model.explain(function, x)` takes a function of this envoy, or of it and the trace;
        `with model.explain(x) as plan:` stands over a block. Both run under a scan of `x`.

        Returns:
            A plan: `requests` (each with its shape, dtype, device and bytes), `works`, `problems`, `order`,
            `kept_bytes`, `peak_bytes`. Its `repr` is a table.

        Raises:
            InputError: There is nothing to run on.
            ScanError: The model branches on the values of tensors.

        Example:
            >>> model = Envoy(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
            >>> plan = model.explain(lambda model: (model[1].output, model[0].output), torch.ones(1, 2))
            >>> plan.works, [request.site for request in plan.order]
            (False, ['model[0].output', 'model[1].output'])
        """
        if args and callable(args[0]) and not isinstance(args[0], (torch.Tensor, nn.Module)):
            return Plan(self, fn, args[1:], kwargs)._run_function(args[0])
        return Plan(self, fn, args, kwargs)

    def interleave(self, fn: str | Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run `fn` (a method name or a callable) once, without a block, through the preparation of inputs."""
        return calls.plain(self, fn, args, kwargs)

    def edit(self, function: Callable[[Any], Any] | None = None, *, inplace: bool = False) -> Any:
        """Store a block that every later run replays before its own.

        Args:
            function: Takes this envoy, or its copy; without it, `with model.edit() as edited:` keeps its block.
            inplace: Keep it on this model. Else it is kept on a copy that shares the weights.

        Returns:
            The edited model.

        Example:
            >>> model = Envoy(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
            >>> def silence(model):
            ...     model[0].output[:] = -1
            >>> edited = model.edit(silence)
            >>> edited(torch.ones(1, 2))
            tensor([[0., 0., 0.]], grad_fn=<ReluBackward0>)
        """
        return edit.edit(self, function, inplace)

    def clear_edits(self) -> None:
        """Drop the edits that are stored on this envoy."""
        edit.clear(self)

    def export_edits(
        self, name: str, export_dir: str | os.PathLike[str] | None = None, variant: str = DEFAULT
    ) -> Path:
        """Write the edits that are stored on this envoy and below it to files that people can read.

        The folder `<export_dir>/<name>/<variant>` is made, or replaced as a whole. It holds the source of the edits
        and of what they call, the values that these read, and tensors as safetensors; no pickle.

        Args:
            name: What the edits are called.
            export_dir: The folder around it, by default `exports` in `interlace.config.cache_dir`.
            variant: Which of several of that name.

        Returns:
            The folder.

        Raises:
            ExportError: No edit is stored here, or the folder holds something else.
            TravelError: An edit reads something that cannot be written down; it is named.
        """
        from interlace import exports  # here, and below: importing interlace is to stay quick

        place = exports.Place.of(name, export_dir, variant)
        exports.export(self, place)
        return place.folder

    def import_edits(
        self, name: str, export_dir: str | os.PathLike[str] | None = None, variant: str = DEFAULT
    ) -> None:
        """Add edits that were exported to those that are stored: all of them, or an error and none.

        Reading runs no code; that of the edits runs in later traces. Like a script it can do anything: print it with
        `interlace show FOLDER` before you trust it.

        Args:
            name: What the edits are called.
            export_dir: The folder around it, by default `exports` in `interlace.config.cache_dir`.
            variant: Which of several of that name.

        Raises:
            NoExportError: There is none of that name; those that exist are named.
            ExportError: It is damaged, of an unknown version, or needs something that this model has not.
        """
        from interlace import exports

        file = exports.read(exports.Place.of(name, export_dir, variant).found())
        self._tree.edits.extend(file.imported(self.root))

    def session(self, tracer_cls: type[Session] = Session) -> Session:
        """A scope around several traces that share values: `with model.session():`. Locally it only marks them.

        Args:
            tracer_cls: A subclass of `Session` to open.

        Raises:
            TypeError: It is something else.
        """
        given: object = tracer_cls
        if not (isinstance(given, type) and issubclass(given, Session)):
            raise TypeError(
                f"`session(tracer_cls)` takes a subclass of Session, not {type(tracer_cls).__name__}.\n"
                "Write `with model.session():`; inputs go to the traces in it."
            )
        return tracer_cls(self)

    def _combine(
        self,
        inputs: list[calls.Input],
        fn: Any,  # noqa: ARG002
    ) -> Batch:
        """One call for the prepared inputs of several prompts, and the rows of each."""
        return batch.concatenate(inputs)

    def _copies(self, fn: Any, kwargs: Mapping[str, Any]) -> tuple[int, ...]:  # noqa: ARG002
        """How often a run of `fn` may repeat each row of its batch."""
        return ()

    def record(
        self,
        dataset: Any,
        sites: Modules,
        to: str | os.PathLike[str],
        *,
        by: Literal["token", "row"] | None = None,
        positions: Positions = None,
        dtype: torch.dtype | None = None,
        include_output: bool = True,
        include_inputs: bool = False,
        batch_size: int = 32,
        shard_bytes: int = SHARD_BYTES,
    ) -> Recording:
        """Run the model over a dataset and write what some sites give to a folder.

        A run that was killed goes on where it was, if it is made again; a file (`shard_bytes`) is what it may
        have to compute again. Of a value with several tensors the first is recorded.

        Args:
            dataset: Rows: a list, a tensor along its first axis, any iterable. A row is a prompt (text, token ids)
                of a language model; else a tensor, or a tuple or mapping of them.
            sites: What `tracer.cache` takes. None is every module that gives something of each row, as the first
                row shows.
            to: The folder.
            by: `token` keeps `token ...`, the positions of all rows one after the other and no padding: how a
                language model is recorded, if nothing is said. `row` keeps `row ...`, for rows that give equal
                shapes: what other models do, and an int or a list as `positions`.
            positions: Which positions of each row to keep, counted without padding: an int, a slice or ints.
            dtype: What floating-point values become.
            include_output: Record what was returned.
            include_inputs: Record the first argument of each call.
            batch_size: How many rows go together at most. It is halved when memory runs out.
            shard_bytes: How large a file grows.

        Returns:
            What is in the folder by then, to be read and trained on. `il.Recording(folder)` opens it later.

        Raises:
            InputError: The dataset has no rows, is another than was recorded there, or a site cannot be kept so.
            RecordingError: The folder was begun with other settings, or a file in it is damaged.

        Example:
            >>> import interlace as il
            >>> model = il.demo_model()
            >>> acts = model.record(["The capital of France is", "Rome is in"], "h.*.mlp", "acts")
            >>> acts["transformer.h.0.mlp"].axes, acts["row"][:].bincount()
            (('token', 'd_model'), tensor([5, 6]))
        """
        several = positions is not None and not isinstance(positions, slice)
        chosen = by or ("token" if self._pads and not several else "row")
        if chosen not in ("token", "row"):
            raise InputError(f'Values are kept by "token" or by "row", not by {by!r}.')
        if chosen == "token" and isinstance(positions, int):
            raise InputError('One position a row is kept `by="row"`.')
        job = Job(sites, chosen_ports(include_output, include_inputs), chosen, positions, dtype)
        return record(self, dataset, to, job, batch_size, shard_bytes)

    _pads = False
    """Whether rows of different lengths go into one batch."""

    def _row_inputs(self, rows: list[Any]) -> list[calls.Input]:
        """The rows of a dataset, each prepared as a batch of one."""
        return [alone(row) for row in rows]

    def _has_input(self, kwargs: dict[str, Any]) -> bool:
        """Whether there is something to run on among these arguments."""
        return bool(kwargs)

    def _prepare_input(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a call with these inputs is made with; a class for another kind of input overrides it."""
        return args, kwargs

    def _function_input(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """What another function than the module's own call is called with."""
        return args, kwargs

    def _old_step(self, name: str) -> Trace:
        warnings.warn(
            f"`envoy.{name}` is an old name; write `tracer.{name}`, with `with model.trace(...) as tracer:`.",
            DeprecationWarning,
            stacklevel=3,
        )
        return self._tree.trace_for(sys._getframe(2), f"`{spell(self._path)}.{name}`")

    @property
    def iter(self) -> Any:
        """Deprecated: `tracer.iter`."""
        return self._old_step("iter").iter

    def all(self) -> Iterator[int]:
        """Deprecated: `tracer.all()`."""
        return self._old_step("all").all()

    def next(self, step: int = 1) -> "Envoy":
        """Deprecated: `tracer.next()`."""
        self._old_step("next").next(step)
        return self

    # -- the tree --------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Where this is: `model.transformer.h.3`."""
        return self._path

    @property
    def root(self) -> "Envoy":
        """The envoy at the top."""
        return self._tree.envoy(self._tree.path, lambda: _make(self._tree, self._tree.path, None))

    @property
    def parent(self) -> "Envoy | None":
        """The envoy above, None at the root."""
        if self._path == self._tree.path:
            return None
        above = self._path.rpartition(".")[0]
        return self._tree.envoy(above, lambda: _make(self._tree, above, None))

    def _child(self, name: str) -> "Envoy":
        """The envoy of a child module; made once."""
        own = self.__dict__
        found = own.get(name)
        path = f"{self._path}.{name}"
        if isinstance(found, Envoy) and found._path == path:
            return found
        child = self._tree.envoy(path, lambda: _make(self._tree, path, self))
        own[name] = child
        return child

    def _below(self, path: str) -> "Envoy":
        """The envoy at a path of modules from here. Unlike `get`, it warns of no feature that one of them hides."""
        here = self
        for name in path.split(".") if path else ():
            here = here._child(name) if name in here._module._modules else getattr(here, name)
        return here

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if "_module" not in own or name in _OWN:
            raise AttributeError(name)
        if hasattr(type(self), name):
            self._reraise(name)
        module = own["_module"]
        if name in module._modules and module._modules[name] is not None:
            return self._child(name)
        if name in self._tree.extras and self._path == self._tree.path:
            return self._child(name)
        target = self._tree.names.aliases.get(self._path, {}).get(name)
        if target is not None:
            return self._below(target)
        if name.startswith("nns_") and name[4:] in FEATURES:
            return self._feature(name[4:])
        if name.startswith("E_") and name[2:] in module._modules:
            return self._child(name[2:])
        try:
            value = getattr(module, name)
        except AttributeError:
            raise self._miss(name) from None
        if isinstance(value, torch.Tensor) and value.is_meta and self._tree.loader is not None:
            self._tree.load()
            value = getattr(self._module, name)
        return self._wrap(name, value)

    def _reraise(self, name: str) -> None:
        """Raise the AttributeError of the model that Python has taken for a feature that is missing."""
        trace = self._tree.trace_at(sys._getframe(2))
        if trace is not None and isinstance(trace._running.failed, AttributeError):
            raise trace._running.failed
        if name not in self._module._modules and not hasattr(self._module, name):
            raise self._miss(name)

    def _feature(self, name: str) -> Any:
        """A feature of which a submodule has taken the name."""
        if name in getattr(type(self), "_hides", ()):
            _tell_submodule(self, name, 3)
        return getattr(_plain(type(self)), name).__get__(self, type(self))

    def _wrap(self, name: str, value: Any) -> Any:
        if isinstance(value, nn.Module):
            for top in (self, self.root):
                for path, module in top._module.named_modules():
                    if module is value:
                        return top._below(path)
            return self._stray(name, value)
        if inspect.isroutine(value) or type(value).__name__ == "partial":
            return calls.Method(self, name, value)
        return value

    def _stray(self, name: str, module: nn.Module) -> "Envoy":
        """The envoy of a module that torch does not know as a child."""
        tree, path = self._tree, f"{self._path}.{name}"
        trace = tree.trace_at(sys._getframe(3))
        tree.stray(path, module)
        if trace is not None:
            trace._tap(module)
        found = tree.envoy(path, lambda: _make(tree, path, self))
        if found._module is not module:
            found._point(module)
        return found

    def _miss(self, name: str) -> NameMissError:
        aliases = self._tree.names.aliases.get(self._path, {})
        known = [
            *self._module._modules.keys(),
            *aliases,
            *FEATURES,
            *(n for n in dir(self._module) if n[0] != "_"),
        ]
        kind = type(self._module).__name__
        near = nearest(name, dict.fromkeys(known))
        return NameMissError(f"`{spell(self._path)}` ({kind}) has no `{name}`.{near}", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in VALUES and name not in getattr(type(self), "_hides", ()):
            object.__setattr__(self, name, value)
        elif name in _OWN:
            self.__dict__[name] = value
        elif isinstance(value, nn.Module):
            setattr(self._module, name, value)
            self._tree.repoint(self._tree.module)
        elif hasattr(type(getattr(type(self), name, None)), "__set__"):
            object.__setattr__(self, name, value)
        elif name.startswith("nns_") and name[4:] in FEATURES:
            getattr(_plain(type(self)), name[4:]).__set__(self, value)
        else:
            self._set_plain(name, value)

    def _set_plain(self, name: str, value: Any) -> None:
        here = f"`{spell(self._path)}.{name}`"
        if name in FEATURES or name in self._module._modules:
            raise NameMissError(f"{here} cannot be assigned; assign to its `.output` inside a trace.")
        near = difflib.get_close_matches(name.lower(), VALUES, cutoff=0.8)
        if near and abs(len(near[0]) - len(name)) < 2 and not hasattr(self._module, name):
            raise NameMissError(f"{here} is nothing that the model would see. Did you mean `{near[0]}`?")
        if self._path == self._tree.path:
            self._tree.state[name] = value
        object.__setattr__(self, name, value)

    def __getitem__(self, key: Any) -> Any:
        module: Any = self._module
        if type(key) is int and type(module) in LISTS:
            made = self.__dict__.get(str(key))
            if made is not None and made._module is module._modules.get(str(key)):
                return made
        if isinstance(key, slice):
            return [self[n] for n in range(*key.indices(len(self)))]
        found = module[key]
        for name, child in module._modules.items():
            if child is found:
                if isinstance(key, int) and name.isdigit():
                    name = str(key if key >= 0 else key + len(module))
                return self._child(name)
        return self._wrap(str(key), found)

    def __len__(self) -> int:
        return len(self._module)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator["Envoy"]:
        own, found = self.__dict__, []
        for name, module in self._module._modules.items():
            if module is not None:
                made: Any = own.get(name)
                found.append(made if getattr(made, "_module", None) is module else self._child(name))
        return iter(found)

    def __dir__(self) -> list[str]:
        aliases = self._tree.names.aliases.get(self._path, {})
        return sorted({*super().__dir__(), *dir(self._module), *aliases})

    def get(self, path: str) -> Any:
        """Walk a dotted path from here: `model.get("transformer.h.3.output")`.

        Raises:
            AttributeError: A part of it does not exist.
        """
        here: Any = self
        for part in path.split("."):
            if part:
                here = getattr(here, part)
        return here

    def modules(self, include_fn: Callable[["Envoy"], bool] | None = None, names: bool = False) -> list[Any]:
        """Every envoy of the subtree, children before self.

        Args:
            include_fn: Keep those for which it is true; it does not prune the walk.
            names: Return `(path, envoy)` pairs.
        """
        found = [entry for child in self for entry in child.modules(include_fn, names)]
        if include_fn is None or include_fn(self):
            found.append((self._path, self) if names else self)
        return found

    def named_modules(self, include_fn: Callable[["Envoy"], bool] | None = None) -> list[tuple[str, "Envoy"]]:
        """`modules(names=True)`."""
        return self.modules(include_fn, names=True)

    # -- torch -----------------------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> "Envoy":
        """Move the module in place, as `nn.Module.to` does."""
        self._tree.load()
        self._module.to(*args, **kwargs)
        return self

    def cpu(self) -> "Envoy":
        """Move the module to the CPU, in place."""
        self._tree.load()
        self._module.cpu()
        return self

    def cuda(self, *args: Any, **kwargs: Any) -> "Envoy":
        """Move the module to a GPU, in place."""
        self._tree.load()
        self._module.cuda(*args, **kwargs)
        return self

    @property
    def device(self) -> torch.device | None:
        """The device of the first parameter, None when there is none."""
        first = next(self._module.parameters(), None)
        return None if first is None else first.device

    @property
    def devices(self) -> set[torch.device]:
        """The devices of all parameters."""
        return {parameter.device for parameter in self._module.parameters()}

    def __repr__(self) -> str:
        return show(self)

    def __copy__(self) -> "Envoy":
        twin: Envoy = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        if self._path == self._tree.path:
            tree = self._tree.twin()
            children = [name for name, value in self.__dict__.items() if isinstance(value, Envoy)]
            for name in children:
                del twin.__dict__[name]
            twin._stand(tree, self._module, self._path, self._fused)
            tree.envoys[self._path] = twin
        return twin

    def __reduce__(self) -> Any:
        names = self._tree.names
        state = {k: v for k, v in self.__dict__.items() if k not in _OWN and not isinstance(v, Envoy)}
        settings = (names.rename, names.every or names.classes or None)
        root = _plain(type(self.root))
        return _restore, (root, self._tree.module, self._tree.path, settings, self._path, state)


def _restore(
    cls: type[Envoy], module: nn.Module, root: str, settings: Any, path: str, state: dict[str, Any]
) -> Any:
    top: Any = object.__new__(cls)
    Envoy.__init__(top, module, root, *settings)
    if path == root:
        top.__dict__.update(state)
        return top
    return top._below(path.removeprefix(root + "."))


def _make(tree: Tree, path: str, above: Envoy | None) -> Envoy:
    """The envoy at a path, of the class that the model's `envoys=` gives it."""
    module = tree.find(path)
    root = path == tree.path
    cls = tree.kind if root else tree.names.envoy_class(path, module, Envoy)
    envoy: Envoy = object.__new__(cls)  # type: ignore[arg-type]
    if root:
        envoy.__dict__.update(tree.state)
    parts = path.split(".")
    ancestors = (tree.find(".".join(parts[:n])) for n in range(1, len(parts)))
    fused = (
        above._fused or isinstance(above._module, FUSED)
        if above is not None
        else any(isinstance(module, FUSED) for module in ancestors)
    )
    envoy._stand(tree, module, path, fused)
    return envoy


LISTS = frozenset({nn.ModuleList, nn.Sequential})
"""Modules whose children are named by their index."""

FEATURES = frozenset(name for name in vars(Envoy) if not name.startswith("_") and name != "envoys")
"""The public names of an envoy. A submodule of such a name keeps it; the feature is then `nns_<name>`."""

hasten(Envoy, LISTS)

VALUES = ("output", "input", "inputs")
"""The features that can be assigned."""

_shadows: dict[tuple[type, frozenset[str]], type] = {}


def _plain(cls: type) -> Any:
    """The class that a user wrote, below the one that `_shadowed` made of it."""
    return cls.__mro__[1] if "_hides" in vars(cls) else cls


def _shadowed(cls: type, names: frozenset[str]) -> type:
    """A subclass in which submodules keep their names where Envoy has a feature of that name."""
    made = _shadows.get((cls, names))
    if made is None:
        body: dict[str, Any] = {name: _submodule(name) for name in names}
        body["_hides"] = names
        made = _shadows[cls, names] = type(cls.__name__, (cls,), {**body, "__module__": cls.__module__})
    return made


def _tell_submodule(envoy: Envoy, name: str, level: int) -> None:
    if f"_told_{name}" in envoy.__dict__:
        return
    envoy.__dict__[f"_told_{name}"] = True
    warnings.warn(
        f"`{spell(envoy._path)}.{name}` is a submodule. The value of this module is `.nns_{name}`; "
        f"`.E_{name}` names the submodule without this warning.",
        InterlaceWarning,
        stacklevel=level + 1,
    )


def _submodule(name: str) -> property:
    def get(envoy: Envoy) -> Envoy:
        _tell_submodule(envoy, name, 3)
        return envoy._child(name)

    def put(envoy: Envoy, value: Any) -> None:  # noqa: ARG001
        raise NameMissError(
            f"`{spell(envoy._path)}.{name}` is a submodule. Assign to `.nns_{name}` for this module's value, "
            f"or to `.{name}.output` for the submodule's."
        )

    return property(get, put, doc=f"The submodule `{name}`.")
