"""Facts in words, for people.

Owns how a field is written (block ids as `0-7, 9`, hashes as a count and the first eight digits) and the sentences of
the few facts whose fields one by one would not be understood. Every other fact is written field by field, so a new fact
or field shows up without a change here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from events.facts import (
    BLOCK_HASH_BYTES,
    FACT_TYPES,
    BlockRanges,
    CacheCleared,
    Fact,
    HistoryLost,
    PolicyChosen,
    PoolResized,
    SendStarted,
    ServicePaused,
    ServiceResumed,
    TransferCancelled,
    TransferFinished,
    TransferStarted,
)

FACT_NAMES: Final = tuple(fact_type.__name__ for fact_type in FACT_TYPES)
_HASH_DIGITS: Final = 8


def block_words(blocks: BlockRanges) -> str:
    """`0-7, 9`; "none" where there are none."""
    spans = [f"{start}-{start + count - 1}" if count > 1 else str(start) for start, count in blocks]
    return ", ".join(spans) or "none"


def hash_words(hashes: bytes) -> str:
    """`5 blocks c228cb46…`."""
    blocks = len(hashes) // BLOCK_HASH_BYTES
    return f"{blocks} block{'' if blocks == 1 else 's'} {hashes.hex()[:_HASH_DIGITS]}…" if blocks else "none"


def kind_words(kind: str) -> str:
    """`swap out`, `write through`, `swap in`, `write back`."""
    return kind.replace("_", " ")


def policy_words(write: str, free_low: int, free_high: int) -> str:
    """When copies go to the host tier."""
    room = f"under {free_low} % free until {free_high} %" if free_low else "only when blocks are needed"
    return f"{kind_words(write)}, swap-outs {room}"


def fact_words(fact: Fact, author: str) -> str:
    """A fact in words; its engine only where it is not the commit's author."""
    sentence = _SENTENCES.get(type(fact))
    words = [] if sentence is None else [sentence(fact)]
    for field in attrs.fields(type(fact)):
        if field.name == "engine":
            if fact.engine != author:  # type: ignore[union-attr]  # this one has the field
                words.append(f"engine {fact.engine}")  # type: ignore[union-attr]
        elif sentence is None:
            words.append(_field_words(field.name.replace("_", " "), getattr(fact, field.name)))
    return ", ".join(words)


def _field_words(name: str, value: object) -> str:
    match value:
        case None:
            return f"no {name}"
        case bytes():
            return f"{name} {hash_words(value)}"
        case tuple():
            return f"{name} {block_words(value)}"
        case _:
            return f"{name} {value}"


# --- sentences ------------------------------------------------------------------------------------------------------


def _policy_chosen(fact: PolicyChosen) -> str:
    return policy_words(fact.write, fact.free_low, fact.free_high)


def _transfer_started(fact: TransferStarted) -> str:
    wanted = "" if fact.request is None else f" for request {fact.request}"
    return (
        f"{fact.transfer}: {kind_words(fact.kind)}{wanted}, "
        f"{fact.source} {block_words(fact.source_blocks)} → {fact.destination} {block_words(fact.destination_blocks)}, "
        f"blocks {block_words(((fact.start, fact.end - fact.start),))} of the path to node {fact.node}"
    )


def _send_started(fact: SendStarted) -> str:
    return (
        f"{fact.transfer}: send of request {fact.request} to engine {fact.receiver}, "
        f"{fact.source} {block_words(fact.source_blocks)} → {fact.destination} {block_words(fact.destination_blocks)}"
    )


def _transfer_finished(fact: TransferFinished) -> str:
    return f"{fact.transfer}: done" if fact.ok else f"{fact.transfer}: failed ({_reason(fact)})"


def _transfer_cancelled(fact: TransferCancelled) -> str:
    return f"{fact.transfer}: {_reason(fact)}"


def _pool_resized(fact: PoolResized) -> str:
    return f"pool {fact.pool} has {fact.blocks} block{'' if fact.blocks == 1 else 's'} from now on"


def _service_paused(fact: ServicePaused) -> str:
    return f"no request may begin: {_reason(fact)}"


def _service_resumed(fact: ServiceResumed) -> str:
    return f"requests may begin again: {_reason(fact)}"


def _cache_cleared(fact: CacheCleared) -> str:
    return f"all that was cached is forgotten: {_reason(fact)}"


def _history_lost(fact: HistoryLost) -> str:
    return f"commit {fact.commit} is lost, so copies that nobody uses are given up: told by {fact.told_by}"


def _reason(fact: TransferFinished | TransferCancelled | ServicePaused | ServiceResumed | CacheCleared) -> str:
    return fact.reason or "no reason given"


_SENTENCES: Final[dict[type, Callable[[Any], str]]] = {
    PolicyChosen: _policy_chosen,
    TransferStarted: _transfer_started,
    TransferFinished: _transfer_finished,
    TransferCancelled: _transfer_cancelled,
    SendStarted: _send_started,
    PoolResized: _pool_resized,
    ServicePaused: _service_paused,
    ServiceResumed: _service_resumed,
    CacheCleared: _cache_cleared,
    HistoryLost: _history_lost,
}
