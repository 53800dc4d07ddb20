"""`statecore inspect`: what it shows of a pool, the tree, a request and an engine is what the engines had."""

from __future__ import annotations

from typing import Any, cast

import pytest

from events import connect
from statecore import CacheIndex
from tests.cli.scenario import INDEX, TIERS, WARM, Story, Tiers, answer, complaint, statecore


def inspected(story: Story, *what: object) -> dict[str, Any]:
    return cast("dict[str, Any]", answer(statecore("inspect", *what, "--url", story.url, "--index", INDEX, "--json")))


def shown(story: Story, *what: object) -> str:
    result = statecore("inspect", *what, "--url", story.url, "--index", INDEX)
    assert result.exit_code == 0, result.output
    return result.stdout


def ids(ranges: list[list[int]]) -> list[int]:
    return [block for start, count in ranges for block in range(start, start + count)]


# --- pools


def test_pools_name_the_free_blocks_and_who_works_there(story: Story) -> None:
    """Somebody who asks why nothing fits would not see what is free and who holds the rest."""
    pool = inspected(story, "pools", "--at", 15)["pools"][0]

    assert (pool["free"], ids(pool["free_blocks"])) == (3, [5, 22, 23])
    assert pool["engines"] == ["engine-0", "engine-1"]
    assert pool["blocks"] == pool["free"] + pool["cached"] + pool["used"] == 24
    text = shown(story, "pools", "--at", 15)
    assert "gpu free     5, 22-23" in text
    assert "at position 15" in text


# --- tree


def test_the_tree_shows_where_prompts_part_and_who_uses_what(story: Story) -> None:
    """Why a prompt hit, or did not, could not be seen."""
    nodes = inspected(story, "tree", "--at", 15)["nodes"]

    shape = {node["node"]: (node["parent"], node["start"], node["end"], node["copies"][0]["refs"]) for node in nodes}
    assert shape == {2: (0, 0, 3, 1), 1: (2, 3, 5, 0), 3: (2, 3, 5, 1), 4: (0, 0, 5, 2)}
    assert [node["node"] for node in nodes if node["copies"][0]["evictable"]] == [1]
    assert ids(nodes[0]["copies"][0]["blocks"]) == [0, 1, 2]
    assert nodes[0]["first_hash"].startswith("c228cb46")

    text = shown(story, "tree", "--at", 15).splitlines()
    assert text == [
        "Tree of index 'llama' at position 15: 4 of 4 nodes",
        "├── node 2  blocks 0-2  3 blocks c228cb46…  gpu 0-2 refs 1, last used 15",
        "│   ├── node 1  blocks 3-4  2 blocks f7d107cc…  gpu 3-4 refs 0, last used 15",
        "│   └── node 3  blocks 3-4  2 blocks 454d6d2b…  gpu 6-7 refs 1, last used 6",
        "└── node 4  blocks 0-4  5 blocks 80647f43…  gpu 9-13 refs 2, last used 13",
    ]


def test_the_tree_shows_what_is_still_being_computed(story: Story) -> None:
    """A prefix that another engine may not use yet would look like one that it may."""
    [pending] = [node for node in inspected(story, "tree", "--at", 6)["nodes"] if node["copies"][0]["pending"]]

    assert (pending["start"], pending["end"], pending["copies"][0]["pending"]) == (3, 5, "engine-1")
    assert "pending (engine-1)" in shown(story, "tree", "--at", 6)
    assert "pending" not in shown(story, "tree", "--at", 7)


@pytest.mark.parametrize(
    ("options", "nodes", "left_out"),
    [
        (["--depth", 1], [2, 4], ["│   └── … 2 more below"]),
        (["--max-nodes", 1], [2], ["│   └── … 2 more below", "└── … 1 more below"]),
        (["--pool", "gpu"], [2, 4, 1, 3], []),
    ],
)
def test_what_the_tree_leaves_out_it_says(
    story: Story, options: list[object], nodes: list[int], left_out: list[str]
) -> None:
    """A large tree would scroll away, or a part of it be missing without a word."""
    assert [node["node"] for node in inspected(story, "tree", "--at", 15, *options)["nodes"]] == nodes
    text = shown(story, "tree", "--at", 15, *options).splitlines()
    assert [line for line in text if "more below" in line] == left_out


def test_the_tree_of_a_pool_that_is_not_there_is_refused(story: Story) -> None:
    """A mistyped pool would look empty."""
    result = statecore("inspect", "tree", "--pool", "gpuu", "--url", story.url, "--index", INDEX)

    assert complaint(result, 2) == "there is no pool 'gpuu'; known: gpu"


# --- a request


def test_the_table_of_every_request_is_the_one_its_engine_had(story: Story) -> None:
    """Whoever hunts a wrong token would look at the wrong blocks."""
    assert set(story.tables) == {"forked", "twin-a", "twin-b", "big"}
    for request, table in story.tables.items():
        parts = inspected(story, "request", request, "--at", story.before_end)["table"]
        assert [block for part in parts for block in ids(part["blocks"])] == table
        assert [part["start"] for part in parts] == [0, *(part["end"] for part in parts[:-1])]


def test_shared_duplicate_and_private_blocks_are_told_apart(story: Story) -> None:
    """It could not be seen which blocks other requests read too."""

    def kinds(request: str) -> list[tuple[object, ...]]:
        parts = inspected(story, "request", request, "--at", story.before_end)["table"]
        return [(part["kind"], ids(part["blocks"]), part["node"], part["refs"]) for part in parts]

    assert kinds("forked") == [
        ("shared", [0, 1, 2], 2, 1),
        ("shared", [6, 7], 3, 1),
        ("private", [8], None, None),
    ]
    assert kinds("twin-b") == [("duplicate", [14, 15, 16, 17, 18], 4, 2), ("private", [19], None, None)]

    text = shown(story, "request", "twin-b", "--at", story.before_end)
    assert "live: 6 blocks, 5 of them on the path" in text
    assert "0-19    0-4     duplicate       5  14-18         4     2" in text


def test_a_request_that_ended_has_its_history(story: Story) -> None:
    """What became of a request could not be found out afterwards, which is when one asks."""
    history = inspected(story, "request", "first")

    assert (history["live"], history["table"], history["engine"]) == (False, [], "engine-0")
    assert [(event["position"], event["fact"]) for event in history["history"]] == [
        (3, "PrefixMatched"),
        (3, "BlocksAllocated"),
        (3, "PathExtended"),
        (3, "PathReady"),
        (15, "RequestReleased"),
    ]
    assert "ended at position 15; see its blocks with --at 14" in shown(story, "request", "first")


def test_the_history_of_a_request_ends_with_the_life_of_its_engine(story: Story) -> None:
    """A request that died with its engine would seem to have vanished."""
    last = inspected(story, "request", "big")["history"][-1]

    assert (last["position"], last["fact"]) == (18, "EngineLost")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "up to position 19 the log knows no request 'nobody'"),
        (["late", "--at", 18], "up to position 18 the log knows no request 'late'"),
        (["first", "--engine", "engine-1"], "up to position 19 the log knows no request 'first' of engine 'engine-1'"),
        (["first", "--at", 20], "--at 20 is beyond the end of the log, which is at position 19"),
    ],
)
def test_a_request_that_is_not_there_is_refused(story: Story, arguments: list[object], message: str) -> None:
    """An empty table would be taken for a request without blocks."""
    result = statecore("inspect", "request", *arguments, "--url", story.url, "--index", INDEX)

    assert complaint(result, 2) == message


# --- an engine


def test_an_engine_has_its_lives_counters_and_requests(story: Story) -> None:
    """After a crash it could not be seen when an engine was gone and what it had served."""
    engine = inspected(story, "engine", "engine-1")

    assert (engine["session"], engine["alive"], engine["gpu_pool"]) == (2, True, "gpu")
    assert [
        (life["session"], life["joined_position"], life["ended_position"], life["ended_by"]) for life in engine["lives"]
    ] == [(1, 2, 18, "EngineLost"), (2, 18, None, None)]
    assert [request["request"] for request in engine["live_requests"]] == ["late"]
    assert engine["counters"]["requests_hit"] == 2
    text = shown(story, "engine", "engine-1")
    assert "alive in session 2" in text
    assert "EngineLost" in text


def test_an_engine_shows_its_hit_rate_of_late(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit rate that has broken down today would hide behind a good year."""
    assert "lately" not in shown(story, "engine", "engine-1")
    monkeypatch.setattr("statecore.evolve.COUNTING_WINDOW", 3)

    engine = inspected(story, "engine", "engine-1")

    assert (engine["counters"]["requests_seen"], engine["counters"]["prompt_tokens"]) == (4, 140)
    assert engine["window"] == {
        "requests_seen": 1, "requests_hit": 1, "prompt_tokens": 20, "matched_tokens": 16, "host_tokens": 0, "hit_rate": 0.8,
    }  # fmt: skip
    assert "lately    80.0 % (16 of 20 prompt tokens reused; 1 of 1 request hit)" in shown(story, "engine", "engine-1")


def test_an_engine_shows_what_it_holds_itself_and_its_requests_at_that_time(story: Story) -> None:
    """Blocks held outside of any request would look like a leak."""
    engine = inspected(story, "engine", "engine-0", "--at", story.before_end)

    assert ids(engine["held"]["gpu"]) == [20, 21]
    assert engine["live_requests"] == [
        {"request": "twin-b", "path_blocks": 5, "duplicate_blocks": 5, "private_blocks": 1, "matched_blocks": 0}
    ]
    assert "holds in gpu  20-21" in shown(story, "engine", "engine-0", "--at", story.before_end)


def test_an_engine_that_is_not_there_is_refused_with_those_that_are(story: Story) -> None:
    """A mistyped name would look like an engine that did nothing."""
    result = statecore("inspect", "engine", "engine-9", "--url", story.url, "--index", INDEX)

    assert complaint(result, 2) == "up to position 19 the log knows no engine 'engine-9'; known: engine-0, engine-1"


def test_two_engines_with_a_request_of_one_id_must_be_told_apart(server: str, name: str) -> None:
    """The blocks of another engine's request would be shown."""
    with connect(server) as connection:
        for engine in ("a", "b"):
            index = CacheIndex(connection, name=name, engine=engine, gpu_blocks=4, block_size=4, follow=False)
            index.match("same", [1, 2])
    where = ("--url", server, "--index", name)

    message = complaint(statecore("inspect", "request", "same", *where), 2)
    chosen = answer(statecore("inspect", "request", "same", "--engine", "b", "--json", *where))

    assert message == "engines a, b each have a request 'same': say which with --engine"
    assert (chosen["engine"], chosen["pool"]) == ("b", "gpu:b")


# --- two tiers


def seen(tiers: Tiers, *what: object, at: str = "end") -> dict[str, Any]:
    where = ("--url", tiers.url, "--index", TIERS, "--at", tiers.at[at])
    return cast("dict[str, Any]", answer(statecore("inspect", *what, *where, "--json")))


def seen_text(tiers: Tiers, *what: object, at: str = "end") -> str:
    result = statecore("inspect", *what, "--url", tiers.url, "--index", TIERS, "--at", tiers.at[at])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    "at", ["swap-out", "swapped out", "swap-in", "failed", "used again", "rescued", "cancelled", "end"]
)
def test_every_block_of_both_tiers_is_in_one_column(tiers: Tiers, at: str) -> None:
    """Blocks that transfers hold would look like a leak."""
    for pool in seen(tiers, "pools", at=at)["pools"]:
        used = pool["pinned"] + pool["private"] + pool["filling"] + pool["quarantined"]
        assert used == pool["used"]
        assert pool["blocks"] == pool["free"] + pool["cached"] + used
        assert pool["free"] == len(ids(pool["free_blocks"]))


def test_pools_show_what_transfers_do_to_them(tiers: Tiers) -> None:
    """It could not be seen that a full pool is about to be emptier, or that a cancelled transfer holds the host's blocks."""

    def columns(at: str) -> list[tuple[int, ...]]:
        names = ("filling", "quarantined", "leaving", "arrived", "rescued")
        return [tuple(pool[name] for name in names) for pool in seen(tiers, "pools", at=at)["pools"]]

    assert columns("swap-out") == [(4, 0, 0, 0, 0), (0, 0, 4, 0, 0)]
    assert columns("swapped out") == [(0, 0, 0, 4, 0), (0, 0, 0, 0, 0)]
    assert columns("rescued") == [(0, 0, 0, 8, 0), (0, 0, 0, 4, 4)]
    assert columns("cancelled") == [(0, 4, 0, 8, 0), (0, 0, 0, 4, 4)]
    assert "filling  quarantined  used  used %  leaving" in seen_text(tiers, "pools")


def test_the_tree_marks_what_fills_and_what_leaves(tiers: Tiers) -> None:
    """A prefix on its way would look like one that can be used, and one that is about to go like one that stays."""
    lines = seen_text(tiers, "tree", at="used again").splitlines()

    assert lines[1:] == [
        "├── node 1  blocks 0-3  4 blocks c228cb46…  cpu:host 0-3 refs 0, last used 12  gpu 0-3 refs 1, last used 12",
        "└── node 2  blocks 0-3  4 blocks 762d0d73…  cpu:host 4-7 refs 0, last used 14, filling (engine-0:3)  "
        "gpu 4-7 refs 2, last used 15, leaving (engine-0:3)",
    ]
    copies = {copy["pool"]: copy for copy in seen(tiers, "tree", at="used again")["nodes"][1]["copies"]}
    assert (copies["gpu"]["leaving"], copies["gpu"]["filling"]) == ("engine-0:3", None)
    assert (copies["cpu:host"]["leaving"], copies["cpu:host"]["filling"]) == (None, "engine-0:3")
    assert "filling (engine-0:5)" in seen_text(tiers, "tree")
    assert "leaving" not in seen_text(tiers, "tree", at="rescued")


def test_the_tree_of_the_host_is_its_own(tiers: Tiers) -> None:
    """What the host holds could not be told from what the GPU holds."""
    assert [node["node"] for node in seen(tiers, "tree", "--pool", "cpu:host")["nodes"]] == [1, 2]
    assert [node["node"] for node in seen(tiers, "tree", "--pool", "gpu")["nodes"]] == [1, 3]


def test_transfers_show_what_moves_and_who_waits(tiers: Tiers) -> None:
    """Why a request waits, and for which blocks, could not be found out."""
    transfers = seen(tiers, "transfers")

    cancelled, under_way = transfers["transfers"]
    assert under_way == {
        "transfer": "engine-0:5", "kind": "swap_in", "state": "under way", "engine": "engine-0", "blocks": 4,
        "source": "cpu:host", "source_blocks": [[0, 4]], "destination": "gpu", "destination_blocks": [[0, 4]],
        "quarantine": [], "node": 1, "start": 0, "end": 4, "ranks": 2, "waiting": ["waiting"], "request": None,
        "receiver": None,
        "started_position": tiers.end, "started_at": under_way["started_at"],
    }  # fmt: skip
    assert (cancelled["transfer"], cancelled["state"], cancelled["kind"]) == ("engine-0:4", "cancelled", "swap_out")
    assert (cancelled["source_blocks"], cancelled["destination_blocks"]) == ([], [[8, 4]])
    assert cancelled["quarantine"] == [[8, 4]]
    assert (cancelled["waiting"], cancelled["started_position"]) == ([], 21)
    assert (transfers["started"], transfers["ignored_finishes"]) == (6, 0)

    lines = seen_text(tiers, "transfers").splitlines()
    assert lines[1].split("  ")[0] == "transfer"
    assert (
        "engine-0:5  swap in   under way       4  cpu:host 0-3  gpu 0-3        waiting    blocks 0-3 to node 1"
        in lines[3]
    )
    assert "gpu       4 blocks arrived, 4 rescued" in lines


def test_no_transfers_are_said(tiers: Tiers, story: Story) -> None:
    """An empty screen would leave it open whether the command worked."""
    assert seen_text(tiers, "transfers", at="rescued").startswith(
        f"No transfers under way of index 'tiers' at position {tiers.at['rescued']}\n"
    )
    assert inspected(story, "transfers")["transfers"] == []


def test_a_transfer_over_several_runs_names_all_its_blocks(server: str, name: str) -> None:
    """A transfer whose run was split meanwhile would show a part of what it moves."""
    with connect(server) as connection:
        engine = CacheIndex(connection, name=name, engine="a", gpu_blocks=8, cpu_blocks=8, block_size=4, follow=False)
        with engine.step():
            engine.match("one", WARM)
            engine.allocate("one", 4)
            engine.extend("one", ready=True)
            engine.release("one")
        engine.match("big", [1] * 32)
        engine.allocate("big", 8)
        engine.match("split", WARM[:8])
        where = ("--json", "--url", server, "--index", name)
        [moved] = cast("list[dict[str, Any]]", answer(statecore("inspect", "transfers", *where))["transfers"])
        nodes = cast("list[object]", answer(statecore("inspect", "tree", *where))["nodes"])

    assert len(nodes) == 2
    assert (moved["source_blocks"], moved["destination_blocks"]) == ([[0, 4]], [[0, 4]])


def test_a_request_shows_what_it_waits_for_and_what_became_of_it(tiers: Tiers) -> None:
    """A request that hung on a swap-in would look like any other, and why it had to compute could not be seen."""
    waiting = seen(tiers, "request", "waiting")
    assert [(part["kind"], ids(part["blocks"]), part["marks"]) for part in waiting["table"]] == [
        ("shared", [0, 1, 2, 3], ["filling (engine-0:5)"])
    ]
    assert [event["fact"] for event in waiting["history"]] == ["PrefixMatched", "TransferStarted"]

    hasty = seen(tiers, "request", "hasty")["history"]
    assert [(event["position"], event["fact"]) for event in hasty] == [
        (tiers.at["swap-in"], "PrefixMatched"),
        (tiers.at["swap-in"], "TransferStarted"),
        (tiers.at["failed"], "TransferFinished"),
        (tiers.at["failed"] + 1, "RequestReleased"),
    ]
    assert seen(tiers, "request", "hasty", at="failed")["path_blocks"] == 0
    assert "leaving (engine-0:3)" in seen_text(tiers, "request", "busy again", at="used again")


def test_an_engine_shows_its_host_hits_and_transfers(tiers: Tiers) -> None:
    """What the host tier is good for could not be read off."""
    engine = seen(tiers, "engine", "engine-0")

    assert engine["cpu_pool"] == "cpu:host"
    assert (engine["counters"]["host_tokens"], engine["counters"]["matched_tokens"]) == (32, 48)
    assert engine["counters"]["transfers"] == 6
    text = seen_text(tiers, "engine", "engine-0")
    assert "(48 of 212 prompt tokens reused, 32 from the host; 4 of 9 requests hit)" in text
    assert "transfers  2 not over, 6 so far" in text
