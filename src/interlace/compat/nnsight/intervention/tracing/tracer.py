"""What `with model.trace(...) as tracer:` binds, and what it makes."""

from typing import TYPE_CHECKING

from interlace.invoke import Barrier
from interlace.trace import Trace

if TYPE_CHECKING:
    from interlace.frames import Owner
    from interlace.tree import Tree
    from interlace.workers import Worker

    Trees = tuple[Tree, ...]


class InterleavingTracer(Trace):
    """A trace whose block may also use the names of the model that the traced one is an edited copy of.

    In nnsight the two share their envoys, and its documentation traces `model_edited` and reads `model`.

    >>> import torch
    >>> import interlace.compat.nnsight as nnsight
    >>> model = nnsight.NNsight(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    >>> with model.edit() as model_edited:
    ...     model[0].output[:] = 5
    >>> with model_edited.trace(torch.ones(1, 2)):
    ...     out = model[0].output.save()
    >>> out.tolist()
    [[5.0, 5.0]]
    """

    def __enter__(self) -> "InterleavingTracer":
        super().__enter__()
        for tree in self._tree.lineage:
            tree.opened(self._owner, self)
        return self

    def _close(self) -> None:
        if self._taps is not None:
            for tree in self._tree.lineage:
                tree.closed(self._owner, self)
        super()._close()

    def _serve(self, worker: "Worker", owner: "Owner", trees: "Trees") -> None:
        super()._serve(worker, owner, self._family(trees))

    def _unserve(self, trees: "Trees") -> None:
        super()._unserve(self._family(trees))

    def _family(self, trees: "Trees") -> "Trees":
        return (*trees, *(tree for tree in self._tree.lineage if tree not in trees))


Tracer = InterleavingTracer

__all__ = ["Barrier", "InterleavingTracer", "Tracer"]
