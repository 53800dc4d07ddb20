"""What a report does, on every backend: once, all ranks or none, at whatever the head is."""

from __future__ import annotations

import threading
import time

import pytest

from events import codec, limits
from events.errors import CorruptState, InvalidInput, Unavailable
from events.facts import HistoryLost, TransferFinished
from events.job_ports import DUPLICATE, FINISHED, GONE, INTERRUPTED, REPORTED, UNSEATED, FinishReply
from events.jobs import encode_job
from events.keys import ACKS_DONE, HEAD_LAYOUT, IndexKeys, engine_scope, pool_scope
from events.log import LogConnection
from events.ports import Appended, Base, Commit, Conflicted, Diverged, Job
from tests.contract.commits import dump
from tests.jobs.given import (
    HOST,
    POOL,
    client_of,
    commit,
    finishes,
    index_with,
    job,
    lose_stream,
    lossy_worker,
    seated,
    taken,
    worker,
)

LOST = Base(9, "c9")
DONE = TransferFinished(transfer="e0:0", ok=True, reason="")


def test_the_only_rank_finishes(connection: LogConnection, index_name: str) -> None:
    """Otherwise nobody would learn that the bytes are there.

    Given a job for one rank, when it reports, then the log holds one TransferFinished, linked to what is before it,
    by an author that people recognise; the job is gone from the stream.
    """
    log = index_with(connection, index_name, job())
    mine = seated(connection, index_name)

    reply = mine.finish(taken(mine), ok=True)

    assert reply == FinishReply(FINISHED, position=2, failure="", acked=True)
    first, last = log.read(0)
    assert last.facts == (DONE,)
    assert (last.previous, last.engine, last.session) == (first.id, f"worker:{POOL}", 0)
    assert last.id.startswith("finish:e0:0:")
    assert log.head().position == 2
    assert connection.doorbell(index_name).ringing(POOL) == frozenset()
    assert mine.take(0.0) is None


def test_every_rank_has_to_report(connection: LogConnection, index_name: str) -> None:
    """Otherwise a block would be used of which only some shards are there (E-31, E-41).

    Given a job for four ranks, when three report, then nothing is in the log; when the last one does, it is, once.
    """
    log = index_with(connection, index_name, job(ranks=4))
    workers = [seated(connection, index_name, rank, 4) for rank in range(4)]
    deliveries = [taken(each) for each in workers]

    for number in (2, 0, 3):
        assert workers[number].finish(deliveries[number], ok=True) == FinishReply(REPORTED)
        assert finishes(log) == []
        assert connection.doorbell(index_name).ringing(POOL) == {"e0:0"}
    assert workers[1].finish(deliveries[1], ok=True).outcome == FINISHED

    assert finishes(log) == [DONE]


def test_reporting_twice_changes_nothing(connection: LogConnection, index_name: str) -> None:
    """Otherwise a transfer would have its effect twice (E-32).

    Given a finished transfer, when each rank reports again, well or badly, then each hears "duplicate" with the
    position of the finish, and the log is as it was.
    """
    log = index_with(connection, index_name, job(ranks=2))
    workers = [seated(connection, index_name, rank, 2) for rank in range(2)]
    deliveries = [taken(each) for each in workers]
    workers[0].finish(deliveries[0], ok=True)
    assert workers[0].finish(deliveries[0], ok=True) == FinishReply(REPORTED, acked=False)
    workers[1].finish(deliveries[1], ok=True)

    for each, delivery in zip(workers, deliveries, strict=True):
        assert each.finish(delivery, ok=True) == FinishReply(DUPLICATE, position=2, acked=False)
        assert each.finish(delivery, ok=False, reason="late") == FinishReply(DUPLICATE, position=2, acked=False)

    assert finishes(log) == [DONE]
    assert log.head().position == 2


@pytest.mark.usefixtures("eager")
def test_of_two_workers_on_one_job_only_the_seated_ones_report_counts(
    connection: LogConnection, index_name: str
) -> None:
    """Otherwise a worker that was slow would finish a transfer while the one that took its seat still writes its blocks.

    Given a sibling that took over seat and job, when the slow one reports, before the sibling and after it, then it hears
    "unseated" and nothing is written; the sibling's report finishes.
    """
    log = index_with(connection, index_name, job())
    slow = seated(connection, index_name, name="slow")
    delivery = taken(slow)
    sibling = seated(connection, index_name, name="sibling")
    time.sleep(limits.JOB_IDLE_S * 1.5)
    again = taken(sibling)

    before = dump(connection, index_name)
    assert slow.finish(delivery, ok=True) == FinishReply(UNSEATED, acked=False)
    assert dump(connection, index_name) == before
    assert sibling.finish(again, ok=True) == FinishReply(FINISHED, position=2)
    assert slow.finish(delivery, ok=False, reason="late") == FinishReply(UNSEATED, acked=False)

    assert finishes(log) == [DONE]


def test_who_never_took_the_seat_reports_nothing(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker that was started beside the launcher's would count as one of its ranks.

    Given a job, when a worker that has not entered reports it, then "unseated", and the job is still on its list.
    """
    log = index_with(connection, index_name, job())
    stranger = worker(connection, index_name)

    assert stranger.finish(taken(stranger), ok=True).outcome == UNSEATED
    assert finishes(log) == []
    stranger.enter()
    stranger.again()
    assert stranger.finish(taken(stranger), ok=True).outcome == FINISHED


def test_one_failing_rank_fails_the_transfer_with_its_reason(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine would compute on with shards that never arrived, or not learn why (E-12).

    Given ranks 0 and 2 of three failed, when the last rank reports well, then the transfer failed, for both reasons.
    """
    log = index_with(connection, index_name, job(ranks=3))
    workers = [seated(connection, index_name, rank, 3) for rank in range(3)]
    deliveries = [taken(each) for each in workers]
    workers[0].finish(deliveries[0], ok=False, reason="no memory")
    workers[2].finish(deliveries[2], ok=False)

    reply = workers[1].finish(deliveries[1], ok=True)

    failure = "rank 0: no memory; rank 2: no reason given"
    assert reply == FinishReply(FINISHED, position=2, failure=failure)
    assert finishes(log) == [TransferFinished("e0:0", ok=False, reason=failure)]


def test_reasons_are_bounded(connection: LogConnection, index_name: str) -> None:
    """Otherwise a traceback of every rank would go into the log.

    Given two ranks that fail with long reasons, when reported, then the fact's reason has the length that is allowed.
    """
    log = index_with(connection, index_name, job(ranks=2))
    for rank in range(2):
        each = seated(connection, index_name, rank, 2)
        each.finish(taken(each), ok=False, reason="é" * 10_000)

    assert [len(fact.reason) for fact in finishes(log)] == [limits.REASON_LENGTH_MAX]


def test_a_ranks_first_report_counts(connection: LogConnection, index_name: str) -> None:
    """Otherwise an outcome could turn round while another rank is writing it down.

    Given rank 0 failed and later carries the job out well, when rank 1 reports, then the transfer failed; and the
    other way round it is done.
    """
    log = index_with(connection, index_name, job("e0:0", ranks=2), job("e0:1", ranks=2))
    first, second = (seated(connection, index_name, rank, 2) for rank in range(2))
    for first_word in (False, True):
        delivery = taken(first)
        first.finish(delivery, ok=first_word, reason="broken")
        first.finish(delivery, ok=not first_word, reason="broken later")
        second.finish(taken(second), ok=True)

    assert [(fact.ok, fact.reason) for fact in finishes(log)] == [(False, "rank 0: broken"), (True, "")]


@pytest.mark.parametrize("ok", [True, False])
@pytest.mark.parametrize("lost", [1, 2, 5])
def test_a_lost_reply_is_asked_for_again(connection: LogConnection, index_name: str, ok: bool, lost: int) -> None:
    """Otherwise a broken connection would finish a transfer twice, or leave its worker in doubt.

    Given the replies to a report are lost, when it is repeated, then it went well and the log holds one finish.
    """
    log = index_with(connection, index_name, job())
    mine = lossy_worker(connection, index_name, *["report"] * lost)

    reply = mine.finish(taken(mine), ok=ok, reason="" if ok else "broken")

    assert reply.position == 2
    assert reply.outcome in {FINISHED, DUPLICATE}
    assert [fact.ok for fact in finishes(log)] == [ok]


def test_a_report_that_cannot_be_delivered_leaves_the_job(connection: LogConnection, index_name: str) -> None:
    """Otherwise a transfer would hang because Redis was away while its worker reported.

    Given a server that does not answer until we give up, when it is back, then the worker gets its job again.
    """
    index_with(connection, index_name, job("e0:0", ranks=2), job("e0:1", ranks=2))
    mine = lossy_worker(connection, index_name, *["report"] * limits.RETRY_ATTEMPTS_MAX, ranks=2)
    delivery = taken(mine)
    with pytest.raises(Unavailable):
        mine.finish(delivery, ok=True)

    following = taken(mine)

    # The report had arrived: the job is off the list, and what follows is the next one.
    assert following.job.transfer == "e0:1"
    assert mine.finish(delivery, ok=True) == FinishReply(REPORTED, acked=False)


def test_a_finish_moves_the_scopes_of_its_outcome(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine could decide on a copy that a finish has just taken away, or conflict for nothing.

    Given a transfer that touches one pool when it goes well and another when it fails, when engines with an older
    base decide on them, then only the decision on the touched pool is refused, and the reply brings the finish.
    """
    log = index_with(connection, index_name, job("e0:0"), job("e0:1"))
    mine = seated(connection, index_name)
    base = Base(1, "c1")
    mine.finish(taken(mine), ok=True)
    refused = log.append(commit("c2", pools=[POOL], engine="e1"), base)
    assert refused == Conflicted(pool_scope(POOL), log.read(1))
    fine = log.append(commit("c3", pools=[HOST], engine="e1"), base)
    assert isinstance(fine, Appended)
    assert fine.missed == log.read(1)[:1]

    base = Base(fine.position, "c3")
    mine.finish(taken(mine), ok=False, reason="broken")
    assert isinstance(log.append(commit("c4", pools=[POOL], engine="e1"), base), Appended)
    assert isinstance(log.append(commit("c5", pools=[HOST], engine="e0"), base), Conflicted)


def test_a_finish_asks_no_fence(connection: LogConnection, index_name: str) -> None:
    """Otherwise a transfer of an engine that died would never end, and its blocks stay reserved.

    Given the engine that started a transfer is fenced, when its worker reports, then the finish is appended.
    """
    log = index_with(connection, index_name, job())
    scopes = (engine_scope("e0"),)
    fence = Commit("f", "e1", 1, (DONE,), checks=scopes, touches=scopes, fences=(("e0", 2), (f"worker:{POOL}", 9)))
    log.append(fence, Base(1, "c1"))
    mine = seated(connection, index_name)

    assert mine.finish(taken(mine), ok=True).position == 3


def test_engines_and_workers_write_at_the_same_time(connection: LogConnection, index_name: str) -> None:
    """Otherwise positions would collide, or a finish would break the chain of an engine's commits.

    Given 40 transfers of two ranks, when both ranks report while an engine appends, then every transfer has one
    finish, and the log has no gap and no broken link.
    """
    jobs = [job(f"e0:{number}", ranks=2) for number in range(40)]
    log = index_with(connection, index_name, *jobs)
    finished: list[str] = []

    def work(rank: int) -> None:
        mine = seated(connection, index_name, rank, 2)
        finished.extend([mine.finish(taken(mine), ok=True).outcome for _ in jobs])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    base = Base(1, "c1")
    for number in range(40):
        reply = log.append(commit(f"d{number}"), base)
        assert isinstance(reply, Appended)
        base = Base(reply.position, f"d{number}")
    for thread in threads:
        thread.join(timeout=30)

    entries = log.read(0)
    assert sorted(finished) == [FINISHED] * 40 + [REPORTED] * 40
    assert [entry.position for entry in entries] == list(range(1, 82))
    assert [entry.previous for entry in entries] == ["", *[entry.id for entry in entries[:-1]]]
    assert sorted(fact.transfer for fact in finishes(log)) == sorted(each.transfer for each in jobs)


def test_a_job_that_was_rung_again_has_one_effect(connection: LogConnection, index_name: str) -> None:
    """Otherwise putting back a job that was not lost after all would finish its transfer twice.

    Given a worker that holds a job while it is lost and rung again, when it reports both, then there is one finish.
    """
    log = index_with(connection, index_name, job())
    mine = seated(connection, index_name)
    before = taken(mine)
    lose_stream(connection, index_name, trimmed=True)
    assert connection.doorbell(index_name).ring(Job(POOL, "e0:0", encode_job(job())))
    again = taken(mine)

    assert mine.finish(before, ok=True).outcome == FINISHED
    assert mine.finish(again, ok=True).outcome == DUPLICATE

    assert finishes(log) == [DONE]
    assert connection.doorbell(index_name).ringing(POOL) == frozenset()


def test_an_index_that_is_gone_ends_the_job(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker would begin a log with a finish, and every engine would refuse to read it.

    Given a job of an index without a log, when it is reported, then it is off the list and there is still no log.
    """
    assert connection.doorbell(index_name).ring(Job(POOL, "e0:0", encode_job(job())))
    mine = seated(connection, index_name)

    assert mine.finish(taken(mine), ok=True) == FinishReply(GONE)

    assert connection.log(index_name).read(0) == ()
    assert seated(connection, index_name).take(0.0) is None


# --- keys that somebody damaged -------------------------------------------------------------------------------------


def test_a_finish_does_not_begin_a_log_in_its_middle(stored: LogConnection, index_name: str) -> None:
    """Otherwise a finish after somebody's DEL would make a log without a beginning.

    Given the log deleted under its head, when a transfer is reported, then "gone", and there is no log.
    """
    index_with(stored, index_name, job())
    client_of(stored).delete(IndexKeys.of(index_name).log)
    mine = seated(stored, index_name)

    assert mine.finish(taken(mine), ok=True).outcome == GONE
    assert not client_of(stored).exists(IndexKeys.of(index_name).log)


def test_another_layout_is_refused(stored: LogConnection, index_name: str) -> None:
    """Otherwise a worker of an old release would write into an index it does not understand.

    Given an index that gets another layout while a worker copies, when it reports, then refused by name, and nothing is
    written; when it takes, the same; the job stays on the list for the release that can read it.
    """
    index_with(stored, index_name, job())
    keys = IndexKeys.of(index_name)
    mine = seated(stored, index_name)
    delivery = taken(mine)
    layout = client_of(stored).hget(keys.head, HEAD_LAYOUT)
    client_of(stored).hset(keys.head, HEAD_LAYOUT, "77")

    with pytest.raises(InvalidInput, match="77"):
        mine.finish(delivery, ok=True)
    with pytest.raises(InvalidInput, match="77"):
        mine.take(0.0)

    assert client_of(stored).xlen(keys.log) == 1
    assert not client_of(stored).exists(keys.acks("e0:0"))
    client_of(stored).hset(keys.head, HEAD_LAYOUT, layout)
    assert taken(seated(stored, index_name)).entry == delivery.entry


@pytest.mark.parametrize("damaged", ["log", "head", "acks", "jobs", "seats"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_key_of_another_type_changes_nothing(
    stored: LogConnection, index_name: str, damaged: str, ranks: int
) -> None:
    """Otherwise a report could be half written: a finish in the log that the worker repeats (redis-facts R3).

    Given one of the five keys is a string, when a transfer is reported, then the worker is told, and no key changed.
    """
    index_with(stored, index_name, job(ranks=ranks))
    keys, client = IndexKeys.of(index_name), client_of(stored)
    mine = seated(stored, index_name, ranks=ranks)
    delivery = taken(mine)
    named = {"log": keys.log, "head": keys.head, "acks": keys.acks("e0:0"), "jobs": keys.jobs(POOL)}
    named["seats"] = keys.seats
    client.delete(named[damaged])
    client.set(named[damaged], "a string")
    before = {key: client.dump(key) for key in named.values()}

    with pytest.raises(CorruptState, match="WRONGTYPE"):
        mine.finish(delivery, ok=True)

    assert {key: client.dump(key) for key in named.values()} == before


def test_acks_run_out_only_when_the_transfer_is_over(stored: LogConnection, index_name: str) -> None:
    """Otherwise a report would be forgotten while another rank is still copying, or acks would pile up for ever.

    Given two ranks, when one has reported, then its report has no time to live; when both have, the acks have one.
    """
    index_with(stored, index_name, job(ranks=2))
    workers = [seated(stored, index_name, rank, 2) for rank in range(2)]
    key, client = IndexKeys.of(index_name).acks("e0:0"), client_of(stored)

    workers[0].finish(taken(workers[0]), ok=True)
    assert client.ttl(key) == -1
    workers[1].finish(taken(workers[1]), ok=True)

    assert 0 < client.pttl(key) <= limits.ACKS_TTL_S * 1000
    assert client.hget(key, ACKS_DONE) == b"2"


def test_the_script_is_sent_again_when_the_server_forgot_it(stored: LogConnection, index_name: str) -> None:
    """Otherwise a restart of Redis would end every worker (redis-facts R23).

    Given the server's script cache was flushed, when a transfer is reported, then it is finished.
    """
    index_with(stored, index_name, job())
    client_of(stored).script_flush()
    mine = seated(stored, index_name)

    assert mine.finish(taken(mine), ok=True).outcome == FINISHED


def test_the_finish_is_readable_by_the_strict_codec() -> None:
    """Otherwise a worker could write an entry that no engine can read.

    Given the longest reason, when encoded as the worker does, then the limits allow it.
    """
    fact = TransferFinished("e" * 128 + ":1", ok=False, reason="x" * limits.REASON_LENGTH_MAX)
    record = codec.encode(Commit("finish:x", f"worker:{POOL}", 0, (fact,), (), ()), at_ms=0)
    assert record.author == f"worker:{POOL}#0"


@pytest.mark.usefixtures("impatient")
def test_a_lost_end_of_the_history_comes_first(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker would copy a block that was given away in the lost part, and call the copy the old prompt.

    Given a job in a worker's hands and one in the stream, when somebody turns out to know more than the log holds, then
    no job is handed out, and no report counts, until HistoryLost is in the log; then both can be carried out.
    """
    log = index_with(connection, index_name, job(), job("e0:1"))
    mine = seated(connection, index_name)
    held = taken(mine)
    assert isinstance(log.append(commit("c10"), LOST), Diverged)

    assert mine.finish(held, ok=True).outcome == INTERRUPTED
    with pytest.raises(Unavailable, match="has lost its end, up to commit c9"):
        mine.take(0.0)
    assert finishes(log) == []
    assert log.head().loss == "c9"

    told = Commit("told", "keeper", 0, (HistoryLost("keeper", "c9"),), checks=(), touches=())
    assert isinstance(log.append(told, Base(1, "c1")), Appended)

    assert log.head().loss == ""
    for name in ("e0:0", "e0:1"):
        delivery = taken(mine)
        assert (delivery.job.transfer, delivery.reported) == (name, False)
        assert mine.finish(delivery, ok=True).outcome == FINISHED
