"""Texts and numbers out of what Redis holds: fields, keys, and the replies of scripts that show them.

Owns the refusal: what none of us wrote is told with the place it stands at, and nothing is guessed from it. What is inside a
log entry, a job or a heartbeat has its own decoder.
"""

from __future__ import annotations

from typing import Final

from events.errors import CorruptState

_TEXT_MAX: Final = 1000
"""Names and ids of ours are shorter, and printable."""

_DIGITS_MAX: Final = 16
"""Positions and sessions stay exact in Lua, whose numbers are doubles; times in milliseconds are shorter."""


def text(value: bytes | None, where: str) -> str:
    """A name or an id; nothing is "".

    Args:
        where: key and field, for the message.

    Raises:
        CorruptState: it cannot be one.
    """
    try:
        found = bytes(value or b"").decode("ascii")
    except UnicodeDecodeError:
        raise _damaged(value, where, "name or id") from None
    if len(found) > _TEXT_MAX or not found.isprintable():
        raise _damaged(value, where, "name or id")
    return found


def number(value: bytes | int | None, where: str) -> int:
    """A position, a session, a size: whole and not negative.

    Raises:
        CorruptState: anything else.
    """
    if isinstance(value, int):
        return value
    digits = value or b""
    if not digits.isdigit() or len(digits) > _DIGITS_MAX:
        raise _damaged(value, where, "number")
    return int(digits)


def _damaged(value: bytes | None, where: str, wanted: str) -> CorruptState:
    shown = value if value is None or len(value) <= 80 else value[:77] + b"..."
    return CorruptState(f"{where}: {shown!r} is no {wanted}; none of us wrote it")
