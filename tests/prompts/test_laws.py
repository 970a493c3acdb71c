"""Laws 3 and 4 for several prompts in one forward, over random programs."""

from __future__ import annotations

import textwrap
import traceback
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interlace.errors import TraceError
from tests.prompts.programs import MODELS, WIDTH, indent, run, shared, statements, wrapped

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


ORDERS = {
    "native": "with model.trace(x):\n{body}\n    result = model.output",
    "with": (
        "with model.trace() as tracer:\n    with tracer.invoke(y):\n        other = model.output\n"
        "    with tracer.invoke(x):\n{deep}\n        result = model.output"
    ),
    "function": (
        "with model.trace() as tracer:\n    tracer.invoke(y)(lambda: model.output)\n    @tracer.invoke(x)\n"
        "    def result():\n        global first_out, block_out, last_out, total\n{deep}\n        return model.output"
    ),
    "edit": "with model.edit() as edited:\n{body}\nresult = edited(x)",
    "edit function": "def change(model):\n{body}\nresult = model.edit(change)(x)",
}


def outcome(
    model: str, form: str, body: list[str], x: torch.Tensor
) -> dict[str, object] | tuple[object, str]:
    """What a program has made, or the kind of its error and the line that it came from."""
    block = indent(body)
    text = ORDERS[form].format(body=block, deep=textwrap.indent(block, "    "))
    known = {"model": wrapped(model), "torch": torch, "x": x, "y": x[:1] + 1, "total": 0}
    try:
        made = run(text, known)
    except TraceError as error:
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_globals is known]
        return type(error), text.splitlines()[lines[-1] - 1].strip()
    return {name: made.get(name) for name in NAMES[:5]}


@pytest.mark.parametrize("form", [form for form in ORDERS if form != "native"])
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_order_gives_what_it_gives_in_place(model: str, form: str, data: st.DataObject) -> None:
    """Laws 3, 4 and 11: its values, or its error at its line, in both forms of a prompt and of an edit."""
    body = data.draw(statements(model, shuffled=True))
    names: tuple[str, ...] = NAMES[:5]
    if "edit" in form:
        body, names = [line for line in body if "total" not in line], ("result",)
    with torch.no_grad():
        expected = outcome(model, "native", body, inputs([2])[0])
        found = outcome(model, form, body, inputs([2])[0])
    if isinstance(expected, tuple) or isinstance(found, tuple):
        assert found == expected
        return
    for name in names:
        torch.testing.assert_close(found[name], expected[name])


SHARED = ("total", "count", "best", "seen", "last", "n", "alias", "kept", "score")


@pytest.mark.parametrize("model", ["twice", "sequence"])
@settings(max_examples=40, deadline=None)
@given(
    bodies=st.lists(shared(), min_size=2, max_size=4), wraps=st.lists(st.booleans(), min_size=4, max_size=4)
)
def test_names_are_as_if_the_blocks_ran_one_after_the_other(
    model: str, bodies: list[list[str]], wraps: list[bool]
) -> None:
    """Law 4, S-74: shared names, accumulators and waits in one forward, or an error; never another value."""
    xs = inputs([1 + n % 2 for n in range(len(bodies))])
    start = "total, count, best, seen = torch.zeros(()), 0, torch.zeros(()), torch.ones(())\n"
    start += "kept, score = [torch.ones(())], {'n': 0}\n"
    apart, together = start, f"{start}with model.trace() as tracer:\n"
    for n, body in enumerate(bodies):
        guard = "if True:\n" if wraps[n] else ""
        block = guard + (indent(body) if guard else "\n".join(body or ["pass"]))
        apart += f"with model.trace(x{n}):\n{textwrap.indent(block, ' ' * 4)}\n"
        together += f"    with tracer.invoke(x{n}):\n{textwrap.indent(block, ' ' * 8)}\n"
    known = {"torch": torch, **{f"x{n}": x for n, x in enumerate(xs)}}
    with torch.no_grad():
        expected = run(apart, {"model": wrapped(model), **known})
        try:
            found = run(together, {"model": wrapped(model), **known})
        except TraceError as error:
            said = str(error)
            assert any(why in said for why in ("waited for", "bound before the trace", "changed in place"))
            assume(False)
    for name in SHARED:
        torch.testing.assert_close(found.get(name), expected.get(name))


@pytest.mark.parametrize("form", ["with", "function"])
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_nested_traces_do_not_mix(model: str, form: str, data: st.DataObject) -> None:
    """Law 9: prompts of an inner trace, opened anywhere in a block, and the block around them."""
    outer, first, second = (data.draw(statements(model)) for _ in range(3))
    x0, x1, x2 = inputs([2, 1, 2])
    at = data.draw(st.integers(0, len(outer)))
    inner = [
        "with model.trace() as inner:",
        *textwrap.indent(together_text([first, second], form, 1), "    ").splitlines(),
    ]
    body = [rename(line, 0) for line in [*outer[:at], *inner, *outer[at:], "result = model.output"]]
    text = "with model.trace() as tracer:\n"
    if form == "with":
        text += f"    with tracer.invoke(x0):\n{textwrap.indent(chr(10).join(body), ' ' * 8)}\n"
    else:
        names = ", ".join(f"{name}_0" for name in NAMES[:5])
        text += f"    @tracer.invoke(x0)\n    def f0():\n        global {names}\n"
        text += f"{textwrap.indent(chr(10).join(body), ' ' * 8)}\n"
    text += "    with tracer.invoke(x2):\n        beside = model.output\n"
    known = {"torch": torch, "x0": x0, "x1": x1, "x2": x2, "total_0": 0, "total_1": 0, "total_2": 0}
    with torch.no_grad():
        made = run(text, {"model": wrapped(model), **known})
        for n, (own, x) in enumerate(zip((outer, first, second), (x0, x1, x2), strict=True)):
            expected = alone(model, own, x, grad=False)
            for name in NAMES[:5]:
                torch.testing.assert_close(made.get(f"{name}_{n}"), expected.get(name))
        torch.testing.assert_close(made["beside"], wrapped(model)(x2))


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_traces_parked_beside_each_other_do_not_mix(model: str, data: st.DataObject) -> None:
    """Law 9: generators, each in its own trace of one model, go on in any order, with plain calls between."""
    bodies = data.draw(st.lists(statements(model), min_size=2, max_size=3))
    xs = inputs([1 + n % 2 for n in range(len(bodies))])
    text, shared = "", wrapped(model)
    for n, body in enumerate(bodies):
        steps = [step for line in [*body, "result = model.output"] for step in (line, "yield")]
        text += (
            f"def program_{n}():\n    total = 0\n    with model.trace(x{n}):\n"
            f"{textwrap.indent(indent(steps), '    ')}\n    made.append(({n}, locals()))\n"
        )
    made: list[tuple[int, dict[str, object]]] = []
    known = {"model": shared, "torch": torch, "made": made, **{f"x{n}": x for n, x in enumerate(xs)}}
    waiting: list[Any] = [run(text, known)[f"program_{n}"]() for n in range(len(bodies))]  # type: ignore[operator]
    with torch.no_grad():
        while waiting:
            chosen = data.draw(st.sampled_from(waiting))
            if next(chosen, known) is known:
                waiting.remove(chosen)
            if data.draw(st.booleans()):
                torch.testing.assert_close(shared(xs[0]), wrapped(model)(xs[0]))
        assert sorted(n for n, _ in made) == list(range(len(bodies)))
        for n, own in made:
            expected = alone(model, bodies[n], xs[n], grad=False)
            for name in NAMES[:5]:
                torch.testing.assert_close(own.get(name), expected.get(name))


def together_text(bodies: list[list[str]], form: str, first: int) -> str:
    """The invokes of an inner trace, each with names of its own."""
    lines = []
    for n, body in enumerate(bodies, first):
        block = textwrap.indent(
            "\n".join(rename(line, n) for line in [*body, "result = model.output"]), "    "
        )
        if form == "with":
            lines.append(f"with inner.invoke(x{n}):\n{block}")
        else:
            names = ", ".join(f"{name}_{n}" for name in NAMES[:5])
            lines.append(f"@inner.invoke(x{n})\ndef f{n}():\n    global {names}\n{block}")
    return "\n".join(lines)
