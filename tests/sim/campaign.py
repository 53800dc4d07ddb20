"""Many seeds, and the marks that say whether they did anything interesting.

Owns the lists of what must occur in a campaign: every command, every refusal, every fault, every turn an append can take,
every end of a transfer, every death of a worker, of a keeper, of the server.
A campaign in which one of them never happened proves nothing about it, and fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs

from tests.sim.story import Outcome, run

COMMANDS = (
    *("join", "rejoin", "close", "match", "allocate", "extend", "ready", "recycle", "release", "step"),
    *("resolve", "refresh", "would_match", "a second process of the same name"),
)
# PathDiffers is not among them: an index extends a request only by what follows its own tokens.
REFUSALS = (
    *("PoolExhausted", "NeverFits", "UnknownRequest", "RequestExists", "UnknownPool", "SessionOver", "ForeignBlocks"),
    *("PathNotCovered", "DifferentIndex", "StepConflict", "Contended", "InvalidInput", "Abandoned"),
    *("Unavailable", "OutcomeUnknown"),
)
FAULTS = (
    *("lost request", "lost reply", "late request", "duplicate request", "unavailable", "read failure"),
    *("arrivals: some", "arrivals: repeated", "arrivals: a gap", "arrivals: all"),
)
TURNS = (
    *("conflict", "behind", "fenced", "in-between success", "unknown -> landed", "unknown -> not landed"),
    *("split", "duplicate extension", "eviction of a partial run", "foreign pending stop", "hit"),
)
FACTS = (
    *("IndexCreated", "PoolAdded", "EngineJoined", "EngineLeft", "EngineLost", "PrefixMatched", "BlocksAllocated"),
    *("BlocksRecycled", "PathExtended", "PathReady", "RequestReleased", "CopyEvicted"),
)
EXPECTED = (*COMMANDS, *REFUSALS, *FAULTS, *TURNS, *FACTS)

TIER_COMMANDS = (*("poll", "wait", "cancel", "pause", "resume", "clear"),)
TIER_REFUSALS = (*("PathNotFilled", "UnknownTransfer", "Paused", "InUse"),)
TRANSFERS = (
    *("started: swap_out", "started: swap_in", "started: write_through", "watermark swap-out"),
    *("done: swap_out", "done: swap_in", "done: write_through"),
    *("failed: swap_out", "failed: swap_in", "failed: write_through"),
    *("cancelled: swap_out", "cancelled: swap_in", "cancelled: write_through", "cancelled too late"),
    *("rescue", "matched what is leaving", "left the pool", "allocate: not yet"),
    *("joined a swap-in under way", "fetched what another engine computed"),
    *("fetched into the place of what the host has too", "dropped: the host has it", "dropped: the host has it not"),
    *("host eviction", "host eviction: the leaf goes, its parent stays"),
    *("told: done", "told: failed", "told: cancelled", "told: under way"),
    *("a cut path, noticed", "a failed swap-in answered by computing", "a cut cancels another transfer"),
    *("quarantine ended", "a late result after a cancel", "a late failure after a cancel"),
    *("cleared with blocks in quarantine", "a late result after a clearing"),
    *("an engine goes with transfers under way", "a transfer outlives its engine"),
    *("a new life among transfers of the old one", "a finish lands below a commit", "a conflict after a finish"),
)
WORKERS = (
    *("worker died before the copy", "worker died during the copy", "half-copied", "worker died after the copy"),
    *("worker died before the report", "worker died after the report", "worker died after a failed copy"),
    *("worker stopped in order", "worker: copied", "worker: failed", "worker: skipped", "worker: defect"),
    *("worker: unavailable", "a second worker is refused", "a takeover in the middle of a turn"),
    *("claimed what another worker left", "a job again, before its report", "a job again, after its report"),
    *("report: reported", "report: finished", "report: duplicate", "report: came twice"),
    *("a rank failed, the last one says so", "copy failed"),
    *("lost report", "lost reply to a report", "late report", "duplicate report", "death after the report"),
    *("lost job request", "lost job reply", "job stream lost", "job stream lost, with the lists"),
    *("a lost job on a list", "rebuild rang a lost job", "a job was not needed"),
    *("rang the job of a cancelled transfer", "rang a job that is in a worker's hands", "ten minutes pass"),
)
EXPECTED_OF_TIERS = (*TIER_COMMANDS, *TIER_REFUSALS, *TRANSFERS, *WORKERS)


SERVER = (
    *("server restarted", "tail lost", "failover", "positions reused", "a late message dies with the server"),
    *("the log opened again", "the log opened again after a rollback", "a new life before the log was open"),
    *("closed log met", "closed log met at renewal", "diverged at append", "diverged at renewal", "RolledBack"),
    *("a loss in the way", "HistoryLost", "a device wrote for a history that had vanished"),
)
LIVES = (
    *("an engine is killed", "an engine is stopped", "stopped in the middle of a call", "the machine sleeps"),
    *("a renewal that did not get through", "deposed", "deposed while stopped", "depose refused because alive"),
    *("woken zombie fenced", "woken zombie fenced, and told why", "rejoined by itself", "fenced at renewal"),
    *("PoolDropped", "memory dropped with its engine", "a second process of the same name"),
)
KEEPERS = (
    *("snapshot published", "trim", "keeper: acts", "keeper: waits", "keeper: deposed", "keeper: rolled_back"),
    *("keeper: unavailable", "behind the trim at join", "behind the trim in mid-life", "behind the trim by a keeper"),
    *("behind the trim at a commit", "a stored snapshot rots", "corrupt snapshot passed over", "alarm: rolled back"),
    "a snapshot that reads back wrong is not published",
    *("keeper died before storing a blob", "keeper died after storing a blob", "keeper died before reading a blob"),
    *("keeper died after reading a blob", "keeper died before publishing", "keeper died after publishing"),
)
WORKERS_AND_LIVES = (
    *("keeper: rung", "report: interrupted"),
    *("worker cut off in mid-copy", "worker: replaced", "worker: not_counted"),
)
EXPECTED_OF_PERILS = (*SERVER, *LIVES, *KEEPERS, *WORKERS_AND_LIVES)


def expected(tiers: int | None, perils: bool | None) -> tuple[str, ...]:
    """What must occur, as `statecore simulate` was told to have it: with so many tiers, with or without perils."""
    between, among = tiers != 1, tiers != 1 and perils is not False
    marks = (*EXPECTED, *(EXPECTED_OF_TIERS if between else ()), *(EXPECTED_OF_PERILS if among else ()))
    return tuple(dict.fromkeys(marks))


@attrs.define
class Campaign:
    """What came of many runs."""

    runs: int = 0
    positions: int = 0
    marks: Counter[str] = attrs.Factory(Counter)
    failure: Outcome | None = None


def campaign(seeds: Iterable[int], steps: int, tiers: int | None, perils: bool = False) -> Campaign:
    """Run the seeds, up to the first failure."""
    found = Campaign()
    for seed in seeds:
        outcome = run(seed, steps, tiers=tiers, perils=perils)
        found.runs += 1
        found.positions += outcome.positions
        found.marks += outcome.marks
        if outcome.failure is not None:
            found.failure = outcome
            break
    return found
