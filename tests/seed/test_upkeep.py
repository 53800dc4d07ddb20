"""The seed's tests about clearing, and its doubles for metrics."""

from __future__ import annotations

import threading

import pytest

from statecore import InUse, Paused, TransferState
from statecore.manager.surroundings import Metric, installed
from statecore.manager.upkeep import PrefixTreeStatus
from tests.manager.given import Place, cache, finish, schedule, task, unchanged
from workers.prometheus import PrometheusMetrics


def test_reset_clears_internal_state(place: Place) -> None:
    """Better on purpose: whoever waits for a transfer hears that it was cancelled, and why.

    Given cached, held and leaving blocks, a live request and a waiter, when reset, then the tree is empty, the pools are
    full once the worker has reported, and nobody waits.
    """
    manager = place.manager(num_gpu_blocks=6, num_cpu_blocks=3)
    cache(manager, [1, 2, 3, 4])
    manager.allocate_gpu_blocks(2)
    manager.allocate_cpu_blocks(1)
    manager.request_match_blocks(task("live", [9, 9]), 2)
    [transfer] = manager.free_block_ids_async(3).waits_for
    heard: list[TransferState] = []
    waiter = threading.Thread(target=lambda: heard.extend(manager.sync_swap_task(transfer)))
    waiter.start()

    manager.reset()
    waiter.join(20.0)

    assert [(state.state, "reset" in state.reason) for state in heard] == [("cancelled", True)]
    assert manager.index.inspect(lambda state: len(state.nodes)) == 1
    assert manager.index.requests() == ()
    assert manager.gpu_free_block_list == [0, 1, 2, 3, 4, 5]
    place.report(manager, transfer)
    manager.index.refresh()
    assert manager.cpu_free_block_list == [0, 1, 2]
    assert manager.prefix_tree_status is PrefixTreeStatus.NORMAL


def test_clear_prefix_cache_resets_on_signal(place: Place) -> None:
    """Better on purpose: through the log, so every engine of the index sees it, once.

    Given two engines, when one clears, then it waits for the other's requests, nothing is cached, and no request begins
    anywhere until somebody updates; then all is normal.
    """
    manager, other = place.manager(), place.manager("engine-b")
    cache(manager, [1, 2])
    request = task("elsewhere", [3, 4])
    schedule(other, request)
    with pytest.raises(InUse, match="engine 'engine-b'"):
        manager.clear_prefix_cache(PrefixTreeStatus.CLEARING, timeout=0.0)
    assert manager.prefix_tree_status is PrefixTreeStatus.CLEARING
    finish(other, request)

    assert manager.clear_prefix_cache(PrefixTreeStatus.CLEARING) is PrefixTreeStatus.CLEARED

    assert other.index.refresh() == manager.index.position
    assert other.prefix_tree_status is PrefixTreeStatus.CLEARED
    assert (manager.index.clears, other.index.clears) == (1, 1)
    with unchanged(other), pytest.raises(Paused, match="weights"):
        other.request_match_blocks(task("early", [1, 2]), 2)
    assert other.clear_prefix_cache(PrefixTreeStatus.UPDATING) is PrefixTreeStatus.NORMAL
    assert (manager.index.refresh(), manager.index.clears) == (other.index.position, 1)
    assert manager.request_match_blocks(task("late", [1, 2]), 2)[0] == []


@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_metric_doubles(place: Place) -> None:
    """Row 45: the sink is replaceable, and outside of tests it is Prometheus.

    Given a double, when blocks are taken, then it is told; and what is installed has the names of the reference.
    """
    manager = place.manager(num_gpu_blocks=4)
    manager.allocate_gpu_blocks(1)
    cache(manager, [1, 2])
    default = installed().metrics()

    assert place.sink.free_gpu_block_num.values[-1] == 2
    assert isinstance(default, PrometheusMetrics)
    for name in place.sink.metrics:
        assert isinstance(getattr(default, name), Metric)
