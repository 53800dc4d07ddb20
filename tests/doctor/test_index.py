"""What the doctor says of an index: a healthy one, and one illness after the other, on real servers of both versions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from events import connect
from events.facts import BlocksAllocated
from events.keys import IndexKeys
from events.log import LogConnection
from ops.doctor import blocks
from statecore import CacheIndex
from tests.cli.scenario import refacted, rewrite
from tests.cli.trimmed import TrimmedStory
from tests.doctor.given import Findings, blobs_of, copied, examined, opened, tell
from tests.security.roles import ADMIN, ROLES, GuardedServer
from tests.servers import RedisServer, binary_of

_numbers = itertools.count(1)


@attrs.frozen
class Ill:
    """An index to make ill."""

    url: str
    client: Any
    connection: LogConnection
    keys: IndexKeys
    story: TrimmedStory

    def examined(self) -> Findings:
        return examined(self.url, "--index", self.keys.name)

    def blob(self, number: int) -> str:
        """0: of the newer snapshot, 1: of the older."""
        return self.keys.blob(blobs_of(self.client, self.keys)[number])


@pytest.fixture(scope="module", params=["embedded", "system"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary: Path | None = binary_of(request.param)
    if binary is None:
        pytest.skip("this machine has no redis-server on its PATH")
    with RedisServer(tmp_path_factory.mktemp("redis"), "--maxmemory", "200mb", binary=binary) as own:
        yield own


@pytest.fixture(scope="module")
def story(server: RedisServer) -> TrimmedStory:
    with server.client() as client:
        return tell(server.url, client)


@pytest.fixture
def ill(server: RedisServer, story: TrimmedStory) -> Iterator[Ill]:
    """A copy of the healthy index, with everybody alive."""
    with (
        server.client() as client,
        opened(server.url) as connection,
        copied(client, connection, f"patient-{next(_numbers)}") as keys,
    ):
        yield Ill(server.url, client, connection, keys, story)


QUARANTINE = {"pool cpu:host"}
"""One of its transfers is cancelled, and its ranks have not reported: that is no illness, and said."""


def test_a_healthy_index_has_no_error(ill: Ill) -> None:
    """Every alarm would be a false one."""
    found = ill.examined()

    assert found.exit_code == 0
    assert found.graded("error") == set()
    assert found.graded("warning") == QUARANTINE
    assert found.graded("unknown") == set()
    assert found.of("pool cpu:host")["found"] == "16 blocks, 4 free, 4 cached, 8 used, 4 blocks in quarantine"
    newer = ill.story.snapshots[1]
    assert found.of("snapshot 15")["found"].endswith(f"digest {ill.story.digests[newer]}, as the log")
    assert found.of("links")["found"] == "14 entries from the snapshot at 9 to 23"
    assert found.of("transfers")["found"] == "2 transfers not over, each with its job and its workers"


Illness = Callable[[Ill], object]


def flipped(ill: Ill) -> None:
    """One entry with other facts, and right checksums."""
    twice = BlocksAllocated("engine-0", None, "gpu", ((0, 12),))
    rewrite(ill.client, ill.keys, ill.story.end - 1, refacted(twice))


def another_worker(ill: Ill) -> None:
    """Somebody else gives signs of life than he who has the seat."""
    ill.client.hset(ill.keys.seats, "0:gpu", "the-life-before")


def no_job(ill: Ill) -> None:
    ill.client.delete(ill.keys.jobs("gpu"))


def job_of_the_past(ill: Ill) -> None:
    ill.client.xadd(ill.keys.jobs("gpu"), {"transfer": "engine-0:0", "body": "{}"})


def never_reported(ill: Ill) -> None:
    """A job taken off the stream a minute ago."""
    stream = ill.keys.jobs("gpu")
    ill.client.xgroup_create(stream, "rank-0", id="0")
    ill.client.xreadgroup("rank-0", "a worker", {stream: ">"}, count=1)
    [entry] = ill.client.xpending_range(stream, "rank-0", "-", "+", 1)
    ill.client.xclaim(stream, "rank-0", "a worker", 0, [entry["message_id"]], idle=60_000)


ILLNESSES: dict[str, tuple[Illness, str, str, str]] = {
    "another layout": (lambda ill: ill.client.hset(ill.keys.head, "layout", "99"), "layout", "error", "99, this release"),
    "closed for ever": (lambda ill: ill.client.set(ill.keys.closed, "x"), "open", "error", "closed for ever"),
    "closed": (
        lambda ill: (ill.client.hset(ill.keys.head, "life", "f" * 40), ill.client.set(ill.keys.closed, "x", px=8000)),
        "open", "warning", "the server began a new life",
    ),
    "a new life": (
        lambda ill: ill.client.hset(ill.keys.head, "life", "f" * 40), "open", "ok", "nobody has appended in this life",
    ),
    "a hole": (lambda ill: ill.client.xdel(ill.keys.log, "20-0"), "links", "error", "an entry is missing at position 20"),
    "an entry that does not fit": (flipped, "links", "error", "at position 22"),
    "a head of another history": (
        lambda ill: ill.client.hset(ill.keys.head, "commit", "elsewhere.7"), "head", "error", "names commit 'elsewhere.7'",
    ),
    "a position that is none": (
        lambda ill: ill.client.hset(ill.keys.head, "position", "abc"), "index", "error", "position: b'abc' is no number",
    ),
    "a commit that is none": (
        lambda ill: ill.client.hset(ill.keys.head, "commit", b"\xff"), "index", "error", "commit: b'\\xff' is no name or id",
    ),
    "a head of another type": (
        lambda ill: (ill.client.delete(ill.keys.head), ill.client.sadd(ill.keys.head, "x")), "index", "error", "WRONGTYPE",
    ),
    "a head beyond the log": (
        lambda ill: ill.client.hset(ill.keys.head, "position", 900), "links", "error", "an entry is missing at position 24",
    ),
    "a version that is none": (
        lambda ill: ill.client.hset(ill.keys.head, "pool:gpu", b"\xff"), "versions", "error", "b'pool:gpu': b'\\xff' is no",
    ),
    "a version beyond the log": (
        lambda ill: ill.client.hset(ill.keys.head, "pool:gpu", "24"), "versions", "error", "b'24' is no position of",
    ),
    "a lost end, and a keeper": (
        lambda ill: ill.client.hset(ill.keys.head, "lost", "x.7"), "lost end", "warning", "its end up to commit 'x.7'",
    ),
    "a lost end, and no keeper": (
        lambda ill: (ill.client.hset(ill.keys.head, "lost", "x.7"), ill.client.delete(ill.keys.keeper)), "lost end", "error",
        "nobody has dealt with it: workers wait",
    ),
    "a lost end that was dealt with": (
        lambda ill: ill.client.hset(ill.keys.head, mapping={"lost": "x.7", "forgot": "x.7"}), "lost end", "ok", "none",
    ),
    "no keeper": (lambda ill: ill.client.delete(ill.keys.keeper), "keeper", "warning", "none acts"),
    "a keeper for ever": (lambda ill: ill.client.persist(ill.keys.keeper), "keeper", "error", "its key has no end"),
    "a pointer of somebody else": (
        lambda ill: ill.client.hset(ill.keys.snapshot, "position", "x"), "snapshot pointer", "error",
        "snapshot, position: b'x' is no number",
    ),
    "pointers of another type": (
        lambda ill: ill.client.set(ill.keys.snapshot, "x"), "snapshot pointer", "error", "snapshot: WRONGTYPE",
    ),
    "a keeper of another type": (
        lambda ill: (ill.client.delete(ill.keys.keeper), ill.client.sadd(ill.keys.keeper, "x")), "keeper", "error",
        "keeper: WRONGTYPE",
    ),
    "an old snapshot": (lambda ill: ill.client.hset(ill.keys.snapshot, "at_ms", 1), "snapshot age", "warning", "8 pos"),
    "a snapshot that is gone": (lambda ill: ill.client.delete(ill.blob(0)), "snapshot 15", "error", "not a snapshot: 0"),
    "a snapshot that is cut": (
        lambda ill: ill.client.set(ill.blob(1), ill.client.getrange(ill.blob(1), 0, 99)), "snapshot 9", "error", "damaged",
    ),
    "a snapshot of another state": (
        lambda ill: ill.client.hset(ill.keys.snapshot, "digest", "0" * 32), "snapshot 15", "error", "its pointer says 0000",
    ),
    "a snapshot that runs out": (
        lambda ill: ill.client.expire(ill.blob(0), 600), "snapshot 15", "error", "its bytes will run out",
    ),
    "no snapshot at all": (
        lambda ill: ill.client.delete(ill.blob(0), ill.blob(1)), "snapshots", "error", "none of 2 can be used",
    ),
    "trimmed one too far": (
        lambda ill: ill.client.xtrim(ill.keys.log, minid="11-0", approximate=False), "trim", "error",
        "the log is kept from 11, the older snapshot is at 9: entries 10 to 10 are in neither",
    ),
    "rolled back": (
        lambda ill: ill.client.hset(ill.keys.head, "position", "14"), "trim", "error",
        "there is a snapshot at 15, and the log ends at 14: it was rolled back",
    ),
    "dead, and a keeper": (
        lambda ill: ill.client.delete(ill.keys.lease("engine-0")), "lease", "warning", "no sign of life for 6 s",
    ),
    "dead, and no keeper": (
        lambda ill: ill.client.delete(ill.keys.lease("engine-0"), ill.keys.keeper), "lease", "error", "holds no lease",
    ),
    "a lease of another session": (
        lambda ill: ill.client.set(ill.keys.lease("engine-0"), "7", px=5000), "lease", "warning", "a lease of session 7",
    ),
    "a lease for ever": (lambda ill: ill.client.persist(ill.keys.lease("engine-0")), "lease", "error", "never runs out"),
    "a lease too long": (
        lambda ill: ill.client.expire(ill.keys.lease("engine-0"), 3600), "lease", "error", "more than 6 s",
    ),
    "a fence that is gone": (
        lambda ill: ill.client.delete(ill.keys.fence), "fence", "error", "sessions from 0 on may append, from 1 on should",
    ),
    "a fence that is none": (
        lambda ill: ill.client.hset(ill.keys.fence, "engine-0", "abc"), "fence", "error",
        "engine 'engine-0': sessions from b'abc' on may append, by the log from 1 on",
    ),
    "a fence too high": (
        lambda ill: ill.client.hset(ill.keys.fence, "engine-0", "900"), "fence", "error", "it can go on in none",
    ),
    "fences of another type": (
        lambda ill: (ill.client.delete(ill.keys.fence), ill.client.set(ill.keys.fence, "x")), "fences", "error", "WRONGTYPE",
    ),
    "a lease of another type": (
        lambda ill: (ill.client.delete(ill.keys.lease("engine-0")), ill.client.sadd(ill.keys.lease("engine-0"), "x")),
        "leases", "error", "lease:engine-0: WRONGTYPE",
    ),
    "a seat that is none": (
        lambda ill: ill.client.hset(ill.keys.seats, b"abc\xff", "x"), "worker", "error", "that is no rank of a pool",
    ),
    "seats of another type": (
        lambda ill: (ill.client.delete(ill.keys.seats), ill.client.set(ill.keys.seats, "x")), "seats", "error", "WRONGTYPE",
    ),
    "jobs of another type": (
        lambda ill: (ill.client.delete(ill.keys.jobs("gpu")), ill.client.set(ill.keys.jobs("gpu"), "x")), "job streams",
        "error", "jobs:gpu: WRONGTYPE",
    ),
    "a log of another type": (
        lambda ill: (ill.client.delete(ill.keys.log), ill.client.set(ill.keys.log, "x")), "index", "error", "log: WRONGTYPE",
    ),
    "no worker": (
        lambda ill: ill.client.delete(ill.keys.worker("gpu", 1)), "transfer engine-0:5", "error",
        "no living worker on rank 1 of pool 'gpu'; whoever waits for it waits on",
    ),
    "no worker, seen from the seat": (
        lambda ill: ill.client.delete(ill.keys.worker("gpu", 1)), "worker", "warning", "rank 1 of pool 'gpu': stopped, or",
    ),
    "two workers": (another_worker, "worker", "error", "'the-life-before' has the seat"),
    "no job": (no_job, "transfer engine-0:5", "warning", "it has no job in the stream of pool 'gpu'"),
    "finished in a history that is gone": (
        lambda ill: ill.client.hset(ill.keys.acks("engine-0:5"), "done", "31"), "transfer engine-0:5", "error",
        "finished at position 31, the log does not",
    ),
    "finished nowhere": (
        lambda ill: ill.client.hset(ill.keys.acks("engine-0:5"), "done", b"\xff"), "transfer engine-0:5", "error",
        "the log does not",
    ),
    "a job of the past": (job_of_the_past, "jobs", "warning", "1 job of transfers that are over (engine-0:0)"),
    "a job that is never reported": (never_reported, "jobs", "warning", "1 taken and not reported for up to 60 s"),
    "acknowledgements for ever": (
        lambda ill: ill.client.hset(ill.keys.acks("engine-0:2"), "done", "9"), "acknowledgements", "warning",
        "left theirs behind: engine-0:2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("illness", "what", "severity", "words"), ILLNESSES.values(), ids=ILLNESSES.keys())
def test_an_illness_is_found(ill: Ill, illness: Illness, what: str, severity: str, words: str) -> None:
    """What is wrong would be noticed when it hurts."""
    illness(ill)

    found = ill.examined()

    finding = found.of(what)
    assert (finding["severity"], words in finding["found"]) == (severity, True), finding
    assert found.exit_code == (1 if found.graded("error") else 0)


def test_an_index_without_a_head_is_found(ill: Ill) -> None:
    """The most broken of all would not be in the list of indexes, and so be well."""
    ill.client.delete(ill.keys.head)

    finding = ill.examined().of("index")

    assert (finding["severity"], finding["found"]) == ("error", "its log has 16 entries, its head is gone")
    assert examined(ill.url, "--index", "nobodys").of("index")["severity"] == "warning"


def test_of_another_layout_nothing_else_is_said(ill: Ill) -> None:
    """Twenty errors would hide the one that explains them."""
    ill.client.hset(ill.keys.head, "layout", "99")

    assert examined(ill.url, "--index", ill.keys.name).graded("error") == {"layout"}


def test_a_broken_state_is_found(ill: Ill, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leak is a defect of ours, so no log can be made that has one: what the recount says must be shown."""
    monkeypatch.setattr(blocks, "violations", lambda _state: [f"pool 'gpu': block {n} is nowhere" for n in range(5)])
    monkeypatch.setattr(blocks, "leaked_blocks", lambda _state: 5)

    found = ill.examined()

    assert found.of("invariants")["found"].endswith("block 2 is nowhere (and 2 more)")
    assert (found.of("leaked blocks")["severity"], found.of("leaked blocks")["found"]) == ("error", "5")


def test_every_index_is_looked_at_where_none_is_named(ill: Ill) -> None:
    """The ill one of ten would be overlooked."""
    ill.client.delete(ill.keys.fence)

    found = examined(ill.url)

    names = {each["index"] for each in found.found}
    assert {None, "healthy", ill.keys.name} <= names
    assert [each["index"] for each in found.found if each["what"] == "fence" and each["severity"] == "error"] == [
        ill.keys.name
    ]


def test_the_doctor_changes_no_key(ill: Ill) -> None:
    """A look would be an intervention."""

    def everything() -> dict[bytes, Any]:
        keys = sorted(ill.client.scan_iter(f"kv:{{{ill.keys.name}}}:*"))
        return {key: ill.client.dump(key) for key in keys if b":worker:" not in key}

    before = everything()
    ill.examined()

    assert everything() == before


def test_the_doctor_never_walks_the_keyspace_for_a_named_index(ill: Ill) -> None:
    """On a server with millions of other keys, a look would take minutes and slow everybody down (E-44)."""
    before = calls(ill.client)
    ill.examined()
    after = calls(ill.client)

    assert {name for name in after if after[name] != before.get(name)}.isdisjoint({"scan", "keys"})


def calls(client: Any) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in client.info("commandstats").items()}


# --- rights


@pytest.mark.parametrize(
    ("rules", "severity", "words"),
    [
        (["+@all", "~kv:*"], "ok", "may be reader, engine, worker, keeper"),
        (["+@all", "-xtrim", "~kv:*"], "ok", "may be reader, engine, worker; keeper lacks XTRIM"),
        (["+@all", "-@write", "-@scripting", "~kv:*"], "ok", "may be reader; engine lacks EVAL, EVALSHA, XADD"),
        (["+@all", "~other:*"], "error", "may be nobody: not even a reader, who needs XRANGE"),
        (["+@all", "-multi", "-acl", "-xtrim", "~kv:*"], "ok", "may be reader, engine, worker; keeper lacks XTRIM"),
    ],
)  # fmt: skip
def test_what_a_user_may_be_is_found_without_doing_it(ill: Ill, rules: list[str], severity: str, words: str) -> None:
    """A missing right would show when the first snapshot is to be published, weeks later."""
    ill.client.execute_command("ACL", "SETUSER", "role", "on", ">secret", *rules)
    try:
        finding = rights_of(ill)
    finally:
        ill.client.execute_command("ACL", "DELUSER", "role")

    assert (finding["severity"], words in finding["found"]) == (severity, True), finding


def test_where_multi_is_not_allowed_a_dry_run_tells(ill: Ill) -> None:
    """Rights could not be told for a user without transactions, though the server knows them."""
    if ill.client.info()["redis_version"].startswith("6"):
        pytest.skip("ACL DRYRUN is there from 7.0 on")
    ill.client.execute_command("ACL", "SETUSER", "role", "on", ">secret", "+@all", "-multi", "-xtrim", "~kv:*")
    try:
        finding = rights_of(ill)
    finally:
        ill.client.execute_command("ACL", "DELUSER", "role")

    assert finding["found"] == "user 'role' may be reader, engine, worker; keeper lacks XTRIM"


@pytest.mark.parametrize("role", ROLES)
def test_the_users_of_ops_acl_may_be_what_they_are_called(role: str, redis_binary: Path, tmp_path: Path) -> None:
    """The doctor and the rights we ship would contradict each other. These users may neither use MULTI nor ask ACL.

    Given a server with the users of `ops/acl`, when the doctor looks as one of them, then it finds its role, changes
    nothing, and calls nothing ill that it may not see.
    """
    guarded = GuardedServer(tmp_path, redis_binary)
    try:
        admin = f"redis://:{ADMIN}@{guarded.server.url.removeprefix('redis://')}"
        with (
            connect(admin) as connection,
            CacheIndex(connection, name="guarded", engine="engine-0", gpu_blocks=8, block_size=4) as engine,
        ):
            engine.match("a", [1] * 8)
            keys = sorted(guarded.admin().keys())
            found = examined(guarded.url(role), "--index", "guarded")
            assert sorted(guarded.admin().keys()) == keys
    finally:
        guarded.stop()

    [rights] = [each for each in found.found if each["what"] == "rights"]
    assert rights["severity"] == "ok", rights
    able = rights["found"].split(";")[0].split(" (")[0].removeprefix("user '(unknown)' may be ").split(", ")
    assert role in able
    assert "keeper" not in able or role == "keeper"
    assert "HSET" in rights["found"].split("(")[-1], "what was not tried is said"
    assert found.graded("error") == set()


def rights_of(ill: Ill) -> dict[str, str]:
    return examined(ill.url.replace("redis://", "redis://role:secret@"), "--index", ill.keys.name).of("rights")
