"""What must hold of what an engine process was told: its tables, its paths, its blocks, and the bytes in them.

Owns the comparison of a process's model with its replica, with the log, and with the memory; and the work its device does
in between. The model itself is in `model.py`, the calls in `process.py`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import attrs

from events.errors import InvalidInput
from events.log import EventLog
from events.ports import BIRTH, Base
from statecore.index import CacheIndex
from statecore.rejections import Rejection
from tests.sim.accounts import require
from tests.sim.contents import DeviceStream, Write, bytes_of, scratch
from tests.sim.model import Doubt, Held, Model
from tests.sim.world import World

if TYPE_CHECKING:
    from statecore.state import State


@attrs.frozen
class Slot:
    """An engine's place: its name, its pool and that pool's size, and the host tier's, or "" and 0.

    Attributes:
        survives: the pool's memory outlives its processes. rejoins: they begin their next lives by themselves.
    """

    engine: str
    pool: str
    blocks: int
    host: str = ""
    host_blocks: int = 0
    survives: bool = True
    rejoins: bool = False


class Told:
    """One engine process as the caller sees it.

    Attributes:
        index: None until it has joined.
        over: it knows that its life has ended.
        dead: the process was killed. paused: it is stopped, and may be woken.
        has_memory: it has brought its pool's memory along, where that does not outlive it.
        device_ended: what it computes on was ended, because another process of its name began.
        log: what its index talks to; renews its lease.
        stream: what its device computes.
    """

    def __init__(self, world: World, slot: Slot, nonce: str) -> None:
        self.world = world
        self.slot = slot
        self.engine = slot.engine
        self.pool = slot.pool
        self.pool_blocks = slot.blocks
        self.nonce = nonce
        self.name = f"{slot.engine}/{nonce}"
        self.index: CacheIndex | None = None
        self.model = Model()
        self.doubt: Doubt | None = None
        self.over = False
        self.dead = False
        self.paused = False
        self.has_memory = False
        self.device_ended = False
        self.log: EventLog | None = None
        self.renewed_at = 0.0
        self.stream = DeviceStream(world.contents, self)

    @property
    def up(self) -> CacheIndex:
        assert self.index is not None
        return self.index

    @property
    def usable(self) -> bool:
        return self.index is not None and not self.over and self.doubt is None

    @property
    def running(self) -> bool:
        """Whether its threads are."""
        return not self.dead and not self.paused

    def goes_on(self) -> bool:
        """Whether its index takes its life for alive."""
        return self.index is not None and self.index._session._life.end is None

    def lease_is_over(self) -> bool:
        """Whether its lease has heard the end of its life; its thread has ended then."""
        lease = None if self.log is None else self.log._lease
        return lease is None or lease._verdict is not None

    def alive_in_log(self) -> bool:
        life = self.world.ledger.engines.get(self.engine)
        return (
            self.index is not None
            and life is not None
            and life.alive
            and life.session == self.up.session
            and not self.has_vanished()
        )

    def base(self) -> Base:
        """What its replica has come to."""
        if self.index is None:
            return BIRTH
        return self.index.inspect(lambda state: Base(state.position, state.last_commit_id))

    def has_vanished(self) -> bool:
        """Whether the server has lost what it knows."""
        return not self.world.stands(self.base())

    # --- its device -------------------------------------------------------------------------------------------------

    def computed(self, writes: int | None = None) -> None:
        """The device gets on with what it was given: so many blocks, or all."""
        self.stream.run(writes)

    def goes_by(self) -> tuple[Base, int]:
        return self.base(), self.up.session

    def may_write(self, write: Write) -> bool:
        """Its device writes into a block, now; False: the device has been ended."""
        if not self.world.stands(write.base):
            require(
                not self.world.server.open, "who knows a vanished history has stopped when the log opens", self.name
            )
            self.world.marks["a device wrote for a history that had vanished"] += 1
            return True
        life = self.world.ledger.engines[self.engine]
        alive = life.alive and life.session == write.session
        if not alive and self.world.ended.get((self.engine, write.session), ("", "", 0))[0] == self.engine:
            return False  # whoever began a new life of its name has ended it first
        require(alive, "who is declared lost has stopped", (self.name, write.block))
        self.world.contents.check_engine_may_write(self.engine, self.pool, write.block)
        return True

    def computed_for(self, name: str | None) -> None:
        """A call speaks of this request (None: of several): what stands in its table has been computed by then."""
        held = self.model.requests.get(name) if name is not None else None
        if held is None:
            return self.computed()
        due = [number for number, write in enumerate(self.stream.queue, 1) if write.block in held.table]
        return self.computed(max(due, default=0))

    def schedule(self) -> None:
        """Give the device what can be computed: the blocks of every request whose prefix is there."""
        if self.usable:
            requests = self.model.requests
            self.stream.keep_only({block for held in requests.values() for block in held.table} | set(self.model.held))
            for name, held in requests.items():
                if not held.waits:
                    self.compute(held, held.sequence.blocks)
                for block in held.private[max(0, held.sequence.blocks - held.path) :]:
                    self.stream.compute(block, scratch(f"{self.name} {name}"))
            for block in self.model.held:
                self.stream.compute(block, scratch(self.name))

    def compute(self, held: Held, depth: int) -> None:
        for place in range(held.begin, min(depth, len(held.table))):
            self.stream.compute(held.table[place], bytes_of(held.hash_of(place)))

    # --- its answers ------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """An answer never came; the index knows it now."""
        for name, held in self.model.requests.items():
            if name in self.up.requests():
                held.table, held.path = self.up.table(name), self.up.path_blocks(name)
                held.begin, held.waits = self.up.inspect(functools.partial(self._begin_of, name))
        self.model.held = self._held_by_index()

    def _begin_of(self, name: str, state: State) -> tuple[int, tuple[str, ...]]:
        """How long a request's path was when it began, and what still brings parts of it."""
        request = state.engines[self.engine].requests[name]
        waits: dict[str, None] = {}
        node = request.leaf
        while node.parent is not None:
            filling = node.copies[self.pool].filling
            if filling is not None:
                waits[filling] = None
            node = node.parent
        return request.matched, tuple(waits)

    def notice_cut(self, model: Model, name: str) -> None:
        """A request that waits may have lost the end of its path, and nothing else."""
        held = model.requests[name]
        table, path = self.up.table(name), self.up.path_blocks(name)
        lost = len(held.table) - len(table)
        if not held.waits or lost < 0:
            return
        begin = held.begin - lost
        require(begin >= 0, "a path that is cut loses what was to come, no more", (self.name, name, held, table))
        require(
            table == held.table[:begin] + held.table[held.begin :] and path >= begin,
            "a path that is cut loses what was to come, no more",
            (self.name, name, held, table, path),
        )
        if lost:
            held.was = max(held.was, held.begin)
        held.table, held.path, held.begin = table, path, begin
        if path > begin:
            held.waits = ()  # it was extended since: all before it is there

    def _held_by_index(self) -> list[int]:
        def ids(state: State) -> list[int]:
            held = state.engines[self.engine].held.get(self.pool)
            return [block for start, count in held or () for block in range(start, start + count)]

        return self.up.inspect(ids)

    # --- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """This replica is the one state of its position, and what was told holds."""
        if self.index is None:
            return
        base = self.base()
        require(self.index.digest() == self.world.digests[base.commit_id], "one digest per position", (self.name, base))
        if self.usable and self.index.inspect(self._lives_in):
            self.check_model()

    def _lives_in(self, state: State) -> bool:
        mine = state.engines.get(self.engine)
        return mine is not None and mine.alive and mine.session == self.up.session

    def check_model(self) -> None:
        index, model = self.up, self.model
        require(
            index.requests() == tuple(sorted(model.requests)), "requests are as told", (self.name, index.requests())
        )
        for name, held in model.requests.items():
            if held.waits:
                self.notice_cut(model, name)
            table, path = index.table(name), index.path_blocks(name)
            require(table == held.table, "tables are as told", (self.name, name, table, held.table))
            require(path == held.path, "paths are as told", (self.name, name, path, held.path))
        require(self._held_by_index() == sorted(model.held), "held blocks are as told", (self.name, model.held))

    def check_forgotten(self) -> None:
        """Of a step that did not happen no token is remembered: one block more than was told is refused at the door."""
        for name, held in self.model.requests.items():
            try:
                self.up.extend(name, blocks=held.sequence.blocks + 1)
            except InvalidInput:
                continue
            except Rejection as refused:
                require(False, "an undone step is forgotten", (self.name, name, refused))
            require(False, "an undone step is forgotten", (self.name, name))

    def check_against_log(self) -> None:
        """At rest: the head of the log agrees with what was told, and so does the memory."""
        if not self.usable or not self.alive_in_log():
            return
        ledger = self.world.ledger
        theirs = {name for engine, name in ledger.requests if engine == self.engine}
        require(theirs == self.model.requests.keys(), "the log has the requests that were told", (self.name, theirs))
        for name, held in self.model.requests.items():
            path = b"".join(ledger.requests[self.engine, name].path)
            wanted = held.sequence.hashes[: len(path)]
            require(path == wanted, "a path holds what its tokens say", (self.name, name))
            if held.waits:
                continue  # what it waits for may have failed, and it has not looked
            table = ledger.table(self.engine, name)
            require(table == held.table, "the log has the tables that were told", (self.name, name, table, held.table))
            self._check_bytes(name, held)

    def _check_bytes(self, name: str, held: Held) -> None:
        """What the next kernel of this request would read."""
        for place, block in enumerate(held.table):
            expected = bytes_of(held.hash_of(place)) if place < held.path else self.stream.written.get(block)
            if expected is None:
                continue
            for rank in range(self.world.contents.ranks):
                found = self.stream.holds(rank, block)
                well = found == expected
                whose = "" if well else self.world.contents.told(found)
                require(well, "who uses a block finds its bytes in it", (self.name, name, place, block, rank, whose))
