"""The trace format: one request per line, and the block hashes its prompt stands for.

Owns the record `TraceRequest`, the published Mooncake file format (`.jsonl`, plain or gzipped) and
the way from a trace's 512-token ids to 16-byte block hashes of any smaller block size. Knows no
index and no policy. A line that breaks the format stops the reading: a workload that lost requests
silently would make every figure measured with it wrong.

    field         meaning
    timestamp     arrival, milliseconds from the start of the trace
    input_length  tokens of the prompt
    output_length tokens generated
    hash_ids      one id per 512 tokens of the prompt, the last one possibly partial; equal ids at
                  an equal place mean equal content and an equal prefix

Further fields are allowed and ignored. The order of arrivals is the file's, not checked.

A partial block has an id of its own, so a later prompt that goes on from it shares only the blocks
that were full at 512 tokens, also when it is cut into smaller blocks: the trace does not say more.
"""

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, cast

import attrs
import numpy as np
import numpy.typing as npt
import orjson

TRACE_BLOCK_TOKENS = 512
HASH_BYTES = 16

# An id and its sub-block share one 64-bit word: 55 bits and 9 bits (512 sub-blocks of one token).
MAX_HASH_ID = 2**55 - 1
# A request's number and the place of an output block share one 64-bit word: 40 bits and 24 bits.
MAX_REQUEST_INDEX = 2**40 - 1
MAX_OUTPUT_BLOCKS = 2**24

Words = npt.NDArray[np.uint64]


class TraceError(ValueError):
    """A trace file breaks the format. Says which file, which line, which value and why."""


@attrs.frozen(slots=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        arrival_ms: when it arrives, milliseconds from the start of the trace.
        input_tokens: length of its prompt.
        output_tokens: how many tokens are generated for it.
        hash_ids: one id per `TRACE_BLOCK_TOKENS` tokens of the prompt; the last may be partial.

    Raises:
        ValueError: a field is no integer or negative, or the ids do not cover the prompt exactly.
    """

    arrival_ms: int
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        _check_count("arrival_ms", self.arrival_ms)
        _check_count("input_tokens", self.input_tokens)
        _check_count("output_tokens", self.output_tokens)
        expected = -(-self.input_tokens // TRACE_BLOCK_TOKENS)
        if len(self.hash_ids) != expected:
            raise ValueError(
                f"{len(self.hash_ids)} hash_ids for a prompt of {self.input_tokens} tokens, "
                f"which has {expected} blocks of {TRACE_BLOCK_TOKENS}"
            )
        for value in self.hash_ids:
            if type(value) is not int or not 0 <= value <= MAX_HASH_ID:
                raise ValueError(f"hash id {value!r} is not an integer from 0 to {MAX_HASH_ID}")


def read_trace(path: str | os.PathLike[str], limit: int | None = None) -> Iterator[TraceRequest]:
    """The requests of a `.jsonl` or `.jsonl.gz` trace, read line by line.

    Args:
        path: the file; its name decides whether it is unpacked.
        limit: stop after this many requests (what follows is not looked at); None reads all.

    Raises:
        TraceError: while iterating, at the first wrong line; at once for another file name.
        ValueError: limit is not a positive integer.
        FileNotFoundError: while iterating.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"limit is {limit!r}, needs an integer of at least 1, or None for all")
    file = _trace_path(path)
    return islice(_requests(file), limit)


def write_trace(path: str | os.PathLike[str], requests: Iterable[TraceRequest]) -> int:
    """Write requests to a `.jsonl` or `.jsonl.gz` trace; return how many there were.

    The file appears whole or not at all, and equal requests make equal bytes.

    Raises:
        TraceError: there was no request, or the file has another name.
    """
    file = _trace_path(path)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as raw:
            count = _write_packed(raw, requests) if _is_packed(file) else _write(raw, requests)
        if count == 0:
            raise TraceError(f"{file}: no request to write, and a trace has at least one")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def block_hashes(request: TraceRequest, block_size: int, seed: bytes = b"") -> bytes:
    """The joined 16-byte hashes of the prompt's full blocks of `block_size` tokens.

    There are `input_tokens // block_size` of them. Block sizes and seeds (tenants, overlaid copies)
    never share a hash; within one of each, hashes are equal exactly where id and place within it
    are.

    Raises:
        ValueError: block_size does not divide 512.
    """
    _check_block_size(block_size)
    parts = TRACE_BLOCK_TOKENS // block_size
    count = request.input_tokens // block_size
    ids = np.array(request.hash_ids[: -(-count // parts)], dtype=np.uint64)
    words = (ids[:, np.newaxis] << np.uint64(9)) | np.arange(parts, dtype=np.uint64)
    return _hashes(words.ravel()[:count], b"prompt", block_size, seed)


def output_hashes(request_index: int, request: TraceRequest, block_size: int, seed: bytes = b"") -> bytes:
    """The joined 16-byte hashes of the blocks that the generated tokens fill.

    They are the blocks from `input_tokens // block_size` (the one the prompt left partial) up to
    `(input_tokens + output_tokens) // block_size`. The trace does not tell who shares generated
    text, so nobody does: hashes are unique to `request_index`.

    Raises:
        ValueError: block_size does not divide 512, or request_index is out of range.
    """
    _check_block_size(block_size)
    if type(request_index) is not int or not 0 <= request_index <= MAX_REQUEST_INDEX:
        raise ValueError(f"request_index is {request_index!r}, needs 0 to {MAX_REQUEST_INDEX}")
    end = (request.input_tokens + request.output_tokens) // block_size
    count = end - request.input_tokens // block_size
    if count > MAX_OUTPUT_BLOCKS:
        raise ValueError(f"{count} output blocks in one request, {MAX_OUTPUT_BLOCKS} at most")
    words = np.arange(count, dtype=np.uint64) | (np.uint64(request_index) << np.uint64(24))
    return _hashes(words, b"output", block_size, seed)


def _hashes(words: Words, domain: bytes, block_size: int, seed: bytes) -> bytes:
    """Two keyed mixes of each word side by side. Each mix is a bijection: no two words collide."""
    key = blake2b(b"%b:%d:%b" % (domain, block_size, seed), digest_size=HASH_BYTES).digest()
    columns = np.empty((len(words), 2), dtype="<u8")
    columns[:, 0] = _mix(words ^ np.uint64(int.from_bytes(key[:8], "little")))
    columns[:, 1] = _mix(words ^ np.uint64(int.from_bytes(key[8:], "little")))
    return columns.tobytes()


def _mix(words: Words) -> Words:
    """The finisher of splitmix64 (Steele, Lea, Flood: Fast Splittable Generators, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _requests(file: Path) -> Iterator[TraceRequest]:
    number = 0
    try:
        for number, line in enumerate(_lines(file), start=1):
            yield _parse(file, number, line)
    except gzip.BadGzipFile as error:
        raise TraceError(f"{file}, line {number + 1}: not gzip, or damaged: {error}") from error
    except EOFError as error:
        raise TraceError(f"{file}, line {number + 1}: torn gzip, its end is missing") from error
    except zlib.error as error:
        raise TraceError(f"{file}, line {number + 1}: damaged gzip: {error}") from error
    if number == 0:
        raise TraceError(f"{file}, line 1: the file is empty, a trace has at least one request")


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as raw:
        yield from gzip.GzipFile(fileobj=raw) if _is_packed(file) else raw


def _parse(file: Path, number: int, line: bytes) -> TraceRequest:
    place = f"{file}, line {number}"
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise TraceError(f"{place}: {_shown(line)} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise TraceError(f"{place}: {_shown(line)} is not a JSON object")
    for name in ("timestamp", "input_length", "output_length", "hash_ids"):
        if name not in record:
            raise TraceError(f"{place}: {_shown(line)} has no field {name}")
    for name in ("timestamp", "input_length", "output_length"):
        try:
            _check_count(name, record[name])
        except ValueError as error:
            raise TraceError(f"{place}: {error}") from error
    ids = record["hash_ids"]
    if not isinstance(ids, list):
        raise TraceError(f"{place}: hash_ids is {_shown(ids)}, not a list")
    try:
        return TraceRequest(record["timestamp"], record["input_length"], record["output_length"], tuple(ids))
    except ValueError as error:
        raise TraceError(f"{place}: {error}") from error


def _write(out: IO[bytes], requests: Iterable[TraceRequest]) -> int:
    count = 0
    for request in requests:
        record = {
            "timestamp": request.arrival_ms,
            "input_length": request.input_tokens,
            "output_length": request.output_tokens,
            "hash_ids": request.hash_ids,
        }
        out.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        count += 1
    return count


def _write_packed(raw: IO[bytes], requests: Iterable[TraceRequest]) -> int:
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
        return _write(cast(IO[bytes], packed), requests)


def _trace_path(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        raise TraceError(f"{file}: a trace is named .jsonl or .jsonl.gz")
    return file


def _is_packed(file: Path) -> bool:
    return file.name.endswith(".gz")


def _check_count(name: str, value: object) -> None:
    if type(value) is not int:
        raise ValueError(f"{name} is {_shown(value)}, not an integer")
    if value < 0:
        raise ValueError(f"{name} is {value}, which is negative")


def _check_block_size(block_size: int) -> None:
    wrong = type(block_size) is not int or block_size < 1 or TRACE_BLOCK_TOKENS % block_size
    if wrong:
        raise ValueError(
            f"block_size is {block_size!r}, needs a divisor of {TRACE_BLOCK_TOKENS} (1, 2, 4 … {TRACE_BLOCK_TOKENS})"
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
