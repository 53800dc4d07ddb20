"""The state at a position, in one process: applies the log, and what is decided on top of it before the log has it.

Owns the order of things: entries in order of position, each linked to the one before; a step of one's own on top,
undone before anything else is applied. Also the only place that evolves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from events.errors import CorruptState, RolledBack
from events.facts import Fact
from events.ports import Base, Entry
from statecore.commands import Command
from statecore.decide import decide, numbered
from statecore.digest import digest
from statecore.evolve import evolve
from statecore.rejections import ForeignBlocks, NotReceivable, Paused, PoolExhausted, Rejection
from statecore.state import State
from statecore.tiers import react, reacts


class Replica:
    """A state, and the step in progress on top of it."""

    def __init__(self, state: State | None = None) -> None:
        self.state = State() if state is None else state

    @property
    def base(self) -> Base:
        return Base(self.state.position, self.state.last_commit_id)

    def digest(self) -> str:
        """Digest of the state at `base`; not while a step is in progress."""
        return digest(self.state)

    def moves(self, transfer: str) -> bool:
        """Whether a transfer is under way."""
        return transfer in self.state.transfers or transfer in self.state.sends

    def may_be_outdated(self, refusal: Rejection) -> bool:
        """Whether somebody else may have removed the reason since: a full pool may have been emptied by a worker or by
        another engine of it, a pause be over, a receiver have come."""
        if isinstance(refusal, PoolExhausted):
            engines = [engine for engine in self.state.engines.values() if engine.alive]
            users = sum(refusal.pool in (engine.gpu_pool, engine.cpu_pool) for engine in engines)
            return bool(self.state.transfers) or users > 1
        return isinstance(refusal, Paused | NotReceivable | ForeignBlocks)

    # --- history ----------------------------------------------------------------------------------------------------

    def apply(self, entry: Entry) -> None:
        """The next entry of the log.

        Raises:
            RolledBack: it does not continue the known history. The replica is unchanged, as always.
            CorruptState: it is not the next one, or does not fit the state.
        """
        state = self.state
        if entry.position != state.position + 1:
            raise CorruptState(
                f"entry {entry.position} cannot follow position {state.position}: entries are missing (trimmed?)",
                position=entry.position,
            )
        if entry.previous != state.last_commit_id:
            raise RolledBack(
                f"history diverged: the entry continues commit {entry.previous!r}, this replica holds "
                f"{state.last_commit_id!r}",
                position=entry.position,
            )
        try:
            self.redo(entry.facts)
        except CorruptState as error:
            raise CorruptState(error.reason, position=entry.position) from error
        self.settle(entry.position, entry.id)

    def apply_all(self, entries: Iterable[Entry]) -> None:
        """Entries in order; those this replica has seen are skipped."""
        for entry in entries:
            if entry.position > self.state.position:
                self.apply(entry)

    # --- the step in progress ---------------------------------------------------------------------------------------

    def propose(self, command: Command) -> Sequence[Fact] | Rejection:
        """Decide a command on top of the step and evolve what was decided. A rejection changes nothing."""
        decision = decide(self.state, command)
        if isinstance(decision, Rejection):
            return decision
        self.redo(decision)
        if not reacts(self.state):
            return decision
        added = numbered(self.state, react(self.state, decision))
        self.redo(added)
        return [*decision, *added]

    def redo(self, facts: Iterable[Fact]) -> None:
        """Evolve facts on top of the step. If one does not fit, the whole step is undone."""
        state = self.state
        try:
            for fact in facts:
                evolve(state, fact)
        except CorruptState:
            self.undo()
            raise

    def undo(self) -> None:
        """Back to `base`: as if the step had never been."""
        state = self.state
        state.journal.undo()
        state.places.clear()
        state.place_of.clear()
        for pool in state.pools.values():
            pool.eviction_order.restore()

    def settle(self, position: int, commit_id: str) -> None:
        """The step is in the log at `position`, directly after `base`."""
        state = self.state
        state.journal.clear()
        state.places.clear()
        state.place_of.clear()
        state.position = position
        state.last_commit_id = commit_id
        state.clock = position + 1
        for pool in state.pools.values():
            pool.eviction_order.settle(state.nodes)
