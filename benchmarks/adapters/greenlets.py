"""The mechanism alone: a kept greenlet, and a count at each module. What a tool built on them cannot go below.

Nothing is checked, torch's state is not kept apart, an error is lost, and only one trace can be open.
"""

from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from benchmarks.adapters import bare
from benchmarks.models import Subject, logits

SLOT = "_compiled_call_impl"


def _work(block: greenlet) -> None:
    """Make one call after the other. It must not hold the tool: nothing frees what a parked stack holds."""
    result: Any = None
    while True:
        result = block.switch(result)()


class Tool(bare.Tool):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.blocks = list(self.net.get_submodule(subject.stack))
        self.replacement = subject.replacement
        self.direction = subject.replacement[0, 0]
        self.edited = subject.edited
        self.wanted: set[int] = set()
        self.entered: list[int] = []
        self.left: list[int] = []
        self.modules = list(self.net.modules())
        self.taps = [self._tap(module) for module in self.modules]
        self.block = getcurrent()
        self.worker = greenlet(_work)
        self.worker.switch(self.block)

    def _tap(self, module: nn.Module) -> Callable[..., Any]:
        key, forward, entered, left, wanted = id(module), module.forward, self.entered, self.left, self.wanted

        def call(*args: Any, **kwargs: Any) -> Any:
            entered.append(key)
            result = forward(*args, **kwargs)
            left.append(key)
            if key in wanted:
                wanted.discard(key)
                return self.block.switch(result)
            return result

        return call

    def _open(self, call: Callable[[], Any] | None = None) -> None:
        for module, tap in zip(self.modules, self.taps, strict=True):
            module.__dict__[SLOT] = tap
        self.start: Any = call or (lambda: self.net(*self.args, **self.kwargs))

    def _output(self, block: nn.Module, value: Any = None) -> Any:
        """Let the model go on with a value, up to the next output."""
        self.wanted.add(id(block))
        return self._go(value)

    def _go(self, value: Any) -> Any:
        start, self.start = self.start, None
        return self.worker.switch(value if start is None else start)

    def _close(self, value: Any = None) -> Any:
        result = self._go(value)
        for module in self.modules:
            del module.__dict__[SLOT]
        self.entered.clear()
        self.left.clear()
        return result

    def empty(self) -> list[Tensor]:
        self._open()
        return [logits(self._close())]

    def read_one(self) -> list[Tensor]:
        self._open()
        read = self._output(self.blocks[self.edited])
        self._close(read)
        return [read]

    def read_all(self) -> list[Tensor]:
        self._open()
        read: list[Tensor] = []
        value = None
        for block in self.blocks:
            value = self._output(block, value)
            read.append(value)
        self._close(value)
        return read

    def _replaced_at(self, at: int) -> Tensor:
        self._open()
        self._output(self.blocks[at])
        return logits(self._close(self.replacement))

    def replace_one(self) -> list[Tensor]:
        return [self._replaced_at(self.edited)]

    def replace_all(self) -> list[Tensor]:
        self._open()
        value = None
        for block in self.blocks:
            self._output(block, value)
            value = self.replacement
        return [logits(self._close(value))]

    def sweep(self) -> list[Tensor]:
        return [self._replaced_at(at) for at in range(self.depth)]

    def generate(self, steps: int) -> list[Tensor]:
        read: list[Tensor] = []
        reading, editing = self.blocks[self.edited - 1], self.blocks[self.edited]
        self._open(lambda: self.net.generate(**self.generation, max_new_tokens=steps))
        value: Any = None
        for _ in range(steps):
            value = self._output(reading, value)
            read.append(value)
            value = self._output(editing, value) + self.direction
        return [*read, self._close(value)]
