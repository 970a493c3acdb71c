"""What a captured block cannot hold, and where none can be captured: an error before anything runs."""

from __future__ import annotations

import contextlib
import functools
import linecache
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

import interlace as il
from interlace.capture import CaptureError, capture
from tests.capture.later import Later
from tests.models import chain

REFUSED = {
    "return": "def main():\n    with later():\n        ran.append(1)\n        return 1",
    "yield": "def main():\n    with later():\n        ran.append(1)\n        yield",
    "yield from": "def main():\n    with later():\n        ran.append(1)\n        x = yield from ()",
    "await": "async def main():\n    with later():\n        ran.append(1)\n        await other()",
    "async for": "async def main():\n    with later():\n        ran.append(1)\n        async for x in y: pass",
    "break": "def main():\n    for at in range(2):\n        with later():\n            ran.append(1)\n            break",
    "continue": "def main():\n    while 1:\n        with later():\n            ran.append(1); continue",
    "else: break": (
        "def main():\n    for at in range(2):\n        with later():\n            ran.append(1)\n"
        "            for x in y: pass\n            else: break"
    ),
    "del": "def main():\n    mine = 1\n    with later():\n        ran.append(1)\n        del mine",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_only_works_in_place_is_refused_before_anything_runs(word: str) -> None:
    """S-74."""
    ran: list[int] = []
    names = {"later": Later, "ran": ran}
    filename = f"/nowhere/refused_{word}.py"
    linecache.cache[filename] = (1, None, REFUSED[word].splitlines(keepends=True), filename)
    exec(compile(REFUSED[word], filename, "exec"), names)
    keyword = word.removeprefix("else: ")
    with pytest.raises(CaptureError, match=rf"refused_{word}.*`{keyword}"):
        made = names["main"]()  # type: ignore[operator]
        if hasattr(made, "send"):
            made.send(None)
    assert ran == []


def generator(*given: Any) -> Iterator[None]:
    yield


async def coroutine(*given: Any) -> None:
    pass


async def asynchronous(*given: Any) -> AsyncIterator[None]:
    yield


class Yields:
    def __call__(self, *given: Any) -> Iterator[None]:
        yield


BEGUN: dict[str, Any] = {
    "generator": generator,
    "coroutine": coroutine,
    "asynchronous generator": asynchronous,
    "partial": functools.partial(generator, 1),
    "object": Yields(),
    "lambda": lambda *given: (yield),
}


@pytest.mark.parametrize("kind", BEGUN)
@pytest.mark.parametrize("form", ["invoke", "edit"])
def test_a_function_that_would_only_be_begun_is_refused(form: str, kind: str) -> None:
    """S-39, S-80: calling it would run nothing, and nobody would notice."""
    model, function = il.Model(chain()), BEGUN[kind]
    with pytest.raises(CaptureError, match=r"would only be begun there\.\nNothing has run") as raised:
        if form == "edit":
            model.edit(function, inplace=True)
        with model.trace() as tracer:
            tracer.invoke(torch.ones(1, 4))(function)
    assert ("async def" in str(raised.value)) == (function in (coroutine, asynchronous))
    assert not model._tree.edits


def test_a_prompt_takes_a_function_without_arguments() -> None:
    """S-80: others are refused where they are written; what it returns is there where no name is bound to it."""
    model = il.Model(chain())
    with model.trace() as tracer:
        for wrong in (lambda x: x, 3, lambda *, key: key, functools.partial(divmod, 1)):
            with pytest.raises(
                TypeError, match=r"a function without arguments, not .*\nWrite `@tracer\.invoke"
            ):
                tracer.invoke(torch.ones(1, 4))(wrong)
        rights = (
            lambda: 1,
            lambda x=2: x,
            lambda *all: 3,
            lambda *, key=4: key,
            functools.partial(divmod, 9, 2),
        )
        seen = [tracer.invoke(torch.ones(1, 4))(right) for right in rights]
        with pytest.raises(
            il.errors.TraceError, match=r"`<lambda>` has not returned yet: it runs when its trace"
        ):
            seen[0].value
    assert [promise.value for promise in seen] == [1, 2, 3, 4, (4, 1)]


def test_inner_loops_and_functions_may_have_their_own() -> None:
    with Later():
        for at in range(5):
            if at == 3:
                break

        def found() -> int:
            return at

        out = found()
    assert out == 3


def test_a_temporary_of_the_block_may_be_deleted() -> None:
    with Later():
        temporary = [1]
        out = temporary[0]
        del temporary
    assert out == 1
    assert "temporary" not in locals()


def test_exec_without_source_names_the_function_form() -> None:
    """S-75."""
    with pytest.raises(CaptureError, match=r"(?s)made by `exec`.*Give a function instead"):
        exec("with later():\n    x = 1", {"later": Later})


def test_stdin_without_source_names_the_function_form() -> None:
    """S-75."""
    program = "from tests.capture.later import Later\nwith Later():\n    x = 1\n"
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, check=False)
    assert "typed at a prompt or piped in" in done.stderr
    assert "Give a function instead" in done.stderr


def test_no_with_statement_is_an_error_of_its_own() -> None:
    """S-75."""
    with contextlib.ExitStack() as stack, pytest.raises(CaptureError, match="of its own"):
        stack.enter_context(contextlib.nullcontext(capture(sys._getframe())))


def test_a_file_that_changed_is_refused() -> None:
    filename = "/nowhere/changed.py"
    text = "with later():\n    x = 1\n"
    linecache.cache[filename] = (1, None, ["with later():\n", "    other = 1\n"], filename)
    with pytest.raises(CaptureError, match="changed since it was loaded"):
        exec(compile(text, filename, "exec"), {"later": Later})


def test_an_attribute_after_as_is_refused() -> None:
    class Box:
        block: object

    box = Box()
    with pytest.raises(CaptureError, match="plain name"):
        with Later() as box.block:
            pass
