"""`python killed.py FOLDER SEED`: a recording that is killed again and again ends up as an unbroken one.

Each attempt is a fork of this process that kills itself, with SIGKILL, at a random one of the events that leave
something behind: a forward, a file written, flushed or renamed. It prints how many attempts were killed.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import interlace as il
from interlace import recorder, shards
from tests.models import Transformer

torch.set_num_threads(1)
LENGTHS = [5, 3, 4, 5, 2, 1, 3, 3, 3, 5, 5, 2, 1, 4] * 3
EVENTS = 40


def rows() -> list[torch.Tensor]:
    return [torch.arange(n, n + length) % 11 for n, length in enumerate(LENGTHS)]


def record(model: il.Model, folder: Path, stream: bool) -> None:
    dataset: Any = iter(rows()) if stream else rows()
    model.record(dataset, "h.*", folder, by="token", batch_size=3, shard_bytes=2000)


def dying(after: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap functions so that the process dies before the event of this number, or right after the one before it."""
    seen = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    return wrap


def attempt(model: il.Model, folder: Path, stream: bool, after: int) -> bool:
    """One attempt in a process of its own; whether it came to its end."""
    child = os.fork()
    if child == 0:
        wrap = dying(after)
        recorder.Runner.flat = wrap(recorder.Runner.flat)  # type: ignore[method-assign]
        shards.write_tensors = wrap(shards.write_tensors)
        os.fsync = wrap(os.fsync)
        Path.replace = wrap(Path.replace)  # type: ignore[method-assign]
        try:
            record(model, folder, stream)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert os.WEXITSTATUS(status) == 0, "the recording failed"
    return True


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "lock"}


def main() -> None:
    folder, choose = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    il.config.progress = False
    torch.manual_seed(0)
    model = il.Model(Transformer())
    record(model, folder / "unbroken", False)
    expected = contents(folder / "unbroken")
    killed = 0
    for turn in range(6):
        broken = folder / f"broken{turn}"
        while not attempt(model, broken, turn % 2 == 1, choose.randint(1, EVENTS)):
            killed += 1
        found = contents(broken)
        assert found.keys() == expected.keys(), (found.keys(), expected.keys())
        different = [name for name in expected if found[name] != expected[name]]
        assert not different, different
    print(killed)


if __name__ == "__main__":
    main()
