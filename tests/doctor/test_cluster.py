"""The doctor over a Redis Cluster: every node is looked at, and an index where it lies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from events import connect
from statecore import CacheIndex
from tests.doctor.given import examined
from tests.servers import binary_of
from tests.topologies import Cluster

KINDS = [kind for kind in ("embedded", "system") if binary_of(kind)]


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), binary=binary_of(request.param)) as running:
        yield running


def test_every_node_and_every_index_is_looked_at(cluster: Cluster) -> None:
    """One node of three that evicts keys would be overlooked, or an index be looked for where it is not."""
    names = {f"index-{number}" for number in range(4)}
    with connect(cluster.url) as connection:
        engines = [
            CacheIndex(connection, name=name, engine="engine-0", gpu_blocks=8, block_size=4, follow=False)
            for name in names
        ]
        engines[0].match("a", [1] * 8)
        well = examined(cluster.url)
        with cluster.nodes[1].client() as node:
            node.config_set("maxmemory-policy", "allkeys-lru")
            ill = examined(cluster.url)
            node.config_set("maxmemory-policy", "noeviction")
        for engine in engines:
            engine.close()

    assert well.graded("error") == set()
    assert {each["index"] for each in well.found if each["index"]} == names
    assert len({each["server"] for each in well.found if not each["index"]}) == len(cluster.nodes)
    assert [each["severity"] for each in ill.found if each["what"] == "eviction"].count("error") == 1
    assert ill.exit_code == 1
