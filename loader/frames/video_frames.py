"""Frames of a camera that is stored as video: each group of pictures is decoded once for all that is wanted of it."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import FormatError
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.videos import Run
from epistream.sharding.pictures.codec import Encoded

Put = Callable[[int, NDArray[Any]], object]


def decode_video(tar: Blob, index: ShardIndex, decoder: FrameDecoder, needed: Sequence[int], put: Put) -> None:
    """Decode frames of a shard's video camera, each group of pictures once, and no further than it is needed.

    Args:
        tar: the shard.
        index: of the shard.
        decoder: of the camera.
        needed: (n,) rows of the index, in any order.
        put: takes each needed row once, with its picture (H, W, C) as the decoder makes it, valid until `put` returns.

    Raises:
        FormatError: a frame that is torn; the message names shard, episode, camera and step.
        SourceChangedError: somebody writes to the shard.
        OptionError: PyAV is not installed.
    """
    if not len(needed):
        return
    name = decoder.feature.name
    runs = list(index.runs(name, np.asarray(needed, np.int64)))
    rows = np.concatenate([run.rows for run in runs])
    # All of them as one read: whether the file was changed is looked at once.
    packets = tar.read_in_turn(index.frame_offset[name][rows].tolist(), index.frame_size[name][rows].tolist())
    try:
        decode_runs(index, decoder, runs, packets, put)
    except FormatError:
        tar.check_unchanged()  # if somebody is writing to the file, that is what to tell
        raise


def decode_runs(
    index: ShardIndex, decoder: FrameDecoder, runs: Sequence[Run], packets: Iterable[Encoded], put: Put
) -> None:
    """As `decode_video`, of packets that were read.

    Args:
        index: of the shard.
        decoder: of the camera.
        runs: what to decode.
        packets: of all rows of the runs, in turn; each is looked at before the next one is taken.
        put: as in `decode_video`.

    Raises:
        FormatError, OptionError: as `decode_video`.
    """
    name = decoder.feature.name
    left = iter(packets)
    for run in runs:
        episode = int(np.searchsorted(index.first_row, run.rows[0], side="right")) - 1
        first_row = int(index.first_row[episode])
        # Steps, not rows: messages say what users know.
        steps = (run.rows - first_row).tolist()
        of_run = zip(steps, islice(left, len(steps)), strict=True)
        wanted = set((run.wanted - first_row).tolist())
        where = f"{index.shard_name}, {index.keys[episode]}.{name}"
        for step, picture in decoder.pictures(run.stream, of_run, wanted, where):
            put(first_row + step, picture)
    next(left, None)  # nothing: whoever reads files looks now whether one was changed
