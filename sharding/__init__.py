"""Episodes in, shards out; opening a dataset."""
