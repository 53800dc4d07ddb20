"""Answers that say no: the machine understood the command and refuses it. Nothing has changed.

Each carries the numbers it was decided on, and its message says what was asked, what there was, and what to do.
`decide` returns them; `CacheIndex` raises them.
"""

from __future__ import annotations

import attrs

from events.errors import StateCoreError


class Rejection(StateCoreError):
    """Base of all refusals."""


@attrs.define(slots=False)
class PoolExhausted(Rejection):
    """Too few blocks are free or evictable now. Release or preempt a request, then ask again."""

    pool: str
    asked: int
    free: int
    evictable: int
    blocks: int

    def __str__(self) -> str:
        return (
            f"pool {self.pool!r} cannot give {self.asked} blocks: {self.free} free, {self.evictable} evictable "
            f"of {self.blocks}; release or preempt a request"
        )


@attrs.define(slots=False)
class NeverFits(Rejection):
    """More blocks than the pool has: waiting will not help."""

    pool: str
    asked: int
    has: int
    blocks: int

    def __str__(self) -> str:
        more = f" beside the {self.has} it has" if self.has else ""
        return f"{self.asked} blocks{more} can never fit into pool {self.pool!r} of {self.blocks}; refuse the request"


@attrs.define(slots=False)
class UnknownRequest(Rejection, KeyError):
    """A `KeyError` as well: that is what FastDeploy's scheduler knows."""

    engine: str
    request: str

    def __str__(self) -> str:
        return f"engine {self.engine!r} has no request {self.request!r}: it was never matched, or is released already"


@attrs.define(slots=False)
class RequestExists(Rejection):
    engine: str
    request: str

    def __str__(self) -> str:
        return f"engine {self.engine!r} already serves a request {self.request!r}; release it first"


@attrs.define(slots=False)
class UnknownPool(Rejection):
    pool: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"there is no pool {self.pool!r}; known: {', '.join(self.known) or 'none'}"


@attrs.define(slots=False)
class SessionOver(Rejection):
    """Another life of this engine has begun, or it was declared lost, or it left. Join again."""

    engine: str
    session: int
    current: int
    reason: str = ""

    def __str__(self) -> str:
        why = f", because {self.reason}" if self.reason else ""
        return (
            f"session {self.session} of engine {self.engine!r} is over{why} (its last session is {self.current}): "
            "its requests are released; join again"
        )


@attrs.define(slots=False)
class ForeignBlocks(Rejection):
    """Blocks that the caller does not own, named twice, or outside the pool."""

    pool: str
    owner: str
    blocks: tuple[int, ...]

    def __str__(self) -> str:
        listed = ", ".join(map(str, self.blocks[:8])) + (", …" if len(self.blocks) > 8 else "")
        return f"blocks {listed} of pool {self.pool!r} are not private to {self.owner} (or are named twice)"


@attrs.define(slots=False)
class PathNotCovered(Rejection):
    """A path may grow only over blocks the request has."""

    request: str
    asked: int
    path: int
    private: int

    def __str__(self) -> str:
        return (
            f"request {self.request!r} cannot extend its path to {self.asked} blocks: it has {self.path} on the path "
            f"and {self.private} private; allocate first"
        )


@attrs.define(slots=False)
class PathShorter(Rejection):
    """What is not on the path cannot be ready."""

    request: str
    asked: int
    path: int

    def __str__(self) -> str:
        return f"request {self.request!r} cannot be ready to {self.asked} blocks: its path has {self.path}; extend it first"


@attrs.define(slots=False)
class PathInUse(Rejection):
    """Within one step: another request was matched on blocks this one was to compute. Nobody would."""

    request: str

    def __str__(self) -> str:
        return (
            f"request {self.request!r} cannot be released: another request stands on blocks it put into the tree in this "
            "step and has not computed; release that one first, or say ready"
        )


@attrs.define(slots=False)
class PathNotFilled(Rejection):
    """The path ends with blocks a transfer is still filling: nothing can be computed after them yet."""

    request: str
    transfer: str

    def __str__(self) -> str:
        return f"request {self.request!r} waits for transfer {self.transfer!r}; wait for it, or release the request"


@attrs.define(slots=False)
class UnknownTransfer(Rejection):
    transfer: str

    def __str__(self) -> str:
        return f"no transfer {self.transfer!r} of this engine is under way: it finished, was cancelled, or never was"


@attrs.define(slots=False)
class PathDiffers(Rejection):
    """The hashes given do not continue the request's path: they are of another sequence."""

    request: str
    path: int

    def __str__(self) -> str:
        return f"the hashes given are not those of request {self.request!r}: they differ within its first {self.path} blocks"


@attrs.define(slots=False)
class DifferentIndex(Rejection):
    """The index was created with other settings than the caller's: sharing would go wrong silently."""

    what: str
    recorded: object
    given: object

    def __str__(self) -> str:
        return f"the index has {self.what} {self.recorded}, this engine asks for {self.given}; use the same or another name"


@attrs.define(slots=False)
class Paused(Rejection):
    """No request may begin now: the index is being cleared, or its weights changed."""

    by: str
    reason: str

    def __str__(self) -> str:
        return f"serving is paused by engine {self.by!r} ({self.reason}); try again when it has resumed"


@attrs.define(slots=False)
class InUse(Rejection):
    """What should go is in use. `holders` says by whom, with the number of blocks or requests."""

    what: str
    holders: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.holders) - 8} more" if len(self.holders) > 8 else ""
        return f"{self.what} is in use by {', '.join(self.holders[:8])}{more}; end these first"


@attrs.define(slots=False)
class Sending(Rejection):
    """Blocks that a send is still reading must not be freed: its receiver would decode from somebody else's bytes."""

    transfer: str
    receiver: str

    def __str__(self) -> str:
        return (
            f"transfer {self.transfer!r} is still sending these blocks to engine {self.receiver!r}; "
            "wait for it or cancel it"
        )


@attrs.define(slots=False)
class NotReceivable(Rejection):
    """A send whose receiver is not there, or differs in what makes blocks exchangeable."""

    receiver: str
    reason: str

    def __str__(self) -> str:
        return f"nothing can be sent to engine {self.receiver!r}: {self.reason}"


@attrs.define(slots=False)
class StepConflict(Rejection):
    """Another engine of the same pool was faster, and this step's outcomes no longer hold. Nothing of it happened.

    Attributes:
        operation: the call of the step that cannot be repeated with the same outcome.
        reason: the refusal it met, or what would differ.
    """

    operation: str
    reason: str

    def __str__(self) -> str:
        return f"the step did not happen: {self.operation} no longer holds ({self.reason}); schedule it again"


@attrs.define(slots=False)
class Contended(Rejection):
    """Decided again and again, and each time somebody was faster. Nothing happened."""

    attempts: int
    scope: str

    def __str__(self) -> str:
        return f"the step lost {self.attempts} races in a row (last on {self.scope}); nothing happened, try again"
