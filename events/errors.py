"""The errors that are not an answer.

Owns the base of every error a caller can meet. An *answer* of the machine ("pool exhausted") is a `Rejection` and
lives with the machine in `statecore/rejections.py`; what is here says that no answer can be given:

| error            | whose fault              | what still holds                                              |
|------------------|--------------------------|---------------------------------------------------------------|
| InvalidInput     | the caller's             | nothing was sent, nothing changed                             |
| Unavailable      | the log's server         | nothing was appended                                          |
| OutcomeUnknown   | the network's            | appended once or not at all; `resolve()` tells which          |
| CorruptState     | a broken history or bug  | this replica must stop; the log itself was not touched by it  |
| RolledBack       | the log's server         | the same, and joining again is the remedy                     |
"""

from __future__ import annotations


class StateCoreError(Exception):
    """Base of every error this project raises on purpose."""


class InvalidInput(StateCoreError, ValueError):
    """A value was refused at the door. The message names the value and what would be accepted."""


class Unavailable(StateCoreError):
    """The log cannot be reached, or refuses to serve. Nothing was appended.

    Attributes:
        lasting: the server answered, and will answer the same until somebody changes something: trying again is idle.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class OutcomeUnknown(Unavailable):
    """A commit was sent and no reply came in time. It is in the log once, or not at all."""

    def __init__(self, message: str, commit_id: str) -> None:
        super().__init__(message)
        self.commit_id = commit_id


class CorruptState(StateCoreError):
    """History or state is broken: an entry that cannot be read, a broken link, a violated invariant.

    Never continue after it. The message carries the position and the reason.
    """

    def __init__(self, reason: str, *, position: int | None = None) -> None:
        where = "" if position is None else f" at position {position}"
        super().__init__(f"{reason}{where}")
        self.reason = reason
        self.position = position


class RolledBack(CorruptState):
    """The log no longer holds what this replica knows: a failover to a lagging replica, a restored backup, a cut file.

    What this engine was given after the two parted is void: it must use none of its blocks any more. `rejoin` begins anew.
    """


class NewerSchema(CorruptState):
    """The entry was written by a newer release. The log is fine; this process is too old to read it."""
