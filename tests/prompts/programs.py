"""Models and random programs of reads, writes and skips, as source text for each form of block."""

from __future__ import annotations

import linecache
from itertools import count

import torch
from hypothesis import strategies as st
from torch import nn

import interlace as il

_files = count()
WIDTH = 4


class Twice(nn.Module):
    """Calls one block two times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.block = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.block(torch.tanh(self.block(self.first(x))))))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Adds two branches that return tuples to a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Pair()
        self.block = Pair()
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)[0]
        x = x + self.block(x=x)[0]
        return self.last(x)  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Returns a tensor and what has no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return torch.tanh(self.inner(x)), 3


class Named(nn.Module):
    """Its blocks return dictionaries, and one changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Entry()
        self.between = nn.ReLU(inplace=True)
        self.block = Entry()
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(self.first(x)["hidden"] * 1.5)
        return self.last(x + self.block(x)["hidden"])  # type: ignore[no-any-return]


class Entry(nn.Module):
    """Returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        return {"hidden": self.inner(x) * 2, "count": 3}


class Sequence(nn.Sequential):
    """A plain chain."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "block", "last"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH))


MODELS = {"twice": Twice, "residual": Residual, "sequence": Sequence, "named": Named}
NESTED = {"residual": ("[0]", "({}, 3)"), "named": ("['hidden']", "{{'hidden': {}, 'count': 3}}")}
"""Where the tensor is in what a block returns, and how to write the whole."""


def statements(model: str, *, shuffled: bool = False) -> st.SearchStrategy[list[str]]:
    """Statements on the sites of a model, in the order in which it passes them, or in any."""
    sites = ["first", "block", "last"]
    part, nest = NESTED.get(model, ("", "{}"))

    def at(site: str) -> st.SearchStrategy[list[str]]:
        has = "" if site == "last" else part
        value = f"model.{site}.output{has}"
        name = f"{site}_out"
        new = f"{value} * 2 + 1"
        whole = nest.format(f"({new})") if has else new
        skipped = f"model.{site}.input * 0.5"
        choices = [
            [],
            [f"{name} = {value}.clone()"],
            [f"{value}[:] = {value} * 0.5"],
            [f"{value}[..., 0] = 1", f"{name} = {value}.sum(-1)"],
            [f"model.{site}.output = {whole}"],
            [f"model.{site}.input = model.{site}.input + 1", f"{name} = {value}.clone()"],
            [f"total += {value}.sum(-1)"],
            [f"model.{site}.skip({nest.format(skipped) if has else skipped})", f"{name} = {value}.clone()"],
        ]
        return st.sampled_from(choices)

    parts = st.tuples(*map(at, sites))
    orders = parts.flatmap(st.permutations) if shuffled else parts
    return orders.map(lambda parts: [line for part in parts for line in part])


def run(text: str, names: dict[str, object], *, stays: bool = False) -> dict[str, object]:
    """Run a program that has source; `stays` keeps it at hand afterwards, as that of a file is."""
    filename = f"/nowhere/program_{next(_files)}.py"
    linecache.cache[filename] = (1, None, text.splitlines(keepends=True), filename)
    try:
        exec(compile(text, filename, "exec"), names)
    finally:
        if not stays:
            del linecache.cache[filename]
    return names


def indent(lines: list[str]) -> str:
    return "\n".join("    " + line for line in lines or ["pass"])


def wrapped(model: str) -> il.Model:
    torch.manual_seed(0)
    return il.Model(MODELS[model]())


def shared() -> st.SearchStrategy[list[str]]:
    """Statements whose names are the same in all blocks, in the order in which the model passes the sites."""

    def at(site: str) -> st.SearchStrategy[list[str]]:
        value = f"model.{site}.output"
        choices = [
            [],
            [],
            [f"total += {value}.sum()"],
            [f"total = total + {value}.sum()"],
            ["count += 1"],
            [f"best = max(best, {value}.sum())"],
            [f"seen = {value}.mean()"],
            ["total += seen"],
            [f"{value}[:] = {value} * seen"],
            [f"for n in range(2): last = {value}[:, n].sum() + n", "count += n"],
            [f"if {value}.sum() > 0: best = total"],
            ["alias = total.detach()", f"seen = alias * {value}.sum()"],
            ["kept = [t for t in [total]]"],
            [f"seen = kept[0] + {value}.mean()"],
            ["alias = total", f"alias += {value}.sum()"],
            [f"score['n'] += {value}.numel()"],
            [f"if (seen := (\n    total\n    * {value}.sum())) > 0: best = seen * 1"],
        ]
        return st.sampled_from(choices)

    return st.tuples(*map(at, ("first", "block", "last"))).map(
        lambda parts: [line for part in parts for line in part]
    )
