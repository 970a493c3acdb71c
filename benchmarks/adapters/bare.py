"""The call itself, with none of the work done: what every other tool is measured against."""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from benchmarks.models import Subject, logits


class Tool:
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.net = subject.copy()
        self.args, self.kwargs = subject.args, subject.kwargs
        self.generation = subject.generation if subject.prompt is not None else {}
        self.depth = subject.blocks

    def settings(self) -> AbstractContextManager[None]:
        return nullcontext()

    def untraced(self) -> list[Tensor]:
        return [logits(self.net(*self.args, **self.kwargs))]

    empty = read_one = read_all = cache_all = replace_one = replace_all = untraced

    def sweep(self) -> list[Tensor]:
        return [logits(self.net(*self.args, **self.kwargs)) for _ in range(self.depth)]

    def generate(self, steps: int) -> list[Tensor]:
        return [self.net.generate(**self.generation, max_new_tokens=steps)]
