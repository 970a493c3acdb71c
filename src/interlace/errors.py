"""Everything that interlace raises on purpose.

    InterlaceError
    ├── TraceError (RuntimeError)             a trace was used in a way that cannot work
    │   ├── OutsideTraceError (ValueError)    a value was asked for where no trace of the model is open
    │   ├── OrderError (ValueError)           the visit that was asked for has passed
    │   ├── NotReachedError (ValueError)      the run ended before the visit that was asked for
    │   ├── CaptureError                      a `with` block that must run later cannot be made into a function
    │   ├── ScanError                         a scan met what depends on the values of tensors
    │   └── ThreadError                       a trace was used from another thread than its own
    ├── WriteError (ValueError)               a replacement does not fit what it replaces
    ├── InputError (ValueError, TypeError)    a trace was opened with no input, or one that cannot be used
    ├── NameMissError (AttributeError)        no such module, value or feature; names the nearest ones
    ├── CacheMissError (KeyError)             no such site in a cache
    ├── RecordingError (ValueError)           a folder of recorded values is damaged, or is of something else
    ├── SourceError (ValueError)              the operations of a forward cannot be named or reached
    ├── RenameError (ValueError)              an alias that hides something, or is ambiguous
    ├── TravelError (ValueError)              a function or a value that cannot be written down to run elsewhere
    ├── ExportError (ValueError)              a file of edits that cannot be written, or not be read
    │   └── NoExportError (FileNotFoundError) there is no such file
    ├── ConfigError (ValueError)              a setting that does not exist
    └── PlatformError (RuntimeError)          this interpreter or machine cannot run traces safely

`RunEnded` unwinds a model whose trace has ended. It is control flow and never escapes.
"""

import difflib
import sys
from collections.abc import Iterable


class InterlaceError(Exception):
    """The root of all errors that interlace raises on purpose."""


class TraceError(InterlaceError, RuntimeError):
    """A trace was used in a way that cannot work."""


class OutsideTraceError(TraceError, ValueError):
    """A value was asked for where no trace of the model is open."""


class OrderError(TraceError, ValueError):
    """The visit that was asked for has passed."""


class NotReachedError(TraceError, ValueError):
    """The run ended before the visit that was asked for."""


class CaptureError(TraceError):
    """A `with` block that must run later cannot be made into a function. Nothing of it has run."""


class ScanError(TraceError):
    """A scan met code that depends on the values of tensors, which a scan does not have."""


class ThreadError(TraceError):
    """A trace was used from another thread than its own."""


class WriteError(InterlaceError, ValueError):
    """A replacement does not fit what it replaces."""


class InputError(InterlaceError, ValueError, TypeError):
    """A trace was opened with no input, or with one that cannot be used."""


class NameMissError(InterlaceError, AttributeError):
    """No such module, value or feature; the message names the nearest ones."""


class CacheMissError(InterlaceError, KeyError):
    """No such site in a cache."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class RecordingError(InterlaceError, ValueError):
    """A folder of recorded values is missing, damaged, or was begun with something else."""


class SourceError(InterlaceError, ValueError):
    """The operations of a forward, or of a function it calls, cannot be named or reached."""


class RenameError(InterlaceError, ValueError):
    """An alias that hides something, or a key that is ambiguous."""


class TravelError(InterlaceError, ValueError):
    """A function, or a value that it reads, cannot be written down to run elsewhere."""


class ExportError(InterlaceError, ValueError):
    """A file of edits cannot be written, or what was found cannot be read as one."""


class NoExportError(ExportError, FileNotFoundError):
    """There is no file of edits of that name."""


class ConfigError(InterlaceError, ValueError):
    """A setting that does not exist, or a value that it cannot take."""


class PlatformError(InterlaceError, RuntimeError):
    """This interpreter or machine cannot run traces safely."""


class InterlaceWarning(UserWarning):
    """Something that works, and is probably not what was meant."""


class RunEnded(BaseException):
    """Unwinds the model's stack when its trace has ended; never seen by the user."""


def outside() -> int:
    """How many frames up from the caller the code of the user is: the `stacklevel` of a warning."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("interlace."):
        frame, level = frame.f_back, level + 1
    return level


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names closest to `name`, as the end of a message.

    >>> nearest("layer", ["layers", "norm", "head"])
    ' Did you mean `layers`?'
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(f'`{found}`' for found in close)}?" if close else ""
