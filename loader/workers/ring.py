"""Recycled batch memory shared by a training process and its workers.

One anonymous memory file holds all slots. It has no name that could leak and does not count against the size
of /dev/shm. A worker fills a slot and sends its number; the consumer wraps the slot in arrays without copying;
the slot goes back when the last array on it dies. Fresh memory for every batch costs several times the
decoding itself: pages are faulted in, zeroed, written, mapped again and unmapped.
"""

import mmap
import os
import weakref
from collections.abc import Callable
from functools import partial
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Ring:
    """`num_slots` blocks of `slot_bytes` (rounded up to pages) in one memfd.

    Picklable while a process is being spawned (the descriptor is handed to the child), inherited under fork.
    """

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        self.num_slots = num_slots
        self.slot_bytes = -(-max(slot_bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._unlock: Callable[[], int] | None = None
        self._fd = os.memfd_create("epistream-ring")
        try:
            os.truncate(self._fd, self.num_bytes)
            self._map = mmap.mmap(self._fd, self.num_bytes)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def num_bytes(self) -> int:
        """Size of all slots."""
        return self.num_slots * self.slot_bytes

    def slot(self, number: int) -> NDArray[np.uint8]:
        """The bytes of a slot, (slot_bytes,) uint8. Every call makes an array of its own on the mapping.

        The array must be fresh: numpy collapses chains of views onto the array that was made from the mapping,
        so a finalizer on a row of one ring-wide array would fire while tensors on that row are still alive.
        """
        return np.frombuffer(self._map, np.uint8, self.slot_bytes, number * self.slot_bytes)

    def hand_out(self, number: int, give_back: Callable[[int], None]) -> NDArray[np.uint8]:
        """As `slot`, and call `give_back(number)` in this process when the last view of it has died.

        `give_back` runs wherever the last reference is dropped (also inside the garbage collector), so it may only
        write to a pipe. A forked child that drops an inherited batch gives nothing back.
        """
        block = self.slot(number)
        finalizer = weakref.finalize(block, _give_back_in, os.getpid(), number, give_back)
        finalizer.atexit = False
        return block

    def lock_pages(self, lock: Callable[[int, int], int], unlock: Callable[[int], int]) -> bool:
        """Keep the pages in place for a device's copies, until `close`.

        Args:
            lock: called with address and size in bytes; 0 is success.
            unlock: called with the address.

        Returns:
            False if `lock` declined; nothing is undone then.
        """
        address = int(np.frombuffer(self._map, np.uint8).ctypes.data)
        if self._unlock is None and lock(address, self.num_bytes) == 0:
            self._unlock = partial(unlock, address)
        return self._unlock is not None

    def close(self) -> None:
        """Close the descriptor. The memory lives on until the last batch on it dies, its pages no longer locked."""
        unlock, self._unlock = self._unlock, None
        if unlock is not None:
            unlock()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_map"]
        state["_unlock"] = None  # the pages are locked for the process that did it
        state["_fd"] = reduction.DupFd(self._fd)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["_fd"] = state["_fd"].detach()
        self.__dict__.update(state)
        self._map = mmap.mmap(self._fd, self.num_bytes)


def _give_back_in(pid: int, number: int, give_back: Callable[[int], None]) -> None:
    if os.getpid() == pid:
        give_back(number)
