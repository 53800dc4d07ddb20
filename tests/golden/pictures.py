"""Facts and states in words, for stories: compact, stable, made to be checked by eye.

Owns the wording only. Knows the facts and the records of the state; does nothing to them. Tokens are shown instead of
block hashes, which nobody can read: the runner says which hash stands for which tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from events.facts import (
    BLOCK_HASH_BYTES,
    BlockRanges,
    BlocksAllocated,
    BlocksRecycled,
    CacheCleared,
    CopyEvicted,
    EngineJoined,
    EngineLeft,
    EngineLost,
    Fact,
    HistoryLost,
    IndexCreated,
    PathExtended,
    PathReady,
    PolicyChosen,
    PoolAdded,
    PoolDropped,
    PoolResized,
    PrefixMatched,
    RequestReleased,
    SendStarted,
    ServicePaused,
    ServiceResumed,
    TransferCancelled,
    TransferFinished,
    TransferStarted,
)
from statecore import ranges
from statecore.state import Copy, Node, State, Transfer, request_table

TokensOf = Mapping[bytes, Sequence[int]]


def ids(blocks: Iterable[tuple[int, int]]) -> str:
    """`0-3,7`; `-` for none."""
    spans = [f"{start}" if count == 1 else f"{start}-{start + count - 1}" for start, count in blocks]
    return ",".join(spans) or "-"


def ids_of_list(blocks: Sequence[int]) -> str:
    return ids(ranges.of_ids(blocks))


def fact_in_words(fact: Fact) -> str:  # noqa: PLR0912 - one branch per kind of fact
    match fact:
        case IndexCreated() | PoolAdded() | PoolResized() | PoolDropped() | PolicyChosen():
            return _setting_in_words(fact)
        case HistoryLost():
            return f"{fact.told_by} tells that commit {fact.commit} is lost"
        case ServicePaused() | ServiceResumed() | CacheCleared():
            what = {
                ServicePaused: "pauses service",
                ServiceResumed: "resumes service",
                CacheCleared: "clears the cache",
            }
            return f"{fact.engine} {what[type(fact)]}: {fact.reason}"
        case EngineJoined():
            host = f", host {fact.cpu_pool}" if fact.cpu_pool is not None else ""
            return f"{fact.engine} joins, session {fact.session}, pool {fact.gpu_pool}{host}"
        case EngineLeft():
            return f"{fact.engine} leaves, session {fact.session}"
        case EngineLost():
            return f"{fact.engine} is lost, session {fact.session}: {fact.reason}"
        case PrefixMatched():
            hit = f"{fact.depth} blocks at node {fact.node}" if fact.depth else "nothing"
            return f"{fact.engine}/{fact.request} matches {hit} for {fact.prompt_tokens} tokens"
        case BlocksAllocated():
            return f"{_owner(fact)} is given {ids(fact.blocks)} of {fact.pool}"
        case BlocksRecycled():
            return f"{_owner(fact)} gives back {ids(fact.blocks)} of {fact.pool}"
        case PathExtended():
            end = fact.depth + len(fact.hashes) // BLOCK_HASH_BYTES
            duplicates = f", duplicates {ids(fact.duplicates)}" if fact.duplicates else ""
            return (
                f"{fact.engine}/{fact.request} path grows {fact.depth} -> {end}, adopts {ids(fact.adopted)}{duplicates}"
            )
        case PathReady():
            return f"{fact.engine}/{fact.request} ready to {fact.depth}"
        case RequestReleased():
            return f"{fact.engine}/{fact.request} ends, frees {ids(fact.freed)}"
        case CopyEvicted():
            return f"{fact.pool} evicts {ids(fact.blocks)}, end of node {fact.node} at depth {fact.depth}"
        case TransferStarted() | TransferFinished() | TransferCancelled() | SendStarted():
            return _transfer_in_words(fact)


def _setting_in_words(fact: IndexCreated | PoolAdded | PoolResized | PoolDropped | PolicyChosen) -> str:
    match fact:
        case IndexCreated():
            return f"index of {fact.block_size}-token blocks"
        case PoolAdded():
            return f"pool {fact.pool} ({fact.tier}) of {fact.blocks} blocks"
        case PoolDropped():
            return f"the memory of pool {fact.pool} is gone"
        case PoolResized():
            return f"pool {fact.pool} has {fact.blocks} blocks now"
        case PolicyChosen():
            marks = f", swaps out below {fact.free_low}% free until {fact.free_high}%" if fact.free_low else ""
            return f"policy {fact.write}{marks}"


def _transfer_in_words(fact: TransferStarted | TransferFinished | TransferCancelled | SendStarted) -> str:
    match fact:
        case SendStarted():
            return (
                f"{fact.transfer} starts: send of {fact.engine}/{fact.request} to {fact.receiver}, "
                f"{fact.source} {ids(fact.source_blocks)} -> {fact.destination} {ids(fact.destination_blocks)}"
            )
        case TransferStarted():
            whose = f" for {fact.engine}/{fact.request}" if fact.request is not None else ""
            return (
                f"{fact.transfer} starts: {_kind(fact.kind)} of blocks {fact.start + 1}..{fact.end} at node {fact.node}"
                f"{whose}, {fact.source} {ids(fact.source_blocks)} -> {fact.destination} {ids(fact.destination_blocks)}"
            )
        case TransferFinished():
            return f"{fact.transfer} is done" if fact.ok else f"{fact.transfer} has failed: {fact.reason}"
        case TransferCancelled():
            return f"{fact.transfer} is cancelled: {fact.reason}"


def _kind(kind: str) -> str:
    return kind.replace("_", "-")


def _owner(fact: BlocksAllocated | BlocksRecycled) -> str:
    return fact.engine if fact.request is None else f"{fact.engine}/{fact.request}"


def pools(state: State) -> list[str]:
    """What transfers did is told where there were any."""
    return [
        f"{pool.name}: free {ids(pool.free)}, unpinned {pool.unpinned}, evicted {pool.evicted}, of {pool.blocks}"
        + (f", arrived {pool.arrived}" if pool.arrived else "")
        + (f", rescued {pool.rescued}" if pool.rescued else "")
        for _, pool in sorted(state.pools.items())
    ]


def transfers(state: State) -> list[str]:
    """Those under way, oldest first, and the results nobody had use for."""
    lines = [_transfer(transfer) for transfer in state.transfers.values()] or ["none"]
    return lines + ([f"results ignored: {state.ignored_finishes}"] if state.ignored_finishes else [])


def _transfer(transfer: Transfer) -> str:
    cancelled = f", cancelled, {ids(transfer.quarantine)} in quarantine" if transfer.cancelled else ""
    return (
        f"{transfer.id}: {_kind(transfer.kind)} of blocks {transfer.start + 1}..{transfer.end} at node {transfer.node.id}, "
        f"{transfer.source} -> {transfer.destination}{cancelled}"
    )


def engines(state: State) -> list[str]:
    """Life, requests, blocks held without one, and the counters: hits of requests, reused tokens of prompt tokens."""
    lines = []
    for _, engine in sorted(state.engines.items()):
        held = " ".join(f"{pool}:{ids(blocks)}" for pool, blocks in sorted(engine.held.items()) if blocks.total)
        lines.append(
            f"{engine.name}: session {engine.session} {'alive' if engine.alive else 'over'}, pool {engine.gpu_pool}, "
            f"requests {' '.join(sorted(engine.requests)) or '-'}, holds {held or '-'}, "
            f"hits {engine.requests_hit} of {engine.requests_seen}, "
            f"reused {engine.matched_tokens} of {engine.prompt_tokens} tokens"
            + (f", {engine.host_tokens} of them from the host" if engine.host_tokens else "")
        )
    return lines


def request(state: State, engine_name: str, request_id: str) -> list[str]:
    engine = state.engines[engine_name]
    found = engine.requests.get(request_id)
    if found is None:
        return [f"{engine_name} has no request {request_id}"]
    table = ranges.ids(request_table(found, engine.gpu_pool))
    duplicates = " ".join(f"{depth}:{ids(own)}" for depth, own in found.duplicates)
    return [
        f"table {','.join(map(str, table)) or '-'}: path of {found.path_blocks} to node {found.leaf.id}, "
        f"private {ids(found.private)}" + (f", duplicates {duplicates}" if duplicates else "")
    ]


def tree(state: State, tokens_of: TokensOf) -> list[str]:
    """One line per node, children below their parent, in order of their tokens."""
    lines: list[str] = []

    def visit(node: Node, indent: str) -> None:
        for child in sorted(node.children.values(), key=lambda child: tuple(tokens_of[child.key])):
            copies = "; ".join(_copy(pool, copy) for pool, copy in sorted(child.copies.items()))
            lines.append(
                f"{indent}node {child.id}, blocks {child.start + 1}..{child.end} ({_run(child, tokens_of)}): {copies}"
            )
            visit(child, indent + "  ")

    visit(state.root, "")
    return lines or ["empty"]


def _copy(pool: str, copy: Copy) -> str:
    pending = f", pending by {copy.pending}" if copy.pending is not None else ""
    if copy.filling is not None:
        pending = f", filled by {copy.filling}"
    leaving = f", leaving by {copy.leaving}" if copy.leaving is not None else ""
    return f"{pool} {ids(copy.blocks)}, refs {copy.refs}, used at {copy.last_used}{pending}{leaving}"


def _run(node: Node, tokens_of: TokensOf) -> str:
    """The tokens of a run: `1..8 50..53`."""
    size = BLOCK_HASH_BYTES
    tokens = [token for at in range(0, len(node.hashes), size) for token in tokens_of[node.hashes[at : at + size]]]
    spans: BlockRanges = ranges.of_ids(tokens)
    return " ".join(f"{start}..{start + count - 1}" if count > 1 else str(start) for start, count in spans)
