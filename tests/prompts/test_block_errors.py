"""Errors in blocks that run later are those of the same code in place: laws 4, 10 and 11."""

from __future__ import annotations

import gc
import linecache
import os
import subprocess
import sys
import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interlace as il
from interlace.errors import NotReachedError, OrderError, TraceError, WriteError
from interlace.tree import Tree
from tests.prompts.programs import run

X, Y = torch.ones(2, 4), torch.full((3, 4), -1.0)

FAILING = {
    "at once": ["1 / 0"],
    "after a value": ["hidden = model[0].output", "hidden.shape[7]"],
    "deep inside": ["hidden = model[0].output", "def f(n):", "    return f(n - 1) if n else missing", "f(3)"],
    "a wrong write": ["model[2].output = torch.ones(5, 5)"],
    "out of order": ["model[2].output", "model[0].output"],
    "never reached": ["model[2].output", "for _ in range(2): tracer.next(); model[0].output"],
    "with a cause": [
        "try:",
        "    {}['key']",
        "except KeyError as error:",
        "    raise ValueError('so') from error",
    ],
    "in a context": ["try:", "    {}['key']", "except KeyError:", "    model[9]"],
    "an exit": ["hidden = model[0].output", "raise SystemExit(3)"],
}
FORMS = {
    "native": "with model.trace(x) as tracer:\n{4}",
    "with": (
        "with model.trace() as tracer:\n    with tracer.invoke(x):\n{8}\n"
        "    with tracer.invoke(y):\n        model[3].output"
    ),
    "function": (
        "with model.trace() as tracer:\n    @tracer.invoke(x)\n    def block():\n{8}\n"
        "    with tracer.invoke(y): pass"
    ),
    "edit": "with model.edit() as model:\n{4}\nwith model.trace(x) as tracer: pass",
    "edit function": "def change(model):\n{4}\nmodel.edit(change)(x)",
}


@pytest.fixture
def model() -> il.Model:
    return il.Model(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)))


def failure(form: str, lines: list[str], model: il.Model) -> tuple[object, ...]:
    """The error's type, what led to it, and the text of the user's own lines on the way."""
    text = FORMS[form]
    for depth in (4, 8):
        text = text.replace("{" + str(depth) + "}", "\n".join(" " * depth + line for line in lines))
    try:
        run(text, {"model": model, "x": X, "y": Y, "torch": torch})
    except BaseException as error:
        own = [
            entry.line
            for entry in traceback.extract_tb(error.__traceback__)
            if entry.filename.startswith("/nowhere") and (entry.line or "") in text
        ]
        body = [text.splitlines()[n - 1].strip() for n in lines_of(error)]
        return type(error), type(error.__cause__), type(error.__context__), body, bool(own) or not own
    return ("no error",)


def lines_of(error: BaseException) -> list[int]:
    link, found = error.__traceback__, []
    while link is not None:
        if link.tb_frame.f_code.co_filename.startswith("/nowhere"):
            found.append(link.tb_lineno)
        link = link.tb_next
    return found


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (case, form)
        for case, lines in FAILING.items()
        for form in FORMS
        if form != "native" and not ("edit" in form and "tracer" in "".join(lines))  # an edit has no tracer
    ],
)
def test_an_error_is_the_same_at_the_same_line(case: str, form: str, model: il.Model) -> None:
    """Laws 4 and 11: its type, cause, context and the lines of the body that led to it."""
    lines = FAILING[case]
    expected, found = failure("native", lines, model), failure(form, lines, model)
    if form in ("edit", "edit function") and expected[0] is NotReachedError:
        assert found == ("no error",)  # an edit acts where it can
        return
    inside = [line for line in expected[3] if line in lines or line.strip() in [own.strip() for own in lines]]  # type: ignore[attr-defined]
    assert found[:3] == expected[:3]
    assert found[3][-len(inside) :] == inside  # type: ignore[index]


def test_nothing_is_kept_after_an_error(model: il.Model) -> None:
    """Law 10: the error's traceback and the blocks do not hold each other."""
    kept: list[weakref.ref[torch.Tensor]] = []

    def captured() -> None:
        with model.trace() as tracer:
            with tracer.invoke(X):
                hidden = model[0].output
                kept.append(weakref.ref(hidden))
                hidden.shape[9]
            with tracer.invoke(Y):
                model[3].output

    def function() -> None:
        def block() -> None:
            hidden = model[0].output
            kept.append(weakref.ref(hidden))
            hidden.shape[9]

        with model.trace() as tracer:
            tracer.invoke(X)(block)
            tracer.invoke(Y)(lambda: model[3].output)

    gc.collect()
    gc.disable()
    try:
        for failing in (captured, function):
            with pytest.raises(IndexError):
                failing()
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_an_error_of_the_model_comes_after_the_blocks_that_were_served(model: il.Model) -> None:
    """Law 11: what was read before it is kept, in both forms."""
    model[2].weight.data = torch.ones(3, 3)
    got: list[torch.Tensor] = []
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                seen = model[0].output
                model[3].output
            tracer.invoke(Y)(lambda: got.append(model[1].output))
    assert seen.shape == (2, 4)
    assert got[0].shape == (3, 4)


def test_a_replacement_that_fits_no_other_prompt(model: il.Model) -> None:
    """Law 11: insisted on, it would fit alone."""
    with pytest.raises(WriteError, match=r"(?s)Tensor\(2, 7\).* in Tensor\(5, 4\).*a trace of its own"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model[1].output = il.insist(torch.ones(2, 7))
            with tracer.invoke(Y):
                model[1].output


def test_a_block_without_source_names_the_function_form() -> None:
    """S-75: typed at a prompt, under `python -c`, and by `exec`."""
    program = (
        "import torch, interlace as il\n"
        "model = il.Model(torch.nn.Sequential(torch.nn.Linear(4, 4)))\n"
        "with model.trace() as tracer:\n"
        "    late = tracer.invoke(torch.ones(1, 4))(lambda: model[0].output)\n"
        "print(late.shape)\n"
        "with model.trace() as tracer:\n"
        "    with tracer.invoke(torch.ones(1, 4)):\n"
        "        x = 1\n"
    )
    ways = [(["-"], program), (["-c", program], "")]
    if sys.version_info >= (3, 13):
        del ways[1]  # it keeps the text of `-c`
    for args, text in ways:
        done = subprocess.run(
            [sys.executable, *args], input=text, capture_output=True, text=True, check=False
        )
        assert done.stdout == "torch.Size([1, 4])\n"
        assert "Give a function instead (a decorator or an argument)" in done.stderr
    with pytest.raises(TraceError, match=r"(?s)made by `exec`.*Give a function instead"):
        exec(program, {})


def test_a_prompt_that_keeps_what_was_typed_is_source_enough() -> None:
    """S-75: Python 3.13 and later keep it; before, there is none."""
    program = """
import torch, interlace as il
class Net(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x) * 2

model = il.Model(Net())
with model.trace() as tracer:
    with tracer.invoke(-torch.ones(1)):
        before = model.source.torch_relu_0.input + 3

print(before.item())
print(model.source.mul_0.line_number)
"""
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=program,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON_BASIC_REPL": "1"},
    )
    kept = sys.version_info >= (3, 13)
    assert done.stdout == ("2.0\n3\n" if kept else "")
    assert ("it was typed at a prompt" in done.stderr) is not kept


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`sys.monitoring` is there from Python 3.12 on")
def test_no_free_tool_to_skip_with(tmp_path: Path) -> None:
    program = """
import sys
import torch
import interlace as il
for number in (3, 4):
    sys.monitoring.use_tool_id(number, f"theirs {number}")
model = il.Model(torch.nn.Linear(1, 1))
try:
    with model.trace() as tracer:
        with tracer.invoke(torch.ones(1, 1)):
            raise AssertionError
except RuntimeError as error:
    print(error)
sys.monitoring.free_tool_id(3)
with model.trace() as tracer:
    with tracer.invoke(torch.ones(1, 1)):
        shape = model.output.shape
print(shape)
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "A block that runs later is skipped by a tool of `sys.monitoring`, and the ids 3 and 4 are taken:\n"
        "'theirs 3' and 'theirs 4'. Free one, or give a function instead, which needs none.\n"
        "torch.Size([1, 1])\n"
    )


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="up to Python 3.11 a trace function leaves a block")
def test_a_block_that_cannot_be_traced_says_so_and_does_not_run(tmp_path: Path) -> None:
    """S-74: whoever watches the process may refuse trace functions, before the block was met and after."""
    program = """
import sys
import torch
import interlace as il
model, refused, ran = il.Model(torch.nn.Linear(1, 1)), True, []
def watch(event, args):
    if refused and event == "sys.settrace":
        raise RuntimeError("refused")
sys.addaudithook(watch)
def trace():
    try:
        with model.trace() as tracer:
            with tracer.invoke(torch.ones(1, 1)):
                ran.append(model.output.shape)
    except RuntimeError as error:
        ran.append(error)
trace()
refused = False
trace()
refused = True
trace()
print(ran, sys.gettrace(), sys._getframe().f_trace_opcodes)
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "[RuntimeError('refused'), torch.Size([1, 1]), RuntimeError('refused')] None False\n"
    )


def test_return_break_and_await_are_refused_before_anything_runs(model: il.Model) -> None:
    """S-74: in an invoke and in an edit."""
    for statement in ("return 1", "yield", "await x", "break"):
        for opened in ("tracer.invoke(x)", "model.edit()"):
            begin = "async def" if "await" in statement else "def"
            text = (
                f"ran = []\n{begin} main():\n  with model.trace() as tracer:\n   for _ in range(2):\n"
                f"    with {opened}:\n     ran.append(1)\n     {statement}\n"
            )
            name = "/nowhere/refused.py"
            linecache.cache[name] = (1, None, text.splitlines(keepends=True), name)
            names: dict[str, object] = {"model": model, "x": X}
            exec(compile(text, name, "exec"), names)
            with pytest.raises(
                TraceError, match=rf"(?s)refused.py:7.*`{statement.split()[0]}`.*Nothing has run"
            ):
                made = names["main"]()  # type: ignore[operator]
                if made is not None:
                    made.send(None)
            assert names["ran"] == []
            del linecache.cache[name]


# -- the run is stopped ------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["the trace's own block", "a prompt's"])
def test_an_error_of_a_block_that_a_stop_leaves_waiting_is_raised_at_the_end(
    model: il.Model, who: str
) -> None:
    """Law 11; and the statements after the stop run."""
    after = []

    def stops() -> None:
        model[0].output
        if who == "a prompt's":
            tracer.stop()
            after.append(who)

    def waits() -> None:
        try:
            model[1].output
        except NotReachedError:
            raise ValueError("mine") from None

    with pytest.raises(ValueError, match="mine"), model.trace() as tracer:
        tracer.invoke(X)(waits)
        tracer.invoke(Y)(stops)
        if who != "a prompt's":
            model[0].output
            tracer.stop()
            after.append(who)
    assert after == [who]


@pytest.mark.parametrize("asks", [False, True])
def test_a_run_that_is_stopped_before_it_began_tells_its_blocks(asks: bool) -> None:
    """What waits for the model is not reached; a block that needs nothing of it ends well. All of it is freed."""

    def go() -> tuple[list[str], list[weakref.ref[object]]]:
        model, said = il.Model(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), list[str]()

        def block() -> None:
            said.append("begun")
            if asks:
                model[0].output

        try:
            with model.trace() as tracer:
                tracer.invoke(X)(block)
                tracer.stop()
                said.append("after")
        except NotReachedError as error:
            said.append(str(error).partition("\n")[0])
        return said, [weakref.ref(model), weakref.ref(model._module), weakref.ref(tracer)]

    gc.collect()
    gc.disable()
    try:
        said, found = go()
        assert [one() for one in found] == [None, None, None]
    finally:
        gc.enable()
    missed = ["`model[0].output` was not reached: the run was stopped."]
    assert said == ["begun", "after", *(missed if asks else [])]


def test_an_interrupt_of_a_block_comes_through_a_stop_before_the_run_began(model: il.Model) -> None:
    def block() -> None:
        try:
            model[0].output
        except NotReachedError:
            raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt), model.trace() as tracer:
        tracer.invoke(X)(block)
        tracer.stop()


@pytest.mark.parametrize("asks", [False, True])
def test_a_block_whose_own_call_was_told_of_when_the_run_stopped_goes_on(asks: bool) -> None:
    """Law 4: the trace's block waits for a call that another block makes itself, and ends the run there."""
    net = nn.ModuleDict({"main": nn.Linear(4, 4), "side": nn.Linear(4, 4)})
    model, seen = il.Model(net), list[str]()

    def block() -> None:
        hidden = model.main.output
        model.side(hidden, hook=True)
        seen.append("side")
        if asks:
            model.side.output
            model.main.output

    def run() -> None:
        with model.trace(fn=lambda x: net["main"](x)) as tracer:
            tracer.invoke(X)(block)
            model.side.output
            seen.append("main")
            tracer.stop()

    if asks:
        with pytest.raises(OrderError):
            run()
    else:
        run()
    assert seen == ["main", "side"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_stopped_run_of_several_blocks_is_freed(fails: bool) -> None:
    """Law 10: an error that a block raised when the run was stopped holds nothing."""

    def go() -> list[weakref.ref[object]]:
        model = il.Model(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

        def waits() -> None:
            try:
                model[1].output
            except NotReachedError:
                if fails:
                    raise ValueError("mine") from None

        try:
            with model.trace() as tracer:
                tracer.invoke(X)(waits)
                tracer.invoke(Y)(lambda: model[0].output)
                model[0].output
                tracer.stop()
                if fails:
                    raise KeyError("the trace's own")
        except KeyError:
            pass
        return [weakref.ref(model), weakref.ref(model._module), weakref.ref(tracer)]

    gc.collect()
    gc.disable()
    try:
        assert [found() for found in go()] == [None, None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("prompts", [False, True])
def test_a_run_cannot_be_stopped_by_its_own_model(model: il.Model, prompts: bool) -> None:
    tracer = model.trace(*(() if prompts else (X,)))
    hook = model.get_submodule("0").register_forward_hook(lambda *_: tracer.stop())
    with pytest.raises(TraceError, match="from inside the model's own run"):
        with tracer:
            if prompts:
                tracer.invoke(X)(lambda: model[1].output)
                tracer.invoke(Y)(lambda: model[1].output)
    hook.remove()
    with model.trace(X):
        model[1].output


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_error_at_the_end_of_a_block_ends_it_all_the_same(
    fails: bool, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the block's own error as its context, as in any `finally`."""
    model, x = il.Model(nn.Sequential(nn.Tanh(), nn.Tanh())), torch.ones(1, 2, requires_grad=True)
    parts: list[object] = []
    remember, falls, calls = Tree.remember, kind("now"), 0

    def fall_once(tree: Tree, reads: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise falls
        remember(tree, reads)

    def block() -> None:
        parts.extend(opened.trace() for opened in model._tree._open.values())
        read = model[0].output, model[1].output
        assert len(read) == 2
        if fails:
            raise ValueError("mine")

    monkeypatch.setattr(Tree, "remember", fall_once)
    with pytest.raises(kind) as caught, model.trace() as tracer:
        tracer.invoke(x)(block)
        tracer.invoke(x)(lambda: None)
    assert caught.value is falls
    assert isinstance(falls.__context__, ValueError) is fails
    assert calls == 2
    assert [getattr(part, "_run", None) for part in parts] == [None] * 2
    assert not model._tree.busy
