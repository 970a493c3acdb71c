"""`TransformersModel`: models of any class of Hugging Face."""

import sys
from pathlib import Path
from typing import Any

from torch import nn

from interlace import language
from interlace.compat.nnsight.elsewhere import here
from interlace.compat.nnsight.intervention.base import NNsight
from interlace.frames import with_follows


class TransformersModel(NNsight, language.LanguageModel):
    """A model of Hugging Face, with its tokenizer where it has one.

    Args:
        model: A hub id, a path, or a model that is ready.
        automodel: The class of transformers that loads it, or its name.
        **kwargs: As for `il.LanguageModel`; what it does not know goes to `from_pretrained`.
    """

    def __init__(self, model: str | Path | nn.Module, *, automodel: Any = "AutoModel", **kwargs: Any) -> None:
        super().__init__(model, automodel=automodel, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate; under a `with`, a trace of it.

        Raises:
            RemoteException: It is to run elsewhere.
        """
        kwargs = here(kwargs, "generate")
        if with_follows(sys._getframe(1)):
            return super().trace(*args, fn="generate", **kwargs)
        return self.interleave("generate", *args, **kwargs)

    @property
    def dispatched(self) -> bool:
        """Whether the weights are there."""
        return self._tree.loader is None

    @property
    def repo_id(self) -> str | None:
        """The hub id or path that the model came from."""
        return getattr(self.config, "_name_or_path", None) or None
