"""`statecore verify`: a sound log passes, every kind of damage is found where it is, and the exit code says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from events.facts import (
    BlocksAllocated,
    EngineLost,
    Fact,
    PoolAdded,
    PoolDropped,
    PrefixMatched,
    RequestReleased,
    TransferCancelled,
    TransferFinished,
)
from events.keys import IndexKeys
from ops.cli import replaying
from tests.cli.scenario import (
    INDEX,
    TIERS,
    Fields,
    Story,
    Tiers,
    answer,
    complaint,
    reauthored,
    refacted,
    rewrite,
    statecore,
    with_meta,
)

Damage = Callable[[redis.Redis, IndexKeys], object]


def verified(story: Story, *options: object) -> dict[str, object]:
    return answer(statecore("verify", "--url", story.url, "--index", INDEX, "--json", *options))


def test_a_sound_log_passes_with_its_digest(story: Story) -> None:
    """A healthy system would raise an alarm, or the proof be of another state than the engines had."""
    proof = verified(story, "--every", 5)

    assert proof == {
        "sound": True, "position": 19, "commits": 19, "facts": 27, "invariant_checks": 4, "digest": story.digests[19],
        "start": 0, "first": 1, "snapshots": [],
    }  # fmt: skip
    result = statecore("verify", "--url", story.url, "--index", INDEX)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"sound: index '{INDEX}' ({story.url})\n")
    assert f"digest      {story.digests[19]}\n" in result.stdout


@pytest.mark.parametrize(("every", "checks"), [(0, 1), (1, 19), (19, 1), (1000, 1)])
def test_invariants_are_checked_as_often_as_said(story: Story, every: int, checks: int) -> None:
    """The proof would claim checks that were not made."""
    assert verified(story, "--every", every)["invariant_checks"] == checks


def test_a_digest_is_compared_at_its_position(story: Story) -> None:
    """Two processes that went different ways would be called equal."""
    good = statecore("verify", "--url", story.url, "--index", INDEX, "--to", 7, "--digest", story.digests[7].upper())
    other = statecore("verify", "--url", story.url, "--index", INDEX, "--to", 8, "--digest", story.digests[7])

    assert good.exit_code == 0
    assert f"digest      {story.digests[7]} as given" in good.stdout
    message = complaint(other, 1)
    assert f"not {story.digests[7]}" in message
    assert message.endswith("at position 8")


def test_what_is_no_digest_is_refused(story: Story) -> None:
    """A mistyped digest would look like a broken log."""
    message = complaint(statecore("verify", "--url", story.url, "--index", INDEX, "--digest", "0f3c"), 2)

    assert message.startswith("Invalid value for --digest: '0f3c' is not a digest: 32 hexadecimal digits")


def change(position: int, how: Callable[[Fields], object]) -> Damage:
    return lambda client, keys: rewrite(client, keys, position, how)


def replaced(field: bytes, value: bytes) -> Callable[[Fields], object]:
    return lambda fields: fields.update({field: value})


BROKEN: dict[str, tuple[Damage, str]] = {
    "a flipped byte": (
        change(3, lambda fields: fields.update({b"body": fields[b"body"].replace(b"first", b"fIrst")})),
        "log entry is damaged: checksum",
    ),
    "a hash changed": (
        change(3, lambda fields: fields.update({b"hashes": b"\0" + fields[b"hashes"][1:]})),
        "log entry is damaged: checksum",
    ),
    "an entry taken out": (
        lambda client, keys: client.xdel(keys.log, "5-0"),
        "the log goes on with 6: an entry is missing at position 5",
    ),
    "the first entry taken out": (
        lambda client, keys: client.xdel(keys.log, "1-0"),
        "the log begins at position 2: entries 1 to 1 are missing",
    ),
    "the last entry taken out": (
        lambda client, keys: client.xdel(keys.log, "19-0"),
        "the log ends before 19, where its head is: an entry is missing at position 19",
    ),
    "another history spliced in": (
        change(8, replaced(b"previous", b"elsewhere.7")),
        "history diverged: the entry continues commit 'elsewhere.7'",
    ),
    "a head of another history": (
        lambda client, keys: client.hset(keys.head, "commit", "elsewhere.7"),
        "the head of the log names commit 'elsewhere.7'",
    ),
    "an entry beyond the head": (
        lambda client, keys: client.xadd(
            keys.log,
            {
                "previous": "x", "meta": "y e#1 1 1 00000000", "body": "[]", "hashes": "",
            },
            id="20-0",
        ),
        "the log holds an entry beyond its head at position 20",
    ),
    "a head without a log": (
        lambda client, keys: client.delete(keys.log),
        "the log ends before 19, where its head is: an entry is missing at position 1",
    ),
    "a log without a field": (
        change(4, lambda fields: fields.pop(b"meta")),
        "log entry lacks or garbles a field (KeyError: b'meta') at position 4",
    ),
    "an author changed": (
        change(4, with_meta(author="engine-0#1")),
        "log entry is damaged: checksum",
    ),
    "an entry nobody of us wrote": (
        lambda client, keys: client.xadd(keys.log, {"hello": "world"}, id="5000-7"),
        "the log holds an entry nobody of us wrote",
    ),
    "an old session that was let through": (
        change(19, reauthored("engine-1", 1)),
        "fence broken: engine 'engine-1' wrote in session 1 and is in session 2 at position 19",
    ),
    "a life that begins in another session than it says": (
        change(18, reauthored("engine-1", 3)),
        "fence broken: engine 'engine-1' wrote in session 3 and begins session 2 at position 18",
    ),
    "an author who never joined": (
        change(8, reauthored("stranger", 1)),
        "engine 'stranger' wrote without ever having joined at position 8",
    ),
    "blocks given away twice": (
        change(14, refacted(BlocksAllocated("engine-0", None, "gpu", ((0, 2),)))),
        "blocks 0…1 are taken from a set that lacks some of them at position 14",
    ),
    "a request that nobody began": (
        change(15, refacted(RequestReleased("engine-0", "ghost", ()))),
        "does not fit the state (KeyError: 'ghost') at position 15",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_damage_is_found_where_it_is(
    client: redis.Redis, copy: IndexKeys, story: Story, damage: Damage, message: str
) -> None:
    """A broken history would be built upon, or nobody could tell where it broke."""
    damage(client, copy)

    result = statecore("verify", "--url", story.url, "--index", copy.name)

    assert message in complaint(result, 1)
    assert result.stdout == ""


def test_damage_as_json_says_where_and_what(client: redis.Redis, copy: IndexKeys, story: Story) -> None:
    """A program that watches logs would have to read prose."""
    client.xdel(copy.log, "5-0")

    result = statecore("verify", "--url", story.url, "--index", copy.name, "--json")

    assert (result.exit_code, result.stderr) == (1, "")
    assert answer(result) == {
        "sound": False,
        "position": 5,
        "reason": "the log goes on with 6: an entry is missing",
    }


def test_only_the_part_asked_for_is_judged(client: redis.Redis, copy: IndexKeys, story: Story) -> None:
    """How far a damaged log can be trusted could not be found out."""
    client.xdel(copy.log, "12-0")

    assert statecore("verify", "--url", story.url, "--index", copy.name, "--to", 11).exit_code == 0
    assert statecore("verify", "--url", story.url, "--index", copy.name, "--to", 12).exit_code == 1


def test_a_broken_invariant_is_found(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that leads to a state with lost blocks would pass."""
    monkeypatch.setattr(replaying, "violations", lambda _state: ["pool 'gpu': block 3 is nowhere"])

    message = complaint(statecore("verify", "--url", story.url, "--index", INDEX), 1)

    assert message == "an invariant does not hold: pool 'gpu': block 3 is nowhere at position 19"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_log_of_a_newer_release_could_not_be_checked(
    client: redis.Redis, copy: IndexKeys, story: Story, options: list[str]
) -> None:
    """An operator with an old release would restore a backup of a healthy log."""
    rewrite(client, copy, 9, with_meta(schema="99"))

    result = statecore("verify", "--url", story.url, "--index", copy.name, *options)

    assert complaint(result, 2).startswith("log entry has schema 99, this release reads up to")
    assert result.stdout == ""


def test_a_server_out_of_reach_could_not_be_checked() -> None:
    """A network fault would be reported as a broken history."""
    result = statecore("verify", "--url", "unix:///nowhere/redis.sock", "--json")

    assert "cannot be reached" in complaint(result, 2)
    assert result.stdout == ""


# --- workers


def test_what_workers_wrote_is_sound(tiers: Tiers) -> None:
    """Every index with a host tier would be called broken: its workers never joined, and have no session."""
    proof = answer(statecore("verify", "--url", tiers.url, "--index", TIERS, "--every", 1, "--json"))

    assert (proof["sound"], proof["position"], proof["digest"]) == (True, tiers.end, tiers.digests[tiers.end])


def rewritten(engine: str, session: int, *facts: Fact) -> Callable[[Fields], object]:
    """As if the entry had been written by somebody, with these facts (or its own); all checksums are right."""

    def change(fields: Fields) -> None:
        if facts:
            refacted(*facts)(fields)
        reauthored(engine, session)(fields)

    return change


FINISHED = TransferFinished("engine-0:0", True, "")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (rewritten("worker:gpu", 1), "engine 'worker:gpu' wrote without ever having joined"),
        (rewritten("worker", 0), "engine 'worker' wrote without ever having joined"),
        (rewritten("engine-0", 0), "fence broken: engine 'engine-0' wrote in session 0 and is in session 1"),
        (rewritten("worker:gpuu", 0), "'worker:gpuu' wrote, and the index has no such GPU pool for a worker"),
        (rewritten("worker:cpu:host", 0), "'worker:cpu:host' wrote, and the index has no such GPU pool"),
        (
            rewritten("worker:gpu", 0, FINISHED, RequestReleased("engine-0", "large", ())),
            "'worker:gpu' wrote RequestReleased: a worker may only say that a transfer has finished",
        ),
    ],
)
def test_a_worker_that_does_more_than_finish_is_found(
    client: redis.Redis, copied_tiers: IndexKeys, tiers: Tiers, how: Callable[[Fields], object], message: str
) -> None:
    """Anybody could write anything past the fences by calling himself a worker."""
    rewrite(client, copied_tiers, tiers.at["swapped out"], how)

    found = complaint(statecore("verify", "--url", tiers.url, "--index", copied_tiers.name), 1)

    assert found.startswith(message)
    assert found.endswith(f"at position {tiers.at['swapped out']}")


def test_a_worker_of_another_pool_is_found(client: redis.Redis, copied_tiers: IndexKeys, tiers: Tiers) -> None:
    """A worker that took the wrong jobs would go unseen until wrong tokens come out."""
    facts = (PoolAdded("gpu:other", "gpu", 4), PrefixMatched("engine-0", "large", 0, 0, 40))
    rewrite(client, copied_tiers, 4, refacted(*facts))
    rewrite(client, copied_tiers, tiers.at["swapped out"], reauthored("worker:gpu:other", 0))

    found = complaint(statecore("verify", "--url", tiers.url, "--index", copied_tiers.name), 1)

    assert found == (
        "'worker:gpu:other' finished transfer 'engine-0:0', which goes from 'gpu' to 'cpu:host' at position 6"
    )


def test_a_finish_that_came_twice_is_sound(client: redis.Redis, copied_tiers: IndexKeys, tiers: Tiers) -> None:
    """A late report, which every replica ignores, would be called a broken log."""
    rewrite(client, copied_tiers, tiers.at["failed"], refacted(FINISHED, TransferFinished("engine-0:1", False, "disk")))

    proof = answer(statecore("verify", "--url", tiers.url, "--index", copied_tiers.name, "--json"))

    assert proof["sound"] is True
    replayed = answer(statecore("replay", "--url", tiers.url, "--index", copied_tiers.name, "--json"))
    assert replayed["ignored_finishes"] == 1
    text = statecore("replay", "--url", tiers.url, "--index", copied_tiers.name).stdout
    assert "2 not over, 6 so far; 1 result came too late" in text


# --- keepers


LOST = EngineLost("engine-0", 1, "no sign of life from it for 9 s")


def test_what_a_keeper_wrote_is_sound(client: redis.Redis, copied_tiers: IndexKeys, tiers: Tiers) -> None:
    """Every index whose keeper ever declared an engine lost would be called broken: the keeper never joined."""
    cancelled = TransferCancelled("engine-0:0", "its engine is lost")
    rewrite(client, copied_tiers, tiers.at["swapped out"], rewritten("keeper", 0, cancelled, LOST))

    found = complaint(statecore("verify", "--url", tiers.url, "--index", copied_tiers.name), 1)

    after = tiers.at["swapped out"] + 1
    assert found == f"engine 'engine-0' wrote in session 1 after its session 1 had ended at position {after}"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (rewritten("keeper", 1, LOST), "engine 'keeper' wrote without ever having joined"),
        (rewritten("keeper", 0, FINISHED), "a keeper declared 0 engines lost in one commit, not 1"),
        (rewritten("keeper", 0, LOST, LOST), "a keeper declared 2 engines lost in one commit, not 1"),
        (rewritten("keeper", 0, LOST, FINISHED), "a keeper wrote TransferFinished: it may only declare an engine lost"),
        (
            rewritten("keeper", 0, LOST, PoolDropped("engine-1", "gpu")),
            "a keeper declared 'engine-0' lost and dropped the memory of 'engine-1'",
        ),
    ],
)
def test_a_keeper_that_does_more_than_declare_lost_is_found(
    client: redis.Redis, copied_tiers: IndexKeys, tiers: Tiers, how: Callable[[Fields], object], message: str
) -> None:
    """Anybody could write anything past the fences by calling himself a keeper."""
    rewrite(client, copied_tiers, tiers.at["swapped out"], how)

    found = complaint(statecore("verify", "--url", tiers.url, "--index", copied_tiers.name), 1)

    assert found.startswith(message)
    assert found.endswith(f"at position {tiers.at['swapped out']}")
