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
    starts = np.full(len(found), -1, np.int64)

    def take(chunk: h5py.h5d.StoreInfo) -> None:
        if chunk.size == row_bytes and chunk.filter_mask == 0 and chunk.byte_offset is not None:
            starts[chunk.chunk_offset[0]] = chunk.byte_offset

    found.id.chunk_iter(take)
    wanted = starts[first_row : first_row + length]
    # A row that was never written has no chunk; what lies behind the end of the file was cut off, as HDF5 says best.
    if len(wanted) < length or wanted.min(initial=0) < 0 or wanted.max(initial=0) + row_bytes > content.num_bytes:
        return None
    return (content.piece(start, row_bytes) for start in wanted.tolist())
