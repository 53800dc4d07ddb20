"""What the calls of an index answer.

Inside an explicit `step()` these records are provisional: an engine that shares its pool may see other block ids in them
once the step has ended, but never another number of blocks (`StepConflict` instead). `evicted` and `duplicates` inform and
may change. Outside a step the records are final when the call returns.
"""

from __future__ import annotations

from typing import Final

import attrs

UNDER_WAY: Final = "under way"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
FORGOTTEN: Final = "forgotten"


@attrs.define(slots=True)
class Match:
    """A request began.

    Attributes:
        request: its id.
        blocks: ids of the cached blocks its table begins with, in token order.
        tokens: how many tokens of the prompt they hold.
        host_tokens: how many of these are on their way from the host tier, by this match or one before it.
        waits_for: transfers that must be done before anything is computed after these blocks; empty: now.
    """

    request: str
    blocks: list[int] = attrs.Factory(list)
    tokens: int = 0
    host_tokens: int = 0
    waits_for: tuple[str, ...] = ()


@attrs.define(slots=True)
class Allocation:
    """Blocks a request (or, with `request` None, the engine) was given.

    Attributes:
        blocks: the new ids, in table order. Empty: not yet, room is being made; ask again.
        evicted: blocks of cached prefixes that were dropped to make room.
        waits_for: transfers that are making room; empty when blocks were given.
    """

    request: str | None
    blocks: list[int] = attrs.Factory(list)
    evicted: int = 0
    waits_for: tuple[str, ...] = ()


@attrs.define(slots=True)
class Room:
    """What was evicted on demand.

    Attributes:
        tier: "gpu" or "cpu".
        evicted: blocks that are free now.
        leaving: blocks on their way to the host, by transfers that this call started.
        waits_for: these transfers.
    """

    tier: str
    evicted: int = 0
    leaving: int = 0
    waits_for: tuple[str, ...] = ()


@attrs.define(slots=True)
class Handover:
    """A request is being sent to another engine. `transfer`: wait for it, poll it, or cancel it."""

    request: str
    receiver: str
    transfer: str = ""


@attrs.define(slots=True)
class Extension:
    """The path of a request grew.

    Attributes:
        path_blocks: blocks of its table that now belong to the tree, or stand beside a block that does.
        duplicates: how many of those just added were there already; the request keeps using its own.
    """

    request: str
    path_blocks: int = 0
    duplicates: int = 0


@attrs.frozen(slots=True)
class TransferState:
    """What is known of a transfer.

    Attributes:
        state: "under way", "done", "failed" or "cancelled"; "forgotten": it has ended, in a part of the log that was trimmed
            before this engine read it. `table` and `path_blocks` tell what came of a request that waited for a swap; whether
            a send has brought its blocks nobody can tell any more.
        reason: why it failed or was cancelled.
    """

    transfer: str
    state: str
    reason: str = ""

    @property
    def done(self) -> bool:
        """The bytes are where they should be."""
        return self.state == DONE

    @property
    def under_way(self) -> bool:
        return self.state == UNDER_WAY
