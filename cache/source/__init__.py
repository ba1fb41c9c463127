"""Bytes where they lie: entries, blobs, remote reads, fetching."""
