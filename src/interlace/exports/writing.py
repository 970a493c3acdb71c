"""Write the stored edits of a model: their sources, the values that these read, the tensors."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import torch

from interlace.capture import Bindings
from interlace.edit import Edit
from interlace.edit import Place as Here
from interlace.errors import ExportError, TravelError
from interlace.exports.blocks import NAME, Block, parsed, recompiled
from interlace.exports.folder import MANIFEST, SOURCE, TENSORS, Place, replace
from interlace.exports.needs import Modules, needed
from interlace.exports.references import References
from interlace.parse import parse
from interlace.portable import Pack, same_code
from interlace.portable.source import FUTURE, Text, dedent, function_of, global_names, lines_of
from interlace.version import __version__

FORMAT, VERSION = "interlace edits", 1
_LINE = 110


def export(envoy: Any, place: Place) -> None:
    """Write the edits that are stored on an envoy and below it.

    Raises:
        ExportError: There are none, or the place cannot be written.
        TravelError: Something that an edit reads cannot travel.
    """
    root, path = envoy.root, envoy._path
    edits = [
        stored.made(root)
        for stored in envoy._tree.edits
        if stored.path == path or stored.path.startswith(f"{path}.")
    ]
    if not edits:
        raise ExportError(
            f"There is no edit to export: none is stored on `{path}`.\n"
            f"Make one: `edited = {path}.edit(function)`, and export `edited`; or `edit(..., inplace=True)`."
        )
    replace(place, _files(root, edits))


def _files(root: Any, edits: list[Edit]) -> dict[str, bytes]:
    pack = Pack(References(root))
    modules: set[str] = set()
    entries = [_entry(pack, edit, root, number, modules) for number, edit in enumerate(edits)]
    from safetensors.torch import save  # here: importing interlace is to stay quick

    stored = pack.tensors.finish()
    text, lines = _composed(pack.sources, _titles(entries, pack.functions))
    for entry in (*pack.functions, *(entry["block"] for entry in entries if "block" in entry)):
        entry["line"] = lines[entry.pop("source")]
    files = {SOURCE: text.encode()}
    if stored:
        files[TENSORS] = save(stored)
    kind = type(root._tree.module)
    device = root._tree.device()
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "interlace": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "model": {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "device": str(device or "cpu"),
        },
        "packages": sorted(pack.modules),
        "modules": sorted(modules),
        "edits": entries,
        "functions": pack.functions,
        "namespaces": pack.namespaces,
        "cells": pack.cells,
        "shared": pack.shared,
        "tensors": pack.tensors.entries,
        "files": {
            name: {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}
            for name, held in sorted(files.items())
        },
    }
    manifest["sha256"] = digest(manifest)
    files[MANIFEST] = _json(manifest)
    return files


def digest(manifest: Mapping[str, Any]) -> str:
    """The hash of a manifest, without that hash itself. Order counts, spaces do not."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()


def _json(manifest: dict[str, Any]) -> bytes:
    try:
        return (_pretty(manifest, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, in some text
        return (_pretty(manifest, ensure_ascii=True) + "\n").encode()


def _pretty(node: Any, margin: str = "", *, ensure_ascii: bool) -> str:
    """JSON in which what is short stands on one line, and what is long is indented."""
    line = json.dumps(node, ensure_ascii=ensure_ascii)
    if len(line) + len(margin) <= _LINE or not isinstance(node, (dict, list)):
        return line
    inside = f"{margin}  "
    if isinstance(node, list):
        parts = [_pretty(part, inside, ensure_ascii=ensure_ascii) for part in node]
    else:
        keys = [json.dumps(key, ensure_ascii=ensure_ascii) for key in node]
        held = [_pretty(part, inside, ensure_ascii=ensure_ascii) for part in node.values()]
        parts = [f"{key}: {part}" for key, part in zip(keys, held, strict=True)]
    left, right = "[]" if isinstance(node, list) else "{}"
    return f"{left}\n{inside}" + f",\n{inside}".join(parts) + f"\n{margin}{right}"


# -- one edit --------------------------------------------------------------------------------------------------


def _entry(pack: Pack, edit: Edit, root: Any, number: int, modules: set[str]) -> dict[str, Any]:
    on = edit.path.partition(".")[2]
    modules.update({on} - {""})
    if edit.function is not None:
        first = len(pack.functions)
        pack.reading("")
        name = getattr(edit.function, "__name__", None) or type(edit.function).__name__
        call = pack.value(edit.function, name)
        pack.finish()
        for found in pack.functions[first : first + 1]:
            _note_function(edit, pack.sources[found["source"]], root, modules)
        return {"on": on, "call": call}
    pack.reading(f"edit {number}")
    return {"on": on, "block": _block(pack, edit, root, modules)}


def _note_function(edit: Edit, source: str, root: Any, modules: set[str]) -> None:
    function = function_of(parse(source).body[0])
    assert function is not None
    body = function.body if isinstance(function.body, list) else [function.body]
    names = [*function.args.posonlyargs, *function.args.args]
    if names and names[0].arg not in Bindings(body).bound:
        seen = Modules({names[0].arg: root.get(edit.path.partition(".")[2])}, {})
        for part in body:
            seen.visit(part)
        modules |= seen.found


def _block(pack: Pack, edit: Edit, root: Any, modules: set[str]) -> dict[str, Any]:
    template, run = edit.template, edit.run
    assert template is not None
    assert run is not None
    assert edit.names is not None
    lines = lines_of(template.source.rstrip("\n"))
    indented = lines[0][:1].isspace()
    tree = parse("".join(["if 1:\n", *lines] if indented else lines)).body[0]
    statement = tree.body[0] if isinstance(tree, ast.If) else tree
    assert isinstance(statement, ast.With)
    if indented:
        ast.increment_lineno(statement, -1)
    source = dedent(lines, statement)
    code = run.function.__code__
    future = code.co_flags & FUTURE
    entry: dict[str, Any] = {
        "source": pack.add_source(source),
        "item": template.item,
        "owner": template.owner,
        "future": future,
        "reads": sorted(template.reads),
    }
    described = Block(entry["item"], entry["owner"], future, template.reads)
    text = Text(source, "<edit>")
    if not same_code(
        recompiled(text.block(1), described, text.filename, source).code,
        template.code.replace(co_name=NAME),
    ):
        raise TravelError(
            f"The block at line {template.line} does not compile to what was captured. Load its file again."
        )
    block = parsed(text.block(1), template.item, source)
    wanted = _wanted(block.body, template.reads, template.owner)
    names = {name: value for name, value in edit.names.items() if name in wanted}
    entry["names"] = {name: pack.value(value, name) for name, value in names.items()}
    loose = wanted - names.keys() | global_names(code)
    entry["namespace"] = pack.namespace(run.__globals__, loose)
    if code.co_freevars:
        entry["free"] = pack.free(code, run.function.__closure__ or ())
        entry["first"] = pack.value(run.first, "self")
    pack.finish()
    _note_block(block.body, names, root, modules)
    return entry


def _wanted(body: list[ast.stmt], reads: frozenset[str], owner: str | None) -> set[str]:
    """The names of the frame that a block may read before it binds them."""
    plain = needed(body, set())
    private = f"_{owner.lstrip('_')}" if owner else ""
    return {name for name in reads if name in plain or (private and name.removeprefix(private) in plain)}


def _note_block(body: list[ast.stmt], names: Mapping[str, object], root: Any, modules: set[str]) -> None:
    bound = Bindings(body).bound
    own = {name: value for name, value in names.items() if name not in bound}
    envoys = {
        name: root.get(value.path.partition(".")[2]) for name, value in own.items() if isinstance(value, Here)
    }
    seen = Modules(envoys, {name: value for name, value in own.items() if type(value) in (int, str)})
    for part in body:
        seen.visit(part)
    modules |= seen.found


# -- the file of sources ---------------------------------------------------------------------------------------


def _titles(entries: list[dict[str, Any]], functions: list[dict[str, Any]]) -> dict[int, str]:
    titles: dict[int, str] = {}
    for number, entry in enumerate(entries):
        where = f"edit {number}, on the model" + (f": {entry['on']}" if entry["on"] else "")
        if "block" in entry:
            titles[entry["block"]["source"]] = where
        elif "function" in entry["call"]:
            titles.setdefault(functions[entry["call"]["function"]]["source"], where)
    for function in functions:
        titles.setdefault(function["source"], f"`{function['name']}`, which the edits read")
    return titles


def _composed(sources: list[str], titles: dict[int, str]) -> tuple[str, list[int]]:
    """One file of all sources, and the line on which each begins."""
    text = (
        "# Edits of an interlace model, as they were written. What they read is in manifest.json.\n"
        "# `interlace show` prints both. Hashed: make a change in your own code, and export again.\n"
    )
    lines = []
    for number, source in enumerate(sources):
        text += f"\n\n# -- {titles[number]}\n"
        lines.append(text.count("\n") + 1)
        text += source
    return text, lines


__all__ = ["FORMAT", "VERSION", "digest", "export"]
