"""The names around a block: those of the frame in which it stands.

Where that frame runs a kept block itself, or a function made in one, the names of that block live in its
scope and not in the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FrameType
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
