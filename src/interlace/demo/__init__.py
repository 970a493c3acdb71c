"""The embedded model: a small transformer, trained by `training/train.py`, on which everything can be seen at work."""

from pathlib import Path
from typing import Any

from interlace.language import LanguageModel

WEIGHTS = Path(__file__).parent / "weights"


def demo_model(**kwargs: Any) -> LanguageModel:
    """The embedded model, as a `LanguageModel`: four layers of GPT-2, 1.9 MB, no network needed.

    It knows capitals, opposites and plurals, who was given what, and how to repeat a sequence; see
    `docs/demo-model.md`.

    Args:
        **kwargs: Passed to `LanguageModel`, as `attn_implementation="eager"`.

    Example:
        >>> model = demo_model()
        >>> with model.trace("The capital of France is"):
        ...     logits = model.lm_head.output
        >>> model.tokenizer.decode(logits[0, -1].argmax())
        ' Paris'
    """
    return LanguageModel(str(WEIGHTS), **kwargs)
