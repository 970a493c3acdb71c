"""The documentation is true: every page's code runs and prints what the page says; so does every docstring.

The blocks of a page run in order in one namespace, as a module whose source is a real file that keeps the
page's line numbers. CONTRIBUTING.md tells how a page says that a block is not run, prints, or raises.
"""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import interlace
from interlace.compat.nnsight import mounts

mounts.unmount()  # what its import put on other libraries' objects; other tests are about those

pytestmark = pytest.mark.language

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?P<indent> *)```(?P<language>.*?) *$")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(slots=True)
class Block:
    """One block of Python, the line after its fence, and what the page says that it `prints` or `raises`."""

    line: int
    code: list[str]
    claim: str | None = None
    expected: str | None = None


@pytest.fixture
def mounted(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a page, or in a docstring, of the names for code of nnsight, they are where their import puts them."""
    about = "nnsight" in request.node.name
    if about:
        mounts.mount()
    yield
    if about:
        mounts.unmount()


def fences(page: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Every fenced block: the index of its first line of content, what its fence says, its content."""
    at = 0
    while at < len(page):
        opened = FENCE.fullmatch(page[at])
        if opened is not None:
            indent, first = len(opened["indent"]), at + 1
            at = next(n for n in range(first, len(page)) if page[n].strip() == "```")
            yield first, opened["language"], [line[indent:] for line in page[first:at]]
        at += 1


def blocks(page: list[str]) -> list[Block]:
    found: list[Block] = []
    for first, language, content in fences(page):
        if language == "python":
            found.append(Block(first, content))
        elif language == "text":
            said = next((line for line in reversed(page[: first - 1]) if line.strip()), "")
            claim = re.search(r"\b(prints|raises):$", said.strip().lower())
            if claim is not None:
                assert found, f"line {first}: no block of Python to print or raise this"
                assert found[-1].claim is None, f"line {first}: the block above has its output already"
                found[-1].claim, found[-1].expected = claim[1], "\n".join(content)
    return found


def same(expected: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(expected.strip() + "\n", got.strip() + "\n", FLAGS)


def run(block: Block, namespace: dict[str, object]) -> None:
    """Run one block and hold it to what the page says about it."""
    file = str(namespace["__file__"])
    code = compile("\n" * block.line + "\n".join(block.code) + "\n", file, "exec", dont_inherit=True)
    printed, raised = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
    except Exception as error:
        if block.claim != "raises":
            raise
        raised = "".join(traceback.format_exception_only(error)).replace(f"{type(error).__module__}.", "", 1)
    if block.claim is not None and block.expected is not None:
        got = raised if block.claim == "raises" else printed.getvalue()
        where = f"{file}:{block.line + 1}"
        assert same(block.expected, got), f"{where} {block.claim}\n{got}\n--- the page says\n{block.expected}"


@pytest.mark.usefixtures("mounted")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8").splitlines()
    found = blocks(text)
    lines = [""] * len(text)
    for block in found:
        lines[block.line : block.line + len(block.code)] = block.code
    name = f"page_{page.stem.replace('-', '_').lower()}"
    source = tmp_path / f"{name}.py"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")

    module = types.ModuleType(name)
    module.__file__ = str(source)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    for block in found:
        run(block, vars(module))


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: interlace\.(\w+)", page, re.MULTILINE)) | {"__version__"}
    assert set(interlace.__all__) <= named


def test_the_page_of_errors_has_each() -> None:
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    known = vars(interlace.errors).items()
    errors = {name for name, value in known if getattr(value, "__module__", "") == "interlace.errors"}
    errors = {name for name in errors if name[0].isupper()} - {"RunEnded"}
    assert errors <= set(re.findall(r"\w+", page))
    for error in errors - {"InterlaceError", "NoExportError"}:
        assert f"\n## {error}: " in page


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_every_dependency_has_its_reason() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = settings[: settings.index("[project.scripts]")]
    asked = set(re.findall(r'"([A-Za-z][\w-]+(?:\[python\])?)>=', project))
    assert len(asked) > 15
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    assert asked == set(
        re.findall(r"`([\w\[\]-]+)`", "".join(re.findall(r"^\|([^|]+)\|", page, re.MULTILINE)))
    )


def modules() -> list[str]:
    walked = pkgutil.walk_packages(interlace.__path__, "interlace.")
    return ["interlace", *sorted(found.name for found in walked if not found.name.endswith("__main__"))]


@pytest.mark.usefixtures("mounted")
@pytest.mark.parametrize("name", modules())
def test_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner, report = doctest.DocTestRunner(optionflags=FLAGS), io.StringIO()
    for example in doctest.DocTestFinder().find(importlib.import_module(name), name):
        torch.manual_seed(0)
        runner.run(example, out=report.write)
    assert runner.failures == 0, report.getvalue()
