"""What belongs to a model travels by its place in it: envoys, modules, parameters, buffers, the tokenizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from interlace.edit import Place
from interlace.errors import TravelError
from interlace.exports.needs import walk
from interlace.portable.names import is_name
from interlace.tree import Tree

KINDS = ("envoy", "module", "parameter", "tokenizer", "config")


class References:
    """Names what belongs to one model.

    Args:
        root: The envoy of the model.
    """

    def __init__(self, root: Any) -> None:
        tree: Tree = root._tree
        module = tree.module
        self._module = module
        self._named: dict[int, tuple[object, dict[str, Any]]] = {}
        tensors = (*module.named_parameters(), *module.named_buffers())
        for kind, found in (("module", module.named_modules()), ("parameter", tensors)):
            for path, value in found:
                self._named.setdefault(id(value), (value, {kind: path}))
        self._config = getattr(module, "config", None)
        self._named[id(tokenizer(root))] = (tokenizer(root), {"tokenizer": None})

    def __call__(self, value: object, name: str) -> dict[str, Any] | None:
        """The node of a value, or None where it is nothing of the model's.

        Raises:
            TravelError: It is an envoy of another model.
        """
        if isinstance(value, Place):
            return {"envoy": value.path.partition(".")[2]}
        held = getattr(value, "__dict__", None)
        tree = held.get("_tree") if isinstance(held, dict) else None
        if isinstance(tree, Tree) and held is not None:
            if tree.module is not self._module:
                raise TravelError(
                    f"`{name}` cannot travel: it is an envoy of another model than the one whose edits are exported.\n"
                    "Read what you need of that model before the edit: tensors travel."
                )
            return {"envoy": held["_path"].partition(".")[2]}
        found = self._named.get(id(value))
        if found is None and type(value) is type(self._config) and value == self._config:
            return {"config": None}  # a model has another one before its weights are there
        return None if found is None else found[1]


def tokenizer(root: Any) -> Any:
    """The tokenizer of a model, None where it has none."""
    return root.__dict__.get("tokenizer")


def resolve(root: Any, kind: str, held: Any) -> Any:
    """What a node names in a model.

    Raises:
        ValueError: The model has nothing there.
    """
    if kind == "tokenizer" and tokenizer(root) is not None:
        return tokenizer(root)
    if kind in ("envoy", "module") and held == "":
        return root if kind == "envoy" else root._tree.module
    if kind == "config" and getattr(root._tree.module, "config", None) is not None:
        return root._tree.module.config
    if kind not in ("envoy", "module", "parameter"):
        raise ValueError(f"this model has no {kind}")
    if not is_path(held):
        raise ValueError(f"{held!r} is no path of a module")
    if kind == "envoy":
        found = walk(root, held)
        if found is None:
            raise ValueError(missing(root, held))
        return found
    above, _, last = held.rpartition(".") if kind == "parameter" else (held, "", "")
    module: Any = root._tree.module
    for name in filter(None, above.split(".")):
        module = module._modules.get(name)
        if not isinstance(module, nn.Module):
            raise ValueError(missing(root, held))
    if kind == "module":
        return module
    value = module._parameters.get(last)
    value = module._buffers.get(last) if value is None else value
    if value is None:
        raise ValueError(f"this model has no parameter `{held}`")
    return value


def is_path(text: object) -> bool:
    """Whether a text may be the path of a module: names and numbers with dots between."""
    return isinstance(text, str) and is_name(".".join(f"_{part}" for part in text.split(".")))


def missing(root: Any, path: str) -> str:
    """Why a path leads nowhere, with the nearest names."""
    here, walked = root, ""
    for name in path.split("."):
        below = walk(here, name)
        if below is None:
            break
        here, walked = below, f"{walked}.{name}"
    return f"this model has no module `{path}`: {here._miss(name)}"
