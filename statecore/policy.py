"""When copies go to the host tier: chosen once per index, recorded as a fact."""

from __future__ import annotations

import attrs

from events.errors import InvalidInput
from events.facts import PolicyChosen
from statecore import door
from statecore.state import WRITE_BACK, WRITE_POLICIES


@attrs.frozen
class Policy:
    """How an index uses its host tier.

    Attributes:
        write: "write_back": when a copy is evicted from the GPU; "write_through": as soon as it is ready, so that its
            eviction is free.
        free_low, free_high: percent of a GPU pool. Once less than `free_low` is free or leaving, swap-outs start until
            `free_high` is, before anybody has to wait. 0 and 0: only when blocks are needed.
    """

    write: str = WRITE_BACK
    free_low: int = 0
    free_high: int = 0

    def __attrs_post_init__(self) -> None:
        if self.write not in WRITE_POLICIES:
            raise InvalidInput(f"a write policy is one of {', '.join(WRITE_POLICIES)}, not {self.write!r:.80}")
        low = door.whole(self.free_low, "free_low", least=0, most=100)
        high = door.whole(self.free_high, "free_high", least=0, most=100)
        if low > high:
            raise InvalidInput(f"free_low {low} percent is above free_high {high} percent")

    @property
    def fact(self) -> PolicyChosen:
        return PolicyChosen(self.write, self.free_low, self.free_high)
