"""`python -m benchmarks.source`: reading one operation inside attention, against a forward patched by hand.

The patch is what a careful user writes: a copy of the forward with one line more, put on the instance for
one run and taken away after it.
"""

from collections.abc import Callable
from types import MethodType

import torch
from torch import nn

import interlace as il
from benchmarks.measure import Contender, interleaved

LAYERS, WIDTH, HEADS, TOKENS = 4, 32, 4, 8


class Attention(nn.Module):
    """Self-attention, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, pos, d_model = x.shape
        q, k, v = self.qkv(x).view(batch, pos, 3, HEADS, d_model // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (d_model // HEADS) ** 0.5
        pattern = scores.softmax(-1)
        mixed = (pattern @ v).transpose(1, 2).reshape(batch, pos, d_model)
        return self.out(mixed)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)  # type: ignore[no-any-return]


def patched(seen: list[torch.Tensor]) -> Callable[[Attention, torch.Tensor], torch.Tensor]:
    """The forward of `Attention`, copied, with one line more."""

    def forward(self: Attention, x: torch.Tensor) -> torch.Tensor:
        batch, pos, d_model = x.shape
        q, k, v = self.qkv(x).view(batch, pos, 3, HEADS, d_model // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (d_model // HEADS) ** 0.5
        pattern = scores.softmax(-1)
        seen.append(pattern)
        mixed = (pattern @ v).transpose(1, 2).reshape(batch, pos, d_model)
        return self.out(mixed)  # type: ignore[no-any-return]

    return forward


def subjects() -> dict[str, Callable[[], object]]:
    """What is timed, by name; each runs the model once and all but the first return the pattern."""
    net = nn.Sequential(*(Block() for _ in range(LAYERS))).eval()
    model = il.Model(net)
    x = torch.randn(1, TOKENS, WIDTH)
    block = net[1]
    assert isinstance(block, Block)
    attention = block.attention

    def bare() -> object:
        return net(x)

    def by_hand() -> object:
        seen: list[torch.Tensor] = []
        vars(attention)["forward"] = MethodType(patched(seen), attention)
        try:
            net(x)
        finally:
            del vars(attention)["forward"]
        return seen[0]

    def one_module() -> object:
        with model.trace(x):
            return model[1].attention.output

    def one_operation() -> object:
        with model.trace(x):
            return model[1].attention.source.pattern_0.output

    assert torch.equal(by_hand(), one_operation())  # type: ignore[arg-type]
    return {
        "bare": bare,
        "patched by hand": by_hand,
        "interlace, a module": one_module,
        "interlace, an operation": one_operation,
    }


def text(seconds: float = 4.0) -> str:
    """A table: the time of a run, and what it takes above the bare one, in microseconds."""
    costs = interleaved({name: Contender(call) for name, call in subjects().items()}, seconds)
    rows = [f"| {name} | {cost.total:.1f} | {cost.extra:.1f} |" for name, cost in costs.items()]
    return "\n".join(["| one run of four small blocks | µs | above bare, µs |", "|---|---:|---:|", *rows])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        print(text())
