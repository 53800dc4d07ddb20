"""What a transfer job says, in bytes and back.

Owns the body of a job. A job is a doorbell: it repeats what `TransferStarted` recorded, so that a worker can copy without
a replica, and names the scopes that the finish will move. Losing a job loses nothing; it can be made again from the state.
"""

from __future__ import annotations

import attrs
import orjson

from events.errors import InvalidInput
from events.facts import BlockRanges
from events.limits import POOL_BLOCKS_MAX, RANKS_MAX


@attrs.frozen
class TransferJob:
    """A transfer as a worker sees it.

    Attributes:
        transfer: id.
        kind: "swap_out", "write_through" or "swap_in"; for people, a worker treats all alike.
        ranks: how many workers copy a shard each.
        touches_ok, touches_failed: scopes the finish moves.
    """

    transfer: str
    kind: str
    source: str
    source_blocks: BlockRanges
    destination: str
    destination_blocks: BlockRanges
    ranks: int
    touches_ok: tuple[str, ...]
    touches_failed: tuple[str, ...]


_NAMES = tuple(field.name for field in attrs.fields(TransferJob))


def encode_job(job: TransferJob) -> bytes:
    return orjson.dumps({name: getattr(job, name) for name in _NAMES})


def decode_job(body: bytes) -> TransferJob:
    """The job behind a body.

    Raises:
        InvalidInput: not exactly what `encode_job` writes.
    """
    try:
        plain = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"a job that is not JSON: {error}") from None
    if not isinstance(plain, dict) or plain.keys() != set(_NAMES):
        raise InvalidInput(f"a job has the fields {sorted(_NAMES)}, not {plain!r:.200}")
    try:
        return TransferJob(
            transfer=_text(plain["transfer"]),
            kind=_text(plain["kind"]),
            source=_text(plain["source"]),
            source_blocks=_blocks(plain["source_blocks"]),
            destination=_text(plain["destination"]),
            destination_blocks=_blocks(plain["destination_blocks"]),
            ranks=_whole(plain["ranks"], 1, RANKS_MAX),
            touches_ok=_texts(plain["touches_ok"]),
            touches_failed=_texts(plain["touches_failed"]),
        )
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a job with a field that is not what it should be: {error}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if type(value) is not list:
        raise TypeError(f"{value!r:.80} is not a list of strings")
    return tuple(map(_text, value))


def _whole(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise TypeError(f"{value!r:.80} is not an integer from {least} to {most}")
    return value


def _blocks(value: object) -> BlockRanges:
    if type(value) is not list:
        raise TypeError(f"{value!r:.80} is not a list of block ranges")
    return tuple((_whole(start, 0, POOL_BLOCKS_MAX), _whole(count, 1, POOL_BLOCKS_MAX)) for start, count in value)
