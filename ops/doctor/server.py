"""The server as such: whether it may hold a log, has room for it, and what time it thinks it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from events.client import VERSION_MIN
from ops.cli.output import number, percent
from ops.doctor.finding import ERROR, OK, WARNING, Finding, graded
from ops.doctor.patient import Patient

_NOTICE, _ALARM = 0.80, 0.95
"""Parts of maxmemory. Between them an operator has time; beyond the second, one snapshot may be too much."""

_MIB: Final = 1 << 20


def version(patient: Patient) -> Iterator[Finding]:
    found = str(patient.fact("redis_version"))
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    wanted = ".".join(map(str, VERSION_MIN))
    yield graded(
        "version",
        numbers < VERSION_MIN,
        f"{found}, {wanted} or newer is needed",
        f"upgrade the server to {wanted} or newer",
    )


def role(patient: Patient) -> Iterator[Finding]:
    found = str(patient.fact("role"))
    yield graded("role", found != "master", found, "connect to the primary: a replica is read-only")


def eviction(patient: Patient) -> Iterator[Finding]:
    policy = str(patient.fact("maxmemory_policy"))
    yield graded(
        "eviction",
        policy != "noeviction",
        f"maxmemory-policy {policy}"
        + ("" if policy == "noeviction" else ": log and head may be thrown away, one by one (E-42)"),
        "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration file",
    )


def memory(patient: Patient) -> Iterator[Finding]:
    limit, used = int(patient.fact("maxmemory")), int(patient.fact("used_memory"))
    if not limit:
        total = int(patient.info.get("total_system_memory", 0))
        of = f" of the machine's {number(total // _MIB)} MiB" if total else ""
        yield Finding(
            "memory",
            WARNING,
            f"no maxmemory; {number(used // _MIB)} MiB used{of}: when memory is short the kernel kills the server",
            "set maxmemory to what the machine can spare, half of it where the server forks: a full server then refuses "
            "commits and loses nothing",
        )
        return
    share = used / limit
    severity = ERROR if share >= _ALARM else WARNING if share >= _NOTICE else OK
    yield Finding(
        "memory",
        severity,
        f"{number(used // _MIB)} of maxmemory {number(limit // _MIB)} MiB used ({percent(share)})",
        ""
        if severity == OK
        else "raise maxmemory, or let a keeper trim the logs (statecore keeper); a full server refuses every commit",
    )


def clock(patient: Patient) -> Iterator[Finding]:
    before = time.time()
    seconds, micros = patient.ask("TIME")
    apart = int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2
    yield Finding("clock", OK, f"{apart:+.3f} s from ours (told only: leases are counted by the server, nothing else)")


CHECKS: Final = (version, role, eviction, memory, clock)
