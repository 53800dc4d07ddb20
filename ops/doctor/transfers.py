"""Transfers that are not over, the workers that carry them out, and the streams their jobs are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from events.keys import ACKS_DONE, is_name
from events.limits import HEARTBEAT_TTL_S, JOB_IDLE_S, RING_EVERY_S
from ops.cli.output import count, number
from ops.cli.transfers import TransferSummary, summarise_transfers
from ops.doctor.finding import ERROR, OK, WARNING, Finding, graded
from ops.doctor.patient import CannotTell, Patient
from statecore.results import CANCELLED
from statecore.state import GPU, SWAP_IN

_JOBS_MANY: Final = 1_000
"""Jobs of one pool. A swap of 1 GB takes a tenth of a second; a thousand of them wait for minutes."""

_OLD_POSITIONS: Final = 10_000
"""Commits since a transfer began: minutes of any engine."""

_FINISHED_LOOKED_AT: Final = 200
"""Transfers that ended last, whose acknowledgements are looked for: each is a key that can be named."""

_PENDING_LOOKED_AT: Final = 100
"""Jobs of one rank on its workers' lists: one worker takes one at a time."""

_RUNBOOK: Final = "runbook: ops/runbooks/engine-stuck.md"


def under_way(patient: Patient) -> Iterator[Finding]:
    """Each of them: its age, its job, a worker for each rank that has not reported."""
    transfers = summarise_transfers(patient.state)
    sound = True
    for transfer in transfers:
        for finding in _judged(patient, transfer):
            sound = False
            yield finding
    if sound:
        yield Finding(
            "transfers", OK, f"{count(len(transfers), 'transfer')} not over, each with its job and its workers"
        )


def _judged(patient: Patient, transfer: TransferSummary) -> Iterator[Finding]:
    pool = gpu_pool(transfer)
    age, old = _age(patient, transfer)
    reported = _reports(patient, transfer.transfer)
    what = f"transfer {transfer.transfer}"
    known = f"{transfer.kind.replace('_', ' ')} of {count(transfer.blocks, 'block')}, {transfer.state}, {age}"
    if ACKS_DONE in reported:
        done = reported[ACKS_DONE]
        if done.isdecimal() and patient.head.position < int(done[:20]) <= patient.source.head().position:
            return  # it ended since the log was read
        yield Finding(
            what,
            ERROR,
            f"{known}: its acknowledgements say that it finished at position {done:.80}, the log does not",
            "the log was rolled back: runbook: ops/runbooks/redis-lost.md",
        )
        return
    silent = [
        rank
        for rank, beat in enumerate(_heartbeats(patient, pool, transfer.ranks))
        if beat is None and str(rank) not in reported
    ]
    if silent:
        ranks = ", ".join(map(str, silent))
        waits = "its blocks stay in quarantine" if transfer.state == CANCELLED else "whoever waits for it waits on"
        yield Finding(
            what,
            ERROR,
            f"{known}: no living worker on rank {ranks} of pool {pool!r}; {waits}",
            f"start it: statecore worker; {_RUNBOOK}",
        )
    elif transfer.transfer not in jobs_of(patient, pool) and ACKS_DONE not in _reports(patient, transfer.transfer):
        yield Finding(
            what,
            WARNING,
            f"{known}: it has no job in the stream of pool {pool!r}",
            f"the keeper rings it within {RING_EVERY_S:g} s; where none acts, start one: statecore keeper",
        )
    elif old:
        yield Finding(what, WARNING, f"{known}, with job and workers", f"look at the workers' logs; {_RUNBOOK}")


def _age(patient: Patient, transfer: TransferSummary) -> tuple[str, bool]:
    start = patient.reading.starts.get(transfer.transfer)
    if start is None:
        return f"begun before position {number(patient.reading.start + 1)}", True
    positions = patient.state.position - start.position
    return f"begun {count(positions, 'position')} ago", positions > _OLD_POSITIONS


# --- workers --------------------------------------------------------------------------------------------------------


def seats(patient: Patient) -> Iterator[Finding]:
    """Every seat somebody ever took: does he still sit there?"""
    taken = {
        field.decode(errors="replace"): token.decode(errors="replace")
        for field, token in patient.ask("HGETALL", patient.keys.seats).items()
    }
    sound = True
    for field, token in sorted(taken.items()):
        rank, _, pool = field.partition(":")
        if not (rank.isdecimal() and len(rank) < 10 and is_name(pool)):
            sound = False
            yield Finding(
                "worker",
                ERROR,
                f"{patient.keys.seats}, {field!r:.80}: that is no rank of a pool",
                f"HDEL {patient.keys.seats} {field!r:.80}, then find out who wrote it: only workers of ours do",
            )
            continue
        beat = patient.ask("GET", patient.keys.worker(pool, int(rank)))
        if beat is None:
            sound = False
            yield Finding(
                "worker",
                WARNING,
                f"rank {rank} of pool {pool!r}: stopped, or no sign of life for {HEARTBEAT_TTL_S:g} s",
                f"if it was not stopped on purpose, start it: statecore worker; {_RUNBOOK}",
            )
        elif _life_of(beat) != token:
            sound = False
            yield Finding(
                "worker",
                ERROR,
                f"rank {rank} of pool {pool!r}: life {_life_of(beat)!r:.80} gives signs of life, {token!r:.80} has the seat",
                "two workers of one rank: stop the one that does not have the seat",
            )
    if sound:
        words = f"{count(len(taken), 'seat')}, each with a sign of life" if taken else "none ever took a seat"
        yield Finding("worker", OK, words)


# --- job streams ----------------------------------------------------------------------------------------------------


def job_streams(patient: Patient) -> Iterator[Finding]:
    """Length, what nobody will ever take, and what somebody took and keeps."""
    for pool in sorted(name for name, each in patient.state.pools.items() if each.tier == GPU):
        jobs, (pending, idle_ms) = jobs_of(patient, pool), _pending(patient, pool)
        known = {*patient.state.transfers, *patient.state.sends}
        stale = jobs - known and jobs - known - patient.begun_since()
        words = f"pool {pool!r}: {count(len(jobs), 'job')}, {number(pending)} taken and not reported"
        old = idle_ms > 2 * JOB_IDLE_S * 1000
        severity = WARNING if old or stale or len(jobs) > _JOBS_MANY else OK
        if old:
            words += f" for up to {idle_ms / 1000:.0f} s"
        if stale:
            words += f"; {count(len(stale), 'job')} of transfers that are over ({', '.join(sorted(stale)[:3])})"
        remedy = f"workers take them off when they run: look at their logs; {_RUNBOOK}"
        yield Finding("jobs", severity, words, "" if severity == OK else remedy)


def acknowledgements(patient: Patient) -> Iterator[Finding]:
    """Those of transfers that ended must run out."""
    looked = patient.reading.finished[:_FINISHED_LOOKED_AT]
    over = [name for name in looked if name not in patient.state.transfers and name not in patient.state.sends]
    left = [name for name in over if int(patient.ask("PTTL", patient.keys.acks(name))) == -1]
    yield graded(
        "acknowledgements",
        bool(left),
        f"{count(len(left), 'transfer')} of the last {len(over)} that ended left theirs behind: {', '.join(left[:3])}"
        if left
        else f"none left of the last {count(len(over), 'transfer')} that ended",
        "; ".join(f"DEL {patient.keys.acks(name)}" for name in left[:3]),
        WARNING,
    )


# --- asking ---------------------------------------------------------------------------------------------------------


def gpu_pool(transfer: TransferSummary) -> str:
    """In whose stream its job is."""
    return transfer.destination if transfer.kind == SWAP_IN else transfer.source


def jobs_of(patient: Patient, pool: str) -> frozenset[str]:
    """Transfers that have a job in the stream of a pool."""
    patient.ask("XLEN", patient.keys.jobs(pool))
    return patient.told(lambda: patient.connection.doorbell(patient.keys.name).ringing(pool))


def _reports(patient: Patient, transfer: str) -> Mapping[str, str]:
    found = patient.ask("HGETALL", patient.keys.acks(transfer))
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in found.items()}


def _heartbeats(patient: Patient, pool: str, ranks: int) -> list[bytes | None]:
    return list(patient.ask("MGET", *(patient.keys.worker(pool, rank) for rank in range(ranks))))


def _life_of(beat: bytes) -> str:
    try:
        return str(orjson.loads(beat)["life"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "(unreadable)"


def _pending(patient: Patient, pool: str) -> tuple[int, int]:
    """Jobs on workers' lists, and the longest time one of them has been there, in milliseconds."""
    stream, pending, oldest = patient.keys.jobs(pool), 0, 0
    try:
        groups: list[Any] = patient.call(lambda: patient.client.xinfo_groups(stream))
    except CannotTell as error:
        if "no such key" in str(error).lower():
            return 0, 0
        raise
    for group in groups:
        name = group["name"]
        entries: list[Any] = patient.call(
            lambda: patient.client.xpending_range(stream, name, "-", "+", _PENDING_LOOKED_AT)  # noqa: B023
        )
        pending += len(entries)
        oldest = max([oldest, *(int(entry["time_since_delivered"]) for entry in entries)])
    return pending, oldest


CHECKS: Final = (under_way, seats, job_streams, acknowledgements)
