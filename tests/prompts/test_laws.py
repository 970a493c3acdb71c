"""Laws 3 and 4 for several prompts in one forward, over random programs."""

from __future__ import annotations

import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prompts.programs import MODELS, WIDTH, indent, run, statements, wrapped

NAMES = ("first_out", "block_out", "last_out", "result", "total", "grad")


def inputs(sizes: list[int]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size, WIDTH) for size in sizes]


def alone(model: str, body: list[str], x: torch.Tensor, grad: bool) -> dict[str, object]:
    text = (
        f"x.requires_grad_({grad})\ntotal = 0\nwith model.trace(x):\n{indent([*body, 'result = model.output'])}\n"
        + ("grad, = torch.autograd.grad(result.sum(), x, allow_unused=True)\n" if grad else "")
    )
    return run(text, {"model": wrapped(model), "torch": torch, "x": x.clone()})


def together(
    model: str, bodies: list[list[str]], xs: list[torch.Tensor], form: str, grad: bool
) -> list[dict[str, object]]:
    """Each body under names of its own, in one forward."""
    lines = ["with model.trace() as tracer:"]
    for n, body in enumerate(bodies):
        own = [rename(line, n) for line in [*body, "result = model.output"]]
        block = "\n".join(own)
        if form == "with":
            lines.append(f"    with tracer.invoke(x{n}):\n{textwrap.indent(block, ' ' * 8)}")
        else:
            names = ", ".join(f"{name}_{n}" for name in NAMES[:5])
            lines.append(
                f"    @tracer.invoke(x{n})\n    def f{n}():\n        global {names}\n{textwrap.indent(block, ' ' * 8)}"
            )
    if grad:
        lines += [
            f"grad_{n}, = torch.autograd.grad(result_{n}.sum(), x{n}, allow_unused=True, retain_graph=True)"
            for n in range(len(xs))
        ]
    known: dict[str, object] = {f"x{n}": x.clone().requires_grad_(grad) for n, x in enumerate(xs)}
    known |= {f"total_{n}": 0 for n in range(len(xs))}
    made = run("\n".join(lines), {"model": wrapped(model), "torch": torch, **known})
    return [{name: made.get(f"{name}_{n}") for name in NAMES} for n in range(len(xs))]


def rename(line: str, n: int) -> str:
    for name in NAMES:
        line = line.replace(f"{name} = ", f"{name}_{n} = ").replace(f"{name} += ", f"{name}_{n} += ")
    return line


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("form", ["with", "function"])
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_batched_equals_one_by_one(model: str, form: str, grad: bool, data: st.DataObject) -> None:
    """Laws 3 and 4, S-71, S-72, S-80: each prompt gets what it would get alone, gradients too."""
    bodies = data.draw(st.lists(statements(model), min_size=1, max_size=3))
    if grad and model == "residual":  # torch refuses to change a tanh's result in place, alone too
        bodies = [[line for line in body if "] = " not in line] for body in bodies]
    xs = inputs([1 + n % 2 for n in range(len(bodies))])
    with torch.set_grad_enabled(grad):
        found = together(model, bodies, xs, form, grad)
        for body, x, own in zip(bodies, xs, found, strict=True):
            expected = alone(model, body, x, grad)
            for name in NAMES:
                torch.testing.assert_close(own[name], expected.get(name))


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_an_edit_equals_its_block_in_every_trace(model: str, data: st.DataObject) -> None:
    """Law 4, S-39, S-87, S-100: a stored block does to a plain call what it does in a trace, in both forms."""
    body = [line for line in data.draw(statements(model)) if "total" not in line]
    x = inputs([2])[0]
    block = textwrap.indent(indent(body), "    ")
    text = (
        f"with torch.no_grad():\n  with model.trace(x):\n{block}\n        result = model.output\n"
        f"  with model.edit() as edited:\n{block}\n"
        f"  def change(model):\n{block}\n"
        "  again = model.edit(change)\n  plain, called, clean = edited(x), again(x), model(x)\n"
        "  with edited.trace(x): traced = edited.output\n"
    )
    made = run(text, {"model": wrapped(model), "torch": torch, "x": x})
    for name in ("plain", "called", "traced"):
        torch.testing.assert_close(made[name], made["result"])
    with torch.no_grad():
        torch.testing.assert_close(made["clean"], wrapped(model)(x))
