"""Many seeds, and the marks that say whether they did anything interesting.

Owns the list of what must occur in a campaign: every command, every refusal, every fault, every turn an append can take.
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


@attrs.define
class Campaign:
    """What came of many runs."""

    runs: int = 0
    positions: int = 0
    marks: Counter[str] = attrs.Factory(Counter)
    failure: Outcome | None = None

    @property
    def missing(self) -> list[str]:
        """What never occurred."""
        return [mark for mark in EXPECTED if not self.marks[mark]]


def campaign(seeds: Iterable[int], steps: int) -> Campaign:
    """Run the seeds, up to the first failure."""
    found = Campaign()
    for seed in seeds:
        outcome = run(seed, steps)
        found.runs += 1
        found.positions += outcome.positions
        found.marks += outcome.marks
        if outcome.failure is not None:
            found.failure = outcome
            break
    return found
