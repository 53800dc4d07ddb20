"""Faults of reliability.md that no run injects: the tests that show what becomes of them.

Owns the list. `tests/reliability/test_page.py` checks that each test exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TESTS: Final[Mapping[str, tuple[str, ...]]] = {
    "old and new release on one log": (
        "tests/multiprocess/test_two_releases.py::test_the_old_release_stops_at_the_first_fact_it_cannot_read",
        "tests/multiprocess/test_two_releases.py::test_the_release_before_is_refused_from_the_first_move_on",
        "tests/histories/test_histories.py::test_every_position_has_the_digest_it_had",
    ),
    "BUSY script, slow server": ("tests/contract/test_bad_server.py::test_a_busy_server",),
    "entry corrupted": (
        "tests/contract/test_stored.py::test_a_damaged_field",
        "tests/contract/test_stored.py::test_an_entry_without_its_link",
        "tests/unit/test_codec.py::test_every_byte_of_the_body_counts",
    ),
    "snapshot corrupted": ("tests/keeper/test_starting.py::test_a_damaged_snapshot_is_passed_over_loudly",),
    "log trimmed behind a slow replica": (
        "tests/contract/test_trimmed.py::test_a_step_goes_on_from_a_snapshot",
        "tests/contract/test_trimmed.py::test_a_follower_that_fell_behind",
        "tests/keeper/test_starting.py::test_a_replica_behind_the_trim_goes_on_in_the_same_life",
    ),
    "clock jumps": ("tests/keeper/test_snapshots.py::test_a_clock_that_jumps_changes_nothing",),
    "PYTHONHASHSEED varied": (
        "tests/multiprocess/test_engines.py::test_one_of_several_engines_is_killed",
        "tests/unit/test_hashing.py::test_another_process_hashes_the_same",
        "tests/manager/test_keys.py::test_keys_are_the_same_in_every_process",
    ),
    "Redis stopped beyond every deadline": (
        "tests/contract/test_unreachable.py::test_every_call_ends_and_says_so",
        "tests/contract/test_unknown_outcome.py::test_the_deadline_passes",
    ),
    "failover to a lagging replica, positions reused": (
        "tests/contract/test_failover.py::test_failover_to_a_replica_that_lags",
        "tests/contract/test_server_lives.py::test_positions_that_were_used_again_deceive_nobody",
    ),
}
