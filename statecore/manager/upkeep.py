"""Clearing the cache for new weights, and pools that change size.

Owns the prefix tree's status and how it is derived: from the log, so that every process sees the same, and each clearing
once (`index.clears`).

| status   | when                                                                       |
|----------|----------------------------------------------------------------------------|
| NORMAL   | requests may begin                                                         |
| CLEARING | none may, and something is still cached, living or under way               |
| CLEARED  | none may, and nothing is                                                   |
| UPDATING | never of itself: asks `clear_prefix_cache` for NORMAL with an empty tree    |
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import attrs

from events.errors import InvalidInput
from events.ports import Connection
from statecore import door, ranges
from statecore.manager.base import ManagerBase
from statecore.manager.settings import gpu_blocks_of
from statecore.rejections import InUse
from statecore.state import CPU, State

RESET_REASON: Final = "reset"


class PrefixTreeStatus(IntEnum):
    """The numbers FastDeploy's processes exchange."""

    NORMAL = 0
    UPDATING = 1
    CLEARING = -1
    CLEARED = -2


class Upkeep(ManagerBase):
    """See the module."""

    _connection: Connection

    @property
    def prefix_tree_status(self) -> PrefixTreeStatus:
        """By what this replica knows."""
        return self.index.inspect(_status)

    def clear_prefix_cache(
        self,
        status: PrefixTreeStatus | int = PrefixTreeStatus.CLEARING,
        *,
        reason: str = "weights are updated",
        timeout: float | None = None,
    ) -> PrefixTreeStatus:
        """Do what a status asks for: CLEARING: empty the tree and let no request begin. UPDATING: empty it, and go on.

        This engine's requests end. Those of others must end by themselves within `timeout` seconds (default
        `swap_timeout_s`). Who waits for a transfer hears that it is cancelled, and why.

        Returns:
            The status then: CLEARED or NORMAL.

        Raises:
            InUse: requests of other engines still live; requests that may begin did not change. Call again.
        """
        try:
            asked = PrefixTreeStatus(status)
        except ValueError:
            raise InvalidInput(
                f"a status is one of {', '.join(PrefixTreeStatus.__members__)}, not {status!r}"
            ) from None
        if asked in (PrefixTreeStatus.NORMAL, PrefixTreeStatus.CLEARED):
            raise InvalidInput(f"{asked.name} is what comes of CLEARING or UPDATING; it cannot be asked for")
        if self.prefix_tree_status is not PrefixTreeStatus.CLEARED:
            self._empty(reason, timeout, wait=asked is PrefixTreeStatus.CLEARING)
        if asked is PrefixTreeStatus.UPDATING:
            self.index.resume(reason)
        self._publish_pool()
        return self.prefix_tree_status

    def reset(self, wait_for_tasks_done: bool = False, *, timeout: float | None = None) -> None:
        """Forget everything: this engine's requests and blocks end, nothing is cached in any pool. Service goes on.

        Args:
            wait_for_tasks_done: let transfers end first, at most `timeout` seconds (default `swap_timeout_s`). Without,
                they are cancelled, and the blocks that workers still write are free when these have reported.

        Raises:
            InUse: requests of other engines still live.
        """
        before = self.index.paused
        try:
            self._empty(RESET_REASON, timeout, wait=wait_for_tasks_done)
        finally:
            if not before:
                self.index.resume(RESET_REASON)
        self._publish_pool()

    def update_cache_config(self, cache_config: object) -> None:
        """Give the GPU pool the size a new configuration says, by the scheduler in use. The host pool stays as it is.

        It grows at once. What only cached blocks that go held is forgotten.

        Raises:
            InUse: somebody uses blocks that would go; they are listed. Nothing has changed.
        """
        blocks = gpu_blocks_of(cache_config, self._surroundings.settings())
        self.index.resize(blocks)
        self.cache_config = cache_config
        self._settings = attrs.evolve(self._settings, gpu_blocks=blocks)
        self._publish_pool()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _empty(self, reason: str, timeout: float | None, *, wait: bool) -> None:
        seconds = self._swap_timeout_s if timeout is None else door.seconds(timeout, "timeout")
        self.index.pause(reason)
        if self._others():
            self._wait_for_others(seconds)
        if wait:
            self._wait(self.index.inspect(lambda state: list(state.transfers)))
        self._in_one_step(self._end_own)
        self.index.clear(reason, seconds)

    def _wait_for_others(self, seconds: float) -> None:
        """Before anything of this engine's own is ended."""
        for left in self.index.until(seconds):
            position = self.index.refresh()
            if not self._others():
                return
            self.index.wait_for_news(position, left)
        raise InUse("the cache", self._others())

    def _others(self) -> tuple[str, ...]:
        """Other engines with live requests."""

        def others(state: State) -> tuple[str, ...]:
            return tuple(
                f"engine {name!r} ({len(engine.requests)} requests)"
                for name, engine in sorted(state.engines.items())
                if engine.requests and name != self.index.engine
            )

        return self.index.inspect(others)

    def _end_own(self) -> None:
        """Release this engine's requests and blocks."""
        index = self.index
        sends = index.inspect(
            lambda state: [
                send.id for send in state.sends.values() if send.engine == index.engine and not send.cancelled
            ]
        )
        for send in sends:
            index.cancel(send, "its engine was reset")
        for request in index.requests():
            index.release(request)
        held = index.inspect(
            lambda state: {pool: ranges.ids(tuple(blocks)) for pool, blocks in state.engines[index.engine].held.items()}
        )
        if held.get(index.gpu_pool):
            index.recycle(None, held[index.gpu_pool])
        if index.cpu_pool is not None and held.get(index.cpu_pool):
            index.recycle(None, held[index.cpu_pool], tier=CPU)


def _status(state: State) -> PrefixTreeStatus:
    if state.paused_by is None:
        return PrefixTreeStatus.NORMAL
    living = any(engine.requests for engine in state.engines.values())
    empty = len(state.nodes) == 1 and not living and not state.transfers and not state.sends
    return PrefixTreeStatus.CLEARED if empty else PrefixTreeStatus.CLEARING
