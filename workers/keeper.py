"""The keeper of an index: what keeps an index healthy that no engine has the time for.

Owns what is done in one turn, and in which order. Must not know where the log is (`events.keeping.Keeping`) nor how its
process is run (`keeper_process.py`). It decides nothing that the log does not check again, so two that act by mistake do no
harm, and one that dies costs nothing but time.

| a turn            | does                                                                                                 |
|-------------------|------------------------------------------------------------------------------------------------------|
| act               | one keeper acts; the others keep their replicas warm and wait for its place                          |
| catch up          | reads the log to its end; behind the trim from a snapshot; on a rolled-back log it begins anew       |
| deal with a loss  | HistoryLost, where somebody knew more than the log holds: workers wait for it                         |
| depose            | engines whose leases have been missing for `LEASE_GRACE_S`: EngineLost, and PoolDropped with it where |
|                   | the memory died too; only if the lease is really gone, which the log checks in the same step         |
| ring              | transfers that have no job: the job is made again from the state                                     |
| snapshot          | takes and publishes one when it is due (`snapshotting.py`)                                           |
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from events import limits
from events.errors import RolledBack, Unavailable
from events.keeping import Keeping
from events.keys import KEEPER
from events.ports import Appended, AppendReply, Conflicted, Fenced, LossInTheWay, StillAlive
from statecore.alone import commit_of_one
from statecore.commands import Command, Depose, Forget
from statecore.replica import Replica
from statecore.restoring import up_to_date
from workers.keeper_totals import KeeperSettings, Totals
from workers.lease_watch import LeaseWatch
from workers.log_lines import Say
from workers.rebuild import ring_all
from workers.snapshotting import Snapshotting

AUTHOR: Final = KEEPER
"""Who writes what the keeper appends. It is no engine and has no session."""


class Keeper:
    """One keeper process's work. `turn` is called again and again."""

    def __init__(
        self,
        place: Keeping,
        settings: KeeperSettings,
        say: Say,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        token: str | None = None,
    ) -> None:
        """`clock`, `wall_ms` and `token` are for the simulator."""
        self._place = place
        self._say = say
        self._clock = clock
        self._token = token or secrets.token_hex(8)
        self._replica: Replica | None = None
        self._watch = LeaseWatch(limits.LEASE_GRACE_S)
        self._ring_at = clock()
        self.totals = Totals()
        self._snapshots = Snapshotting(place.shelf, settings, self.totals, say, clock, wall_ms)

    def turn(self) -> None:
        """Everything once.

        Raises:
            CorruptState: the history or this replica is broken: stop, and let somebody look.
            NewerSchema: a newer release writes here.
        """
        try:
            acting = self._place.act(self._token)
            if acting != self.totals.acting:
                self._say("acts" if acting else "waits", position=self.totals.position)
                self.totals.acting = acting
                self._watch.lost_contact()
                self._snapshots.look_again()
            replica = self._catch_up()
            if acting and replica.state.position:
                self._deal_with_loss(replica)
                self._depose(replica)
                self._ring(replica)
                self._snapshots.turn(replica)
        except Unavailable as error:
            self._watch.lost_contact()
            self.totals.unavailable += 1
            self._say("unavailable", reason=str(error))

    def _catch_up(self) -> Replica:
        log = self._place.log
        try:
            self._replica = up_to_date(log, self._replica)
        except RolledBack as error:
            log.alarm(f"the log was rolled back: {error}. Engines that knew more of it begin new lives")
            self._say("rolled_back", reason=str(error))
            self.totals.rolled_back += 1
            if self._replica is not None:
                self._place.transport.note_loss(self._replica.base)
            self._replica = None
            self._watch.lost_contact()
            self._snapshots.look_again()
            self._replica = up_to_date(log)
        state = self._replica.state
        self.totals.position = state.position
        self.totals.engines = sum(engine.alive for engine in state.engines.values())
        self.totals.transfers = len(state.transfers) + len(state.sends)
        return self._replica

    # --- engines ----------------------------------------------------------------------------------------------------

    def _depose(self, replica: Replica) -> None:
        alive = [(name, each.session) for name, each in sorted(replica.state.engines.items()) if each.alive]
        held = self._place.leases([name for name, _ in alive])
        seen = [(name, session, has) for (name, session), has in zip(alive, held, strict=True)]
        for engine, session, missing_s in self._watch.look(seen, self._clock()):
            reason = f"no sign of life from it for {limits.LEASE_TTL_S + missing_s:.1f} s"
            self._declare_lost(replica, Depose(engine, session, reason))

    def _declare_lost(self, replica: Replica, command: Depose) -> None:
        match self._append(replica, command, lapsed=(command.engine,)):
            case Appended():
                self.totals.deposed += 1
                self._say("deposed", engine=command.engine, session=command.session, reason=command.reason)
            case StillAlive():
                self.totals.spared += 1
                self._watch.lost_contact()
            case LossInTheWay() as loss:
                self._forget(replica, loss.commit)
            case _:
                pass  # conflicted, trimmed or rolled back: the next turn looks again

    def _deal_with_loss(self, replica: Replica) -> None:
        if loss := self._place.log.head().loss:
            self._forget(replica, loss)

    def _forget(self, replica: Replica, commit: str) -> None:
        """Nobody may trust what a lost part of history may have overwritten."""
        if isinstance(self._append(replica, Forget(AUTHOR, commit)), Appended):
            self._say("history_lost", commit=commit, position=replica.state.position)

    def _append(self, replica: Replica, command: Command, lapsed: tuple[str, ...] = ()) -> AppendReply | None:
        """One command, one attempt; the replica follows what the log answers."""
        prepared = commit_of_one(self._place.log, replica, (AUTHOR, 0), command, lapsed)
        if prepared is None:
            return None
        commit, base = prepared
        reply = self._place.log.append(commit, base)
        if isinstance(reply, Fenced):
            self._say(
                "refused", reason=f"an engine has joined under the keeper's name, {AUTHOR!r}: nobody is declared lost"
            )
        if isinstance(reply, Appended | Conflicted):
            replica.apply_all(reply.missed)
        if isinstance(reply, Appended):
            replica.redo(commit.facts)
            replica.settle(reply.position, commit.id)
        return reply

    # --- jobs -------------------------------------------------------------------------------------------------------

    def _ring(self, replica: Replica) -> None:
        now = self._clock()
        if now < self._ring_at or not (replica.state.transfers or replica.state.sends):
            return
        self._ring_at = now + limits.RING_EVERY_S
        rung = ring_all(self._place.bell, replica.state)
        if rung:
            self.totals.rung += rung
            self._say("rung", jobs=rung)
