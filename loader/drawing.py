"""Puts the frames of one shard's windows into a batch: copied from decoded episodes, or decoded in place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.blob import Blob, FileBlob
from epistream.errors import FormatError
from epistream.loader.decoded import Frames
from epistream.loader.frames import FrameDecoder
from epistream.sharding.index import ShardIndex

Int64 = NDArray[np.int64]

# Compressed bytes that are read at a time: enough to look at the file's state seldom, and they stay in the CPU's cache.
_READ_BYTES = 1 << 20


@dataclass
class Scratch:
    """Memory for compressed frames, kept from batch to batch. One per reader."""

    buffer: bytearray = field(default_factory=bytearray)

    def take(self, size: int) -> memoryview:
        """`size` bytes, until the next call."""
        if len(self.buffer) < size:
            self.buffer = bytearray(size)
        return memoryview(self.buffer)[:size]


def copy_frames(
    ready: Mapping[int, NDArray[Any]], episodes: Int64, steps: Int64, out: NDArray[Any], rows: Int64
) -> None:
    """Copy steps (R, n) of decoded episodes into `out[rows]`; neighbouring steps in one go.

    Args:
        ready: frames (T, H, W, C) by episode.
        episodes: (R,) keys of `ready`.
        steps: (R, n).
        out: (B, n, H, W, C).
        rows: (R,) rows of `out`.
    """
    num_steps = steps.shape[1]
    adjacent = (steps[:, 1:] - steps[:, :-1] == 1).all(axis=1)
    for row, episode, wanted, whole in zip(
        rows.tolist(), episodes.tolist(), steps.tolist(), adjacent.tolist(), strict=True
    ):
        frames = ready[episode]
        if whole:
            np.copyto(out[row], frames[wanted[0] : wanted[0] + num_steps])
        else:
            for position, step in enumerate(wanted):
                np.copyto(out[row, position], frames[step])


def draw_frames(
    tar: Blob,
    index: ShardIndex,
    decoder: FrameDecoder,
    needed: Int64,
    out: NDArray[Any],
    places: Int64,
    scratch: Scratch,
) -> None:
    """Decode frames of a shard into a batch, each frame once.

    Args:
        tar: the shard.
        index: of the shard.
        decoder: of the camera.
        needed: (N,) rows of the index.
        out: (M, H, W, C) frames of the batch.
        places: (N,) positions in `out`.
        scratch: for compressed bytes.

    Raises:
        FormatError: a frame that is torn; the message names it.
    """
    name = decoder.feature.name
    frames, first, which = np.unique(needed, return_index=True, return_inverse=True)
    offsets, sizes = index.frame_offset[name][frames].astype(np.int64), index.frame_size[name][frames].astype(np.int64)
    images = [out[place] for place in places[first].tolist()]
    if decoder.is_copy:
        _read_each(tar, offsets.tolist(), [image.reshape(-1).view(np.uint8).data for image in images])
    else:
        groups = (np.cumsum(sizes) - sizes) // _READ_BYTES
        for group in np.split(np.arange(len(frames)), np.flatnonzero(np.diff(groups)) + 1):
            data = _compressed(tar, offsets[group], sizes[group], scratch)
            for number, packed in zip(group.tolist(), data, strict=True):
                try:
                    decoder.decode(packed, images[number], name)
                except FormatError as error:
                    raise FormatError(f"{_where(index, int(frames[number]))}: {error}") from error
    if len(frames) < len(needed):
        for number in np.flatnonzero(first[which] != np.arange(len(needed))).tolist():
            np.copyto(out[places[number]], images[which[number]])


def _compressed(tar: Blob, offsets: Int64, sizes: Int64, scratch: Scratch) -> list[memoryview | bytes]:
    """The bytes of frames, valid until the next call."""
    if not isinstance(tar, FileBlob):
        return [tar.read(offset, size) for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True)]
    stops = np.cumsum(sizes)
    buffer = scratch.take(int(stops[-1]))
    pieces = [buffer[stop - size : stop] for stop, size in zip(stops.tolist(), sizes.tolist(), strict=True)]
    tar.read_each(offsets.tolist(), pieces)
    return list(pieces)


def _read_each(tar: Blob, offsets: list[int], targets: list[memoryview]) -> None:
    if isinstance(tar, FileBlob):
        tar.read_each(offsets, targets)
    else:
        for offset, target in zip(offsets, targets, strict=True):
            tar.read_into(offset, target)


def _where(index: ShardIndex, row: int) -> str:
    episode = int(np.searchsorted(index.first_row, row, side="right")) - 1
    return f"{index.shard_name}, {index.keys[episode]}, step {row - int(index.first_row[episode])}"


def ready_frames(ready: Mapping[int, Frames], camera: str) -> dict[int, NDArray[Any]]:
    """Of decoded episodes, the frames of one camera; empty if it is not kept decoded."""
    return {episode: frames[camera] for episode, frames in ready.items() if camera in frames}
