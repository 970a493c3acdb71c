"""The `interlace` command: shows what the library does, on the model that it ships with."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from interlace import __version__
from interlace.demo.pictures import pictures
from interlace.demo.report import page
from interlace.demo.sentences import summary
from interlace.demo.story import tell
from interlace.environment import report as environment
from interlace.errors import ExportError
from interlace.exports import DEFAULT, MANIFEST, listing, read

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a file that is damaged, or 2 for arguments it cannot use.

    Args:
        arguments: The words after `interlace`; by default those of the command line.
    """
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.error("Say what to do: interlace demo, interlace show FOLDER, or interlace report")
    if chosen.command == "show":
        return _show(chosen.file)
    if chosen.command == "report":
        print(environment())
        return 0
    for folder in filter(None, (chosen.out.parent, chosen.pictures)):
        if not folder.is_dir():
            parser.error(f"There is no folder '{folder}'. Make it first: mkdir -p '{folder}'")
        if not os.access(folder, os.W_OK):
            parser.error(f"The folder '{folder}' cannot be written to. Name another one.")
    if chosen.out.is_dir():
        parser.error(f"'{chosen.out}' is a folder. Name a file: --out '{chosen.out / 'interlace-demo.html'}'")
    _demo(chosen.out, chosen.pictures, show=chosen.open)
    return 0


def _demo(out: Path, folder: Path | None, *, show: bool) -> None:
    findings = tell()
    out.write_text(page(findings), encoding="utf-8")
    print(summary(findings))
    if folder:
        for name, picture in pictures(findings).items():
            (folder / f"{name}.svg").write_text(f"{picture}\n", encoding="utf-8")
    print(f"\nThe report, with the pictures: {out.resolve()}")
    if show:
        webbrowser.open(out.resolve().as_uri())


def _show(file: Path) -> int:
    """Print what a file of edits would do, without running any of it."""
    if not file.exists():
        print(f"There is no file or folder '{file}'.", file=sys.stderr)
        return 1
    folder = file if file.is_dir() else file.parent
    if not (folder / MANIFEST).exists() and (folder / DEFAULT).is_dir():
        folder /= DEFAULT
    try:
        print(listing(read(folder)))
    except ExportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    about = "Read and change the inside of a running PyTorch model."
    parser = argparse.ArgumentParser(prog="interlace", description=about)
    parser.add_argument("--version", action="version", version=f"interlace {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    demo = commands.add_parser(
        "demo",
        help="experiment on the model that ships with interlace, and write a report",
        description="Experiment on the model that ships with interlace, and write one HTML page of pictures.",
    )
    report = Path("interlace-demo.html")
    demo.add_argument("--out", type=Path, default=report, metavar="FILE", help="the report (%(default)s)")
    demo.add_argument("--open", action="store_true", help="show the report in a browser")
    demo.add_argument("--pictures", type=Path, metavar="FOLDER", help="also write the pictures as SVG")
    show = commands.add_parser(
        "show",
        help="print what a file of edits would do, without running it",
        description="Print the sources and the values of exported edits, and check their hashes. Nothing runs.",
    )
    show.add_argument("file", type=Path, metavar="FOLDER", help="the folder of an export, or a file in it")
    commands.add_parser(
        "report",
        help="print what a bug report needs: versions, the machine, what is guarded, settings",
        description="Print what a bug report needs. There are no paths, names or keys of yours in it.",
    )
    return parser
