"""What is said where a run on tensors without values needs one: the line that asked, and the way out."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from interlace.lines import source_lines

NO_VALUES = (UnsupportedFakeTensorException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What torch raises where values are needed."""

VALUES = frozenset({
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__complex__",
    "__contains__", "is_nonzero", "equal", "allclose",
})  # fmt: skip
"""Operations that give the values of a tensor, by name."""

FROM_A_SCAN = (
    "This tensor is from a scan: it has a shape, a dtype and a device, and no values.\n"
    "For values, read it in a trace: `with model.trace(...):`."
)

_HERE = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


def wants_values(error: Exception) -> bool:
    """Whether torch raised this because a tensor has no values, or because it met others that have."""
    return isinstance(error, (*NO_VALUES, DataDependentOutputException)) or "to FakeTensors" in str(error)


def stack(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """The frames outward from one, each with its line."""
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def unwound(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """The frames that an error came through, innermost first."""
    found = []
    here = error.__traceback__
    while here is not None:
        found.append((here.tb_frame, here.tb_lineno))
        here = here.tb_next
    return reversed(found)


def said(error: BaseException, name: str, stack: Iterable[tuple[FrameType, int]]) -> str:
    """The message of a scan that cannot go on: the line that asked, what it asked for, and the way out."""
    at = "The scan cannot go on"
    for frame, line in stack:
        code = frame.f_code
        if not code.co_filename.startswith((_HERE, _TORCH)):
            where = getattr(code, "co_qualname", code.co_name)
            text = "".join(source_lines(code, frame.f_globals)[line - 1 : line]).strip()
            at += f" at {code.co_filename}:{line}, in {where}:" + f"\n    {text}" * bool(text)
            break
    if isinstance(error, UnsupportedOperatorException):
        return (
            f"{at}\nThe operator `{error.func}` has no rule for what shape it gives, so torch cannot work it out.\n"
            "Register one with `torch.library.register_fake`, or use `model.trace(...)` with real input."
        )
    what = f"`{name.strip('_')}`" if name in VALUES else f"The shape of what `{name.strip('_')}` gives"
    return (
        f"{at}\n{what} depends on the values of a tensor, and in a scan a tensor has none.\n"
        "Use `model.trace(...)` with real input; or skip the module in the scan's block, "
        "`module.skip(torch.empty(...))`."
    )
