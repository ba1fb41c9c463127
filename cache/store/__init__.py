"""The protocol between processes: a directory, locks, leases, fills, eviction."""
