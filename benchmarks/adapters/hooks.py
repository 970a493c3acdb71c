"""Forward hooks as a careful user writes them: registered for one call, removed whatever happens in it."""

from typing import Any

from torch import Tensor

from benchmarks.adapters import bare
from benchmarks.models import Subject, first, logits


def detached(value: Any) -> Any:
    """An output cut off from the graph: a tensor, a tuple, or what transformers returns."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple):
        return tuple(detached(part) for part in value)
    if isinstance(value, dict):
        return type(value)({name: detached(part) for name, part in value.items()})
    return value


class Tool(bare.Tool):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.blocks = self.net.get_submodule(subject.stack)
        self.replacement = subject.replacement
        self.direction = subject.replacement[0, 0]
        self.edited = subject.edited

    def read_one(self) -> list[Tensor]:
        read: list[Tensor] = []

        def keep(module: object, args: object, output: Tensor) -> None:
            read.append(output)

        hook = self.blocks[self.edited].register_forward_hook(keep)
        try:
            self.net(*self.args, **self.kwargs)
        finally:
            hook.remove()
        return read

    def read_all(self) -> list[Tensor]:
        read: list[Tensor] = []

        def keep(module: object, args: object, output: Tensor) -> None:
            read.append(output)

        hooks = [block.register_forward_hook(keep) for block in self.blocks]
        try:
            self.net(*self.args, **self.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return read

    def cache_all(self) -> list[Tensor]:
        kept: dict[str, Any] = {}

        def keeping(name: str) -> Any:
            def keep(module: object, args: object, output: Any) -> None:
                kept[name] = detached(output)

            return keep

        hooks = [module.register_forward_hook(keeping(name)) for name, module in self.net.named_modules()]
        try:
            self.net(*self.args, **self.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return [first(kept[name]) for name, _ in self.net.named_modules() if name in kept]

    def replace_one(self) -> list[Tensor]:
        return [self._replaced_at(self.edited)]

    def _replaced_at(self, at: int) -> Tensor:
        replacement = self.replacement

        def replace(module: object, args: object, output: Tensor) -> Tensor:
            return replacement

        hook = self.blocks[at].register_forward_hook(replace)
        try:
            return logits(self.net(*self.args, **self.kwargs))
        finally:
            hook.remove()

    def replace_all(self) -> list[Tensor]:
        replacement = self.replacement

        def replace(module: object, args: object, output: Tensor) -> Tensor:
            return replacement

        hooks = [block.register_forward_hook(replace) for block in self.blocks]
        try:
            return [logits(self.net(*self.args, **self.kwargs))]
        finally:
            for hook in hooks:
                hook.remove()

    def sweep(self) -> list[Tensor]:
        return [self._replaced_at(at) for at in range(self.depth)]

    def generate(self, steps: int) -> list[Tensor]:
        read: list[Tensor] = []
        direction = self.direction

        def keep(module: object, args: object, output: Tensor) -> None:
            read.append(output)

        def steer(module: object, args: object, output: Tensor) -> Any:
            return output + direction

        hooks = [
            self.blocks[self.edited - 1].register_forward_hook(keep),
            self.blocks[self.edited].register_forward_hook(steer),
        ]
        try:
            tokens = self.net.generate(**self.generation, max_new_tokens=steps)
        finally:
            for hook in hooks:
                hook.remove()
        return [*read, tokens]
