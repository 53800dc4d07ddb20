"""Requests that are handed over, and service that is paused, cleared and resized: every command tells of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from events import connect
from events.keys import IndexKeys
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from tests.cli.handover import CHAT, SPLIT
from tests.cli.scenario import BLOCK_SIZE, Tiers, answer, answers, complaint, reauthored, rewrite, statecore


def seen(split: Tiers, *command: object, at: str = "end") -> dict[str, Any]:
    option = "--to" if command[0] == "replay" else "--at"
    where = ("--url", split.url, "--index", SPLIT, option, split.at[at])
    return cast("dict[str, Any]", answer(statecore(*command, *where, "--json")))


def text(split: Tiers, *command: object, at: str = "end") -> str:
    option = "--to" if command[0] == "replay" else "--at"
    result = statecore(*command, "--url", split.url, "--index", SPLIT, option, split.at[at])
    assert result.exit_code == 0, result.output
    return result.stdout


def fields(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


# --- log


def test_what_concerns_everybody_is_in_sentences(split: Tiers) -> None:
    """Why nothing begins, or why every prompt misses since noon, would have to be read out of field names."""
    shown = statecore("log", "--url", split.url, "--index", SPLIT).stdout.splitlines()

    told = [fields(line)[-2:] for line in shown if re.search(" (Service|Cache|PoolRes)", line)]
    assert told == [
        ["ServicePaused", "no request may begin: new weights"],
        ["CacheCleared", "all that was cached is forgotten: new weights"],
        ["ServiceResumed", "requests may begin again: the weights are loaded"],
        ["PoolResized", "pool gpu:prefill has 16 blocks from now on"],
        ["PoolResized", "pool gpu:prefill has 14 blocks from now on"],
        ["ServicePaused", "no request may begin: maintenance"],
    ]
    moves = [fields(line)[-1] for line in shown if re.search(" (Send|Transfer)", line)]
    assert moves == [
        "prefill:0: send of request chat to engine decode, gpu:prefill 0-3 → gpu:decode 0-3",
        "prefill:0: done",
        "prefill:1: send of request lost to engine decode, gpu:prefill 0-3 → gpu:decode 0-3",
        "prefill:1: failed (rank 1: no such segment)",
        "prefill:2: send of request hasty to engine decode, gpu:prefill 0-3 → gpu:decode 0-3",
        "prefill:2: its receiver gave the blocks back",
        "prefill:2: done",
        "prefill:3: send of request partly to engine decode, gpu:prefill 0-3 → gpu:decode 0-3",
        "prefill:3: its receiver gave the blocks back",
        "prefill:4: send of request last to engine decode, gpu:prefill 0-3 → gpu:decode 4-7",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--engine", "decode", "--fact", "SendStarted", "--to", 12], ["sent", "lost"]),
        (["--engine", "decode", "--fact", "TransferFinished"], ["arrived", "failed", "too late"]),
        (["--engine", "prefill", "--fact", "TransferFinished"], ["arrived", "failed", "too late"]),
        (["--engine", "prefill", "--fact", "TransferCancelled"], ["given up", "partly given up"]),
        (["--engine", "other"], []),
        (["--request", "hasty", "--fact", "TransferFinished"], ["too late"]),
        (["--request", "hasty", "--fact", "SendStarted", "--fact", "TransferCancelled"], ["hasty", "given up"]),
        (["--request", "hasty", "--engine", "decode", "--fact", "TransferFinished"], ["too late"]),
        (["--fact", "cachecleared"], ["cleared"]),
        (["--fact", "ServicePaused", "--engine", "decode"], ["end"]),
    ],
)
def test_a_send_is_a_matter_of_both_its_engines_and_of_its_request(
    split: Tiers, options: list[object], expected: list[str]
) -> None:
    """The decode engine's story would lack what it waited for."""
    shown = answers(statecore("log", "--url", split.url, "--index", SPLIT, "--json", *options))

    known = {**split.at, "lost": split.at["failed"] - 1, "hasty": split.at["given up"] - 1}
    assert [commit["position"] for commit in shown] == [known[name] for name in expected]


def test_a_send_as_json_has_its_fields(split: Tiers) -> None:
    """A program would have to read sentences."""
    at = split.at["sent"]
    [commit] = answers(statecore("log", "--url", split.url, "--index", SPLIT, "--from", at, "--to", at, "--json"))

    assert commit["facts"] == [
        {
            "fact": "SendStarted", "transfer": "prefill:0", "engine": "prefill", "request": "chat", "receiver": "decode",
            "source": "gpu:prefill", "source_blocks": [[0, 4]], "destination": "gpu:decode",
            "destination_blocks": [[0, 4]],
        }
    ]  # fmt: skip


# --- the state


def test_every_moment_has_the_digest_its_engines_had(split: Tiers) -> None:
    """A replay would prove nothing where requests are handed over or caches cleared."""
    for position, digest in split.digests.items():
        result = statecore("replay", "--url", split.url, "--index", SPLIT, "--to", position, "--digest")
        assert (result.exit_code, result.stdout) == (0, f"{digest}\n")


def test_the_summary_says_who_paused_service_and_how_often_the_cache_was_cleared(split: Tiers) -> None:
    """Somebody whose requests do not begin would look for a fault where there is a decision."""

    def said(at: str) -> list[object]:
        return [seen(split, "replay", at=at)[name] for name in ("paused_by", "paused_for", "clears", "sends")]

    assert said("sent") == [None, None, 0, 1]
    assert said("paused") == ["prefill", "new weights", 0, 1]
    assert said("resumed") == [None, None, 1, 1]
    assert said("end") == ["decode", "maintenance", 1, 2]

    lines = text(split, "replay").splitlines()
    assert "service    paused by decode: maintenance" in lines
    assert "cache      cleared 1 time" in lines
    assert "transfers  2 not over (2 sends among them), 5 so far" in lines
    assert not re.search("(?m)^(service|cache) ", text(split, "replay", at="sent"))


@pytest.mark.parametrize(
    ("at", "quarantined"),
    [
        *(("sent", 0), ("arrived", 0), ("given up", 4), ("paused", 4), ("cleared", 4), ("too late", 0)),
        *(("partly given up", 2), ("resized", 4), ("end", 4)),
    ],
)
def test_blocks_that_a_cancelled_send_may_still_write_are_counted(split: Tiers, at: str, quarantined: int) -> None:
    """They would look like a leak, or like room that cannot be had."""
    decode, prefill = seen(split, "inspect", "pools", at=at)["pools"]

    assert (decode["quarantined"], prefill["quarantined"]) == (quarantined, 0)
    for pool in (decode, prefill):
        used = pool["pinned"] + pool["private"] + pool["filling"] + pool["quarantined"]
        assert pool["blocks"] == pool["free"] + pool["cached"] + used
    if quarantined:
        assert "private  quarantined  used  used %  evicted  arrived\n" in text(split, "inspect", "pools", at=at)


def test_a_resized_pool_has_its_size(split: Tiers) -> None:
    """Somebody who adds up the blocks of a pool would find two too many."""
    assert [pool["blocks"] for pool in seen(split, "inspect", "pools", at="too late")["pools"]] == [12, 12]
    assert [pool["blocks"] for pool in seen(split, "inspect", "pools", at="resized")["pools"]] == [12, 14]


def test_nothing_cached_is_left_by_a_clear(split: Tiers) -> None:
    """Blocks of the old weights would be shown as if somebody could match them."""
    assert [pool["cached"] for pool in seen(split, "inspect", "pools", at="paused")["pools"]] == [0, 4]
    assert [pool["cached"] for pool in seen(split, "inspect", "pools", at="cleared")["pools"]] == [0, 0]
    assert seen(split, "inspect", "tree", at="cleared")["nodes"] == []


# --- transfers


def test_a_send_shows_what_moves_and_who_waits(split: Tiers) -> None:
    """Why a decode engine does not go on, and with which request, could not be found out."""
    [under_way] = seen(split, "inspect", "transfers", at="sent")["transfers"]

    assert under_way == {
        "transfer": "prefill:0", "kind": "send", "state": "under way", "engine": "prefill", "blocks": 4,
        "source": "gpu:prefill", "source_blocks": [[0, 4]], "destination": "gpu:decode", "destination_blocks": [[0, 4]],
        "quarantine": [], "node": None, "start": None, "end": None, "ranks": 2, "waiting": ["chat"], "request": "chat",
        "receiver": "decode", "started_position": split.at["sent"], "started_at": under_way["started_at"],
    }  # fmt: skip
    assert seen(split, "inspect", "transfers", at="arrived")["transfers"] == []
    lines = text(split, "inspect", "transfers", at="sent").splitlines()
    assert fields(lines[1]) == ["transfer", "kind", "state", "blocks", "from", "to", "who waits", "place", "ranks"]
    assert fields(lines[2]) == [
        *("prefill:0", "send", "under way", "4", "gpu:prefill 0-3", "gpu:decode 0-3", "chat in decode", "-", "2")
    ]


def test_a_cancelled_send_shows_what_it_may_still_write(split: Tiers) -> None:
    """Which blocks are held back, and until when, could not be seen."""
    [cancelled] = seen(split, "inspect", "transfers", at="partly given up")["transfers"]

    assert (cancelled["state"], cancelled["waiting"], cancelled["request"]) == ("cancelled", [], "partly")
    assert (cancelled["source_blocks"], cancelled["destination_blocks"]) == ([], [[0, 4]])
    assert cancelled["quarantine"] == [[2, 2]]
    assert "gpu:decode 0-3 (quarantined 2-3)  -" in text(split, "inspect", "transfers", at="partly given up")
    [released] = seen(split, "inspect", "transfers", at="resized")["transfers"]
    assert released["quarantine"] == [[0, 4]]
    line = text(split, "inspect", "transfers", at="resized").splitlines()[2]
    assert fields(line) == [*("prefill:3", "send", "cancelled", "4", "gpu:prefill", "gpu:decode 0-3", "-", "-", "2")]


# --- engines and requests


@pytest.mark.parametrize("engine", ["prefill", "decode"])
def test_both_engines_of_a_send_have_it_in_their_history(split: Tiers, engine: str) -> None:
    """What became of the requests an engine handed over, or was handed, could not be looked up."""
    sends = seen(split, "inspect", "engine", engine)["sends"]

    assert [(send["transfer"], send["request"], send["outcome"], send["reason"]) for send in sends] == [
        ("prefill:0", "chat", "done", ""),
        ("prefill:1", "lost", "failed", "rank 1: no such segment"),
        ("prefill:2", "hasty", "cancelled", "its receiver gave the blocks back"),
        ("prefill:3", "partly", "cancelled", "its receiver gave the blocks back"),
        ("prefill:4", "last", "under way", ""),
    ]
    assert {(send["sender"], send["receiver"], send["blocks"]) for send in sends} == {("prefill", "decode", 4)}
    ends = [send["ended_position"] for send in sends]
    assert ends == [*(split.at[name] for name in ("arrived", "failed", "given up", "partly given up")), None]
    shown = text(split, "inspect", "engine", engine).splitlines()
    other = {"prefill": "to decode", "decode": "from prefill"}[engine]
    [first] = [fields(line) for line in shown if line.startswith("prefill:0")]
    assert first == ["prefill:0", "chat", other, "4", str(split.at["sent"]), str(split.at["arrived"]), "done"]
    assert ("transfers  2 not over, 5 so far" in "\n".join(shown)) == (engine == "prefill")


def test_a_long_list_of_sends_ends_with_the_last(split: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of an engine would scroll away above a million sends."""
    monkeypatch.setattr("ops.cli.inspect.engine._SENDS_SHOWN", 2)

    shown = text(split, "inspect", "engine", "decode").splitlines()

    assert "Sends, the last 2 of 5" in shown
    assert [line.split()[0] for line in shown if line.startswith("prefill:")] == ["prefill:3", "prefill:4"]
    assert len(seen(split, "inspect", "engine", "decode")["sends"]) == 5


@pytest.mark.parametrize("engine", ["prefill", "decode"])
def test_both_sides_of_a_request_have_its_send(split: Tiers, engine: str) -> None:
    """The life of a request would end in one engine and begin in another without a word of how it got there."""
    history = seen(split, "inspect", "request", "hasty", "--engine", engine)["history"]

    ending = ["SendStarted", "TransferCancelled", "RequestReleased", "TransferFinished"]
    assert [event["fact"] for event in history if event["fact"] != "BlocksAllocated"] == ["PrefixMatched", *ending]
    assert history[-1]["position"] == split.at["too late"]
    released = split.at["given up"] + (engine == "prefill")
    assert f"ended at position {released}; see its blocks with --at {released - 1}" in text(
        split, "inspect", "request", "hasty", "--engine", engine
    )


def test_a_request_of_both_engines_must_be_told_apart(split: Tiers) -> None:
    """The table of the one would be taken for that of the other."""
    result = statecore("inspect", "request", "chat", "--url", split.url, "--index", SPLIT)

    assert complaint(result, 2) == "engines decode, prefill each have a request 'chat': say which with --engine"


def test_a_request_that_was_sent_into_held_blocks_is_its_senders(server: str, name: str) -> None:
    """A receiver that goes on under another id would make the sender's request one of two, or look as if it had ended."""
    with connect(server) as connection:
        sender, receiver = (
            CacheIndex(connection, name=name, engine=engine, gpu_blocks=4, block_size=4, follow=False)
            for engine in ("a", "b")
        )
        sender.match("mine", [1, 2])
        own, held = sender.allocate("mine", 1), receiver.allocate(None, 1)
        sender.refresh()
        sender.send("mine", own.blocks, "b", held.blocks)
        where = ("--url", server, "--index", name)
        found = answer(statecore("inspect", "request", "mine", "--json", *where))
        theirs = statecore("inspect", "request", "mine", "--engine", "b", *where).stdout

    assert (found["engine"], found["live"]) == ("a", True)
    assert (
        f"state    sent here at position {found['position']}, into blocks of another request or the engine itself"
        in theirs
    )
    assert "SendStarted" in theirs


# --- verify, export, import


def test_what_the_senders_worker_wrote_is_sound(split: Tiers) -> None:
    """Every index that hands requests over would be called broken."""
    proof = answer(statecore("verify", "--url", split.url, "--index", SPLIT, "--every", 1, "--json"))

    assert (proof["sound"], proof["position"], proof["digest"]) == (True, split.end, split.digests[split.end])


@pytest.mark.parametrize("at", ["arrived", "failed", "too late"])
def test_a_send_that_its_receivers_worker_ended_is_found(
    client: redis.Redis, copied_split: IndexKeys, split: Tiers, at: str
) -> None:
    """A worker that took jobs of another pool would go unseen until wrong tokens come out."""
    rewrite(client, copied_split, split.at[at], reauthored("worker:gpu:decode", 0))

    found = complaint(statecore("verify", "--url", split.url, "--index", copied_split.name), 1)

    assert found.startswith("'worker:gpu:decode' finished send 'prefill:")
    assert found.endswith(f"which goes from 'gpu:prefill' to 'gpu:decode' at position {split.at[at]}")


def test_everything_new_comes_along(split: Tiers, exported_split: Path, client: redis.Redis, name: str) -> None:
    """A restored index would let requests begin, lack sends, or have conflicts where there were none.

    Given a log with all facts there are about sends, pauses, clears and sizes, when imported, then every key but the jobs is
    as it was, and the command says what holds the index up.
    """
    result = statecore("import", exported_split, "--url", split.url, "--index", name)

    assert result.stdout.splitlines() == [
        f"imported {split.end} commits into index '{name}' at {split.url}; digest {split.digests[split.end]}, as in the "
        "file",
        "2 transfers of it not over: no worker was told, so nobody moves the blocks before they are rung again or "
        "cancelled (see: statecore inspect transfers)",
        "service is paused by decode (maintenance): no request may begin before an engine resumes it",
    ]
    old, new = IndexKeys.of(SPLIT), IndexKeys.of(name)
    assert client.xlen(old.jobs("gpu:prefill")) == 5
    keys = cast("list[bytes]", client.keys(f"kv:{{{name}}}:*"))
    leases = {new.lease(engine) for engine in ("prefill", "decode")}
    assert {key.decode() for key in keys} - leases == {new.log, new.head, new.fence}
    assert client.xrange(new.log) == client.xrange(old.log)
    assert client.hgetall(new.head) == client.hgetall(old.head)
    assert client.hgetall(new.fence) == client.hgetall(old.fence)


def test_an_imported_index_goes_on_when_resumed(split: Tiers, exported_split: Path, name: str) -> None:
    """A pause that was exported would last for ever."""
    assert statecore("import", exported_split, "--url", split.url, "--index", name).exit_code == 0
    with connect(split.url) as connection:
        engine = CacheIndex(
            connection, name=name, engine="prefill", block_size=BLOCK_SIZE, tensor_parallel_size=2, follow=False,
            memory_survives=True,
        )  # fmt: skip
        engine.resume()

        assert len(engine.match("again", CHAT).blocks) == 4
        assert engine.inspect(violations) == []
        assert engine.inspect(leaked_blocks) == 0
    assert statecore("verify", "--url", split.url, "--index", name, "--every", 1).exit_code == 0
