"""One copy of a shard per node: which tier serves it, and the one door, `NodeCache`."""
