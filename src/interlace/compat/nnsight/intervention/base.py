"""`NNsight`: any PyTorch model."""

import warnings
from collections.abc import Callable
from typing import Any

from interlace.compat.nnsight.elsewhere import here
from interlace.compat.nnsight.intervention.tracing.tracer import InterleavingTracer
from interlace.model import Model
from interlace.session import Session
from interlace.trace import Trace


class NNsight(Model):
    """Any PyTorch model; `il.Model` with the arguments that nnsight's documentation gives to a trace.

    Args:
        module: The model.
        rename: Other names for modules.
        envoys: Other classes for envoys.
    """

    def trace(
        self,
        *args: Any,
        fn: str | Callable[..., Any] | None = None,
        trace: bool | None = None,
        tracer_cls: type[Trace] = InterleavingTracer,
        scan: bool = False,
        validate: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Open a trace.

        Args:
            *args: What the model is called with.
            fn: A method name or a callable to run in place of the model's own call.
            trace: False runs once, without a block.
            tracer_cls: A subclass of the tracer.
            scan: Look at the shapes first: `model.scan(...)`.
            validate: An old option without effect: a native block fails at its own line.
            **kwargs: Like `args`. `remote=True` is refused.

        Raises:
            RemoteException: It is to run elsewhere.
        """
        kwargs = here(kwargs, "trace")
        if validate:
            warnings.warn("`validate=` is an old form; leave it out.", DeprecationWarning, stacklevel=2)
        if scan:
            with self.scan(*args, **kwargs):
                pass
        return super().trace(*args, fn=fn, trace=None if trace else trace, tracer_cls=tracer_cls, **kwargs)

    def session(self, tracer_cls: type[Session] = Session, **kwargs: Any) -> Session:
        """A scope around several traces.

        Args:
            tracer_cls: A subclass of the session to open.
            **kwargs: Options that say where it is to run.

        Raises:
            RemoteException: It is to run elsewhere.
        """
        return super().session(tracer_cls, **here(kwargs, "session"))
