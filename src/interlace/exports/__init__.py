"""Edits in files: the stored edits of a model, in a folder that people can read and other processes can load.

A folder holds `edits.py`, the source of every edit and of what it calls; `manifest.json`, the values that they
read, versions and hashes; and `tensors.safetensors`. Reading one runs nothing.
"""

from interlace.edit import DEFAULT
from interlace.exports.folder import MANIFEST, Place
from interlace.exports.listing import listing
from interlace.exports.reading import File, read
from interlace.exports.writing import export

__all__ = ["DEFAULT", "MANIFEST", "File", "Place", "export", "listing", "read"]
