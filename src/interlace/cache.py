"""Record many sites of one run, and walk what was recorded like the model.

A run tells a cache of every visit when the model goes on from it, so that it holds what everybody has written. A
cache knows the names of the model (`Outline`) and none of its modules, so it keeps no weights in memory.
"""

import warnings
import weakref
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from interlace.cached import SHOWN, Cached
from interlace.errors import CacheMissError, InputError, InterlaceWarning, nearest, outside
from interlace.keeping import Keep
from interlace.selection import Outline, Wanted, path_of
from interlace.site import Port, Site, Visit
from interlace.spill import Spill

if TYPE_CHECKING:
    from interlace.run import Run
    from interlace.trace import Trace

Values = defaultdict[Any, dict[int, Any]]
"""By key: the number of each visit to what it gave."""


class Cache(Mapping[str, Cached]):
    """What `tracer.cache(...)` records: the values of many sites, under the names that they have in the model.

    A mapping from path to what was recorded there, in the order of the model; and the root of a tree that is
    walked like the model, aliases included. An envoy or an operation stands for its path.

    Example:
        >>> import interlace as il, torch
        >>> model = il.Model(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()))
        >>> with model.trace(torch.ones(1, 2)) as tracer:
        ...     cache = tracer.cache()
        >>> cache[0].output.shape, cache["model.0"].output.shape, list(cache)
        (torch.Size([1, 3]), torch.Size([1, 3]), ['model', 'model.0', 'model.1'])
    """

    def __init__(self, outline: Outline, wanted: list[Wanted], keep: Keep, ports: tuple[Port, ...]) -> None:
        self._outline = outline
        self._wanted = wanted
        self._keep: Keep | None = keep
        self._ports = ports
        self._spill: Spill | None = None
        self._keys: Container[Any] = frozenset()
        self._on_the_way: set[str] = set()
        self._listed: dict[str, list[Site]] = {}
        self._values: dict[Port, Values] = {"input": defaultdict(dict), "output": defaultdict(dict)}
        self._run: weakref.ref[Run] | None = None
        self._over = ""
        self._reports = True
        self._late = False

    # -- while the model runs ------------------------------------------------------------------------------------

    def _attach(self, trace: "Trace", run: Any) -> None:
        """Record in a run from now on."""
        keys, many = frozenset[Any](), len(self._wanted) > 1
        for wanted in self._wanted:
            own = wanted.keys
            if wanted.operations:
                sites = [one._owner._frame(trace).site(one._named) for one in wanted.operations]
                self._outline = self._outline.with_sites(sites)
                self._listed[wanted.said] = sites
                own = frozenset(site.key for site in sites)
            keys = keys | own if many else own
            if self._outline.fused:
                self._unfuse(trace, wanted)
        self._keys = keys
        self._on_the_way.clear()
        for port in self._ports:
            run.record(keys, port, self._recorder(port))
        self._run = weakref.ref(model_run := trace._model_run)
        self._late = model_run.switch.started

    def _unfuse(self, trace: "Trace", wanted: Wanted) -> None:
        """Have torch come past modules that it may run as one operation, as it does where there are hooks."""
        for site in wanted.sites:
            if site.path in self._outline.fused:
                trace._unfuse(trace._tree.find(site.path))

    def _recorder(self, port: Port) -> Any:
        values, keep = self._values[port], self._keep
        assert keep is not None
        if self._spill is not None:
            return self._spiller(port, keep, self._spill)
        if port == "output":

            def record(visit: Visit) -> None:
                values[visit.key][visit.number] = keep(visit.result)

        else:

            def record(visit: Visit) -> None:
                values[visit.key][visit.number] = keep((visit.args, visit.kwargs))

        return record

    def _spiller(self, port: Port, keep: Keep, spill: Spill) -> Any:
        values = self._values[port]
        before = {key: len(held) for key, held in values.items()}
        paths = {site.key: site.path for site in self._outline.sites.values()}

        def record(visit: Visit) -> None:
            number = visit.number + before.get(visit.key, 0)
            value = keep(visit.result if port == "output" else (visit.args, visit.kwargs))
            values[visit.key][number] = spill.put(paths[visit.key], port, number, value)

        return record

    def _close(self, run: Any, whole: bool) -> None:
        """The trace is over. Report what was listed and never reached, unless the run was cut short."""
        self._run = None
        stopped = run is not None and run.stopped
        self._over = "the model has finished" if whole else "the run ended with an error"
        if whole and stopped:
            self._over = "the run was stopped"
        self._keep = None  # so that a cache can be pickled
        unreached = [wanted.said for wanted in self._wanted if wanted.said and not self._reached(wanted)]
        self._wanted = [Wanted(wanted.said) for wanted in self._wanted]  # operations know modules
        if self._spill is not None:
            self._spill.end(whole)
        if unreached and self._reports and whole and not stopped:
            some = ", ".join(unreached[:4]) + (
                f" and {len(unreached) - 4} more" if len(unreached) > 4 else ""
            )
            why = (
                "not reached from then on: the model had started. Open the cache above what asks for a value."
                if self._late
                else "never reached: the model finished without calling it."
            )
            warnings.warn(
                f"{some} was listed in a cache and {why}",
                InterlaceWarning,
                stacklevel=outside(),
            )

    def _reached(self, wanted: Wanted) -> bool:
        sites = self._listed.get(wanted.said, wanted.sites)
        return any(site.key in values for site in sites for values in self._values.values())

    # -- what was recorded ---------------------------------------------------------------------------------------

    def _of(self, path: str, port: Port) -> dict[int, Any]:
        """The visits of a site, by number; empty where there are none."""
        site = self._outline.sites.get(path)
        return {} if site is None else self._values[port].get(site.key, {})

    def _load(self, value: Any) -> Any:
        return self._spill.get(value) if self._spill is not None else value

    def _paths(self) -> Iterator[str]:
        for path, site in self._outline.sites.items():
            if site.path == path and any(site.key in values for values in self._values.values()):
                yield path

    def _shows(self, path: str) -> bool:
        """Whether anything was to be recorded there or below."""
        site = self._outline.sites.get(path)
        if site is not None and site.key in self._keys:
            return True
        if not self._on_the_way:
            for listed, one in self._outline.sites.items():
                while one.key in self._keys and listed not in self._on_the_way:
                    self._on_the_way.add(listed)
                    listed = listed.rpartition(".")[0]
        return path in self._on_the_way

    def _where(self) -> str:
        run = self._run() if self._run is not None else None
        return self._over or ("the model has not started" if run is None else run.where())

    def _root(self) -> Cached:
        return Cached(self, self._outline.root)

    @classmethod
    def open(cls, folder: Any) -> "Cache":
        """A cache that was written by `tracer.cache(..., to=folder)`, its values read when they are asked for.

        Raises:
            RecordingError: There is none, or one of its files is damaged.
        """
        spill = Spill.read(folder)
        cache = cls(spill.outline(), [], lambda value: value, ("output", "input"))
        cache._keys = frozenset(site.key for site in cache._outline.sites.values())
        cache._over = "that is all that was recorded"
        cache._read(spill)
        return cache

    def _write_to(self, folder: Any, settings: dict[str, Any], shard_bytes: int) -> None:
        """Keep values in a folder, after those that are there already."""
        outline = self._outline
        said = [wanted.said or "every module" for wanted in self._wanted]
        settings = {"root": outline.root, "modules": said, "ports": self._ports, **settings}
        self._read(Spill.write(folder, settings, shard_bytes, outline.aliases))

    def _read(self, spill: Spill) -> None:
        self._spill = spill
        for path, port, number, entry in spill.entries():
            site = self._outline.sites.get(path)
            if site is not None:
                self._values[port][site.key][number] = entry

    def __getitem__(self, key: Any) -> Cached:
        key = path_of(key)
        if not isinstance(key, str):
            found: Cached = self._root()[key]
            return found
        site = self._outline.sites.get(key)
        if site is not None and site.key in self._keys:
            return Cached(self, key)
        path = self._outline.resolve(key)
        if path is None:
            names = [name for path in self._outline.sites for name in (path, path.partition(".")[2])]
            raise CacheMissError(f"The model has no `{key}`, so the cache has none.{nearest(key, names)}")
        return self._root()._at(path)

    def __contains__(self, key: object) -> bool:
        key = path_of(key)
        path = self._outline.resolve(key) if isinstance(key, str) else None
        return path is not None and bool(self._of(path, "output") or self._of(path, "input"))

    def __iter__(self) -> Iterator[str]:
        return self._paths()

    def __len__(self) -> int:
        return sum(1 for _ in self._paths())

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._root(), name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *dir(self._root())]

    def __repr__(self) -> str:
        paths = list(self)
        lines = [f"Cache of {len(paths)} sites" + ("" if self._over else f"; {self._where()}")]
        lines += [f"  {self[path]._line()}" for path in paths[:SHOWN]]
        return "\n".join(lines + ["  ..."] * (len(paths) > SHOWN))


def chosen_ports(outputs: bool, inputs: bool) -> tuple[Port, ...]:
    """The ports that are to be recorded.

    Raises:
        InputError: There are none.
    """
    asked: dict[Port, bool] = {"output": outputs, "input": inputs}
    if not any(asked.values()):
        raise InputError("Neither outputs nor inputs are to be recorded, so nothing is.")
    return tuple(port for port, wanted in asked.items() if wanted)
