"""Which sites of a model are meant: by envoy, path, pattern, class, predicate, operation, or several of these.

An `Outline` is what is left of a model when the modules are taken away: names, aliases, keys. What is chosen is
told in it, so that a cache can be walked like the model and keeps no weights in memory.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from interlace.errors import InputError, NameMissError, nearest
from interlace.site import Site, spell
from interlace.source.view import ForwardSource, Operation

if TYPE_CHECKING:
    from interlace.envoy import Envoy
    from interlace.tree import Tree

Modules = Any
"""An envoy, a module, a path, a pattern, a class of modules, a predicate of envoys, an operation, an iterable
of those, or None for every module: there is no type for "any of these" that says more than `Any`."""

FUSED = (nn.TransformerEncoderLayer,)
"""Modules that torch may run as one fused operation, passing over those inside them."""

CONTAINERS = (nn.ModuleList, nn.ModuleDict)
"""Modules that are never called: their members are meant."""


@dataclass(slots=True)
class Outline:
    """The names in a model, without its modules.

    Attributes:
        root: The path of the root.
        children: The names of what is below each path.
        aliases: By path: alias to the dotted path, from there, of what it stands for.
        sites: The site of each path; of a module with several names, the first one's at all of them.
        fused: The paths inside of modules that torch may run as one operation.
        chosen: What was chosen before, by what was said.
    """

    root: str
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    fused: set[str] = field(default_factory=set)
    chosen: dict[Any, "Wanted"] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: "Tree") -> "Outline":
        """The outline of a model as it is now."""
        made = cls(tree.path, aliases={path: dict(held) for path, held in tree.names.aliases.items()})
        first: dict[int, Site] = {}

        def walk(
            path: str, module: nn.Module, fused: bool, more: Iterable[tuple[str, nn.Module]] = ()
        ) -> None:
            below = {**{name: kid for name, kid in module._modules.items() if kid is not None}, **dict(more)}
            if fused:
                made.fused.add(path)
            made.sites[path] = first.setdefault(id(module), Site(id(module), path))
            made.children[path] = tuple(below)
            for name, kid in below.items():
                walk(f"{path}.{name}", kid, fused or isinstance(module, FUSED))

        walk(tree.path, tree.module, False, tree.extras.items())
        for path, module in tree.strays.items():
            above, _, name = path.rpartition(".")
            made.children[above] = (*made.children.get(above, ()), name)
            walk(path, module, False)
        return made

    def add(self, site: Site) -> None:
        """Learn of a site, and of what leads to it."""
        above, _, name = site.path.rpartition(".")
        self.sites[site.path] = site
        while name not in (known := self.children.get(above, ())):
            self.children[above] = (*known, name)
            above, _, name = above.rpartition(".")
            if not above:
                break

    def with_sites(self, sites: Iterable[Site]) -> "Outline":
        """A copy that has further sites."""
        copy = Outline(self.root, dict(self.children), self.aliases, dict(self.sites))
        for site in sites:
            copy.add(site)
        return copy

    def child(self, path: str, name: str) -> str | None:
        """The path of what has this name below another path, if anything has."""
        if name in self.children.get(path, ()):
            return f"{path}.{name}"
        target = self.aliases.get(path, {}).get(name)
        if target is None:
            return None
        return self.walk(path, target.split("."))

    def walk(self, path: str, parts: Iterable[str]) -> str | None:
        """The path that is led to by names, if it exists."""
        here: str | None = path
        for part in parts:
            here = self.child(here, part) if here is not None else None
        return here

    def resolve(self, text: str) -> str | None:
        """The path that a text names, with the root's name or without."""
        parts = dotted(text).split(".")
        if parts[0] == self.root:
            found = self.walk(self.root, parts[1:])
            if found is not None:
                return found
        return self.walk(self.root, parts)

    def matching(self, text: str, top: str) -> list[str]:
        """The paths below `top` whose end fits a pattern, by their own names or by aliases."""
        pattern = ["**", *dotted(text).split(".")]
        return [
            path
            for path in self.sites
            if _below(path, top)
            and any(_fits(pattern, spelled.split(".")) for spelled in self._spelled(path))
        ]

    def _spelled(self, path: str) -> Iterator[str]:
        """A path in all the ways in which aliases spell it."""
        yield path
        if not self.aliases or path == self.root:
            return
        above, _, name = path.rpartition(".")
        for spelled in self._spelled(above):
            if spelled != above:
                yield f"{spelled}.{name}"
        for at, held in self.aliases.items():
            for alias, target in held.items():
                if f"{at}.{target}" == path:
                    yield from (f"{spelled}.{alias}" for spelled in self._spelled(at))


def dotted(text: str) -> str:
    """A path in dots, however it was typed.

    >>> dotted("transformer.h[3].mlp")
    'transformer.h.3.mlp'
    """
    return re.sub(r"(?<=[\w\]*])\[(\d+|\*)\]", r".\1", text).strip(".")


def path_of(key: Any) -> Any:
    """The path of an envoy or an operation; any other key as it is."""
    if isinstance(key, Operation):
        return key.path
    return key._path if _is_envoy(key) else key


def _is_envoy(value: Any) -> bool:
    own = getattr(value, "__dict__", {})
    return "_tree" in own and "_path" in own


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(top + ".")


def _fits(pattern: list[str], path: list[str]) -> bool:
    """Whether names fit a pattern: `*`, `?` and `[0-3]` within a name, `**` for any number of names."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_fits(pattern[1:], path[at:]) for at in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _fits(pattern[1:], path[1:])


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of the things that were asked for.

    Attributes:
        said: It, in words for a message.
        sites: The modules that it stands for.
        operations: The operations that it stands for; their sites belong to a run.
        keys: The keys of the sites.
    """

    said: str
    sites: tuple[Site, ...] = ()
    operations: tuple[Operation, ...] = ()
    keys: frozenset[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", frozenset(site.key for site in self.sites))


def choose(envoy: "Envoy", modules: Modules) -> list[Wanted]:
    """What is meant by what a user gave.

    Args:
        envoy: What was traced; patterns, classes and predicates look below it.
        modules: What the user gave.

    Raises:
        NameMissError: A path or pattern fits nothing; names the nearest.
        InputError: It is nothing that can be meant, is of another model, or chooses nothing.
    """
    tree, top = envoy._tree, envoy._path
    outline = tree.outline()
    if modules is None:
        return [_remembered(outline, (None, top), lambda: _every(outline, top))]
    if isinstance(modules, str):
        if ".source." in dotted(modules):
            return [_operations(tree, outline, top, modules)]
        return [_remembered(outline, (modules, top), lambda: _named(outline, top, modules))]
    if isinstance(modules, Operation):
        return [Wanted(f"`{spell(modules.path)}`", operations=(modules,))]
    if isinstance(modules, nn.Module):
        found = [site for site in outline.sites.values() if site.key == id(modules)]
        if not found:
            raise InputError(f"This {type(modules).__name__} is no module of `{tree.path}`.")
        return [Wanted(f"`{spell(found[0].path)}`", (found[0],))]
    if isinstance(modules, type):
        return [_of_class(tree, outline, top, modules)]
    if _is_envoy(modules):
        return _envoy(outline, modules)
    if isinstance(modules, Iterable):
        found_all = [wanted for part in modules for wanted in choose(envoy, part)]
        if not found_all:
            raise InputError("No modules are listed. Leave the argument out to mean every module.")
        return found_all
    if callable(modules):
        return [_by_predicate(envoy, outline, modules)]
    raise InputError(
        f"Modules are chosen by envoy, path, pattern, class, predicate or operation, not by "
        f"{type(modules).__name__}: {modules!r}."
    )


def _remembered(outline: Outline, said: Any, choice: Callable[[], Wanted]) -> Wanted:
    known = outline.chosen.get(said)
    if known is None:
        known = outline.chosen[said] = choice()
    return known


def _once(sites: Iterable[Site]) -> tuple[Site, ...]:
    return tuple({site.key: site for site in sites}.values())


def _every(outline: Outline, top: str) -> Wanted:
    return Wanted("", _once(site for path, site in outline.sites.items() if _below(path, top)))


def _named(outline: Outline, top: str, text: str) -> Wanted:
    path = outline.resolve(text)
    paths = [path] if path is not None else outline.matching(text, top)
    if not paths:
        names = dict.fromkeys(
            part for path in outline.sites for part in (path.partition(".")[2], path.split(".")[-1])
        )
        raise NameMissError(f"No module of `{outline.root}` matches {text!r}.{nearest(dotted(text), names)}")
    said = f"`{spell(paths[0])}`" if path is not None else repr(text)
    return Wanted(said, _once(outline.sites[path] for path in paths))


def _of_class(tree: "Tree", outline: Outline, top: str, cls: type) -> Wanted:
    below = [path for path in outline.sites if _below(path, top)]
    sites = _once(outline.sites[path] for path in below if isinstance(tree.find(path), cls))
    if not sites:
        raise InputError(f"No module below `{spell(top)}` is an instance of `{cls.__name__}`.")
    return Wanted(f"class `{cls.__name__}`", sites)


def _by_predicate(envoy: "Envoy", outline: Outline, predicate: Callable[[Any], Any]) -> Wanted:
    said, top, root = f"`{getattr(predicate, '__name__', 'the predicate')}`", envoy._path, envoy.root
    below = [path for path in outline.sites if _below(path, top)]
    sites = _once(outline.sites[path] for path in below if predicate(root._below(path.partition(".")[2])))
    if not sites:
        raise InputError(f"No module below `{spell(top)}` is chosen by {said}.")
    return Wanted(said, sites)


def _envoy(outline: Outline, envoy: Any) -> list[Wanted]:
    path = envoy._path
    site = outline.sites.get(path)
    if site is None or site.key != id(envoy._module):
        raise InputError(
            f"`{spell(path)}` is an envoy of another model than the one that is traced.\n"
            "Take it from the model whose `.trace(...)` this is."
        )
    if isinstance(envoy._module, CONTAINERS):
        inside = [outline.sites[f"{path}.{name}"] for name in outline.children[path]]
        return [Wanted(f"`{spell(one.path)}`", (one,)) for one in _once(inside)]
    return [Wanted(f"`{spell(path)}`", (site,))]


def _operations(tree: "Tree", outline: Outline, top: str, text: str) -> Wanted:
    """Operations by a path or pattern: that of the module, `.source.`, that of the operation."""
    module, _, name = dotted(text).partition(".source.")
    found, names = [], []
    for site in _named(outline, top, module).sites:
        held = tree.find(site.path)
        source = ForwardSource(tree, lambda held=held: held, site.path)  # type: ignore[misc]
        names = [one.name for one in source]
        found += [one for one in source if fnmatchcase(one.name, name)]
    if not found:
        raise NameMissError(f"No operation matches {text!r}.{nearest(name, names)}")
    return Wanted(repr(text), operations=tuple(found))
