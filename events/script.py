"""A Lua script of ours on a server: sent by its digest, and whole where the server does not have it.

Owns the fallback. Servers forget scripts at a restart, a failover, SCRIPT FLUSH, or when they like (redis-facts R23).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, ClassVar

from redis.exceptions import RedisError

from events.client import Client, is_missing_script


class Script:
    """`lua/<name>.lua`, with the files it needs in front of it.

    Attributes:
        known: all that were made in this process, by name; for who tries whether a server takes them.
    """

    known: ClassVar[dict[str, Script]] = {}

    def __init__(self, name: str, *needs: str) -> None:
        self.known[name] = self
        folder = resources.files("events").joinpath("lua")
        self._source = "".join(folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in (*needs, name))
        self._digest = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    def load(self, client: Client) -> None:
        """Have the server compile it, and keep it; the library's errors come out as they are."""
        client.execute_command("SCRIPT LOAD", self._source)  # type: ignore[no-untyped-call]

    def run(self, client: Client, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        """One attempt; the library's errors come out as they are."""
        words = (len(keys), *keys, *arguments)
        try:
            return client.execute_command("EVALSHA", self._digest, *words)  # type: ignore[no-untyped-call]
        except RedisError as error:
            if not is_missing_script(error):
                raise
        return client.execute_command("EVAL", self._source, *words)  # type: ignore[no-untyped-call]
