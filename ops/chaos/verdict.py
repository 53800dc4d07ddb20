"""All checks over all evidence of a run, and what they amount to: totals, a line for each fault, sentences.

Owns which finding counts as what, and what must have happened for the run to have shown anything.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from events.ports import Entry
from ops.chaos import checks
from ops.chaos.auditor import Seen
from ops.chaos.checks import Finding
from ops.chaos.history import read_histories
from ops.chaos.network import KINDS, Network
from ops.chaos.recovery import fault_results, network_results, signs
from ops.chaos.replayed import Matches, cached_bytes, replay
from ops.chaos.stage import Injury
from ops.reliability.results import FaultResult, Totals

SENTENCES_MAX = 20
"""Of one check that are told; a log that is broken at its beginning is broken at every position after."""


@attrs.frozen
class Evidence:
    """What a run left.

    Attributes:
        folder: of the histories.
        seen, again: the log as it was seen to grow, and as it is in the end.
        dealt: faults that should have happened.
        oddities: what was noticed on the way and must not be.
        matches: looks at the bytes that are left.
    """

    folder: Path
    seen: tuple[Seen, ...]
    again: tuple[Entry, ...]
    dealt: tuple[str, ...]
    injuries: tuple[Injury, ...]
    oddities: tuple[str, ...]
    network: Network
    matches: Matches
    recovery_bound_s: float

    @property
    def trimmed(self) -> bool:
        """Whether the log has lost its beginning to a snapshot."""
        return bool(self.again) and self.again[0].position > 1


@attrs.frozen
class Verdict:
    """What it amounts to."""

    totals: Totals
    faults: tuple[FaultResult, ...]
    violations: tuple[str, ...]
    missing: tuple[str, ...]


def verdict(evidence: Evidence) -> Verdict:
    """CorruptState: the log that was seen does not hold a history at all."""
    histories = read_histories(evidence.folder)
    entries = [seen.entry for seen in evidence.seen]
    replayed = replay(entries, histories)
    found_out, landed, not_landed = checks.found_out(histories, entries)
    findings: dict[str, Finding] = {
        "whole": checks.whole(entries),
        "once": checks.once(entries),
        "acknowledged": checks.acknowledged(histories, entries),
        "in order": checks.in_order(histories),
        "found out": found_out,
        "refused": checks.refused(histories, entries),
        "one life": checks.one_life(entries),
        "unchanged": checks.unchanged(entries, evidence.again),
        "failures": checks.failures(histories),
        "bytes on reuse": checks.bytes_looked_at(histories),
        "bytes in the end": cached_bytes(replayed.state, evidence.matches),
        "digests": replayed.digests,
        "invariants": replayed.invariants,
        "transfers": replayed.transfers,
    }
    faults = [
        *fault_results(
            evidence.dealt, evidence.injuries, signs(histories, evidence.seen, replayed), evidence.recovery_bound_s
        ),
        *network_results(evidence.network),
    ]
    totals = Totals(
        commits_acknowledged=findings["acknowledged"].looked_at,
        lost=len(findings["acknowledged"].wrong) + len(findings["unchanged"].wrong),
        duplicated=len(findings["once"].wrong),
        out_of_order=len(findings["in order"].wrong),
        ambiguous_landed=landed,
        ambiguous_not_landed=not_landed,
        ambiguous_wrong=len(found_out.wrong),
        fenced_refused=evidence.network.fenced,
        transfers_finished=replayed.transfers.looked_at,
        effects_doubled=len(replayed.transfers.wrong),
        replicas_compared=replayed.digests.looked_at,
        digests_different=len(replayed.digests.wrong),
        blocks_verified=findings["bytes on reuse"].looked_at + findings["bytes in the end"].looked_at,
        blocks_wrong=len(findings["bytes on reuse"].wrong) + len(findings["bytes in the end"].wrong),
        blocks_leaked=abs(replayed.leaked),
        transfers_open=replayed.open_transfers,
        invariants_broken=len(replayed.invariants.wrong),
    )
    return Verdict(
        totals,
        tuple(faults),
        (*_violations(evidence, findings, faults), *_left(totals, replayed.alive)),
        _missing(totals, evidence.dealt, faults, findings),
    )


def _violations(evidence: Evidence, findings: dict[str, Finding], faults: list[FaultResult]) -> list[str]:
    told = list(evidence.oddities)
    told += [injury.wrong for injury in evidence.injuries if injury.wrong]
    for fault in faults:
        if fault.violations:
            slowest = "never" if fault.slowest_recovery_s == float("inf") else f"after {fault.slowest_recovery_s} s"
            told.append(f"{fault.fault}: {fault.violations} of {fault.injected} not survived; at work again {slowest}")
    for name, finding in findings.items():
        told += [f"{name}: {sentence}" for sentence in finding.wrong[:SENTENCES_MAX]]
        if len(finding.wrong) > SENTENCES_MAX:
            told.append(f"{name}: and {len(finding.wrong) - SENTENCES_MAX} more")
    return told


def _left(totals: Totals, alive: tuple[str, ...]) -> list[str]:
    told = [f"{name} never left" for name in alive]
    if totals.blocks_leaked:
        told.append(f"{totals.blocks_leaked} blocks belong to nobody")
    if totals.transfers_open:
        told.append(f"{totals.transfers_open} transfers never ended")
    return told


def _missing(
    totals: Totals, dealt: tuple[str, ...], faults: list[FaultResult], findings: dict[str, Finding]
) -> tuple[str, ...]:
    """A fault that never happened, and a check that looked at nothing, have shown nothing."""
    happened = {fault.fault for fault in faults if fault.injected}
    wanted = (*dealt, *(kind.value for kind in KINDS))
    never = [f"{fault}: never happened" for fault in wanted if fault not in happened]
    blind = [
        f"{name}: nothing to look at"
        for name, finding in findings.items()
        if not finding.looked_at and name != "refused"
    ]
    idle = [] if totals.fenced_refused else ["no session that was over was refused"]
    return (*never, *blind, *idle)
