"""Rows that lie in a file as they are, each a chunk of its own: how recorders write pictures that are JPEG files.

HDF5 takes three times as long for them: it looks each chunk up, asks for its bytes through Python, and copies twice.
"""

from collections.abc import Iterator

import h5py
import numpy as np

from epistream.sharding.opening.source_bytes import BytesInMemory, SourceBytes


def stored_rows(
    found: h5py.Dataset, content: SourceBytes | None, first_row: int, length: int
) -> Iterator[memoryview] | None:
    """The bytes of rows of a dataset, from those of its file; None where HDF5 has to read them.

    Args:
        found: The dataset.
        content: The bytes of its file, if they are at hand.
        first_row: The first row.
        length: How many.
    """
    if not isinstance(content, BytesInMemory) or found.dtype != np.uint8 or found.ndim != 2:
        return None
    if not hasattr(found.id, "chunk_iter"):  # h5py that was built with HDF5 1.12
        return None
    row_bytes, settings = found.shape[1], found.id.get_create_plist()
    if found.chunks != (1, row_bytes) or settings.get_nfilters() or found.file.userblock_size:
        return None
    starts: list[int] = []
    num_chunks = 0

    def take(chunk: h5py.h5d.StoreInfo) -> None:
        nonlocal num_chunks
        num_chunks += 1
        is_inside = chunk.byte_offset is not None and 0 <= chunk.byte_offset <= content.num_bytes - row_bytes
        is_next = chunk.chunk_offset == (len(starts), 0)
        if is_inside and is_next and chunk.size == row_bytes and chunk.filter_mask == 0:
            starts.append(chunk.byte_offset)

    found.id.chunk_iter(take)
    # A row that was never written has no chunk. What is odd in any way is damaged or cut off: HDF5 says best how.
    if not len(starts) == num_chunks == len(found) or first_row + length > len(found):
        return None
    return (content.piece(start, row_bytes) for start in starts[first_row : first_row + length])
