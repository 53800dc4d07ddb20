"""The workers of a story: nobody moves bytes, but somebody says that they were moved, or why not.

Owns how a finish gets into the log: as `finish_transfer.lua` writes it, by a pool's worker, at whatever the head is.
"""

from __future__ import annotations

from events.facts import Fact, SendStarted, TransferFinished, TransferStarted
from events.keys import engine_scope
from events.log import EventLog
from events.ports import Appended, Base, Commit
from statecore.scopes import finish_touches
from statecore.state import SWAP_IN


class Workers:
    """All workers of an index."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._started: dict[str, TransferStarted | SendStarted] = {}

    def note(self, fact: Fact) -> None:
        """A job came, if this is one."""
        if isinstance(fact, TransferStarted | SendStarted):
            self._started[fact.transfer] = fact

    def report(self, transfer: str, *, ok: bool, reason: str = "") -> None:
        """The last rank has reported."""
        job = self._started[transfer]
        when_ok, when_failed = finish_touches(job) if isinstance(job, TransferStarted) else ((), ())
        swaps_in = isinstance(job, TransferStarted) and job.kind == SWAP_IN
        worker = f"worker:{job.destination if swaps_in else job.source}"
        commit = Commit(
            id=f"finish:{transfer}",
            engine=worker,
            session=0,
            facts=(TransferFinished(transfer, ok, reason),),
            checks=(),
            touches=(engine_scope(worker), *(when_ok if ok else when_failed)),
        )
        head = self._log.head()
        reply = self._log.append(commit, Base(head.position, head.commit_id))
        assert isinstance(reply, Appended), reply
