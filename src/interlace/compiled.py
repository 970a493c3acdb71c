"""Whether the part of the hot path that is written in C is there, and may be used.

`csrc/` is built when the package is installed, where there is a compiler. Without it, and with
`INTERLACE_COMPILED=0` in the environment, the same code runs in Python: everything works, and a read costs more.
"""

import importlib
import os
import sysconfig
from typing import Any

SETTING = "INTERLACE_COMPILED"


def _found() -> tuple[Any, str]:
    """The compiled module or None, and in words which it is."""
    if os.environ.get(SETTING) == "0":
        return None, f"in Python, since {SETTING}=0"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None, "in Python, for this one runs without a global lock"
    try:
        return importlib.import_module("interlace._quick"), "compiled"
    except ImportError as error:
        return None, f"in Python, for the compiled part is not there ({error})"


quick, how = _found()
