"""Edits of datasets as layers over shards that never change: what was done, undone, added, joined and thrown out."""
