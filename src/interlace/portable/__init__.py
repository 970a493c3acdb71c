"""Functions and values as text and tensors: written down here, made again elsewhere.

A function travels as its source, with the values that it reads; tensors travel beside the text. What belongs to
a model (its envoys, modules, parameters, tokenizer) is named by whoever uses this part, which knows no model.
Nothing is pickled, and nothing runs when it is read: code is compiled when it is first needed.
"""

from interlace.portable.packing import Pack
from interlace.portable.source import Text, same_code
from interlace.portable.unpacking import Check, Tables, Unpack, at

__all__ = ["Check", "Pack", "Tables", "Text", "Unpack", "at", "same_code"]
