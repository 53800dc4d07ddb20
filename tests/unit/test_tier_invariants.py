"""The checker is checked, second tier: every broken promise of a transfer must be told; and no history breaks one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import attrs
import pytest

from events.facts import Fact, TransferStarted
from statecore.commands import Allocate, CancelTransfer, Command, Leave, MarkReady, Recycle, Release
from statecore.invariants import leaked_blocks, violations
from statecore.policy import Policy
from statecore.rejections import Rejection
from statecore.state import Copy, State
from tests.unit.given import Machine, bring_in, extend, join, match


def moving() -> State:
    """a:1 brings 1 2 3 into g (node 1) for r; 7 8 leave g by a:3 and a:4; a:2, which took one of them, is cancelled."""
    machine = Machine(join("a", host=8))
    machine.swap_out("a", 1, 2, 3)
    machine.cache("a", 7, 8)
    machine.fetch("a", "r", 1, 2, 3)
    machine.do(Allocate("a", None, 4))
    machine.do(CancelTransfer("a", "a:2", "no"))
    machine.do(Allocate("a", None, 5))
    return machine.state


def copies(state: State, *, filling: bool = False, leaving: bool = False) -> list[Copy]:
    every = [copy for node in state.nodes.values() for copy in node.copies.values()]
    return [copy for copy in every if (not filling or copy.filling) and (not leaving or copy.leaving)]


PLANTED: dict[str, tuple[Callable[[State], object], str]] = {
    "source unpinned": (
        lambda s: setattr(copies(s, leaving=True)[0], "refs", 0),
        "counts 0 refs, 1 requests cover it",
    ),
    "source pending": (lambda s: setattr(copies(s, leaving=True)[0], "pending", "a"), "which is not ready"),
    "source gone": (lambda s: s.transfers["a:1"].node.copies.pop("c"), "reads node 1, which is not ready"),
    "destination filled by nobody": (
        lambda s: setattr(s.transfers["a:1"].node.copies["g"], "filling", None),
        "'a:1' does not fill node 1",
    ),
    "destination of another": (
        lambda s: setattr(s.transfers["a:1"].node.copies["g"], "filling", "a:3"),
        "is filled by 'a:3', which does not fill it",
    ),
    "filled by one that is over": (
        lambda s: setattr(s.transfers["a:1"].node.copies["g"], "filling", "a:0"),
        "is filled by 'a:0', which does not fill it",
    ),
    "filled by one that is cancelled": (
        lambda s: setattr(s.transfers["a:1"].node.copies["g"], "filling", "a:2"),
        "is filled by 'a:2', which does not fill it",
    ),
    "ready and filled": (
        lambda s: setattr(s.transfers["a:1"].node.copies["g"], "pending", None),
        "is filled by 'a:1', which does not fill it",
    ),
    "leaving by one that is over": (
        lambda s: setattr(copies(s, leaving=True)[0], "leaving", "a:0"),
        "leaves by 'a:0', which does not take it",
    ),
    "leaving by one that comes": (
        lambda s: setattr(copies(s, leaving=True)[0], "leaving", "a:1"),
        "leaves by 'a:1', which does not take it",
    ),
    "a transfer that is forgotten": (lambda s: s.transfers.__delitem__("a:1"), "is filled by 'a:1'"),
    "a cut in the wrong place": (
        lambda s: setattr(s.transfers["a:1"], "start", 1),
        "'a:1' does not begin and end with runs",
    ),
    "quarantine lost": (lambda s: setattr(s.transfers["a:2"], "quarantine", ()), "'a:2' lost quarantined blocks"),
    "quarantine given away": (
        lambda s: s.pools["c"].free.add(s.transfers["a:2"].quarantine),
        "is in two places",
    ),
    "quarantine nowhere": (
        lambda s: s.transfers.__delitem__("a:2"),
        "is nowhere",
    ),
}


def test_a_sound_state_is_sound() -> None:
    """The checker cries wolf while blocks move."""
    state = moving()

    assert violations(state) == []
    assert leaked_blocks(state) == 0
    assert (len(copies(state, filling=True)), len(copies(state, leaving=True))) == (3, 2)
    assert {transfer.id for transfer in state.transfers.values() if transfer.cancelled} == {"a:2"}


@pytest.mark.parametrize(("plant", "sentence"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_told(plant: Callable[[State], object], sentence: str) -> None:
    """A broken transfer passes the check."""
    state = moving()

    plant(state)

    assert any(sentence in told for told in violations(state)), violations(state)


def test_a_copy_without_one_above_is_told() -> None:
    """E-16: blocks nobody can reach."""
    machine = Machine(join("a", host=8))
    machine.cache("a", 1, 2, 3)
    machine.cache("a", 1, 2)
    upper = machine.state.nodes[1].parent
    assert upper is not None
    del upper.copies["g"]

    assert any("the copies of a pool form a prefix" in told for told in violations(machine.state))


# --- histories ------------------------------------------------------------------------------------------------------

PATHS = ((1, 2, 3, 4), (1, 2, 3, 5), (1, 2), (1, 2, 6, 7, 8), (9, 10, 11), (9, 10, 12, 13))
SETTINGS: dict[str, tuple[str, Policy]] = {
    "pools of their own": ("h", Policy()),
    "one GPU pool": ("g", Policy()),
    "write-through": ("h", Policy("write_through")),
    "watermarks": ("h", Policy(free_low=30, free_high=60)),
    "everything": ("g", Policy("write_through", 30, 60)),
}


@attrs.define
class Chaos:
    """Random calls of two engines, random ends of their transfers; every state in between must be sound."""

    machine: Machine
    random: Random
    prompts: dict[tuple[str, str], tuple[int, ...]] = attrs.Factory(dict)

    def commands(self, engine: str) -> list[Command]:
        """One call, as `CacheIndex` would make it of commands."""
        state, pick = self.machine.state.engines[engine], self.random
        requests = sorted(state.requests)
        held = tuple(state.held[state.gpu_pool]) if state.gpu_pool in state.held else ()
        calls: list[list[Command]] = [
            self._match(engine),
            self._match(engine),
            [Allocate(engine, pick.choice([*requests, None]), pick.randrange(1, 5))],
            [Recycle(engine, None, held)],
        ]
        if requests:
            request = pick.choice(requests)
            prompt = self.prompts[engine, request]
            lacking = len(prompt) - state.requests[request].path_blocks
            compute: list[Command] = [Allocate(engine, request, lacking)] if lacking else []
            calls += [[extend(engine, request, *prompt[: pick.randrange(1, len(prompt) + 1)])]]
            calls += [[*compute, extend(engine, request, *prompt)] for _ in range(3)]
            calls += [[MarkReady(engine, request)]]
            for _ in range(3):
                calls.append([Release(engine, pick.choice(requests))])
        if self.machine.state.transfers and pick.random() < 0.3:
            calls.append([CancelTransfer(engine, pick.choice(list(self.machine.state.transfers)), "no")])
        if pick.random() < 0.01:
            return [join(engine, pool=state.gpu_pool, blocks=None, host=5)]
        return pick.choice(calls)

    def _match(self, engine: str) -> list[Command]:
        prompt, limit = self.random.choice(PATHS), self.random.choice([None, None, 1, 2, 3])
        request = f"r{len(self.prompts)}"
        self.prompts[engine, request] = prompt
        return [match(engine, request, *prompt, limit=limit), bring_in(engine, request, *prompt, limit=limit)]

    def step(self, engine: str) -> None:
        machine, before = self.machine, self.machine.replica.digest()
        facts: list[Fact] = []
        for _ in range(self.random.randrange(1, 4)):
            for command in self.commands(engine):
                decided = machine.replica.propose(command)
                if not isinstance(decided, Rejection):
                    facts += decided
                machine.must_be_sound()
        machine.replica.undo()
        assert machine.replica.digest() == before, "an undone step left a trace"
        machine.must_be_sound()
        if facts and self.random.random() < 0.9:
            machine.apply(*facts)

    def workers(self) -> None:
        while self.machine.state.transfers and self.random.random() < 0.5:
            transfer = self.random.choice(list(self.machine.state.transfers))
            self.machine.finish(transfer, ok=self.random.random() < 0.6)


@pytest.mark.parametrize(("pool", "policy"), SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("seed", range(6))
def test_no_history_breaks_an_invariant(seed: int, pool: str, policy: Policy) -> None:
    """E-05, E-09, E-13, E-32: some order of calls and results loses a block, or stops every replica."""
    machine = Machine(
        join("a", blocks=7, host=5, policy=policy), join("b", pool=pool, blocks=7 if pool == "g" else 5, host=5)
    )
    chaos = Chaos(machine, Random(seed))
    for _ in range(250):
        chaos.step(chaos.random.choice("ab"))
        chaos.workers()
    assert any(isinstance(fact, TransferStarted) for fact in machine.seen)

    machine.do(Leave("a"), Leave("b"))
    for transfer in list(machine.state.transfers):
        machine.finish(transfer)
    for found in machine.state.pools.values():
        assert found.free.total + found.unpinned == found.blocks, "nobody lives, and something is pinned"
