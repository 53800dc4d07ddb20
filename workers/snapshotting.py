"""The snapshots a keeper takes: when, and what must hold before others start from one.

Owns the order (encode, store, read back, compare digests and invariants, only then publish and trim) and the clock of it:
age is counted by the steady clock, so that a wall clock that jumps can at most bring a snapshot forward once.
"""

from __future__ import annotations

from collections.abc import Callable

from events import limits
from events.errors import CorruptState, NewerSchema
from events.keeping import SnapshotShelf
from events.ports import SnapshotPointer
from events.transport import Published
from statecore import invariants, snapshot
from statecore.replica import Replica
from statecore.restoring import of_snapshot
from workers.keeper_totals import KeeperSettings, Totals
from workers.log_lines import Say


class Snapshotting:
    """Of one keeper. `turn` is called again and again while it acts."""

    def __init__(
        self,
        shelf: SnapshotShelf,
        settings: KeeperSettings,
        totals: Totals,
        say: Say,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
    ) -> None:
        self._shelf = shelf
        self._settings = settings
        self._totals = totals
        self._say = say
        self._clock = clock
        self._wall_ms = wall_ms
        self._pointers: tuple[SnapshotPointer, ...] | None = None
        self._due_at = clock() + settings.age_s
        self._check_at = self._try_at = clock()
        self._pause_s = limits.SNAPSHOT_RETRY_S

    def look_again(self) -> None:
        """What is stored may be others' by now."""
        self._pointers = None

    def turn(self, replica: Replica) -> None:
        """Take one if it is due. Now and then read the newest back: what does not give the state back is replaced.

        Raises:
            CorruptState: the state is broken.
        """
        if self._pointers is None or self._is_due(replica):
            self._look()
        if self._newest is not None and self._clock() >= self._check_at:
            self._check(self._newest)
        if self._is_due(replica) and self._clock() >= self._try_at:
            self._take(replica)
            self._look()

    @property
    def _newest(self) -> SnapshotPointer | None:
        return self._pointers[0] if self._pointers else None

    def _look(self) -> None:
        """See what is stored, and how old the newest is."""
        known, first_look = self._newest, self._pointers is None
        self._pointers = self._shelf.pointers()
        newest = self._newest
        if newest == known and not first_look:
            return
        age_s = 0.0 if newest is None else (self._wall_ms() - newest.at_ms) / 1000
        self._due_at = self._clock() + self._settings.age_s - min(max(age_s, 0.0), self._settings.age_s)
        self._check_at = self._clock() + self._settings.age_s
        self._totals.snapshot_sound = True
        if newest is not None:
            self._totals.snapshot_position, self._totals.snapshot_bytes = newest.position, newest.size
            self._totals.snapshot_at_ms = newest.at_ms

    def _is_due(self, replica: Replica) -> bool:
        behind = replica.state.position - (self._newest.position if self._newest else 0)
        old = self._clock() >= self._due_at or not self._totals.snapshot_sound
        return behind >= self._settings.every or (behind > 0 and old)

    def _check(self, newest: SnapshotPointer) -> None:
        """Read the newest back, as a process that starts would."""
        self._check_at = self._clock() + self._settings.age_s
        failure = self._unsound(newest)
        self._totals.snapshot_sound = not failure
        if failure:
            self._say("damaged", position=newest.position, reason=failure)

    def _take(self, replica: Replica) -> None:
        """Store, verify, publish. What is found unsound is never published, and not tried again at once."""
        begun = self._clock()
        state = replica.state
        if broken := invariants.violations(state):
            raise CorruptState(f"no snapshot of a broken state: {'; '.join(broken[:3])}", position=state.position)
        pointer = SnapshotPointer(
            state.position,
            state.last_commit_id,
            replica.digest(),
            snapshot.SNAPSHOT_SCHEMA,
            blob="",
            size=0,
            at_ms=self._wall_ms(),
        )
        stored = self._shelf.upload(snapshot.encode(state), pointer)
        failure = self._unsound(stored)
        if failure:
            self._shelf.discard(stored)  # nobody names it; one that was not published may have been, by a lost reply
        else:
            reply = self._shelf.publish(stored, self._pointers or ())
            failure = "" if isinstance(reply, Published) else reply.reason
            if isinstance(reply, Published):
                self._totals.published += 1
                self._totals.first_kept = reply.first or self._totals.first_kept
        self._totals.snapshot_s = self._clock() - begun
        if failure:
            self._totals.not_published += 1
            self._try_at = self._clock() + self._pause_s
            self._pause_s = min(self._pause_s * 2, self._settings.age_s)
        else:
            self._pause_s = limits.SNAPSHOT_RETRY_S
        self._say(
            "not_published" if failure else "published",
            position=stored.position,
            bytes=stored.size,
            seconds=round(self._totals.snapshot_s, 3),
            first_kept=self._totals.first_kept,
            **({"reason": failure} if failure else {}),
        )

    def _unsound(self, pointer: SnapshotPointer) -> str:
        """Why what is stored does not give the state back; "" when it does."""
        try:
            found = of_snapshot(pointer, self._shelf.fetch(pointer)).digest()
        except NewerSchema:
            raise
        except CorruptState as error:
            return f"read back, it is not readable: {error}"
        return "" if found == pointer.digest else f"read back, its digest is {found}, not {pointer.digest}"
