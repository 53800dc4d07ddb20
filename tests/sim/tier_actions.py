"""What engines do about transfers: they look, wait, cancel, and go on when the blocks have come, or have not.

Owns the engine's half of the waiting protocol: nothing is computed behind blocks that are on their way, and after a
failed fetch the missing blocks are computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from statecore.hashing import HashedTokens
from statecore.index import CacheIndex
from statecore.rejections import UnknownTransfer
from statecore.results import CANCELLED, DONE, FAILED, FORGOTTEN, TransferState
from tests.sim.accounts import Violation, require
from tests.sim.model import Held, Model
from tests.sim.process import Process
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.story import Story


class TierActions:
    """The calls of one process that have to do with the other tier."""

    def __init__(self, world: World, process: Process, story: Story) -> None:
        self.world = world
        self.choices = world.choices
        self.process = process
        self.story = story

    @property
    def index(self) -> CacheIndex:
        return self.process.up

    def waiting(self) -> list[str]:
        return [name for name, held in self.process.model.requests.items() if held.waits]

    def look(self) -> None:
        """Ask after what a request waits for, or wait for it."""
        names = self.waiting()
        if names:
            name = self.choices.one_of(names)
            self.look_at(name)
            held = self.process.model.requests.get(name)
            if held is not None and held.was and not held.waits and self.choices.chance(90):
                self.compute_instead(name)

    def compute_instead(self, name: str) -> None:
        """What did not come is computed, if need be in the place of others."""
        process = self.process
        for other in list(process.model.requests):
            if process.usable and other != name and self.choices.chance(70) and other in process.model.requests:
                self.release_one(other)
        held = process.model.requests.get(name)
        if process.usable and held is not None and not held.waits:
            if held.was > len(held.table):
                self._allocate(name, held.was - len(held.table))
            if process.usable and held.was <= held.sequence.blocks:  # type: ignore[redundant-expr]  # `_allocate` may end it
                self.extend(name, blocks=held.was)

    def look_at(self, name: str) -> None:
        waits = self.process.model.requests[name].waits
        waiting = self.choices.chance(30)

        def do() -> tuple[TransferState, ...]:
            return tuple([self._state_of(transfer, waiting) for transfer in waits])

        def update(model: Model, answer: Any) -> None:
            if answer is not None:
                self._told(model, name, answer)

        self.process.call(f"{'wait' if waiting else 'poll'}({name}: {', '.join(waits)})", do, update)

    def _state_of(self, transfer: str, waiting: bool) -> TransferState:
        """What ended while this replica was behind the trim is forgotten; its tables tell what came of it."""
        try:
            return self.index.wait(transfer, 0.0) if waiting else self.index.poll(transfer)
        except UnknownTransfer as unknown:
            raise Violation(
                "who waits for a transfer is told of its end", f"{self.process.name}: {unknown}"
            ) from unknown

    def _told(self, model: Model, name: str, answer: tuple[TransferState, ...]) -> None:
        """Who is told that all has come has the blocks; who is told that something has not, has fewer."""
        marks = self.world.marks
        for each in answer:
            marks[f"told: {each.state}"] += 1
        under_way = self.index.inspect(lambda state: set(state.transfers))
        untrue = [each.transfer for each in answer if each.state == FORGOTTEN and each.transfer in under_way]
        require(not untrue, "what goes on is not forgotten", (self.process.name, name, untrue))
        if any(each.under_way for each in answer):
            return
        self.process.notice_cut(model, name)
        held = model.requests[name]
        lost = any(each.state in (FAILED, CANCELLED) for each in answer)
        forgotten = any(each.state == FORGOTTEN for each in answer)
        require(
            forgotten or lost == (held.was > 0),
            "who is told that it is done has its blocks",
            (self.process.name, name, answer),
        )
        require(
            lost or forgotten or all(each.state == DONE for each in answer),
            "a transfer ends in one of four ways",
            answer,
        )
        held.waits = ()
        marks["a cut path, noticed"] += lost

    def go_on(self) -> None:
        """A request whose prefix is there gets what it lacks, and is scheduled."""
        process = self.process
        ready = [
            name
            for name, held in process.model.requests.items()
            if not held.waits and (len(held.table) < held.sequence.blocks or held.path < held.sequence.blocks)
        ]
        if not ready:
            return self.look()
        name = self.choices.one_of(ready)
        return self.compute_instead(name) if process.model.requests[name].was else self.go_on_with(name)

    def go_on_with(self, name: str) -> None:
        process = self.process
        held = process.model.requests[name]
        missing = held.sequence.blocks - len(held.table)
        if missing > 0:
            self._allocate(name, missing)
        if process.usable and name in process.model.requests:
            self.extend(name)

    def cancel(self) -> None:
        mine = self.index.inspect(
            lambda state: [each.id for each in state.transfers.values() if each.engine == self.process.engine]
        )
        if mine:
            transfer = self.choices.one_of(mine)
            if self.process.stepping or self.choices.chance(50):
                self._cancel(transfer)
                return
            self.process.rush = True  # it may end before the step lands
            self.process.step(lambda _: self._cancel_and_ask_again(transfer))
            self.process.rush = False

    def _cancel(self, transfer: str) -> None:
        self.process.call(f"cancel({transfer})", lambda: self.index.cancel(transfer), nothing)

    def _cancel_and_ask_again(self, transfer: str) -> None:
        """In one step: whoever waited for it begins anew."""
        self._cancel(transfer)
        for name, held in list(self.process.model.requests.items()):
            if transfer in held.waits and name in self.process.model.requests:
                self.release_one(name)
                if name not in self.process.model.requests:
                    self._match(name, held.sequence, None, told="again")

    def asked_again(self, name: str, blocks: int) -> bool:
        """Ask for blocks; whether the answer was to ask again."""
        before = self.world.marks["allocate: not yet"]
        self._allocate(name, blocks)
        return self.world.marks["allocate: not yet"] > before

    # --- the index as a whole ---------------------------------------------------------------------------------------

    def clear(self) -> None:
        """New weights: nobody begins, everybody ends, all is forgotten."""
        self.pause()
        for each in list(self.story.current.values()):
            if each.usable and not each.busy:
                TierActions(self.world, each, self.story).release_all()
        if self.process.usable:
            self.process.clear()
        if self.process.usable and self.choices.chance(80):
            self.resume()

    def pause(self) -> None:
        self.process.call("pause", lambda: self.index.pause("new weights"), nothing)

    def resume(self) -> None:
        self.process.call("resume", self.index.resume, nothing)

    def release_all(self) -> None:
        for name in list(self.process.model.requests):
            if self.process.usable and name in self.process.model.requests:
                self.release_one(name)

    def release_one(self, name: str) -> None:
        def update(model: Model, _: Any) -> None:
            del model.requests[name]

        self.process.call(f"release({name})", lambda: self.index.release(name), update, of=name)

    # --- what is there before it is called so -----------------------------------------------------------------------

    def compute_all(self, name: str, held: Held, sequence: HashedTokens, blocks: int | None) -> bool:
        """Before the engine says that blocks are ready, their bytes are there. Not for what this step itself began."""
        process = self.process
        depth = max(held.path, min(sequence.blocks if blocks is None else blocks, len(held.table)))
        if held.waits:
            return False
        if process.stepping:
            before = process.before.requests.get(name)
            if (
                before is None
                or before.life is not held.life
                or not set(held.table[held.begin : depth]).issubset(before.table)
            ):
                return False
        if process.alive_in_log():
            longer = held.copy()
            longer.sequence = sequence
            process.compute(longer, depth)
            process.computed_for(name)
        return True

    def _allocate(self, name: str | None, blocks: int) -> None:
        raise NotImplementedError

    def extend(self, name: str | None = None, *, whole: bool = False, blocks: int | None = None) -> None:
        raise NotImplementedError

    def _match(
        self,
        name: str,
        sequence: HashedTokens,
        tokens: list[int] | None,
        salt: bytes = b"",
        limit: int | None = None,
        told: str = "",
    ) -> None:
        raise NotImplementedError


def nothing(_model: Model, _answer: Any) -> None:
    """For calls that answer by returning."""
