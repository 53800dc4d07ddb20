"""One scheduler step before it stands: what would change in the scheduler's books.

Owns the records between `Scheduler.step`'s planning and its applying. Answers of the index are kept, not copied: they
are provisional until the step has ended.
"""

from __future__ import annotations

from enum import Enum, auto

import attrs

from ops.demo.sequence import Sequence
from statecore import Allocation, Match


class Outcome(Enum):
    """What came of a step."""

    PROGRESS = auto()
    LOST = auto()  # it never happened
    MOVING = auto()  # nothing to do before blocks have come from, or gone to, the host
    SHORT = auto()  # no blocks to go on with: others must release some
    AHEAD = auto()  # the next request is not due yet
    DONE = auto()  # nothing runs, nothing waits


@attrs.define
class Advance:
    """Tokens a running request gains, and the blocks it was given for them."""

    sequence: Sequence
    tokens: int
    hashed: int
    allocation: Allocation | None


@attrs.define
class Admission:
    """A request that begins: what was cached, and its first chunk; of no tokens where blocks are still to come."""

    match: Match
    first: Advance


@attrs.define
class Plan:
    """What changes in our books if the step stands.

    Attributes:
        without_room: what the oldest request without blocks was answered; no newer one is given any.
        stalled: a lone request waits for blocks of other engines.
        short: somebody got no blocks.
    """

    released: list[Sequence] = attrs.Factory(list)
    preempted: list[Sequence] = attrs.Factory(list)
    advanced: list[Advance] = attrs.Factory(list)
    refused: list[Sequence] = attrs.Factory(list)
    admitted: list[Admission] = attrs.Factory(list)
    without_room: Allocation | None = None
    stalled: bool = False
    short: bool = False

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The transfers that make room, as the answer has them by now: inside a step it may change."""
        return () if self.without_room is None else self.without_room.waits_for

    @property
    def changes(self) -> bool:
        return bool(self.released or self.preempted or self.advanced or self.refused or self.admitted)
