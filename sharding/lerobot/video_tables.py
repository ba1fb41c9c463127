"""Packet tables of a LeRobot data set's videos: of files of many episodes they are made once, and kept."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.user_cache import make_once
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.lerobot.files import SourceFile
from epistream.sharding.pictures.depth import Depth
from epistream.sharding.pictures.mp4_boxes import next_part
from epistream.sharding.pictures.mp4_table import Mp4Table, read_mp4_table, stream_of
from epistream.sharding.pictures.video import VideoStream

KIND = "epistream.video-packets"
# Raised when the same file would give another table.
_RECIPE = 1
_REMEDY = "Remove this file; it is made again when the data set is read."
# Tables that a process has at hand: those of a file of 50,000 frames take 1.4 MB.
_MOST_TABLES = 64


@dataclass(frozen=True, eq=False)
class PacketTable:
    """Where the frames of a video lie in its file. T frames in the order of presentation.

    Args:
        stream: What a decoder must know.
        time: (T,) seconds at which frames are shown, ascending.
        offset: (T,) uint64 byte of the file at which the packet of a frame begins; it may lie behind its end.
        size: (T,) uint32 bytes of it.
        back: (T,) uint32 steps back to the key frame of its group.
    """

    stream: VideoStream
    time: NDArray[np.float64]
    offset: NDArray[np.uint64]
    size: NDArray[np.uint32]
    back: NDArray[np.uint32]


# How videos are seen by their first bytes, and what is brought then: their index, if it does not lie in front.
START = 4 << 10, next_part
# The same of those whose first picture is looked at, which most likely lies in front of their index.
START_WITH_PICTURE = 16 << 10, next_part


def read_packets(file: SourceFile, depth: Depth | None = None) -> PacketTable:
    """The table of a video, from its `moov` and its first key frame; `depth` is what its pixels stand for, if that.

    Raises:
        FormatError: If it cannot be read by groups.
        SourceError, FetchError: If it cannot be read at all.
    """
    with file.told_apart("an MP4"):
        # Of a file of many episodes that is cut off, the first ones are whole.
        table = read_mp4_table(file.read, file.num_bytes, file.url, may_be_cut=True)
        return PacketTable(_stream(file, table, depth), table.time, table.offset, table.size, table.back)


def _stream(file: SourceFile, table: Mp4Table, depth: Depth | None) -> VideoStream:
    """What a decoder must know.

    Parameter sets say all that a first picture would show: over a network it is not brought for each video.
    """
    said = (table.codec, table.extradata, table.width, table.height, table.matrix, table.is_full_range, depth)
    stream = _streams.get(said) if len(table.extradata) > _BARE_BYTES[table.codec] else None
    if stream is None:
        stream = stream_of(table, file.read, file.url, depth)
        if len(_streams) >= _MOST_STREAMS:
            _streams.clear()
        _streams[said] = stream
    return stream


_streams: dict[tuple[object, ...], VideoStream] = {}
_MOST_STREAMS = 64
# Bytes of avcC, hvcC and av1C that hold no parameter sets: these are in the packets then.
_BARE_BYTES = {"h264": 7, "hevc": 23, "av1": 4}


@lru_cache(_MOST_TABLES)  # which takes no lock that a fork could leave taken
def kept_packets(file: SourceFile, folder: Path, depth: Depth | None = None) -> PacketTable:
    """As `read_packets`, kept in a folder of this user; for videos of many episodes.

    Raises:
        FormatError, SourceError, FetchError: As `read_packets`.
        CacheError, DeadlineError: As `make_once`.
    """
    name = xxhash.xxh3_128_hexdigest(f"packets\0{_RECIPE}\0{file.url}\0{file.version}\0{depth}".encode())
    kept = f"{name}.packets.tables"

    def make() -> list[tuple[str, bytes]]:
        return [(kept, _to_bytes(read_packets(file, depth)))]

    return make_once(folder / f"{name}.lock", lambda place: _read(place / kept), make, file.url)


def _to_bytes(table: PacketTable) -> bytes:
    arrays = {name: getattr(table, name) for name in ("time", "offset", "size", "back")}
    return write_tables(KIND, {"stream": table.stream.to_dict()}, arrays)


def _read(path: Path) -> PacketTable | None:
    """What is kept if it is whole; anything else is made again."""
    try:
        tables = parse_tables(path.read_bytes(), KIND, str(path), _REMEDY)
        mark_used(path)
        arrays: dict[str, NDArray[Any]] = tables.arrays
        return PacketTable(
            VideoStream.from_dict(tables.meta["stream"]),
            arrays["time"],
            arrays["offset"],
            arrays["size"],
            arrays["back"],
        )
    except (OSError, FormatError, KeyError):
        return None
