"""Bugs of the second tier, put in on purpose: in the machine, in the job streams, in the worker, in the lock.

Owns a table like that of `planted.py`. A campaign with two tiers that does not find one of them would not find its like.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from events.facts import TransferStarted
from events.job_queue import JobQueue
from events.memory_jobs import MemoryJobs
from statecore import decision, evolve, ranges, scopes, transfers, tree
from statecore.outcomes import Outcomes
from statecore.results import DONE, TransferState
from statecore.state import CPU, GPU
from tests.sim.planting import CORRUPT_STATE, Bug, patches
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

PLANTED_TIERS: Final[dict[str, Bug]] = {
    "the destination is freed before the transfer has ended": Bug(
        patches((transfers, "_quarantine", _freed_at_once)), ("the invariants hold",)
    ),
    "the source of a swap-out is not pinned": Bug(
        patches((tree, "add_ref", _unpinned_source(GPU))), ("the invariants hold",)
    ),
    "the host copy a swap-in reads is not pinned": Bug(
        patches((tree, "add_ref", _unpinned_source(CPU))), ("the invariants hold",)
    ),
    "a rescued copy goes all the same": Bug(
        patches((transfers, "_succeed", _gone_whoever_uses_it)), ("the invariants hold",), first=5_020
    ),
    "what has left is kept": Bug(patches((transfers, "_succeed", _never_gone)), ("free blocks are as counted",)),
    "the scope of what is leaving is not checked": Bug(
        patches((scopes, "_uses_what_is_leaving", lambda *_: False)), (CORRUPT_STATE,), first=5_060
    ),
    "a transfer's destination is ready at its start": Bug(
        patches((evolve, "_EVOLVE", _EVOLVE_READY)), ("the invariants hold",)
    ),
    "what is still being written to the host is fetched": Bug(patches(*_HOST_MATCHES), (CORRUPT_STATE,)),
    "a wait is told done while it goes on": Bug(
        patches((Outcomes, "of", _told_at_once)), ("who uses a block finds its bytes in it",), first=5_020
    ),
    "a path may grow over what is still coming": Bug(
        patches((tree, "filling_on", _extended_over_what_comes)),
        ("no path grows over what is being brought",),
        first=5_070,
    ),
    "a failed swap-in moves no scope": Bug(
        patches((scopes, "finish_touches", _without_failures), (rebuild, "finish_touches", _without_failures)),
        (CORRUPT_STATE,),
        first=5_030,
    ),
    "who cancels does not hear that it has ended": Bug(
        patches((scopes, "finish_touches", _without_ends), (rebuild, "finish_touches", _without_ends)),
        (CORRUPT_STATE,),
        first=5_410,
    ),
    "ready reaches what another request computes": Bug(
        patches((decision, "_first_foreign", lambda _, request: request.path_blocks)),
        ("what is ready holds its bytes", "an engine writes its own blocks only"),
        first=5_050,
    ),
    "a failed swap-in leaves the paths over it": Bug(
        patches((transfers, "_cut_back", _paths_are_left)), (CORRUPT_STATE,)
    ),
    "quarantine and transfers end at the first rank's report": Bug(
        patches((MemoryJobs, "report", _one_rank_is_enough)), ("what is ready holds its bytes",)
    ),
    "only the last rank's word counts": Bug(
        patches((MemoryJobs, "report", _last_word_counts)), ("what is ready holds its bytes",)
    ),
    "a transfer finishes twice": Bug(patches((MemoryJobs, "report", _forgets_what_is_done)), ("a commit lands once",)),
    "a job that was reported is handed out to be copied": Bug(
        patches((MemoryJobs, "look_up", _never_reported)), ("no rank copies after its report",)
    ),
    "what a dead worker left is nobody's": Bug(
        patches((JobQueue, "_claim", lambda _: False)), ("all comes right within the bound",)
    ),
    "a failure is reported as success": Bug(
        patches((JobQueue, "finish", _always_well)), ("what is ready holds its bytes",)
    ),
    "a job rung again names its destination upside down": Bug(
        patches((rebuild, "_blocks", _upside_down)), ("what is ready holds its bytes",)
    ),
    "a worker reports before it copies": Bug(
        patches((swap, "_carry_out", _reports_first)),
        ("what is ready holds its bytes", "no rank copies after its report"),
    ),
    "a copy that failed is a success": Bug(
        patches((swap, "step", _failure_is_success)), ("what is ready holds its bytes",)
    ),
    "the end of a run is not copied": Bug(
        patches((swap, "step", _all_but_the_last)), ("what is ready holds its bytes",)
    ),
    "the lock of a rank is not kept: a stopped worker wakes": Bug(
        patches((Seats, "end", _nothing)),
        ("no rank copies after its report", "a worker writes blocks of its transfer only"),
        first=5_180,
    ),
}
"""What is wrong -> a context in which it is, and the checks that notice it."""
