"""From a log to a state: replay up to a position, and prove on the way what `verify` promises.

Owns the loop that all reading commands share, and the checks that need the state before each entry. What an entry does
to the state, and whether it links to the one before, is `statecore.replica`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from events.errors import CorruptState
from events.facts import EngineJoined
from events.ports import Entry
from ops.cli.keeper import is_by_keeper, require_keepers_right
from ops.cli.output import progress
from ops.cli.source import Source, entries
from ops.cli.starting import Kept, beginning
from ops.cli.transfers import is_by_worker, require_workers_right
from statecore.invariants import violations
from statecore.replica import Replica
from statecore.state import State

Watch: TypeAlias = Callable[[State, Entry], None]
"""Sees each entry with the state before it."""

Begin: TypeAlias = Callable[[State], None]
"""Sees the state from which the entries go on: that at birth, or that of a snapshot."""


def replay(
    source: Source,
    until: int,
    *,
    check_every: int = 0,
    watch: Watch | None = None,
    begin: Begin | None = None,
    here: Kept | None = None,
) -> Replica:
    """The replica at position `until`; its invariants checked every so many commits, 0 for never.

    Who only wants the state gets it from the newest snapshot; who watches or checks sees all that is kept. `begin` is told
    the state from which the entries go on; `here` is what was found to be kept, for who has looked.

    Raises:
        InvalidInput: that position is trimmed away; says which can be shown.
        CorruptState: the history or the state is broken; says where.
        Unavailable: the server went away.
    """
    replica = beginning(source, until, oldest=bool(check_every) or watch is not None, here=here)
    start = replica.state.position
    if begin is not None:
        begin(replica.state)
    for entry in progress(entries(source, start, until), until - start, "replaying"):
        if watch is not None:
            watch(replica.state, entry)
        replica.apply(entry)
        if check_every and entry.position % check_every == 0:
            require_sound(replica.state)
    return replica


def require_sound(state: State) -> None:
    """Stop at a state whose invariants do not hold."""
    found = violations(state)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CorruptState(f"an invariant does not hold: {found[0]}{more}", position=state.position)


def require_fenced(state: State, entry: Entry) -> None:
    """Stop at an entry whose author's life was not the one going on: the fence let it pass.

    Workers and keepers have no lives; what they may write is judged instead.
    """
    if is_by_keeper(entry):
        require_keepers_right(entry)
        return
    if is_by_worker(entry):
        require_workers_right(state, entry)
        return
    begun = [fact.session for fact in entry.facts if isinstance(fact, EngineJoined) and fact.engine == entry.engine]
    engine = state.engines.get(entry.engine)
    if begun:
        allowed, why = begun[-1], f"begins session {begun[-1]}"
    elif engine is None:
        raise CorruptState(f"engine {entry.engine!r} wrote without ever having joined", position=entry.position)
    elif not engine.alive:
        raise CorruptState(
            f"engine {entry.engine!r} wrote in session {entry.session} after its session {engine.session} had ended",
            position=entry.position,
        )
    else:
        allowed, why = engine.session, f"is in session {engine.session}"
    if entry.session != allowed:
        raise CorruptState(
            f"fence broken: engine {entry.engine!r} wrote in session {entry.session} and {why}", position=entry.position
        )
