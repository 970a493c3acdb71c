"""nnsight, where it is installed; written from its public documentation."""

from functools import reduce

from nnsight import NNsight
from torch import Tensor

from benchmarks.adapters import bare
from benchmarks.models import Subject, first, logits


class Tool(bare.Tool):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.model = NNsight(self.net)
        self.blocks = reduce(getattr, subject.stack.split("."), self.model)
        self.replacement = subject.replacement
        self.edited = subject.edited

    def empty(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs):
            result = self.model.output.save()
        return [logits(result)]

    def read_one(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs):
            read = self.blocks[self.edited].output.save()
        return [read]

    def read_all(self) -> list[Tensor]:
        read: list[Tensor] = []
        with self.model.trace(*self.args, **self.kwargs):
            for block in self.blocks:
                read.append(block.output.save())  # noqa: PERF401 - a plain statement, since it is run elsewhere
        return read

    def cache_all(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs) as tracer:
            cache = tracer.cache()
        names = ["model" + f".{name}" * bool(name) for name, _ in self.net.named_modules()]
        return [first(cache[name].output) for name in names if name in cache]

    def replace_one(self) -> list[Tensor]:
        return [self._replaced_at(self.edited)]

    def _replaced_at(self, at: int) -> Tensor:
        with self.model.trace(*self.args, **self.kwargs):
            self.blocks[at].output = self.replacement
            result = self.model.output.save()
        return logits(result)

    def replace_all(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs):
            for block in self.blocks:
                block.output = self.replacement
            result = self.model.output.save()
        return [logits(result)]

    def sweep(self) -> list[Tensor]:
        return [self._replaced_at(at) for at in range(self.depth)]

    def generate(self, steps: int) -> list[Tensor]:
        raise NotImplementedError
