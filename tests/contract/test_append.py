"""What an append does, on every backend: `events/memory.py` is the definition, the others are held to it here."""

from __future__ import annotations

import attrs
import pytest

from events import limits
from events.errors import InvalidInput
from events.facts import BLOCK_HASH_BYTES
from events.keys import engine_scope, pool_scope
from events.log import LogConnection
from events.ports import Appended, Base, Conflicted, Head
from tests.contract.commits import BIRTH, commit, dump, fact, filled, hashed_fact, ids


def test_first_commit_gets_position_one(connection: LogConnection, index_name: str) -> None:
    """Otherwise the first engine could not create an index.

    Given no log, when a commit is appended at birth, then it is at position 1 and the head says so.
    """
    log = connection.log(index_name)
    assert log.head() == Head(0, "", first=0)

    reply = log.append(commit("c1"), BIRTH)

    assert reply == Appended(1, ())
    assert log.head() == Head(1, "c1", first=1)


def test_positions_have_no_gaps_and_entries_are_linked(connection: LogConnection, index_name: str) -> None:
    """Otherwise a replica could not tell a missing entry from none.

    Given 20 commits, when read, then positions are 1…20 and each entry names the one before.
    """
    log = connection.log(index_name)
    filled(log, 20)

    entries = log.read(0)

    assert [entry.position for entry in entries] == list(range(1, 21))
    assert [entry.previous for entry in entries] == ["", *ids(entries)[:-1]]
    assert [entry.facts for entry in entries] == [(fact(start=number),) for number in range(1, 21)]


def test_reply_brings_what_others_appended_in_between(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine would need a second round trip after every commit of a neighbour.

    Given b appended twice after a's base, when a appends, then it is appended and told both, in order.
    """
    log = connection.log(index_name)
    log.append(commit("a1"), BIRTH)
    log.append(commit("b1", engine="b"), Base(1, "a1"))
    log.append(commit("b2", engine="b"), Base(2, "b1"))

    reply = log.append(commit("a2"), Base(1, "a1"))

    assert isinstance(reply, Appended)
    assert reply.position == 4
    assert reply.missed == log.read(1)[:2]
    assert ids(reply.missed) == ["b1", "b2"]


def test_a_touched_pool_conflicts_and_the_reply_brings_all(connection: LogConnection, index_name: str) -> None:
    """Otherwise two engines could hand out the same block of a shared pool.

    Given b took from pool p after a's base, when a decides on p, then refused, with everything a missed in order.
    """
    log = connection.log(index_name)
    log.append(commit("a1"), BIRTH)
    log.append(commit("b1", engine="b", pools=["p"]), Base(1, "a1"))
    log.append(commit("b2", engine="b"), Base(2, "b1"))

    reply = log.append(commit("a2", pools=["q", "p"]), Base(1, "a1"))

    assert reply == Conflicted(pool_scope("p"), log.read(1))
    assert ids(reply.missed) == ["b1", "b2"]


@pytest.mark.parametrize("touched_by_b", [[], ["q"], ["q", "r", "pp", "p2"]])
def test_other_pools_do_not_conflict(connection: LogConnection, index_name: str, touched_by_b: list[str]) -> None:
    """Otherwise engines with pools of their own would slow each other down.

    Given b touched only other pools after a's base, when a decides on p, then appended.
    """
    log = connection.log(index_name)
    log.append(commit("b1", engine="b", pools=touched_by_b), BIRTH)

    assert isinstance(log.append(commit("a1", pools=["p"]), BIRTH), Appended)


def test_scopes_of_engine_pool_and_index_are_apart(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine would conflict with a pool of the same name, or with a field of the head.

    Given pools called like an engine and like fields of the head, when touched, then nobody else is refused or misled.
    """
    log = connection.log(index_name)
    names = ["a", "position", "commit", "layout", "engine:a"]
    log.append(commit("b1", engine="b", pools=names), BIRTH)

    assert isinstance(log.append(commit("a1"), BIRTH), Appended)
    assert log.head() == Head(2, "a1", first=1)


def test_a_pool_touched_before_the_base_does_not_conflict(connection: LogConnection, index_name: str) -> None:
    """Otherwise everything would conflict for ever.

    Given b touched p at the position a knows, when a decides on p, then appended.
    """
    log = connection.log(index_name)
    log.append(commit("b1", engine="b", pools=["p"]), BIRTH)
    log.append(commit("c1", engine="c"), Base(1, "b1"))

    assert isinstance(log.append(commit("a1", pools=["p"]), Base(1, "b1")), Appended)


def test_own_engine_conflicts_with_itself(connection: LogConnection, index_name: str) -> None:
    """Otherwise a commit sent twice could land twice.

    Given a has appended after the base, when a second commit of a comes from the old base, then refused.
    """
    log = connection.log(index_name)
    log.append(commit("a1"), BIRTH)

    reply = log.append(commit("a2"), BIRTH)

    assert isinstance(reply, Conflicted)
    assert reply.scope == engine_scope("a")


def test_the_same_commit_again_is_found_not_repeated(connection: LogConnection, index_name: str) -> None:
    """Otherwise a step whose reply was lost would be refused although it stands.

    Given a1 landed with b1 before it, when a1 is appended again from its base, then Appended at its place, one copy.
    """
    log = connection.log(index_name)
    log.append(commit("b1", engine="b"), BIRTH)
    first = log.append(commit("a1"), BIRTH)
    log.append(commit("b2", engine="b"), Base(1, "b1"))

    again = log.append(commit("a1"), BIRTH)

    assert again == first == Appended(2, log.read(0)[:1])
    assert ids(log.read(0)) == ["b1", "a1", "b2"]


def test_checked_but_untouched_scopes_stay(connection: LogConnection, index_name: str) -> None:
    """Otherwise a reader of a pool would make its neighbours decide again.

    Given a commit that checks p and touches only itself, when b decides on p from before, then appended.
    """
    log = connection.log(index_name)
    reader = commit("a1", pools=["p"])
    log.append(attrs.evolve(reader, touches=(engine_scope("a"),)), BIRTH)

    assert isinstance(log.append(commit("b1", engine="b", pools=["p"]), BIRTH), Appended)


# --- what goes in comes out -----------------------------------------------------------------------------------------


def test_every_byte_of_a_hash_survives(connection: LogConnection, index_name: str) -> None:
    """Otherwise prefixes with certain hashes would never match after a restart.

    Given hashes with every byte value, newlines and zeros first and last, when read back, then equal.
    """
    log = connection.log(index_name)
    every = bytes(range(256))
    tricky = [every, every[::-1], b"\x00" * BLOCK_HASH_BYTES, b"\r\n$-1\r\n*0\r\n\xff\xfe\x00\r\n", b""]

    log.append(commit("c1", facts=[hashed_fact(hashes) for hashes in tricky]), BIRTH)

    assert log.read(0)[0].facts == tuple(hashed_fact(hashes) for hashes in tricky)


@pytest.mark.parametrize(
    "request_id", ["ü", "请求-1", "🦊" * 64, 'a"b\\c', "{}[],:", "\u2028", "null", "a#b#7", "x" * 256]
)
def test_request_ids_survive(connection: LogConnection, index_name: str, request_id: str) -> None:
    """Otherwise a request whose id is not plain ASCII could not be released after a restart.

    Given a request id, when its fact is appended and read back, then the id is the same.
    """
    log = connection.log(index_name)

    log.append(commit("c1", facts=[fact(request_id)]), BIRTH)

    assert log.read(0)[0].facts == (fact(request_id),)


@pytest.mark.parametrize("engine", ["a", "A.b:c@d+e/f-g_h", "9", "_" * 128])
def test_engine_names_survive(connection: LogConnection, index_name: str, engine: str) -> None:
    """Otherwise some engines could join and never append.

    Given an engine name with every character allowed, when it appends, is fenced and read, then the name is the same.
    """
    log = connection.log(index_name)

    log.append(commit("c1", engine=engine, session=7, fences=((engine, 7),)), BIRTH)

    assert (log.read(0)[0].engine, log.read(0)[0].session) == (engine, 7)
    assert isinstance(log.append(commit("c2", engine=engine, session=7), Base(1, "c1")), Appended)


def test_five_megabytes_in_one_commit(connection: LogConnection, index_name: str) -> None:
    """Otherwise a batch of very long prompts would stop an engine.

    Given 5 MB of hashes in 100 facts, when appended and read back, then equal.
    """
    log = connection.log(index_name)
    facts = [hashed_fact(bytes([number]) * 52_432, request=f"request-{number}") for number in range(100)]

    log.append(commit("c1", facts=facts), BIRTH)

    assert log.read(0)[0].facts == tuple(facts)


def test_too_much_for_one_commit_is_refused_at_the_door(
    connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one mad step would make everybody's server slow.

    Given no facts, or more than limits allow, when appended, then InvalidInput with the numbers, nothing written.
    """
    log = connection.log(index_name)
    before = dump(connection, index_name)
    monkeypatch.setattr("events.codec.COMMIT_BYTES_MAX", 1000)

    with pytest.raises(InvalidInput, match=f"1 to {limits.COMMIT_FACTS_MAX} facts, not 0"):
        log.append(commit("c1", facts=[]), BIRTH)
    with pytest.raises(InvalidInput, match=r"at most 1000 bytes, not 1[67]"):
        log.append(commit("c2", facts=[hashed_fact(bytes(1600))]), BIRTH)

    assert dump(connection, index_name) == before


def test_many_scopes_in_one_commit(connection: LogConnection, index_name: str) -> None:
    """Otherwise a commit about thousands of engines or pools would leave the log half written and the index dead.

    Given a commit that touches 6,000 pools, when appended, then it lands whole or is refused whole; the next one lands.
    """
    log = connection.log(index_name)
    pools = [f"p{number}" for number in range(6000)]
    before = dump(connection, index_name)

    try:
        reply = log.append(commit("c1", pools=pools), BIRTH)
    except InvalidInput:
        assert dump(connection, index_name) == before
        base = BIRTH
    else:
        assert reply == Appended(1, ())
        base = Base(1, "c1")

    assert isinstance(log.append(commit("c2"), base), Appended)


def test_indexes_do_not_see_each_other(connection: LogConnection, index_name: str) -> None:
    """Otherwise two models on one Redis would serve each other's blocks.

    Given two indexes, one's name a prefix of the other's, when both append, then each has its own log, and both are listed.
    """
    one, two = connection.log(index_name), connection.log(f"{index_name}:log")

    one.append(commit("c1", pools=["p"], fences=(("a", 9),)), BIRTH)
    reply = two.append(commit("d1", pools=["p"]), BIRTH)

    assert reply == Appended(1, ())
    assert (ids(one.read(0)), ids(two.read(0))) == (["c1"], ["d1"])
    assert {index_name, f"{index_name}:log"} <= set(connection.indexes())


def test_an_index_without_a_log_is_not_listed(connection: LogConnection, index_name: str) -> None:
    """Otherwise looking at a name would create an index.

    Given a log that was only opened and read, when the indexes are listed, then it is not among them.
    """
    log = connection.log(index_name)
    assert log.read(0) == ()
    assert log.head() == Head(0, "", first=0)

    assert index_name not in connection.indexes()
