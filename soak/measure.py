"""What a process holds: resident memory, tensors, stacks, and objects of the library."""

import dataclasses
import gc
import os
from pathlib import Path

import torch
from greenlet import greenlet

from interlace import switch
from interlace.run import Run
from interlace.trace import Trace


@dataclasses.dataclass(frozen=True)
class Held:
    """What was held at one moment.

    Attributes:
        memory: Resident memory, in bytes.
        tensors: Tensors that Python can reach.
        stacks: Greenlets, those of the interpreter's threads included.
        ours: Runs and traces.
        parked: Stacks that wait inside a run, or to be unwound.
        objects: All objects that the collector knows.
    """

    memory: int
    tensors: int
    stacks: int
    ours: int
    parked: int
    objects: int

    def __str__(self) -> str:
        return (
            f"{self.memory / 2**20:.1f} MiB, {self.tensors} tensors, {self.stacks} stacks, "
            f"{self.ours} runs, {self.parked} parked, {self.objects} objects"
        )


def held() -> Held:
    """What this process holds now, after a collection."""
    gc.collect()
    found = gc.get_objects()
    kinds = [type(one) for one in found]
    home = switch.home()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return Held(
        memory=pages * os.sysconf("SC_PAGE_SIZE"),
        tensors=sum(issubclass(kind, torch.Tensor) for kind in kinds),
        stacks=sum(issubclass(kind, greenlet) for kind in kinds),
        ours=sum(issubclass(kind, (Run, Trace)) for kind in kinds),
        parked=len(home.parked) + len(home.abandoned),
        objects=len(found),
    )
