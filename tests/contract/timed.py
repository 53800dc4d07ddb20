"""Logs whose leases run out in a test's time: the memory by a clock that the test moves, on servers every key that runs out
does so that much earlier.

Owns that difference, so that a test says "time passes" once for all backends, and never waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs

from events.job_ports import JobTransport
from events.log import EventLog, LogConnection
from events.memory import MemoryTransport
from events.memory_jobs import MemoryJobs
from events.transport import Transport
from tests.contract.commits import client_of

LEASE_S = 60.0


@attrs.define
class Clock:
    """Seconds that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


@attrs.frozen
class Timed:
    """One index in which time passes. Implements `events.ports.Connection`, so an engine can join it.

    Attributes:
        passes: lets so many seconds go by.
    """

    transport: Transport
    jobs: JobTransport
    passes: Callable[[float], None]
    clock: Callable[[], float]

    def log(self, index: str = "timed", *, follow: bool = False) -> EventLog:
        return EventLog(index, self.transport, follow=follow, clock=self.clock, threads=False)

    def indexes(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """What it stands on is closed by others."""

    @classmethod
    def on(cls, connection: LogConnection, index: str) -> Timed:
        transport = connection.backend.transport(index)
        if isinstance(transport, MemoryTransport):
            return cls.in_memory()

        def passes(seconds: float) -> None:
            client = client_of(connection)
            for key in client.keys(f"kv:{{{index}}}:*"):
                if (left_ms := client.pttl(key)) > 0:
                    client.pexpire(key, max(1, left_ms - int(seconds * 1000)))
            time.sleep(0.005)

        return cls(transport, connection.backend.jobs(index), passes, time.monotonic)

    @classmethod
    def in_memory(cls) -> Timed:
        clock = Clock()
        return cls.over(MemoryTransport(clock), clock)

    @classmethod
    def over(cls, transport: MemoryTransport, clock: Clock) -> Timed:
        return cls(transport, MemoryJobs(transport, clock), clock.move, clock)
