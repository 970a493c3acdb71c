"""`LanguageModel`: causal language models of Hugging Face."""

from pathlib import Path
from typing import Any

from torch import nn

from interlace.compat.nnsight.modeling.transformers import TransformersModel


class LanguageModel(TransformersModel):
    """A causal language model of Hugging Face, with its tokenizer.

    Args:
        model: A hub id, a path, or a model that is ready.
        automodel: Another class of transformers that loads it.
        **kwargs: As for `il.LanguageModel`.
    """

    def __init__(
        self, model: str | Path | nn.Module, *, automodel: Any = "AutoModelForCausalLM", **kwargs: Any
    ) -> None:
        super().__init__(model, automodel=automodel, **kwargs)


__all__ = ["LanguageModel", "TransformersModel"]
