"""Requests made from inside an operator of torch that is written in Python.

pybind11 keeps a chain of pointers into the native stack for each thread, and aborts the process when one is
taken off before those that were put on after it. So an operator that the block has called must not return while
the model is parked inside one of its own. `Inside` is the trace of such a request, and sees to that.
"""

from typing import Any

from interlace.errors import TraceError
from interlace.run import Run
from interlace.site import Port, Site, Visit
from interlace.switch import in_operator


class Inside:
    """A trace, as it is asked from inside an operator that its block has called."""

    def __init__(self, trace: Any) -> None:
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trace, name)

    def _visit(self, site: Site, port: Port) -> Visit:
        """Like `Trace._visit`; a model that has parked inside an operator of its own is ended first."""
        run = self._trace._running
        if not isinstance(run, Run):
            raise TraceError(
                f"{site.at(port)} was asked for inside a torch operator written in Python, in one block of "
                "several.\nAsk for it before the operator is called."
            )
        visit: Visit = self._trace._visit(site, port)
        if in_operator(run.switch.frame, None):
            run.end()
            raise TraceError(
                f"{site.at(port)} is inside a torch operator written in Python, and was asked for inside another "
                "one; torch cannot leave them in that order.\nThe run has been ended. Ask for it before the "
                "operator is called."
            )
        return visit

    def _before(self, site: Site, what: str = "changed") -> Visit:
        """Like `Trace._before`."""
        return type(self._trace)._before(self, site, what)  # type: ignore[no-any-return]

    def _skip(self, site: Site, value: Any) -> None:
        """Like `Trace._skip`."""
        type(self._trace)._skip(self, site, value)
