"""What an engine may ask of the index beside serving requests: room, blocks of its own, sizes, pauses, handing over.

Owns these calls of `CacheIndex`: what they check at the door and what they answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from events.errors import InvalidInput
from events.keys import checked_name
from events.limits import POOL_BLOCKS_MAX, REASON_LENGTH_MAX
from events.ports import Log
from statecore import commands, door
from statecore.answers import Answers, no_answer
from statecore.rejections import InUse
from statecore.results import Allocation, Handover, Room, TransferState
from statecore.state import CPU, GPU, TIERS
from statecore.view import IndexView


class IndexUpkeep(IndexView):
    """The half of `CacheIndex` that concerns pools, other engines and the index as a whole."""

    _log: Log
    _answers: Answers

    # --- blocks -----------------------------------------------------------------------------------------------------

    def make_room(self, blocks: int, *, tier: str = GPU) -> Room:
        """Evict until `blocks` blocks of a tier are free or on their way out, or as many as can be; never more than that."""
        count = door.whole(blocks, "blocks", least=0, most=POOL_BLOCKS_MAX)
        command = commands.MakeRoom(self.engine, self._tier(tier), count)
        return self._session.perform(command, Room(tier), self._answers.room)

    def hold_host(self, blocks: int) -> Allocation:
        """Blocks of the host pool for the engine itself, until `recycle(None, …, tier="cpu")` or the end of its life.

        Raises:
            PoolExhausted: not now; NeverFits: not ever; UnknownPool: this engine has no host pool.
        """
        count = door.whole(blocks, "blocks", least=1, most=POOL_BLOCKS_MAX)
        return self._session.perform(
            commands.AllocateHost(self.engine, count), Allocation(None), self._answers.allocation
        )

    def adopt(self, request: str, blocks: Iterable[int]) -> None:
        """Give a request blocks that the engine itself holds (`allocate(None, …)`), in the order of its table.

        Raises:
            ForeignBlocks: the engine does not hold one of them; nothing is moved then. UnknownRequest.
        """
        door.request_id(request)
        given = door.block_ids(blocks, POOL_BLOCKS_MAX)
        self._session.perform(commands.Adopt(self.engine, request, given), None, no_answer)

    def resize(self, blocks: int, *, tier: str = GPU) -> None:
        """Give a pool another size. What only cached blocks that go held is forgotten.

        Raises:
            InUse: somebody uses blocks that would go; the message lists them. Nothing is changed then.
        """
        count = door.whole(blocks, "blocks", least=1, most=POOL_BLOCKS_MAX)
        with self._session.step_of_one() as step:
            self._session.perform(commands.Resize(self.engine, self._tier(tier), count), None, no_answer)
            step.when_it_stands(lambda: self._session.wants(tier, count))

    # --- handing a request over ---------------------------------------------------------------------------------------

    def send(self, request: str, blocks: Iterable[int], receiver: str, to_blocks: Iterable[int]) -> Handover:
        """Start to copy blocks of a request to blocks of another engine, pairwise in order; that engine goes on with it.

        Both engines keep their blocks. Until the transfer has ended the sender cannot release the request; if the receiver
        gives its blocks back, or either engine ends, the transfer is cancelled.

        Args:
            blocks: of the request's table, or held by this engine.
            receiver: an engine of this index with a pool of its own and as many ranks.
            to_blocks: private to a request of the receiver, or held by it.

        Raises:
            NotReceivable, ForeignBlocks: it cannot be; nothing was started.
            PathNotFilled: a part of the request is still on its way from the host.
        """
        door.request_id(request)
        checked_name(receiver, "engine name")
        source, destination = door.block_ids(blocks, POOL_BLOCKS_MAX), door.block_ids(to_blocks, POOL_BLOCKS_MAX)
        sizes = sum(count for _, count in source), sum(count for _, count in destination)
        if sizes[0] != sizes[1] or not source:
            raise InvalidInput(
                f"a send is of as many blocks as it goes to, and at least one: {sizes[0]} and {sizes[1]}"
            )
        command = commands.Send(self.engine, request, source, receiver, destination)
        return self._session.perform(command, Handover(request, receiver), self._answers.handover)

    def arrival(self, request: str) -> TransferState | None:
        """What became of the last send of a request to this engine that it has heard of; None: it has heard of none. Nobody
        has sent it, or it was sent and ended while this engine was away for longer than the log is kept.

        No longer known when the request is released here. After "failed", "cancelled" or "forgotten" give the blocks back.
        Do not compute into those of a cancelled one: a worker may still write there, so they are kept apart until it has
        reported.
        """
        return self._session.arrival(door.request_id(request))

    # --- the index as a whole ---------------------------------------------------------------------------------------

    def pause(self, reason: str) -> None:
        """Let no request begin in any engine, until somebody calls `resume`. Those that live go on."""
        self._session.perform(commands.Pause(self.engine, self._reason(reason)), None, no_answer)

    def resume(self, reason: str = "resumed") -> None:
        """Let requests begin again."""
        self._session.perform(commands.Resume(self.engine, self._reason(reason)), None, no_answer)

    def clear(self, reason: str, timeout: float) -> None:
        """Forget all that is cached, in every pool of the index: for new weights.

        Pauses service, waits until no request lives in any engine, cancels the transfers that are still under way (who waits
        for one is told), clears. Service stays paused, for the weights to be loaded; call `resume` then.

        Raises:
            InUse: requests still lived after `timeout` seconds; the message lists their engines. Service is paused:
                call again, or `resume`.
        """
        seconds, why = door.seconds(timeout, "timeout"), self._reason(reason)
        self._session.refresh()  # refused within a step, before anything is paused
        self.pause(why)
        refusal: InUse | None = None
        for left in self._log.until(seconds):
            position = self._session.refresh()
            try:
                self._session.perform(commands.Clear(self.engine, why), None, no_answer)
            except InUse as error:
                refusal = error
                self._log.wait(position, left)
            else:
                return
        assert refusal is not None, "until() gives the first time in any case"
        raise refusal

    # --- waiting ----------------------------------------------------------------------------------------------------

    def until(self, timeout: float) -> Iterator[float]:
        """Seconds left of `timeout`, again and again until none are; the first time in any case."""
        return self._log.until(door.seconds(timeout, "timeout"))

    def wait_for_news(self, position: int, timeout: float) -> None:
        """Return when somebody may have committed something after `position`, at the latest when the time is over."""
        self._log.wait(position, door.seconds(timeout, "timeout"))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _tier(self, tier: object) -> str:
        if tier not in TIERS:
            raise InvalidInput(f"a tier is one of {', '.join(TIERS)}, not {door.shown(tier)}")
        if tier == CPU and self.cpu_pool is None:
            raise InvalidInput(f"engine {self.engine!r} has no host pool")
        return str(tier)

    @staticmethod
    def _reason(reason: object) -> str:
        return door.text(reason, "reason", REASON_LENGTH_MAX)
