"""What `with model.trace(...) as tracer:` binds, and what it makes."""

from interlace.invoke import Barrier
from interlace.trace import Trace


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
        self._trees = (self._tree, *self._tree.lineage)
        super().__enter__()
        return self


Tracer = InterleavingTracer

__all__ = ["Barrier", "InterleavingTracer", "Tracer"]
