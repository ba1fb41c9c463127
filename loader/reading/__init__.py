"""Bytes of shards into the arrays of a batch; no torch."""
