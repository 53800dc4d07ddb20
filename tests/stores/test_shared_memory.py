"""Segments: what is in them, who may open them, and what becomes of them when processes die."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from events.errors import InvalidInput
from tests.stores.given import INDEX, LARGER, SMALL, OtherProcess, content, hash_of
from workers import shared_memory
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.segment_header import CUDA, HEADER_BYTES, HOST, Process, SegmentHeader, segment_name
from workers.shared_pools import remove_stale
from workers.store import MemoryGone, PoolMemory

HEADER = SegmentHeader(INDEX, "host", "cpu", 0, "0" * 32, HOST, SMALL, Process(1, 2))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A whole segment that nobody has open; its creator, this process, lives."""
    store = NumpyStore(INDEX, 0, tmp_path)
    store.create("host", "cpu", SMALL)
    store.close()
    return tmp_path / segment_name(INDEX, "host", 0)


def dead(folder: Path, index: str = INDEX, pool: str = "host") -> PoolMemory:
    """The pool of a process that was killed after it had filled block 3."""
    with OtherProcess(folder, index) as creator:
        memory: PoolMemory = creator.do("create", pool, "cpu", SMALL)
        creator.do("fill", pool, 3, hash_of(3))
        creator.kill()
    return memory


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the file ---------------------------------------------------------------------------------------


def test_the_bytes_mapped_are_the_bytes_accounted(made: Path) -> None:
    """The host pool would take more memory than the operator gave it (E-47)."""
    assert made.stat().st_size == HEADER_BYTES + SMALL.total_bytes
    assert made.stat().st_blocks * 512 >= made.stat().st_size, "a sparse file kills a later copy with SIGBUS"


def test_only_the_owner_may_open(made: Path) -> None:
    """Other users of the machine could read prompts out of the cache."""
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


def test_default_place_is_dev_shm() -> None:
    """The host pool would be on a disk."""
    store = NumpyStore(f"{INDEX}-{os.getpid()}", 0)
    store.create("host", "cpu", SMALL)
    assert Path("/dev/shm", segment_name(f"{INDEX}-{os.getpid()}", "host", 0)).exists()
    assert store.unlink("host")


def test_names_have_a_fixed_length() -> None:
    """A long index name would not fit a file name."""
    assert len(segment_name("i" * 128, "p" * 128, 0)) == len(segment_name("i", "p", 0)) < 80
    assert len({segment_name(i, p, r) for i in "ab" for p in "ab" for r in (0, 1, 11)}) == 12


def test_the_header_says_whose_memory_it_is() -> None:
    """Nobody could tell an index's segments from another's."""
    assert SegmentHeader.decode(HEADER.encode()) == HEADER
    assert len(HEADER.encode()) == HEADER_BYTES


def test_the_longest_names_fit_the_header() -> None:
    """An index with a long name could not have a host pool."""
    layout = CacheLayout(2**31 - 1, 1, (1,) * 8, "bfloat16")
    longest = attrs.evolve(HEADER, index="i" * 128, pool="p" * 128, rank=2**31 - 1, layout=layout)
    assert SegmentHeader.decode(longest.encode()) == longest


def test_a_header_that_does_not_fit_is_refused() -> None:
    """The blocks would begin inside the header."""
    with pytest.raises(InvalidInput, match="4096 is the most"):
        attrs.evolve(HEADER, layout=CacheLayout(1, 1, (1,) * 2100, "int8")).encode()


def test_more_than_there_is_space_for(tmp_path: Path) -> None:
    """The process would die of SIGBUS in a copy, hours later."""
    store = NumpyStore(INDEX, 0, tmp_path)
    with pytest.raises(InvalidInput, match=r"needs 17592186048512 bytes in .* has \d+ free"):
        store.create("host", "cpu", CacheLayout(1024, 1 << 20, (8, 8, 128), "fp8"))
    assert names(tmp_path) == []


# --- opening ----------------------------------------------------------------------------------------


def test_creators_at_the_same_moment_share_one_segment(tmp_path: Path) -> None:
    """Engines that start together would each write into a memory of its own."""
    stores = [NumpyStore(INDEX, 0, tmp_path) for _ in range(8)]
    for turn in range(10):
        with ThreadPoolExecutor(len(stores)) as threads:
            memories = list(threads.map(lambda store, pool=f"p{turn}": store.create(pool, "cpu", SMALL), stores))
        assert len({memory.incarnation for memory in memories}) == 1
        assert [memory.created for memory in memories].count(True) == 1
    assert len(names(tmp_path)) == 10
    for store in stores:
        store.close()


@pytest.mark.parametrize(("index", "pool", "rank"), [("qwen", "host", 0), (INDEX, "gpu-0", 0), (INDEX, "host", 1)])
def test_another_index_under_the_same_name(made: Path, index: str, pool: str, rank: int) -> None:
    """Blocks of one model would be served to another."""
    made.with_name(segment_name(index, pool, rank)).write_bytes(made.read_bytes())
    with pytest.raises(InvalidInput, match=r"belongs to index, pool, rank \('llama@host1', 'host', 0\), not to"):
        NumpyStore(index, rank, made.parent).attach(pool)


@pytest.mark.parametrize("size", [0, 100, HEADER_BYTES, HEADER_BYTES + SMALL.total_bytes - 1, HEADER_BYTES * 4])
def test_a_segment_of_another_size(made: Path, size: int) -> None:
    """The first copy behind the end would kill the process with SIGBUS."""
    os.truncate(made, size)
    with pytest.raises(InvalidInput, match=f"has {size} bytes"):
        NumpyStore(INDEX, 0, made.parent).attach("host")


@pytest.mark.parametrize(
    ("at", "named"), [(0, "it begins with"), (8, "version 254; this release reads version 1"), (30, "damaged")]
)
def test_a_damaged_header(made: Path, at: int, named: str) -> None:
    """A layout read from garbage would map garbage."""
    page = bytearray(made.read_bytes())
    page[at] ^= 0xFF
    made.write_bytes(page)
    store = NumpyStore(INDEX, 0, made.parent)
    with pytest.raises(InvalidInput, match=named):
        store.attach("host")
    with pytest.raises(InvalidInput, match=named):
        store.create("host", "cpu", SMALL)


def test_a_link_is_not_followed(made: Path) -> None:
    """Another user of /dev/shm could make an engine write into a file of its own."""
    made.rename(made.with_name("elsewhere"))
    made.symlink_to(made.with_name("elsewhere"))
    with pytest.raises(InvalidInput, match="cannot be opened"):
        NumpyStore(INDEX, 0, made.parent).attach("host")


def test_somebody_elses_file(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user of /dev/shm could feed an engine keys and values."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(InvalidInput, match="is not ours"):
        NumpyStore(INDEX, 0, made.parent).attach("host")


def test_a_refused_segment_is_not_used(made: Path) -> None:
    """Every refused attach would keep the memory mapped, and nobody could remove it."""
    store = NumpyStore(INDEX, 0, made.parent)
    with pytest.raises(InvalidInput) as first:
        store.attach("host", LARGER)
    with pytest.raises(InvalidInput) as second:
        store.create("host", "gpu", SMALL)
    assert shared_memory.remove_if_unused(made), f"still used while somebody looks at {first.value}, {second.value}"


# --- use and death ----------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Every crash would cost the machine a host pool of memory until it restarts."""
    dead(tmp_path)
    (removed,) = remove_stale(INDEX, tmp_path)
    assert removed.freed_bytes == HEADER_BYTES + SMALL.total_bytes
    assert names(tmp_path) == []


def test_what_a_living_process_uses_is_kept(tmp_path: Path) -> None:
    """An engine's crash would take the host pool from the other engines."""
    memory = dead(tmp_path)
    user = NumpyStore(INDEX, 0, tmp_path)
    user.attach("host", incarnation=memory.incarnation)
    assert remove_stale(INDEX, tmp_path) == []
    assert user.matches("host", 3, hash_of(3))
    user.close()
    assert len(remove_stale(INDEX, tmp_path)) == 1


def test_the_use_of_another_process_ends_with_it(tmp_path: Path, other: OtherProcess) -> None:
    """A killed worker would keep the host pool for ever."""
    dead(tmp_path)
    other.do("attach", "host")
    assert remove_stale(INDEX, tmp_path) == []
    other.kill()
    assert len(remove_stale(INDEX, tmp_path)) == 1


def test_what_a_living_creator_has_closed_is_kept(made: Path) -> None:
    """A launcher's pool would vanish before its workers have opened it."""
    assert remove_stale(INDEX, made.parent) == []
    assert made.exists()


def test_an_array_keeps_the_memory_in_use(tmp_path: Path) -> None:
    """An engine's tensor would look at memory that was given away."""
    dead(tmp_path)
    engine = NumpyStore(INDEX, 0, tmp_path)
    engine.attach("host")
    keys = engine.tensor("host", 1, "key")
    engine.close()
    assert remove_stale(INDEX, tmp_path) == []
    assert keys.shape == (8, 2, 4, 5)
    assert keys[3].any()
    del keys
    gc.collect()
    assert len(remove_stale(INDEX, tmp_path)) == 1


def test_a_killed_creator_leaves_a_warm_start(tmp_path: Path) -> None:
    """After a crash every block that waits in host memory would have to be computed again."""
    memory = dead(tmp_path)
    engine = NumpyStore(INDEX, 0, tmp_path)
    found = engine.create("host", "cpu", SMALL)
    assert (found.created, found.incarnation) == (False, memory.incarnation)
    assert engine.matches("host", 3, hash_of(3))
    engine.close()


def test_other_indexes_are_left_alone(tmp_path: Path) -> None:
    """Cleaning up after one model would remove another's cache."""
    dead(tmp_path, index="qwen")
    (tmp_path / "statecore-somebody-else").touch()
    (tmp_path / f"{segment_name(INDEX, 'host', 0)}.new-ours").touch()
    assert remove_stale(INDEX, tmp_path) == []
    assert len(names(tmp_path)) == 3


def test_what_is_not_a_segment_is_left_alone(made: Path) -> None:
    """Cleaning up would delete what it does not understand."""
    made.write_bytes(b"no header" * 1000)
    assert remove_stale(INDEX, made.parent) == []
    assert made.exists()


def test_half_made_segments_of_the_dead_are_removed(made: Path, tmp_path: Path) -> None:
    """A process killed while it filled its memory would leave it for ever."""
    with OtherProcess(tmp_path) as process:
        pid = process.pid
        half = tmp_path / f"{made.name}.new-{pid}-00ff00ff"
        half.write_bytes(bytes(100))
        assert remove_stale(INDEX, tmp_path) == []
        process.kill()
    assert [removed.name for removed in remove_stale(INDEX, tmp_path)] == [half.name]


def test_a_pid_that_came_round_again_is_not_its_old_process() -> None:
    """A segment would be kept for a process that has nothing to do with it."""
    assert Process.current().alive
    assert not attrs.evolve(Process.current(), started=Process.current().started - 1).alive
    assert not Process(2**22 + 1, 1).alive


def test_a_process_that_only_waits_to_be_reaped_is_dead() -> None:
    """A crashed engine's memory would stay until its parent notices."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = Process.of(child.pid)
        assert process is not None
        assert process.started > Process.current().started - 1 > 0
        before = process.alive
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert (before, process.alive) == (True, False)
        assert Process.of(child.pid) is None


def test_a_segment_removed_while_it_is_opened(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine would write into memory whose name has just gone to another."""
    lock = shared_memory._lock

    def removed_before(descriptor: int, kind: int, attempts: int = 1) -> bool:
        made.unlink(missing_ok=True)
        return lock(descriptor, kind, attempts)

    monkeypatch.setattr(shared_memory, "_lock", removed_before)
    with pytest.raises(MemoryGone, match="while it was opened"):
        NumpyStore(INDEX, 0, made.parent).attach("host")


def test_removal_by_a_process_that_stands_still(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine would hang at its start because of a suspended process."""
    monkeypatch.setattr(shared_memory, "_LOCK_WAIT_S", 0)
    with (
        shared_memory.opened(made, exclusive=True),
        pytest.raises(InvalidInput, match="being removed by a process that does not go on"),
    ):
        NumpyStore(INDEX, 0, made.parent).attach("host")


# --- segments that hold GPU handles -----------------------------------------------------------------


def handles(folder: Path, creator: Process) -> shared_memory.Segment:
    header = attrs.evolve(
        HEADER, pool="gpu-0", tier="gpu", memory=CUDA, creator=creator, incarnation=os.urandom(16).hex()
    )
    return shared_memory.create(folder, header, lambda: bytes(header.payload_bytes))


def test_gpu_memory_goes_with_its_creator(tmp_path: Path) -> None:
    """A worker would copy through a handle to memory that the driver has given to somebody else."""
    of_the_dead = handles(tmp_path, attrs.evolve(Process.current(), started=1))
    with pytest.raises(MemoryGone, match="went with its creator"):
        shared_memory.attach(tmp_path, INDEX, "gpu-0", 0)
    renewed = handles(tmp_path, Process.current())
    assert renewed.created
    with pytest.raises(MemoryGone, match="replaced"):
        of_the_dead.check_in_place()
    renewed.check_in_place()
    assert not handles(tmp_path, Process.current()).created


def test_the_numpy_store_refuses_gpu_memory(tmp_path: Path) -> None:
    """Handles would be taken for blocks."""
    segment = handles(tmp_path, Process.current())
    store = NumpyStore(INDEX, 0, tmp_path)
    with pytest.raises(InvalidInput, match="cuda memory"):
        store.attach("gpu-0")
    segment.close()
    assert shared_memory.remove_if_unused(segment.path)


# --- what an engine gets ----------------------------------------------------------------------------


def test_tensors_are_the_blocks(tmp_path: Path) -> None:
    """What an engine writes into its cache tensors would not be what the worker swaps."""
    store = NumpyStore(INDEX, 0, tmp_path)
    store.create("gpu-0", "gpu", CacheLayout(3, 8, (2, 4, 5), "float16"))
    store.write("gpu-0", 6, content(6))
    parts = [store.tensor("gpu-0", layer, part)[6] for layer in range(3) for part in ("key", "value")]
    assert b"".join(part.tobytes() for part in parts) == content(6)
    assert (parts[0].shape, str(parts[0].dtype)) == ((2, 4, 5), "float16")
    for layer, part in ((3, "key"), (-1, "key"), (0, "query")):
        with pytest.raises(InvalidInput, match="layers 0 to 2"):
            store.tensor("gpu-0", layer, part)
    store.close()
