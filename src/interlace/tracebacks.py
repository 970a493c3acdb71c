"""Tracebacks that show the user's lines and the model's, and not the library between them.

An error that leaves a trace has passed frames of this package: those between the line that asked and the
model's code, and one for each module call. They are unlinked on the way out. What the library raises by
mistake keeps all its frames, and `il.config.full_tracebacks = True` keeps them for everything.
"""

from pathlib import Path
from types import TracebackType

from interlace.config import config
from interlace.errors import InterlaceError

_HERE = f"{Path(__file__).parent}/"


def _is_ours(traceback: TracebackType) -> bool:
    return traceback.tb_frame.f_code.co_filename.startswith(_HERE)


def trim(error: BaseException) -> None:
    """Unlink the library's frames from an error's traceback, all but the outermost frame."""
    first = error.__traceback__
    if first is None or config.full_tracebacks:
        return
    last = first
    while last.tb_next is not None:
        last = last.tb_next
    if _is_ours(last) and not isinstance(error, InterlaceError):
        return  # it was not raised on purpose: every frame may be needed
    kept, here = first, first.tb_next
    while here is not None:
        if not _is_ours(here):
            kept.tb_next = here
            kept = here
        here = here.tb_next
    kept.tb_next = None
