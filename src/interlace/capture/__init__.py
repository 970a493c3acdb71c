"""A `with` block whose code runs later, as a function.

Needed in three places only: several prompts in one forward, edits that stay, and code that runs on another
machine. Each of them takes a plain function as well; this part serves their `with` form.
"""

from interlace.capture.around import held, line_in, write
from interlace.capture.bindings import Bindings
from interlace.capture.body import Body, Bound, Template, again, capture
from interlace.capture.check import check_function
from interlace.capture.family import Family
from interlace.capture.find import block_of
from interlace.capture.scope import Scope
from interlace.capture.skip import Skipped
from interlace.errors import CaptureError

__all__ = [
    "Bindings",
    "Body",
    "Bound",
    "CaptureError",
    "Family",
    "Scope",
    "Skipped",
    "Template",
    "again",
    "block_of",
    "capture",
    "check_function",
    "held",
    "line_in",
    "write",
]
