"""Old facts and snapshots into the shapes of today: pure functions that know facts and nothing else."""
