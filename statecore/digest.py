"""One short name for a whole state: equal digests, equal states.

Owns the canonical order in which a state is written out: everything replicas must agree on, nothing they may differ in
(the shape of a heap, the order of a dict). Costs time in proportion to the index; for proofs, not for steps.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import orjson

from statecore.sends import Send
from statecore.state import Engine, Node, Pool, State, Transfer

_DIGEST_BYTES: Final = 16


def digest(state: State) -> str:
    """32 hexadecimal digits over position, configuration, pools, engines with their requests, and every node."""
    hasher = blake2b(digest_size=_DIGEST_BYTES)
    hasher.update(
        orjson.dumps(
            [state.block_size, state.hash_scheme, state.position, state.last_commit_id, state.next_node]
            + [state.write_policy, state.free_low, state.free_high, state.policy_chosen, state.ignored_finishes]
            + [state.paused_by, state.paused_for, state.clears]
            + [_send(state.sends[name]) for name in sorted(state.sends)]
            + [_transfer(state.transfers[name]) for name in sorted(state.transfers)]
            + [_pool(state.pools[name]) for name in sorted(state.pools)]
            + [_engine(state.engines[name]) for name in sorted(state.engines)]
        )
    )
    for node_id in sorted(state.nodes):
        node = state.nodes[node_id]
        hasher.update(orjson.dumps(_node(node)))
        hasher.update(node.hashes)
    return hasher.hexdigest()


def _pool(pool: Pool) -> list[object]:
    counters = [pool.evicted, pool.arrived, pool.rescued]
    return [pool.name, pool.tier, pool.blocks, pool.unpinned, counters, list(pool.free)]


def _transfer(transfer: Transfer) -> list[object]:
    place = [None if transfer.cancelled else transfer.node.id, transfer.start, transfer.end]
    end = [transfer.cancelled, transfer.quarantine]
    return [
        transfer.id,
        transfer.kind,
        transfer.engine,
        transfer.ranks,
        transfer.source,
        transfer.destination,
        place,
        end,
    ]


def _send(send: Send) -> list[object]:
    ends = [send.source, send.source_blocks, send.destination, send.destination_blocks]
    return [send.id, send.engine, send.request, send.receiver, send.ranks, ends, send.cancelled, send.quarantine]


def _engine(engine: Engine) -> list[object]:
    counters = [engine.counters, engine.window, engine.transfers]
    held = [[pool, list(engine.held[pool])] for pool in sorted(engine.held) if engine.held[pool].total]
    requests = [
        [request.id, request.leaf.id, request.private, request.duplicates, request.matched]
        for request in (engine.requests[request_id] for request_id in sorted(engine.requests))
    ]
    pools = [engine.gpu_pool, engine.cpu_pool, engine.tensor_parallel_size]
    if engine.memory_survives:
        pools.append("memory_survives")  # what schema 2 did not know counts only where it is not the default
    return [engine.name, engine.session, engine.alive, pools, counters, held, requests]


def _node(node: Node) -> list[object]:
    parent = None if node.parent is None else node.parent.id
    copies = [
        [
            pool,
            copy.blocks,
            copy.refs,
            copy.branches,
            copy.last_used,
            copy.pending,
            copy.pending_since,
            copy.filling,
            copy.leaving,
            copy.unwritable,
        ]
        for pool, copy in sorted(node.copies.items())
    ]
    return [node.id, parent, node.start, node.end, copies]
