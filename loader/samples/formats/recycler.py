"""Memory for converted pictures that is used again: faulting in fresh pages costs four times the conversion itself."""

import mmap
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Enough for a training loop that holds one batch while it gets the next, with room for a copy on its way to a device.
_MAX_FREE = 4


class Recycler:
    """Hands out float32 tensors, and takes their memory back when the last view of it has died.

    A tensor is its user's for as long as anything refers to it, so one who keeps every batch gets fresh memory every
    time. Threads may share a recycler; one that crosses a process border starts empty, or on pages of its own.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor of `shape`, contiguous and uninitialised."""
        num_bytes = max(int(np.prod(shape, dtype=np.int64)) * 4, 1)
        block = self._take(num_bytes)
        # An array of its own on the block: numpy collapses chains of views, and so its death is that of all of them.
        array = np.frombuffer(block, np.float32, num_bytes // 4)
        weakref.finalize(array, self._give_back, block).atexit = False
        return torch.from_numpy(array).view(shape)

    def _take(self, num_bytes: int) -> mmap.mmap:
        for block in self._free:
            if len(block) == num_bytes:
                try:
                    self._free.remove(block)
                except ValueError:  # another thread was faster
                    break
                return block
        # Private, so that a forked child writes into pages of its own.
        return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _give_back(self, block: mmap.mmap) -> None:
        # Blocks of another size are of another batch size, and the oldest: they go first.
        self._free.append(block)
        del self._free[:-_MAX_FREE]

    def __getstate__(self) -> dict[str, Any]:
        return {"_free": []}
