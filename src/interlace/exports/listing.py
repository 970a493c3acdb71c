"""What a file of edits would do, as text: its sources, the values that they read, its tensors."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from interlace.exports.reading import File

_WIDTH = 100
"""A longer value is cut; what it names is at the top all the same."""


def listing(file: File) -> str:
    """Everything that a file of edits holds, for people. Nothing of it has run.

    Args:
        file: The file, read and checked.
    """
    return "".join(map(_visible, "\n".join(_lines(file))))


def _visible(character: str) -> str:
    """A character that would hide or move others in a terminal, spelled out."""
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in "\n\t"
    return character.encode("unicode_escape").decode() if hidden else character


def _lines(file: File) -> Iterator[str]:
    manifest = file.manifest
    edits, model = manifest["edits"], manifest["model"]
    yield f"{file.folder}: {len(edits)} edit{'s' * (len(edits) != 1)}, of interlace {manifest['interlace']}"
    yield f"model     {model['class']}, on {model['device']}"
    yield f"modules   {', '.join(manifest['modules']) or '(none that its text names)'}"
    yield f"imports   {', '.join(sorted(set(_named(manifest)))) or '(none but those in the source)'}"
    files = (f"{name} ({about['bytes']} bytes)" for name, about in manifest["files"].items())
    yield f"hashes    agree: {', '.join(files)}"
    for number, entry in enumerate(edits):
        yield ""
        yield f"edit {number}, on model" + (f".{entry['on']}" if entry["on"] else "")
        if "block" in entry:
            yield from _read(entry["block"]["names"].items(), manifest)
        else:
            yield f"  calls {_shown(entry['call'], manifest)}"
    yield from _functions(manifest)
    for name, held in _globals(manifest):
        yield ""
        yield f"global names of {name or 'a script'}"
        yield from _read(held, manifest)
    yield from _shared(manifest)
    yield ""
    yield "-- edits.py " + "-" * 60
    yield file.text.text.rstrip()


def _named(node: Any) -> Iterator[str]:
    """The modules and objects of packages that any value names, however deep it lies."""
    if isinstance(node, dict):
        yield from (
            held for kind, held in node.items() if kind in ("import", "object") and isinstance(held, str)
        )
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for part in parts:
        yield from _named(part)


def _functions(manifest: dict[str, Any]) -> Iterator[str]:
    for function in manifest["functions"]:
        cells = ((name, manifest["cells"][number]) for name, number in function.get("free", {}).items())
        given = [*cells]
        given += [(f"default {n}", node) for n, node in enumerate(function.get("defaults", ()))]
        given += [*function.get("kwdefaults", {}).items(), *function.get("attributes", {}).items()]
        yield ""
        yield f"`{function['name']}`, edits.py line {function['line']}"
        yield from _read(given, manifest)


def _globals(manifest: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((held["module"], held["names"].items()) for held in manifest["namespaces"] if held["names"])


def _shared(manifest: dict[str, Any]) -> Iterator[str]:
    for number, node in enumerate(manifest["shared"]):
        yield ""
        yield f"shared {number} = {_shown(node, manifest)}"


def _read(names: Any, manifest: dict[str, Any]) -> Iterator[str]:
    for name, node in names:
        yield f"  {name} = {_shown(node, manifest)}"


def _shown(node: Any, manifest: dict[str, Any]) -> str:
    text = _spelled(node, manifest)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."


def _spelled(node: Any, manifest: dict[str, Any]) -> str:
    if not isinstance(node, dict):
        return repr(node)
    ((kind, held),) = node.items()
    if kind == "tensor":
        about = manifest["tensors"][held]
        shape, where = tuple(about["shape"]), about.get("device", "numpy")
        return f"{about['kind']} {held}{shape} {about['dtype']} {where}"
    if kind == "function":
        return f"`{manifest['functions'][held]['name']}`"
    if kind in ("list", "tuple", "set", "frozenset"):
        around = {"list": "[]", "tuple": "()"}.get(kind, "{}")
        return f"{around[0]}{', '.join(_spelled(part, manifest) for part in held)}{around[1]}"
    if kind == "dict":
        return "{" + ", ".join(f"{key!r}: {_spelled(part, manifest)}" for key, part in held.items()) + "}"
    if kind in ("envoy", "module", "parameter", "tokenizer", "config"):
        return f"the model's {kind} {held or ''}".rstrip()
    return f"{kind} {held}"
