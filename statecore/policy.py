"""When copies go to the host tier: chosen once per index, recorded as a fact."""

from __future__ import annotations

import attrs

from events.errors import InvalidInput
from events.facts import PolicyChosen
from statecore import door
from statecore.state import WRITE_BACK, WRITE_POLICIES


def _percent(value: object) -> int:
    return door.whole(value, "a watermark (free_low, free_high), in percent,", least=0, most=100)


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
    free_low: int = attrs.field(default=10, converter=_percent)
    free_high: int = attrs.field(default=20, converter=_percent)

    def __attrs_post_init__(self) -> None:
        if self.write not in WRITE_POLICIES:
            raise InvalidInput(f"a write policy is one of {', '.join(WRITE_POLICIES)}, not {door.shown(self.write)}")
        if self.free_low > self.free_high:
            raise InvalidInput(f"free_low {self.free_low} percent is above free_high {self.free_high} percent")

    @property
    def fact(self) -> PolicyChosen:
        return PolicyChosen(self.write, self.free_low, self.free_high)
