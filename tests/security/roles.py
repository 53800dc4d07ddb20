"""A server whose users are those of `ops/acl/`, and the URL of each role.

Owns the passwords that a test gives them, and the choice of the file by the server's version.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from tests.servers import LOOPBACK, RedisServer

ROLES: Final = ("engine", "worker", "keeper", "reader")
ADMIN: Final = "admin-secret"
_FOLDER: Final = Path(__file__).resolve().parents[2] / "ops" / "acl"


class GuardedServer:
    """A redis-server that loads the file of its version, as it is, behind one line for the administrator."""

    def __init__(self, folder: Path, binary: Path, *options: str) -> None:
        self.modern = version_of(folder / "probe", binary) >= (7, 0)
        users = folder / "users.acl"
        users.write_text(f"user default on >{ADMIN} ~* &* +@all\n{acl_text(modern=self.modern)}")
        self.server = RedisServer(folder / "guarded", "--aclfile", str(users), *options, binary=binary)
        for role in ROLES:
            self.admin().execute_command("ACL", "SETUSER", f"statecore-{role}", f">{role}-secret")

    def admin(self) -> Any:
        return self.server.client(password=ADMIN)

    def client(self, role: str) -> Any:
        return self.server.client(username=f"statecore-{role}", password=f"{role}-secret")

    def url(self, role: str) -> str:
        return f"redis://statecore-{role}:{role}-secret@{LOOPBACK}:{self.server.port}"

    def denials(self) -> set[tuple[str, str, str]]:
        """User, reason and object of everything the server has refused since it was asked last."""
        log = self.admin().acl_log()
        self.admin().acl_log_reset()
        return {(_text(entry["username"]), _text(entry["reason"]), _text(entry["object"])) for entry in log}

    def stop(self) -> None:
        self.server.stop()


def acl_text(*, modern: bool) -> str:
    return (_FOLDER / ("statecore.acl" if modern else "statecore-6.2.acl")).read_text()


def version_of(folder: Path, binary: Path) -> tuple[int, int]:
    with RedisServer(folder, binary=binary) as server:
        found = re.match(r"(\d+)\.(\d+)", server.client().info()["redis_version"])
        assert found is not None
        return int(found[1]), int(found[2])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
