"""Debuggers and coverage stay attached, in blocks that run later and after them (S-74, S-76)."""

from __future__ import annotations

import bdb
import io
import json
import os
import pdb
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch

import interlace as il
from tests.models import chain

X = torch.ones(2, 4)
SCRIPT = """\
import torch
from torch import nn

import interlace as il

model = il.Model(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
X = torch.ones(2, 4)
n = 0
with model.trace() as tracer:
    with tracer.invoke(X):
        first = model[0].output
        for _ in range(3):
            n += 1
        last = model[2].output
    with tracer.invoke(X):
        model[0].output = first
        if n > 100:
            never = 1
        after = model[2].output

    @tracer.invoke(X)
    def third():
        early = model[0].output
        late = model[2].output
        return early + late

with model.edit() as edited:
    hidden = model[0].output
    model[2].output[:] = hidden


def change(model):
    hidden = model[0].output
    model[2].output[:] = hidden


again = model.edit(change)
edited(X), again(X)
with model.trace() as tracer:
    with tracer.invoke(X):
        with model.trace() as inner:
            with inner.invoke(X):
                seen = model[0].output
                more = model[2].output
        outer = model[2].output
    with tracer.invoke(X): one = 1
print(n, "end")
"""


@pytest.mark.slow
@pytest.mark.parametrize("core", ["ctrace", "pytrace"])
def test_coverage_sees_every_line_of_blocks_that_run_later(tmp_path: Path, core: str) -> None:
    """S-76: no line is lost in a block, nor after it."""
    pytest.importorskip("coverage")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / ".coveragerc").write_text(f"[run]\ncore = {core}\n")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "coverage", *args]
        return subprocess.run(
            call, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, check=True
        )

    done = run("run", "--include=script.py", "script.py")
    assert done.stdout == "3 end\n"
    assert "warning" not in done.stderr.lower()
    report = json.loads(run("json", "-q", "-o", "-").stdout)
    never = SCRIPT.splitlines().index("            never = 1") + 1
    assert report["files"]["script.py"]["missing_lines"] == [never]


class Stepper(bdb.Bdb):
    """Steps through everything, and notes the lines of this file."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []

    def user_line(self, frame: FrameType) -> None:
        if frame.f_code.co_filename == __file__:
            self.lines.append(frame.f_lineno)
        self.set_step()


def lines_of(stepper: Stepper, start: int) -> list[int]:
    return [line - start for line in stepper.lines if line > start]


def test_a_debugger_steps_through_captured_blocks_and_on() -> None:
    """S-76, law 4: the lines of the blocks, when they run, and those after them."""
    model = il.Model(chain())
    before = sys.gettrace()
    stepper = Stepper()
    inside: list[object] = []
    start = sys._getframe().f_lineno
    stepper.set_trace()
    with model.trace() as tracer:
        with tracer.invoke(X):
            late = model[2].output
            inside.append(sys.gettrace())
        with tracer.invoke(X):
            early = model[0].output
            inside.append(sys.gettrace())
    inside.append(sys.gettrace())
    sys.settrace(before)
    attached = inside[-1]
    assert getattr(attached, "__self__", None) is stepper
    assert inside == [attached] * 3
    lines = lines_of(stepper, start)
    assert {4, 5, 7, 8, 9} <= set(lines)
    assert lines.index(8) < lines.index(5) < lines.index(9)
    assert late.shape == early.shape


def test_a_debugger_shows_the_names_of_a_block() -> None:
    """S-76: those of the frame by themselves, those of a block under a `with` as attributes, as its page says."""
    model = il.Model(chain())
    out = io.StringIO()
    asked = "p X.shape\np _il_.hidden.shape\np _il_.twice\nc\n"
    before = sys.gettrace()

    def stop() -> None:
        pdb.Pdb(stdin=io.StringIO(asked), stdout=out, nosigint=True, readrc=False).set_trace(sys._getframe(1))

    with model.trace() as tracer:
        with tracer.invoke(X):
            hidden = model[0].output
            twice = hidden.shape[0] * 2
            stop()
            model[2].output

    assert out.getvalue().split("(Pdb) ")[1:4] == ["torch.Size([2, 4])\n", "torch.Size([2, 4])\n", "4\n"]
    sys.settrace(before)


def test_a_debugger_steps_through_functions() -> None:
    """S-76, S-80."""
    model = il.Model(chain())
    before = sys.gettrace()
    stepper = Stepper()
    start = sys._getframe().f_lineno
    stepper.set_trace()
    with model.trace() as tracer:

        @tracer.invoke(X)  # type: ignore[untyped-decorator]
        def block() -> object:
            early = model[0].output
            return early + model[2].output

    sys.settrace(before)
    assert {6, 7, 9} <= set(lines_of(stepper, start))
    assert isinstance(block, torch.Tensor)


def test_an_edit_is_stepped_through_at_each_run() -> None:
    """S-76, S-87."""
    model = il.Model(chain())
    before = sys.gettrace()
    with model.edit() as edited:
        hidden = model[0].output
        model[2].output[:] = hidden
    line = test_an_edit_is_stepped_through_at_each_run.__code__.co_firstlineno
    stepper = Stepper()
    stepper.set_trace()
    edited(X)
    edited(X)
    sys.settrace(before)
    assert [at - line for at in stepper.lines].count(6) == 2
