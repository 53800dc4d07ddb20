"""What survives a crash or a failover: the append-only file, background saves, replicas and the barrier of decision 0016."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from events.limits import LEASE_TTL_S
from ops.cli.output import count
from ops.doctor.finding import ERROR, OK, WARNING, Finding, graded
from ops.doctor.patient import Patient

_FSYNC: Final = {
    "always": (OK, "no acknowledged commit is lost, on power loss neither", ""),
    "everysec": (OK, "power loss may take the last 2 s; engines notice and join again", ""),
    "no": (
        WARNING,
        "the kernel decides when commits reach the disk: power loss may take 30 s",
        "CONFIG SET appendfsync everysec, or always",
    ),
}


def append_only_file(patient: Patient) -> Iterator[Finding]:
    enabled = int(patient.fact("aof_enabled")) == 1
    yield graded(
        "append-only file",
        not enabled,
        "on" if enabled else "off: a restart of the server loses everything since its last dump",
        "CONFIG SET appendonly yes, and the same in the server's configuration file",
    )
    if enabled:
        mode = patient.setting("appendfsync")
        severity, words, remedy = _FSYNC.get(
            mode, (WARNING, "a mode this release does not know", "use everysec or always")
        )
        yield Finding("fsync", severity, f"appendfsync {mode}: {words}", remedy)


def background_saves(patient: Patient) -> Iterator[Finding]:
    names = {
        "aof_last_write_status": "write to the append-only file",
        "aof_last_bgrewrite_status": "rewrite of the append-only file",
        "rdb_last_bgsave_status": "background save",
    }
    failed = [words for name, words in names.items() if patient.info.get(name, "ok") != "ok"]
    patient.fact("rdb_last_bgsave_status")
    yield graded(
        "last saves",
        bool(failed),
        f"the last {' and the last '.join(failed)} failed: the server may refuse every commit (MISCONF)"
        if failed
        else "went well",
        "look at the server's log, its disk's free space and the rights of its folder; then BGREWRITEAOF",
    )


def replicas(patient: Patient) -> Iterator[Finding]:
    connected = int(patient.fact("connected_slaves"))
    wanted = int(patient.setting("min-replicas-to-write"))
    lag_s = int(patient.setting("min-replicas-max-lag"))
    if connected < wanted:
        yield Finding(
            "replicas",
            ERROR,
            f"{connected} connected, min-replicas-to-write {wanted}: every commit is refused (NOREPLICAS)",
            "bring the replicas back, or lower min-replicas-to-write for as long as that takes",
        )
        return
    if not connected:
        yield Finding("replicas", OK, "none: nothing to fail over to")
        return
    words = f"{count(connected, 'replica')}, min-replicas-to-write {wanted}, min-replicas-max-lag {lag_s} s"
    yield graded(
        "replicas",
        wanted < 1 or not 0 < lag_s <= LEASE_TTL_S,
        f"{words}; a lease runs {LEASE_TTL_S:g} s",
        f"CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag {LEASE_TTL_S - 1:g}: otherwise a primary that was cut "
        "off goes on renewing leases while its successor opens the log (decision 0016)",
    )
    behind = [lag for number in range(connected) if (lag := _lag_s(patient, number)) > LEASE_TTL_S]
    if behind:
        yield Finding(
            "replica lag",
            WARNING,
            f"{count(len(behind), 'replica')} silent for up to {max(behind)} s",
            "look at the replica and the network: a failover to it would lose what it has not got",
        )


def _lag_s(patient: Patient, number: int) -> int:
    described: Any = patient.info.get(f"slave{number}", {})
    return int(described.get("lag", 0)) if isinstance(described, dict) else 0


CHECKS: Final = (append_only_file, background_saves, replicas)
