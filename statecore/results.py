"""What the calls of an index answer.

Inside an explicit `step()` these records are provisional: an engine that shares its pool may see other block ids in them
once the step has ended (never other counts; see `StepConflict`). Outside a step they are final when the call returns.
"""

from __future__ import annotations

import attrs


@attrs.define(slots=True)
class Match:
    """A request began.

    Attributes:
        request: its id.
        blocks: ids of the cached blocks its table begins with, in token order.
        tokens: how many tokens of the prompt they hold.
    """

    request: str
    blocks: list[int] = attrs.Factory(list)
    tokens: int = 0


@attrs.define(slots=True)
class Allocation:
    """Blocks a request (or, with `request` None, the engine) was given.

    Attributes:
        blocks: the new ids, in table order.
        evicted: blocks of cached prefixes that were dropped to make room.
    """

    request: str | None
    blocks: list[int] = attrs.Factory(list)
    evicted: int = 0


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
