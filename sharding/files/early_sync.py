"""Lets the disk write a file that still grows: the sync at its end would else wait for all of it."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

_STEP_BYTES = 16 << 20


class EarlySync:
    """Syncs one file now and then, beside whoever writes it.

    What the disk says of bytes that it could not keep it says once, to whoever syncs: so to this, which passes it on.

    Args:
        file: Open for writing, buffered or not.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._given_bytes = 0
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def grown(self, num_bytes: int) -> None:
        """Sync what was written, if that is much and nothing else is being synced.

        Args:
            num_bytes: Written so far.

        Raises:
            OSError: If the disk refuses this or what was synced before.
        """
        if num_bytes - self._given_bytes < _STEP_BYTES or (self._running and not self._running.done()):
            return
        if self._running:
            self._running.result()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "epistream-sync")
        self._given_bytes = num_bytes
        self._file.flush()
        self._running = self._pool.submit(os.fdatasync, self._file.fileno())

    def end(self) -> None:
        """Wait for what is being synced; the file may be closed then.

        Raises:
            OSError: If the disk refused it.
        """
        pool, running = self._pool, self._running
        self._pool = self._running = None
        if pool is not None and running is not None:
            pool.shutdown()
            running.result()
