"""Every fault that is made by hand: what it does, to whom, and when it is healed.

Owns the table from a fault's name to what makes it. A move answers whether it was made; one that finds nobody to hit is made
another time. The network's own faults are `network.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

from events.limits import APPEND_DEADLINE_S
from ops.chaos.cast import ENGINE, KEEPER, WORKER, EngineActor
from ops.chaos.slot import Order
from ops.chaos.stage import RESTART_S, TICK_S, Injury, Stage

SHORT_STOP_S: Final = (0.3, 2.5)
LONG_STOP_S: Final = 11.0
"""Longer than a lease and the keeper's patience: the engine is declared lost while it sleeps."""

TWIN_SLEEP_S: Final = 6.5
"""A sleeping engine whose name somebody else takes: longer than it may trust its lease."""

TWIN_AWAKE_S: Final = 2.5
"""For the one that wakes up to find out; then it is ended."""

KEEPER_STOP_S: Final = (2.0, 8.0)
REDIS_STOP_S: Final = (0.3, 2.5)
REDIS_LONG_STOP_S: Final = APPEND_DEADLINE_S + 1.5
"""So long that who was appending is told that the outcome is unknown, and has to find out later."""

MEMORY_SHORT_S: Final = (0.5, 2.0)
LAST_WORDS_S: Final = 6.0
"""To catch a commit of an engine: one that has nothing to say in this time gets another fate."""

DECIDED_S: Final = 40.0
"""For the server to decide about a late commit: it may be dead, or its log closed, or its scripts flushed meanwhile."""

TAKEOVER_S: Final = 6.0
AGAIN_S: Final = 0.1

Move: TypeAlias = Callable[[Stage, str], bool]


def _killing(role: str) -> Move:
    def move(stage: Stage, fault: str) -> bool:
        actor = stage.one_of(role)
        if actor is None:
            return False
        at = time.monotonic()
        stage.kill(actor)
        stage.restart(actor, lambda: stage.note(fault, at, actor))
        return True

    return move


def _stopping(role: str, seconds: tuple[float, float]) -> Move:
    def move(stage: Stage, fault: str) -> bool:
        actor = stage.one_of(role)
        if actor is None or not actor.stop():
            return False
        at = time.monotonic()
        stage.down.add(actor.name)

        def resume() -> None:
            actor.resume()
            stage.down.discard(actor.name)
            stage.note(fault, at, actor)

        stage.later(stage.between(seconds), resume)
        return True

    return move


def _kill_redis(stage: Stage, fault: str) -> bool:
    if stage.server.away:
        return False
    at = time.monotonic()
    stage.server.kill()
    stage.kills["redis"] += 1

    def again() -> None:
        stage.server.start()
        stage.note(fault, at)

    stage.later(stage.between(RESTART_S), again)
    return True


def _stopping_redis(seconds: tuple[float, float]) -> Move:
    def move(stage: Stage, fault: str) -> bool:
        if stage.server.away:
            return False
        at = time.monotonic()
        stage.server.suspend()

        def resume() -> None:
            stage.server.resume()
            stage.note(fault, at)

        stage.later(stage.between(seconds), resume)
        return True

    return move


def _last_words(stage: Stage, fault: str) -> bool:
    """A commit is held back, its engine killed; when the next process of that name has joined, the commit arrives."""
    actor = stage.one_of(ENGINE)
    if not isinstance(actor, EngineActor):
        return False
    session = actor.session
    if session is None or session != stage.server.session_of(actor.name):  # it has no life that it could go on with
        return False
    at = time.monotonic()
    stage.down.add(actor.name)
    stage.network.await_commit(actor.name)

    def catch() -> None:
        commit = stage.network.caught(actor.name)
        if commit is not None:
            stage.kill(actor)
            stage.restart(actor, lambda: deliver(commit))
        elif time.monotonic() - at < LAST_WORDS_S and actor.exit_code is None:
            stage.later(TICK_S, catch)
        else:
            stage.network.give_up(actor.name)
            stage.down.discard(actor.name)
            stage.undone.append(fault)

    def deliver(commit: bytes) -> None:
        joined = actor.session
        reply = b""
        if joined is not None:
            with suppress(OSError):
                reply = stage.network.send(commit)
        if not reply or reply.startswith(b"-"):  # no server, or it has lost the script: nothing was decided
            if time.monotonic() - at < DECIDED_S:
                stage.later(AGAIN_S, lambda: deliver(commit))
            else:
                stage.undone.append(fault)
            return
        landed = b"appended" in reply
        stage.note(fault, at, actor, wrong=f"a commit of session {session} landed in {joined}" if landed else "")

    catch()
    return True


def _take_name(stage: Stage, fault: str) -> bool:
    """An engine sleeps; another process takes its name; it wakes up and has to find out."""
    actor = stage.one_of(ENGINE)
    if not isinstance(actor, EngineActor) or not actor.stop():
        return False
    at = time.monotonic()
    actor.order(Order.GIVE_WAY)
    stage.down.add(actor.name)
    twin = actor.next_of_its_name()
    twin.start()

    def wake() -> None:
        actor.resume()
        stage.later(TWIN_AWAKE_S, end)

    def end() -> None:
        actor.kill()
        stage.actors[stage.actors.index(actor)] = twin
        stage.down.discard(twin.name)
        stage.note(fault, at, twin)

    stage.later(TWIN_SLEEP_S, wake)
    return True


def _replace_worker(stage: Stage, fault: str) -> bool:
    """A worker hangs; the next process of its rank ends it and takes its jobs."""
    actor = stage.one_of(WORKER)
    if actor is None or not actor.stop():
        return False
    at = time.monotonic()
    hanging = actor.let_go()
    actor.start()

    def end() -> None:
        spared = hanging.poll() is None
        hanging.kill()
        hanging.wait()
        stage.note(fault, at, actor, wrong=f"{actor.name} did not end the one before it" if spared else "")

    stage.later(TAKEOVER_S, end)
    return True


def _cut(stage: Stage, fault: str) -> bool:
    at = time.monotonic()
    stage.network.cut()
    stage.note(fault, at)
    return True


def _flush_scripts(stage: Stage, fault: str) -> bool:
    at = time.monotonic()
    if not stage.server.flush_scripts():
        return False
    stage.note(fault, at)
    return True


def _take_memory(stage: Stage, fault: str) -> bool:
    at = time.monotonic()
    if not stage.server.take_memory():
        return False

    def give() -> None:
        if stage.server.give_memory():
            stage.note(fault, at)
        else:
            stage.later(AGAIN_S, give)

    stage.later(stage.between(MEMORY_SHORT_S), give)
    return True


def _delete_jobs(stage: Stage, fault: str) -> bool:
    at = time.monotonic()
    pool = stage.chance.choice(sorted({actor.pool for actor in stage.actors if actor.pool}))
    if not stage.server.delete_jobs(pool):
        return False
    stage.injuries.append(Injury(fault, at, time.monotonic(), pool=pool))
    return True


def _delete_consumers(stage: Stage, fault: str) -> bool:
    worker = stage.one_of(WORKER)
    at = time.monotonic()
    if worker is None or not stage.server.delete_consumers(worker.pool):
        return False
    stage.note(fault, at, worker)
    return True


REDIS_KILLED: Final = "Redis killed and restarted"
ASLEEP: Final = "engine stopped beyond its lease"
REDIS_ASLEEP: Final = "Redis stopped beyond every deadline"
TWIN: Final = "engine asleep, its name taken"

MOVES: Final[dict[str, Move]] = {
    REDIS_KILLED: _kill_redis,
    "engine killed": _killing(ENGINE),
    "engine killed, its last commit late": _last_words,
    "worker killed": _killing(WORKER),
    "keeper killed": _killing(KEEPER),
    "engine stopped for a moment": _stopping(ENGINE, SHORT_STOP_S),
    ASLEEP: _stopping(ENGINE, (LONG_STOP_S, LONG_STOP_S)),
    TWIN: _take_name,
    "worker stopped for a moment": _stopping(WORKER, SHORT_STOP_S),
    "worker stopped, another in its place": _replace_worker,
    "keeper stopped": _stopping(KEEPER, KEEPER_STOP_S),
    "Redis stopped for a moment": _stopping_redis(REDIS_STOP_S),
    REDIS_ASLEEP: _stopping_redis((REDIS_LONG_STOP_S, REDIS_LONG_STOP_S)),
    "every connection cut": _cut,
    "scripts flushed": _flush_scripts,
    "out of memory": _take_memory,
    "job stream deleted": _delete_jobs,
    "consumer deleted": _delete_consumers,
}
