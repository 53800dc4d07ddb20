"""Names of Redis keys: one shard per index, and no name can reach into another index."""

from __future__ import annotations

import pytest

from events import keys
from events.errors import InvalidInput
from events.limits import NAME_LENGTH_MAX

HOSTILE: list[object] = [
    "",
    " ",
    "a b",
    "a\n",
    "a\0b",
    "a{b}",
    "{a}",
    "}:log",
    "a}b",
    "a*",
    "a?",
    "[a]",
    "a\\b",
    'a"b',
    "a'b",
    "a;b",
    "a#1",
    "-a",
    ".a",
    ":a",
    "/a",
    "é",
    "模型",
    "a\u202eb",
    "\ud800",
    "a" * (NAME_LENGTH_MAX + 1),
    "x" * 1_000_000,
    None,
    5,
    True,
    b"a",
    ["a"],
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:20])
def test_hostile_names_are_refused(name: object) -> None:
    """One index's name makes keys of another index, or a pattern that matches all."""
    with pytest.raises(InvalidInput, match="index name") as raised:
        keys.IndexKeys.of(name)  # type: ignore[arg-type]

    assert len(str(raised.value)) < 600
    str(raised.value).encode("utf-8")  # printable wherever logs go


@pytest.mark.parametrize("name", ["a", "llama-70b@host1", "org/model:v1.2+fp8", "_x", "0", "a" * NAME_LENGTH_MAX])
def test_ordinary_names(name: str) -> None:
    """A model's or a host's ordinary name is refused."""
    assert keys.checked_name(name, "index name") == name


def test_the_keys_of_an_index() -> None:
    """A rename of a key: every deployment's log is gone."""
    names = keys.IndexKeys.of("m@h")

    assert (names.log, names.head, names.fence) == ("kv:{m@h}:log", "kv:{m@h}:head", "kv:{m@h}:fence")


def test_one_hash_tag_per_index() -> None:
    """The keys of one index lie on two shards, and its commits are refused by a cluster."""
    names = keys.IndexKeys.of("m:h")

    assert {key[key.index("{") : key.index("}") + 1] for key in (names.log, names.head, names.fence)} == {"{m:h}"}


def test_scopes_do_not_meet() -> None:
    """An engine and a pool of one name conflict with each other for ever."""
    assert len({keys.pool_scope("index"), keys.engine_scope("index"), keys.INDEX_SCOPE}) == 3
    assert keys.pool_scope("a") == "pool:a"
    assert keys.engine_scope("a") == "engine:a"


def test_positions_as_stream_ids() -> None:
    """A log made by something else is read as ours."""
    assert keys.entry_id(12) == "12-0"
    assert keys.position_of("12-0") == keys.position_of(b"12-0") == 12
    for wrong in ("12", "12-1", "-0", "x-0", "12-", "", "-1-0", b"\xff-0", "1 2-0"):
        with pytest.raises(ValueError, match=r"12|stream id|ascii"):
            keys.position_of(wrong)
