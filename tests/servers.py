"""Real redis-servers, and a network between them and us that fails on request.

Owns what tests add to the processes and the proxy of `ops/chaos`: which binaries there are, a plain client, and rules
that a test can name. Everything listens on loopback only and ends with `stop` / `close`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from events.embedded import redis_server_binary
from ops.chaos import proxy
from ops.chaos.proxy import LOOPBACK, Fault
from ops.chaos.redis_process import RedisProcess, free_port

__all__ = ["LOOPBACK", "Fault", "Proxy", "RedisServer", "Rule", "binary_of", "free_port"]


def binary_of(kind: str) -> Path | None:
    """The redis-server to test against: "embedded" from the wheel, "system" from the PATH, None where there is none."""
    if kind == "embedded":
        return redis_server_binary()
    found = shutil.which("redis-server")
    return Path(found) if found else None


class RedisServer(RedisProcess):
    """A redis-server over a folder, append-only file synced always."""

    def client(self, **settings: Any) -> Any:
        """A plain client, for what a test does beside the log."""
        return redis.Redis(host=LOOPBACK, port=self.port, retry=Retry(NoBackoff(), 0), **{"protocol": 2, **settings})

    def __enter__(self) -> RedisServer:
        return self


# --- a network that fails -------------------------------------------------------------------------------------------

Rule = Callable[[str], Fault]


def healthy(_command: str) -> Fault:
    return Fault.NONE


def commits(fault: Fault) -> Rule:
    """Every append meets this fault, all else passes."""
    return lambda command: fault if command.startswith("EVAL") else Fault.NONE


def everything(fault: Fault) -> Rule:
    return lambda _command: fault


class Proxy(proxy.Proxy):
    """A proxy that does what a test says.

    Attributes:
        target: may change; new connections go there.
        rule: what happens to a command, by its name in capitals; called in the thread of its connection.
        answer: what the proxy answers itself, in the server's place; None to pass the command on.
        seen: names of all commands that came, in order.
    """

    def __init__(self, target: str | tuple[str, int]) -> None:
        self.rule: Rule = healthy
        self.answer: Callable[[str], bytes | None] = lambda _command: None
        self.seen: list[str] = []
        super().__init__(target)

    def fault_of(self, name: str, _request: bytes) -> Fault:
        return self.rule(name)

    def answer_of(self, name: str) -> bytes | None:
        self.seen.append(name)
        return self.answer(name)

    def __enter__(self) -> Proxy:
        return self
