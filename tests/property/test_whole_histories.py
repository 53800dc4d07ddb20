"""Whatever engines ask and workers report, in whatever order: no block is lost, doubled, or given away while it moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from statecore.policy import Policy
from statecore.replica import Replica
from tests.property.histories import Operation, many, operations, thorough
from tests.property.whole_histories import KINDS, OPERATIONS, POLICIES, World

HOSTS = st.booleans()
CHOSEN = st.sampled_from(POLICIES)
STEP = many(
    operations(tuple(kind for kind in KINDS if kind not in ("commit", "finish", "fail", "finish again"))), 1, 12
)


def world_after(host: bool, policy: Policy | None, history: list[Operation]) -> World:
    world = World(host, policy)
    for operation in history:
        world.run(operation)
    world.commit()
    return world


@thorough
@given(HOSTS, CHOSEN, OPERATIONS)
def test_every_state_is_sound_and_its_log_replays_to_it(
    host: bool, policy: Policy | None, history: list[Operation]
) -> None:
    """Given any history, then every state on the way is sound (`World` checks), and another process that reads the log
    reaches the same digest."""
    world = world_after(host, policy, history)

    replayed = Replica()
    replayed.apply_all(world.log)

    assert replayed.digest() == world.replica.digest()


@thorough
@given(HOSTS, CHOSEN, OPERATIONS, STEP)
def test_a_step_undone_never_was(
    host: bool, policy: Policy | None, history: list[Operation], step: list[Operation]
) -> None:
    """Given any history and a step of any commands on top of it, when it is undone, then the digest is as before, and when
    its facts are applied again, the state is the one they had led to."""
    world = world_after(host, policy, history)
    before = world.replica.digest()
    for operation in step:
        world.run(operation)
    after, facts = world.replica.digest(), world.step

    world.replica.undo()

    assert world.replica.digest() == before
    world.must_be_sound()
    world.replica.redo(facts)
    assert world.replica.digest() == after


@thorough
@given(HOSTS, CHOSEN, OPERATIONS)
def test_when_all_has_ended_every_block_is_free(host: bool, policy: Policy | None, history: list[Operation]) -> None:
    """Given any history, when all lives and transfers end and the cache is cleared, then every pool is free to the last
    block and the tree is empty: nothing was kept by anybody who is gone."""
    world = world_after(host, policy, history)

    world.end_all()

    assert {name: list(pool.free) for name, pool in world.state.pools.items()} == {
        name: [(0, pool.blocks)] for name, pool in world.state.pools.items()
    }
    assert list(world.state.nodes) == [0]
