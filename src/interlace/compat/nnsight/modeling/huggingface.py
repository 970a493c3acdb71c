"""`HuggingFaceModel`, under the path where nnsight documents it."""

from interlace.compat.nnsight.modeling.transformers import TransformersModel as HuggingFaceModel

__all__ = ["HuggingFaceModel"]
