"""interlace, as its README writes it."""

from functools import reduce

from torch import Tensor

import interlace as il
from benchmarks.adapters import bare
from benchmarks.models import Subject, first, logits, tokenizer


class Tool(bare.Tool):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.model: il.Model = (
            il.Model(self.net)
            if subject.prompt is None
            else il.LanguageModel(self.net, tokenizer=tokenizer(self.net.config.vocab_size))
        )
        self.blocks = reduce(getattr, subject.stack.split("."), self.model)
        self.replacement = subject.replacement
        self.direction = subject.replacement[0, 0]
        self.edited = subject.edited

    def empty(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs) as tracer:
            pass
        return [logits(tracer.result)]

    def read_one(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs):
            read = self.blocks[self.edited].output
        return [read]

    def read_all(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs):
            return [block.output for block in self.blocks]

    def cache_all(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs) as tracer:
            cache = tracer.cache()
        return [first(site.output) for path, site in cache.items() if "generator" not in path]

    def replace_one(self) -> list[Tensor]:
        return [self._replaced_at(self.edited)]

    def _replaced_at(self, at: int) -> Tensor:
        with self.model.trace(*self.args, **self.kwargs) as tracer:
            self.blocks[at].output = self.replacement
        return logits(tracer.result)

    def replace_all(self) -> list[Tensor]:
        with self.model.trace(*self.args, **self.kwargs) as tracer:
            for block in self.blocks:
                block.output = self.replacement
        return [logits(tracer.result)]

    def sweep(self) -> list[Tensor]:
        return [self._replaced_at(at) for at in range(self.depth)]

    def generate(self, steps: int) -> list[Tensor]:
        read: list[Tensor] = []
        reading, editing = self.blocks[self.edited - 1], self.blocks[self.edited]
        with self.model.generate(**self.generation, max_new_tokens=steps) as tracer:
            for _ in tracer.iter[:]:
                read.append(reading.output)
                editing.output = editing.output + self.direction
        return [*read, tracer.result]
