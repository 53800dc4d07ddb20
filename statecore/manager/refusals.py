"""Refusals that name a request, and input of the wrong type.

Owns what FastDeploy's callers distinguish and `statecore.rejections` does not.
"""

from __future__ import annotations

import attrs

from events.errors import InvalidInput
from statecore.rejections import PoolExhausted


class WrongType(InvalidInput, TypeError):
    """A value of a type that cannot be used. A `TypeError` as well as a `ValueError`."""


@attrs.define(slots=False)
class NotEnoughBlocks(PoolExhausted):
    """A request needs more blocks than can be had now. Nothing of it has happened."""

    request: str

    def __str__(self) -> str:
        return (
            f"request {self.request!r} needs {self.asked} more blocks of pool {self.pool!r}: {self.free} free, "
            f"{self.evictable} evictable of {self.blocks}; release or preempt a request"
        )
