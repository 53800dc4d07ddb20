"""The tree of runs finds and takes over exactly what a dictionary of single blocks would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from events.facts import PathExtended
from statecore import invariants, ranges, tree
from statecore.commands import Allocate, Extend
from statecore.decide import decide
from tests.property.histories import (
    BLOCKS,
    ENGINES,
    OPERATIONS,
    POOLS,
    SYMBOLS,
    Machine,
    Operation,
    hashes_of,
    thorough,
)
from tests.sim.accounts import cut, listed


@thorough
@given(OPERATIONS, st.lists(st.tuples(SYMBOLS, st.integers(0, 6)), min_size=1, max_size=8))
def test_a_match_is_the_longest_prefix(history: list[Operation], probes: list[tuple[list[int], int]]) -> None:
    """Given any history, then a match is as long as block-by-block search, for every engine, and its node covers it."""
    machine = Machine()
    for operation in history:
        machine.run(operation)
        assert invariants.violations(machine.replica.state) == []
    for symbols, limit in probes:
        for engine in ENGINES:
            hashes = hashes_of(symbols)
            most = min(limit, len(symbols))
            node, depth = tree.longest_match(machine.replica.state.root, POOLS[engine], engine, hashes, most)

            assert depth == machine.ledger.longest(engine, hashes, most)[0]
            assert node.start <= depth <= node.end
            assert (node.start < depth) == (depth > 0)


@thorough
@given(OPERATIONS, st.integers(0, 2), st.integers(0, 2), SYMBOLS)
def test_a_path_takes_over_what_is_new(history: list[Operation], which: int, number: int, symbols: list[int]) -> None:
    """Given any history, when a path grows, then new content is adopted, content that is there is a duplicate, and the
    path ends before content that another engine is computing."""
    machine = Machine()
    for operation in history:
        machine.run(operation)
    engine, name = ENGINES[which], f"r{number}"
    request = machine.request(engine, name)
    if request is None:
        return
    own, path = ranges.ids(request.private), request.path_blocks
    wanted = (machine.symbols[engine, name] + symbols)[: path + len(own)]
    hashes = hashes_of(wanted)
    pool = machine.ledger.pools[POOLS[engine]]
    adopted: list[int] = []
    duplicates: list[int] = []
    length = 0
    for block, block_hash in zip(own, cut(hashes)[path:], strict=False):
        there = pool.cached.get(block_hash)
        if there is not None and there.pending not in (None, engine):
            break
        (adopted if there is None else duplicates).append(block)
        length += 1

    facts = decide(machine.replica.state, Extend(engine, name, hashes))

    assert not isinstance(facts, Exception)
    found = [fact for fact in facts if isinstance(fact, PathExtended)]
    if not length:
        assert found == []
    else:
        (fact,) = found
        assert fact.hashes == hashes[16 * path : 16 * (path + length)]
        assert (listed(fact.adopted), listed(fact.duplicates)) == (adopted, duplicates)


@thorough
@given(OPERATIONS)
def test_nothing_is_left_of_a_history_that_ends(history: list[Operation]) -> None:
    """Given any history (E-34, E-53), when everyone leaves and all is evicted, then the tree is its root again."""
    machine = Machine()
    for operation in history:
        machine.run(operation)
    machine.commit()
    for engine in ENGINES:
        machine.run(("leave", ENGINES.index(engine), 0, [0], 1))
    machine.commit()
    for pool, engine in (("p", "e0"), ("q", "e2")):
        assert machine.propose(Allocate(engine, None, BLOCKS[pool]))
    state = machine.replica.state

    assert list(state.nodes) == [0]
    assert state.root.children == {}
    assert invariants.violations(state) == []
