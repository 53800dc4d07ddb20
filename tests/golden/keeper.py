"""The keeper of a story: somebody declares a life of an engine over.

Owns how that gets into the log: by an author that is no engine, under the scopes and the fence of its facts. Whether the
engine's lease has run out is not asked; that is the log's, and no story is about time.
"""

from __future__ import annotations

from events.log import EventLog
from events.ports import Appended, Commit
from statecore.commands import Depose
from statecore.rejections import Rejection
from statecore.replica import Replica
from statecore.scopes import fences_of, scopes_of

AUTHOR = "keeper"


def declare_lost(log: EventLog, replica: Replica, engine: str, reason: str) -> None:
    """Depose the life of `engine` that `replica`, which is at the end of the log, knows; leaves `replica` as it is."""
    facts = replica.propose(Depose(engine, replica.state.engines[engine].session, reason))
    assert not isinstance(facts, Rejection), facts
    scopes, fences = scopes_of(replica.state, AUTHOR, facts), fences_of(facts)
    replica.undo()
    if facts:
        commit = Commit(log.next_commit_id(), AUTHOR, 0, tuple(facts), checks=scopes, touches=scopes, fences=fences)
        reply = log.append(commit, replica.base)
        assert isinstance(reply, Appended), reply
