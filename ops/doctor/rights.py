"""What this user may do, and whether the server takes our scripts.

Owns the commands each role needs, and how to ask for a right without using it. A command inside MULTI is checked when it is
queued, and DISCARD throws it away. Where that is not allowed, ACL DRYRUN (from 7.0) says the same. Where that is not allowed
either, commands are tried that have no effect the way they stand here; those that would have one are left out, and named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from redis.exceptions import RedisError, ResponseError

from events.keys import IndexKeys, rank_group
from events.script import Script
from ops.doctor.finding import ERROR, OK, Finding, graded
from ops.doctor.patient import CannotTell, Patient

Words: TypeAlias = tuple[str | int, ...]

_NOBODY: Final = "doctor"
"""Engine, pool, transfer and blob that nothing is done with."""


def rights(patient: Patient) -> Iterator[Finding]:
    """Each role as a whole: a reader that may not write is in order."""
    user, needs = _user(patient), _needs(patient.keys)
    allowed = {
        words: _allowed(patient, user, words)
        for words in sorted({each for role in needs.values() for each in role}, key=str)
    }
    missing = {role: _names(words for words in needs[role] if allowed[words] is False) for role in needs}
    can = [role for role, lacks in missing.items() if not lacks]
    untried = _names(words for words, found in allowed.items() if found is None)
    note = f" ({', '.join(untried)} not tried: it would change something)" if untried else ""
    if not can:
        role, lacks = min(missing.items(), key=lambda pair: len(pair[1]))
        yield Finding(
            "rights",
            ERROR,
            f"user {user!r} may be nobody: not even a {role}, who needs {', '.join(lacks)} as well{note}",
            "give the user the rights of its role: ops/acl",
        )
        return
    others = [f"{role} lacks {', '.join(lacks)}" for role, lacks in missing.items() if lacks]
    yield Finding("rights", OK, "; ".join([f"user {user!r} may be {', '.join(can)}", *others]) + note)


def scripts(patient: Patient) -> Iterator[Finding]:
    refused = {}
    for name, script in Script.known.items():
        try:
            script.load(patient.client)
        except ResponseError as error:
            if "permission" in str(error) or "NOPERM" in str(error):
                raise CannotTell(f"SCRIPT LOAD: {error}") from error
            refused[name] = str(error)
        except RedisError:
            patient.ask("PING")
            raise
    yield graded(
        "scripts",
        bool(refused),
        f"{len(Script.known) - len(refused)} of {len(Script.known)} load"
        + "".join(f"; {name}: {error}" for name, error in refused.items()),
        "the server is no Redis or Valkey of 6.2 or newer with Lua: use one",
    )


# --- inside ---------------------------------------------------------------------------------------------------------


def _user(patient: Patient) -> str:
    try:
        found = patient.ask("ACL WHOAMI")
    except CannotTell:
        return "(unknown)"
    return found.decode() if isinstance(found, bytes) else str(found)


def _names(commands: Iterable[Words]) -> list[str]:
    return list(dict.fromkeys(str(words[0]) for words in commands))


def _allowed(patient: Patient, user: str, words: Words) -> bool | None:
    """None: it cannot be told without doing it."""
    for way in (_queued, _dry_run, _tried):
        found = way(patient, user, words)
        if found is not None:
            return found
    return None


def _queued(patient: Patient, _user: str, words: Words) -> bool | None:
    """None: this user may not use MULTI."""
    pool = patient.client.connection_pool
    connection: Any = pool.get_connection()
    try:
        connection.send_command("MULTI")
        try:
            connection.read_response()
        except ResponseError:
            return None
        connection.send_command(*words)
        try:
            connection.read_response()
        except ResponseError as error:
            allowed = not _is_refusal(error)
        else:
            allowed = True
        connection.send_command("DISCARD")
        with contextlib.suppress(ResponseError):
            connection.read_response()
        return allowed
    finally:
        connection.disconnect()
        pool.release(connection)


def _dry_run(patient: Patient, user: str, words: Words) -> bool | None:
    """None: this server or this user has no such command."""
    try:
        found = patient.ask("ACL DRYRUN", user, *words)
    except CannotTell:
        return None
    return found in (b"OK", "OK", True)


def _tried(patient: Patient, _user: str, words: Words) -> bool | None:
    """None: trying it would change something."""
    command = words[0]
    if command in ("HSET", "HSETNX") or (command == "SET" and "XX" not in words):
        return None
    try:
        patient.ask(str(command), *words[1:])
    except CannotTell as reason:
        return not _is_refusal(reason)
    return True


def _is_refusal(error: Exception) -> bool:
    text = str(error).lower()
    return "permission" in text or "noperm" in text or "can't run this command" in text


def _needs(keys: IndexKeys) -> Mapping[str, tuple[Words, ...]]:
    """Commands as a server accepts them, with no effect but where `_tried` says so."""
    lease, acks, jobs = keys.lease(_NOBODY), keys.acks(_NOBODY), keys.jobs(_NOBODY)
    worker, blob, group = keys.worker(_NOBODY, 0), keys.blob(_NOBODY), rank_group(0)
    read: tuple[Words, ...] = (
        ("INFO", "server"), ("XRANGE", keys.log, "-", "+", "COUNT", 1), ("XREAD", "COUNT", 1, "STREAMS", keys.log, "0"),
        ("HMGET", keys.head, "position"), ("HMGET", keys.snapshot, "position"), ("GETRANGE", blob, 0, 1),
    )  # fmt: skip
    append: tuple[Words, ...] = (
        ("EVAL", "return 1", 1, keys.log), ("EVALSHA", "0" * 40, 1, keys.log), ("XADD", keys.log, "0-0", "a", "b"),
        ("XLEN", keys.log), ("HSET", keys.head, "a", "b"), ("SET", keys.closed, "a"), ("PTTL", keys.closed),
    )  # fmt: skip
    engine: tuple[Words, ...] = (
        *read, *append, ("HGET", keys.fence, "a"), ("HSET", keys.fence, "a", "b"), ("SET", lease, "a", "XX"), ("DEL", lease),
        ("XADD", jobs, "NOMKSTREAM", "*", "a", "b"), ("MGET", worker),
    )  # fmt: skip
    moves: tuple[Words, ...] = (
        *append, ("HGETALL", acks), ("HSETNX", acks, "a", "b"), ("PEXPIRE", acks, 1),
        ("XREADGROUP", "GROUP", group, "a", "STREAMS", jobs, ">"), ("XAUTOCLAIM", jobs, group, "a", 1, "0-0"),
        ("XPENDING", jobs, group), ("XACK", jobs, group, "1-1"), ("XDEL", jobs, "1-1"),
        ("XGROUP", "CREATE", jobs, group, "0"), ("HSET", keys.seats, "a", "b"), ("SET", worker, "a", "XX"), ("DEL", worker),
    )  # fmt: skip
    keeps: tuple[Words, ...] = (
        *read, *append, ("GET", keys.keeper), ("SET", keys.keeper, "a"), ("MGET", lease), ("DEL", lease),
        ("SETRANGE", blob, 0, ""), ("PEXPIRE", blob, 1), ("PERSIST", blob), ("STRLEN", blob), ("DEL", blob),
        ("HSET", keys.snapshot, "a", "b"), ("XTRIM", keys.log, "MINID", "0"),
    )  # fmt: skip
    return {"reader": read, "engine": engine, "worker": moves, "keeper": keeps}


CHECKS: Final = (rights,)
SERVER_CHECKS: Final = (scripts,)
