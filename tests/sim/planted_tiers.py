"""Bugs of the second tier, put in on purpose: in the machine, in the job streams, in the worker, in the lock.

Owns a table like that of `planted.py`. A campaign with two tiers that does not find one of them would not find its like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from events.facts import TransferStarted
from events.job_queue import JobQueue
from events.memory_jobs import MemoryJobs
from statecore import decision, evolve, ranges, scopes, transfers, tree
from statecore.outcomes import Outcomes
from statecore.results import DONE, TransferState
from statecore.state import CPU, GPU
from tests.sim.planted import patches
from tests.sim.seats import Seats
from workers import rebuild, swap

# --- the machine ----------------------------------------------------------------------------------------------------


def _freed_at_once(state: Any, transfer: Any) -> None:
    pool = state.pools[transfer.destination]
    transfers._free(state, pool, transfers._take_back(state, transfer, state.pools[transfer.source], pool))
    state.journal.set(transfer, "cancelled", True)


def _unpinned_source(tier: str, add_ref: Any = tree.add_ref) -> Any:
    def mutated(state: Any, pool: Any, node: Any, change: int) -> None:
        if pool.tier != tier:
            add_ref(state, pool, node, change)

    return mutated


def _gone_whoever_uses_it(state: Any, transfer: Any, source: Any, destination: Any) -> None:
    for node in list(transfers._segment(transfer)):
        tree.set_ready(state, destination, node)
        tree.add_ref(state, source, node, -1)
        copy = node.copies[source.name]
        if copy.leaving == transfer.id:
            state.journal.set(copy, "leaving", None)
            if not copy.branches:
                state.journal.set(copy, "refs", 0)
                transfers._free(state, source, tree.remove_copy(state, source, node))


def _never_gone(state: Any, transfer: Any, source: Any, destination: Any) -> None:
    for node in list(transfers._segment(transfer)):
        tree.set_ready(state, destination, node)
        tree.add_ref(state, source, node, -1)
        if node.copies[source.name].leaving == transfer.id:
            state.journal.set(node.copies[source.name], "leaving", None)


def _ready_at_the_start(state: Any, fact: TransferStarted, started: Any = transfers.started) -> Any:
    node = started(state, fact)
    for part in transfers._segment(state.transfers[fact.transfer]):
        tree.set_ready(state, state.pools[fact.destination], part)
    return node


def _fetched_while_written(node: Any, depth: int, host: str, pool: str, hashes: bytes, limit: int) -> Any:
    copies = [copy for copy in (each.copies.get(host) for each in _below(node)) if copy is not None]
    before = [copy.pending for copy in copies]
    for copy in copies:
        copy.pending = None
    try:
        return _host_match(node, depth, host, pool, hashes, limit)
    finally:
        for copy, pending in zip(copies, before, strict=True):
            copy.pending = pending


_host_match = tree.host_match


def _below(node: Any) -> list[Any]:
    return [each for child in node.children.values() for each in (child, *_below(child))]


def _told_at_once(self: Any, transfer: str, replica: Any, of: Any = Outcomes.of) -> TransferState:
    known = of(self, transfer, replica)
    return TransferState(transfer, DONE) if known.under_way else known


def _extended_over_what_comes(*_: Any) -> None:
    """Instead of the transfer that still fills a part of a path."""


def _without_failures(fact: TransferStarted, touches: Any = scopes.finish_touches) -> Any:
    return touches(fact)[0], ()


def _without_ends(fact: TransferStarted, touches: Any = scopes.finish_touches) -> Any:
    return tuple(tuple(scope for scope in each if not scope.startswith("ends:")) for each in touches(fact))


def _paths_are_left(state: Any, transfer: Any, pool: Any) -> None:
    """Instead of ending the paths over what does not come."""


# --- jobs -----------------------------------------------------------------------------------------------------------


def _never_reported(self: Any, transfer: str, rank: int, look_up: Any = MemoryJobs.look_up) -> Any:
    return attrs.evolve(look_up(self, transfer, rank), reported=False)


def _one_rank_is_enough(self: Any, seat: Any, report: Any, send: Any = MemoryJobs.report) -> Any:
    return send(self, seat, attrs.evolve(report, ranks=1))


def _last_word_counts(self: Any, seat: Any, report: Any, send: Any = MemoryJobs.report) -> Any:
    acks = self._acks_of(report.transfer)
    acks.reports = dict.fromkeys(acks.reports, "")
    return send(self, seat, report)


def _forgets_what_is_done(self: Any, seat: Any, report: Any, send: Any = MemoryJobs.report) -> Any:
    self._acks_of(report.transfer).done = 0
    return send(self, seat, report)


def _always_well(self: Any, delivery: Any, ok: bool, reason: str = "", finish: Any = JobQueue.finish) -> Any:  # noqa: ARG001
    return finish(self, delivery, True)


def _upside_down(transfer: Any, pool: str, blocks_of: Any = rebuild._blocks) -> Any:
    blocks = blocks_of(transfer, pool)
    return ranges.of_ids(ranges.ids(blocks)[::-1]) if pool == transfer.destination else blocks


_step = swap.step

# --- workers --------------------------------------------------------------------------------------------------------


def _reports_first(jobs: Any, delivery: Any, mover: Any, *_: Any) -> None:
    jobs.finish(delivery, True)
    if not delivery.reported:
        swap.step(delivery.job, mover)


def _failure_is_success(job: Any, mover: Any, *vouched: Any) -> Any:
    return attrs.evolve(_step(job, mover, *vouched), reason="")


def _all_but_the_last(job: Any, mover: Any, *vouched: Any) -> Any:
    """A copy that forgets the end of a long run."""
    count = ranges.count(job.source_blocks)
    source, _ = ranges.split(job.source_blocks, max(1, count - 1))
    destination, _ = ranges.split(job.destination_blocks, max(1, count - 1))
    return _step(attrs.evolve(job, source_blocks=source, destination_blocks=destination), mover, *vouched)


def _nothing(*_: Any) -> None:
    """Instead of something."""


_HOST_MATCHES = ((tree, "host_match", _fetched_while_written),)
_EVOLVE_READY = {**evolve._EVOLVE, TransferStarted: _ready_at_the_start}

PLANTED_TIERS: Final[dict[str, Callable[[], Any]]] = {
    "the destination is freed before the transfer has ended": patches((transfers, "_quarantine", _freed_at_once)),
    "the source of a swap-out is not pinned": patches((tree, "add_ref", _unpinned_source(GPU))),
    "the host copy a swap-in reads is not pinned": patches((tree, "add_ref", _unpinned_source(CPU))),
    "a rescued copy goes all the same": patches((transfers, "_succeed", _gone_whoever_uses_it)),
    "what has left is kept": patches((transfers, "_succeed", _never_gone)),
    "the scope of what is leaving is not checked": patches((scopes, "_uses_what_is_leaving", lambda *_: False)),
    "a transfer's destination is ready at its start": patches((evolve, "_EVOLVE", _EVOLVE_READY)),
    "what is still being written to the host is fetched": patches(*_HOST_MATCHES),
    "a wait is told done while it goes on": patches((Outcomes, "of", _told_at_once)),
    "a path may grow over what is still coming": patches((tree, "filling_on", _extended_over_what_comes)),
    "a failed swap-in moves no scope": patches(
        (scopes, "finish_touches", _without_failures), (rebuild, "finish_touches", _without_failures)
    ),
    "who cancels does not hear that it has ended": patches(
        (scopes, "finish_touches", _without_ends), (rebuild, "finish_touches", _without_ends)
    ),
    "ready reaches what another request computes": patches(
        (decision, "_first_foreign", lambda _, request: request.path_blocks)
    ),
    "a failed swap-in leaves the paths over it": patches((transfers, "_cut_back", _paths_are_left)),
    "quarantine and transfers end at the first rank's report": patches((MemoryJobs, "report", _one_rank_is_enough)),
    "only the last rank's word counts": patches((MemoryJobs, "report", _last_word_counts)),
    "a transfer finishes twice": patches((MemoryJobs, "report", _forgets_what_is_done)),
    "a job that was reported is handed out to be copied": patches((MemoryJobs, "look_up", _never_reported)),
    "what a dead worker left is nobody's": patches((JobQueue, "_claim", lambda _: False)),
    "a failure is reported as success": patches((JobQueue, "finish", _always_well)),
    "a job rung again names its destination upside down": patches((rebuild, "_blocks", _upside_down)),
    "a worker reports before it copies": patches((swap, "_carry_out", _reports_first)),
    "a copy that failed is a success": patches((swap, "step", _failure_is_success)),
    "the end of a run is not copied": patches((swap, "step", _all_but_the_last)),
    "the lock of a rank is not kept: a stopped worker wakes": patches((Seats, "end", _nothing)),
}
"""What is wrong -> a context in which it is."""

SEARCH_BEGINS: Final = {
    "who cancels does not hear that it has ended": 5_020,
    "a failed swap-in moves no scope": 5_090,
    "the lock of a rank is not kept: a stopped worker wakes": 5_040,
    "the scope of what is leaving is not checked": 5_030,
}
"""First seed to try, where the search would take long otherwise; elsewhere 5,000."""
