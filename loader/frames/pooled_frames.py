"""The frames in the slots of an open pool: decoded into them, and copied from there to batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.arena import Arena
from epistream.loader.frames.block_pool_plan import PooledCamera, PoolPlan
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.frames import decode_frames
from epistream.loader.shards.open_shards import OpenShard
from epistream.sharding.pictures.planes import Colours

Int64 = NDArray[np.int64]


class PooledFrames:
    """What a reader puts into slots and takes from them; who may do which, the slots say. Not shared between threads.

    Args:
        arena: whose slots these are.
        plan: of the pool.
        decoders: of the cameras, by feature.
    """

    def __init__(self, arena: Arena, plan: PoolPlan, decoders: Mapping[str, FrameDecoder]) -> None:
        self._cameras = plan.cameras
        self._decoders = [_decoder_of(camera, decoders[camera.name]) for camera in plan.cameras]
        # Of each camera (num_slots, rows of a block, ...).
        self._frames = [_frames(arena, plan, *each) for each in zip(plan.cameras, plan.slot_offsets, strict=True)]
        self._colours = Colours()

    def decode(self, opened: OpenShard, slot: int, episode: int, first: int, length: int) -> int:
        """Decode all that the windows of a block show, of all cameras, into a slot; how many frames.

        Args:
            opened: the shard.
            slot: which nobody else uses.
            episode: of the shard.
            first: anchor of the block.
            length: steps of the episode.

        Raises:
            FormatError: a frame that is torn; the message names it.
        """
        num_frames, first_row = 0, int(opened.index.first_row[episode])
        for camera, decoder, frames in zip(self._cameras, self._decoders, self._frames, strict=True):
            rows, steps = camera.wanted(first, length)
            decode_frames(opened.tar, opened.index, decoder, [first_row + step for step in steps], frames[slot], rows)
            num_frames += len(rows)
        return num_frames

    def copy(
        self,
        opened: OpenShard,
        slot: int,
        episode: int,
        windows: tuple[list[int], Sequence[Sequence[Int64]]],
        out: Mapping[str, NDArray[Any]],
    ) -> int:
        """Copy the frames of windows of a block to their rows of the batch; how many.

        Args:
            opened: the shard.
            slot: which holds the block.
            episode: of the shard.
            windows: rows of the batch; and of each camera, for each row of the batch, (n,) rows of the block.
            out: the arrays of the batch.
        """
        rows, all_places = windows
        num_frames = 0
        for number, (camera, places) in enumerate(zip(self._cameras, all_places, strict=True)):
            frames, target = self._frames[number][slot], out[camera.name]
            if camera.as_planes:
                stream = opened.index.videos[camera.name].stream(episode)
                for row in rows:
                    for place, to in zip(places[row].tolist(), target[row], strict=True):
                        self._colours.write(frames[place], stream, to)
            else:
                for row in rows:
                    # Neighbours in one go, straight there: of the modes of `take` only "raise" makes a copy first.
                    np.take(frames, places[row], axis=0, out=target[row], mode="clip")
            num_frames += len(rows) * len(camera.offsets)
        return num_frames


def _decoder_of(camera: PooledCamera, decoder: FrameDecoder) -> FrameDecoder:
    return FrameDecoder(decoder.feature, decoder.shape, as_planes=True) if camera.as_planes else decoder


def _frames(arena: Arena, plan: PoolPlan, camera: PooledCamera, offset: int) -> NDArray[Any]:
    dtype = np.dtype(camera.dtype)
    shape = (plan.num_slots, len(camera.steps), *camera.shape)
    inner = (dtype.itemsize * np.cumprod((1, *shape[:1:-1]))[::-1]).tolist()
    start = plan.table_bytes + offset
    # Over an array of `frombuffer`, which keeps the memory mapped for as long as anybody looks at it.
    frames: NDArray[Any] = np.ndarray(shape, dtype, arena.bytes, start, (plan.slot_bytes, *inner))
    return frames
