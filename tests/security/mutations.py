"""Ways to damage what is stored, by accident or with intent.

Owns the mutators: of bytes (a bit flips, the end is missing, a piece is doubled or overwritten) and of JSON (a value of
another type, a huge or negative number, a field more or less, depth). They know nothing of what they damage.
"""

from __future__ import annotations

import copy
import random
from typing import Any, Final

STRANGE: Final[tuple[Any, ...]] = (
    None, True, False, -1, 0, 1, 3.5, 2**31, 2**40, 2**63, 2**64 - 1, -(2**63), 1e308, "", "x", "\x00", "ß" * 50, "9" * 5000,
    [], {}, [[]], [None], [0], [[0, 1]], [[0, 2**31]], [[2**40, 2**31]], [[0, 0]], [[-1, 5]], [[5, 5], [5, 5]], {"a": 1},
    "root", "gpu", "cpu:host",
)  # fmt: skip


def of_bytes(data: bytes, random: random.Random) -> bytes:
    """The same with one kind of damage; never the same bytes, unless there are none."""
    while True:
        damaged = _damaged(data, random)
        if damaged != data or not data:
            return damaged


def _damaged(data: bytes, random: random.Random) -> bytes:
    at = random.randrange(len(data)) if data else 0
    match random.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :] if data else data
        case 2:
            return data[:at] + random.randbytes(random.randint(1, 9)) + data[at:]
        case 3:
            size = random.randint(1, 9)
            return data[:at] + random.randbytes(size) + data[at + size :]
        case 4:
            return data[:at] + data[max(0, at - 40) : at] + data[at:]
        case _:
            return data[:at] + random.choice([b"\xff" * 8, b"\x00" * 8, b"[" * 5000, b"9" * 400]) + data[at + 8 :]


def of_json(value: Any, random: random.Random) -> Any:
    """A copy with one place changed."""
    changed = copy.deepcopy(value)
    places = list(_places(changed))
    if not places or random.random() < 0.02:
        return random.choice(STRANGE)
    holder, key = random.choice(places)
    match random.randrange(6):
        case 0 if isinstance(holder, list):
            del holder[key]
        case 0:
            holder[f"{key}x"] = holder.pop(key)
        case 1 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 2:
            holder[key] = nested(random.choice([3, 900, 1100]))
        case 3 if type(holder[key]) is int:
            holder[key] += random.choice([-1, 1, 7, 2**31, -(2**31)])
        case 4:
            other_holder, other = random.choice(places)
            holder[key] = copy.deepcopy(other_holder[other])
        case _:
            holder[key] = random.choice(STRANGE)
    return changed


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        pairs = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        for key, part in pairs:
            found.append((holder, key))
            if isinstance(part, dict | list):
                waiting.append(part)
    return found
