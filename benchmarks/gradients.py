"""`python -m benchmarks.gradients`: the gradient of one logit at every layer, against hooks written by hand."""

from collections.abc import Callable

import torch
from torch import nn

import interlace as il
from benchmarks.measure import Contender, interleaved
from benchmarks.source import LAYERS, TOKENS, WIDTH, Block


def subjects() -> dict[str, Callable[[], list[torch.Tensor]]]:
    """What is timed, by name: a forward and a backward; all but the first return a gradient for each layer."""
    net = nn.Sequential(*(Block() for _ in range(LAYERS))).eval()
    model = il.Model(net)
    x = torch.randn(1, TOKENS, WIDTH)

    def bare() -> list[torch.Tensor]:
        net(x)[0, -1, 0].backward()
        return []

    def by_hand() -> list[torch.Tensor]:
        found: list[torch.Tensor] = []

        def forward(module: nn.Module, args: object, output: torch.Tensor) -> None:
            output.register_hook(found.append)  # type: ignore[no-untyped-call]

        placed = [block.register_forward_hook(forward) for block in net]
        try:
            net(x)[0, -1, 0].backward()
        finally:
            for hook in placed:
                hook.remove()
        return found

    def plain() -> list[torch.Tensor]:
        with model.trace(x):
            hidden = [block.output for block in model]
        return list(torch.autograd.grad(hidden[-1][0, -1, 0], hidden[::-1]))

    def paused() -> list[torch.Tensor]:
        with model.trace(x):
            hidden = [block.output for block in model]
        with il.backward(hidden[-1][0, -1, 0]):
            return [tensor.grad for tensor in reversed(hidden) if tensor.grad is not None]

    for way in (plain, paused):
        assert all(map(torch.equal, way(), by_hand()))
    return {
        "bare": bare,
        "hooks by hand": by_hand,
        "trace, autograd.grad": plain,
        "trace, il.backward": paused,
    }


def text(seconds: float = 4.0) -> str:
    """A table: the time of a run, and what it takes above the bare one, in microseconds."""
    costs = interleaved({name: Contender(call) for name, call in subjects().items()}, seconds)
    rows = [f"| {name} | {cost.total:.1f} | {cost.extra:.1f} |" for name, cost in costs.items()]
    header = ["| forward and backward of four small blocks | µs | above bare, µs |", "|---|---:|---:|"]
    return "\n".join([*header, *rows])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(text())
