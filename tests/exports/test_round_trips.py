"""An edit that was exported and imported does what the original does."""

from __future__ import annotations

import functools
import gc
import math
import subprocess
import sys
import textwrap
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

import interlace as il
from tests import models
from tests.prompts.programs import MODELS, WIDTH, indent, run, statements, wrapped

X = torch.ones(2, 4)
SCALE = 3


def travelled(edited: Any, folder: Path, root: Any = None) -> Any:
    """Another wrapper of the same module, with the edits from a file."""
    edited.export_edits("e", folder)
    other = il.Model(edited.root._module if root is None else root)
    other.import_edits("e", folder)
    return other


# -- the law -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_an_imported_edit_equals_the_original(
    model: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """S-41, S-42, S-94: in a plain call and a trace, in both forms, on this model and on another of its kind."""
    folder = tmp_path_factory.mktemp("edits")
    body = [line for line in data.draw(statements(model)) if "total" not in line]
    block = textwrap.indent(indent(body), "    ")
    text = (
        f"with model.edit() as edited:\n{block}\n"
        f"def change(model):\n{block}\n"
        "again = model.edit(change)\n"
        f"with other.edit() as native:\n{block.replace('model.', 'other.')}\n"
    )
    torch.manual_seed(5)
    other = il.Model(MODELS[model]())
    known: dict[str, object] = {"model": wrapped(model), "other": other, "torch": torch}
    made: dict[str, Any] = run(text, known, stays=True)
    x = torch.randn(2, WIDTH)
    with torch.no_grad():
        for form in ("edited", "again"):
            made[form].export_edits(form, folder)
            same = wrapped(model)
            same.import_edits(form, folder)
            assert torch.equal(same(x), made[form](x))
            with same.trace(x):
                traced = same.output
            assert torch.equal(traced, made[form](x))
            elsewhere = il.Model(other._module)
            elsewhere.import_edits(form, folder)
            assert torch.equal(elsewhere(x), made["native"](x))


@pytest.mark.parametrize("kind", ["transformer", "looped", "experts", "encoder-decoder", "tied", "bert"])
def test_models_of_every_kind(kind: str, tmp_path: Path) -> None:
    """S-42: a part that is called twice, seldom, by name, or under two names."""
    makes: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, Any]] = {
        "transformer": (models.Transformer, models.ids(), lambda m: m.h[1].attn.proj.output.mul_(2)),
        "looped": (models.Looped, torch.ones(2, 3), lambda m: m.block.output.mul_(2)),
        "experts": (models.Experts, torch.randn(5, 3), lambda m: m.router.output[:, 1].add_(100)),
        "encoder-decoder": (
            models.EncoderDecoder,
            torch.ones(2, 3),
            lambda m: m.encoder.output.hidden.add_(1),
        ),
        "tied": (models.Tied, torch.ones(2, 3), lambda m: m.a.output.mul_(2)),
        "bert": (models.Bert, torch.ones(2, 3), lambda m: m.attention.output.mul_(2)),
    }
    make, x, change = makes[kind]
    with torch.no_grad():
        module = make()
        edited = il.Model(module).edit(change)
        for found, expected in zip(
            _tensors(travelled(edited, tmp_path)(x)), _tensors(edited(x)), strict=True
        ):
            assert torch.equal(found, expected)
        assert not all(map(torch.equal, _tensors(edited(x)), _tensors(module(x))))


def _tensors(value: Any) -> list[torch.Tensor]:
    from interlace.trees import tensors

    return list(tensors(value))


def test_in_another_process(model: il.Model, net: nn.Sequential, tmp_path: Path) -> None:
    """S-42: where none of this test's code is at hand."""
    direction = torch.randn(4)

    def steer(model: il.Envoy, strength: float = 2.0) -> None:
        model[0].output[:] = scaled(model[0].output) + direction * strength

    edited = model.edit(steer)
    with edited.edit(inplace=True):
        edited[2].output += direction
    edited.export_edits("steer", tmp_path)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    script = """
        import sys, torch, interlace as il
        from torch import nn
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        net.load_state_dict(torch.load(sys.argv[1] + "/weights.pt"))
        model = il.Model(net)
        model.import_edits("steer", sys.argv[1])
        assert "tests" not in sys.modules
        print(model(torch.ones(2, 4)).tolist())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == str(edited(X).tolist())


def scaled(value: torch.Tensor) -> torch.Tensor:
    """Multiply.

    A text of several lines stays as it is."""
    return F.relu(value) * math.sqrt(SCALE)


# -- functions ---------------------------------------------------------------------------------------------------


def factorial(n: int) -> int:
    return 1 if n < 2 else n * factorial(n - 1)


def doubled(function: Any) -> Any:
    @functools.wraps(function)
    def twice(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        function(*args, **kwargs)

    return twice


def layers(model: Any) -> Iterator[Any]:
    yield from (model[n] for n in range(0, 3, 2))


class Secret:
    """Private names are spelled by the class."""

    def function(self) -> Any:
        __factor = 4.0

        def change(model: Any) -> None:
            model[0].output.mul_(__factor)

        return change

    def block(self, model: il.Model) -> Any:
        __factor = 4.0
        with model.edit() as edited:
            model[0].output.mul_(__factor)
        return edited


def with_keyword() -> Any:
    addend = torch.tensor(2.0)

    @doubled
    def change(model: Any, *, by: Any = addend, names: Any = ("a",)) -> None:
        model[0].output.add_(by * len(names))

    return change


def with_grad_off() -> Any:
    @torch.no_grad()
    def change(model: Any) -> None:
        model[0].output[:] = float(torch.is_grad_enabled()) + 5

    return change


def two_on_a_line() -> Any:
    return (lambda m: m[0].output.mul_(2), lambda m: m[0].output.mul_(3))[1]


def with_many_lines() -> Any:
    text = """one
  two"""
    return lambda model: (
        model[0].output.mul_(len(text)),  # a comment, and a text of several lines
        model[2].output.add_(
            len("""three
    four""")
        ),
    )


FUNCTIONS: dict[str, Callable[[], Any]] = {
    "recursive": lambda: lambda m: m[0].output.mul_(factorial(4)),
    "decorated": with_keyword,
    "no_grad": with_grad_off,
    "the second lambda": two_on_a_line,
    "lines": with_many_lines,
    "generator": lambda: lambda m: [part.output.mul_(2) for part in layers(m)],
    "private": lambda: Secret().function(),
    "partial": lambda: functools.partial(lambda by, m, *, more: m[0].output.add_(by + more), 2, more=3),
    "imported": lambda: lambda m: m[0].output.copy_(F.softmax(m[0].output, -1) * math.pi + np.float32(2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_every_kind(name: str, model: il.Model, tmp_path: Path) -> None:
    """S-94: and again from the edits that were imported, in the same words."""
    edited = model.edit(FUNCTIONS[name]())
    other = travelled(edited, tmp_path)
    assert torch.equal(other(X), edited(X))
    assert not torch.equal(other(X), model(X))
    third = travelled(other, tmp_path / "again")
    assert torch.equal(third(X), edited(X))
    for file in ("edits.py", "manifest.json"):
        first, second = (folder / "e/__default__" / file for folder in (tmp_path, tmp_path / "again"))
        assert first.read_text() == second.read_text()


def test_what_two_functions_share_they_share_elsewhere(model: il.Model, tmp_path: Path) -> None:
    """S-94: a variable, a list, a tensor; from where they were when they were exported."""
    count, seen, memory = 0, [1], torch.zeros(2, 4)
    row = memory[1]

    def counted(m: Any) -> None:
        nonlocal count
        count += 1
        memory.add_(1)
        seen.append(count)

    def told(m: Any) -> None:
        m[2].output[:] = count + row * 10 + len(seen) * 100

    model.edit(counted, inplace=True)
    model.edit(told, inplace=True)
    assert (model(X) == 1 + 10 + 200).all()
    other = travelled(model, tmp_path)
    for n in (2, 3):
        assert (model(X) == n + n * 10 + (n + 1) * 100).all()
        assert (other(X) == n + n * 10 + (n + 1) * 100).all()
    assert (tmp_path / "e/__default__/tensors.safetensors").stat().st_size < 300


# -- blocks ------------------------------------------------------------------------------------------------------


def test_blocks(model: il.Model, tmp_path: Path) -> None:
    """S-94: what a block reads, and not what its frame holds under names that it binds itself."""
    by, lock, hidden = torch.tensor(3.0), object(), torch.zeros(1 << 16)

    with model.edit() as edited:
        hidden = model[0].output
        hidden *= by
        for lock in (1, 2):
            hidden += lock

        def inner(value: torch.Tensor) -> torch.Tensor:
            return value * by

        model[2].output = inner(model[2].output)
    other = travelled(edited, tmp_path)
    assert torch.equal(other(X), edited(X))
    assert (tmp_path / "e/__default__/tensors.safetensors").stat().st_size < 300
    assert torch.equal(travelled(other, tmp_path)(X), edited(X))
    assert lock is not None
    assert hidden.shape == (1 << 16,)


def test_headers_of_every_form(model: il.Model, tmp_path: Path) -> None:
    with torch.no_grad(), model.edit() as edited, torch.enable_grad():
        text = """one
            two"""
        model[0].output[:] = len(text)
    assert torch.equal(travelled(edited, tmp_path)(X), edited(X))
    with model.edit() as edited: model[0].output.zero_(); model[2].output.add_(1)  # fmt: skip  # noqa: E701, E702
    assert torch.equal(travelled(edited, tmp_path)(X), edited(X))
    edited = Secret().block(model)
    assert torch.equal(travelled(edited, tmp_path)(X), edited(X))


def test_a_child_and_a_stack(model: il.Model, net: nn.Sequential, tmp_path: Path) -> None:
    """S-39 to S-42: edits keep their order and their place; import adds to what is there."""
    with model.edit(inplace=True):
        model[2].output[:] = 5
    model[2].edit(lambda last: last.output.mul_(2), inplace=True)
    other = il.Model(net)
    other.edit(lambda m: m[2].output.add_(100), inplace=True)
    model.export_edits("both", tmp_path)
    other.import_edits("both", tmp_path)
    assert (other(X) == 10).all()
    other[2].clear_edits()
    assert (other(X) == 5).all()
    other.clear_edits()
    assert torch.equal(other(X), net(X))
    model[2].export_edits("child", tmp_path)
    other.import_edits("child", tmp_path)
    assert torch.equal(other(X), net(X) * 2)


def read_by_the_first_edit(model: Any) -> Any:
    """The dictionary among the free variables of its function."""
    function: Any = model._tree.edits[0].made(model).function
    held = [cell.cell_contents for cell in function.__closure__]
    return next(value for value in held if isinstance(value, dict))


# -- values ------------------------------------------------------------------------------------------------------


def plain() -> dict[Any, Any]:
    found: dict[Any, Any] = {
        1: (2, {3}, frozenset({4})),
        "numbers": [1.5, -0.0, 1e300, float("inf"), 2j, 10**400, True, None],
        "text": ["ä\n\x00", "\ud800", b"\xff", bytearray(b"x")],
        "torch": [torch.float16, torch.device("cpu"), torch.Size([2]), torch.strided, torch.channels_last],
        "python": [slice(1, None), ..., range(3), len, math.sqrt, OrderedDict, F.relu, torch.relu],
        "held": [OrderedDict(a=1), defaultdict(list, {1: [2]}), deque([1], 3), Counter("aab"), {}, []],
    }
    found["twice"] = found["numbers"]
    found["itself"] = found
    return found


def test_plain_values(model: il.Model, net: nn.Sequential, tmp_path: Path) -> None:
    """S-94."""
    values, out = plain(), []

    def change(m: Any) -> None:
        out.append(values)

    model.edit(change).export_edits("e", tmp_path)
    other = il.Model(net)
    other.import_edits("e", tmp_path)
    other(X)
    found = read_by_the_first_edit(other)
    assert found["itself"] is found
    assert found["twice"] is found["numbers"]
    assert list(found) == list(values)
    for key in ("numbers", "text", "torch", "python", "held", 1):
        assert repr(found[key]) == repr(values[key])
        assert [type(part) for part in found[key]] == [type(part) for part in values[key]]


def tensors() -> dict[str, Any]:
    base = torch.arange(24.0).reshape(4, 6)
    grown = torch.ones(2, requires_grad=True) * 2
    made = {
        "rows": base[1:3], "columns": base[:, ::2], "transposed": base.t(), "expanded": torch.ones(1).expand(3, 2),
        "bits": torch.tensor([True, False]), "none": torch.empty(0, 3), "scalar": torch.tensor(2),
        "half": torch.ones(2, dtype=torch.bfloat16), "complex": torch.tensor([1 + 2j]).conj(),
        "small": torch.ones(3).to(torch.float8_e4m3fn), "leaf": torch.ones(2, requires_grad=True),
        "parameter": nn.Parameter(torch.ones(2), requires_grad=False), "graph": grown,
        "array": np.arange(6, dtype=np.int64).reshape(2, 3).T, "big": np.arange(2, dtype=">f4"), "number": np.float64(2),
    }  # fmt: skip
    return {**made, "again": made["rows"]}


def test_tensors(model: il.Model, net: nn.Sequential, tmp_path: Path) -> None:
    """S-94: dtypes, shapes and flags; the memory that some share, once."""
    held = tensors()
    model.edit(lambda m: held).export_edits("e", tmp_path)
    other = il.Model(net)
    other.import_edits("e", tmp_path)
    other(X)
    found = read_by_the_first_edit(other)
    for name, expected in held.items():
        assert type(found[name]) is type(expected), name
        if isinstance(expected, torch.Tensor):
            assert found[name].dtype == expected.dtype
            assert torch.equal(
                found[name].double() if name == "small" else found[name], _plain(name, expected)
            )
            assert found[name].requires_grad == (expected.requires_grad and expected.is_leaf), name
        else:
            assert np.array_equal(found[name], expected)
    assert found["again"] is found["rows"]
    found["transposed"][0, 1] = -1
    assert found["rows"][0, 0] == -1
    del held["rows"]


def _plain(name: str, value: torch.Tensor) -> torch.Tensor:
    return value.double() if name == "small" else value.detach()


def test_what_belongs_to_the_model_is_named(model: il.Model, net: nn.Sequential, tmp_path: Path) -> None:
    """S-94: envoys, modules and parameters are those of the model that the edits are imported into."""
    last: Any = net[2]
    places, weight = {"first": model[0]}, last.weight

    def change(m: Any) -> None:
        model[1].output[:] = places["first"].output * 2 + weight[0] + last.bias

    edited = model.edit(change)
    edited.export_edits("e", tmp_path)
    torch.manual_seed(9)
    net2: Any = models.chain()
    other = il.Model(net2)
    other.import_edits("e", tmp_path)
    expected = net2[2](net2[0](X) * 2 + net2[2].weight[0] + net2[2].bias)
    torch.testing.assert_close(other(X), expected)
    copied = other.edit(lambda m: m[2].output.mul_(2))
    torch.testing.assert_close(copied(X), expected * 2)
    assert not (tmp_path / "e/__default__/tensors.safetensors").exists()
    net2[1] = nn.Tanh()
    torch.testing.assert_close(other(X), expected)


def test_nothing_keeps_a_model_alive(model: il.Model, tmp_path: Path) -> None:
    """Law 10."""
    change = lambda m: model[1].output.add_(1)  # noqa: E731
    model.edit(change).export_edits("e", tmp_path)
    net = models.chain()
    other = il.Model(net)
    other.import_edits("e", tmp_path)
    other(X)
    gone = weakref.ref(net)
    gc.disable()
    try:
        del other, net
        assert gone() is None
    finally:
        gc.enable()


def test_aliases(net: nn.Sequential, tmp_path: Path) -> None:
    """S-42: a name that only the exporting model has is missed before anything is loaded."""
    renamed = il.Model(net, rename={"2": "unembed"})
    renamed.edit(lambda m: m.unembed.output.zero_()).export_edits("e", tmp_path)
    other = il.Model(net, rename={"2": "unembed"})
    other.import_edits("e", tmp_path)
    assert (other(X) == 0).all()
    with pytest.raises(il.errors.ExportError, match="need `unembed`: this model has no module `unembed`"):
        il.Model(net).import_edits("e", tmp_path)


def test_errors_point_at_the_source(model: il.Model, tmp_path: Path) -> None:
    """Law 11: at the line of the edit, as it is written in the file."""
    import traceback

    other = travelled(model.edit(lambda m: m[0].output.view(7)), tmp_path)
    with pytest.raises(RuntimeError, match="invalid for input of size") as raised:
        other(X)
    assert "m[0].output.view(7)" in "".join(traceback.format_exception(raised.value))


def test_threads_make_the_edits_once(model: il.Model, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    held = torch.ones(4)
    other = travelled(model.edit(lambda m: m[0].output.add_(held)), tmp_path)
    expected = model.edit(lambda m: m[0].output.add_(held))(X)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(lambda _: other(X), range(12)))
