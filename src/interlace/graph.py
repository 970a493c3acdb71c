"""The graph that autograd keeps: where the gradient of a tensor flows, in which order a backward runs, and why not.

It knows tensors and nodes, and nothing of a backward in progress.
"""

from heapq import heappop, heappush
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge

from interlace.errors import InputError
from interlace.trees import describe

Edge = tuple[Any, int]
"""A node of the graph and which of its outputs: where the gradient of a tensor flows."""


def edge(tensor: torch.Tensor) -> Edge:
    """Where the gradient of a tensor that requires one flows."""
    node = tensor.grad_fn
    if node is not None:
        return node, tensor.output_nr
    leaf = get_gradient_edge(tensor)
    return leaf.node, leaf.output_nr


def is_leaf(node: Any) -> bool:
    """Whether a node accumulates into a leaf."""
    return hasattr(node, "variable")


def order(root: Any) -> dict[Any, int]:
    """In which order the engine runs the nodes below `root`: of those that are ready, the one made last."""
    uses: dict[Any, int] = {root: 0}
    found = [root]
    for node in found:  # grows while it is walked
        for below, _ in node.next_functions:
            if below is not None:
                if below not in uses:
                    uses[below] = 0
                    found.append(below)
                uses[below] += 1
    positions: dict[Any, int] = {}
    ready: list[tuple[float, int, Any]] = [(0.0, 0, root)]
    while ready:
        _, _, node = heappop(ready)
        positions[node] = len(positions)
        for below, _ in node.next_functions:
            if below is not None:
                uses[below] -= 1
                if not uses[below]:
                    made = float("inf") if is_leaf(below) else below._sequence_nr()
                    heappush(ready, (-made, len(positions) + len(ready), below))
    return positions


def check(tensor: Any, gradient: Any) -> None:
    """Refuse to begin a backward where there is nothing to walk.

    Raises:
        InputError: And why.
    """
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"`il.backward` begins at a tensor, not at {describe(tensor)}.")
    if not tensor.requires_grad:
        raise InputError(f"There is no graph to walk backward from {describe(tensor)}: {why(tensor)}.")
    if gradient is None and tensor.numel() != 1:
        raise InputError(
            f"`il.backward` begins at one number, and this is {describe(tensor)}.\n"
            "Reduce it (`.sum()`, or pick one element), or give `gradient=` of its shape."
        )


def why(tensor: torch.Tensor) -> str:
    """Why a tensor has no graph."""
    if tensor.is_inference():
        return "it was made in inference mode.\nRun the trace outside of `torch.inference_mode()`"
    if not torch.is_floating_point(tensor) and not torch.is_complex(tensor):
        return f"{str(tensor.dtype).removeprefix('torch.')} values have no gradients"
    return (
        "it was computed under `torch.no_grad()` (`generate` runs so, and a checkpoint with "
        "`use_reentrant=True`),\nwas detached, or depends on nothing that requires gradients. Compute it with gradients "
        "enabled, or set\n`x.requires_grad_()` on the input"
    )
