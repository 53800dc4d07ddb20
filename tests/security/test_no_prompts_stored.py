"""Redis learns hashes, never what was asked: no token id, text, salt or adapter in any key, value or file.

The index is driven with token ids that can be recognised, through everything that writes: requests, swaps, sends to the
log, a keeper's snapshots. Then all that is stored is searched for every way a number is likely to be written.
"""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from events import connect
from statecore import CacheIndex, ExtraKey, PrefixCacheManager
from statecore.hashing import HashedTokens
from tests.manager.given import Place, config, task
from tests.security.everyday import hurried
from tests.servers import RedisServer
from workers.keeper import Keeper
from workers.keeper_totals import KeeperSettings

FIRST: Final = 1_871_305_000
TOKENS: Final = list(range(FIRST, FIRST + 96))
SECRETS: Final = {
    "salt": b"salt-of-tenant-four", "adapter": b"lora-of-tenant-four", "image": b"image-key-0123456789",
    "text": b"Please summarise the attached contract",
}  # fmt: skip
BLOCK: Final = 4


def spellings(token: int) -> set[bytes]:
    """How a token id may stand in a file: as text, as hexadecimal, as an integer of 4 or 8 bytes, in base64."""
    packed = [struct.pack(form, token) for form in ("<i", ">i", "<q", ">q")]
    text = [str(token).encode(), f"{token:x}".encode(), f"{token:,}".encode()]
    inside = [base64.b64encode(part)[:5] for part in (*packed[:2], *text[:1])]
    return {*packed, *text, *(part.hex().encode() for part in packed), *inside}


def leaks(stored: bytes) -> list[str]:
    found = [f"token {token}" for token in TOKENS[::7] for each in spellings(token) if each in stored]
    found += [f"three tokens in a row from {token}" for token in TOKENS[:-3] for each in rows(token) if each in stored]
    return found + [
        name for name, secret in SECRETS.items() for each in (secret, secret.hex().encode()) if each in stored
    ]


def rows(token: int) -> list[bytes]:
    """Three in a row, also as differences or as numbers of two bytes."""
    three = np.arange(token, token + 3)
    return [three.astype(kind).tobytes() for kind in ("<u4", ">u4", "<u8")] + [(three % 65536).astype("<u2").tobytes()]


def everything(server: RedisServer) -> bytes:
    """Every key and every value by its type, and every file of the server."""
    client = server.client()
    parts: list[bytes] = []
    for key in client.keys("*"):
        parts.append(key)
        match client.type(key):
            case b"string":
                parts.append(client.get(key))
            case b"hash":
                parts += [part for pair in client.hgetall(key).items() for part in pair]
            case b"stream":
                parts += [part for _, fields in client.xrange(key) for pair in fields.items() for part in pair]
                parts += [str(client.xinfo_groups(key)).encode()]
            case other:
                raise AssertionError(f"a key of type {other!r}: read it too")
    parts += [path.read_bytes() for path in sorted(server.folder.rglob("*")) if path.is_file()]
    return b"\n".join(parts)


def test_an_index(server: RedisServer, monkeypatch: pytest.MonkeyPatch, index_name: str) -> None:
    """Otherwise whoever reads the log, a backup of it, or an exported file would read the users' prompts.

    Given requests with a salt, an adapter and images, matched, extended by output tokens, swapped out and snapshotted, when
    all that the server stores is searched, then no token, salt, adapter or image key is in it, and the hashes are.
    """
    hurried(monkeypatch)
    context: dict[str, Any] = {
        "salt": SECRETS["salt"], "adapter": SECRETS["adapter"], "extra": [ExtraKey(SECRETS["image"], 0, 8)],
    }  # fmt: skip
    with connect(server.url) as connection:
        index = CacheIndex(connection, name=index_name, engine="a", gpu_blocks=16, cpu_blocks=64, block_size=BLOCK)
        for number, tokens in enumerate((TOKENS[:40], TOKENS[:24] + TOKENS[60:80], TOKENS[40:90])):
            request = f"r{number}"
            match = index.match(request, tokens, **context)
            for transfer in match.waits_for:
                index.cancel(transfer)
            if index.allocate(request, len(tokens) // BLOCK + 1 - len(match.blocks)).blocks:
                index.extend(request, TOKENS[90:94], ready=True)
            index.release(request)
        keeper = Keeper(connection.keeping(index_name), KeeperSettings(every=1), lambda *_, **__: None)
        keeper.turn()
        assert keeper.totals.published == 1
        index.leave()
    hashes = HashedTokens.begin(BLOCK, **context).extend(TOKENS[:40]).hashes

    stored = everything(server)

    assert hashes[:16] in stored, "what is searched is not what was written"
    assert hashes[16 * 9 : 16 * 10] in stored
    assert leaks(stored) == []


def test_a_manager(server: RedisServer, tmp_path: Path) -> None:
    """Otherwise FastDeploy's tasks, which carry the prompt's text, would be in the log.

    Given a manager that is asked for a task with text and token ids, when all that the server stores is searched, then
    nothing of either is in it.
    """
    with connect(server.url) as connection:
        place = Place(connection, str(tmp_path), {"STATECORE_ENGINE": "e0"})
        with PrefixCacheManager(config(num_gpu_blocks=64), 1, surroundings=place) as manager:
            asked = task("r1", TOKENS)
            asked.prompt = SECRETS["text"].decode()
            asked.cache_salt = SECRETS["salt"].decode()
            manager.request_match_blocks(asked, config().cache_config.block_size)
    stored = everything(server)
    assert b"r1" in stored
    assert leaks(stored) == []


@pytest.mark.parametrize(
    "stored",
    [
        str(TOKENS[:4]).encode(), struct.pack("<4q", *TOKENS[:4]), np.array(TOKENS, dtype=np.int32).tobytes(),
        base64.b64encode(struct.pack("<i", TOKENS[0])), f"…{TOKENS[7]:x}…".encode(), b"for lora-of-tenant-four: 3",
        SECRETS["text"].hex().encode(), (np.array(TOKENS) % 65536).astype(np.uint16).tobytes(),
    ],
)  # fmt: skip
def test_the_search_finds(stored: bytes) -> None:
    """A search that finds nothing anywhere proves nothing."""
    assert leaks(b"before" + stored + b"after")
