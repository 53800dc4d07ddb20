"""Engines: what the log says of them against who gives a sign of life, and against the fences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from events.limits import LEASE_GRACE_S, LEASE_TTL_S
from ops.cli.output import count
from ops.doctor.finding import ERROR, OK, WARNING, Finding
from ops.doctor.patient import Patient
from statecore.state import Engine

_RUNBOOK: Final = "runbook: ops/runbooks/engine-stuck.md"


def leases(patient: Patient) -> Iterator[Finding]:
    """Each engine the log has ever known, alive or not."""
    engines = [patient.state.engines[name] for name in sorted(patient.state.engines)]
    keeper = int(patient.ask("PTTL", patient.keys.keeper)) > 0
    alive = 0
    sound = True
    for engine in engines:
        key = patient.keys.lease(engine.name)
        session, left_ms = patient.ask("GET", key), int(patient.ask("PTTL", key))
        held = None if session is None else session.decode(errors="replace")
        alive += engine.alive
        finding = None
        if held != str(engine.session) and _went_on(patient, engine):
            continue
        if engine.alive and held is None:
            finding = Finding(
                "lease",
                WARNING if keeper else ERROR,
                f"engine {engine.name!r} is alive by the log (session {engine.session}, "
                f"{count(len(engine.requests), 'request')}) and holds no lease: no sign of life for {LEASE_TTL_S:g} s",
                f"the keeper declares it lost within {LEASE_GRACE_S:g} s more; where it does not, {_RUNBOOK}"
                if keeper
                else f"no keeper acts: start one, or it keeps its blocks for ever; {_RUNBOOK}",
            )
        elif held is not None and (not engine.alive or held != str(engine.session)):
            now = f"in session {engine.session}" if engine.alive else f"gone since session {engine.session}"
            finding = Finding(
                "lease",
                WARNING,
                f"engine {engine.name!r} is {now} by the log, a lease of session {held} runs {left_ms / 1000:.1f} s more",
                "it runs out by itself; if it comes back, an old release renews it: stop that process",
            )
        elif held is not None and not 0 <= left_ms <= LEASE_TTL_S * 1000:
            finding = Finding(
                "lease",
                ERROR,
                f"the lease of engine {engine.name!r} "
                + ("never runs out" if left_ms < 0 else f"runs {left_ms / 1000:.1f} s, more than {LEASE_TTL_S:g} s")
                + ": its death would not be noticed",
                f"PEXPIRE {key} {LEASE_TTL_S * 1000:.0f}; use one release of all engines",
            )
        if finding is not None:
            sound = False
            yield finding
    if sound:
        yield Finding("lease", OK, f"{alive} of {count(len(engines), 'engine')} alive, each with its lease")


def _went_on(patient: Patient, engine: Engine) -> bool:
    """Whether its life ended, or the next began, since the log was read."""
    lowest = patient.ask("HGET", patient.keys.fence, engine.name)
    return lowest is not None and _session(lowest) > engine.session + (not engine.alive)


def _session(lowest: bytes) -> int:
    """-1: it is none."""
    return int(lowest) if lowest.isdigit() and len(lowest) < 20 else -1


def fences(patient: Patient) -> Iterator[Finding]:
    """An old session may append nothing, and the one that the log knows may."""
    stored = patient.ask("HGETALL", patient.keys.fence)
    found = {name.decode(errors="replace"): _session(lowest) for name, lowest in stored.items()}
    lowest = {engine.name: engine.session + (not engine.alive) for engine in patient.state.engines.values()}
    low = {name: (found.get(name, 0), wanted) for name, wanted in lowest.items() if 0 <= found.get(name, 0) < wanted}
    odd = {name for name, has in found.items() if has < 0 or (name in lowest and has > lowest[name])}
    if odd and patient.source.head() != patient.head:
        odd = {name for name in odd if found[name] < 0}  # somebody may have joined since the log was read
    for name in sorted(odd):
        wanted = lowest.get(name, 0)
        has = stored.get(name.encode(), b"?")
        yield Finding(
            "fence",
            ERROR,
            f"engine {name!r}: sessions from {has!r:.80} on may append, by the log from {wanted} on: it can go on in none",
            f"HSET {patient.keys.fence} {name} {wanted}, then find out who wrote it: only commits do",
        )
    for name, (has, wanted) in sorted(low.items()):
        yield Finding(
            "fence",
            ERROR,
            f"engine {name!r}: sessions from {has} on may append, from {wanted} on should",
            f"HSET {patient.keys.fence} {name} {wanted}, then find out what took it away: only commits write it",
        )
    if not low and not odd:
        yield Finding("fence", OK, f"holds for {count(len(found), 'engine')}")


CHECKS: Final = (leases, fences)
