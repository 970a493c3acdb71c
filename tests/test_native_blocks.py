"""The block of a trace is ordinary Python, run where it stands: everything Python allows there works."""

import asyncio
import code
import contextlib
import contextvars
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interlace as il
from interlace.errors import OrderError, OutsideTraceError, ThreadError, TraceError
from tests.models import chain

X = torch.arange(4.0)[None]


@pytest.fixture
def net() -> nn.Sequential:
    return chain()


@pytest.fixture
def model(net: nn.Sequential) -> il.Model:
    return il.Model(net)


@pytest.fixture
def first(net: nn.Sequential) -> Tensor:
    return net[0](X)  # type: ignore[no-any-return]


# -- shapes of a block ---------------------------------------------------------------------------------------


def test_a_body_on_the_same_line(model: il.Model, first: Tensor) -> None:
    with model.trace(X): hidden = model[0].output  # fmt: skip # noqa: E701
    assert torch.equal(hidden, first)


def test_a_body_that_starts_with_try(model: il.Model, first: Tensor) -> None:
    with model.trace(X):
        try:
            hidden = model[0].output
            raise KeyError
        except KeyError:
            last = model[2].output
        finally:
            done = True
    assert torch.equal(hidden, first)
    assert last.shape == (1, 4)
    assert done


def test_return_from_the_block(model: il.Model, first: Tensor) -> None:
    def read() -> Any:
        with model.trace(X):
            return model[0].output

    assert torch.equal(read(), first)


def test_break_and_continue_out_of_the_block(model: il.Model) -> None:
    seen = []
    for turn in range(4):
        with model.trace(X * turn):
            if turn == 1:
                continue
            if turn == 3:
                break
            seen.append(model[0].output)
    assert len(seen) == 2


def test_accumulators_and_rebinding(model: il.Model, net: nn.Sequential) -> None:
    total, hidden = torch.zeros(1, 4), torch.empty(0)
    for turn in range(3):
        with model.trace(X * turn):
            total += model[0].output
            hidden = model[2].output
            hidden = hidden * 2
    assert torch.allclose(total, sum(net[0](X * turn) for turn in range(3)))
    assert torch.equal(hidden, net(X * 2) * 2)


def test_comprehensions_lambdas_and_functions_over_sites(model: il.Model, net: nn.Sequential) -> None:
    def read(index: int) -> Any:
        return model[index].output

    with model.trace(X):
        values = [model[index].output for index in range(2)]
        last = (lambda: read(2))()
    with model.trace(X):
        lazily = list(map(read, range(3)))
    with model.trace(X):
        by_name = {envoy.path: envoy.output for envoy in model}
    assert torch.equal(values[1], net[1](net[0](X)))
    assert torch.equal(last, net(X))
    assert torch.equal(lazily[2], last)
    assert list(by_name) == ["model.0", "model.1", "model.2"]


def test_super_and_mangled_names(model: il.Model, first: Tensor) -> None:
    class Base:
        def scale(self) -> int:
            return 2

    class Study(Base):
        __secret = 3

        def scale(self) -> int:
            with model.trace(X):
                self.__hidden = model[0].output
                return super().scale() * self.__secret

        def hidden(self) -> Any:
            return self.__hidden

    study = Study()
    assert study.scale() == 6
    assert torch.equal(study.hidden(), first)


def test_nonlocal_del_walrus_match_and_class_bodies(model: il.Model) -> None:
    kept = None

    def read() -> None:
        nonlocal kept
        with model.trace(X):
            if (hidden := model[0].output) is not None:
                kept = hidden
            del hidden

            class Seen:
                value = model[1].output

            kept = kept + Seen.value

    read()
    assert kept is not None


def test_several_items_in_one_header(model: il.Model) -> None:
    with model.trace(X), torch.no_grad():
        inside = model[0].output * 1
    assert not inside.requires_grad
    with torch.no_grad(), model.trace(X) as tracer:
        out = model.output
    assert not out.requires_grad
    assert not tracer.result.requires_grad
    assert torch.is_grad_enabled()


# -- whose trace a request goes to ---------------------------------------------------------------------------


def test_exit_stack(model: il.Model, first: Tensor) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(model.trace(X))
        assert torch.equal(model[0].output, first)


def test_a_context_manager_of_the_users_around_a_trace(model: il.Model, first: Tensor) -> None:
    @contextlib.contextmanager
    def traced(x: Tensor) -> Iterator[Tensor]:
        with model.trace(x):
            yield model[0].output
            model[2].output[:] = 0

    with traced(X) as hidden:
        middle = model[1].output
    assert torch.equal(hidden, first)
    assert torch.equal(middle, first.relu())

    with contextlib.ExitStack() as stack:
        assert torch.equal(stack.enter_context(traced(X)), first)
        model[1].output  # noqa: B018

    @traced(X)
    def decorated() -> Any:
        return model[1].output

    assert torch.equal(decorated(), first.relu())


def test_an_enter_of_the_users_own(model: il.Model, first: Tensor) -> None:
    class Study:
        def __enter__(self) -> "Study":
            self.tracer = model.trace(X)
            self.tracer.__enter__()
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
        ) -> None:
            self.tracer.__exit__(kind, error, tb)

    class Around:
        def __enter__(self) -> None:
            self.study = Study()
            self.study.__enter__()

        def __exit__(self, *failure: Any) -> None:
            self.study.__exit__(*failure)

    with Study():
        assert torch.equal(model[0].output, first)
    with Around():
        assert torch.equal(model[0].output, first)


def test_yield_inside_the_block_and_two_generators_zipped(model: il.Model, net: nn.Sequential) -> None:
    def run(x: Tensor) -> Iterator[Tensor]:
        with model.trace(x):
            for index in range(3):
                yield model[index].output

    for index, (one, two) in enumerate(zip(run(X), run(-X), strict=True)):
        assert torch.equal(one, net[: index + 1](X))
        assert torch.equal(two, net[: index + 1](-X))


def test_a_parked_generator_serves_nobody_else(model: il.Model) -> None:
    def run() -> Iterator[Tensor]:
        with model.trace(X):
            yield model[0].output

    waiting: Any = run()
    next(waiting)
    with pytest.raises(OutsideTraceError, match="another frame"):
        model[1].output  # noqa: B018
    waiting.close()


def test_send_and_throw_into_a_generator(model: il.Model) -> None:
    def run() -> Iterator[Any]:
        with model.trace(X):
            try:
                yield model[0].output
            except KeyError:
                yield model[1].output

    waiting: Any = run()
    next(waiting)
    assert waiting.throw(KeyError()).shape == (1, 4)
    waiting.close()


def test_yield_from_inside_a_trace(model: il.Model, net: nn.Sequential) -> None:
    def values() -> Iterator[Tensor]:
        yield from (envoy.output for envoy in model)

    def run() -> Iterator[Tensor]:
        with model.trace(X):
            yield from values()

    assert torch.equal(list(run())[-1], net(X))


def test_nested_traces_of_one_model(model: il.Model, net: nn.Sequential) -> None:
    with model.trace(X):
        clean = model[0].output
        with model.trace(-X):
            inner = model[0].output
            model[1].output = clean
            patched = model.output
        last = model[2].output
    assert torch.equal(inner, net[0](-X))
    assert torch.equal(patched, net[2](net[0](X)))
    assert torch.equal(last, net(X))


def test_a_plain_call_of_the_model_inside_a_trace(model: il.Model, net: nn.Sequential) -> None:
    expected = net(-X)
    with model.trace(X):
        model[0].output[:] = 0
        assert torch.equal(net(-X), expected)
        assert torch.equal(model(-X), expected)
        out = model.output
    assert torch.equal(out, net[2](torch.zeros(1, 4)))


def test_a_trace_inside_a_forward_hook(model: il.Model, net: nn.Sequential) -> None:
    seen: list[Tensor] = []
    busy: list[int] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if not busy:
            busy.append(1)
            with model.trace(-X):
                seen.append(model[2].output)
            busy.clear()

    net[1].register_forward_hook(hook)
    with model.trace(X):
        out = model.output
    net[1]._forward_hooks.clear()
    assert torch.equal(seen[0], net(-X))
    assert torch.equal(out, net(X))


def test_asking_from_inside_the_model_is_an_error(model: il.Model, net: nn.Sequential) -> None:
    """A hook runs on the model's side, where the block's trace must not serve."""
    net[0].register_forward_hook(lambda module, args, output: model[1].output)
    with pytest.raises(TraceError, match="inside the model's own run"), model.trace(X):
        model.output  # noqa: B018


# -- asyncio and threads -------------------------------------------------------------------------------------


def test_await_and_tasks(model: il.Model, net: nn.Sequential) -> None:
    number: contextvars.ContextVar[int] = contextvars.ContextVar("number")

    @contextlib.asynccontextmanager
    async def traced(x: Tensor) -> AsyncIterator[None]:
        with model.trace(x):
            await asyncio.sleep(0)
            yield

    async def job(turn: int) -> bool:
        number.set(turn)
        values = []
        async with traced(X * turn):
            for index in range(3):
                values.append(model[index].output)
                await asyncio.sleep(0)
        return number.get() == turn and torch.equal(values[2], net(X * turn))

    async def cancelled() -> None:
        with model.trace(X):
            model[0].output  # noqa: B018
            await asyncio.sleep(60)

    async def main() -> list[bool]:
        stopped = asyncio.create_task(cancelled())
        found = await asyncio.gather(*(job(turn) for turn in range(5)))
        stopped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopped
        return found

    assert all(asyncio.run(main()))
    assert "_compiled_call_impl" not in net.__dict__


def test_eight_threads_share_a_model(model: il.Model, net: nn.Sequential) -> None:
    """Law 9: each trace reads and edits its own run, whatever the others do; the last one takes the taps."""
    wrong: list[str] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        for turn in range(40):
            x = X * (number + turn)
            edited = net[2](torch.full((1, 4), float(number)))
            with model.trace(x):
                if not torch.equal(model[0].output, net[0](x)):
                    wrong.append("read")
                model[1].output = torch.full((1, 4), float(number))
                if not torch.equal(model[2].output, edited):
                    wrong.append("edit")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all("_compiled_call_impl" not in part.__dict__ for part in net.modules())


def test_another_thread_cannot_use_the_trace(model: il.Model) -> None:
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            model[0].output  # noqa: B018
        except ThreadError as error:
            caught.append(error)

    with model.trace(X):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert "another thread" in str(caught[0])


# -- errors (law 11) -----------------------------------------------------------------------------------------


def test_the_users_exception_leaves_unchanged(model: il.Model) -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught, model.trace(X):  # noqa: PT012
        model[0].output  # noqa: B018
        raise error
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None


def test_a_model_error_surfaces_where_the_block_waited(net: nn.Sequential) -> None:
    """With the model's own traceback under it; values already read survive."""

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(9, 9)

    net[1] = Fails()
    model = il.Model(net)
    with pytest.raises(RuntimeError, match="mat1") as caught, model.trace(X):  # noqa: PT012
        hidden = model[0].output
        reached = True
        model[2].output  # noqa: B018
        reached = False
    assert reached
    assert hidden.shape == (1, 4)
    names = [entry.name for entry in caught.traceback]
    assert names[0] == "test_a_model_error_surfaces_where_the_block_waited"
    assert names[-1] == "forward"
    assert str(caught.traceback[0].statement).strip().startswith("model[2].output")


def test_an_interrupt_in_the_model_reaches_the_block(net: nn.Sequential) -> None:
    def interrupt(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    net[1].register_forward_pre_hook(interrupt)
    model = il.Model(net)
    with pytest.raises(KeyboardInterrupt), model.trace(X):  # noqa: PT012
        model[0].output  # noqa: B018
        model[1].output  # noqa: B018
    assert "_compiled_call_impl" not in net.__dict__


def test_the_exception_being_handled_stays_on_its_side(net: nn.Sequential) -> None:
    """Law 8: a model run from an `except` block sees none, and one it handles is not seen outside."""
    seen: list[Any] = []

    class Handles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            seen.append(sys.exc_info()[0])
            try:
                raise IndexError
            except IndexError:
                x = self.inner(x)
                seen.append(sys.exc_info()[0])
            return x

    model = il.Model(Handles())
    try:
        raise KeyError
    except KeyError:
        with model.trace(X):
            model.inner.output  # noqa: B018
            assert sys.exc_info()[0] is KeyError
    assert seen == [None, IndexError]


def test_order_errors_come_at_once(model: il.Model) -> None:
    """Law 5: at the line that asked, and the trace goes on."""
    with model.trace(X):
        model[1].output  # noqa: B018
        with pytest.raises(OrderError, match="has passed"):
            model[0].output  # noqa: B018
        assert model[2].output.shape == (1, 4)


# -- where there is no source --------------------------------------------------------------------------------

HEADER = """
import torch, interlace as il
from torch import nn
model = il.Model(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
x = torch.ones(1, 4)
"""
BODY = (
    HEADER
    + """
with model.trace(x):
    hidden = model[0].output
    total = [model[i].output for i in (1,)]
shape = tuple(hidden.shape)
"""
)


def test_exec_and_a_notebook_cell() -> None:
    names: dict[str, Any] = {}
    exec(BODY, names)
    assert names["shape"] == (1, 4)
    cells: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate([HEADER, BODY, "with model.trace(x): again = model.output"]):
        exec(compile(cell, f"<ipython-input-{number}>", "exec"), cells)
    assert cells["again"].shape == (1, 4)


def test_a_repl() -> None:
    console = code.InteractiveConsole()
    written = io.StringIO()
    with contextlib.redirect_stderr(written):
        for line in [*HEADER.splitlines(), "with model.trace(x):", "    hidden = model[0].output", ""]:
            console.push(line)
        console.push("shape = tuple(hidden.shape)")
    assert written.getvalue() == ""
    assert console.locals["shape"] == (1, 4)


def run(*arguments: str, stdin: str = "", cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(il.__file__).parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_script_on_stdin() -> None:
    assert run("-", stdin=BODY + "print(shape)") == "(1, 4)\n"


SCRIPT = """\
import torch
from torch import nn
import interlace as il


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        x = x * 2
        return self.b(x)


model = il.Model(Net())


def study(x):
    values = []
    with model.trace(x) as tracer:
        hidden = model.a.output
        values.append(hidden)
        for _ in range(2):
            out = model.b.output
            values.append(out)
        if len(values) > 2:
            values.append(1)
    values.append(2)
    with model.trace(x):
        with model.trace(x):
            one = model.b.output
        two = model.b.output
    values.append(tracer.result)
    return values


def parked(x):
    with model.trace(x):
        yield model.a.output
        yield model.b.output


for pair in zip(parked(torch.ones(1, 4)), parked(torch.ones(1, 4))):
    seen = len(pair)
print(len(study(torch.ones(1, 4))), seen)
"""


def test_pdb_steps_in_the_block_and_after_it(tmp_path: Path) -> None:
    """The debugger stops at each line of the block, steps over a request, and goes on after the block."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    lines = SCRIPT.splitlines()
    inside = lines.index("        hidden = model.a.output") + 1
    after = lines.index("    values.append(2)") + 1
    commands = [f"b {inside}", "c", "n", "n", "p len(values)", "n", "n", "p out.shape", f"b {after}", "c"]
    commands += ["p ('after', len(values))", "n", "n", "p len(values)", "cl 1", "cl 2", "c", "q"]
    out = run("-m", "pdb", "script.py", stdin="\n".join(commands) + "\n", cwd=tmp_path)
    lines = [line.removeprefix("(Pdb) ") for line in out.splitlines()]
    assert "-> hidden = model.a.output" in lines
    assert "-> values.append(hidden)" in lines
    assert "-> for _ in range(2):" in lines
    assert "1" in lines
    assert "torch.Size([1, 4])" in lines
    assert "('after', 4)" in lines
    assert "6 2" in lines


@pytest.mark.parametrize("core", ["ctrace", "pytrace"])
def test_coverage_is_complete_for_the_users_lines(tmp_path: Path, core: str) -> None:
    """Every line of a block, and after it, is measured; lines of the model run by a trace need not be."""
    pytest.importorskip("coverage")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / ".coveragerc").write_text(f"[run]\ncore = {core}\nbranch = true\n")
    assert run("-m", "coverage", "run", "--include=script.py", "script.py", cwd=tmp_path) == "6 2\n"
    report = run("-m", "coverage", "json", "-q", "-o", "-", cwd=tmp_path)
    missing = set(json.loads(report)["files"]["script.py"]["missing_lines"])
    assert missing <= {12, 13, 14}, missing
