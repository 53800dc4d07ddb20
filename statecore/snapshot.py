"""A whole state as bytes, and back: what a replica starts from when the log before it is gone.

Owns the format. Derived things are not written but counted again (free blocks, unpinned blocks, the order of eviction,
children), so that a snapshot cannot bring a wrong count into a state.

    "STATECORE-SNAPSHOT"    18 bytes
    header length           uint32, little-endian
    header                  JSON: schema, everything that is small (pools, engines with their requests, transfers, sends)
    columns                 little-endian arrays, in the order of `_COLUMNS`, lengths in the header; then the joined hashes
    checksum                BLAKE2b, 16 bytes, of all before it

Nodes stand parents first, copies in the order of nodes. Nothing in it is executed; every length is checked before it is
believed, and the state it gives must hold every invariant and have the digest it was written with. What an older release
wrote is lifted to today's shape first (`migrations/`).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sized
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from events.errors import CorruptState, NewerSchema
from events.facts import BLOCK_HASH_BYTES, BlockRanges, SendStarted, TransferStarted
from events.limits import POOL_BLOCKS_MAX
from migrations import snapshots as old_snapshots
from migrations.chain import Misshapen
from statecore import ranges
from statecore.blockset import BlockSet
from statecore.digest import digest
from statecore.invariants import violations
from statecore.sends import Send
from statecore.snapshot_shape import check_columns, header_shape, mismatch
from statecore.state import (
    ROOT_ID,
    Copy,
    Engine,
    Node,
    Pool,
    Request,
    State,
    Transfer,
    private_ranges,
)

SNAPSHOT_SCHEMA: Final = 2
_MAGIC: Final = b"STATECORE-SNAPSHOT"
_CHECKSUM_BYTES: Final = 16
_NOBODY: Final = -1

_COLUMNS: Final = (
    ("node_id", "<i8"),
    ("node_parent", "<i8"),
    ("node_blocks", "<i4"),
    ("node_copies", "<i4"),
    ("copy_pool", "<i4"),
    ("copy_refs", "<i4"),
    ("copy_branches", "<i4"),
    ("copy_used", "<i8"),
    ("copy_pending", "<i4"),
    ("copy_since", "<i8"),
    ("copy_filling", "<i4"),
    ("copy_leaving", "<i4"),
    ("copy_unwritable", "<i4"),
    ("copy_ranges", "<i4"),
    ("range_start", "<i8"),
    ("range_count", "<i8"),
)

_SCALARS: Final = (
    "block_size", "hash_scheme", "position", "last_commit_id", "write_policy", "free_low", "free_high", "policy_chosen",
    "paused_by", "paused_for", "clears", "ignored_finishes", "next_node",
)  # fmt: skip
_POOL_COUNTERS: Final = ("evicted", "arrived", "rescued")
_ENGINE_FIELDS: Final = (
    "session", "alive", "gpu_pool", "cpu_pool", "tensor_parallel_size", "requests_seen", "requests_hit", "prompt_tokens",
    "matched_tokens", "host_tokens", "transfers", "memory_survives",
)  # fmt: skip

assert old_snapshots.SCHEMA == SNAPSHOT_SCHEMA, f"migrations of snapshots end at schema {old_snapshots.SCHEMA}"


_HEADER: Final = header_shape(_SCALARS, _ENGINE_FIELDS, len(_POOL_COUNTERS), len(_COLUMNS))


def encode(state: State) -> bytes:
    """The state at its position; not while a step is in progress. Its digest is in the header."""
    names: dict[str, int] = {}
    columns: dict[str, list[int]] = {name: [] for name, _ in _COLUMNS}
    hashes = []
    pools = {name: number for number, name in enumerate(state.pools)}
    for node in sorted(state.nodes.values(), key=lambda node: (node.start, node.id)):
        if node.parent is None:
            continue
        columns["node_id"].append(node.id)
        columns["node_parent"].append(node.parent.id)
        columns["node_blocks"].append(node.end - node.start)
        columns["node_copies"].append(len(node.copies))
        hashes.append(node.hashes)
        for pool, copy in sorted(node.copies.items()):
            _add_copy(columns, pools[pool], copy, names)
    arrays = [np.asarray(columns[name], dtype=kind) for name, kind in _COLUMNS]
    header = {
        "schema": SNAPSHOT_SCHEMA,
        "digest": digest(state),
        "state": {name: getattr(state, name) for name in _SCALARS},
        "pools": [_pool_header(pool) for pool in state.pools.values()],
        "engines": [_engine_header(engine) for engine in state.engines.values()],
        "transfers": [_transfer_header(transfer) for transfer in state.transfers.values()],
        "sends": [_send_header(send) for send in state.sends.values()],
        "names": list(names),
        "lengths": [len(array) for array in arrays],
    }
    packed = orjson.dumps(header)
    body = b"".join([_MAGIC, struct.pack("<I", len(packed)), packed, *(array.tobytes() for array in arrays), *hashes])
    return body + blake2b(body, digest_size=_CHECKSUM_BYTES).digest()


def decode(data: bytes) -> State:
    """The state behind a snapshot.

    Raises:
        NewerSchema: written by a newer release.
        CorruptState: anything else that is not exactly what `encode` writes.
    """
    header, columns, hashes = _unpacked(data)
    try:
        state = _restored(header, columns, hashes)
        broken = violations(state)
    except (KeyError, TypeError, ValueError, IndexError, AssertionError, AttributeError, StopIteration) as error:
        raise CorruptState(f"snapshot does not hold together ({type(error).__name__}: {error!s:.200})") from error
    if broken:
        raise CorruptState(f"snapshot does not hold together: {'; '.join(broken[:3]):.300}")
    if (found := digest(state)) != header["digest"]:
        raise CorruptState(f"snapshot gives a state of digest {found}, it was written of {header['digest']:.80}")
    return state


def is_one(data: bytes) -> bool:
    """Whether bytes begin as a snapshot does; not whether it is whole."""
    return data.startswith(_MAGIC)


def header_of(data: bytes) -> dict[str, Any]:
    """What a snapshot says of itself: `schema`, `digest`, `state` with position and last commit id; checksum checked."""
    return _unpacked(data)[0]


# --- writing --------------------------------------------------------------------------------------------------------


def _add_copy(columns: dict[str, list[int]], pool: int, copy: Copy, names: dict[str, int]) -> None:
    def number(name: str | None) -> int:
        return _NOBODY if name is None else names.setdefault(name, len(names))

    for column, value in (
        ("copy_pool", pool),
        ("copy_refs", copy.refs),
        ("copy_branches", copy.branches),
        ("copy_used", copy.last_used),
        ("copy_pending", number(copy.pending)),
        ("copy_since", copy.pending_since),
        ("copy_filling", number(copy.filling)),
        ("copy_leaving", number(copy.leaving)),
        ("copy_unwritable", int(copy.unwritable)),
        ("copy_ranges", len(copy.blocks)),
    ):
        columns[column].append(value)
    for start, count in copy.blocks:
        columns["range_start"].append(start)
        columns["range_count"].append(count)


def _pool_header(pool: Pool) -> list[object]:
    return [pool.name, pool.tier, pool.blocks, pool.free.total, [getattr(pool, name) for name in _POOL_COUNTERS]]


def _engine_header(engine: Engine) -> list[object]:
    requests = [
        [request.id, request.leaf.id, request.matched, request.private, request.duplicates]
        for request in engine.requests.values()
    ]
    held = [[pool, list(blocks)] for pool, blocks in engine.held.items()]
    return [engine.name, [getattr(engine, name) for name in _ENGINE_FIELDS], engine.window, held, requests]


def _transfer_header(transfer: Transfer) -> list[object]:
    place = [transfer.node.id, transfer.start, transfer.end]
    ends = [transfer.source, transfer.destination]
    return [
        transfer.id, transfer.kind, transfer.engine, place, ends, transfer.ranks, transfer.cancelled, transfer.quarantine
    ]  # fmt: skip


def _send_header(send: Send) -> list[object]:
    ends = [send.source, send.source_blocks, send.destination, send.destination_blocks]
    return [send.id, send.engine, send.request, send.receiver, ends, send.ranks, send.cancelled, send.quarantine]


# --- reading --------------------------------------------------------------------------------------------------------


def _unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], bytes]:
    start = len(_MAGIC) + 4
    if not data.startswith(_MAGIC) or len(data) < start + _CHECKSUM_BYTES:
        raise CorruptState(f"not a snapshot: {len(data)} bytes that begin with {data[:20]!r}")
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if blake2b(body, digest_size=_CHECKSUM_BYTES).digest() != checksum:
        raise CorruptState(f"snapshot of {len(data)} bytes is damaged: its checksum does not fit")
    (length,) = struct.unpack_from("<I", body, len(_MAGIC))
    try:
        header: dict[str, Any] = orjson.loads(body[start : start + length])
        schema = header["schema"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise CorruptState(f"snapshot has no readable header: {error!s:.200}") from error
    if type(schema) is not int or schema < 1:
        raise CorruptState(f"snapshot has schema {schema!r:.80}; schemas are numbered from 1")
    if schema > SNAPSHOT_SCHEMA:
        raise NewerSchema(
            f"snapshot has schema {schema}, this release reads up to {SNAPSHOT_SCHEMA}: upgrade statecore"
        )
    if schema < SNAPSHOT_SCHEMA:
        try:
            header = old_snapshots.upcast(header, schema)
        except Misshapen as misshapen:
            raise CorruptState(f"snapshot is not of schema {schema}: {misshapen}") from None
    if wrong := mismatch(header, _HEADER):
        raise CorruptState(f"snapshot's {wrong}")
    offset = start + length
    columns = {}
    for (name, kind), count in zip(_COLUMNS, header["lengths"], strict=True):
        size = np.dtype(kind).itemsize * count
        if offset + size > len(body):
            raise CorruptState(f"snapshot ends within column {name}")
        columns[name] = np.frombuffer(body, dtype=kind, count=count, offset=offset)
        offset += size
    return header, columns, body[offset:]


def _restored(header: dict[str, Any], columns: dict[str, npt.NDArray[Any]], hashes: bytes) -> State:
    state = State()
    for name in _SCALARS:
        setattr(state, name, header["state"][name])
    state.clock = state.position + 1
    for name, tier, blocks, _, counters in header["pools"]:
        pool = state.pools[name] = Pool(name, tier, blocks)
        for counter, value in zip(_POOL_COUNTERS, counters, strict=True):
            setattr(pool, counter, value)
    check_columns(columns, len(header["pools"]), len(header["names"]), state.next_node)
    _restore_nodes(state, columns, hashes, header["names"])
    for name, fields, window, held, requests in header["engines"]:
        _restore_engine(state, name, fields, window, held, requests)
    for transfer in header["transfers"]:
        _restore_transfer(state, transfer)
    for send in header["sends"]:
        _restore_send(state, send)
    for kind in ("pools", "engines", "transfers", "sends"):
        _require_each_once(kind, len(getattr(state, kind)), header[kind])
    _restore_free(state, {name: free for name, _, _, free, _ in header["pools"]})
    return state


def _require_each_once(what: str, kept: int, written: Sized) -> None:
    if kept != len(written):
        raise ValueError(f"{len(written)} {what} are written, {kept} different ones")


def _restore_nodes(state: State, columns: dict[str, npt.NDArray[Any]], hashes: bytes, names: list[str]) -> None:
    nodes, pools, known = state.nodes, list(state.pools.values()), [*names, None]  # number -1 is the last: nobody
    copies, spans = _copies(columns, known), 0
    offset = 0
    for node_id, parent_id, blocks, count in zip(
        *(columns[name].tolist() for name in ("node_id", "node_parent", "node_blocks", "node_copies")), strict=True
    ):
        parent = nodes[parent_id]
        run = hashes[offset : offset + blocks * BLOCK_HASH_BYTES]
        offset += blocks * BLOCK_HASH_BYTES
        if node_id in nodes or run[:BLOCK_HASH_BYTES] in parent.children:
            raise ValueError(f"node {node_id} is written twice, or another child of node {parent_id} begins like it")
        node = nodes[node_id] = parent.children[run[:BLOCK_HASH_BYTES]] = Node(node_id, parent, parent.end, run)
        for _ in range(count):
            number, copy = next(copies)
            pool = pools[number]
            node.copies[pool.name] = copy
            spans += len(copy.blocks)
            if copy.unpinned:
                pool.unpinned += blocks
                if copy.branches == 0:
                    pool.eviction_order.offer(node, copy)
        if len(node.copies) != count:
            raise ValueError(f"node {node_id} has {count} copies in {len(node.copies)} pools")
    if offset != len(hashes) or next(copies, None) is not None or spans != len(columns["range_start"]):
        raise ValueError(f"{len(hashes)} bytes of hashes for {offset}, or copies without a node")


def _copies(columns: dict[str, npt.NDArray[Any]], names: list[str | None]) -> Iterator[tuple[int, Copy]]:
    spans = list(zip(columns["range_start"].tolist(), columns["range_count"].tolist(), strict=True))
    first = 0
    for pool, refs, branches, used, pending, since, filling, leaving, unwritable, count in zip(
        *(columns[name].tolist() for name, _ in _COLUMNS[4:14]), strict=True
    ):
        blocks: BlockRanges = tuple(spans[first : first + count])
        first += count
        copy = Copy(blocks, refs, branches, used, names[pending], since, names[filling], names[leaving])
        copy.unwritable = bool(unwritable)
        yield pool, copy


def _restore_engine(
    state: State, name: str, fields: list[Any], window: list[int], held: list[Any], requests: list[Any]
) -> None:
    engine = state.engines[name] = Engine(name)
    for field, value in zip(_ENGINE_FIELDS, fields, strict=True):
        setattr(engine, field, value)
    seen, hit, prompt, matched, host = window
    engine.window = (seen, hit, prompt, matched, host)
    for pool, blocks in held:
        engine.held[pool] = BlockSet(_ranges(blocks))
    _require_each_once("pools of held blocks", len(engine.held), held)
    for request_id, leaf, depth, private, duplicates in requests:
        request = engine.requests[request_id] = Request(request_id, state.nodes[leaf])
        request.matched = depth
        request.private = _ranges(private)
        request.duplicates = tuple((place, _ranges(blocks)) for place, blocks in duplicates)
    _require_each_once("requests", len(engine.requests), requests)


def _restore_transfer(state: State, written: list[Any]) -> None:
    name, kind, engine, (node, start, end), (source, destination), ranks, cancelled, quarantine = written
    # A cancelled transfer's node may be gone; nobody asks for it any more.
    at = state.nodes.get(node, state.root) if cancelled else state.nodes[node]
    fact = TransferStarted(name, kind, engine, None, node, start, end, source, (), destination, ())
    transfer = state.transfers[name] = Transfer(fact, at, ranks)
    transfer.cancelled, transfer.quarantine = cancelled, _ranges(quarantine)


def _restore_send(state: State, written: list[Any]) -> None:
    name, engine, request, receiver, ends, ranks, cancelled, quarantine = written
    source, source_blocks, destination, destination_blocks = ends
    fact = SendStarted(
        name, engine, request, receiver, source, _ranges(source_blocks), destination, _ranges(destination_blocks)
    )
    send = state.sends[name] = Send(fact, ranks)
    send.cancelled, send.quarantine = cancelled, _ranges(quarantine)


def _restore_free(state: State, recorded: dict[str, int]) -> None:
    """Free is what nobody has."""
    used: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for node in state.nodes.values():
        for name, copy in node.copies.items():
            used[name] += copy.blocks
    for engine in state.engines.values():
        for name, held in engine.held.items():
            used[name] += held
        for request in engine.requests.values():
            used[engine.gpu_pool] += private_ranges(request)
    for transfer in state.transfers.values():
        used[transfer.destination] += transfer.quarantine
    for send in state.sends.values():
        used[send.destination] += send.quarantine
    if strange := [name for name, blocks in used.items() if blocks and name not in state.pools]:
        raise ValueError(f"blocks of pools {strange!r:.80}, which do not exist")
    for pool in state.pools.values():
        _restore_pool(pool, used[pool.name], recorded[pool.name])


def _restore_pool(pool: Pool, used: list[tuple[int, int]], recorded: int) -> None:
    free, after = [], 0
    for start, count in ranges.merged(used):
        if start < after:
            raise ValueError(f"block {start} of pool {pool.name!r} has two owners")
        if start > after:
            free.append((after, start - after))
        after = start + count
    if after > pool.blocks:
        raise ValueError(f"block {after - 1} of pool {pool.name!r}, which has {pool.blocks}")
    pool.free = BlockSet((*free, (after, pool.blocks - after)) if after < pool.blocks else tuple(free))
    if pool.free.total != recorded:
        raise ValueError(f"pool {pool.name!r} has {pool.free.total} free blocks, {recorded} were written")


def _ranges(pairs: list[list[int]]) -> BlockRanges:
    for start, count in pairs:
        if not (count >= 1 and start + count <= POOL_BLOCKS_MAX):
            raise ValueError(f"blocks {start}…{start + count - 1}, {count} of them")
    return tuple((start, count) for start, count in pairs)


assert ROOT_ID == 0, "the root is not written: every state has one"
