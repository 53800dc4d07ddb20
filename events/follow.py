"""Fetching entries in the background, so that a scheduler step usually starts fresh and commits in one round trip.

Owns one thread and one connection that block on XREAD. It only fills a queue, unread, and rests after each fetch, unless
somebody waits for news, so that a busy log costs its engine few thread switches; the replica applies entries when its
engine calls it. Losing the connection loses nothing: the follower reads on from where it was, and whoever needs an
entry that has not arrived reads it from the log.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, cast

from redis.exceptions import RedisError

from events import keys, limits
from events.client import Client
from events.ports import StoredRecord
from events.stream_entry import position_in, stored_records


class RedisFollower:
    """Implements `events.transport.Follower`. The thread is a daemon: a process may end while it waits."""

    def __init__(self, client: Client, log_key: str, after: int) -> None:
        self._client = client
        self._log_key = log_key
        self._after = after
        self._queue: deque[tuple[bytes, Any]] = deque()
        self._stopped = threading.Event()
        self._fetched = threading.Condition()
        self._waiting = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"follow {log_key}", daemon=True)
        self._thread.start()

    def arrived(self, after: int) -> tuple[StoredRecord, ...]:
        if self._failure is not None:
            raise self._failure
        queue = self._queue
        entries = [queue.popleft() for _ in range(len(queue))]
        return stored_records(entry for entry in entries if position_in(entry[0]) > after)

    def wait(self, after: int, timeout_s: float) -> None:
        with self._fetched:
            self._waiting += 1
            self._fetched.notify_all()  # the thread may be resting
            try:
                self._fetched.wait_for(lambda: self._after > after or self._failure is not None, timeout_s)
            finally:
                self._waiting -= 1

    def close(self) -> None:
        """Ask the thread to stop. It ends with its current blocking read, which `FOLLOW_BLOCK_S` bounds."""
        self._stopped.set()

    def _run(self) -> None:
        pause = limits.RETRY_WAIT_INITIAL_S
        while not self._stopped.is_set():
            try:
                self._fetch()
                pause = limits.RETRY_WAIT_INITIAL_S
            except (RedisError, OSError):
                # The log's own calls report an unreachable server; here it only means that nothing arrives for now.
                self._stopped.wait(pause)
                pause = min(pause * 2, limits.RETRY_WAIT_MAX_S)
            except Exception as failure:  # an unreadable entry: tell whoever asks next, and end
                with self._fetched:
                    self._failure = failure
                    self._fetched.notify_all()
                return

    def _fetch(self) -> None:
        if len(self._queue) >= limits.FOLLOW_QUEUE_MAX:
            self._stopped.wait(limits.FOLLOW_BLOCK_S)
            return
        streams = self._client.xread(
            {self._log_key: keys.entry_id(self._after)},
            count=limits.READ_PAGE,
            block=int(limits.FOLLOW_BLOCK_S * 1000),
        )
        for entries in _entries_of(streams):
            with self._fetched:
                self._queue.extend(entries)
                self._after = position_in(entries[-1][0])
                self._fetched.notify_all()
        with self._fetched:
            self._fetched.wait_for(lambda: self._waiting or self._stopped.is_set(), limits.FOLLOW_PAUSE_S)


def _entries_of(streams: Any) -> list[list[tuple[bytes, Any]]]:
    """XREAD's answer is a list of pairs in RESP2 and a map in RESP3 (redis-facts C6); None or empty on timeout."""
    if not streams:
        return []
    if isinstance(streams, dict):
        return [
            entries[0] if len(entries) == 1 and isinstance(entries[0], list) else entries
            for entries in streams.values()
        ]
    return [cast("list[tuple[bytes, Any]]", entries) for _, entries in streams]
