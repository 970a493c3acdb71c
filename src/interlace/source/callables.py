"""The function behind a callable, and the callable rebuilt around another function.

Decorators keep what they decorate in a closure cell, `partial` in an attribute, a method beside its
receiver. A rebuilt callable goes through all of them again, so that decorators still run, and shares
everything else.
"""

import functools
import inspect
from collections.abc import Callable
from types import BuiltinFunctionType, CellType, FunctionType, MethodType
from typing import Any, TypeAlias

from interlace.errors import SourceError
from interlace.source.rewrite import like

# The values that pass here are the model's own, of any type.
Function: TypeAlias = Callable[..., Any]


def innermost(target: Function) -> FunctionType:
    """The Python function whose body runs in the end when `target` is called.

    Raises:
        SourceError: There is none: `target` is built in, compiled, a class, or cached.
    """
    while True:
        inner = _inner(target)
        if inner is None:
            assert isinstance(target, FunctionType)
            return target
        target = inner


def rebuilt(target: Function, replacement: Function) -> Function:
    """`target` with its innermost function replaced, every layer around it kept."""
    inner = _inner(target)
    if inner is None:
        return replacement
    changed = rebuilt(inner, replacement)
    if isinstance(target, MethodType):
        return MethodType(changed, target.__self__)
    if isinstance(target, functools.partial):
        made = functools.partial(changed, *target.args, **target.keywords)
        made.__dict__.update(target.__dict__)
        return made
    if isinstance(target, FunctionType):
        cells = tuple(CellType(changed) if _holds(cell, inner) else cell for cell in target.__closure__ or ())
        return like(target, target.__code__, cells)
    return MethodType(changed, target)


def _inner(target: Function) -> Function | None:
    """One layer down; None for a plain function."""
    if isinstance(target, MethodType):
        return target.__func__
    _refuse(target)
    if isinstance(target, functools.partial):
        return target.func
    if isinstance(target, FunctionType):
        wrapped: Function | None = getattr(target, "__wrapped__", None)
        if wrapped is None:
            return None
        if not any(_holds(cell, wrapped) for cell in target.__closure__ or ()):
            # It only borrowed the name and documentation of what it stands for: its own body is what runs.
            return None
        return wrapped
    call = inspect.getattr_static(type(target), "__call__", None)
    if isinstance(call, FunctionType):
        return call
    raise SourceError(
        f"{spelled(target)} is not a Python function: it is built in or compiled, and has no operations."
    )


def _refuse(target: Function) -> None:
    if isinstance(target, type):
        raise SourceError(
            f"{spelled(target)} is a class: calling it makes an object, and has no operations to read."
        )
    if hasattr(target, "_torchdynamo_orig_callable") and not getattr(target, "_torchdynamo_disable", False):
        raise SourceError(f"{spelled(target)} is compiled by torch: its Python code does not run.")
    if type(target).__name__ in ("ScriptFunction", "ScriptMethod"):
        raise SourceError(f"{spelled(target)} is compiled by TorchScript: its Python code does not run.")
    if type(target) is functools._lru_cache_wrapper:
        raise SourceError(
            f"{spelled(target)} keeps its results (`functools.cache`): its code may not run when called."
        )


def _holds(cell: CellType, value: object) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # an empty cell
        return False


def spelled(target: object) -> str:
    """How an error names a callable."""
    attribute = "__name__" if isinstance(target, BuiltinFunctionType) else "__qualname__"
    name = getattr(target, attribute, None)
    return f"`{name}`" if isinstance(name, str) else f"a `{type(target).__name__}`"
