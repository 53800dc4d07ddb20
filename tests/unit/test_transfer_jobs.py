"""Which commits a transfer excludes, and the job that rings the workers: in the commit that starts it, or not at all."""

from __future__ import annotations

import attrs
import pytest

from events import connect
from events.errors import InvalidInput
from events.facts import TransferStarted
from events.jobs import TransferJob, decode_job, encode_job
from events.log import EventLog, LogConnection
from events.ports import AppendReply, Base, Commit
from statecore import CacheIndex
from statecore.commands import Allocate, CancelTransfer, Command
from statecore.rejections import Rejection
from statecore.scopes import finish_touches, jobs_of, scopes_of
from tests.unit.given import Machine, bring_in, join, match


def scopes(machine: Machine, *commands: Command) -> tuple[str, ...]:
    return scopes_of(machine.state, "a", machine.do(*commands))


@pytest.fixture
def machine() -> Machine:
    """In the host: 1 2 3. In the GPU pool g: 7 8."""
    machine = Machine(join("a", host=6))
    machine.swap_out("a", 1, 2, 3)
    machine.cache("a", 7, 8)
    return machine


def test_a_transfer_depends_on_both_pools(machine: Machine) -> None:
    """Two engines take the same host block, or one evicts what the other is about to read."""
    both = ("engine:a", "pool:c", "pool:g")

    assert scopes(machine, match("a", "r", 1, 2, 3), bring_in("a", "r", 1, 2, 3)) == both
    assert scopes(machine, CancelTransfer("a", "a:1", "no")) == ("ends:a", *both), "it may have ended before this lands"
    machine.finish("a:1")
    assert scopes(machine, Allocate("a", None, 8)) == both


def test_a_finish_moves_what_it_takes_from() -> None:
    """A worker's result lands between a decision and its commit, and a block is dropped that was just matched."""
    out = TransferStarted("a:0", "swap_out", "a", None, 1, 0, 1, "g", ((0, 1),), "c", ((0, 1),))
    through = TransferStarted("a:0", "write_through", "a", None, 1, 0, 1, "g", ((0, 1),), "c", ((0, 1),))
    back = TransferStarted("a:0", "swap_in", "a", "r", 1, 0, 1, "c", ((0, 1),), "g", ((0, 1),))

    assert finish_touches(out) == (("leaving:g", "ends:a"), ("ends:a",))
    assert finish_touches(through) == (("ends:a",), ("ends:a",))
    assert finish_touches(back) == (("ends:a",), ("pool:g", "engine:a", "ends:a"))


def test_only_who_uses_what_is_leaving_depends_on_its_end() -> None:
    """E-08: a swap-out ends between a match of its source and the commit; whoever did not touch that is not disturbed."""
    machine = Machine(join("a", host=8))
    machine.cache("a", 1, 2)
    machine.cache("a", 7, 8)
    machine.do(Allocate("a", None, 8))

    assert [fact.source_blocks for fact in machine.started()] == [((0, 2),), ((2, 2),)]
    assert proposed(machine, match("a", "r", 1, 2)) == ("engine:a", "leaving:g", "pool:g")
    machine.finish("a:0")
    assert proposed(machine, match("a", "r", 1, 2)) == ("engine:a",), "a miss by now"
    machine.cache("a", 3)
    assert proposed(machine, match("a", "r", 3)) == ("engine:a", "pool:g")


def proposed(machine: Machine, command: Command) -> tuple[str, ...]:
    """The scopes of a commit that is not in the log yet."""
    facts = machine.replica.propose(command)
    assert not isinstance(facts, Rejection)
    found = scopes_of(machine.state, "a", facts)
    machine.replica.undo()
    return found


def test_each_start_rings_its_gpu_pool(machine: Machine) -> None:
    """E-51: a transfer begins that no worker hears of, or the wrong one does."""
    facts = machine.do(match("a", "r", 1, 2, 3), bring_in("a", "r", 1, 2, 3))
    facts += machine.do(Allocate("a", None, 4))

    jobs = jobs_of(machine.state, facts)

    assert [(job.pool, job.transfer) for job in jobs] == [("g", "a:1"), ("g", "a:2")]
    assert decode_job(jobs[0].body) == TransferJob(
        "a:1", "swap_in", "c", ((0, 3),), "g", ((2, 3),), 1, ("ends:a",), ("pool:g", "engine:a", "ends:a")
    )
    assert decode_job(jobs[1].body) == TransferJob(
        "a:2", "swap_out", "g", ((1, 1),), "c", ((3, 1),), 1, ("leaving:g", "ends:a"), ("ends:a",)
    )
    assert jobs_of(machine.state, machine.do(CancelTransfer("a", "a:1", "no"))) == ()


def test_every_rank_copies_its_shard_of_one_decision() -> None:
    """E-41: ranks that match on their own differ. Here none does: one decision, one finish when all have reported."""
    machine = Machine(attrs.evolve(join("a", host=6), tensor_parallel_size=3))
    machine.cache("a", 1, 2, 3)
    facts = machine.do(Allocate("a", None, 8))
    (job,) = jobs_of(machine.state, facts)
    machine.do(attrs.evolve(join("a", host=6), tensor_parallel_size=2))

    assert decode_job(job.body).ranks == 3
    assert machine.state.transfers["a:0"].ranks == 3, "a next life of another size changes nothing for those under way"


BODY = encode_job(TransferJob("a:0", "swap_out", "g", ((0, 2),), "c", ((4, 2),), 2, ("pool:g",), ()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        BODY[:-1],
        BODY.replace(b'"a:0"', b"5"),
        BODY.replace(b"[[0,2]]", b'"0-2"'),
        BODY.replace(b"[[0,2]]", b"[[0,2,3]]"),
        BODY.replace(b"[[0,2]]", b"[[0,0]]"),
        BODY.replace(b"[[0,2]]", b"[[-1,2]]"),
        BODY.replace(b"[[0,2]]", b"[[true,2]]"),
        BODY.replace(b'"ranks":2', b'"ranks":0'),
        BODY.replace(b'"ranks":2', b'"ranks":1.5'),
        BODY.replace(b'["pool:g"]', b"[1]"),
        BODY.replace(b'["pool:g"]', b"7"),
        BODY.replace(b'"kind"', b'"colour"'),
    ],
)
def test_a_job_that_is_none_is_refused(body: bytes) -> None:
    """A worker copies blocks it guessed."""
    assert body != BODY
    with pytest.raises(InvalidInput, match="a job"):
        decode_job(body)


# --- with the commit ------------------------------------------------------------------------------------------------


class Tap:
    """A log that remembers the commits it was asked to append."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.commits: list[Commit] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def append(self, commit: Commit, base: Base) -> AppendReply:
        self.commits.append(commit)
        return self._log.append(commit, base)


class TappedConnection:
    def __init__(self, memory: LogConnection) -> None:
        self._memory = memory
        self.taps: list[Tap] = []

    def log(self, index: str, *, follow: bool = True) -> Tap:
        self.taps.append(Tap(self._memory.log(index, follow=follow)))
        return self.taps[-1]


def test_jobs_go_out_with_the_commit_that_starts_them() -> None:
    """E-51: the decision is in the log and the job is not (or the other way round)."""
    connection = TappedConnection(connect("memory://"))
    index = CacheIndex(connection, name="i", engine="a", gpu_blocks=4, cpu_blocks=4, block_size=1)  # type: ignore[arg-type]
    with index.step():
        index.match("w", [1, 2, 3])
        index.allocate("w", 3)
        index.extend("w", ready=True)
        index.release("w")
    answer = index.allocate(None, 4)

    def crash() -> None:
        with index.step():
            index.cancel("a:0")
            index.match("again", [1, 2])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    commits = connection.taps[0].commits
    assert answer.waits_for == ("a:0",)
    assert [[job.transfer for job in commit.jobs] for commit in commits] == [[], [], ["a:0"]]


def test_a_transfer_started_and_cancelled_in_one_step() -> None:
    """E-12: the worker is never rung, nobody reports, and the blocks stay in quarantine for ever."""
    connection = TappedConnection(connect("memory://"))
    index = CacheIndex(connection, name="i", engine="a", gpu_blocks=4, cpu_blocks=4, block_size=1)  # type: ignore[arg-type]
    index.match("w", [1, 2, 3])
    index.allocate("w", 3)
    index.extend("w", ready=True)
    index.release("w")
    with index.step():
        index.allocate(None, 4)
        index.cancel("a:0", "on second thoughts")

    assert [job.transfer for job in connection.taps[0].commits[-1].jobs] == ["a:0"]
    assert index.poll("a:0").state == "cancelled"
