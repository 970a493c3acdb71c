"""What a captured block cannot hold, and where none can be captured: an error before anything runs."""

from __future__ import annotations

import contextlib
import linecache
import subprocess
import sys

import pytest

from interlace.capture import CaptureError, capture
from tests.capture.later import Later

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
