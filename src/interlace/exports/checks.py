"""Whether a file of edits is whole, and fits a model: all of it is looked at before anything is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interlace.errors import ExportError
from interlace.exports import references
from interlace.exports.folder import SOURCE
from interlace.portable import Check, at
from interlace.portable.names import is_name

if TYPE_CHECKING:
    from interlace.exports.reading import File

Resolve = Callable[[str, Any], Any]


def printable(text: object) -> str:
    """The text of a file that nobody has checked yet, for a message: short, and nothing that moves a cursor."""
    return "".join(filter(str.isprintable, str(text)[:200]))


def damaged(folder: Path, error: BaseException) -> ExportError:
    """The error of a file that is not what an export wrote."""
    said = printable(str(error).partition("\n")[0])
    why = f"there is no {said}" if isinstance(error, KeyError) else said or type(error).__name__
    return ExportError(
        f"{folder} is damaged, or was changed by hand: {why}.\nNothing was loaded. Export it again."
    )


_SHAPE = {
    "interlace": str, "python": str, "torch": str, "model": dict, "packages": list, "modules": list, "edits": list,
    "functions": list, "namespaces": list, "cells": list, "shared": list, "tensors": dict, "files": dict,
}  # fmt: skip


def check_shape(manifest: dict[str, Any]) -> None:
    """Whether a manifest has the parts of one.

    Raises:
        ValueError: It does not.
    """
    for name, kind in _SHAPE.items():
        if not isinstance(manifest.get(name), kind):
            raise ValueError(f"the manifest has no {name}")
    if manifest.keys() - _SHAPE.keys() - {"format", "version", "sha256"}:
        raise ValueError("the manifest has parts that are not known")
    if not all(map(references.is_path, manifest["modules"])):
        raise ValueError("a module is no path")
    texts = [
        manifest["interlace"],
        *manifest["packages"],
        manifest["model"]["class"],
        *(held["module"] for held in manifest["namespaces"]),
    ]
    if not all(isinstance(text, str) and text.isprintable() for text in texts):  # messages show them
        raise ValueError("a name is no text that can be printed")
    torch.device(manifest["model"]["device"])


def anything(kind: str, held: Any) -> Any:
    """Resolve without a model: whether a node is of a kind that a model can tell."""
    if kind not in references.KINDS or not (held is None or held == "" or references.is_path(held)):
        raise ValueError(f"{kind!r} is an unknown kind of value")
    return references.KINDS


def check_values(file: File, resolve: Resolve) -> None:
    """Go through every value and function without making any.

    Raises:
        ExportError: One could not be made here.
    """
    manifest = file.manifest
    try:
        tables = file.tables(lambda name: manifest["tensors"][name]["kind"], resolve)
        check = Check(tables)
        check.fill()
        for entry in manifest["edits"]:
            resolve("envoy", entry["on"])
            if "call" in entry:
                if not isinstance(entry["call"], dict):
                    raise ValueError("an edit is no function")
                check.value(entry["call"])
            else:
                _check_block(entry["block"], file, check)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"The edits in {file.folder} cannot run here: {error}.\nInstall it first. Nothing was loaded."
        ) from error
    except (
        ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, RecursionError,
        RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise damaged(file.folder, error) if resolve is anything else _unfit(file.folder, error) from error


def _unfit(folder: Path, error: BaseException) -> ExportError:
    return ExportError(f"The edits in {folder} do not fit this model: {error}\nNothing was loaded.")


def _check_block(block: dict[str, Any], file: File, check: Check) -> None:
    statement = file.text.block(block["line"])
    if not 0 <= block["item"] < len(statement.items) or type(block["future"]) is not int:
        raise ValueError("a block is not described as blocks are")
    reads, names = block["reads"], block["names"]
    if not isinstance(reads, list) or not all(map(is_name, [*reads, *names, block["owner"] or "_"])):
        raise ValueError("a block is not described as blocks are")
    at(check.namespaces, block["namespace"])
    for number in block.get("free", {}).values():
        at(check.cells, number)
    for node in (*block["names"].values(), block.get("first")):
        check.value(node)


def check_sources(file: File) -> None:
    """Whether what is read in the file of sources is what runs, and all that runs."""
    manifest = file.manifest
    blocks = [entry["block"]["line"] for entry in manifest["edits"] if "block" in entry]
    used = {*blocks, *(function["line"] for function in manifest["functions"])}
    if used != file.text.statements.keys():
        raise ValueError(f"{SOURCE} holds other statements than the edits")
