"""Every forward of sixty architectures can be rewritten, and computes what it computed. (S-58, S-73)"""

import dis
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import nn

from interlace.errors import SourceError
from interlace.run import Run
from interlace.site import Visit
from interlace.source.running import Frame, instrument
from interlace.tap import Taps
from interlace.trees import tensors
from tests.source.architectures import OTHER, TEXT, build, inputs

pytestmark = [
    pytest.mark.slow,
]

# Modules whose forward cannot be rewritten, with the reason. Classes, as `module.qualname`.
NOT_SWEEPABLE: dict[str, str] = {}

COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})


def same(one: Any, other: Any) -> bool:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return bool(pairs) and all(torch.equal(a, b) or (a.isnan() == b.isnan()).all() for a, b in pairs)


def instrumented(
    model: nn.Module, call: Callable[[], Any], watch: bool
) -> tuple[Any, dict[str, Frame], Run, Counter[Any]]:
    """Run the model with every forward rewritten; with `watch`, every operation is read and written back."""
    taps = Taps(list(model.modules()))
    run = Run(call)
    frames: dict[str, Frame] = {}
    seen: Counter[Any] = Counter()
    for name, module in model.named_modules():
        if type(module).forward in (nn.Module.forward, nn.ModuleList.forward):
            continue
        try:
            frames[name] = instrument(run, module, f"model.{name}")
        except SourceError:
            cls = type(module)
            assert f"{cls.__module__}.{cls.__qualname__}" in NOT_SWEEPABLE
    if watch:
        for frame in frames.values():
            for key in frame.keys:
                run.watch(key, "input", partial(write_back, seen))
                run.watch(key, "output", partial(write_back, seen))
    taps.install(run)
    try:
        result = run.finish()
    finally:
        taps.remove(run)
    return result, frames, run, seen


def write_back(seen: Counter[Any], visit: Visit) -> None:
    visit.args, visit.kwargs, visit.result = tuple(visit.args), dict(visit.kwargs), visit.result
    seen[visit.key, visit.port] += 1


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # transformers' own
@pytest.mark.parametrize("kind", [*TEXT, *OTHER])
def test_every_forward_of(kind: str) -> None:
    """S-58: the same bits; writing back changes nothing; operations are reached as often as they run."""
    model = build(kind)
    given = inputs(model)

    def call() -> Any:
        torch.manual_seed(1)
        with torch.no_grad():
            return model(**given)

    plain = call()
    result, frames, run, _ = instrumented(model, call, watch=False)
    assert same(result, plain)
    counted = [run.ends[key] for frame in frames.values() for key in frame.keys]

    result, frames, run, seen = instrumented(model, call, watch=True)
    assert same(result, plain)
    keys = [key for frame in frames.values() for key in frame.keys]
    assert [run.ends[key] for key in keys] == counted == [seen[key, "output"] for key in keys]
    assert [seen[key, "input"] for key in keys] == counted
    assert sum(counted) > 50

    if (
        (3, 11) <= sys.version_info < (3, 12)
    ):  # what the interpreter itself executes, told by its instructions
        ran = executed(call, set(filter(None, (frame.rewritten.original() for frame in frames.values()))))
        assert sum(ran.values()) > 50
        said: Counter[tuple[Any, str]] = Counter()
        for frame in frames.values():
            for operation, key in zip(frame.rewritten.operations, frame.keys, strict=True):
                said[frame.rewritten.original(), operation.kind] += run.ends[key]
        for (code, what), times in ran.items():
            assert said[code, what] == times, f"{code.co_name}: {what}"

    assert not any("forward" in vars(module) for module in model.modules())


def executed(call: Callable[[], Any], codes: set[CodeType]) -> Counter[tuple[CodeType, str]]:
    """How many stores to names and binary operators of each code object the interpreter executes."""
    owner = {inner: code for code in codes for inner in family(code)}
    stores = {code: offsets(code, ("STORE_FAST", "STORE_DEREF", "STORE_GLOBAL")) for code in codes}
    operators = {
        code: offsets(code, ("BINARY_OP", "BINARY_SUBSCR", "COMPARE_OP", "UNARY_NEGATIVE", "UNARY_INVERT"))
        for code in owner
    }
    counts: Counter[tuple[CodeType, str]] = Counter()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            code = frame.f_code
            if frame.f_lasti in stores.get(code, ()):
                counts[code, "variable"] += 1
            elif frame.f_lasti in operators[code]:
                counts[owner[code], "operator"] += 1
        return local

    def outer(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code not in owner:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    before = sys.gettrace()
    sys.settrace(outer)
    try:
        call()
    finally:
        sys.settrace(before)
    return counts


def family(code: CodeType) -> list[CodeType]:
    """A code object and its comprehensions."""
    inner = [
        const for const in code.co_consts if isinstance(const, CodeType) and const.co_name in COMPREHENSIONS
    ]
    return [code, *(found for one in inner for found in family(one))]


def offsets(code: CodeType, names: tuple[str, ...]) -> set[int]:
    """Where these instructions are; not the reading half of `x[i] += 1`, which is part of the operator."""
    listed = list(dis.get_instructions(code))
    pairs = zip([None, *listed], listed, strict=False)
    return {
        one.offset
        for before, one in pairs
        if one.opname in names and not (one.opname == "BINARY_SUBSCR" and before and before.opname == "COPY")
    }
