"""An MP4 of the packets of another one: nothing is decoded, and memory is taken for a piece of it at a time."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.lazy import lazy
from epistream.sharding.pictures.mp4_index import WrittenFrames, head_bytes, index_bytes
from epistream.sharding.pictures.video import VideoStream
from epistream.sharding.pictures.video_file import VideoTable

_PIECE_BYTES = 4 << 20
_MOST_DENOMINATOR = 1001  # of a rate: 30000/1001 is what 29.97 stands for
_MDAT_HEAD = 16  # with a size of 64 bits


@dataclass(frozen=True, eq=False)
class CopiedVideo:
    """A `WholeVideo` made of packets that lie one behind the other, in the order of decoding.

    Args:
        stream: What a decoder must know.
        fps: Frames a second.
        offset: (T,) byte of the packets at which that of each frame begins, in the order of presentation.
        size: (T,) bytes of it.
        back: (T,) uint32, steps back to the key frame of its group.
        read: Bytes of the packets: offset, size.
        where: Names the video in messages.

    Raises:
        FormatError: When it is written: if the packets do not lie so, or MP4 has no numbers for it.
    """

    stream: VideoStream
    fps: float
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    back: NDArray[np.uint32]
    read: Callable[[int, int], bytes] = field(repr=False)
    where: str

    @lazy
    def table(self) -> VideoTable:
        """Where frames lie in the MP4."""
        begin = len(head_bytes(self.stream)) + _MDAT_HEAD
        place = (self.offset - self.offset.min() + begin).astype(np.uint64)
        return VideoTable(self.stream, place, self.size.astype(np.uint32), self.back, self.fps)

    @lazy
    def _index(self) -> bytes:
        order = np.argsort(self.offset, kind="stable")
        ordered, size = self.offset[order], self.size[order]
        if (ordered[1:] != ordered[:-1] + size[:-1]).any() or order[0] != 0:
            raise FormatError(f"{self.where}: packets that do not lie in the order of decoding, wanted them so.")
        frames = WrittenFrames(
            order,
            self.back[order] == 0,
            size,
            self.table.offset[:1].astype(np.int64),
            np.array([len(order)], np.int64),
        )
        try:
            return index_bytes(self.stream, Fraction(self.fps).limit_denominator(_MOST_DENOMINATOR), frames)
        except FormatError as error:
            raise FormatError(f"{self.where}: {error}.") from error

    @property
    def num_bytes(self) -> int:
        """Of the MP4."""
        return int(self.table.offset[0]) + int(self.size.sum()) + len(self._index)

    def pieces(self) -> Iterator[bytes]:
        """The MP4, a piece after the other."""
        total = int(self.size.sum())
        yield head_bytes(self.stream) + struct.pack(">I4sQ", 1, b"mdat", total + _MDAT_HEAD)
        start = int(self.offset.min())
        for done in range(0, total, _PIECE_BYTES):
            wanted = min(_PIECE_BYTES, total - done)
            data = self.read(start + done, wanted)
            if len(data) != wanted:
                raise FormatError(f"{self.where}: {len(data):,} bytes, wanted {wanted:,}. The file was cut off.")
            yield data
        yield self._index
