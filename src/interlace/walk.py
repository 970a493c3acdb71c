"""A backward of torch on a stack of its own, and which of several may go on.

For each thread the engine of torch keeps which backward is the innermost, and sets it back to what it was before when
one is over. Stacks that left that order would leave it pointing to a backward that is gone: torch would take what
follows for a part of it, and crash when the thread ends. It knows nothing of tensors or blocks.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch

from interlace.errors import TraceError
from interlace.switch import Switch

_task: Any = torch._C._current_graph_task_id
_threads: Any = torch._C._is_multithreading_enabled
_set_threads: Any = torch._C._set_multithreading_enabled


class Walk(Switch):
    """A backward that pauses.

    Args:
        function: Runs it.
    """

    __slots__ = ("_number", "_threads")

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(function, None)
        self._number = -1
        self._threads = False  # the engine's threads are off on its side only

    def resume(self) -> None:
        """Run the backward until it pauses or ends.

        Raises:
            TraceError: One that was opened after it is not over.
        """
        self.check()
        mine = _threads()
        try:
            _set_threads(self._threads)
            super().resume()
            self._threads = _threads()
        finally:
            try:
                _set_threads(mine)
            except BaseException:
                _set_threads(mine)  # an interrupt fell in before it
                raise

    def check(self) -> None:
        """Raise where another backward has to end first."""
        if self._number >= 0 and _task() != self._number:
            raise TraceError(
                "A backward that was opened after this one is not over, and torch can go on with the innermost only.\n"
                "Leave the inner `with il.backward(...)` first."
            )

    def pause(self) -> None:
        """Hand the turn back, from inside the backward."""
        self._number = _task()
        super().pause()

    def end(self) -> None:
        """Unwind the backward, or leave that for later where another one has to end first."""
        if sys.is_finalizing() and not self.done:
            # Never freed: stacks would be unwound in the order in which they are.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._worker))
        super().end()
