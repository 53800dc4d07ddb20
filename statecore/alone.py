"""A commit of one command, beside any step: what a keeper appends, and an engine that meets a loss in its way.

Owns the decision and what it amounts to as a commit. Whoever asks appends it, and applies what the log answers.
"""

from __future__ import annotations

from events.ports import Base, Commit, Log
from statecore.commands import Command
from statecore.rejections import Rejection
from statecore.replica import Replica
from statecore.scopes import fences_of, jobs_of, scopes_of


def commit_of_one(
    log: Log, replica: Replica, author: tuple[str, int], command: Command, lapsed: tuple[str, ...] = ()
) -> tuple[Commit, Base] | None:
    """The commit, and what it was decided on; the replica is as it was. None: there is nothing to do, or it is refused.

    Args:
        author: an engine and its session, or the keeper and 0.
        lapsed: engines it declares lost.
    """
    name, session = author
    base = replica.base
    try:
        facts = replica.propose(command)
        if isinstance(facts, Rejection) or not facts:
            return None
        scopes = scopes_of(replica.state, name, facts)
        commit = Commit(
            id=log.next_commit_id(),
            engine=name,
            session=session,
            facts=tuple(facts),
            checks=scopes,
            touches=scopes,
            fences=fences_of(facts),
            jobs=jobs_of(replica.state, facts),
            lapsed=lapsed,
        )
        return commit, base
    finally:
        replica.undo()
