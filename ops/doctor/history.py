"""The log itself: its layout, the life of the server it is open in, its links, and whether its head names its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from events.errors import CorruptState, NewerSchema
from events.keys import HEAD_LAYOUT, HEAD_LIFE, LAYOUT
from ops.cli.output import count, number
from ops.cli.verify import require_head
from ops.doctor.finding import ERROR, OK, WARNING, Finding, graded
from ops.doctor.patient import CannotTell, Patient


def layout(patient: Patient) -> Iterator[Finding]:
    found = patient.head_fields.get(HEAD_LAYOUT, LAYOUT)
    yield graded(
        "layout",
        found != LAYOUT,
        f"{found}, this release speaks {LAYOUT}",
        "use the release that wrote it, or statecore migrate: all engines, workers, keepers need the same",
    )


def open_now(patient: Patient) -> Iterator[Finding]:
    """Whether commits are taken."""
    known, left_ms = patient.head_fields.get(HEAD_LIFE, ""), int(patient.ask("PTTL", patient.keys.closed))
    try:
        life = str(patient.fact("run_id"))
    except CannotTell:
        life = known
    if left_ms > 0 and known != life:
        yield Finding(
            "open",
            WARNING,
            f"closed for {left_ms / 1000:.1f} s more: the server began a new life ({life[:8]}, before it {known[:8]})",
            "wait: engines and workers that knew a longer log need this time to hear of it (decision 0016)",
        )
        return
    if left_ms == -1:
        yield Finding(
            "open",
            ERROR,
            "closed for ever: its key has no end",
            f"DEL {patient.keys.closed}: it is set with an end by scripts only",
        )
        return
    words = (
        "open"
        if known == life
        else "open, and nobody has appended in this life of the server: the next one closes it for a while"
    )
    yield Finding("open", OK, words)


def links(patient: Patient) -> Iterator[Finding]:
    """Every entry that is kept: gaps, checksums, predecessors, fences, and that it fits the state."""
    reading, position = patient.reading, patient.head.position
    broken = reading.broken
    if isinstance(broken, NewerSchema):
        yield Finding("links", ERROR, str(broken), "run the doctor of the release that writes here")
        return
    if broken is not None:
        yield Finding(
            "links",
            ERROR,
            str(broken),
            "stop the engines; keep a copy (statecore export); runbook: ops/runbooks/divergence.md",
        )
        return
    since = f"from the snapshot at {number(reading.start)}" if reading.start else "from the birth of the index"
    yield Finding(
        "links", OK, f"{count(reading.entries, 'entry').replace('entrys', 'entries')} {since} to {number(position)}"
    )


def head(patient: Patient) -> Iterator[Finding]:
    state = patient.state
    try:
        require_head(patient.source, state)
    except CorruptState as error:
        yield Finding(
            "head",
            ERROR,
            str(error),
            "stop the engines; keep a copy (statecore export); runbook: ops/runbooks/divergence.md",
        )
        return
    yield Finding("head", OK, f"names commit {state.last_commit_id!r} at position {number(state.position)}")


CHECKS: Final = (open_now, links, head)
