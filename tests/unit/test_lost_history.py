"""An engine whose history is gone: what it wrote in the lost part is not what the log says of those blocks (P4)."""

from __future__ import annotations

import attrs
import pytest

from events import RolledBack, connect
from events.facts import HistoryLost
from events.log import LogConnection
from events.memory import MemoryTransport
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from statecore.rejections import StepConflict
from tests.jobs.given import seated, taken
from tests.keeper.given import keeper_of

INDEX = "lost"
KEPT = [1, 2, 3, 4] * 4
OTHER = [9, 9, 9, 9] * 4


@attrs.frozen
class Given:
    connection: LogConnection
    transport: MemoryTransport

    def engine(self, name: str, **given: object) -> CacheIndex:
        settings: dict[str, object] = {"gpu_blocks": 4, "block_size": 4, "follow": False, **given}
        return CacheIndex(self.connection, name=INDEX, engine=name, **settings)  # type: ignore[arg-type]

    def cut(self, position: int) -> None:
        """The log loses what lies behind a position."""
        memory = self.transport
        del memory._records[position:]
        memory._versions = {scope: at for scope, at in memory._versions.items() if at <= position}


@pytest.fixture
def given() -> Given:
    connection = connect("memory://")
    transport = connection.backend.transport(INDEX)
    assert isinstance(transport, MemoryTransport)
    return Given(connection, transport)


def cache(index: CacheIndex, request: str, tokens: list[int]) -> list[int]:
    index.match(request, tokens)
    index.allocate(request, 4 - index.path_blocks(request))
    index.extend(request, ready=True)
    table = index.table(request)
    index.release(request)
    return table


def rolled_back(index: CacheIndex) -> None:
    with pytest.raises(RolledBack):
        index.match("asks", KEPT)
    index.rejoin()


def sound(*indexes: CacheIndex) -> None:
    for index in indexes:
        index.refresh()
        assert (index.inspect(violations), index.inspect(leaked_blocks)) == ([], 0)
    assert len({index.digest() for index in indexes}) == 1


@pytest.mark.parametrize("memory_survives", [True, False])
def test_what_was_overwritten_is_not_matched(given: Given, memory_survives: bool) -> None:
    """Otherwise a prompt would be answered from the bytes of another one.

    Given a cached prompt that was evicted and whose blocks were computed on, when that end of the log is lost and the engine
    begins its next life, then the log says nothing is in those blocks; and a next life without loss forgets nothing.
    """
    index = given.engine("a", memory_survives=memory_survives)
    blocks = cache(index, "one", KEPT)
    end = index.position
    assert set(cache(index, "two", OTHER)) == set(blocks)
    given.cut(end)

    rolled_back(index)

    assert (index.would_match(KEPT), index.would_match(OTHER)) == (0, 0)
    cache(index, "three", KEPT)
    index.rejoin()
    assert index.would_match(KEPT) == 4, "nothing was lost this time, and the process has its memory still"
    sound(index)


def test_what_was_overwritten_in_a_shared_pool(given: Given) -> None:
    """Otherwise the neighbour would match it.

    Given two engines on one pool, of which one evicted and computed in a part of history that is lost, when it begins its
    next life, then nothing unpinned is left in the pool; what the neighbour's request uses stays.
    """
    one = given.engine("a", gpu_pool="p", gpu_blocks=8)
    two = given.engine("b", gpu_pool="p", gpu_blocks=8)
    cache(one, "cached", KEPT)
    two.match("pinned", OTHER)
    two.allocate("pinned", 4)
    two.extend("pinned", ready=True)
    end = one.refresh()
    cache(one, "lost", [5, 6, 7, 8] * 4)
    given.cut(end)

    rolled_back(one)

    two.refresh()
    assert (one.would_match(KEPT), two.would_match(KEPT), two.would_match(OTHER)) == (0, 0, 4)
    assert two.requests() == ("pinned",)
    sound(one, two)


def test_what_was_overwritten_in_the_host_pool(given: Given) -> None:
    """Otherwise another engine would bring wrong bytes in.

    Given a prompt in the host pool whose blocks another swap-out has taken in a part of history that is lost, when the
    engine begins its next life, then the host pool holds nothing that is unpinned.
    """
    index = given.engine("a", cpu_blocks=4)
    worker = seated(given.connection, INDEX, pool=index.gpu_pool)

    def swap_out(first: list[int], then: str) -> None:
        cache(index, f"for-{then}", first)
        index.match(then, [7] * 16)
        (transfer,) = index.allocate(then, 4).waits_for
        worker.finish(taken(worker), ok=True)
        assert index.wait(transfer, 5.0).done
        index.release(then)

    swap_out(KEPT, "x")
    end = index.refresh()
    swap_out(OTHER, "y")
    given.cut(end)

    rolled_back(index)

    assert index.inspect(lambda state: state.pools["cpu:host"].free.total) == 4
    assert (index.would_match(KEPT), index.would_match(OTHER)) == (0, 0)
    sound(index)


def test_a_join_that_itself_was_lost(given: Given) -> None:
    """Otherwise an engine whose first life vanished would trust what others had in a pool it wrote to."""
    one = given.engine("a", gpu_pool="p", gpu_blocks=4)
    cache(one, "cached", KEPT)
    one.leave()
    end = one.refresh()
    two = given.engine("b", gpu_pool="p", gpu_blocks=4, memory_survives=True)
    cache(two, "lost", OTHER)
    given.cut(end)

    rolled_back(two)

    assert (two.session, two.would_match(KEPT)) == (1, 0)
    sound(two)


def test_who_was_told_nothing_matches_nothing_that_was_overwritten(given: Given) -> None:
    """Otherwise it would be given another prompt's bytes, until the one that knew has begun its next life, or for ever.

    Given two engines on one pool, of which one evicted and computed in a lost part and then died, having heard that its
    history is gone, when the other, which was told nothing, matches, then it finds only what is pinned; and the log says so.
    """
    one = given.engine("a", gpu_pool="p", gpu_blocks=8)
    two = given.engine("b", gpu_pool="p", gpu_blocks=8)
    cache(one, "cached", KEPT)
    two.match("pinned", OTHER)
    two.allocate("pinned", 4)
    two.extend("pinned", ready=True)
    end = two.refresh()
    one.refresh()
    cache(one, "lost", [5, 6, 7, 8] * 4)
    given.cut(end)
    with pytest.raises(RolledBack):
        one.match("asks", KEPT)  # and dies

    found = two.match("r", KEPT)

    assert found.blocks == []
    assert two.would_match(OTHER) == 4
    facts = [fact for entry in two._log.read(end) for fact in entry.facts]
    assert [type(fact) for fact in facts if isinstance(fact, HistoryLost)] == [HistoryLost]
    sound(two)


def test_a_step_is_decided_again_on_what_is_left(given: Given) -> None:
    """Otherwise a scheduler would compute with a hit that is not one.

    Given the same, when the other engine matches within a step and has been told a hit, then the step did not happen, and
    the next one is told what is left.
    """
    one = given.engine("a", gpu_pool="p", gpu_blocks=8)
    two = given.engine("b", gpu_pool="p", gpu_blocks=8)
    cache(one, "cached", KEPT)
    end = two.refresh()
    cache(one, "lost", [5, 6, 7, 8] * 4)
    given.cut(end)
    with pytest.raises(RolledBack):
        one.match("asks", KEPT)

    def step() -> int:
        with two.step():
            return two.match("r", KEPT).tokens

    with pytest.raises(StepConflict):
        step()

    assert step() == 0
    sound(two)


def test_a_new_engine_meets_the_loss(given: Given) -> None:
    """Otherwise nobody could join while a loss is in the way."""
    one = given.engine("a", gpu_pool="p", gpu_blocks=8)
    cache(one, "cached", KEPT)
    end = one.position
    cache(one, "lost", [5, 6, 7, 8] * 4)
    given.cut(end)
    with pytest.raises(RolledBack):
        one.match("asks", KEPT)

    new = given.engine("c", gpu_pool="p", gpu_blocks=8)

    assert new.match("r", KEPT).blocks == []
    one.rejoin()
    assert one.match("r", KEPT).blocks == []
    sound(new, one)


def test_transfers_under_way_are_not_carried_out_again(given: Given) -> None:
    """Otherwise a worker would copy bytes that were overwritten in the lost part, and the copy would be called good.

    Given a swap-out whose end is lost, when the loss is dealt with, then it is cancelled, and its blocks wait for a worker.
    """
    index = given.engine("a", cpu_blocks=4)
    other = given.engine("b", cpu_blocks=4)
    worker = seated(given.connection, INDEX, pool=index.gpu_pool)
    cache(index, "for-x", KEPT)
    index.match("x", [7] * 16)
    (transfer,) = index.allocate("x", 4).waits_for
    end = index.position
    worker.finish(taken(worker), ok=True)
    index.wait(transfer, 5.0)
    index.allocate("x", 4)
    given.cut(end)
    with pytest.raises(RolledBack):
        index.release("x")

    other.allocate(None, 1)

    assert other.inspect(lambda state: state.transfers[transfer].cancelled)
    assert other.would_match(KEPT) == 0


def test_the_keeper_tells_what_it_knew(given: Given) -> None:
    """Otherwise only engines would stand up for a history that is gone, and they may all be dead."""
    one = given.engine("a", gpu_pool="p", gpu_blocks=8)
    cache(one, "cached", KEPT)
    end = one.position
    cache(one, "lost", [5, 6, 7, 8] * 4)
    keeper, said = keeper_of(given.connection, INDEX)
    keeper.turn()
    given.cut(end)
    keeper.turn()
    assert said.of("rolled_back")

    new = given.engine("c", gpu_pool="p", gpu_blocks=8)

    assert new.would_match(KEPT) == 0
    sound(new)


def test_a_process_that_comes_back_after_another_has_other_memory(given: Given) -> None:
    """Otherwise a woken process would match copies that lie in the memory of the one that took its name. Found by the
    simulator, seed 30017.

    Given two processes of one name, the later of which cached a prompt, when the earlier one begins its next life, then it
    finds nothing; when it begins another one right after, it finds what it computed itself.
    """
    first = given.engine("a")
    second = given.engine("a")
    cache(second, "theirs", KEPT)

    first.rejoin()

    assert first.would_match(KEPT) == 0
    cache(first, "mine", KEPT)
    first.rejoin()
    assert first.would_match(KEPT) == 4
    sound(first)
