"""One short name for a state: equal where states are equal, different where they differ in anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from statecore.commands import Allocate, Send
from statecore.digest import digest
from statecore.state import Node, Pool, State
from tests.unit.given import Machine, extend, join, match, path


def busy() -> Machine:
    """Something of everything."""
    machine = Machine(join("a", blocks=12), join("b", pool="h", blocks=6), join("gone", blocks=None))
    machine.serve("a", "r", 1, 2, 3)
    machine.do(match("a", "s", 1, 2, 9), Allocate("a", "s", 3), extend("a", "s", 1, 2, 9))
    machine.do(match("a", "t", 7), Allocate("a", "t", 1), match("a", "u", 7), Allocate("a", "u", 1))
    machine.do(extend("a", "t", 7))
    machine.do(extend("a", "u", 7))
    machine.cache("b", 1, 2)
    machine.do(Allocate("b", None, 2))
    machine.do(join("o", pool="p", blocks=2, host=4))
    machine.cache("o", 1, 2)
    machine.do(Allocate("o", None, 2))
    held, private = tuple(machine.state.engines["b"].held["h"]), machine.state.engines["a"].requests["s"].private
    machine.do(Send("b", "x", held, "a", private))
    return machine


CHANGES: dict[str, Callable[[State], None]] = {
    "block size": lambda state: setattr(state, "block_size", 2),
    "hash scheme": lambda state: setattr(state, "hash_scheme", "x"),
    "position": lambda state: setattr(state, "position", 99),
    "last commit": lambda state: setattr(state, "last_commit_id", "x"),
    "next node id": lambda state: setattr(state, "next_node", 99),
    "a pool more": lambda state: state.pools.update(x=Pool("x", "gpu", 1)),
    "pool's name": lambda state: setattr(state.pools["g"], "name", "x"),
    "pool's tier": lambda state: setattr(state.pools["g"], "tier", "cpu"),
    "pool's size": lambda state: setattr(state.pools["g"], "blocks", 13),
    "pool's free blocks": lambda state: state.pools["g"].free.remove(((11, 1),)),
    "pool's unpinned": lambda state: setattr(state.pools["g"], "unpinned", 1),
    "pool's evicted": lambda state: setattr(state.pools["g"], "evicted", 1),
    "an engine less": lambda state: state.engines.__delitem__("gone"),
    "engine's name": lambda state: setattr(state.engines["a"], "name", "x"),
    "engine's session": lambda state: setattr(state.engines["a"], "session", 2),
    "engine's life": lambda state: setattr(state.engines["gone"], "alive", False),
    "engine's pool": lambda state: setattr(state.engines["gone"], "gpu_pool", "h"),
    "engine's host pool": lambda state: setattr(state.engines["gone"], "cpu_pool", "h"),
    "engine's ranks": lambda state: setattr(state.engines["gone"], "tensor_parallel_size", 2),
    "engine's memory": lambda state: setattr(state.engines["gone"], "memory_survives", False),
    "engine's held blocks": lambda state: state.engines["b"].held["h"].add(((5, 1),)),
    "requests seen": lambda state: setattr(state.engines["a"], "requests_seen", 99),
    "requests hit": lambda state: setattr(state.engines["a"], "requests_hit", 99),
    "prompt tokens": lambda state: setattr(state.engines["a"], "prompt_tokens", 99),
    "matched tokens": lambda state: setattr(state.engines["a"], "matched_tokens", 99),
    "a request less": lambda state: state.engines["a"].requests.__delitem__("r"),
    "request's id": lambda state: setattr(state.engines["a"].requests["r"], "id", "x"),
    "request's leaf": lambda state: setattr(state.engines["a"].requests["r"], "leaf", state.root),
    "request's private blocks": lambda state: setattr(state.engines["a"].requests["s"], "private", ()),
    "request's duplicates": lambda state: setattr(state.engines["a"].requests["u"], "duplicates", ()),
    "request's first part": lambda state: setattr(state.engines["a"].requests["r"], "matched", 99),
    "host tokens": lambda state: setattr(state.engines["a"], "host_tokens", 99),
    "engine's transfers": lambda state: setattr(state.engines["a"], "transfers", 99),
    "write policy": lambda state: setattr(state, "write_policy", "write_through"),
    "lower watermark": lambda state: setattr(state, "free_low", 1),
    "upper watermark": lambda state: setattr(state, "free_high", 1),
    "whether a policy was chosen": lambda state: setattr(state, "policy_chosen", True),
    "who paused": lambda state: setattr(state, "paused_by", "a"),
    "why paused": lambda state: setattr(state, "paused_for", "x"),
    "clearings": lambda state: setattr(state, "clears", 9),
    "engine's window": lambda state: setattr(state.engines["a"], "window", (1, 0, 0, 0, 0)),
    "a send less": lambda state: state.sends.clear(),
    **{
        f"send's {field}": lambda state, field=field, value=value: setattr(state.sends["b:0"], field, value)  # type: ignore[misc]
        for field, value in {
            "id": "b:9",
            "engine": "a",
            "request": "y",
            "receiver": "o",
            "source": "g",
            "source_blocks": ((9, 1),),
            "destination": "h",
            "destination_blocks": ((9, 1),),
            "ranks": 2,
            "cancelled": True,
            "quarantine": ((0, 1),),
        }.items()
    },
    "ignored finishes": lambda state: setattr(state, "ignored_finishes", 1),
    "pool's arrived": lambda state: setattr(state.pools["g"], "arrived", 1),
    "pool's rescued": lambda state: setattr(state.pools["g"], "rescued", 1),
    "a transfer less": lambda state: state.transfers.clear(),
    **{
        f"transfer's {field}": lambda state, field=field, value=value: setattr(state.transfers["o:0"], field, value)  # type: ignore[misc]
        for field, value in {
            "id": "o:9",
            "kind": "write_through",
            "engine": "a",
            "start": 1,
            "end": 9,
            "source": "g",
            "destination": "h",
            "ranks": 2,
            "cancelled": True,
            "quarantine": ((0, 1),),
        }.items()
    },
    "transfer's node": lambda state: setattr(state.transfers["o:0"], "node", state.root),
    "a node less": lambda state: state.nodes.__delitem__(1),
    "node's id": lambda state: setattr(state.nodes[1], "id", 99),
    "node's parent": lambda state: setattr(state.nodes[1], "parent", state.root),
    "node's start": lambda state: setattr(state.nodes[1], "start", 0),
    "node's end": lambda state: setattr(state.nodes[1], "end", 9),
    "node's hashes": lambda state: setattr(state.nodes[1], "hashes", path(5)),
    "a copy less": lambda state: state.nodes[1].copies.__delitem__("g"),
    "copy's pool": lambda state: state.nodes[1].copies.update(h=state.nodes[1].copies.pop("g")),
    "copy's blocks": lambda state: setattr(state.nodes[1].copies["g"], "blocks", ((3, 1),)),
    "copy's refs": lambda state: setattr(state.nodes[1].copies["g"], "refs", 9),
    "copy's branches": lambda state: setattr(state.nodes[1].copies["g"], "branches", 9),
    "copy's last use": lambda state: setattr(state.nodes[1].copies["g"], "last_used", 1),
    "copy's pending": lambda state: setattr(state.nodes[1].copies["g"], "pending", "b"),
    "copy's age of pending": lambda state: setattr(state.nodes[1].copies["g"], "pending_since", 99),
    "copy's filling": lambda state: setattr(state.nodes[1].copies["g"], "filling", "a:0"),
    "copy's leaving": lambda state: setattr(state.nodes[1].copies["g"], "leaving", "a:0"),
    "copy's unwritable": lambda state: setattr(state.nodes[1].copies["g"], "unwritable", True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_difference_shows(change: Callable[[State], None]) -> None:
    """Two replicas hold different states and believe they agree."""
    state = busy().state
    before = digest(state)

    change(state)

    assert digest(state) != before


def slots_of(part: object) -> list[str]:
    return list(vars(type(part))["__slots__"])


def test_every_field_of_the_state_is_among_the_changes() -> None:
    """A field that is added later is in no digest, and nobody notices."""
    machine = busy()
    engine = machine.state.engines["a"]
    known = {
        "State": "block_size hash_scheme position last_commit_id next_node pools engines nodes root transfers "
        "write_policy free_low free_high policy_chosen ignored_finishes sends paused_by paused_for clears "
        "clock places place_of journal",  # the last four follow from the others, or live for a step
        "Pool": "name tier blocks free unpinned evicted arrived rescued eviction_order",  # the order follows from the copies
        "Engine": "name session alive gpu_pool cpu_pool tensor_parallel_size memory_survives requests held "
        "requests_seen requests_hit prompt_tokens matched_tokens host_tokens transfers window",
        "Transfer": "id kind engine node start end source destination ranks cancelled quarantine",
        "Send": "id engine request receiver source source_blocks destination destination_blocks ranks cancelled quarantine",
        "Request": "id leaf private duplicates matched",
        "Node": "id parent start end hashes children copies",  # children follow from the parents
        "Copy": "blocks refs branches last_used pending pending_since filling leaving unwritable",
    }
    parts = [machine.state, machine.state.pools["g"], engine, engine.requests["r"], machine.state.nodes[1]]
    parts += [machine.state.transfers["o:0"], machine.state.sends["b:0"]]

    for part in [*parts, machine.state.nodes[1].copies["g"]]:
        assert set(slots_of(part)) == set(known[type(part).__name__].split()), type(part).__name__


def test_order_of_insertion_does_not_matter() -> None:
    """Equal states have different names, and every replica believes that history is broken."""
    machine = busy()
    state = machine.state
    before = digest(state)

    mappings: list[dict[Any, Any]] = [state.pools, state.engines, state.nodes, state.nodes[2].copies]
    for mapping in [*mappings, state.engines["a"].requests]:
        backwards = list(reversed(mapping.items()))
        mapping.clear()
        mapping.update(backwards)

    assert digest(state) == before


def test_a_second_replica_of_the_same_history_agrees() -> None:
    """Replicas differ although they applied the same facts."""
    assert busy().replica.digest() == busy().replica.digest()


def test_blocks_once_held_leave_no_trace() -> None:
    """An engine that held blocks and gave them back differs for ever from one that never did."""
    machine = busy()
    machine.state.engines["a"].held.clear()
    before = digest(machine.state)

    machine.state.engines["a"].held["g"] = type(machine.state.pools["g"].free)()

    assert digest(machine.state) == before


def test_a_digest_is_short_text() -> None:
    """A digest that cannot be printed, compared or stored."""
    name = busy().replica.digest()

    assert len(name) == 32
    assert int(name, 16) >= 0


def test_neighbouring_runs_do_not_run_together() -> None:
    """Two trees that hold the same hashes, cut differently, have one name."""
    one, two = Machine(join("a")).state, Machine(join("a")).state
    for state, cut in ((one, 16), (two, 32)):
        upper = Node(1, state.root, 0, path(1, 2, 3)[:cut])
        lower = Node(2, upper, upper.end, path(1, 2, 3)[cut:])
        state.nodes.update({1: upper, 2: lower})

    assert digest(one) != digest(two)
