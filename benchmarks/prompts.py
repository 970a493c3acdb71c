"""`python -m benchmarks.prompts`: several prompts in one forward, edits that stay, and keeping a block.

The hooks are what a careful user writes: registered for one run, each changes its own rows of the batch, and
removed after it. Costs are the extra time above one forward of the whole batch without any of that.
"""

import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from time import thread_time_ns
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import interlace as il
from benchmarks.aims import Aim
from benchmarks.measure import Contender, Cost, interleaved

LAYERS, WIDTH, PROMPTS = 32, 32, 16
RATIO, MORE = 1.5, 50.0  # times the hooks, and microseconds
SIXTEEN_RATIO, EDIT_RATIO = 2.0, 1.5
AGAIN, FIRST = 30.0, 5000.0  # microseconds
LONG = 2000  # lines
_files = count()

Sites = list[list[int]]
"""The layers that each prompt changes."""


class Subject:
    """A chain of layers, the prompts, and a value to write."""

    def __init__(self) -> None:
        self.net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).eval()
        self.model = il.Model(self.net)
        self.inputs = [torch.randn(1, WIDTH) for _ in range(PROMPTS)]
        self.value = torch.randn(1, WIDTH)

    def bare(self, prompts: int) -> list[torch.Tensor]:
        """One forward of the whole batch; each prompt's row of the result."""
        return list(self.net(torch.cat(self.inputs[:prompts])).split(1))

    def hooks(self, sites: Sites) -> list[torch.Tensor]:
        """By hand: a hook for each write, which slices its prompt's row."""
        registered: list[RemovableHandle] = []
        for prompt, layers in enumerate(sites):

            def write(_: nn.Module, __: Any, output: torch.Tensor, prompt: int = prompt) -> None:
                output[prompt : prompt + 1] = self.value

            registered += [self.net[layer].register_forward_hook(write) for layer in layers]
        try:
            return self.bare(len(sites))
        finally:
            for hook in registered:
                hook.remove()

    def functions(self, sites: Sites) -> list[torch.Tensor]:
        """A function for each prompt."""
        model, value = self.model, self.value
        results: list[torch.Tensor] = []
        with model.trace() as tracer:
            for prompt, layers in enumerate(sites):

                def block(layers: list[int] = layers) -> None:
                    for layer in layers:
                        model[layer].output = value
                    results.append(model.output)

                tracer.invoke(self.inputs[prompt])(block)
        return results

    def blocks(self, sites: Sites) -> list[torch.Tensor]:
        """A captured block for each prompt."""
        model, value = self.model, self.value
        results: list[Any] = [None] * len(sites)
        with model.trace() as tracer:
            for prompt, layers in enumerate(sites):
                with tracer.invoke(self.inputs[prompt]):
                    for layer in layers:
                        model[layer].output = value
                    results[prompt] = model.output
        return results


def workloads() -> dict[str, tuple[Sites, Callable[[float], float], str]]:
    """The layers that each prompt changes, and the limit that the hooks' cost gives, by name."""
    small = f"{RATIO} times the hooks + {MORE:.0f} µs"
    return {
        "two prompts, one replacement each": ([[5], [9]], lambda hooks: RATIO * hooks + MORE, small),
        "two prompts, 16 replacements": (
            [list(range(0, 16, 2)), list(range(1, 16, 2))],
            lambda hooks: SIXTEEN_RATIO * hooks,
            f"{SIXTEEN_RATIO:.0f} times the hooks",
        ),
        f"{PROMPTS} prompts, one replacement each": ([[n] for n in range(PROMPTS)], lambda hooks: 0.0, ""),
    }


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def prompt_rows(seconds: float) -> Iterator[str]:
    subject = Subject()
    for name, (sites, limit, words) in workloads().items():
        expected = subject.hooks(sites)
        same(subject.functions(sites), expected)
        same(subject.blocks(sites), expected)
        costs = interleaved(
            {
                "bare": Contender(partial(subject.bare, len(sites))),
                "hooks": Contender(partial(subject.hooks, sites)),
                "functions": Contender(partial(subject.functions, sites)),
                "blocks": Contender(partial(subject.blocks, sites)),
            },
            seconds,
        )
        hooks = costs["hooks"]
        for form in ("functions", "blocks"):
            aim = Aim(words, limit(hooks.extra), costs[form].extra, costs[form].error) if words else None
            yield _row(f"{name} ({form})", hooks, costs[form], aim)


def edit_rows(seconds: float) -> Iterator[str]:
    subject = Subject()
    x, layers = torch.cat(subject.inputs), range(0, LAYERS, 4)

    def change(model: il.Envoy) -> None:
        for layer in layers:
            model[layer].output[:] = subject.value

    edited = subject.model.edit(change)
    hooked = nn.Sequential(*subject.net)

    def write(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        output[:] = subject.value

    def by_hand() -> Any:
        registered = [hooked[layer].register_forward_hook(write) for layer in layers]
        try:
            return hooked(x)
        finally:
            for hook in registered:
                hook.remove()

    torch.testing.assert_close(edited(x), by_hand())
    calls: dict[str, Callable[[], Any]] = {
        "bare": lambda: subject.net(x),
        "hooks": by_hand,
        "edited": lambda: edited(x),
    }
    costs = interleaved({name: Contender(call) for name, call in calls.items()}, seconds)
    limit = EDIT_RATIO * costs["hooks"].extra
    aim = Aim(f"{EDIT_RATIO} times the hooks", limit, costs["edited"].extra, costs["edited"].error)
    yield _row(f"an edited model, {len(layers)} writes", costs["hooks"], costs["edited"], aim)


def _row(name: str, hooks: Cost, ours: Cost, aim: Aim | None) -> str:
    said = f"{aim.text} | {aim.verdict}" if aim is not None else " | "
    return f"| {name} | {hooks.extra:.1f} | {ours.extra:.1f} | {ours.extra / hooks.extra:.2f} | {said} |"


# -- what it costs to keep a block ---------------------------------------------------------------------------

BLOCK = """\
def keep(model):
    with model.edit():
        hidden = model[0].output
        for layer in (1, 2, 3):
            hidden = hidden + model[layer].output
        model[4].output = hidden


def change(model):
    pass


def function(model):
    model.edit(change)


"""


@contextmanager
def program(lines: int) -> Iterator[tuple[CodeType, str]]:
    """A file of so many lines with a block in its middle."""
    filler = "def filler():\n    return [n for n in range(10)]\n\n"
    before = filler * (lines // 6)
    text = before + BLOCK + before
    name = f"/nowhere/prompts_{next(_files)}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        yield compile(text, name, "exec"), name
    finally:
        del linecache.cache[name]


def captures(lines: int, fresh: int, repeats: int) -> tuple[float, float]:
    """Microseconds to keep a block the first time and again, above those of storing a function."""
    model = il.Model(nn.Sequential(*(nn.Linear(2, 2) for _ in range(5))))

    def timed(call: Callable[[il.Model], None]) -> float:
        start = thread_time_ns()
        call(model)
        return (thread_time_ns() - start) / 1000

    firsts, repeated, functions = [], [], []
    for _ in range(fresh):
        with program(lines) as (code, _):
            names: dict[str, Any] = {}
            exec(code, names)
            functions.append(min(timed(names["function"]) for _ in range(repeats)))
            firsts.append(timed(names["keep"]))
            repeated.append(min(timed(names["keep"]) for _ in range(repeats)))
    plain = min(functions)
    return min(firsts) - plain, min(repeated) - plain


def capture_rows(fresh: int) -> Iterator[str]:
    for lines in (50, LONG):
        first, again = captures(lines, fresh, 50)
        for what, figure, limit in (("the first time", first, FIRST), ("again", again, AGAIN)):
            aim = Aim(f"{limit:.0f} µs", limit, figure)
            yield f"| in a file of {lines} lines, {what} | {figure:.1f} | {aim.text} | {aim.verdict} |"


def text(seconds: float = 4.0, fresh: int = 20) -> str:
    """Two tables: several prompts and edits against hooks; what a captured block costs beside a function."""
    return "\n".join(
        [
            "| one run of 32 small layers | hooks, µs | interlace, µs | ratio | aim | verdict |",
            "|---|---:|---:|---:|---|---|",
            *prompt_rows(seconds),
            *edit_rows(seconds),
            "",
            "| capturing a block, beside storing a function | µs | aim | verdict |",
            "|---|---:|---|---|",
            *capture_rows(fresh),
        ]
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        print(text())
