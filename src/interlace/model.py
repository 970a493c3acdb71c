"""The root of a tree: wraps any `nn.Module`."""

from typing import Any

from torch import nn

from interlace.envoy import Envoy
from interlace.rename import Aliases


class Model(Envoy):
    """Any PyTorch model, to be read and changed while it runs.

    Wrapping leaves nothing on the modules, and takes microseconds whatever the size of the model.

    Args:
        module: The model.
        rename: Other names for modules; see `Envoy`.
        envoys: Other classes for the envoys of some modules; see `Envoy`.

    Example:
        >>> import torch, interlace as il
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> model = il.Model(net)
        >>> with model.trace(torch.ones(1, 2)):
        ...     model[0].output[:] = -1
        ...     out = model.output
        >>> out
        tensor([[0., 0., 0.]], grad_fn=<ReluBackward0>)
    """

    def __init__(self, module: nn.Module, rename: Aliases | None = None, envoys: Any = None) -> None:
        super().__init__(module, "model", rename, envoys)
