"""One simulated engine process: a real `CacheIndex`, and what it was told so far.

Owns the caller's side of every promise: an answer given holds; a refusal left no trace; what is unknown is found out
truthfully; a life that is over changes nothing. The model is built from answers only, never from the index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from events.errors import InvalidInput, OutcomeUnknown, Unavailable
from statecore.hashing import HashedTokens
from statecore.index import CacheIndex
from statecore.rejections import Rejection, SessionOver, StepConflict
from statecore.results import Allocation, Extension, Match
from tests.sim.faults import Connected, FaultyTransport
from tests.sim.ledger import Intent, require
from tests.sim.world import World

if TYPE_CHECKING:
    from statecore.state import State
    from statecore.step import Step

BLOCK_SIZE_OF_ALL = 2


@attrs.define
class Held:
    """A live request as its engine knows it."""

    sequence: HashedTokens
    by_hashes: bool
    table: list[int]
    path: int

    @property
    def private(self) -> list[int]:
        return self.table[self.path :]

    def copy(self) -> Held:
        return Held(self.sequence, self.by_hashes, list(self.table), self.path)


@attrs.define
class Model:
    """Everything a process was told: its requests, and the blocks it holds without one."""

    requests: dict[str, Held] = attrs.Factory(dict)
    held: list[int] = attrs.Factory(list)

    def copy(self) -> Model:
        return Model({name: held.copy() for name, held in self.requests.items()}, list(self.held))


Answer: TypeAlias = Match | Allocation | Extension | None
Update: TypeAlias = Callable[[Model, Any], None]


def counts(answer: Answer) -> object:
    """What of an answer given inside a step may not change until its end (`statecore/results.py`)."""
    match answer:
        case Match():
            return len(answer.blocks), answer.tokens
        case Allocation():
            return len(answer.blocks)
        case Extension():
            return answer.path_blocks
    return None


class Abandoned(Exception):
    """The engine's own error, leaving a step."""


@attrs.frozen
class Doubt:
    """What will hold if the unknown commit turns out to stand."""

    commit_id: str
    told: tuple[tuple[Update, Answer], ...]
    learn: bool
    new_life: bool


class Process:
    """One process with one `CacheIndex`, which may have to be started several times.

    Attributes:
        index: None until it has joined.
        over: it knows that its life has ended.
        busy: in the middle of a call; nobody may call it meanwhile.
        landed: ids of its commits that are in the log.
        faults, explicit, redecided, said_ready, intents: about the call at hand, for the transport and the judge.
    """

    def __init__(self, world: World, engine: str, pool: str, pool_blocks: int, nonce: str) -> None:
        self.world = world
        self.engine = engine
        self.pool = pool
        self.pool_blocks = pool_blocks
        self.nonce = nonce
        self.name = f"{engine}/{nonce}"
        self.index: CacheIndex | None = None
        self.model = Model()
        self.doubt: Doubt | None = None
        self.over = False
        self.busy = False
        self.storm = False
        self.landed: list[str] = []
        self.given_up: set[str] = set()
        self.faults = 0
        self.explicit = False
        self.redecided = False
        self.said_ready: set[str] = set()
        self.intents: list[Intent] = []
        self._told: list[tuple[Update, Answer]] | None = None
        self._before = Model()
        self._lost = False
        self._counts: list[object] = []

    @property
    def up(self) -> CacheIndex:
        assert self.index is not None
        return self.index

    @property
    def in_step(self) -> bool:
        """Whether something was told in the step at hand."""
        return bool(self._told)

    @property
    def usable(self) -> bool:
        return self.index is not None and not self.over and self.doubt is None

    def alive_in_log(self) -> bool:
        life = self.world.ledger.engines.get(self.engine)
        return self.index is not None and life is not None and life.alive and life.session == self.up.session

    # --- life -------------------------------------------------------------------------------------------------------

    def start(
        self,
        interlude: Callable[[Process], None],
        *,
        blocks: int | None = None,
        pool: str | None = None,
        block_size: int = BLOCK_SIZE_OF_ALL,
    ) -> None:
        """Construct the index: join. It may fail, and then there is no index."""
        transport = FaultyTransport(self.world, self, interlude)

        def construct() -> None:
            self.index = CacheIndex(
                Connected(transport, self.nonce),
                name="sim",
                engine=self.engine,
                gpu_pool=self.pool if pool is None else pool,
                gpu_blocks=blocks,
                block_size=block_size,
            )

        self._run("join", construct, ())
        self.doubt = None

    def rejoin(self) -> None:
        def begin_again(model: Model, _: Answer) -> None:
            model.requests.clear()
            model.held.clear()

        self.over = False
        self._give_up()
        if not self._run("rejoin", self.up.rejoin, ((begin_again, None),), new_life=True) and self.doubt is None:
            self.over = True  # neither the old life nor a new one

    def refresh(self) -> None:
        """Reading on may find what is in doubt, and then it stands."""

        def read() -> None:
            self.up.refresh()

        self._run("refresh", read, ())
        doubt = self.doubt
        if doubt is not None and 0 < self.world.landed.get(doubt.commit_id, 0) <= self.up.position:
            self.world.marks["unknown -> read"] += 1
            self._stands(doubt)

    def leave(self) -> None:
        """Whoever closes without an error has left, whatever was unknown before."""
        doubted = self.doubt is not None
        if self._run("close", self.up.close, (), resolving=doubted):
            require(not self.alive_in_log(), "who closed has left", self.name)
            self.over = True
        if doubted:
            self.over = True  # nobody waits for the old answer any more
            self._give_up()

    def _give_up(self) -> None:
        if self.doubt is not None:
            self.given_up.add(self.doubt.commit_id)
            self.doubt = None

    def resolve(self) -> None:
        """After an unknown outcome: what we are told must be the truth, for ever."""
        doubt = self.doubt
        assert doubt is not None
        found: list[bool] = []
        if not self._run("resolve", lambda: found.append(self.up.resolve()), (), resolving=True):
            if self.over:
                self._give_up()
            return
        self.doubt = None
        stands = doubt.commit_id in self.world.landed
        require(found[0] == stands, "resolve tells the truth", (doubt.commit_id, found, stands))
        if not stands:
            self.world.never.add(doubt.commit_id)
            self.world.marks["unknown -> not landed"] += 1
            self.over = doubt.new_life
            return
        self.world.marks["unknown -> landed"] += 1
        self._stands(doubt)

    def _stands(self, doubt: Doubt) -> None:
        self.doubt = None
        for update, answer in doubt.told:
            update(self.model, answer)
        if doubt.learn:
            self._learn()
        self.check()

    def _learn(self) -> None:
        """An answer never came; the index knows it now."""
        for name, held in self.model.requests.items():
            if name in self.up.requests():
                held.table, held.path = self.up.table(name), self.up.path_blocks(name)
        self.model.held = self._held_by_index()

    def _held_by_index(self) -> list[int]:
        def ids(state: State) -> list[int]:
            held = state.engines[self.engine].held.get(self.pool)
            return [block for start, count in held or () for block in range(start, start + count)]

        return self.up.inspect(ids)

    # --- calls ------------------------------------------------------------------------------------------------------

    def call(self, title: str, do: Callable[[], Answer], update: Update) -> None:
        """One call of the index, alone or inside the step at hand."""
        if self._told is None:
            answers: list[tuple[Update, Answer]] = []

            def alone() -> None:
                answers.append((update, do()))

            self._run(title, alone, answers, unanswered=(update, None))
            return
        try:
            answer = do()
        except (StepConflict, SessionOver) as lost:
            self._lost = True  # whatever is swallowed: the answers of this step hold no longer
            self.world.tell(f"{self.name}:   {title} -> {lost}")
            self.world.marks["a step lost in the middle"] += 1
            if self.world.choices.chance(15):
                raise
        except Rejection as refused:
            self.world.tell(f"{self.name}:   {title} -> {type(refused).__name__}: {refused}")
            self.world.marks[type(refused).__name__] += 1
            self._retell()
            if self.world.choices.chance(15):
                raise
        except InvalidInput as refused:
            self.world.tell(f"{self.name}:   {title} -> InvalidInput: {refused}")
            self.world.marks["InvalidInput"] += 1
        else:
            self.world.tell(f"{self.name}:   {title} -> {answer}")
            self._told.append((update, answer))
            self._counts.append(counts(answer))
            self._retell()

    def _retell(self) -> None:
        """What was told before in the step may have got other block ids; the answers say which."""
        if self._lost:
            return
        self.model = self._before.copy()
        for update, answer in self._told or ():
            update(self.model, answer)
        self._check_model()

    def step(self, body: Callable[[Step], None]) -> None:
        """`with index.step():` around several calls."""
        before = self._before = self.model
        self.model = before.copy()
        told: list[tuple[Update, Answer]] = []
        self._counts = []
        self._lost = False

        def whole() -> None:
            self._told = told
            try:
                with self.up.step() as step:
                    body(step)
            finally:
                self._told = None
                self.model = before
            require(not self._lost, "a step whose answers hold no longer does not happen", self.name)
            after = [counts(answer) for _, answer in told]
            require(self._counts == after, "counts told in a step stay", (self.name, self._counts, after))

        self._run("step", whole, told, explicit=True)

    def _run(  # noqa: PLR0915 - every way a call can end, in one place
        self,
        title: str,
        do: Callable[[], None],
        told: Any,
        *,
        explicit: bool = False,
        resolving: bool = False,
        new_life: bool = False,
        unanswered: tuple[Update, Answer] | None = None,
    ) -> bool:
        """One call, whole: what came of it, and whether that is true. Returns whether it succeeded."""
        world = self.world
        landed, commits = len(self.landed), 0 if self.index is None else self.index.commits

        def new() -> int:
            """Commits of this call that are in the log; not one that an earlier life had given up."""
            return len([commit for commit in self.landed[landed:] if commit not in self.given_up])

        doubted = self.doubt is not None and not resolving
        was_over = self.over
        self.faults = 0
        if not resolving and not doubted:
            self.explicit, self.redecided = explicit, False
            self.said_ready = set()
            self.intents = []
        world.tell(f"{self.name}: {title} …")
        self.busy = True
        outcome, succeeded = "done", False
        try:
            do()
            succeeded = True
        except OutcomeUnknown as unknown:
            outcome = "OutcomeUnknown"
            require(not doubted, "nothing is sent while an outcome is unknown", title)
            if self.doubt is None or self.doubt.commit_id != unknown.commit_id:
                self._give_up()
                updates = tuple(told) or ((unanswered,) if unanswered else ())
                self.doubt = Doubt(unknown.commit_id, updates, not explicit and not new_life, new_life)
            require(new() <= 1, "a call lands once", title)
        except Unavailable:
            outcome = "Unavailable"
        except SessionOver as over:
            outcome = f"SessionOver: {over}"
            require(not self.alive_in_log() or self.up.session == 0, "who lives is not told that it is over", over)
            self.over = True
        except (Rejection, InvalidInput, Abandoned) as refused:
            outcome = f"{type(refused).__name__}: {refused}"
            require(explicit or not isinstance(refused, StepConflict), "a single call has no step conflict", refused)
        finally:
            self.busy = False
        world.marks[outcome.partition(":")[0]] += not succeeded
        world.tell(f"{self.name}: {title} -> {outcome if not told or not succeeded else [each[1] for each in told]}")
        if succeeded and not doubted and not resolving and self.index is not None:
            require(new() <= 1, "a call lands once", title)
            require(was_over or self.index.commits - commits == new(), "commits are counted", title)
        elif not succeeded and not resolving and not doubted and outcome != "OutcomeUnknown":
            require(new() == 0, "what was refused is not in the log", (title, outcome))
        if succeeded:
            for update, answer in told:
                update(self.model, answer)
            world.marks[title.partition(" ")[0].partition("(")[0]] += 1
        self.check()
        if explicit and not succeeded and self.usable:
            self._check_forgotten()
        return succeeded

    # --- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """This replica is the one state of its position, and what was told holds."""
        if self.index is None:
            return
        position = self.index.position
        require(self.index.digest() == self.world.digests[position], "one digest per position", (self.name, position))
        if self.usable:
            alive = self.index.inspect(
                lambda state: state.engines[self.engine].alive and state.engines[self.engine].session == self.up.session
            )
            if alive:
                self._check_model()

    def _check_model(self) -> None:
        index, model = self.up, self.model
        require(
            index.requests() == tuple(sorted(model.requests)), "requests are as told", (self.name, index.requests())
        )
        for name, held in model.requests.items():
            table, path = index.table(name), index.path_blocks(name)
            require(table == held.table, "tables are as told", (self.name, name, table, held.table))
            require(path == held.path, "paths are as told", (self.name, name, path, held.path))
        require(self._held_by_index() == sorted(model.held), "held blocks are as told", (self.name, model.held))

    def _check_forgotten(self) -> None:
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
        """At rest: the head of the log agrees with what was told."""
        if not self.usable or not self.alive_in_log():
            return
        ledger = self.world.ledger
        theirs = {name for engine, name in ledger.requests if engine == self.engine}
        require(theirs == self.model.requests.keys(), "the log has the requests that were told", (self.name, theirs))
        for name, held in self.model.requests.items():
            table = ledger.table(self.engine, name)
            require(table == held.table, "the log has the tables that were told", (self.name, name, table, held.table))
            path = b"".join(ledger.requests[self.engine, name].path)
            wanted = held.sequence.hashes[: len(path)]
            require(path == wanted, "a path holds what its tokens say", (self.name, name))
