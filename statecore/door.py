"""Checks at the door: what a caller hands in is what it should be, or nothing happens.

Owns the wording of these refusals. Everything behind the door may rely on types and bounds.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from contextlib import suppress

from events.errors import InvalidInput
from events.facts import BlockRanges
from events.limits import REQUEST_ID_LENGTH_MAX
from statecore import ranges

_DAY_S = 86_400
_SHOWN_BITS = 256


def whole(value: object, what: str, *, least: int, most: int) -> int:
    """An integer from `least` to `most`; numpy integers too, booleans not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidInput(f"{what} must be an integer, not {type(value).__name__} {shown(value)}")
    number = int(value)
    if not least <= number <= most:
        raise InvalidInput(f"{what} must be from {least} to {most}, not {shown(number)}")
    return number


def shown(value: object) -> str:
    """A value as a message shows it: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.80}"


def request_id(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"a request id is a string, not {type(value).__name__} {shown(value)}")
    if not 0 < len(value) <= REQUEST_ID_LENGTH_MAX or not value.isprintable():
        raise InvalidInput(f"a request id is 1 to {REQUEST_ID_LENGTH_MAX} printable characters, not {value!r:.300}")
    return value


def block_ids(value: object, pool_blocks: int) -> BlockRanges:
    """A list of block ids of a pool, none twice, as ranges."""
    given: list[object] | None = None
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        with suppress(TypeError):  # a numpy array without dimensions calls itself iterable
            given = list(value)
    if given is None:
        raise InvalidInput(f"block ids come as a list of integers, not {type(value).__name__} {shown(value)}")
    listed = [whole(block, "a block id", least=0, most=pool_blocks - 1) for block in given]
    if len(set(listed)) != len(listed):
        twice = next(block for block in listed if listed.count(block) > 1)
        raise InvalidInput(f"block {twice} is named twice")
    return ranges.of_ids(listed)


def seconds(value: object, what: str) -> float:
    """A time from 0 to a day."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _DAY_S:
        raise InvalidInput(f"{what} is a number of seconds from 0 to {_DAY_S}, not {shown(value)}")
    return float(value)


def text(value: object, what: str, longest: int) -> str:
    """A string, cut to `longest` characters."""
    if not isinstance(value, str):
        raise InvalidInput(f"{what} is a string, not {type(value).__name__} {shown(value)}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"{what} holds half a character, which cannot be written: {value!a:.80}")
    return value[:longest]


def transfer_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= REQUEST_ID_LENGTH_MAX:
        raise InvalidInput(f"a transfer is named by the string a call answered, not {shown(value)}")
    return value
