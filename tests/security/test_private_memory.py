"""What lies on the machine is its owner's alone: cached keys and values say what was asked, locks say whom to end.

Modes are looked at under every kind of umask, and what another user left in the way is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.embedded import EmbeddedRedis
from events.errors import InvalidInput
from workers import launcher
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.rank_lock import RankLock
from workers.segment_header import lock_name, segment_name
from workers.shared_memory import SHARED_FOLDER

LAYOUT = CacheLayout(layers=1, num_blocks=2, block_shape=(2,), dtype="float16")


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_segments(index_name: str) -> None:
    """Otherwise every user of the machine could read what the tenants' prompts are, out of their keys and values.

    Given any umask, when pools are made, then their segments are readable and writable by their owner and nobody else.
    """
    store = NumpyStore(index_name, 0)
    try:
        for pool, tier in (("gpu:a", "gpu"), ("cpu:host", "cpu")):
            store.create(pool, tier, LAYOUT)
            assert mode(SHARED_FOLDER / segment_name(index_name, pool, 0)) == "-rw-------"
    finally:
        for pool in ("gpu:a", "cpu:host"):
            store.unlink(pool)
        store.close()


@pytest.mark.usefixtures("umask")
def test_locks(index_name: str) -> None:
    """Otherwise another user could write whom a takeover has to kill.

    Given any umask, when a lock is taken, then its file is its owner's alone; also when it was there with wider rights.
    """
    path = SHARED_FOLDER / lock_name(index_name, "gpu:a", 0)
    for there in (False, True):
        if there:
            path.touch()
            path.chmod(0o666)
        with RankLock(index_name, "gpu:a", 0) as lock:
            lock.acquire()
            assert mode(path) == "-rw-------"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that is another user's")
def test_what_belongs_to_somebody_else(index_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a stranger could prepare a lock, a segment or a folder under the name that we are going to use.

    Given files under our names that another user owns, when locked, attached or logged into, then InvalidInput.
    """
    path = SHARED_FOLDER / lock_name(index_name, "gpu:a", 0)
    segment = SHARED_FOLDER / segment_name(index_name, "gpu:a", 0)
    for each in (path, segment):
        each.touch()
        os.chown(each, 65534, 65534)
    try:
        with pytest.raises(InvalidInput, match="belongs to user 65534"):
            RankLock(index_name, "gpu:a", 0).acquire()
        with pytest.raises(InvalidInput, match="not ours"):
            NumpyStore(index_name, 0).attach("gpu:a")
    finally:
        path.unlink()
        segment.unlink()

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"statecore-workers-{os.getuid()}"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with pytest.raises(InvalidInput, match="theirs"):
        launcher._log_folder()


def test_the_folder_of_the_workers_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a link that somebody left in a public folder would be followed, and the file behind it be overwritten.

    Given the temporary folder with nothing, a link, and a folder that others may write to under our name, when the logs'
    folder is asked for, then one of our own, or InvalidInput.
    """
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"statecore-workers-{os.getuid()}"

    assert launcher._log_folder() == folder
    assert mode(folder) == "drwx------"
    folder.chmod(0o777)
    with pytest.raises(InvalidInput, match="open to others"):
        launcher._log_folder()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="theirs"):
        launcher._log_folder()


def test_an_embedded_server(tmp_path: Path) -> None:
    """Otherwise everybody on the machine could write to the log of an embedded server.

    Given an embedded server in a new folder, then its folder and its socket are its owner's alone, and no port is open.
    """
    with EmbeddedRedis(tmp_path / "data") as server:
        assert mode(server.folder) == "drwx------"
        assert mode(Path(server.url.removeprefix("unix://"))) == "srwx------"
        assert server.pid is not None
