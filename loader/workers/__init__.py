"""Processes or threads that fill batches, and the memory that batches travel in; no torch."""
