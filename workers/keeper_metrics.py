"""A keeper's metrics, for Prometheus: what it did, and how far the index and its snapshot are.

Owns their names and the HTTP endpoint, on loopback only and only where a port is given. Alerts worth having:
`statecore:keeper_snapshot_age_seconds` beyond twice the age it was set to, `statecore:keeper_rolled_back` above 0.
"""

from __future__ import annotations

import time
from typing import Final

import attrs
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from events.errors import InvalidInput
from workers.keeper_totals import Totals
from workers.prometheus import ADDRESS

_HELP: Final = {
    "acting": "1 while this keeper acts, 0 while another one does",
    "position": "Position of the log",
    "engines": "Engines alive by the log",
    "transfers": "Transfers and sends under way",
    "deposed": "Engines declared lost",
    "spared": "Engines that held their lease after all",
    "rung": "Jobs put back into their streams",
    "published": "Snapshots published",
    "not_published": "Snapshots that were not published",
    "snapshot_position": "Position of the newest snapshot",
    "snapshot_bytes": "Bytes of the newest snapshot",
    "snapshot_s": "Seconds the last snapshot took",
    "snapshot_sound": "1 while the newest snapshot gave its state back when it was last read, else 0",
    "first_kept": "First position the log is to keep",
    "rolled_back": "Times the log was found rolled back",
    "unavailable": "Turns in which the server was away",
}


class KeeperMetrics:
    """Gauges over `Totals`; all are levels, for a restarted keeper begins at 0."""

    def __init__(self, index: str, port: int | None) -> None:
        self._registry = CollectorRegistry()
        self._gauges = {
            name: Gauge(f"statecore:keeper_{name}", text, ["index"], registry=self._registry).labels(index)
            for name, text in _HELP.items()
        }
        age = "Seconds since the newest snapshot was taken"
        self._age = Gauge("statecore:keeper_snapshot_age_seconds", age, ["index"], registry=self._registry).labels(
            index
        )
        self._server = None
        if port is not None:
            try:
                self._server, _ = start_http_server(port, ADDRESS, registry=self._registry)
            except OSError as error:
                raise InvalidInput(f"metrics cannot be served on {ADDRESS}:{port}: {error}") from error

    def show(self, totals: Totals) -> None:
        for name, value in attrs.asdict(totals).items():
            if name in self._gauges:
                self._gauges[name].set(value)
        if totals.snapshot_at_ms:
            self._age.set(max(0.0, time.time() - totals.snapshot_at_ms / 1000))

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


assert set(_HELP) | {"snapshot_at_ms"} == {field.name for field in attrs.fields(Totals)}, "a total without a metric"
