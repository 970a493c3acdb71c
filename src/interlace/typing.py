"""Types for editors and checkers; nothing here runs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    class Activation(torch.Tensor):
        """What is read from an envoy: nearly always a tensor, else a container whose parts are reached by name."""

        def __getattr__(self, name: str) -> Any: ...
