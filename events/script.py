"""A Lua script of ours on a server: sent by its digest, and whole where the server does not have it.

Owns the fallback. Servers forget scripts at a restart, a failover, SCRIPT FLUSH, or when they like (redis-facts R23).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from redis.exceptions import RedisError

from events.client import Client, is_missing_script


class Script:
    """`lua/<name>.lua`, with the files it needs in front of it."""

    def __init__(self, name: str, *needs: str) -> None:
        folder = resources.files("events").joinpath("lua")
        self._source = "".join(folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in (*needs, name))
        self._digest = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: Client, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        """One attempt; the library's errors come out as they are."""
        words = (len(keys), *keys, *arguments)
        try:
            return client.execute_command("EVALSHA", self._digest, *words)  # type: ignore[no-untyped-call]
        except RedisError as error:
            if not is_missing_script(error):
                raise
        return client.execute_command("EVAL", self._source, *words)  # type: ignore[no-untyped-call]
