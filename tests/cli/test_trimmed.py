"""The command line over a log whose beginning was trimmed away behind snapshots: everything kept is shown, and no more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from events import connect
from events.codec import encode
from events.facts import ServiceResumed
from events.keys import IndexKeys
from events.ports import Commit, SnapshotPointer
from events.snapshots import Snapshots
from events.stream_entry import meta_of
from ops.cli.export_file import ExportFile
from statecore import CacheIndex
from statecore.policy import Policy
from tests.cli import trimmed
from tests.cli.scenario import BLOCK_SIZE, WARM, answer, answers, complaint, statecore
from tests.cli.trimmed import TRIMMED, TrimmedStory

SNAPSHOT_KEYS = ("log", "head", "fence", "snapshot")


@pytest.fixture(scope="module")
def kept(server: str) -> TrimmedStory:
    return trimmed.tell_trimmed(server)


@pytest.fixture(scope="module")
def file(kept: TrimmedStory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trimmed log as a file."""
    target = tmp_path_factory.mktemp("exported") / "trimmed.jsonl.gz"
    assert statecore("export", target, *live(kept)).exit_code == 0
    return target


@pytest.fixture
def damaged(client: redis.Redis, kept: TrimmedStory) -> Iterator[IndexKeys]:
    """A copy of the trimmed index, its blobs too."""
    old, new = IndexKeys.of(TRIMMED), IndexKeys.of(f"trimmed-copy-of-{kept.end}")
    for key in SNAPSHOT_KEYS:
        client.copy(getattr(old, key), getattr(new, key), replace=True)
    for blob in blobs(client, old):
        client.copy(old.blob(blob), new.blob(blob), replace=True)
    yield new
    client.delete(*(getattr(new, key) for key in SNAPSHOT_KEYS), *map(new.blob, blobs(client, old)))


def blobs(client: redis.Redis, keys: IndexKeys) -> tuple[str, str]:
    """Names of the newer and the older blob."""
    newer, older = cast("list[bytes]", client.hmget(keys.snapshot, ["blob", "previous_blob"]))
    return newer.decode(), older.decode()


def live(kept: TrimmedStory, index: str = TRIMMED) -> tuple[str, ...]:
    return ("--url", kept.url, "--index", index)


# --- the state


@pytest.mark.parametrize("exported", [False, True])
def test_every_kept_position_has_the_digest_it_had(kept: TrimmedStory, file: Path, exported: bool) -> None:
    """After the first trim nobody could look at the past any more, or he would be shown another past."""
    source = ("--file", file) if exported else live(kept)
    for position in range(kept.snapshots[0], kept.end + 1):
        result = statecore("replay", *source, "--to", position, "--digest")

        assert (result.exit_code, result.stdout.strip()) == (0, kept.digests[position]), position
        assert result.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        ("replay", "--to"),
        ("verify", "--to"),
        ("inspect", "pools", "--at"),
        ("inspect", "tree", "--at"),
        ("inspect", "transfers", "--at"),
        ("inspect", "engine", "engine-0", "--at"),
        ("inspect", "request", "patient", "--at"),
    ],
)
@pytest.mark.parametrize("exported", [False, True])
def test_what_is_gone_is_said_with_what_is_left(
    kept: TrimmedStory, file: Path, command: tuple[str, ...], exported: bool
) -> None:
    """Whoever asks for last week would get a traceback, or think that the log is broken."""
    source = ("--file", file) if exported else live(kept)
    oldest = kept.snapshots[0]

    message = complaint(statecore(*command, oldest - 1, *source), 2)

    assert message == (
        f"position {oldest - 1} cannot be shown: positions before {kept.first} are gone; the oldest state that can be "
        f"shown is at {oldest}"
    )


def test_a_summary_is_made_from_the_newest_snapshot(
    kept: TrimmedStory, client: redis.Redis, damaged: IndexKeys
) -> None:
    """Every look at a large index would read the log twice as far as it has to: entries before the newest snapshot."""
    client.xdel(damaged.log, f"{kept.snapshots[1] - 1}-0")

    assert statecore("replay", *live(kept, damaged.name), "--digest").stdout.strip() == kept.digests[kept.end]
    assert "an entry is missing" in complaint(statecore("verify", *live(kept, damaged.name)), 1)


def test_invariants_are_checked_over_all_that_is_kept(kept: TrimmedStory) -> None:
    """`--check-invariants` would look at the last few commits only."""
    assert statecore("replay", *live(kept), "--check-invariants", 1).exit_code == 0


@pytest.mark.parametrize("which", ["gone", "cut", "flipped", "of another commit"])
def test_a_snapshot_that_cannot_be_read_is_passed_over_and_verify_says_so(
    kept: TrimmedStory, client: redis.Redis, damaged: IndexKeys, which: str
) -> None:
    """One flipped bit would take the whole index away from whoever looks, or stay unseen until the older one is gone too."""
    newer, _ = blobs(client, damaged)
    key = damaged.blob(newer)
    match which:
        case "gone":
            client.delete(key)
        case "cut":
            client.set(key, client.getrange(key, 0, 200))
        case "flipped":
            client.setrange(key, 300, "\0\0")
        case _:
            client.hset(damaged.snapshot, "commit", "elsewhere.7")

    shown = statecore("replay", *live(kept, damaged.name), "--digest")
    found = complaint(statecore("verify", *live(kept, damaged.name)), 1)

    assert shown.stdout.strip() == kept.digests[kept.end]
    assert shown.stderr.startswith(f"warning: the snapshot at position {kept.snapshots[1]} is not used: ")
    assert found.startswith("the snapshot cannot be used: ")
    assert found.endswith(f"at position {kept.snapshots[1]}")


def test_without_a_readable_snapshot_there_is_no_state(
    kept: TrimmedStory, client: redis.Redis, damaged: IndexKeys
) -> None:
    """A half state would be shown as the state."""
    client.delete(*map(damaged.blob, blobs(client, damaged)))

    result = statecore("replay", *live(kept, damaged.name))

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"error: the log begins at position {kept.first}: entries 1 to {kept.first - 1} are missing, and without them or a "
        "snapshot there is no state"
    )


# --- verify


def test_verify_proves_what_is_kept(kept: TrimmedStory) -> None:
    """A trimmed log could not be proved at all."""
    proof = answer(statecore("verify", *live(kept), "--every", 1, "--json"))

    assert proof["sound"] is True
    assert (proof["first"], proof["start"], proof["position"]) == (kept.first, kept.snapshots[0], kept.end)
    assert proof["commits"] == kept.end - kept.first + 1
    assert proof["snapshots"] == list(kept.snapshots)
    assert proof["invariant_checks"] == kept.end - kept.snapshots[0]
    assert proof["digest"] == kept.digests[kept.end]
    text = statecore("verify", *live(kept)).stdout
    assert f"positions before {kept.first} are gone: replayed from the snapshot at {kept.snapshots[0]}" in text
    assert f"at {kept.snapshots[0]}, {kept.snapshots[1]}: readable, digests as replayed" in text


def test_verify_finds_a_snapshot_of_another_state(kept: TrimmedStory, client: redis.Redis, damaged: IndexKeys) -> None:
    """Replicas that start from the snapshot would go another way than those that read the log."""
    client.hset(damaged.snapshot, "digest", "0" * 32)

    found = complaint(statecore("verify", *live(kept, damaged.name)), 1)

    assert found == (
        f"the snapshot is not the state of the log: its pointer says {'0' * 32}, it holds "
        f"{kept.digests[kept.snapshots[1]]}, the log leads to {kept.digests[kept.snapshots[1]]} at position "
        f"{kept.snapshots[1]}"
    )


def test_verify_finds_damage_below_the_snapshot(kept: TrimmedStory, client: redis.Redis, damaged: IndexKeys) -> None:
    """Entries that are kept would be believed unread."""
    client.xdel(damaged.log, f"{kept.snapshots[0]}-0")

    assert "an entry is missing" in complaint(statecore("verify", *live(kept, damaged.name)), 1)


def test_verify_finds_a_log_that_ends_before_its_snapshot(
    kept: TrimmedStory, client: redis.Redis, damaged: IndexKeys
) -> None:
    """A restored backup of the log beside a newer snapshot would pass."""
    client.hset(damaged.head, "position", kept.snapshots[1] - 1)

    found = complaint(statecore("verify", *live(kept, damaged.name)), 1)

    assert found == (
        f"there is a snapshot at position {kept.snapshots[1]}, and the log ends before: it was rolled back at position "
        f"{kept.snapshots[1] - 1}"
    )


# --- log


def test_log_shows_what_is_kept_and_says_what_is_gone(kept: TrimmedStory) -> None:
    """The first line would look like the beginning of the history."""
    result = statecore("log", *live(kept), "--json")

    assert [commit["position"] for commit in answers(result)] == list(range(kept.first, kept.end + 1))
    assert result.stderr == (
        f"warning: positions before {kept.first} are gone; the oldest state that can be shown is at {kept.snapshots[0]}\n"
    )
    assert statecore("log", *live(kept), "--last", 2).stderr == ""


@pytest.mark.parametrize("option", ["--from", "--to"])
def test_log_refuses_what_is_gone(kept: TrimmedStory, option: str) -> None:
    """An empty answer would look as if nothing had happened then."""
    message = complaint(statecore("log", *live(kept), option, kept.first - 1), 2)

    assert message == (
        f"{option} {kept.first - 1} lies before the beginning of the log: positions before {kept.first} are gone; the "
        f"oldest state that can be shown is at {kept.snapshots[0]}"
    )


# --- inspect


def test_what_began_before_the_trim_is_shown_without_its_beginning(server: str) -> None:
    """An open transfer, request or life that is older than the log would crash the command, or be left out."""
    index = "older-than-the-log"
    with connect(server) as connection:
        engine = CacheIndex(
            connection, name=index, engine="engine-0", gpu_pool="gpu", gpu_blocks=12, cpu_blocks=16,
            block_size=BLOCK_SIZE, policy=Policy(free_low=0, free_high=0), follow=False,
        )  # fmt: skip
        for name in ("a", "b"):
            engine.match(name, WARM if name == "a" else [9] * 16)
            engine.allocate(name, 4)
            engine.extend(name, ready=True)
        engine.release("a")
        engine.match("large", [1] * 40)
        engine.allocate("large", 8)  # starts engine-0:0
        trimmed.publish(connection, index, engine.refresh())
        engine.allocate(None, 1)
        since = engine.refresh()
        trimmed.publish(connection, index, since, below=0)
        engine.release("b")
    where = ("--url", server, "--index", index)

    request = statecore("inspect", "request", "b", *where)
    lives = answer(statecore("inspect", "engine", "engine-0", *where, "--json"))["lives"]
    transfers = answer(statecore("inspect", "transfers", *where, "--json"))["transfers"]

    assert f"What happened from position {since} on" in request.stdout
    assert f"ended at position {since + 1}" in request.stdout
    assert lives == [
        {
            "session": 1,
            "joined_position": None,
            "joined_at": None,
            "ended_position": None,
            "ended_at": None,
            "ended_by": None,
        }
    ]
    assert isinstance(transfers, list)
    assert [(each["transfer"], each["started_position"]) for each in transfers] == [("engine-0:0", None)]
    assert f"≤ {since - 1}" in statecore("inspect", "transfers", *where).stdout
    assert f"≤ {since - 1}" in statecore("inspect", "engine", "engine-0", *where).stdout
    unknown = complaint(statecore("inspect", "request", "a", *where), 2)
    assert unknown == f"up to position {since + 1}, from {since} on where it begins, the log knows no request 'a'"


# --- export and import


def test_an_exported_log_brings_its_snapshots(kept: TrimmedStory, file: Path) -> None:
    """A log taken home would lead nowhere."""
    export = ExportFile.open(file)

    assert tuple(sorted(pointer.position for pointer in export.pointers)) == kept.snapshots
    assert (export.head.first, export.head.position) == (kept.first, kept.end)
    assert statecore("verify", "--file", file, "--every", 1).exit_code == 0
    assert len(answers(statecore("log", "--file", file, "--json"))) == kept.end - kept.first + 1


def test_an_imported_log_leads_to_the_same_digests(
    kept: TrimmedStory, file: Path, name: str, client: redis.Redis
) -> None:
    """A restored index would be another one than the one that was lost."""
    result = statecore("import", file, *live(kept, name))

    assert result.exit_code == 0, result.output
    assert f"digest {kept.digests[kept.end]}, as in the file" in result.stdout
    for position in range(kept.snapshots[0], kept.end + 1):
        shown = statecore("replay", *live(kept, name), "--to", position, "--digest")
        assert shown.stdout.strip() == kept.digests[position], position
    keys, old = IndexKeys.of(name), IndexKeys.of(TRIMMED)
    assert client.hgetall(keys.fence) == client.hgetall(old.fence)
    assert statecore("verify", *live(kept, name), "--every", 1).exit_code == 0
    client.delete(keys.snapshot)


def test_engines_go_on_where_an_imported_trimmed_log_ends(kept: TrimmedStory, file: Path, name: str) -> None:
    """An index restored from a snapshot would be good for looking at only."""
    assert statecore("import", file, *live(kept, name)).exit_code == 0
    with connect(kept.url) as connection:
        engine = CacheIndex(
            connection, name=name, engine="engine-0", gpu_pool="gpu", cpu_pool="cpu:host", block_size=BLOCK_SIZE,
            tensor_parallel_size=2, follow=False,
        )  # fmt: skip
        engine.match("again", WARM)

        assert engine.session == 2
    assert statecore("verify", *live(kept, name), "--every", 1).exit_code == 0


@pytest.mark.parametrize("end", [0, 1, 4])
def test_a_part_of_a_trimmed_log_can_be_exported(kept: TrimmedStory, tmp_path: Path, end: int) -> None:
    """The part that shows a fault could not be cut out; a part without any entry after its snapshot neither."""
    last = kept.snapshots[0] + end
    part = tmp_path / "part.jsonl"

    assert statecore("export", part, *live(kept), "--to", last).exit_code == 0

    assert statecore("replay", "--file", part, "--digest").stdout.strip() == kept.digests[last]
    gone = complaint(statecore("export", tmp_path / "x", *live(kept), "--to", kept.first), 2)
    assert gone.startswith(
        f"--to {kept.first} leaves nothing that leads to a state: positions before {kept.first} are gone"
    )


# --- snapshot files


def test_a_snapshot_file_makes_a_round_trip(kept: TrimmedStory, file: Path, name: str, tmp_path: Path) -> None:
    """A state looked at elsewhere would be another state."""
    at = kept.snapshots[1] - 1
    taken = tmp_path / "then.snapshot"

    wrote = statecore("snapshot", "export", taken, *live(kept), "--at", at)
    shown = answer(statecore("snapshot", "show", taken, "--json"))
    began = statecore("snapshot", "import", taken, "--tail", file, *live(kept, name))

    assert f"position {at}, digest {kept.digests[at]}" in wrote.stdout
    assert (shown["position"], shown["digest"], shown["schema"]) == (at, kept.digests[at], 2)
    assert isinstance(shown["pools"], list)
    assert [pool["pool"] for pool in shown["pools"]] == ["cpu:host", "gpu"]
    assert began.exit_code == 0, began.output
    assert f"position {kept.end}, digest {kept.digests[kept.end]}" in began.stdout
    for position in range(at, kept.end + 1):
        there = statecore("replay", *live(kept, name), "--to", position, "--digest")
        assert there.stdout.strip() == kept.digests[position], position
    human = statecore("snapshot", "show", taken)
    assert f"digest      {kept.digests[at]}, as it says" in human.stdout


def test_a_snapshot_begins_an_index_by_itself(kept: TrimmedStory, name: str, tmp_path: Path) -> None:
    """Without an exported log a snapshot would be of no use."""
    taken = tmp_path / "now.snapshot"
    assert statecore("snapshot", "export", taken, *live(kept)).exit_code == 0

    assert statecore("snapshot", "import", taken, *live(kept, name)).exit_code == 0

    assert statecore("verify", *live(kept, name), "--digest", kept.digests[kept.end]).exit_code == 0
    again = complaint(statecore("snapshot", "import", taken, *live(kept, name)), 2)
    assert f"is not empty (its log is at position {kept.end})" in again


def test_what_is_no_snapshot_is_refused_in_words(kept: TrimmedStory, file: Path, tmp_path: Path) -> None:
    """The wrong file of an incident's ten would show a traceback, or begin an index that is broken."""
    taken, wrong, cut = tmp_path / "now.snapshot", tmp_path / "notes.txt", tmp_path / "cut.snapshot"
    assert statecore("snapshot", "export", taken, *live(kept)).exit_code == 0
    wrong.write_text("hello world")
    cut.write_bytes(taken.read_bytes()[:-30])

    assert "is an exported log, not a snapshot" in complaint(statecore("snapshot", "show", file), 2)
    assert "is not a snapshot: its 11 bytes begin with b'hello world'" in complaint(
        statecore("snapshot", "show", wrong), 2
    )
    assert "is damaged: its checksum does not fit" in complaint(statecore("snapshot", "show", cut), 1)
    assert "is not an exported log" in complaint(statecore("import", taken, *live(kept, "x")), 2)
    assert "does not know the name" in complaint(statecore("snapshot", "import", taken, "--url", kept.url), 2)
    assert "exists: give another name, or --force" in complaint(statecore("snapshot", "export", taken, *live(kept)), 2)
    early = statecore("snapshot", "export", tmp_path / "e", *live(kept), "--at", kept.snapshots[0])
    assert early.exit_code == 0
    tail = tmp_path / "tail.jsonl"
    assert statecore("export", tail, *live(kept), "--to", kept.snapshots[0] + 1).exit_code == 0
    message = complaint(statecore("snapshot", "import", taken, "--tail", tail, *live(kept, "x")), 2)
    assert f"does not go on from the snapshot at position {kept.end}" in message


# --- follow


@pytest.mark.parametrize("how", ["shorter", "of the same length", "longer"])
def test_follow_notices_a_log_that_was_rolled_back(server: str, client: redis.Redis, how: str) -> None:
    """Whoever watches would wait for ever, or read two histories as one."""
    index = f"rolled-back-{how.replace(' ', '-')}"
    keys = IndexKeys.of(index)
    with connect(server) as connection:
        CacheIndex(
            connection,
            name=index,
            engine="engine-0",
            gpu_pool="gpu",
            gpu_blocks=12,
            block_size=BLOCK_SIZE,
            follow=False,
        )
        head = connection.log(index, follow=False).head()
    asked = itertools.count()

    def roll_back(_seconds: float) -> None:
        assert next(asked) == 0, "it goes on as if nothing had happened"
        match how:
            case "shorter":
                client.hset(keys.head, mapping={"position": head.position - 1, "commit": "other.1"})
            case "of the same length":
                client.hset(keys.head, "commit", "other.2")
            case _:
                client.hset(keys.head, mapping={"position": head.position + 1, "commit": "other.3"})
                record = encode(Commit("other.3", "engine-0", 1, (ServiceResumed("engine-0", ""),), (), ()), at_ms=1)
                fields = {"previous": "other.2", "meta": meta_of(record), "body": record.body, "hashes": record.hashes}
                client.xadd(keys.log, cast("Any", fields), id=f"{head.position + 1}-0")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ops.cli.show_log.time.sleep", roll_back)
        result = statecore("log", "--follow", "--url", server, "--index", index)

    message = complaint(result, 1)
    assert message.startswith(
        f"the log was rolled back: it was shown up to commit '{head.commit_id}' at position {head.position}, and now ends "
        "with commit 'other."
    )


def test_follow_says_what_was_trimmed_before_it_could_be_shown(server: str, client: redis.Redis) -> None:
    """A slow terminal would end the command with a broken log, or leave out commits without a word."""
    index = "trimmed-while-followed"
    with connect(server) as connection:
        engine = CacheIndex(
            connection,
            name=index,
            engine="engine-0",
            gpu_pool="gpu",
            gpu_blocks=12,
            block_size=BLOCK_SIZE,
            follow=False,
        )
        start = engine.refresh()

        def trim(_seconds: float) -> None:
            for number in range(3):
                engine.match(f"request-{number}", WARM)
            client.xtrim(IndexKeys.of(index).log, minid=f"{start + 3}-0", approximate=False)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ops.cli.show_log.time.sleep", trim)
            result = statecore("log", "--follow", "--to", start + 3, "--json", "--url", server, "--index", index)

    assert [commit["position"] for commit in answers(result)] == [*range(1, start + 1), start + 3]
    assert result.stderr == (
        f"warning: positions {start + 1} to {start + 2} were trimmed away before they could be shown\n"
    )


def test_a_log_that_is_trimmed_while_it_is_read_is_no_broken_log(
    kept: TrimmedStory, client: redis.Redis, damaged: IndexKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper at work would look like a hole in the history."""
    read = Snapshots.fetch

    def then_trim(self: Snapshots, pointer: SnapshotPointer) -> bytes:
        data = read(self, pointer)
        client.xtrim(damaged.log, minid=f"{kept.end}-0", approximate=False)
        return data

    monkeypatch.setattr(Snapshots, "fetch", then_trim)

    message = complaint(statecore("replay", *live(kept, damaged.name), "--check-invariants", 1), 2)

    assert message == f"the log was trimmed while it was read: positions before {kept.end} are gone now. Run it again"
