"""Puts the frames of one shard's windows into a batch: copied from decoded episodes, or decoded in place."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import FormatError
from epistream.loader.reading.decoded_episodes import Frames
from epistream.loader.reading.frames import FrameDecoder
from epistream.sharding.format.index import ShardIndex

Int64 = NDArray[np.int64]


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
    tar: Blob, index: ShardIndex, decoder: FrameDecoder, needed: Int64, out: NDArray[Any], places: Int64
) -> None:
    """Put frames of a shard into a batch, each decoded once.

    Args:
        tar: the shard.
        index: of the shard.
        decoder: of the camera.
        needed: (N,) rows of the index.
        out: (M, H, W, C) frames of the batch.
        places: (N,) positions in `out`.

    Raises:
        FormatError: a frame that is torn; the message names it.
    """
    name = decoder.feature.name
    if decoder.is_copy:
        # Finding what is there twice would cost more than copying it twice. In the order of the file, because HDF5 may
        # hold neighbours in one compressed chunk.
        order = np.argsort(needed)
        offsets = index.frame_offset[name][needed[order]].tolist()
        flat = out.reshape(len(out), -1).view(np.uint8)
        tar.read_each(offsets, [flat[place].data for place in places[order].tolist()])
        return
    frames, first, which = np.unique(needed, return_index=True, return_inverse=True)
    offsets, sizes = index.frame_offset[name][frames].tolist(), index.frame_size[name][frames].tolist()
    targets = places[first].tolist()
    num_done = 0
    try:
        for packed, target in zip(tar.read_in_turn(offsets, sizes), targets, strict=True):
            decoder.decode(packed, out[target], name)
            num_done += 1
    except FormatError as error:
        tar.check_unchanged()  # if somebody is writing to the file, that is what to tell
        raise FormatError(f"{_where(index, int(frames[num_done]))}: {error}") from error
    if len(frames) < len(needed):
        for number in np.flatnonzero(first[which] != np.arange(len(needed))).tolist():
            np.copyto(out[places[number]], out[targets[which[number]]])


def _where(index: ShardIndex, row: int) -> str:
    episode = int(np.searchsorted(index.first_row, row, side="right")) - 1
    return f"{index.shard_name}, {index.keys[episode]}, step {row - int(index.first_row[episode])}"


def ready_frames(ready: Mapping[int, Frames], camera: str) -> dict[int, NDArray[Any]]:
    """Of decoded episodes, the frames of one camera; empty if it is not kept decoded."""
    return {episode: frames[camera] for episode, frames in ready.items() if camera in frames}
