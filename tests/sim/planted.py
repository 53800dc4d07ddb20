"""Bugs put in on purpose. A campaign that does not find them would not find their like either.

Owns a table: what is wrong -> how to make it so, and which checks notice it. Each entry patches the machine or the log for
the length of a `with`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from events.errors import OutcomeUnknown, Unavailable
from events.facts import BlockRanges, BlocksRecycled, Fact
from events.log import EventLog
from events.memory import MemoryTransport
from events.ports import Appended
from statecore import assign, decide, decision, eviction, evolve, ranges, scopes, state, step, tiers, tree
from statecore.answers import Answers
from statecore.blockset import BlockSet
from statecore.journal import Journal
from statecore.life import Life
from statecore.replica import Replica
from statecore.session import Session
from statecore.step import Step
from tests.sim.planting import CORRUPT_STATE, Bug, patches

# --- the log --------------------------------------------------------------------------------------------------------


def _without_fence(append: Any = MemoryTransport.append) -> Any:
    def mutated(self: Any, *arguments: Any, **named: Any) -> Any:
        self._fences.clear()
        return append(self, *arguments, **named)

    return mutated


def _lost_reply_is_failure(append_once: Any = EventLog._append_once) -> Any:
    def mutated(self: Any, *arguments: Any) -> Any:
        try:
            return append_once(self, *arguments)
        except OutcomeUnknown as error:
            self._doubt = None
            raise Unavailable(str(error)) from error

    return mutated


def _acknowledged_before_appended(append: Any = EventLog.append) -> Any:
    def mutated(self: Any, commit: Any, base: Any) -> Any:
        try:
            return append(self, commit, base)
        except Unavailable:
            return Appended(base.position + 1, ())

    return mutated


# --- scopes ---------------------------------------------------------------------------------------------------------


def _scopes_without(prefix: str, scopes_of: Any = scopes.scopes_of) -> Any:
    def mutated(*arguments: Any) -> tuple[str, ...]:
        return tuple(scope for scope in scopes_of(*arguments) if not scope.startswith(prefix))

    return mutated


# --- the machine ----------------------------------------------------------------------------------------------------


def _matches_foreign_pending(longest_match: Any = tree.longest_match) -> Any:
    def mutated(root: Any, pool: str, engine: str, hashes: bytes, limit: int) -> Any:
        copies = [copy for node in _below(root) if (copy := node.copies.get(pool)) and copy.pending]
        before = [copy.pending for copy in copies]
        for copy in copies:
            copy.pending = None
        try:
            return longest_match(root, pool, engine, hashes, limit)
        finally:
            for copy, pending in zip(copies, before, strict=True):
                copy.pending = pending

    return mutated


def _below(node: Any) -> Iterator[Any]:
    for child in node.children.values():
        yield child
        yield from _below(child)


def _recycled_but_kept(st: Any, fact: Any) -> None:
    if fact.request is not None:
        evolve._free(st, st.pools[fact.pool], fact.blocks)


def _only_private(request: Any) -> BlockRanges:
    return request.private  # type: ignore[no-any-return]


def _ready_at_once(st: Any, engine: Any, request: Any) -> Any:  # noqa: ARG001
    return decision.ready_to(engine, request, request.path_blocks)


def _highest(self: Any, blocks: int) -> BlockRanges:
    everything = ranges.ids(tuple(self))
    return ranges.of_ids(everything[len(everything) - blocks :])


def _one_too_many(st: Any, pool: Any, deficit: int) -> Any:
    return eviction.choose_victims(st, pool, min(deficit + 1, pool.unpinned))


def _filled_once(fill: Any = Answers.allocation) -> Any:
    def mutated(self: Any, st: Any, facts: Sequence[Fact], answer: Any) -> None:
        if not answer.blocks:
            fill(self, st, facts, answer)

    return mutated


def _drop_unrecorded(self: Any, mapping: Any, key: Any) -> None:
    self.call(lambda *_: mapping.pop(key), lambda *_: None)


def _gaps_are_nothing(self: Any) -> None:
    replica = self._replica
    for entry in self._log.arrived(replica.state.position):
        if entry.position > replica.state.position:
            replica.redo(entry.facts)
            replica.settle(entry.position, entry.id)
    self._life.notice(replica.state, ())
    self._life.require()


def _nothing(*_: Any) -> None:
    """Instead of something."""


_evolve_recycled = {**evolve._EVOLVE, BlocksRecycled: _recycled_but_kept}

PLANTED: Final[dict[str, Bug]] = {
    "pool scopes are not checked": Bug(patches((step, "scopes_of", _scopes_without("pool:"))), (CORRUPT_STATE,)),
    "the own engine's scope is not checked": Bug(
        patches((step, "scopes_of", _scopes_without("engine:"))), ("a commit lands once",)
    ),
    "the index scope is not checked": Bug(patches((step, "scopes_of", _scopes_without("index"))), (CORRUPT_STATE,)),
    "neither the log nor the session looks who is alive": Bug(
        patches((MemoryTransport, "append", _without_fence()), (Life, "notice", _nothing)),
        ("a session that is over changes nothing", "requests are as told"),
    ),
    "a lost reply is taken for a failure": Bug(
        patches((EventLog, "_append_once", _lost_reply_is_failure())), ("what was refused is not in the log",)
    ),
    "acknowledged before it is appended": Bug(
        patches((EventLog, "append", _acknowledged_before_appended())), ("commits are counted",)
    ),
    "the own commit is not looked for": Bug(
        patches((EventLog, "_find", _nothing)),
        ("resolve tells the truth", "what was refused is not in the log", "a call lands once"),
    ),
    "nothing is undone before what was missed": Bug(
        patches((Replica, "undo", _nothing)),
        (CORRUPT_STATE, "one digest per position"),
    ),
    "a gap among arrivals is not noticed": Bug(
        patches((Session, "_catch_up_with_arrived", _gaps_are_nothing)),
        ("one digest per position", CORRUPT_STATE),
    ),
    "a deletion is not undone": Bug(
        patches((Journal, "drop", _drop_unrecorded)),
        ("one digest per position", CORRUPT_STATE),
    ),
    "memos are not undone": Bug(patches((Step, "undo_memos", _nothing)), ("an undone step is forgotten",)),
    "an answer is not corrected": Bug(patches((Answers, "allocation", _filled_once())), ("tables are as told",)),
    "places are named by node id": Bug(
        patches((tree, "place", lambda _, node: node.id), (eviction, "place", lambda _, node: node.id)),
        (CORRUPT_STATE,),
    ),
    "another's unfinished blocks are matched": Bug(
        patches((tree, "longest_match", _matches_foreign_pending())), (CORRUPT_STATE,)
    ),
    "scheduled blocks are ready at once": Bug(
        patches((decide, "computed_meanwhile", _ready_at_once), (assign, "computed_meanwhile", _ready_at_once)),
        ("no block is ready in the step that schedules it",),
    ),
    "unfinished blocks are kept": Bug(
        patches((tree, "drop_unfinished", lambda *_: ())),
        ("the invariants hold", CORRUPT_STATE),
    ),
    "pinned copies are evicted": Bug(
        patches(
            (state.Copy, "evictable", property(lambda copy: copy.branches == 0 and copy.pending is None)),
            (tree, "pin_copy", _nothing),
        ),
        ("the invariants hold",),
    ),
    "branches are not counted": Bug(patches((tree, "_count_branch", _nothing)), ("the invariants hold",)),
    "recycled blocks stay in the table": Bug(
        patches((evolve, "_EVOLVE", _evolve_recycled)),
        ("free blocks are as counted", "tables are as told", "the invariants hold"),
    ),
    "release forgets duplicates": Bug(
        patches((decide, "private_ranges", _only_private), (evolve, "private_ranges", _only_private)),
        ("release frees what is its own", "the invariants hold"),
    ),
    "highest ids are given first": Bug(patches((BlockSet, "lowest", _highest)), ("lowest ids are given first",)),
    "more is evicted than is missing": Bug(
        patches((tiers, "choose_victims", _one_too_many)), ("no more is evicted than is missing",)
    ),
}
"""What is wrong -> a context in which it is, and the checks that notice it. Left out because no promise is broken by it:
another order of eviction (policy), losing the background follower's entries (they are read from the log). Fence and session
check are planted together: each alone keeps a life that is over from changing anything; `tests/contract` holds the fence by
itself."""
