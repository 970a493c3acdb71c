"""Values that are nan or infinite, and the first module that made one.

`Search` watches modules begin and end. The one to blame is the first to return something non-finite without
having been given any. A tensor in which only -inf is not finite is a mask, which may be given. Knows visits,
not runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interlace.site import Port, Visit, spell
from interlace.trees import children


@dataclass(frozen=True, slots=True)
class Count:
    """The non-finite elements of some nested values.

    Attributes:
        nan: How many elements are nan.
        inf: How many are infinite, of either sign.
        size: How many elements there are in the tensors that have such elements.
        part: Where the first such tensor is in the value: `""` for a tensor itself, `[0]`, `.logits`.
        index: The place of the first such element in that tensor, in row-major order.
    """

    nan: int = 0
    inf: int = 0
    size: int = 0
    part: str = ""
    index: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nan or self.inf)

    def __str__(self) -> str:
        found = [f"{n:,} {word}" for n, word in ((self.nan, "nan"), (self.inf, "inf")) if n]
        return f"{' and '.join(found)} of {self.size:,} values" if found else "all finite"

    def beside(self, other: "Count") -> "Count":
        """Both counts as one; the place is of whichever comes first."""
        first = self or other
        return Count(
            self.nan + other.nan, self.inf + other.inf, self.size + other.size, first.part, first.index
        )


NONE = Count()


def count(value: Any, inf: bool = True, part: str = "", masks: bool = True) -> Count:
    """The non-finite elements of the tensors in a value.

    Args:
        value: A tensor, or any nest of containers around tensors.
        inf: Whether infinities count; else only nan does.
        part: Where `value` is in something larger.
        masks: Whether tensors count in which only -inf is not finite.

    >>> count((torch.ones(2), torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])))
    Count(nan=1, inf=0, size=4, part='[1]', index=(1, 0))
    """
    if isinstance(value, torch.Tensor):
        return _of_tensor(value, inf, part, masks)
    found = NONE
    for name, inside in children(value) or ():
        one = count(inside, inf, part + name, masks)
        if one:
            found = found.beside(one)
    return found


def _of_tensor(value: torch.Tensor, inf: bool, part: str, masks: bool) -> Count:
    if (
        not (value.is_floating_point() or value.is_complex())
        or value.is_meta
        or str(value.dtype).startswith("torch.float4")  # which knows neither nan nor infinities
    ):
        return NONE
    value = value.detach()
    if value.is_nested:
        return _of_rows(value.unbind(), inf, part, masks)
    size, shape, indices = value.numel(), value.shape, None
    if value.layout != torch.strided:
        value, indices = _stored(value)
    if value.dtype.itemsize == 1:
        value = value.float()  # of 8 bits torch cannot say what is finite
    if inf and torch.isfinite(value).all():
        return NONE
    nan = torch.isnan(value)
    bad = nan | torch.isinf(value) if inf else nan
    places = bad.nonzero()
    if not len(places) or (not masks and not value.is_complex() and bool((value[bad] == -torch.inf).all())):
        return NONE
    nans = int(nan.sum())
    first = places[0] if indices is None else _first(places, indices, shape)
    return Count(nans, len(places) - nans, size, part, tuple(first.tolist()))


def _of_rows(rows: Sequence[torch.Tensor], inf: bool, part: str, masks: bool) -> Count:
    """Those of a nested tensor, whose rows have shapes of their own."""
    found = NONE
    for row, held in enumerate(rows):
        one = _of_tensor(held, inf, part, masks)
        found = found.beside(replace(one, index=(row, *one.index)) if one else one)
    return found


def _stored(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a tensor of another layout stores; of a sparse one also where, as `axis entry`."""
    if value.layout == torch.sparse_coo:
        value = value.coalesce()  # it may say several things of one place, which are added
    elif value.layout in SPARSE:
        value = value.to_sparse()
    else:
        return value.to_dense(), None
    return value._values(), value._indices()


def _first(places: torch.Tensor, indices: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The first, in row-major order, of some places among the values that a sparse tensor stores."""
    whole = torch.cat([indices.T[places[:, 0]], places[:, 1:]], dim=1)
    for axis in range(len(shape)):
        whole = whole[whole[:, axis] == whole[:, axis].min()]
    return whole[0]


SPARSE = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
"""The layouts of sparse tensors in compressed rows, columns or blocks."""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The first module of a run that made a nan or an infinity.

    Attributes:
        path: The module: `model.h.3.mlp`.
        visit: Which of its calls in the run, from 0.
        port: `output`; `input` where the input of the whole run had it already.
        value: What is not finite there: how many, and where the first one is.
        inputs: What is not finite in the arguments of that call.
        parameters: The parameters and buffers of the module itself that are not finite, by name.
    """

    path: str
    visit: int
    port: Port
    value: Count
    inputs: Count
    parameters: tuple[str, ...]

    @property
    def inputs_finite(self) -> bool:
        """Whether the call was given finite values only."""
        return not self.inputs

    @property
    def where(self) -> str:
        """The place as one would type it: `model.h[3].mlp.output[0]`."""
        port = "inputs" if self.port == "input" else "output"
        return f"{spell(self.path)}.{port}{self.value.part}"

    def __str__(self) -> str:
        visit = f" (visit {self.visit})" if self.visit else ""
        lines = [
            f"`{self.where}`{visit} has {self.value}; the first at {list(self.value.index)}.",
            f"Its inputs: {self.inputs}.",
        ]
        if self.port == "input":
            lines[1] = "It came with the input of the run."
        if self.parameters:
            lines.append(f"Not finite in its weights: {', '.join(self.parameters)}.")
        return "\n".join(lines)


class Search:
    """Watches the calls of a run for the first module that makes something non-finite.

    Args:
        modules: The modules that are watched, by key, each with its path.
        root: The key of the module whose input is the input of the run.
        inf: Whether infinities count.
        found: Called at the visit, once.
    """

    def __init__(
        self,
        modules: Mapping[Any, tuple[str, torch.nn.Module]],
        root: Any,
        inf: bool,
        found: Callable[[NonFinite, Visit], None],
    ) -> None:
        self.modules = modules
        self.root = root
        self.inf = inf
        self.over = False
        self._found = found
        self._inputs: dict[tuple[Any, int], tuple[Count, bool]] = {}

    def enter(self, visit: Visit) -> None:
        """A call begins."""
        if self.over:
            return
        given = count((visit.args, visit.kwargs))
        tainted = bool(count((visit.args, visit.kwargs), self.inf, masks=False)) if given else False
        self._inputs[visit.key, visit.number] = given, tainted
        if tainted and visit.key == self.root and visit.number == 0:
            self._tell(visit, "input", count((visit.args, visit.kwargs), self.inf), given)

    def leave(self, visit: Visit) -> None:
        """A call has returned."""
        if self.over:
            return
        given, tainted = self._inputs.pop((visit.key, visit.number), (NONE, False))
        made = count(visit.result, self.inf)
        if not made:
            return
        more = count(visit.result, self.inf, masks=False)
        if (more and not tainted) or not given:  # a mask that is passed on is nobody's fault
            self._tell(visit, "output", made, given)

    def _tell(self, visit: Visit, port: Port, value: Count, given: Count) -> None:
        self.over = True
        path, module = self.modules[visit.key]
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        bad = tuple(name for name, held in own if count(held, self.inf))
        self._found(NonFinite(path, visit.number, port, value, given, bad), visit)
