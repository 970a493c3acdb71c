"""The stand-in of one module: navigation, and the values at its ports.

The tree of envoys mirrors the tree of modules and is made as it is walked. An envoy knows where it is and
asks the trace that its caller stands in; how a value is had, is not its business.
"""

import difflib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interlace import calls, edit
from interlace.batch import concatenate
from interlace.errors import InterlaceWarning, NameMissError, OutsideTraceError, nearest
from interlace.rename import Aliases, Names
from interlace.repr import show
from interlace.session import Session
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
            raise TypeError(f"An envoy stands for a torch.nn.Module, not for {type(module).__name__}.")
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
        hidden = [name for name in module._modules if name in FEATURES]
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
            trace.unfuse(self._module)
        return trace.visit(self._site, port)

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
            trace.unfuse(self._module)
        return trace.visit(self._site, "output").result  # type: ignore[no-any-return]

    @output.setter
    def output(self, value: Any) -> None:
        visit = self._at("output", "output")
        visit.result = replace(visit.result, value, f"{self._path}.output")

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
            return self._scanned(feature, frame)
        if self._fused:
            trace.unfuse(self._module)
        return trace.visit(self._site, "input")

    def _at_input(self, feature: str, frame: Any) -> Visit:
        trace = self._tree.trace_for(frame, f"`{spell(self._path)}.{feature}`")
        if self._fused:
            trace.unfuse(self._module)
        return trace.before(self._site)

    def _scanned(self, feature: str, frame: Any) -> Visit:
        port: Port = "output" if feature == "output" else "input"
        recalled = self._tree.recalled(frame, self._site, port, 0)
        if recalled is not None:
            return recalled
        found = self._tree.shapes.get(self._path)
        if found is None:
            self._tree.trace_for(frame, f"`{spell(self._path)}.{feature}`")
            raise OutsideTraceError(f"`{spell(self._path)}.{feature}` was not reached by the scan.")
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
        trace.skip(self._site, replacement)

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
            return trace.run.beside(self._site, self._module, args, kwargs)
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
        prepare, paced = calls.traced(self, fn, args, kwargs)
        return tracer_cls(self, self._tree, prepare, paced)

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

    def session(self) -> "Session":
        """A scope around several traces that share values: `with model.session():`. Locally it only marks them."""
        return Session(self)

    def _combine(
        self,
        inputs: list[calls.Input],
        fn: Any,  # noqa: ARG002
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[int]]:
        """One call for the prepared inputs of several prompts, and the rows of each."""
        return concatenate(inputs)

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
        if isinstance(found, Envoy) and found._path == f"{self._path}.{name}":
            return found
        path = f"{self._path}.{name}"
        child = self._tree.envoy(path, lambda: _make(self._tree, path, self))
        own[name] = child
        return child

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if "_module" not in own or name in _OWN:
            raise AttributeError(name)
        if hasattr(type(self), name):
            self._reraise(name)
        module = own["_module"]
        if module._modules.get(name) is not None:
            return self._child(name)
        if name in self._tree.extras and self._path == self._tree.path:
            return self._child(name)
        target = self._tree.names.aliases.get(self._path, {}).get(name)
        if target is not None:
            return self.get(target)
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
        if trace is not None and isinstance(trace.run.failed, AttributeError):
            raise trace.run.failed
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
                        return top.get(path)
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
            trace.tap(module)
        found = tree.envoy(path, lambda: _make(tree, path, self))
        if found._module is not module:
            found._point(module)
        return found

    def _miss(self, name: str) -> NameMissError:
        aliases = self._tree.names.aliases.get(self._path, {})
        known = [*self._module._modules, *aliases, *FEATURES, *(n for n in dir(self._module) if n[0] != "_")]
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
        return iter([self._child(name) for name, child in self._module._modules.items() if child is not None])

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
            if part in ("output", "input", "inputs") and not (
                isinstance(here, Envoy) and part in here._module._modules
            ):
                return here._value(part, sys._getframe(1)) if isinstance(here, Envoy) else getattr(here, part)
            if part:
                here = getattr(here, part)
        return here

    def _value(self, port: str, frame: Any) -> Any:
        del frame
        return getattr(self, port)

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
        twin: Envoy = object.__new__(_plain(type(self)))
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
    return top.get(path.removeprefix(root + "."))


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


FUSED = (nn.TransformerEncoderLayer,)
"""Modules that torch may run as one fused operation, passing over those inside them."""

LISTS = (nn.ModuleList, nn.Sequential)
"""Modules whose children are named by their index."""

FEATURES = frozenset(name for name in vars(Envoy) if not name.startswith("_") and name != "envoys")
"""The public names of an envoy. A submodule of such a name keeps it; the feature is then `nns_<name>`."""

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
