"""`python -m benchmarks.modes`: a read of every block while a mode of torch is in force on both sides.

Each side of a trace has torch's state of its own, which is compared whenever they change. Most of it is at rest,
and a mode is what is not.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from benchmarks import models
from benchmarks.adapters import tools
from benchmarks.measure import Contender, interleaved
from benchmarks.report import table

BLOCKS = 32

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a default device": lambda: torch.device("cpu"),
}


def rows(seconds: float) -> Iterator[list[str]]:
    made = tools()
    chosen = {name: made[name](models.overhead(BLOCKS)) for name in ("bare", "hooks", "interlace")}
    calls = {name: tool.read_all if name != "bare" else tool.untraced for name, tool in chosen.items()}
    for name, mode in MODES.items():
        with mode():
            costs = interleaved({tool: Contender(call) for tool, call in calls.items()}, seconds)
        hooks, ours = costs["hooks"].extra, costs["interlace"].extra
        yield [name, f"{hooks:.1f}", f"{ours:.1f}", f"{ours / hooks:.2f}"]


def text(seconds: float = 2.0) -> str:
    """A table: what a read of every block costs above the bare call, in microseconds, by mode."""
    return table(["read every block", "hooks +µs", "interlace +µs", "times hooks"], rows(seconds))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(text())
