"""One resumable move of an index towards another layout of its keys."""

from __future__ import annotations

import attrs


@attrs.frozen
class Move:
    """What is done, all of it or nothing, to an index whose head says `start`.

    Attributes:
        start, end: layout in the head before and after.
        leases: every engine that may write is given a lease, if it has none.
        what: for people.
    """

    start: str
    end: str
    leases: bool
    what: str
