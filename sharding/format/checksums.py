"""Checksums of whole files and of their blocks, computed while the bytes go by."""

from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

# Of the order of a camera frame: a first batch over the network reads a few blocks for each of its windows, and reads
# them whole. A shard of 128 MiB has 16 KiB of checksums then.
CHECKSUM_BLOCK_BYTES = 64 << 10
_READ_BYTES = 1 << 22


def checksum(data: memoryview | bytes) -> str:
    """XXH3-128 in hexadecimal: the checksum of every file that a manifest names."""
    return xxhash.xxh3_128_hexdigest(data)


class ShardHasher:
    """XXH3-128 of a stream of bytes, and one XXH3-64 per block, so that ranged reads are checked too."""

    def __init__(self, block_bytes: int = CHECKSUM_BLOCK_BYTES) -> None:
        self.block_bytes = block_bytes
        self.num_bytes = 0
        self._whole = xxhash.xxh3_128()
        self._block = xxhash.xxh3_64()
        self._blocks: list[int] = []

    def update(self, data: memoryview | bytes | bytearray) -> None:
        """Take the next bytes, of any length."""
        view = memoryview(data).cast("B")
        self._whole.update(view)
        while view:
            room = self.block_bytes - self.num_bytes % self.block_bytes
            piece, view = view[:room], view[room:]
            self._block.update(piece)
            self.num_bytes += len(piece)
            if len(piece) == room:
                self._blocks.append(self._block.intdigest())
                self._block = xxhash.xxh3_64()

    @property
    def checksum(self) -> str:
        """XXH3-128 of all bytes so far, in hexadecimal."""
        return self._whole.hexdigest()

    @property
    def block_checksums(self) -> NDArray[np.uint64]:
        """XXH3-64 of each block so far; the last one may be shorter."""
        rest = [self._block.intdigest()] if self.num_bytes % self.block_bytes else []
        return np.array(self._blocks + rest, np.uint64)


def hash_file(path: Path, block_bytes: int = CHECKSUM_BLOCK_BYTES) -> ShardHasher:
    """The checksums of a local file, in memory that does not grow with it."""
    hasher = ShardHasher(block_bytes)
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(view[:count])
    return hasher
