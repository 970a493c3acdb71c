"""interlace with `il.config.checks` off: a replacement is taken as it is."""

from collections.abc import Iterator
from contextlib import contextmanager

import interlace as il
from benchmarks.adapters import interlace


class Tool(interlace.Tool):
    @contextmanager
    def settings(self) -> Iterator[None]:
        before = il.config.checks
        il.config.checks = False
        try:
            yield
        finally:
            il.config.checks = before
