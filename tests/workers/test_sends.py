"""Sends from a prefill to a decode engine, one worker step at a time: real bytes in two engines' memories.

Worker processes, crashes and a real Redis are in `tests/multiprocess/test_sends.py`; here it is which bytes move when.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from events.job_ports import Delivery
from events.jobs import decode_job
from statecore.rejections import NotReceivable, PathNotFilled, PoolExhausted, Sending
from tests.jobs.given import seated
from tests.workers.sending import BLOCKS, INDEX, LAYOUT, RANKS, Stage, prompt
from workers.rebuild import ring


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_a_request_arrives_with_every_byte(stage: Stage) -> None:
    """Otherwise the decode engine would go on from wrong keys and values.

    Given a computed request, when sent and every rank has copied, then both hear "done", D's blocks hold the patterns of
    their hashes on every rank, D's path is shared from then on, both release, and no block is lost.
    """
    hashes = prompt("a", 5)
    transfer, blocks = stage.sent("r", hashes)
    assert stage.decode.wait(transfer, 0.0).under_way

    stage.work(0)
    state = stage.decode.arrival("r")
    assert state is not None
    assert state.under_way, "one of two ranks has not copied"
    stage.work(1)

    state = stage.decode.arrival("r")
    assert state is not None
    assert (state.transfer, state.done) == (transfer, True)
    assert stage.prefill.wait(transfer, 0.0).done
    assert stage.holds(blocks, hashes) == [True] * 5
    assert stage.decode.extend("r", ready=True).path_blocks == 5
    stage.prefill.release("r")
    stage.decode.release("r")
    assert stage.free("gpu:P") == stage.free("gpu:D") == BLOCKS - 5
    assert stage.decode.match("again", hashes=b"".join(hashes)).blocks == blocks


def test_blocks_go_pairwise_in_the_order_they_are_named(stage: Stage) -> None:
    """Otherwise tokens would be mixed up when the two engines' blocks lie in another order.

    Given three of a request's blocks, named backwards and with a gap, when sent to blocks named forwards, then the first
    named holds what the first named held, and nothing else was written.
    """
    hashes = prompt("a", 5)
    table = stage.computed("r", hashes)
    blocks = stage.expected("r", hashes)
    stage.prefill.refresh()
    stage.prefill.send("r", [table[4], table[3], table[0]], "D", [blocks[1], blocks[4], blocks[2]])
    stage.work_all()

    assert stage.holds([blocks[1], blocks[4], blocks[2]], [hashes[4], hashes[3], hashes[0]]) == [True] * 3
    for store in stage.stores:
        assert store.read("gpu:D", blocks[0]) == store.read("gpu:D", blocks[3]) == bytes(LAYOUT.bytes_per_block)


def test_the_cached_prefix_is_sent_too(stage: Stage) -> None:
    """Otherwise a request whose prompt P had cached would arrive without its beginning.

    Given two requests that share a prefix, when both are sent, then both arrive whole, from the same source blocks.
    """
    hashes = prompt("a", 3)
    stage.computed("first", hashes)
    table = stage.prefill.match("second", hashes=b"".join(hashes)).blocks
    assert table == stage.prefill.table("first")
    for request in ("first", "second"):
        blocks = stage.expected(request, hashes)
        stage.prefill.refresh()
        stage.prefill.send(request, table, "D", blocks)
    stage.work_all()

    for request in ("first", "second"):
        assert stage.holds(stage.decode.table(request), hashes) == [True] * 3


def test_the_job_is_for_the_workers_of_the_sender(stage: Stage) -> None:
    """Otherwise nobody who can read the source would ever hear of it."""
    stage.sent("r", prompt("a", 2))

    assert seated(stage.connection, INDEX, 0, RANKS, pool="gpu:D").take(0.0) is None
    delivery = seated(stage.connection, INDEX, 0, RANKS, pool="gpu:P").take(0.0)
    assert isinstance(delivery, Delivery)
    assert (delivery.job.kind, delivery.job.source, delivery.job.destination) == ("send", "gpu:P", "gpu:D")


def test_caches_without_values_are_sent_as_well(tmp_path: Path) -> None:
    """Otherwise models whose attention keeps one tensor per layer could not be split over two engines."""
    keys_only = attrs.evolve(LAYOUT, values=False)
    stage = Stage(tmp_path, keys_only, keys_only)
    hashes = prompt("a", 5)
    transfer, blocks = stage.sent("r", hashes)
    reports = stage.work(0) + stage.work(1)

    assert stage.decode.poll(transfer).done
    assert stage.holds(blocks, hashes) == [True] * 5
    assert [report.moved_bytes for report in reports] == [5 * LAYOUT.bytes_per_block // 2] * 2
    stage.close()


def test_copying_twice_is_harmless(stage: Stage) -> None:
    """Otherwise a worker that died after its copy and before its report would break the request."""
    hashes = prompt("a", 3)
    transfer, blocks = stage.sent("r", hashes)
    assert [report.ok for report in stage.work(0, report=False)] == [True]
    stage.work_all()

    assert stage.decode.poll(transfer).done
    assert stage.holds(blocks, hashes) == [True] * 3


# --- what cannot be copied ------------------------------------------------------------------------------------------


def test_layouts_that_differ_fail_the_send_and_nothing_else(tmp_path: Path) -> None:
    """Otherwise D would read P's bytes with other strides; or a worker would die of one wrong engine.

    Given a decode engine with another block shape, when sent, then it fails with both layouts, on every rank, and D's
    bytes are untouched; both go on: P releases, D computes in the same blocks.
    """
    stage = Stage(tmp_path, decode_layout=attrs.evolve(LAYOUT, block_shape=(8, 2)))
    hashes = prompt("a", 2)
    transfer, blocks = stage.sent("r", hashes)
    stage.work_all()

    state = stage.decode.arrival("r")
    assert state is not None
    assert state.state == "failed"
    assert state.reason.startswith(
        "rank 0: blocks cannot be copied between different layouts: source 2 layers × 8 blocks"
    )
    assert "rank 1: " in state.reason
    assert stage.prefill.poll(transfer).state == "failed"
    assert stage.stores[0].read("gpu:D", blocks[0]) == bytes(LAYOUT.bytes_per_block)
    stage.prefill.release("r")
    stage.fill("gpu:D", blocks, hashes)
    assert stage.decode.extend("r", ready=True).path_blocks == 2
    assert stage.free("gpu:P") == BLOCKS - 2
    stage.close()


def test_a_pool_is_opened_when_it_is_first_needed_and_again_when_replaced(stage: Stage) -> None:
    """Otherwise P's workers would have to be started again whenever a decode engine comes or comes back.

    Given workers that never saw D's memory, when it is gone, the send fails with that; when D has made it anew, the next
    one arrives in the new memory.
    """
    for store in stage.stores:
        assert store.unlink("gpu:D")
    first, _ = stage.sent("a", prompt("a", 2))
    stage.work_all()
    state = stage.decode.poll(first)
    assert (state.state, "rank 0: pool 'gpu:D': there is no shared memory" in state.reason) == ("failed", True)

    for store in stage.stores:
        store.create("gpu:D", "gpu", LAYOUT)
    hashes = prompt("b", 2)
    transfer, blocks = stage.sent("b", hashes)
    stage.work_all()
    assert stage.decode.poll(transfer).done
    assert stage.holds(blocks, hashes) == [True, True]


# --- who may do what meanwhile ----------------------------------------------------------------------------------------


def test_nothing_is_let_go_while_it_is_read_or_written(stage: Stage) -> None:
    """Otherwise the source would be overwritten before it was read, or half-written blocks be shared.

    Given a send under way, when P releases, D extends, or another send wants the same blocks, then refused, naming the
    transfer; afterwards all of it is possible.
    """
    hashes = prompt("a", 3)
    transfer, blocks = stage.sent("r", hashes)
    with pytest.raises(Sending, match=transfer):
        stage.prefill.release("r")
    with pytest.raises(PathNotFilled, match=transfer):
        stage.decode.extend("r", ready=True)
    with pytest.raises(NotReceivable, match=transfer):
        stage.prefill.send("r", stage.prefill.table("r"), "D", blocks)

    stage.work_all()
    assert stage.prefill.wait(transfer, 0.0).done
    stage.prefill.release("r")
    assert stage.decode.extend("r", ready=True).path_blocks == 3


def test_blocks_a_worker_may_still_write_are_given_to_nobody(stage: Stage) -> None:
    """Otherwise a late copy would overwrite the next request of the decode engine.

    Given one rank that has not copied yet, when D gives the request up, then P hears "cancelled"; D's blocks are nobody's
    until that rank has reported: a request for the whole pool is refused, one for the rest gets other blocks, whose bytes
    stay as they are when the late copy comes.
    """
    hashes = prompt("a", 3)
    transfer, blocks = stage.sent("r", hashes)
    stage.work(0)
    stage.decode.release("r")
    assert (stage.prefill.poll(transfer).state, stage.decode.poll(transfer).state) == ("cancelled", "cancelled")

    stage.decode.match("next", hashes=b"".join(prompt("n", BLOCKS)))
    with pytest.raises(PoolExhausted):
        stage.decode.allocate("next", BLOCKS)
    others = stage.decode.allocate("next", BLOCKS - 3).blocks
    assert not set(others) & set(blocks)
    stage.fill("gpu:D", others, prompt("n", BLOCKS - 3))
    stage.prefill.release("r")

    stage.work(1)
    assert stage.holds(others, prompt("n", BLOCKS - 3)) == [True] * (BLOCKS - 3)
    stage.decode.refresh()
    assert stage.decode.allocate("next", 3).blocks == blocks
    assert stage.free("gpu:D") == 0


@pytest.mark.parametrize("how", ["leaves", "comes back"])
def test_a_sender_that_goes_ends_its_sends(stage: Stage, how: str) -> None:
    """Otherwise the decode engine would wait for ever, or decode from blocks that are somebody else's.

    Given a send under way, when P leaves, or begins a new life after a crash, then D hears "cancelled" and why; the blocks
    D gives back are in quarantine until every rank has reported; then nothing is lost.
    """
    transfer, _ = stage.sent("r", prompt("a", 3))
    if how == "leaves":
        stage.prefill.leave()
    else:
        stage.prefill.rejoin()

    state = stage.decode.arrival("r")
    assert state is not None
    assert (state.transfer, state.state) == (transfer, "cancelled")
    assert ("left" if how == "leaves" else "new life") in state.reason
    stage.decode.release("r")
    assert stage.free("gpu:D") == BLOCKS - 3
    stage.work(0)
    assert stage.free("gpu:D") == BLOCKS - 3
    stage.work(1)
    assert stage.free("gpu:D") == BLOCKS
    assert stage.free("gpu:P") == BLOCKS - 3, "what P cached stays"


@pytest.mark.parametrize("how", ["leaves", "comes back"])
def test_a_receiver_that_goes_ends_the_send(stage: Stage, how: str) -> None:
    """Otherwise P would hold the request for ever, or D's next life be written into.

    Given a send under way, when D leaves or comes back, then P hears it and may release; D's blocks are free when every
    rank has reported, not before; and D's next life can use them all.
    """
    transfer, _ = stage.sent("r", prompt("a", 3))
    if how == "leaves":
        stage.decode.leave()
    else:
        stage.decode.rejoin()

    assert stage.prefill.poll(transfer).state == "cancelled"
    stage.prefill.release("r")
    assert stage.free("gpu:D") == BLOCKS - 3
    stage.work_all()
    assert stage.free("gpu:D") == BLOCKS
    assert stage.free("gpu:P") == BLOCKS - 3


# --- jobs that got lost -----------------------------------------------------------------------------------------------


def test_a_lost_job_is_rung_again_as_it_was(stage: Stage) -> None:
    """Otherwise a request would be stuck between the engines when a stream is deleted.

    Given a send whose jobs were lost, when rung, once, then the job equals the first, and the request arrives.
    """
    hashes = prompt("a", 3)
    transfer, blocks = stage.sent("r", hashes)
    first = stage.rung[-1]
    stage.lose_jobs()
    assert stage.work(0) == []

    assert [ring(stage.connection, INDEX) for _ in range(2)] == [1, 0]
    assert stage.rung[-1] == first
    stage.work_all()
    assert stage.decode.poll(transfer).done
    assert stage.holds(blocks, hashes) == [True] * 3


def test_a_lost_job_of_a_cancelled_send_is_rung_without_blocks(stage: Stage) -> None:
    """Otherwise its quarantine would never end, or a worker would write blocks nobody wants written."""
    hashes = prompt("a", 3)
    _, blocks = stage.sent("r", hashes)
    stage.decode.release("r")
    stage.lose_jobs()

    assert ring(stage.connection, INDEX) == 1
    job = decode_job(stage.rung[-1].body)
    assert (job.source_blocks, job.destination_blocks) == ((), ())
    stage.work_all()
    assert stage.free("gpu:D") == BLOCKS
    assert stage.holds(blocks, hashes) == [False] * 3
