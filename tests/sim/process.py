"""One simulated engine process: a real `CacheIndex`, and what it was told so far.

Owns the caller's side of every promise: an answer given holds; a refusal left no trace; what is unknown is found out
truthfully; a life that is over changes nothing. The model is built from answers only, never from the index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from events.errors import InvalidInput, OutcomeUnknown, RolledBack, Unavailable
from statecore.index import CacheIndex
from statecore.life import Life
from statecore.policy import Policy
from statecore.rejections import Rejection, SessionOver, StepConflict
from tests.sim.accounts import Intent, require
from tests.sim.faults import SNAPSHOT_FAULTS, Connected, FaultyTransport
from tests.sim.model import BLOCK_SIZE_OF_ALL, Abandoned, Answer, Doubt, Model, Update, counts
from tests.sim.told import Slot, Told
from tests.sim.world import World

if TYPE_CHECKING:
    from statecore.step import Step


class Process(Told):
    """One process with one `CacheIndex`, which may have to be started several times.

    Attributes:
        storm, rush: what happens in between: somebody else is faster; the workers get on.
        busy: in the middle of a call; nobody may call it meanwhile.
        before: what it was told before the step at hand.
        landed: ids of its commits that are in the log.
        faults, explicit, redecided, said_ready, intents: about the call at hand, for the transport and the judge.
    """

    def __init__(self, world: World, slot: Slot, nonce: str) -> None:
        super().__init__(world, slot, nonce)
        self.busy = False
        self.storm = False
        self.rush = False
        self.landed: list[str] = []
        self.given_up: set[str] = set()
        self.faults = 0
        self.explicit = False
        self.redecided = False
        self.said_ready: set[str] = set()
        self.intents: list[Intent] = []
        self.before = Model()
        self.snapshot_faults: tuple[tuple[int, str], ...] = SNAPSHOT_FAULTS
        self._told: list[tuple[Update, Answer]] | None = None
        self._lost = False
        self._counts: list[object] = []

    @property
    def stepping(self) -> bool:
        """Whether a step is going on."""
        return self._told is not None

    @property
    def doing(self) -> str:
        return "at join" if self.index is None or not self.index.session else "in mid-life"

    def others_act(self) -> None:
        """Nobody: what it asks of snapshots, it asks in the middle of other things."""

    @property
    def in_step(self) -> bool:
        """Whether something was told in the step at hand."""
        return bool(self._told)

    # --- life -------------------------------------------------------------------------------------------------------

    def start(
        self,
        interlude: Callable[[Process], None],
        *,
        blocks: int | None = None,
        pool: str | None = None,
        block_size: int = BLOCK_SIZE_OF_ALL,
        host_blocks: int | None = None,
        policy: Policy | None = None,
    ) -> None:
        """Construct the index: join. It may fail, and then there is no index."""
        transport = FaultyTransport(self.world, self, interlude)

        connected = Connected(self.world, transport, self.nonce)

        def construct() -> None:
            self.index = CacheIndex(
                connected,
                name="sim",
                engine=self.engine,
                gpu_pool=self.pool if pool is None else pool,
                gpu_blocks=blocks,
                block_size=block_size,
                cpu_pool=self.slot.host or None,
                cpu_blocks=host_blocks,
                tensor_parallel_size=self.world.contents.ranks,
                policy=policy,
                memory_survives=self.slot.survives,
                rejoin_automatically=self.slot.rejoins,
            )
            self.log = connected.made

        self._run("join", construct, ())
        self.doubt = None

    def rejoin(self) -> None:
        self.over = False
        self._give_up()
        self.stream.forget()  # it waits for its device first
        self.device_ended = False
        if not self._run("rejoin", self.up.rejoin, ((_begin_again, None),), new_life=True) and self.doubt is None:
            self.over = True  # neither the old life nor a new one

    def refresh(self) -> None:
        """Reading on may find what is in doubt, and then it stands."""

        def read() -> None:
            self.up.refresh()

        self._run("refresh", read, ())
        doubt = self.doubt
        base = self.base()
        if doubt is not None and self.world.stands(base) and doubt.commit_id in self.world.chain[1 : base.position + 1]:
            self.world.marks["unknown -> read"] += 1
            self._stands(doubt)

    def leave(self) -> None:
        """Whoever closes without an error has left, whatever was unknown before."""
        doubted = self.doubt is not None
        self.computed()
        if self._run("close", self.up.close, (), resolving=doubted):
            told = (
                self.over or self._life().corrupt is not None
            )  # that its history is gone, or may be: the keeper ends its life
            require(told or not self.alive_in_log(), "who closed has left", self.name)
            self.over = True
        if doubted:
            self.over = True  # nobody waits for the old answer any more
            self._give_up()

    def clear(self) -> None:
        """Two commits, or one, or none: it pauses service too."""
        self.computed()
        self._run("clear", lambda: self.up.clear("new weights", 0.0), (), commits_max=2)

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
            self.learn()
        self.check()
        self.schedule()

    # --- calls ------------------------------------------------------------------------------------------------------

    def call(self, title: str, do: Callable[[], Answer], update: Update, *, of: str | None = None) -> None:
        """One call of the index, alone or inside the step at hand.

        Args:
            of: the request it speaks of, if it lives: what earlier calls scheduled for it has been computed by then.
        """
        if self._told is None:
            if of is not None:
                self.computed_for(of)
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
        self.model = self.before.copy()
        for update, answer in self._told or ():
            update(self.model, answer)
        self.check_model()

    def step(self, body: Callable[[Step], None]) -> None:
        """`with index.step():` around several calls."""
        begins = self._may_begin_by_itself()
        before = self.before = self.model
        self.model = before.copy()
        told: list[tuple[Update, Answer]] = []
        self._counts = []
        self._lost = False
        self.computed()

        def whole() -> None:
            self._told = told
            try:
                with self.up.step() as step:
                    if begins:  # it began a new life by itself, and knows nothing
                        before.requests.clear()
                        before.held.clear()
                        self.model = before.copy()
                    body(step)
            finally:
                self._told = None
                self.model = before
            require(not self._lost, "a step whose answers hold no longer does not happen", self.name)
            after = [counts(answer) for _, answer in told]
            require(self._counts == after, "counts told in a step stay", (self.name, self._counts, after))

        self._run("step", whole, told, explicit=True)

    def _run(  # noqa: PLR0912, PLR0915 - every way a call can end, in one place
        self,
        title: str,
        do: Callable[[], None],
        told: Any,
        *,
        explicit: bool = False,
        resolving: bool = False,
        new_life: bool = False,
        commits_max: int = 1,
        unanswered: tuple[Update, Answer] | None = None,
    ) -> bool:
        """One call, whole: what came of it, and whether that is true. Returns whether it succeeded."""
        world = self.world
        before, commits = set(self.landed), 0 if self.index is None else self.index.commits
        lives = world.server.lives
        by_itself = title != "refresh" and not resolving and not new_life and self._may_begin_by_itself()
        commits_max += by_itself

        def new() -> int:
            """Commits of this call that are in the log; not one that an earlier life had given up."""
            left_behind = {self.doubt.commit_id} if by_itself and self.doubt is not None else set()
            return len(
                {commit for commit in self.landed if commit in world.landed} - before - self.given_up - left_behind
            )

        doubted = self.doubt is not None and not resolving and not by_itself
        was_over = self.over
        self.faults = 0
        if not resolving and not doubted:
            self.explicit, self.redecided = explicit, False
            self.said_ready = set()
            self.intents = []
        world.tell(f"{self.name}: {title} …")
        self.busy = True
        outcome, succeeded, forgotten = "done", False, False
        try:
            do()
            succeeded = True
        except OutcomeUnknown as unknown:
            outcome = "OutcomeUnknown"
            require(not doubted, "nothing is sent while an outcome is unknown", title)
            if self.doubt is None or self.doubt.commit_id != unknown.commit_id:
                self._give_up()
                updates = tuple(told) or ((unanswered,) if unanswered else ())
                if by_itself and self._life().end is not None:
                    updates = ((_begin_again, None),)
                beginning = new_life or (by_itself and self._life().end is not None)
                self.doubt = Doubt(unknown.commit_id, updates, not explicit and not beginning, beginning)
            require(new() <= commits_max, "a call lands once", title)
        except Unavailable:
            outcome = "Unavailable"
        except SessionOver as over:
            outcome = f"SessionOver: {over}"
            before_rollback = world.server.lives > 0 and bool(
                self.world.vanished
            )  # it was told so by a history that is gone
            forgotten = "has forgotten" in over.reason and self.world.log.head().first > 1
            lives = self.alive_in_log() and self.up.session != 0
            require(forgotten or before_rollback or not lives, "who lives is not told that it is over", over)
            self.world.marks["the log has forgotten what became of a commit"] += forgotten
            self._is_told_why(over)
            self._ends()
        except RolledBack as error:
            outcome = f"RolledBack: {error}"
            self._is_rolled_back(error)
            self._ends()
        except (Rejection, InvalidInput, Abandoned) as refused:
            outcome = f"{type(refused).__name__}: {refused}"
            require(explicit or not isinstance(refused, StepConflict), "a single call has no step conflict", refused)
        finally:
            self.busy = False
        world.marks[outcome.partition(":")[0]] += not succeeded
        world.tell(f"{self.name}: {title} -> {outcome if not told or not succeeded else [each[1] for each in told]}")
        if succeeded and not doubted and not resolving and self.index is not None:
            require(new() <= commits_max, "a call lands once", title)
            calm = lives == world.server.lives
            require(was_over or not calm or self.index.commits - commits == new(), "commits are counted", title)
        elif not succeeded and not resolving and not doubted and outcome != "OutcomeUnknown":
            # A commit may take so long to land that the life ends meanwhile, or that the log forgets: then the caller hears
            # of that alone.
            untold = forgotten or not self.alive_in_log()
            landed_and_over = outcome.startswith("SessionOver") and untold
            require(new() < commits_max + landed_and_over, "what was refused is not in the log", (title, outcome))
        if by_itself and self._life().end is None:
            world.marks["rejoined by itself"] += 1
            self.over = False
            if outcome != "OutcomeUnknown":
                self._give_up()
            self.model.requests.clear()
            self.model.held.clear()
            self.stream.written.clear()
        if succeeded:
            for update, answer in told:
                update(self.model, answer)
            world.marks[title.partition(" ")[0].partition("(")[0]] += 1
        self.check()
        if explicit and not succeeded and self.usable:
            self.check_forgotten()
        if succeeded and title not in ("refresh", "close"):
            self.schedule()
        return succeeded

    def _life(self) -> Life:
        return self.up._session._life

    def _may_begin_by_itself(self) -> bool:
        return self.slot.rejoins and self.index is not None and self._life().may_follow

    def _ends(self) -> None:
        """It knows that its life is over: nobody waits for an old answer any more."""
        if not self.over:
            self.over = True
            self._give_up()

    def _is_told_why(self, over: SessionOver) -> None:
        """Who was declared lost by somebody else hears the reason, if the log still has it."""
        author, reason, _ = self.world.ended.get((self.engine, over.session), ("", "", 0))
        if author == "keeper" and not self.over and not self.has_vanished():
            self.world.marks["woken zombie fenced"] += 1
            self.world.marks["woken zombie fenced, and told why"] += over.reason == reason
            told = over.reason in (reason, "") or over.reason.startswith(
                ("it was declared lost", "the log has forgotten")
            )  # heard of it by its lease
            require(told, "who was declared lost is told why", (over.reason, reason))

    def _is_rolled_back(self, error: RolledBack) -> None:
        """It must be true; or it cannot be known, because the log has forgotten the proof and its server has begun anew."""
        if self.over:
            return  # told before, and judged by what the log held then
        base, first = self.base(), self.world.log.head().first
        unknowable = base.position + 1 < first and self.world.server.lives > 0
        require(
            self.index is None or self.has_vanished() or unknowable,
            "whose history stands is not told otherwise",
            (self.name, error),
        )
        self.world.marks["rolled back, or too old to tell"] += not self.has_vanished()


def _begin_again(model: Model, _: Answer) -> None:
    """A new life stands: of the old one nothing is left."""
    model.requests.clear()
    model.held.clear()
