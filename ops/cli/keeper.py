"""What a keeper may have written, for `verify`.

Owns the judgement of an entry by an author that is no engine and has no life of its own: it may declare one engine lost,
with what goes down with it, and nothing else.
"""

from __future__ import annotations

from events.errors import CorruptState
from events.facts import EngineLost, PoolDropped, TransferCancelled
from events.ports import Entry
from workers.keeper import AUTHOR


def is_by_keeper(entry: Entry) -> bool:
    """Whether a keeper wrote it. An engine may be called like one, but no engine has a session 0."""
    return entry.session == 0 and entry.engine == AUTHOR


def require_keepers_right(entry: Entry) -> None:
    """Stop at a keeper's entry that says more than that one engine is lost."""
    lost = [fact.engine for fact in entry.facts if isinstance(fact, EngineLost)]
    if len(lost) != 1:
        raise CorruptState(f"a keeper declared {len(lost)} engines lost in one commit, not 1", position=entry.position)
    for fact in entry.facts:
        if not isinstance(fact, TransferCancelled | EngineLost | PoolDropped):
            raise CorruptState(
                f"a keeper wrote {type(fact).__name__}: it may only declare an engine lost, with its transfers and memory",
                position=entry.position,
            )
        if isinstance(fact, PoolDropped) and fact.engine != lost[0]:
            raise CorruptState(
                f"a keeper declared {lost[0]!r} lost and dropped the memory of {fact.engine!r}", position=entry.position
            )
