"""What helps when something is wrong: short tracebacks, break points, the first nan, a report to paste."""

import io
import re
import subprocess
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import interlace as il
from interlace.errors import InterlaceWarning, NameMissError, NotReachedError, OrderError, TraceError
from interlace.trace import Trace
from tests.models import Bert, Fails, Looped, Transformer, ids, sequential

X = torch.ones(2, 3)
LIBRARY = f"{Path(il.__file__).parent}/"
TORCH = f"{Path(torch.__file__).parent}/"


class Broken(nn.Module):
    """Fails between two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fails, self.last = nn.Linear(3, 3), Fails(), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.fails(self.first(x)))  # type: ignore[no-any-return]


# -- tracebacks ------------------------------------------------------------------------------------------


def model_error_in_a_read() -> None:
    model = il.Model(Broken())
    with model.trace(X):
        model.last.output  # noqa: B018


def model_error_at_the_end() -> None:
    model = il.Model(Broken())
    with model.trace(X):
        model.first.output  # noqa: B018


def error_in_a_captured_body() -> None:
    model = il.Model(sequential())
    with model.trace() as tracer, tracer.invoke(X):
        model[0].output  # noqa: B018
        raise KeyError("mine")


def error_in_a_function() -> None:
    model = il.Model(sequential())
    with model.trace() as tracer:

        @tracer.invoke(X)  # type: ignore[untyped-decorator]
        def block() -> None:
            model[0].output  # noqa: B018
            raise KeyError("mine")


def order_error_in_a_captured_body() -> None:
    model = il.Model(sequential())
    with model.trace() as tracer, tracer.invoke(X):
        model[1].output  # noqa: B018
        model[0].output  # noqa: B018


def write_error() -> None:
    model = il.Model(sequential())
    with model.trace(X):
        model[0].output = torch.ones(7)


def write_error_in_an_edit() -> None:
    def edit(model: Any) -> None:
        model[0].output = torch.ones(7)

    il.Model(sequential()).edit(edit)(X)


def order_error() -> None:
    model = il.Model(sequential())
    with model.trace(X):
        model[1].output  # noqa: B018
        model[0].output  # noqa: B018


def not_reached() -> None:
    model = il.Model(sequential())
    with model.trace(X) as tracer:
        tracer.stop()
        model[0].output  # noqa: B018


def no_input() -> None:
    model = il.Model(sequential())
    with model.trace():
        pass


def no_such_operation() -> None:
    model = il.Model(sequential())
    with model.trace(X):
        model[0].source.nothing.output  # noqa: B018


def block_of_an_edit_that_returns() -> None:
    with il.Model(sequential()).edit():
        return


def gradient_that_has_passed() -> None:
    model = il.Model(sequential())
    with model.trace(X):
        early, late = model[0].output, model[1].output
        loss = model.output.sum()
    with il.backward(loss):
        early.grad  # noqa: B018
        late.grad  # noqa: B018


def model_error_of_a_backward() -> None:
    hidden = torch.ones(2, requires_grad=True) * 2
    made: torch.Tensor = Undone.apply(hidden)  # type: ignore[no-untyped-call]
    with il.backward(made.sum()):
        hidden.grad  # noqa: B018


def no_graph() -> None:
    with il.backward(X):
        pass


class Undone(torch.autograd.Function):
    """Fails in its backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError


def model_error_for_the_result() -> None:
    model = il.Model(Broken())
    with model.trace(X) as tracer:
        tracer.result  # noqa: B018


def frames_of(failing: Callable[[], None]) -> tuple[list[str], BaseException]:
    """`library` or the name of the function, for each frame from the test's function on."""
    with pytest.raises(Exception) as caught:
        failing()
    found = traceback.extract_tb(caught.value.__traceback__)
    names = [
        "library" if frame.filename.startswith(LIBRARY) else frame.name
        for frame in found
        if not frame.filename.startswith(TORCH)
    ]
    return names[names.index(failing.__name__) :], caught.value


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        (model_error_in_a_read, ["model_error_in_a_read", "forward", "forward"]),
        (model_error_for_the_result, ["model_error_for_the_result", "forward", "forward"]),
        (model_error_at_the_end, ["model_error_at_the_end", "library", "forward", "forward"]),
        (error_in_a_captured_body, ["error_in_a_captured_body", "library", "error_in_a_captured_body"]),
        (error_in_a_function, ["error_in_a_function", "library", "block"]),
        (
            order_error_in_a_captured_body,
            ["order_error_in_a_captured_body", "library", "order_error_in_a_captured_body"],
        ),
        (write_error, ["write_error"]),
        (write_error_in_an_edit, ["write_error_in_an_edit", "library", "library", "edit"]),
        (order_error, ["order_error"]),
        (not_reached, ["not_reached"]),
        (no_input, ["no_input", "library"]),
        (no_such_operation, ["no_such_operation"]),
        (block_of_an_edit_that_returns, ["block_of_an_edit_that_returns", "library"]),
        (gradient_that_has_passed, ["gradient_that_has_passed"]),
        (model_error_of_a_backward, ["model_error_of_a_backward", "backward"]),
        (no_graph, ["no_graph", "library"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_traceback_has_the_lines_of_the_user_and_of_the_model(
    failing: Callable[[], None], expected: list[str]
) -> None:
    """Law 11. Where the block itself waits there is no frame of the library, at its end there is one."""
    names, _ = frames_of(failing)
    assert names == expected


def test_a_traceback_names_the_line_that_asked() -> None:
    _, error = frames_of(order_error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert (last.filename, last.line) == (__file__, "model[0].output  # noqa: B018")


def test_all_frames_are_there_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(il.config, "full_tracebacks", True)
    names, _ = frames_of(order_error)
    assert names[:3] == ["order_error", "library", "library"]


def test_a_mistake_of_the_library_keeps_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("interlace.run.Run._passed", _in_the_library(mistaken))
    names, _ = frames_of(order_error)
    assert names.count("library") >= 3


def _in_the_library(function: Callable[..., None]) -> Callable[..., None]:
    """`function`, called from code that seems to stand in the library."""
    names: dict[str, Any] = {}
    exec(compile("def call(*args):\n    1 / 0", f"{LIBRARY}mistaken.py", "exec"), names)
    return names["call"]  # type: ignore[no-any-return]


# -- break points ----------------------------------------------------------------------------------------


class Debugger:
    """Stands in for a debugger: notes the frame that it is opened in, and may change `value`."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, str, dict[str, Any]]] = []
        self.write: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        frame: FrameType = sys._getframe(1)
        line = Path(frame.f_code.co_filename).read_text(encoding="utf-8").splitlines()[frame.f_lineno - 1]
        self.frames.append((frame.f_code.co_name, line.strip(), dict(frame.f_locals)))
        if self.write is not None:
            frame.f_locals["value"] = self.write  # module-level code: its locals are a plain dict

    @property
    def lines(self) -> list[str]:
        return [line for _, line, _ in self.frames]


@pytest.fixture
def debugger(monkeypatch: pytest.MonkeyPatch) -> Debugger:
    opened = Debugger()
    monkeypatch.setattr(sys, "breakpointhook", opened)
    return opened


def test_a_break_point_opens_at_the_line_of_the_model_that_makes_the_call(debugger: Debugger) -> None:
    net: Any = Transformer()
    model = il.Model(net)
    with model.trace(ids()) as tracer:
        tracer.break_at(model.h[1].mlp)
        seen = model.h[1].mlp.output
    assert debugger.frames[0][:2] == ("forward", "return (hidden + self.mlp(self.ln_2(hidden)),)")
    names = debugger.frames[0][2]
    assert names["value"] is seen
    assert names["where"] == "`model.h[1].mlp.output`"
    assert names["self"] is net.h[1]
    assert len(debugger.frames) == 1


@pytest.mark.parametrize("path", ["h[0].attn.input", "model.h.0.attn.inputs", "h.0.attn"])
def test_a_path_names_a_site_and_its_port(debugger: Debugger, path: str) -> None:
    model = il.Model(Transformer())
    with model.trace(ids()) as tracer:
        tracer.break_at(path)
    ((_, line, names),) = debugger.frames
    assert line == "hidden = hidden + self.attn(self.ln_1(hidden), mask=mask)[0]"
    assert isinstance(names["value"][0], torch.Tensor if path.endswith("attn") else tuple)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("output", "`model.output.output`"),
        ("model.output.input", "`model.output.input`"),
        ("nns_output", "`model.output`"),
    ],
)
def test_a_path_names_a_submodule_as_it_does_elsewhere(debugger: Debugger, path: str, where: str) -> None:
    """S-07: the bare name is the submodule, its value `nns_output`."""
    model = il.Model(Bert())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterlaceWarning)
        with model.trace(X) as tracer:
            tracer.break_at(path)
    assert [names["where"] for _, _, names in debugger.frames] == [where]


def test_an_operation_can_be_broken_at(debugger: Debugger) -> None:
    model = il.Model(Transformer())
    with model.trace(ids()) as tracer:
        tracer.break_at(model.h[0].mlp.source.self_act_0, port="input")
    assert debugger.lines == ["out: Tensor = self.down(self.act(self.up(hidden)))"]


def test_the_model_goes_on_with_what_value_is_when_the_debugger_is_left(debugger: Debugger) -> None:
    model = il.Model(sequential())
    debugger.write = torch.full((2, 4), -1.0)
    with model.trace(X) as tracer:
        tracer.break_at(model[0])
        after = model[1].output
    assert after.eq(0).all()
    debugger.write = ((torch.full((2, 4), 5.0),), {})
    with model.trace(X) as tracer:
        tracer.break_at(model[1], port="input")
        after = model[1].output
    assert after.eq(5).all()


def test_a_later_visit_and_the_end_of_the_model(debugger: Debugger) -> None:
    """The call that the trace itself makes has no line of the model above it: it is the block's that waits."""
    model = il.Model(Looped(times=4))
    with model.trace(X) as tracer:
        tracer.break_at(model.block, 2)
        tracer.break_at(model)
        out = model.output  # here
    assert debugger.lines == ["x = torch.tanh(self.block(x))", "out = model.output  # here"]
    assert debugger.frames[1][2]["value"] is out


def test_break_points_reach_the_run_of_several_prompts(debugger: Debugger) -> None:
    model = il.Model(sequential())
    with model.trace() as tracer:
        tracer.break_at(model[1])
        with tracer.invoke(X):
            model[2].output  # noqa: B018
        with tracer.invoke(X):
            tracer.break_at(model[2])
    assert [names["value"].shape[0] for _, _, names in debugger.frames] == [4, 4]


def test_the_first_value_that_is_not_finite_breaks(debugger: Debugger) -> None:
    net: Any = Transformer()
    net.h[1].mlp.up.weight.data[0, 0] = float("nan")
    model = il.Model(net)
    with model.trace(ids()) as tracer:
        tracer.break_at(nonfinite=True)
    ((_, line, names),) = debugger.frames
    assert line == "out: Tensor = self.down(self.act(self.up(hidden)))"
    assert names["where"].startswith("`model.h[1].mlp.up.output` has 10 nan of 160 values")


def run_to_the_end(model: il.Model) -> None:
    with model.trace(X) as tracer:
        tracer.break_at(model[1], 3)


def test_a_break_point_that_was_not_reached_says_so(debugger: Debugger) -> None:
    model = il.Model(sequential())
    with pytest.warns(InterlaceWarning, match=r"break point at `model\[1\].output` \(visit 3\) was not"):
        run_to_the_end(model)
    with model.trace(X) as tracer:
        tracer.break_at(model[1], 3)
        tracer.stop()
    assert debugger.frames == []


def test_break_points_held_wrong() -> None:
    model = il.Model(sequential())
    with model.trace(X) as tracer:
        with pytest.raises(TraceError, match="A break point is at one place"):
            tracer.break_at()
        with pytest.raises(TraceError, match="A break point is at one place"):
            tracer.break_at(model[0], nonfinite=True)
        with pytest.raises(NameMissError, match="has no `nowhere`"):
            tracer.break_at("nowhere.output")
        first = model[0].output
        with pytest.raises(TraceError, match=r"not at Tensor\(2, 4\) .*\n.*without `.output`"):
            tracer.break_at(first)
        with pytest.raises(OrderError, match=r"model\[0\].output` has passed"):
            tracer.break_at(model[0])
        tracer.stop()
        with pytest.raises(
            NotReachedError, match=r"`model\[2\].output` was not reached: the run was stopped"
        ):
            tracer.break_at(model[2])
    with pytest.raises(TraceError, match="This trace is not open"):
        tracer.break_at(model[0])
    with pytest.raises(TypeError, match=r"il.find_nonfinite\(il.Model\(net\), x\)"):
        il.find_nonfinite(sequential(), X)


def test_a_break_point_keeps_nothing_alive(debugger: Debugger) -> None:
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        net = sequential()
        module, model = weakref.ref(net), il.Model(net)
        with model.trace(X) as tracer:
            tracer.break_at(model[0])
            tracer.break_at(nonfinite=True)
        debugger.frames.clear()
        del net, model, tracer
        assert module() is None
    finally:
        gc.enable()


def test_pdb_itself_opens_steps_and_leaves() -> None:
    """The real debugger, driven over its standard input: it shows the model's line, and what it set arrives."""
    script = textwrap.dedent(
        """
        import torch, interlace as il
        from torch import nn
        model = il.Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        with model.trace(torch.ones(1, 2)) as tracer:
            tracer.break_at(model[0])
            out = model.output
        print("out", out.tolist())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="p value.shape\np where\nvalue = torch.full((1, 2), 3.0)\ncontinue\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "torch/nn/modules/container.py" in done.stdout
    assert "input = module(input)" in done.stdout
    assert "torch.Size([1, 2])" in done.stdout
    assert "out [[3.0, 3.0]]" in done.stdout


# -- the first nan ---------------------------------------------------------------------------------------


class Divides(nn.Module):
    """Makes its infinities itself, between its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"logits": (x.ravel(), self.last(self.first(x) / 0))}


def test_a_finite_run_finds_nothing() -> None:
    assert il.find_nonfinite(il.Model(sequential()), X) is None
    assert il.find_nonfinite(il.Model(Transformer()), ids()) is None  # its mask is made of -inf


def test_a_search_without_an_input_says_so() -> None:
    message = (
        r"`il\.find_nonfinite\(model\)` was called without an input\.\nWrite `il\.find_nonfinite\(model, x\)`"
    )
    with pytest.raises(il.errors.InputError, match=message):
        il.find_nonfinite(il.Model(sequential()))


def test_the_module_that_makes_the_first_nan_is_found_and_told() -> None:
    net: Any = Transformer()
    net.h[1].mlp.down.bias.data[2] = float("nan")
    model = il.Model(net)
    found = il.find_nonfinite(model, ids())
    assert found is not None
    assert (found.path, found.visit, found.port) == ("model.h.1.mlp.down", 0, "output")
    assert (found.value.nan, found.value.inf, found.value.index) == (10, 0, (0, 0, 2))
    assert found.inputs_finite
    assert found.parameters == ("bias",)
    assert str(found) == (
        "`model.h[1].mlp.down.output` has 10 nan of 80 values; the first at [0, 0, 2].\n"
        "Its inputs: all finite.\nNot finite in its weights: bias."
    )


def test_an_operation_between_modules_is_blamed_on_the_module_around_it() -> None:
    found = il.find_nonfinite(il.Model(Divides()), X)
    assert found is not None
    assert found.where == "model.output['logits'][1]"
    assert found.inputs_finite


def test_nan_from_infinities_and_nan_alone() -> None:
    net: Any = Transformer()
    net.h[0].attn.qkv.bias.data[0] = float("inf")
    model = il.Model(net)
    first = il.find_nonfinite(model, ids())
    nan = il.find_nonfinite(model, ids(), inf=False)
    assert first is not None
    assert first.path == "model.h.0.attn.qkv"
    assert nan is not None
    assert (nan.path, nan.value.part) == ("model.h.0.attn", "[0]")
    assert str(nan.inputs) == "10 inf of 25 values"  # the mask


def test_masks_of_minus_infinity_are_nobodys_fault() -> None:
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.inner(x), mask

    mask = torch.tensor([0.0, -float("inf")])
    model = il.Model(Passes())
    assert il.find_nonfinite(model, X, mask) is None
    assert il.find_nonfinite(model, X, -mask) is not None
    model.inner._module.bias.data[0] = float("nan")
    found = il.find_nonfinite(model, X, mask)
    assert found is not None
    assert found.path == "model.inner"


def test_an_input_that_is_not_finite_is_said_to_be_the_input() -> None:
    x = X.clone()
    x[1, 2] = float("nan")
    found = il.find_nonfinite(il.Model(sequential()), x)
    assert found is not None
    assert found.port == "input"
    assert str(found) == (
        "`model.inputs[0][0]` has 1 nan of 6 values; the first at [1, 2].\nIt came with the input of the run."
    )


def test_the_call_of_a_module_that_is_called_often() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.times.weight, 1e30)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                x = self.times(x)
            return x

    found = il.find_nonfinite(il.Model(Grows()), torch.ones(1, 1))
    assert found is not None
    assert (found.path, found.visit) == ("model.times", 1)
    assert "(visit 1)" in str(found)


def test_the_run_ends_where_it_was_found_and_keeps_no_graph() -> None:
    net: Any = sequential()
    net[0].weight.data[0, 0] = float("nan")
    reached: list[Any] = []
    net[2].register_forward_pre_hook(lambda module, args: reached.append(args))
    assert il.find_nonfinite(il.Model(net), X) is not None
    assert reached == []


def test_a_generation_and_an_envoy_of_part_of_a_model() -> None:
    net: Any = Transformer()
    net.h[1].ln_2.weight.data[0] = float("nan")
    model = il.Model(net)
    found = il.find_nonfinite(model, ids(), fn="generate", steps=2)
    assert found is not None
    assert found.path == "model.h.1.ln_2"
    part = il.find_nonfinite(model.h[1].mlp, torch.ones(2, 5, 8))
    assert part is None


def test_count_of_nested_and_odd_values() -> None:
    from interlace.finite import count

    nan, inf = float("nan"), float("inf")
    assert not count((torch.tensor([1, 2]), None, "text", torch.ones(2, device="meta")))
    assert count(torch.tensor([1.0, inf, nan])).index == (1,)
    assert not count(torch.tensor([inf]), inf=False)
    both = count((torch.ones(3), {"a": torch.tensor([nan, nan])}, [torch.tensor([[-inf]])]))
    assert (both.nan, both.inf, both.size, both.part, both.index) == (2, 1, 3, "[1]['a']", (0,))
    assert str(both) == "2 nan and 1 inf of 3 values"
    assert count(torch.tensor([complex(nan, 0)])).nan == 1
    assert count(torch.tensor([nan], dtype=torch.float16)).nan == 1
    eight = torch.tensor([1.0, nan]).to(torch.float8_e4m3fn)  # torch has no `isfinite` for it
    assert (count(eight).nan, count(eight).index) == (1, (1,))
    assert not count(eight[:1])
    assert count(torch.tensor([inf]).to(torch.float8_e5m2)).inf == 1
    four = getattr(torch, "float4_e2m1fn_x2", None)  # since torch 2.8
    assert four is None or not count(torch.zeros(2, dtype=torch.uint8).view(four))


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "coordinates": lambda x: x.to_sparse(),
    "coordinates, with dense rows": lambda x: x.to_sparse(2),
    "csr": lambda x: x.to_sparse_csr(),
    "csr, with dense rows": lambda x: x.to_sparse_csr(dense_dim=1),
    "csc": lambda x: x.to_sparse_csc(),
    "bsr": lambda x: x.to_sparse_bsr((2, 2)),
    "bsc": lambda x: x.to_sparse_bsc((2, 2)),
    "mkldnn": lambda x: x.to_mkldnn(),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch says once that they are in beta
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_of_any_layout_counts_as_the_same_one_made_dense(layout: str) -> None:
    from interlace.finite import count

    nan, inf = float("nan"), float("inf")
    for bad in ([], [nan], [inf, nan], [-inf], [nan, -inf, nan, inf]):
        for seed in range(5):
            random = torch.Generator().manual_seed(seed)
            x = torch.ones(4, 6, 2) if "dense rows" in layout else torch.ones(4, 6)
            x[torch.rand(x.shape, generator=random) < 0.5] = 0
            for at in torch.randperm(x.numel(), generator=random)[: len(bad)].tolist():
                x.view(-1)[at] = bad[at % len(bad)]
            for inf_counts in (True, False):
                for masks in (True, False):
                    made = LAYOUTS[layout](x)
                    assert count(made, inf_counts, masks=masks) == count(x, inf_counts, masks=masks)


def test_values_of_one_place_of_a_sparse_tensor_are_added() -> None:
    from interlace.finite import count

    twice = torch.sparse_coo_tensor(
        torch.tensor([[1, 1], [0, 0]]), torch.tensor([3e38, 3e38]), (2, 2), check_invariants=True
    )
    assert count(twice) == count(twice.to_dense())
    assert count(twice).index == (1, 0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # said once, by torch
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_rows_of_nested_tensors_are_looked_at(layout: torch.layout) -> None:
    from interlace.finite import count

    rows = [torch.ones(1, 2), torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]]), torch.ones(4, 2)]
    found = count(torch.nested.nested_tensor(rows, layout=layout))
    assert (found.nan, found.inf, found.size, found.index) == (1, 1, 4, (1, 0, 1))
    assert not count(torch.nested.nested_tensor(rows[::2], layout=layout))


def test_a_sparse_value_may_be_the_first_that_is_not_finite() -> None:
    class Sparsely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sparse, self.dense = Sparse(), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.dense(torch.sparse.mm(self.sparse(x), torch.eye(3)))
            return found

    class Sparse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.log().to_sparse()

    found = il.find_nonfinite(il.Model(Sparsely()), torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 2.0]]))
    assert found is not None
    assert (found.where, found.value.index) == ("model.sparse.output", (1, 1))


# -- the report ------------------------------------------------------------------------------------------


def test_the_report_has_what_a_bug_report_needs_and_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(il.config, "api_key", "secret-key")
    monkeypatch.setattr(il.config, "cache_dir", "/home/somebody/private")
    text = il.report()
    assert isinstance(text, str)
    assert repr(text) == str(text)
    lines = dict(re.split(r"\s+", line, maxsplit=1) for line in text.splitlines())
    assert lines["interlace"] == il.__version__
    assert lines["torch"] == torch.__version__
    assert lines["python"].startswith(sys.version.split()[0])
    assert {"greenlet", "transformers", "platform", "stacks", "taps", "settings"} <= set(lines)
    assert lines["stacks"].startswith("guarded")
    assert lines["taps"].endswith("_compiled_call_impl is looked at")
    assert "checks=True" in lines["settings"]
    assert "secret-key" not in text
    assert "somebody" not in text
    assert max(map(len, text.splitlines())) < 200


def test_the_report_says_what_is_not_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    from interlace import switch, unwind
    from interlace.errors import PlatformError

    monkeypatch.setattr(switch, "_guard", [])
    monkeypatch.setenv(unwind.ACCEPT, "1")
    assert "NOT guarded: INTERLACE_ACCEPT_UNSAFE_STACKS=1" in il.report()
    monkeypatch.setattr(switch, "_guard", [])
    monkeypatch.setattr(unwind, "_MACHINES", {})
    monkeypatch.delenv(unwind.ACCEPT)
    assert "no traces here: Traces need a stack frame" in il.report()
    with pytest.raises(PlatformError):
        switch.guard()
    monkeypatch.setattr("interlace.tap.SLOT", "_renamed")
    assert "is NOT looked at" in il.report()


def test_the_report_does_not_bring_in_transformers() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, interlace as il; il.report(); print('transformers' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\n"


def test_a_closed_trace_has_no_break_points_left(debugger: Debugger) -> None:
    model = il.Model(sequential())
    tracer: Trace = model.trace(X)
    with tracer:
        tracer.break_at(model[0])
    assert tracer._breaks == []
    out = io.StringIO()
    print(model(X).shape, file=out)
    assert len(debugger.frames) == 1
