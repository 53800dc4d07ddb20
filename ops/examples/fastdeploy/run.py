"""The example from its first process to its last proof, without a word to anybody.

Owns the order of things: engines join, serve, leave, read the log to its end; then the log is replayed by somebody who was
not there. `run_engines` does it with processes on a Redis, `run_single` in this process on a log in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import attrs

from events import connect
from events.log import LogConnection
from ops.demo.messages import Replicated
from ops.demo.proofs import Bytes, Proof, Replay, proofs, replay, tier_proofs
from ops.demo.tiers import left_behind
from ops.examples.fastdeploy.plug import EngineSpec, nothing_left_behind, plugged
from ops.examples.fastdeploy.processes import Done, Engines, Order
from ops.examples.fastdeploy.roles import DecodeSide, PrefillSide
from ops.examples.fastdeploy.serve import IDLE_S, STARVED_S, Served, Starved

Watch = Callable[[int], None]


@attrs.frozen
class Result:
    """Everything there is to report. `seconds`: of serving, from the order to the last release."""

    specs: tuple[EngineSpec, ...]
    served: tuple[Served, ...]
    replay: Replay
    proofs: tuple[Proof, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return all(proof.holds for proof in self.proofs)


@attrs.frozen
class RolesResult:
    """What came of the splitwise roles. `reused_tokens`: that the prefill engine did not compute again."""

    requests: int
    finished: int
    aborted: int
    sent: int
    unsent: int
    reused_tokens: int
    steps: int
    seconds: float
    proofs: tuple[Proof, ...]

    @property
    def ok(self) -> bool:
        return all(proof.holds for proof in self.proofs)


def run_engines(connection: LogConnection, specs: Sequence[EngineSpec], watch: Watch = lambda _ended: None) -> Result:
    """Engine processes that share an index on the server that `connection` and the specs' URL lead to.

    Raises:
        EngineDied: one of them did not come to its end; all are ended.
        Unavailable, CorruptState: the log cannot be replayed.
    """
    with nothing_left_behind(specs[0].index), Engines(specs) as engines:
        engines.ask(Order.JOIN, Done)
        began = time.monotonic()
        served = engines.ask(Order.SERVE, Served, watch)
        seconds = time.monotonic() - began
        engines.ask(Order.LEAVE, Done)
        replicas = engines.ask(Order.READ, Replicated)
        replayed = replay(connection.log(specs[0].index, follow=False))
    return _result(specs, served, replicas, replayed, seconds)


def run_single(spec: EngineSpec, watch: Watch = lambda _ended: None) -> Result:
    """One engine in this process, on a log in memory: no Redis, no second tier."""
    with connect("memory://") as connection, plugged(spec, connection) as plug:
        serving = plug.serving(spec.work.tasks(0, 1))
        served = serving.run(lambda: watch(serving.scheduler.counts.ended))
        plug.index.leave()
        replica = Replicated(plug.index.refresh(), plug.index.digest())
        replayed = replay(connection.log(spec.index, follow=False))
    return _result([spec], [served], [replica], replayed, served.seconds)


def run_roles(
    connection: LogConnection, prefill: EngineSpec, decode: EngineSpec, watch: Watch = lambda _n: None
) -> RolesResult:
    """A prefill engine and a decode engine, stepped in turn in this process, on the server of `connection`.

    Raises:
        Starved: neither of them got anywhere.
        Unavailable, CorruptState: as the managers.
    """
    index = prefill.index
    with nothing_left_behind(index):
        with plugged(prefill, connection) as one, plugged(decode, connection) as other:
            sender = PrefillSide(one, other.index.engine)
            receiver = DecodeSide(other, decode.work.tasks(0, 1), sender, decode.abort_every)
            began = time.monotonic()
            found, steps = _in_turn(sender, receiver, watch)
            seconds = time.monotonic() - began
            if not found:
                found = [*sender.checker.at_end(), *receiver.checker.at_end()]
            matched = one.index.inspect(lambda state: state.engines[one.index.engine].matched_tokens)
            one.index.leave()
            other.index.leave()
            replicas = [Replicated(each.index.refresh(), each.index.digest()) for each in (one, other)]
        replayed = replay(connection.log(index, follow=False))
    held = Bytes(receiver.model.computed.verified_blocks, receiver.model.computed.mismatches, prefill.block_bytes)
    ended = receiver.finished + receiver.aborted + receiver.failed
    left = left_behind(index)
    shown = [
        Proof("the contract held at every step", not found, "; ".join(found) or f"on both sides, {steps:,} times"),
        Proof("every request ended", ended == len(decode.work.requests), f"{ended:,} of {len(decode.work.requests):,}"),
        Proof(
            "no request was lost on the way", not receiver.failed, f"{sender.sent:,} sent, {receiver.failed:,} failed"
        ),
        *_of_the_log(replicas, replayed),
        Proof(
            "every block came with its bytes",
            not held.mismatches,
            f"{held.verified_blocks:,} blocks looked at, {held.mismatches:,} held something else",
        ),
        Proof("no shared memory is left", not left, ", ".join(left) or "workers are gone, and theirs"),
    ]
    return RolesResult(
        requests=len(decode.work.requests),
        finished=receiver.finished,
        aborted=receiver.aborted,
        sent=sender.sent,
        unsent=sender.unsent,
        reused_tokens=matched,
        steps=steps,
        seconds=seconds,
        proofs=tuple(shown),
    )


def _in_turn(sender: PrefillSide, receiver: DecodeSide, watch: Watch) -> tuple[list[str], int]:
    """Violations, and how many steps there were."""
    steps, ended, progressed = 0, -1, time.monotonic()
    while sender.busy or receiver.busy:
        found = [*receiver.step(), *sender.step()]
        steps += 1
        if receiver.model.computed.mismatches:
            found.append("a block came with other bytes")
        if found:
            return found, steps
        done = receiver.model.computed.generated_tokens + sender.model.computed.generated_tokens + sender.sent
        if done != ended:
            ended, progressed = done, time.monotonic()
            watch(receiver.finished + receiver.aborted)
        elif time.monotonic() - progressed > STARVED_S:
            raise Starved(f"neither side got anywhere for {STARVED_S:.0f} s: do the workers work?")
        else:
            time.sleep(IDLE_S)
            sender.index.refresh()
            receiver.index.refresh()
    return [], steps


def _result(
    specs: Sequence[EngineSpec],
    served: Sequence[Served],
    replicas: Sequence[Replicated],
    replayed: Replay,
    seconds: float,
) -> Result:
    shown = [*_contract(specs, served), *_of_the_log(replicas, replayed)]
    if specs[0].host_blocks:
        computed = [engine.computed for engine in served]
        held = Bytes(
            sum(one.verified_blocks for one in computed), sum(one.mismatches for one in computed), specs[0].block_bytes
        )
        left = left_behind(specs[0].index)
        shown += [
            *tier_proofs(replayed, held),
            Proof("no shared memory is left", not left, ", ".join(left) or "engines and workers are gone, and theirs"),
        ]
    return Result(tuple(specs), tuple(served), replayed, tuple(shown), seconds)


def _contract(specs: Sequence[EngineSpec], served: Sequence[Served]) -> list[Proof]:
    """What the engines themselves have seen."""
    found = [f"{spec.engine}: {each}" for spec, engine in zip(specs, served, strict=True) for each in engine.violations]
    tables = sum(engine.checked.tables for engine in served)
    states = sum(engine.checked.states for engine in served)
    asked, ended = len(specs[0].work.requests), sum(engine.counts.ended for engine in served)
    tries = sum(engine.counts.put_off for engine in served)
    written = sum(engine.put_off_commits for engine in served)
    return [
        Proof(
            "the contract held at every step",
            not found,
            "; ".join(found) or f"block tables looked at {tables:,} times, the whole state at {states:,} positions",
        ),
        Proof("every request ended", ended == asked, f"{ended:,} of {asked:,}: finished, aborted or refused"),
        Proof(
            "waiting wrote nothing to the log",
            written == 0,
            f"{written:,} commits" if written else f"a request in front did not fit {tries:,} times",
        ),
    ]


def _of_the_log(replicas: Sequence[Replicated], replayed: Replay) -> list[Proof]:
    """The demo's proofs. Here a replica is not always a process of its own."""
    return [
        attrs.evolve(proof, shown_by=proof.shown_by.replace("processes", "replicas"))
        for proof in proofs(replicas, replayed)
    ]
