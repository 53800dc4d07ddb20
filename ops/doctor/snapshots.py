"""The snapshots beside the log, the trim behind them, and the keeper that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from events.errors import CorruptState
from events.limits import KEEPER_TTL_S, SNAPSHOT_AGE_S, SNAPSHOT_EVERY
from events.ports import SnapshotPointer
from ops.cli.output import number
from ops.cli.starting import read
from ops.doctor.finding import ERROR, OK, WARNING, Finding, graded
from ops.doctor.patient import CannotTell, Damaged, Patient

_START_KEEPER: Final = "start one: statecore keeper --url … --index …"
_LATE: Final = 2
"""Intervals a snapshot may be old: one is due, the next is overdue."""


def keeper(patient: Patient) -> Iterator[Finding]:
    patient.ask("GET", patient.keys.keeper)  # whatever it says: it is no key of another type
    left_ms = int(patient.ask("PTTL", patient.keys.keeper))
    if left_ms == -1:
        yield Finding(
            "keeper",
            ERROR,
            "its key has no end: none can take over",
            f"DEL {patient.keys.keeper}; a keeper takes it again",
        )
        return
    yield graded(
        "keeper",
        left_ms < 0,
        f"none acts: its sign of life is older than {KEEPER_TTL_S:g} s. The log grows, dead engines keep what they have"
        if left_ms < 0
        else f"acts, {(KEEPER_TTL_S * 1000 - left_ms) / 1000:.1f} s ago",
        _START_KEEPER,
        WARNING,
    )


def pointer(patient: Patient) -> Iterator[Finding]:
    """Whether it names snapshots in a way that can be read."""
    try:
        patient.ask("HMGET", patient.keys.snapshot, "position")
        found = patient.source.pointers()
    except (CorruptState, Damaged) as error:
        yield Finding(
            "snapshot pointer",
            ERROR,
            str(error),
            "somebody else wrote it: restore it from a replica of the server; runbook: ops/runbooks/divergence.md",
        )
        return
    yield Finding("snapshot pointer", OK, f"names {number(len(found))}")


def age(patient: Patient) -> Iterator[Finding]:
    position = patient.head.position
    if not patient.pointers:
        yield graded(
            "snapshot age",
            position > _LATE * SNAPSHOT_EVERY,
            f"no snapshot yet; the log is at {number(position)}, one is due every {number(SNAPSHOT_EVERY)}",
            f"{_START_KEEPER}; every restart reads the whole log until then",
            WARNING,
        )
        return
    newest = patient.pointers[0]
    behind, age_s = position - newest.position, (patient.now_ms() - newest.at_ms) / 1000
    yield graded(
        "snapshot age",
        behind > _LATE * SNAPSHOT_EVERY or (behind > 0 and age_s > _LATE * SNAPSHOT_AGE_S),
        f"{age_s:,.0f} s old, {number(behind)} positions behind the log",
        f"{_START_KEEPER}; where one acts, its log says why it published nothing (not_published, corrupt)",
        WARNING,
    )


def readable(patient: Patient) -> Iterator[Finding]:
    """Each of them: bytes, checksum, digest, and that it is what the log leads to."""
    broken = []
    for pointer in patient.pointers:
        finding = _read(patient, pointer)
        broken.append(finding.severity == ERROR)
        yield finding
    if broken and all(broken):
        yield Finding(
            "snapshots",
            ERROR,
            f"none of {len(broken)} can be used",
            "do not restart engines: those that run hold the state. Take a file from a good replica or backup; runbook: "
            "ops/runbooks/divergence.md",
        )


def _read(patient: Patient, pointer: SnapshotPointer) -> Finding:
    what = f"snapshot {number(pointer.position)}"
    remedy = "the one before it and the log still give the state: let the keeper take two more, it replaces both"
    try:
        found = read(patient.source, pointer).digest()
    except CorruptState as error:
        return Finding(what, ERROR, str(error), remedy)
    if _runs_out(patient, pointer):
        return Finding(
            what, ERROR, "its bytes will run out: the key has an end", f"PERSIST {patient.keys.blob(pointer.blob)}"
        )
    led = patient.reading.digests.get(pointer.position, found)
    if not found == pointer.digest == led:
        return Finding(
            what, ERROR, f"it holds digest {found}, its pointer says {pointer.digest}, the log leads to {led}", remedy
        )
    proved = ", as the log" if pointer.position in patient.reading.digests else ""
    return Finding(what, OK, f"readable, {number(pointer.size)} bytes, digest {found}{proved}")


def _runs_out(patient: Patient, pointer: SnapshotPointer) -> bool:
    """False also for who may not ask; what else is wrong with it is worth more than a refusal to look."""
    try:
        return int(patient.ask("PTTL", patient.keys.blob(pointer.blob))) != -1
    except CannotTell:
        return False


def trim(patient: Patient) -> Iterator[Finding]:
    """The first entry kept follows a stored snapshot; nothing lies beyond the end."""
    head, pointers = patient.head, patient.pointers
    beyond = [pointer.position for pointer in pointers if pointer.position > head.position]
    if beyond:
        yield Finding(
            "trim",
            ERROR,
            f"there is a snapshot at {number(max(beyond))}, and the log ends at {number(head.position)}: it was rolled back",
            "runbook: ops/runbooks/redis-lost.md",
        )
        return
    first, oldest = patient.kept.first, min((pointer.position for pointer in pointers), default=0)
    yield graded(
        "trim",
        first > oldest + 1,
        f"the log is kept from {number(first)}, the older snapshot is at {number(oldest)}"
        + (f": entries {number(oldest + 1)} to {number(first - 1)} are in neither" if first > oldest + 1 else ""),
        "somebody else trimmed it (XTRIM, XDEL): restore the log from a backup; where the newest snapshot can be read, only "
        "the one before it is lost",
    )


def orphans(patient: Patient) -> Iterator[Finding]:
    """Not looked for, because that would walk the keyspace (E-44)."""
    named = [pointer.blob for pointer in patient.pointers]
    yield Finding(
        "snapshot blobs",
        OK,
        f"{len(named)} named by the pointer; one that nobody published runs out by itself (not looked for: E-44)",
    )


CHECKS: Final = (keeper, pointer, age, readable, trim, orphans)
