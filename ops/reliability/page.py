"""The page `ops/RELIABILITY.md`, made of results: what was run, what was injected, what was found. Pure.

Owns tables and wording. Sums over runs of one kind; says of nothing that it was shown if no run showed it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from ops.reliability.results import (
    ChaosResult,
    FaultResult,
    PlantedBug,
    Recoveries,
    SimulationResult,
    Totals,
    Versions,
)
from ops.reliability.shown_by_tests import TESTS

TOTALS: Final[dict[str, str]] = {
    "commits_acknowledged": "commits acknowledged",
    "lost": "… lost",
    "duplicated": "… duplicated",
    "out_of_order": "… out of real-time order",
    "ambiguous_landed": "outcomes unknown at first, found out: landed",
    "ambiguous_not_landed": "… not landed",
    "ambiguous_wrong": "… untruly",
    "fenced_refused": "requests of sessions that were over, refused",
    "transfers_finished": "transfers finished",
    "effects_doubled": "… effects doubled",
    "replicas_compared": "replicas compared with a replay at their position",
    "digests_different": "… digests different",
    "blocks_verified": "blocks whose bytes were looked at",
    "blocks_wrong": "… that held something else",
    "blocks_leaked": "blocks leaked in the end",
    "transfers_open": "transfers open in the end",
    "invariants_broken": "invariants broken",
}

INTRODUCTION: Final = """\
# Reliability: what was run, and what it showed

`make reliability` makes this page from runs; nothing on it is written by hand. A row says what happened in these runs, with
these seeds and versions, and no more. How they work: `ops/decisions/0021-chaos.md`, `ops/chaos/__init__.py`, `tests/sim`. In
a chaos run the seed decides which fault comes when; where it hits a process differs from run to run. A campaign of the
simulator repeats itself exactly.
"""

SLOWEST: Final = """\
Slowest recovery: from the fault until the last process it hit did useful work again; other faults went on meanwhile.
"""

SURVIVED: Final = """\
Survived: of the faults injected, those in runs that came to their end with every check kept and everybody at work again.
"""

CHECKS: Final = """\
Every check, in its own words. A run ends at the first one that fails, so one run breaks one at most.
"""

SHOWN_BY_TESTS: Final = """\
Faults that the runs above do not inject, or not in every way. Each test runs with `make test`.
"""


def page(chaos: Sequence[ChaosResult], simulation: Sequence[SimulationResult]) -> str:
    parts = [INTRODUCTION, *_chaos(chaos), *_simulation(simulation), *_tests()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


# --- chaos ----------------------------------------------------------------------------------------------------------


def _chaos(results: Sequence[ChaosResult]) -> list[str]:
    title = "## Chaos: real processes, a real Redis, a network that fails\n"
    if not results:
        return [title, "Not run for this page.\n"]
    runs = _table(
        (
            "seed",
            "at",
            "faults for",
            "quiet after",
            "processes",
            "kills",
            "network faults",
            "appendfsync",
            "versions",
            "kept",
        ),
        [
            (
                result.seed,
                result.at,
                f"{result.duration_s:.0f} s",
                f"{result.converged_s:.0f} s",
                ", ".join(f"{count} {role}s" for role, count in result.processes.items()),
                ", ".join(f"{count} {role}" for role, count in result.kills.items()),
                f"{sum(result.network.values()):,}",
                result.fsync,
                _versions(result.versions),
                _verdict(result.ok),
            )
            for result in results
        ],
    )
    broken = [f"seed {result.seed}: {each}" for result in results for each in (*result.violations, *result.missing)]
    return [
        title,
        runs,
        *_broken(broken),
        SLOWEST,
        _faults(fault for result in results for fault in result.faults),
        _totals([result.totals for result in results]),
    ]


def _faults(faults: Iterable[FaultResult]) -> str:
    """One row for each kind of fault, summed over runs."""
    rows: dict[str, FaultResult] = {}
    for fault in faults:
        before = rows.get(fault.fault)
        rows[fault.fault] = fault if before is None else _sum(before, fault)
    return _table(
        ("fault", "injected", "survived", "recoveries measured", "violations", "slowest recovery"),
        [
            (
                each.fault,
                f"{each.injected:,}",
                f"{each.survived:,}",
                f"{each.checks:,}",
                f"{each.violations:,}",
                "" if each.slowest_recovery_s is None else f"{each.slowest_recovery_s:.1f} s",
            )
            for each in rows.values()
        ],
    )


def _sum(one: FaultResult, other: FaultResult) -> FaultResult:
    slowest = [each.slowest_recovery_s for each in (one, other) if each.slowest_recovery_s is not None]
    return FaultResult(
        fault=one.fault,
        injected=one.injected + other.injected,
        survived=one.survived + other.survived,
        checks=one.checks + other.checks,
        violations=one.violations + other.violations,
        slowest_recovery_s=max(slowest, default=None),
    )


def _totals(totals: Sequence[Totals]) -> str:
    counts: Counter[str] = Counter()
    for each in totals:
        counts.update(attrs.asdict(each))
    return _counts("over all of them", {words: counts[name] for name, words in TOTALS.items()})


# --- simulation -----------------------------------------------------------------------------------------------------


def _simulation(results: Sequence[SimulationResult]) -> list[str]:
    title = "## Simulation: engines, workers, keeper and log in one thread, from a seed\n"
    if not results:
        return [title, "Not run for this page.\n"]
    runs = _table(
        ("seeds", "steps each", "at", "took", "commits", "versions", "kept"),
        [
            (
                f"{result.first_seed} to {result.first_seed + result.seeds - 1}",
                result.steps,
                result.at,
                f"{result.duration_s:.0f} s",
                f"{result.positions:,}",
                _versions(result.versions),
                _verdict(result.ok),
            )
            for result in results
        ],
    )
    broken = [each for result in results for each in (*result.failures, *(f"{mark}: never" for mark in result.missing))]
    events = _summed(result.events for result in results)
    return [
        title,
        runs,
        *_broken(broken),
        SURVIVED,
        _simulated_faults(results),
        _counts("what else came of it", events),
        _recoveries([result.recoveries for result in results]),
        _counts("over all of them", _summed(result.totals for result in results)),
        CHECKS,
        _checks(results),
        *_planted([bug for result in results for bug in result.planted]),
    ]


def _simulated_faults(results: Sequence[SimulationResult]) -> str:
    injected = _summed({each.fault: each.injected for each in result.faults} for result in results)
    survived = _summed({each.fault: each.survived for each in result.faults} for result in results)
    rows = [(fault, f"{count:,}", f"{survived[fault]:,}") for fault, count in injected.items()]
    return _table(("fault", "injected", "survived"), rows)


def _recoveries(recoveries: Sequence[Recoveries]) -> str:
    """The slowest of all, beside its bound."""
    measured = sum(each.measured for each in recoveries)
    if not measured:
        return "No recovery was measured.\n"
    slowest, bound = max(each.slowest_s for each in recoveries), max(each.bound_s for each in recoveries)
    return (
        f"When faults had stopped all came right {measured:,} times, in {slowest:.1f} simulated seconds at the slowest; the "
        f"bound is {bound:.1f} (`LONGEST_RECOVERY_S`).\n"
    )


def _checks(results: Sequence[SimulationResult]) -> str:
    made = _summed({each.check: each.made for each in result.checks} for result in results)
    broken = _summed({each.check: each.broken for each in result.checks} for result in results)
    rows = [(check, f"{made[check]:,}", f"{broken[check]:,}") for check in sorted(made)]
    return _table(("check", "made", "broken"), rows)


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """In the order in which they come up; what is 0 stays."""
    found: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            found[name] = found.get(name, 0) + count
    return found


def _planted(bugs: Sequence[PlantedBug]) -> list[str]:
    title = "### Bugs planted on purpose"
    if not bugs:
        return [f"{title}\n", "Not run for this page.\n"]
    caught = sum(bool(bug.caught_by) for bug in bugs)
    rows = [(bug.bug, bug.caught_by or "**nothing**", "" if bug.seed is None else bug.seed) for bug in bugs]
    return [
        f"{title}: {caught} of {len(bugs)} caught by the simulator\n",
        _table(("bug", "the check that caught it", "seed"), rows),
    ]


# --- tests ----------------------------------------------------------------------------------------------------------


def _tests() -> list[str]:
    rows = [(fault, "<br>".join(f"`{test}`" for test in tests)) for fault, tests in TESTS.items()]
    return ["## Shown by tests\n", SHOWN_BY_TESTS, _table(("fault", "test"), rows)]


# --- all of them ----------------------------------------------------------------------------------------------------


def _counts(head: str, counts: Mapping[str, int]) -> str:
    return _table((head, "count"), [(words, f"{count:,}") for words, count in counts.items()])


def _broken(sentences: Sequence[str]) -> list[str]:
    return ["**Broken or missing:**\n\n" + "\n".join(f"- {each}" for each in sentences) + "\n"] if sentences else []


def _verdict(ok: bool) -> str:
    return "all promises" if ok else "**not all**"


def _versions(versions: Versions) -> str:
    redis = f", Redis {versions.redis}, redis-py {versions.redis_py}" if versions.redis else ""
    return f"statecore {versions.statecore}, Python {versions.python}{redis}, {versions.system}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join(
            "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
            for line in lines
        )
        + "\n"
    )
