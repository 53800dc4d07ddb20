"""Facts in words, for people.

Owns how a field is written: block ids as `0-7, 9`, hashes as a count and the first eight digits. Knows no fact by name,
so a new fact or field shows up without a change here.
"""

from __future__ import annotations

from typing import Final

import attrs

from events.facts import BLOCK_HASH_BYTES, FACT_TYPES, BlockRanges, Fact

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


def fact_words(fact: Fact, author: str) -> str:
    """The fields of a fact; the engine only where it is not the commit's author."""
    words = []
    for field in attrs.fields(type(fact)):
        value = getattr(fact, field.name)
        if field.name != "engine" or value != author:
            words.append(_field_words(field.name.replace("_", " "), value))
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
