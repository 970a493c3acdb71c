"""The names around a block: those of the frame in which it stands.

Where that frame runs a kept block itself, or a function made in one, the names of that block live in its
scope and not in the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from interlace.capture import skip
from interlace.capture.rewrite import SCOPE

if TYPE_CHECKING:
    from interlace.capture.scope import Scope


def outer(frame: FrameType) -> Scope | None:
    """The scope of the kept block in which the code of a frame stands."""
    code = frame.f_code
    if SCOPE not in code.co_varnames and SCOPE not in code.co_freevars:
        return None
    found: Scope = skip.held(frame)[SCOPE]
    return found


def line_in(scope: Scope, code: CodeType, frame: FrameType | None) -> int:
    """The line at which a block is, whose code runs on the stack from `frame` outward; 0 if it does not."""
    while frame is not None:
        if frame.f_code is code and outer(frame) is scope:
            return frame.f_lineno
        frame = frame.f_back
    return 0


def held(frame: FrameType) -> dict[str, Any]:
    """The names around a block, with their values."""
    names = skip.held(frame)
    code = frame.f_code
    if SCOPE in code.co_varnames:
        return dict(vars(names[SCOPE]))
    if SCOPE in code.co_freevars:
        return {**vars(names[SCOPE]), **names}
    return names


def write(frame: FrameType, values: Mapping[str, object]) -> None:
    """Bind names around a block. Costs the number of the frame's names."""
    scope = outer(frame)
    if scope is None:
        skip.write(frame, values)
        return
    code = frame.f_code
    own = {*code.co_varnames, *code.co_cellvars, *code.co_freevars} if SCOPE in code.co_freevars else set()
    vars(scope).update({name: value for name, value in values.items() if name not in own})
    skip.write(frame, {name: value for name, value in values.items() if name in own})
