"""The pictures of one episode as they are stored, read from its files: for looking at them, not for training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from epistream.errors import FormatError
from epistream.sharding.files.storage import join
from epistream.sharding.lerobot.episode import SetSource
from epistream.sharding.lerobot.files import SourceFile
from epistream.sharding.lerobot.index import EpisodeIndex, FileOfSet
from epistream.sharding.lerobot.picture_groups import group_pictures


def packed_bytes(source: SetSource, index: EpisodeIndex, start: int, stop: int) -> bytes:
    """Packed bytes [start, stop) that lie in videos.

    Raises:
        FormatError: If a file ends before.
        SourceError, FetchError: If one cannot be read.
    """
    places, parts = index.places, []
    stops = np.append(places.start[1:], places.num_bytes)
    piece = int(np.searchsorted(places.start, start, side="right")) - 1
    while start < stop:
        size = min(stop, int(stops[piece])) - start
        file = _file(source, places.files[int(places.file[piece])])
        data = file.read(int(places.place[piece]) + start - int(places.start[piece]), size)
        if len(data) != size:
            raise FormatError(f"{file.url}: {len(data):,} bytes of frames, wanted {size:,}. Download it again.")
        parts.append(data)
        start, piece = start + size, piece + 1
    return b"".join(parts)


def stored_pictures(source: SetSource, index: EpisodeIndex, name: str, folder: Path | None = None) -> Iterator[bytes]:
    """The bytes of each picture of a camera whose pictures are in the rows, step by step.

    Args:
        source: The data set.
        index: Of the episode.
        name: Of the camera.
        folder: Where pictures are kept that had to be read with its own; that of the data set unless given.

    Raises:
        FormatError: If the file holds something else than was indexed.
        SourceError, FetchError, SourceChangedError: If it cannot be read.
        CacheError, DeadlineError: As `make_once`.
    """
    key = source.features[name].source_path
    column = next(one for one in index.places.columns if one.column == key)
    file = _file(source, index.places.files[column.file])
    row, left = column.first, column.rows
    for group in column.groups:
        pictures = group_pictures(file, key, group, folder or source.folder)
        cuts = np.append(0, np.cumsum(np.maximum(pictures.size, 0)))
        for number in range(row, min(row + left, len(pictures.size))):
            data = bytearray(int(cuts[number + 1] - cuts[number]))
            pictures.read_into(int(cuts[number]), memoryview(data))
            yield bytes(data)
            left -= 1
        row = 0
    if left:
        raise FormatError(f"{file.url}: {left} pictures fewer than it had, wanted {column.rows}. Look at it again.")


def _file(source: SetSource, told: FileOfSet) -> SourceFile:
    return SourceFile(told.name, join(source.root, told.name), told.version, told.num_bytes, source.options)
