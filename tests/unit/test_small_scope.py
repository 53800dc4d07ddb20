"""Every history of a tiny index: two engines, one pool of three blocks, all sequences of commands, all cuts into steps.

Most defects of a machine like this show in a few steps over a few blocks. States that differ only in what cannot matter
(positions, node ids, the engines' names) are visited once.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from events.facts import Fact
from statecore.commands import Allocate, Command, Leave, MarkReady, Recycle, Release
from statecore.invariants import leaked_blocks, violations
from statecore.rejections import Rejection
from statecore.replica import Replica
from statecore.state import Copy, Engine, Node, State
from tests.unit.given import extend, join, match

BLOCKS = 3
DEPTH = 6
PATHS = ((1, 2), (1, 3))


@attrs.frozen
class History:
    """Commits, and the facts of a step that is still open."""

    commits: tuple[tuple[Fact, ...], ...]
    step: tuple[Fact, ...]


def commands(engine: str, request: str) -> list[Command]:
    return [
        *[match(engine, request, *path) for path in PATHS],
        Allocate(engine, request, 1),
        Allocate(engine, request, 2),
        extend(engine, request, 1),
        *[extend(engine, request, *path) for path in PATHS],
        MarkReady(engine, request),
        Release(engine, request),
        Recycle(engine, request, ((0, 1),)),
    ]


COMMANDS = [
    *commands("a", "r"),
    *commands("a", "s"),
    *commands("b", "r"),
    Allocate("b", None, 2),
    Recycle("b", None, ((1, 1),)),
    Leave("a"),
    join("a", blocks=BLOCKS),
]


def replayed(history: History) -> Replica:
    replica = Replica()
    for position, facts in enumerate(history.commits, 1):
        replica.redo(facts)
        replica.settle(position, str(position))
    replica.redo(history.step)
    return replica


def essence(state: State) -> object:
    """What the future of this state depends on."""
    times = sorted({copy.last_used for node in state.nodes.values() for copy in node.copies.values()})

    def copy_of(copy: Copy) -> tuple[object, ...]:
        fresh = copy.pending is not None and copy.pending_since >= state.clock
        return (copy.blocks, copy.pending, fresh, times.index(copy.last_used))

    def below(node: Node) -> tuple[object, ...]:
        return tuple(
            (
                child.hashes,
                repr([copy_of(copy) for copy in child.copies.values()]),
                below(child),
            )
            for _, child in sorted(node.children.items())
        )

    def engine(found: Engine) -> tuple[object, ...]:
        requests = [
            (request.id, request.leaf.id, request.private, request.duplicates, request.matched)
            for _, request in sorted(found.requests.items())
        ]
        return (found.alive, repr(requests), tuple(tuple(held) for held in found.held.values()))

    return (
        below(state.root),
        tuple(sorted(state.nodes)) if state.place_of else (),
        tuple(engine(state.engines[name]) for name in sorted(state.engines)),
    )


def successors(history: History) -> Iterator[tuple[Command, History, State | None]]:
    """Every command, as part of the open step and after it; with the state where it was not refused."""
    closed = History((*history.commits, history.step), ()) if history.step else history
    for begun in {history, closed}:
        replica = replayed(begun)
        for command in COMMANDS:
            decided = replica.propose(command)
            if isinstance(decided, Rejection):
                yield command, begun, None
                continue
            yield command, History(begun.commits, (*begun.step, *decided)), replica.state
            replica.undo()
            replica.redo(begun.step)


def test_no_sequence_of_commands_breaks_an_invariant() -> None:
    """Some rare order of calls loses a block, pins it for ever, or gives it to two requests (bugs E-05, E-13)."""
    start = Replica()
    facts: list[Fact] = []
    for engine in ("a", "b"):
        decided = start.propose(join(engine, blocks=BLOCKS))
        assert not isinstance(decided, Rejection)
        facts += decided
    frontier = [History((tuple(facts),), ())]
    seen = {essence(replayed(frontier[0]).state)}
    checked = refused = 0
    for depth in range(DEPTH):
        following = []
        for history in frontier:
            for command, after, state in successors(history):
                if state is None:
                    refused += 1
                    continue
                checked += 1
                if after.step == history.step:
                    continue
                broken = violations(state)
                assert not broken, f"{broken}\nby {command}\nafter {history}"
                found = essence(state)
                if found not in seen:
                    seen.add(found)
                    assert leaked_blocks(state) == 0
                    if depth < DEPTH - 1:
                        following.append(after)
        frontier = following
    assert len(seen) > 3000
    assert min(checked, refused) > 10_000
