"""The seed's tests about swaps: what a task carries, who waits for it, what its result does."""

from __future__ import annotations

import threading

import pytest

from events.facts import TransferStarted
from statecore import TransferState, UnknownTransfer
from tests.manager.given import Place, cache, evict, must_be_sound, task, unchanged


def test_issue_swap_task_sync_path(place: Place) -> None:
    """Better on purpose: the task is in the log with the decision; issuing it again checks that it says the same, and
    waits.

    Given a swap-in under way, when it is issued in sync, then the call ends with its result, and the task is forgotten.
    """
    manager = place.manager(num_cpu_blocks=2)
    cache(manager, [1, 2])
    with place.workers(manager):
        evict(manager, 1)
    manager.index.match("sync-task", [1, 2])
    [swap] = manager.swaps("sync-task")

    with place.workers(manager):
        manager.issue_swap_task("sync-task", swap.node_ids, swap.gpu_block_ids, swap.cpu_block_ids, "SWAP2GPU", True)

    assert manager.swaps("sync-task") == []
    assert manager.index.inspect(lambda state: len(state.transfers)) == 0
    assert manager.index.poll(swap.transfer).done


def test_prepare_cpu_cache_dispatches_swap(place: Place) -> None:
    """The same. Given 2 blocks on the host, when a request matches them, then one swap-in carries the request, the
    nodes, the GPU and host blocks, towards the GPU.
    """
    manager = place.manager(num_cpu_blocks=2)
    cache(manager, [1, 2, 3, 4])
    with place.workers(manager):
        evict(manager, 2)

    found = manager.index.match("req-id", [1, 2, 3, 4])

    [swap] = manager.swaps("req-id")
    [started] = [
        fact
        for entry in place.log.log(place.index, follow=False).read(0)
        for fact in entry.facts
        if isinstance(fact, TransferStarted) and fact.request == "req-id"
    ]
    assert swap.transfer == started.transfer == found.waits_for[0]
    assert swap.gpu_block_ids == found.blocks
    assert swap.cpu_block_ids == [0, 1]
    assert swap.direction == "SWAP2GPU"
    assert manager.index.inspect(lambda state: [node in state.nodes for node in swap.node_ids]) == [True]


def test_issue_and_sync_swap_tasks(place: Place) -> None:
    """The same. Given a swap under way, when it is issued without waiting, then there is one job and the call is over;
    waiting for a task that has ended returns; one that never was is refused.
    """
    manager = place.manager(num_gpu_blocks=1, num_cpu_blocks=2)
    cache(manager, [1, 2])
    [transfer] = manager.free_block_ids_async(1).waits_for
    [swap] = manager.swaps(transfer)

    manager.issue_swap_task(transfer, swap.node_ids, swap.gpu_block_ids, swap.cpu_block_ids, "SWAP2CPU", False)

    assert manager.index.poll(transfer).under_way
    assert place.log.doorbell(place.index).ringing(manager.index.gpu_pool) == {transfer}
    place.report(manager, transfer)
    for _ in range(2):
        assert manager.sync_swap_task(transfer)[0].done
    with pytest.raises(UnknownTransfer):
        manager.sync_swap_task("never was")


def test_handle_swap_result_updates_status(place: Place) -> None:
    """The same. Given a swap-out, when it is done, then the block is on the host only; after the swap-in it is in the
    GPU pool; and a swap-out whose block is used again meanwhile leaves it there.
    """
    manager = place.manager(num_gpu_blocks=1, num_cpu_blocks=2)
    cache(manager, [1, 2])
    gpu, host = manager.index.gpu_pool, manager.index.cpu_pool
    with place.workers(manager):
        evict(manager, 1)

        assert manager.index.inspect(lambda state: [set(node.copies) for node in state.nodes.values()][1:]) == [{host}]
        manager.request_match_blocks(task("in", [1, 2]), 2)

    assert manager.index.inspect(lambda state: [set(node.copies) for node in state.nodes.values()][1:]) == [{gpu, host}]
    manager.release_block_ids(task("in", []))
    manager.free_cpu_block_ids(2)
    [transfer] = manager.free_block_ids_async(1).waits_for
    assert manager.request_match_blocks(task("again", [1, 2]), 2)[0] == [0]
    place.report(manager, transfer)
    manager.sync_swap_task(transfer)
    assert manager.index.table("again") == [0]
    assert manager.gpu_free_block_list == []
    must_be_sound(manager)


def test_recv_data_transfer_result_processes_queue(place: Place) -> None:
    """The same. Given two swap-outs and somebody who waits for the second, when the results come, then they are taken in
    order and the waiter wakes with the second.
    """
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)
    cache(manager, [1, 2], "one")
    cache(manager, [3, 4], "two")
    first = manager.free_block_ids_async(1).waits_for
    second = manager.free_block_ids_async(2).waits_for
    heard: list[TransferState] = []
    waiter = threading.Thread(target=lambda: heard.extend(manager.sync_swap_task(second[0])))
    waiter.start()

    place.report(manager, first[0])
    assert manager.sync_swap_task(first[0])[0].done
    assert heard == []
    place.report(manager, second[0])
    waiter.join(20.0)

    assert [state.done for state in heard] == [True]
    with unchanged(manager):
        assert manager.index.inspect(lambda state: len(state.transfers)) == 0
