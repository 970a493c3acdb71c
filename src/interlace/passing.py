"""What a run passes in search of a step that may never come.

The block had no way to ask for it while the model went by. If the step does not come, it can still be read, and
further loops can go over it.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

from interlace.site import Port, Visit

Keep = Literal["first", "all", "order"]
"""What is kept: first visits, which is what a request outside of a loop means; all of them; their order as well."""


class Passing:
    """What was passed.

    Attributes:
        visits: By key and number.
        log: At which ports of which keys the model came past, in its order; whole only where that is asked for.
    """

    __slots__ = ("log", "visits")

    def __init__(self) -> None:
        self.visits: dict[tuple[Any, int], Visit] = {}
        self.log: list[tuple[Any, Port]] = []

    def add(self, visit: Visit, later: bool) -> None:
        """Take in a visit; at the output it can be read from then on, if it is the first or `later` ones are kept."""
        self.log.append((visit.key, visit.port))
        if visit.port == "output" and (later or visit.number == 0):
            self.visits[visit.key, visit.number] = visit


class Trail:
    """A position in what was passed, which moves forward only.

    Attributes:
        starts: How often each site had been entered there.
        ends: How often each site had been left there.
    """

    __slots__ = ("_at", "ends", "starts")

    def __init__(self, starts: Mapping[Any, int], ends: Mapping[Any, int], passing: Passing | None) -> None:
        self.starts = dict(starts)
        self.ends = dict(ends)
        self._at = 0 if passing is None else len(passing.log)

    def passed_by_now(self) -> tuple[dict[Any, int], dict[Any, int]]:
        """How often each site had been entered there, and left."""
        return dict(self.starts), dict(self.ends)

    def follow(self, passing: Passing, key: Any, number: int) -> None:
        """Go on to where a visit has begun."""
        for passed, port in islice(passing.log, self._at, None):
            counts = self.starts if port == "input" else self.ends
            counts[passed] = counts.get(passed, 0) + 1
            self._at += 1
            if port == "input" and passed == key and counts[key] > number:
                return
