"""The documented import paths `nnsight.modeling.*`."""

from interlace.compat.nnsight.modeling import base, huggingface, language, transformers

__all__ = ["base", "huggingface", "language", "transformers"]
