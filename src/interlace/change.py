"""What a block did at one port of one visit, kept so that it can be done again to another visit.

It knows visits and values, and nothing of when or why that is asked for.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from interlace import trees
from interlace.errors import TraceError
from interlace.site import Visit

REFUSED = "This backward recomputes a checkpointed region in which a block changed something, and cannot repeat it.\n"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A tensor as the model went on with it."""

    value: torch.Tensor
    requires_grad: bool
    in_place: bool

    def again(self) -> torch.Tensor:
        """Another tensor like it, which the model may change."""
        with _disable_current_modes(), torch.enable_grad():
            return self.value.detach().requires_grad_(self.requires_grad).clone()


@dataclass(frozen=True, slots=True)
class Kept:
    """A leaf that the block left as it was: its position among all leaves."""

    at: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a block did at one port of one visit."""

    count: int
    parts: Any
    skipped: bool
    random: list[torch.Tensor] | None

    def repeat(self, visit: Visit) -> None:
        """Do it to a recomputed visit."""
        found = list(trees.leaves(_parts(visit)))
        if len(found) != self.count:
            raise TraceError(
                REFUSED + "The recomputed values have another structure than those of the forward."
            )

        def leaf(held: Any) -> Any:
            if isinstance(held, Kept):
                return found[held.at]
            if isinstance(held, tuple):  # changed in place, so that whatever shares its memory sees it
                at, snapshot = held
                with _disable_current_modes():
                    found[at].copy_(snapshot.again())
                return found[at]
            return held.again() if isinstance(held, Snapshot) else held

        visit.args, visit.kwargs, visit.result = trees.map_leaves(lambda held: leaf(held.value), self.parts)
        visit.skipped = self.skipped
        if self.random is not None:
            _set_random(self.random)


class Leaf:
    """Hides what it holds from the walk over nested values."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _parts(visit: Visit) -> tuple[Any, ...]:
    return visit.args, visit.kwargs, visit.result


def _random() -> list[torch.Tensor]:
    """The state of torch's random numbers, which the block shares with the model."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return states


def _set_random(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


class Before:
    """A visit before the block had it."""

    def __init__(self, visit: Visit) -> None:
        self.skipped = visit.skipped
        self.leaves = [(leaf, version(leaf)) for leaf in trees.leaves(_parts(visit))]
        self.random = _random()

    def change(self, visit: Visit) -> Change | None:
        """What the block did to it; None for nothing."""
        old, changed, at = self.leaves, visit.skipped != self.skipped, -1

        def leaf(new: Any) -> Leaf:
            nonlocal changed, at
            at += 1
            for position in [at, *range(len(old))] if isinstance(new, torch.Tensor) else [at]:
                if position < len(old) and old[position][0] is new:
                    if version(new) == old[position][1]:
                        changed = changed or position != at
                        return Leaf(Kept(position))
                    changed = True
                    return Leaf((position, Snapshot(new.detach().clone(), new.requires_grad, True)))
            changed = True
            if isinstance(new, torch.Tensor):
                return Leaf(Snapshot(new.detach().clone(), new.requires_grad, False))
            return Leaf(new)

        parts = trees.map_leaves(leaf, _parts(visit))
        random = _random()
        drawn = any(not torch.equal(a, b) for a, b in zip(random, self.random, strict=False))
        if not changed and not drawn and at + 1 == len(old):
            return None
        return Change(len(old), parts, visit.skipped, random if drawn else None)


def version(leaf: Any) -> int:
    """How often a tensor has been edited in place; 0 for anything else."""
    return leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else 0


def unclear(change: Change) -> Change:
    """A change of which it is not known which visit is meant."""
    return Change(-1, change.parts, change.skipped, change.random)
