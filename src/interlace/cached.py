"""What a cache has of one module or operation: its values, and the way to what is below it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from interlace.errors import CacheMissError, NameMissError, NotReachedError, nearest
from interlace.site import Port, Site, spell
from interlace.trees import describe

if TYPE_CHECKING:
    from interlace.cache import Cache

SHOWN = 12
"""How many lines a repr shows."""

VALUES = ("output", "input", "inputs", "visits")


class Cached:
    """What a cache has of one module or operation, and of what is below it.

    Child modules have the names that they have in the model, and go before the values: where a submodule is
    called `output`, that is it, and the value is `nns_output`. `[n]` is a child of a list of modules; of any
    other module it is the visit of that number.
    """

    __slots__ = ("_cache", "_path")

    def __init__(self, cache: "Cache", path: str) -> None:
        self._cache = cache
        self._path = path

    @property
    def path(self) -> Any:
        """Where this is: `model.transformer.h.3`."""
        return self._own("path") or self._path

    @property
    def output(self) -> Any:
        """What was returned; of several visits, a list.

        Raises:
            NotReachedError: The model has not come there, or never did.
            CacheMissError: It was not to be recorded.
        """
        return self._own("output") or self._all("output", "output")

    @property
    def inputs(self) -> Any:
        """`(args, kwargs)` of the call; of several visits, a list. See `output`."""
        return self._own("inputs") or self._all("input", "inputs")

    @property
    def input(self) -> Any:
        """The first argument of the call; of several visits, a list. See `output`."""
        return self._own("input") or self._all("input", "input")

    @property
    def visits(self) -> Any:
        """Every visit, in order, as a list whatever their number."""
        return self._own("visits") or [CachedVisit(self, number) for number in self._numbers()]

    def _own(self, name: str) -> "Cached | None":
        outline = self._cache._outline
        if name not in outline.children.get(self._path, ()) and not outline.aliases:
            return None
        path = outline.child(self._path, name)
        return None if path is None else self._at(path)

    def _numbers(self) -> list[int]:
        return sorted({n for port in ("input", "output") for n in self._cache._of(self._path, port)})

    def _all(self, port: Port, name: str) -> Any:
        held = self._cache._of(self._path, port)
        if not held:
            raise self._missing(port)
        if len(held) == 1:
            return self._value(next(iter(held.values())), name)
        return [self._value(held[number], name) for number in sorted(held)]

    def _value(self, held: Any, name: str) -> Any:
        value = self._cache._load(held)
        if name != "input":
            return value
        args, kwargs = value
        return args[0] if args else next(iter(kwargs.values()), None)

    def _missing(self, port: Port) -> Exception:
        cache, where = self._cache, Site(None, self._path).at(port)
        site = cache._outline.sites.get(self._path)
        if site is None or site.key not in cache._keys:
            return CacheMissError(f"{where} is not in this cache.{_has(cache)}")
        if port not in cache._ports:
            return CacheMissError(
                f"{where} was not recorded: the cache was opened with `include_{port}s=False`."
            )
        run = cache._run() if cache._run is not None else None
        live = run.live if run is not None else None
        if live is not None and live.key == site.key and live.port == port:
            said = "the model is paused there, and it is recorded when the model goes on"
        else:
            said = f"it was not reached; {cache._where()}"
        return NotReachedError(f"{where} is not in this cache: {said}.")

    def _at(self, path: str) -> "Cached":
        if not self._cache._shows(path):
            raise CacheMissError(f"`{spell(path)}` is not in this cache.{_has(self._cache)}")
        return Cached(self._cache, path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        path = self._cache._outline.child(self._path, name)
        if path is None and name.startswith("E_"):
            path = self._cache._outline.child(self._path, name[2:])
        if path is not None:
            return self._at(path)
        if name.startswith("nns_") and name[4:] in VALUES:
            feature = name[4:]
            if feature == "visits":
                return [CachedVisit(self, number) for number in self._numbers()]
            return self._all("output" if feature == "output" else "input", feature)
        if name == "source" and self._cache._outline.child(self._path, name) is None:
            raise NameMissError(f"No operation of `{spell(self._path)}` is in this cache.{_has(self._cache)}")
        outline = self._cache._outline
        if self._path == outline.root == name:
            return self  # `cache.model.transformer`, as the path has it
        known = [*outline.children.get(self._path, ()), *outline.aliases.get(self._path, ()), *VALUES]
        raise NameMissError(
            f"`{spell(self._path)}` has no `{name}` in this cache.{nearest(name, known)}", name=name, obj=self
        )

    def __getitem__(self, key: Any) -> Any:
        names = self._cache._outline.children.get(self._path, ())
        is_list = bool(names) and all(name.isdigit() for name in names)
        if isinstance(key, slice):
            count = len(names) if is_list else len(self._numbers())
            return [self[n] for n in range(*key.indices(count))]
        if isinstance(key, str):
            path = self._cache._outline.walk(self._path, key.split("."))
            if path is None:
                raise CacheMissError(f"`{spell(self._path)}` has no `{key}`.{nearest(key, names)}")
            return self._at(path)
        if is_list:
            name = str(key if key >= 0 else key + len(names))
            if name not in names:
                raise IndexError(f"`{spell(self._path)}` has no [{key}] in this cache.")
            return self._at(f"{self._path}.{name}")
        visits = self._numbers()
        if not -len(visits) <= key < len(visits):
            raise IndexError(
                f"`{spell(self._path)}` was recorded at {len(visits)} visits, so there is no [{key}]."
            )
        return CachedVisit(self, visits[key])

    def __iter__(self) -> Iterator["Cached"]:
        paths = [f"{self._path}.{name}" for name in self._cache._outline.children.get(self._path, ())]
        return iter([Cached(self._cache, path) for path in paths if self._cache._shows(path)])

    def __len__(self) -> int:
        return len(self._cache._outline.children.get(self._path, ()))

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> list[str]:
        outline = self._cache._outline
        names = [*outline.children.get(self._path, ()), *outline.aliases.get(self._path, ())]
        return [*super().__dir__(), *(name for name in names if not name.isdigit())]

    def _line(self) -> str:
        said = []
        for port in ("input", "output"):
            held = self._cache._of(self._path, port)
            if held:
                first = describe(self._cache._load(held[min(held)]))
                said.append(
                    f"{port} {first}" + (f" and {len(held) - 1} more visits" if len(held) > 1 else "")
                )
        return f"{spell(self._path)}: {', '.join(said) or 'nothing'}"

    def __repr__(self) -> str:
        below = [child._line() for child in self if child._numbers()]
        lines = [
            self._line() if self._numbers() else spell(self._path),
            *(f"  {line}" for line in below[:SHOWN]),
        ]
        return "\n".join(lines + ["  ..."] * (len(below) > SHOWN))


class CachedVisit:
    """One visit of a site in a cache."""

    __slots__ = ("_of", "number")

    def __init__(self, of: Cached, number: int) -> None:
        self._of = of
        self.number = number

    def _value(self, port: Port, name: str) -> Any:
        held = self._of._cache._of(self._of._path, port)
        if self.number not in held:
            raise self._of._missing(port)
        return self._of._value(held[self.number], name)

    @property
    def output(self) -> Any:
        """What was returned."""
        return self._value("output", "output")

    @property
    def inputs(self) -> Any:
        """`(args, kwargs)` of the call."""
        return self._value("input", "inputs")

    @property
    def input(self) -> Any:
        """The first argument of the call."""
        return self._value("input", "input")

    def __repr__(self) -> str:
        return f"<visit {self.number} of {spell(self._of._path)} in a cache>"


def _has(cache: "Cache") -> str:
    said = ", ".join(dict.fromkeys(wanted.said for wanted in cache._wanted[:5] if wanted.said))
    return f"\nIt records {said}{', ...' if len(cache._wanted) > 5 else ''}." if said else ""
