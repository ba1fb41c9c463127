"""Filling an entry in place: what is made of other entries is written straight into its pages."""

import contextlib
import mmap
import os
from collections.abc import Callable


def write_mapped(fd: int, size: int, fill: Callable[[memoryview], None]) -> None:
    """Let `fill` write the `size` bytes of an open file through a mapping.

    The mapping is of another description of the same file: CPython's mmap keeps a duplicate of the descriptor that
    it is given, and with it the lock on its description, for as long as anybody looks at the mapping.
    """
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        mapping = mmap.mmap(again, size)
    finally:
        os.close(again)
    view = memoryview(mapping)
    try:
        fill(view)
    finally:
        # After an error the traceback may still look at it: then it ends with that.
        with contextlib.suppress(BufferError):
            view.release()
            mapping.close()
