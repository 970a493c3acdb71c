"""A scope around several traces of one model, whose values flow between them by plain variables."""

from typing import Any


class Session:
    """`with model.session() as session:`. Locally it does nothing but exist; remotely it makes its traces one job.

    Attributes:
        model: The envoy that it was opened on.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        """Traces have ended by themselves."""
