"""The record of a campaign: what its runs counted, as a result for `ops/RELIABILITY.md`.

Owns which marks are faults, which are told as events, and from which checks each total is. Every number is counted where
the thing happened or where it was looked at; what nobody looked at is not there.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from typing import Final

import attrs

from ops.reliability.results import (
    CheckResult,
    PlantedBug,
    Recoveries,
    SimulatedFault,
    SimulationResult,
    Versions,
)
from tests.sim.campaign import KEEPERS, LIVES, SERVER, TURNS
from tests.sim.keepers import LONGEST_RECOVERY_S
from tests.sim.planting import check_of
from tests.sim.shrink import kind_of
from tests.sim.story import Outcome

FAULTS: Final = (
    *("lost request", "lost reply", "late request", "duplicate request", "unavailable", "read failure"),
    *("server restarted", "tail lost", "failover"),
    *("an engine is killed", "an engine is stopped", "stopped in the middle of a call", "the machine sleeps"),
    *("a renewal that did not get through", "a second process of the same name"),
    *("worker died before the copy", "worker died during the copy", "worker died after the copy"),
    *("worker died before the report", "worker died after the report", "a takeover in the middle of a turn"),
    *("copy failed", "lost report", "lost reply to a report", "late report", "duplicate report"),
    *("job stream lost", "job stream lost, with the lists", "a stored snapshot rots"),
    *(mark for mark in KEEPERS if mark.startswith("keeper died")),
)
EVENTS: Final = tuple(
    dict.fromkeys(
        (
            *("arrivals: some", "arrivals: repeated", "arrivals: a gap", "arrivals: all"),
            *(mark for mark in (*SERVER, *LIVES, *KEEPERS, *TURNS) if mark not in FAULTS),
        )
    )
)
_BYTES: Final = (
    "what is ready holds its bytes",
    "who uses a block finds its bytes in it",
)


@attrs.define
class Record:
    """Of one campaign, run by run."""

    runs: int = 0
    positions: int = 0
    acknowledged: int = 0
    vanished: int = 0
    marks: Counter[str] = attrs.Factory(Counter)
    survived: Counter[str] = attrs.Factory(Counter)
    checks: Counter[str] = attrs.Factory(Counter)
    broken: Counter[str] = attrs.Factory(Counter)
    recoveries: list[float] = attrs.Factory(list)
    failures: dict[str, list[int]] = attrs.Factory(dict)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.positions += outcome.positions
        self.acknowledged += outcome.counts.acknowledged
        self.vanished += outcome.counts.vanished
        self.marks += outcome.marks
        self.checks += outcome.counts.checks
        self.recoveries += outcome.counts.recoveries
        if outcome.failure is None:
            self.survived += outcome.marks
        else:
            self.failures.setdefault(kind_of(outcome.failure), []).append(outcome.seed)
            self.broken[check_of(outcome.failure)] += 1

    def missing(self, expected: Sequence[str]) -> tuple[str, ...]:
        return tuple([mark for mark in dict.fromkeys(expected) if not self.marks[mark]])

    def result(
        self, first: int, steps: int, seconds: float, expected: Sequence[str], planted: Sequence[PlantedBug]
    ) -> SimulationResult:
        return SimulationResult(
            first_seed=first,
            seeds=self.runs,
            steps=steps,
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            duration_s=round(seconds, 1),
            versions=Versions.here(),
            positions=self.positions,
            marks=dict(sorted(self.marks.items())),
            faults=tuple([SimulatedFault(fault, self.marks[fault], self.survived[fault]) for fault in FAULTS]),
            events={event: self.marks[event] for event in EVENTS},
            recoveries=Recoveries(len(self.recoveries), max(self.recoveries, default=0.0), LONGEST_RECOVERY_S),
            checks=tuple([CheckResult(check, made, self.broken[check]) for check, made in sorted(self.checks.items())]),
            totals=self._totals(),
            planted=tuple(planted),
            failures=tuple([f"{kind}: seeds {seeds}" for kind, seeds in sorted(self.failures.items())]),
            missing=self.missing(expected),
        )

    def _totals(self) -> dict[str, int]:
        checks, broken, marks = self.checks, self.broken, self.marks
        return {
            "commits acknowledged": self.acknowledged,
            "… of those in an end of the log that a server lost": self.vanished,
            "… the others, looked for in the log in the end": checks["what was acknowledged stands where it was said"],
            "… lost otherwise": broken["what was acknowledged stands where it was said"],
            "… duplicated": broken["a commit lands once"] + broken["each commit is in the log once"],
            "outcomes unknown at first, found out: landed": marks["unknown -> landed"],
            "… not landed": marks["unknown -> not landed"],
            "… untruly": broken["resolve tells the truth"],
            "requests of sessions that were over, refused": marks["fenced"],
            "transfers finished": marks["TransferFinished"],
            "… effects doubled": broken["a transfer finishes once"],
            "replicas compared with a replay at their position": checks["one digest per position"],
            "… digests different": broken["one digest per position"],
            "blocks whose bytes were looked at, rank by rank": sum(checks[check] for check in _BYTES),
            "… that held something else": sum(broken[check] for check in _BYTES),
            "runs whose end was searched for leaked blocks": checks["no request is left"],
            "… that had some": broken["no block is leaked"],
            "… with transfers open": broken["every transfer ends"],
            "states recounted after a fact": checks["the invariants hold"],
            "… with an invariant broken": broken["the invariants hold"],
        }
