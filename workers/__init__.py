"""Processes that act on the log: they move the bytes, keep snapshots and leases, and start each other."""
