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
| snapshot          | encodes, stores, reads back, compares digests and invariants, and only then publishes and trims      |
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import attrs

from events import limits
from events.errors import CorruptState, NewerSchema, RolledBack, Unavailable
from events.keeping import Keeping
from events.ports import Appended, AppendReply, Conflicted, LossInTheWay, SnapshotPointer, StillAlive
from events.transport import Published
from statecore import invariants, snapshot
from statecore.alone import commit_of_one
from statecore.commands import Command, Depose, Forget
from statecore.replica import Replica
from statecore.restoring import of_snapshot, up_to_date
from workers.lease_watch import LeaseWatch
from workers.log_lines import Say
from workers.rebuild import ring_all

AUTHOR = "keeper"
"""Who writes what the keeper appends. It is no engine and has no session."""


@attrs.frozen
class KeeperSettings:
    """How often snapshots are taken.

    Attributes:
        every: commits after which one is.
        age_s: seconds after which one is, if anything has happened since the last.
    """

    every: int = limits.SNAPSHOT_EVERY
    age_s: float = limits.SNAPSHOT_AGE_S


@attrs.define
class Totals:
    """What a keeper did and saw in its life; what its metrics show."""

    acting: bool = False
    position: int = 0
    engines: int = 0
    transfers: int = 0
    deposed: int = 0
    spared: int = 0
    rung: int = 0
    published: int = 0
    not_published: int = 0
    snapshot_position: int = 0
    snapshot_bytes: int = 0
    snapshot_at_ms: int = 0
    snapshot_s: float = 0.0
    first_kept: int = 0
    rolled_back: int = 0
    unavailable: int = 0


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
        self._settings = settings
        self._say = say
        self._clock = clock
        self._wall_ms = wall_ms
        self._token = token or secrets.token_hex(8)
        self._replica: Replica | None = None
        self._watch = LeaseWatch(limits.LEASE_GRACE_S)
        self._began = self._ring_at = clock()
        self._pointers: tuple[SnapshotPointer, ...] | None = None
        self.totals = Totals()

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
                self.totals.acting, self._pointers = acting, None
                self._watch.lost_contact()
            replica = self._catch_up()
            if acting and replica.state.position:
                self._deal_with_loss(replica)
                self._depose(replica)
                self._ring(replica)
                self._snapshot_if_due(replica)
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
            self._replica = self._pointers = None
            self._watch.lost_contact()
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

    # --- snapshots --------------------------------------------------------------------------------------------------

    def _snapshot_if_due(self, replica: Replica) -> None:
        if self._pointers is None or self._is_due(replica):
            self._pointers = self._place.shelf.pointers()
            if self._is_due(replica):
                self._snapshot(replica, self._pointers)
                self._pointers = self._place.shelf.pointers()
            for newest in self._pointers[:1]:
                self.totals.snapshot_position, self.totals.snapshot_bytes = newest.position, newest.size
                self.totals.snapshot_at_ms = newest.at_ms

    def _is_due(self, replica: Replica) -> bool:
        position = replica.state.position
        if not self._pointers:
            return position >= self._settings.every or self._clock() - self._began >= self._settings.age_s
        newest = self._pointers[0]
        age_s = (self._wall_ms() - newest.at_ms) / 1000
        return position - newest.position >= self._settings.every or (
            position > newest.position and age_s >= self._settings.age_s
        )

    def _snapshot(self, replica: Replica, seen: tuple[SnapshotPointer, ...]) -> None:
        """Store, verify, publish. What is found unsound is never published."""
        begun = self._clock()
        state = replica.state
        if broken := invariants.violations(state):
            raise CorruptState(f"no snapshot of a broken state: {'; '.join(broken[:3])}", position=state.position)
        digest = replica.digest()
        stored = self._place.shelf.upload(
            snapshot.encode(state),
            SnapshotPointer(
                state.position, state.last_commit_id, digest, snapshot.SNAPSHOT_SCHEMA, "", 0, self._wall_ms()
            ),
        )
        failure = self._unsound(stored)
        if not failure:
            reply = self._place.shelf.publish(stored, seen)
            failure = "" if isinstance(reply, Published) else reply.reason
            if isinstance(reply, Published):
                self.totals.published += 1
                self.totals.first_kept = reply.first or self.totals.first_kept
        self.totals.snapshot_s = self._clock() - begun
        if failure:
            self.totals.not_published += 1
        self._say(
            "not_published" if failure else "published",
            position=stored.position,
            bytes=stored.size,
            seconds=round(self.totals.snapshot_s, 3),
            first_kept=self.totals.first_kept,
            **({"reason": failure} if failure else {}),
        )

    def _unsound(self, pointer: SnapshotPointer) -> str:
        """Why what was stored does not give the state back; "" when it does."""
        try:
            found = of_snapshot(pointer, self._place.shelf.fetch(pointer)).digest()
        except NewerSchema:
            raise
        except CorruptState as error:
            return f"read back, it is not readable: {error}"
        return "" if found == pointer.digest else f"read back, its digest is {found}, not {pointer.digest}"
