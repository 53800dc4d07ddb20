"""What became of transfers: remembered for those who ask after the state has forgotten them.

Owns a bounded memory of finished and cancelled transfers, in the order they ended, fed with every entry a session applies.
"""

from __future__ import annotations

from collections.abc import Iterable

from events.facts import Fact, TransferCancelled, TransferFinished
from events.limits import OUTCOMES_MAX
from statecore.results import CANCELLED, DONE, FAILED, TransferState


class Outcomes:
    """Ended transfers by id; the oldest are forgotten first."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        self._ended: dict[str, TransferState] = {}

    def note(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, TransferCancelled):
                self._end(TransferState(fact.transfer, CANCELLED, fact.reason))
            elif isinstance(fact, TransferFinished):
                self._end(TransferState(fact.transfer, DONE if fact.ok else FAILED, fact.reason))

    def get(self, transfer: str) -> TransferState | None:
        return self._ended.get(transfer)

    def _end(self, ended: TransferState) -> None:
        if ended.transfer in self._ended:
            return  # the first outcome counts: a cancelled transfer stays cancelled when its workers report
        self._ended[ended.transfer] = ended
        if len(self._ended) > OUTCOMES_MAX:
            del self._ended[next(iter(self._ended))]
