"""One copy of a shard per node: budget, leases, single-flight fills, eviction, fetching."""
