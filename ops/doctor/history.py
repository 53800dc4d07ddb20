"""The log itself: its layout, the life of the server it is open in, its links, and whether its head names its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from events.errors import CorruptState, NewerSchema
from events.keys import HEAD_FIELDS, HEAD_LAYOUT, HEAD_LIFE, LAYOUT
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
    patient.ask("GET", patient.keys.closed)  # whatever it says: it is no key of another type
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


def lost_end(patient: Patient) -> Iterator[Finding]:
    """Whether somebody knew more of the history than the log holds, and what he knew is not given up yet."""
    loss = patient.head.loss
    acts = bool(loss) and int(patient.ask("PTTL", patient.keys.keeper)) > 0
    yield graded(
        "lost end",
        bool(loss),
        f"the log has lost its end up to commit {loss!r} and nobody has dealt with it: workers wait"
        if loss
        else "none",
        "the keeper that acts does it at its next turn; look at its log if this stays"
        if acts
        else "start a keeper (statecore keeper), or let an engine commit; runbook: ops/runbooks/redis-lost.md",
        WARNING if acts else ERROR,
    )


def versions(patient: Patient) -> Iterator[Finding]:
    """What conflicts are found by: per scope the position that last touched it."""
    found = patient.ask("HGETALL", patient.keys.head)
    scopes = {name: value for name, value in found.items() if name.decode(errors="replace") not in HEAD_FIELDS}
    end = patient.source.head().position
    bad = sorted(name for name, value in scopes.items() if not (value.isdigit() and int(value[:20]) <= end))
    for name in bad:
        yield Finding(
            "versions",
            ERROR,
            f"{patient.keys.head}, {name!r:.80}: {scopes[name]!r:.80} is no position of this log",
            f"HSET {patient.keys.head} {name.decode(errors='replace')!r:.80} {end}: what was decided before, is again",
        )
    if not bad:
        yield Finding("versions", OK, f"of {count(len(scopes), 'scope')}, none beyond the end")


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


CHECKS: Final = (open_now, lost_end, versions, links, head)
