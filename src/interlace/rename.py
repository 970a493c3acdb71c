"""Other names for modules, and other classes for their envoys: the `rename=` and `envoys=` of a model.

A key says where: a child's name wherever it occurs, a dotted path (a leading dot is optional) where it
resolves, a path with `*` for one component, or a module class. `Names` settles both maps against a tree of
modules.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from interlace.errors import InterlaceWarning, RenameError, nearest, outside

if TYPE_CHECKING:
    from interlace.tree import Tree

Key = str | type
Aliases = Mapping[Key, "str | list[str]"]


def matches(pattern: list[str], path: list[str]) -> bool:
    """Whether the end of a path is the pattern; `*` stands for one component.

    >>> matches(["h", "*", "attn"], ["model", "transformer", "h", "3", "attn"])
    True
    """
    if len(pattern) > len(path):
        return False
    return all(want in ("*", part) for want, part in zip(pattern, path[-len(pattern) :], strict=True))


class Names:
    """Aliases and envoy classes of one model.

    Args:
        rename: Key to alias, or to a list of aliases.
        envoys: One Envoy class for all modules, or key to Envoy class.
        reserved: Names that no alias may take.
    """

    def __init__(self, rename: Aliases | None, envoys: Any, reserved: frozenset[str]) -> None:
        self.rename = {
            key: [value] if isinstance(value, str) else list(value) for key, value in (rename or {}).items()
        }
        self._refuse_dotted()
        self.every = envoys if isinstance(envoys, type) else None
        self.classes: Mapping[Key, type] = envoys if isinstance(envoys, Mapping) else {}
        self.reserved = reserved
        self.aliases: dict[str, dict[str, str]] = {}
        """By path of the envoy: alias to the dotted path, from there, of what it stands for."""

    def _refuse_dotted(self) -> None:
        """No alias may be a path: only one name can be looked up on an envoy."""
        for key, aliases in self.rename.items():
            for alias in aliases:
                name = alias.strip(".")
                if not name or "." in name:
                    last = name.rpartition(".")[2] or "name"
                    spelled = _show(key).strip("`")
                    raise RenameError(
                        f"An alias is one name, and {alias!r} (for {_show(key)}) is not.\n"
                        f"Write `rename={{{spelled}: {last!r}}}`. What is above it has a key of its own: "
                        "`{'model': 'transformer', 'layers': 'h'}`."
                    )

    def settle(self, tree: "Tree") -> None:
        """Find what each key stands for in this model; warn when no key of a map matches anything."""
        self.aliases = {}
        if not self.rename and not self.classes:
            return
        known = [
            (_path(tree.path, name), module)
            for name, module in tree.module.named_modules(remove_duplicate=False)
        ]
        if self.rename:
            hits = {key: self._settle(key, known) for key in self.rename}
            _warn_unmatched("rename", hits, known)
            self._refuse_hiding(tree, dict(known))
        if self.classes:
            used = {
                key: any(self._class_key(key, path.split("."), m) for path, m in known)
                for key in self.classes
            }
            _warn_unmatched("envoys", used, known)

    def _settle(self, key: Key, known: list[tuple[str, nn.Module]]) -> bool:
        found = False
        for path, module in known:
            targets = list(self._targets(key, path, module))
            if len(targets) > 1:
                spelled = " and ".join(f"`{path}.{target}`" for target in targets[:3])
                raise RenameError(
                    f"The rename key {_show(key)} is ambiguous: it matches {spelled}. Name one of them."
                )
            for target in targets:
                found = True
                for alias in self.rename[key]:
                    self._add(path, module, alias.strip("."), target)
        return found

    def _targets(self, key: Key, path: str, module: nn.Module) -> Iterator[str]:
        """What a key stands for below one module, as paths from there."""
        if isinstance(key, type):
            yield from (name for name, child in module._modules.items() if isinstance(child, key))
            return
        parts = [part for part in key.split(".") if part]
        if "*" in parts:
            here = path.split(".")
            yield from (name for name, _ in module._modules.items() if matches(parts, [*here, name]))
        elif parts and _resolve(module, parts):
            yield ".".join(parts)

    def _add(self, path: str, module: nn.Module, alias: str, target: str) -> None:
        held = self.aliases.setdefault(path, {})
        if alias in self.reserved:
            raise RenameError(
                f"The alias `{alias}` for `{path}.{target}` would hide the feature `Envoy.{alias}`."
            )
        if alias == target:
            return
        if hasattr(module, alias):
            kind = type(module).__name__
            raise RenameError(
                f"The alias `{alias}` for `{path}.{target}` would hide `{kind}.{alias}` at `{path}`."
            )
        if held.setdefault(alias, target) != target:
            raise RenameError(
                f"The alias `{alias}` stands for both `{path}.{held[alias]}` and `{path}.{target}`."
            )

    def _refuse_hiding(self, tree: "Tree", known: Mapping[str, nn.Module]) -> None:
        """No alias may hide what an envoy class of the user's has."""
        for path, held in self.aliases.items():
            cls = tree.kind if path == tree.path else self.envoy_class(path, known[path], object)
            for alias, target in held.items():
                if cls is not None and hasattr(cls, alias):
                    raise RenameError(
                        f"The alias `{alias}` for `{path}.{target}` would hide `{cls.__name__}.{alias}` "
                        f"at `{path}`."
                    )

    def envoy_class(self, path: str, module: nn.Module, default: type) -> type:
        """The envoy class of a module: the most specific key wins, the longest path first, then classes."""
        if self.every is not None:
            return self.every
        parts = path.split(".")
        paths = [key for key in self.classes if isinstance(key, str) and self._class_key(key, parts, module)]
        if paths:
            return self.classes[max(paths, key=lambda key: (len(key.strip(".").split(".")), "*" not in key))]
        for kind in type(module).__mro__:
            if kind in self.classes:
                return self.classes[kind]
        return default

    def _class_key(self, key: Key, path: list[str], module: nn.Module) -> bool:
        if isinstance(key, type):
            return isinstance(module, key)
        parts = [part for part in key.split(".") if part]
        if matches(parts, path):
            return True
        above, _, name = ".".join(path).rpartition(".")
        spelled = [alias for alias, target in self.aliases.get(above, {}).items() if target == name]
        return any(matches(parts, [*above.split("."), alias]) for alias in spelled)


def _path(root: str, name: str) -> str:
    return f"{root}.{name}" if name else root


def _resolve(module: nn.Module | None, parts: list[str]) -> bool:
    for part in parts:
        module = module._modules[part] if module is not None and part in module._modules else None
    return module is not None


def _show(key: Key) -> str:
    return f"`{key.__name__}`" if isinstance(key, type) else f"{key!r}"


def _warn_unmatched(option: str, hits: Mapping[Key, bool], known: list[tuple[str, nn.Module]]) -> None:
    if any(hits.values()):
        return
    paths = [path.partition(".")[2] for path, _ in known]
    names = dict.fromkeys([*paths, *(part for path in paths for part in path.split("."))])
    near = "".join(nearest(key.strip("."), names) for key in hits if isinstance(key, str))
    shown = ", ".join(_show(key) for key in hits)
    warnings.warn(
        f"No key of `{option}=` matches a module: {shown}.{near}", InterlaceWarning, stacklevel=outside()
    )
