"""Shards and HDF5 files at hand: opened, or read by ranges; no torch."""
