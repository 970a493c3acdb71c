"""What a scan costs, against hooks that note shapes while torch's own fake mode runs the model."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import interlace as il
from benchmarks.measure import Contender, interleaved
from benchmarks.models import Subject


def by_hand(subject: Subject) -> dict[str, torch.Size]:
    """The shape of what each module gives, as a careful user would find it without running the model."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            shapes[name] = output.shape if isinstance(output, torch.Tensor) else torch.Size()

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in subject.net.named_modules()]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            subject.net(
                *map(mode.from_tensor, subject.args),
                **{
                    name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                    for name, value in subject.kwargs.items()
                },
            )
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def contenders(subject: Subject) -> dict[str, Contender]:
    """What is timed, by name, on a model that has its weights and on one that has none."""
    model = il.Model(subject.net)
    bare = il.Model(subject.copy().to("meta"))
    shapes = by_hand(subject)
    model.scan(*subject.args, **subject.kwargs)
    told = model.get(subject.stack)[0].output
    assert shapes[f"{subject.stack}.0"] in (torch.Size(), told.shape)
    return {
        "run": Contender(lambda: subject.net(*subject.args, **subject.kwargs)),
        "hooks in a fake mode": Contender(lambda: by_hand(subject)),
        "scan": Contender(lambda: model.scan(*subject.args, **subject.kwargs)),
        "scan, no weights": Contender(lambda: bare.scan(*subject.args, **subject.kwargs)),
    }


def text(subjects: list[Subject], seconds: float = 4.0) -> str:
    """A table: milliseconds for each model, and what a module costs in a scan."""
    lines = [
        "| one forward, ms | run | hooks in a fake mode | scan | scan, no weights |",
        "|---|---:|---:|---:|---:|",
    ]
    for subject in subjects:
        costs = interleaved(contenders(subject), seconds)
        cells = " | ".join(f"{cost.total / 1000:.1f}" for cost in costs.values())
        lines.append(f"| {subject.name}, {subject.modules} modules | {cells} |")
    return "\n".join(lines)
