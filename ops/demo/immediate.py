"""Workers for an index in the memory of this process: every transfer ends at once, and no byte is moved.

Owns a stand-in for comparisons and tests, where only the bookkeeping counts. Finishes are appended as
`finish_transfer.lua` does it: at whatever the head is.
"""

from __future__ import annotations

from collections.abc import Callable

from events.facts import TransferFinished, TransferStarted
from events.keys import engine_scope
from events.ports import Appended, Base, Commit, Log
from statecore.scopes import finish_touches

_NAME = "worker:immediate"


class ImmediateWorkers:
    """All workers of one index. `work` carries out what was started since it was called last."""

    def __init__(self, log: Log, carry_out: Callable[[TransferStarted], str] = lambda _job: "") -> None:
        """`carry_out` may move bytes; what it returns is why it could not, "" when it did."""
        self._log = log
        self._carry_out = carry_out
        self._seen = 0

    def work(self) -> int:
        """Returns how many transfers were ended."""
        jobs = self._new_jobs()
        if not jobs:
            return 0
        facts: list[TransferFinished] = []
        touches = {engine_scope(_NAME)}
        for job in jobs:
            reason = self._carry_out(job)
            facts.append(TransferFinished(job.transfer, not reason, reason))
            touches.update(finish_touches(job)[1 if reason else 0])
        head = self._log.head()
        commit = Commit(
            id=self._log.next_commit_id(),
            engine=_NAME,
            session=0,
            facts=tuple(facts),
            checks=(),
            touches=tuple(sorted(touches)),
        )
        reply = self._log.append(commit, Base(head.position, head.commit_id))
        assert isinstance(reply, Appended), reply
        return len(jobs)

    def _new_jobs(self) -> list[TransferStarted]:
        jobs: list[TransferStarted] = []
        while entries := self._log.read(self._seen):
            self._seen = entries[-1].position
            jobs += (fact for entry in entries for fact in entry.facts if isinstance(fact, TransferStarted))
        return jobs
