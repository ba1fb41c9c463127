"""Frames that were decoded once per node: kept in the cache beside the shards as they are read, and copied then."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry
from epistream.loader.frames.decoded_groups import DecodedGroups, KeptFrames, Missing, is_there
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.frames import decode_frames, draw_frames
from epistream.loader.frames.keeping import DecodedPlan, Room, Spent
from epistream.loader.frames.kept_arrays import Arrays, Kept, KeptArrays, Shapes
from epistream.loader.shards.open_shards import OpenShard
from epistream.lru import Lru

logger = logging.getLogger(__name__)

# Raised whenever the bytes of an entry change their meaning: jobs of other releases share the node's cache.
_VERSION = 2
# Each open chunk is up to three descriptors and a mapping.
_MAX_OPEN = 1024
# Chunks of a dataset: few enough to stay open, enough to keep a share of them. A chunk is made within a batch, and
# fresh memory takes a millisecond for 4 MiB.
_NUM_CHUNKS = 48
# No more than this need be saved up for the next one: one that took longer was disturbed.
_MOST_SAVED_UP_S = 0.05
_CHUNK_BYTES = 1 << 20, 64 << 20
# How long it is believed which chunks there are: to ask for each row of a small batch costs a tenth of reading it.
_BELIEVED_S = 0.2

Int64 = NDArray[np.int64]


class DecodedFrames:
    """The kept frames that a reader draws from, and adds to. Not shared between threads.

    An entry of the cache, a chunk, has room for the frames of neighbouring steps of a shard, whatever episodes these
    are of, and a byte for each frame that says whether it is there. Nothing is decoded ahead: who decodes a frame for
    a batch puts it into the chunk, and whoever needs it next, in any process of the node, copies it from there. So a
    frame is decoded once, the first batches come as soon as without keeping, and the pixels are the same in any
    case. Chunks are made as long as keeping has time left, and none for the first batch.

    Of a video a whole group is decoded and kept as soon as any of it is needed, see `DecodedGroups`; that is never more
    work over an epoch than not to keep it, so it takes whatever time it needs, and begins with the first batch.

    Args:
        decoders: of the cameras, by feature.
        cache: where they are kept.
        plan: sizes of the whole.
        max_open: chunks that may be held open at a time.
        clock: seconds.
    """

    def __init__(
        self,
        decoders: Mapping[str, FrameDecoder],
        cache: NodeCache,
        plan: DecodedPlan,
        max_open: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._decoders = dict(decoders)
        max_open = min(_MAX_OPEN, max_open)
        self._chunks: KeptArrays[tuple[int, int]] = KeptArrays(cache, max_open)
        self._plan = plan
        self._clock = clock
        self._spent = Spent()
        self._began_s = self._making_s = 0.0
        self._is_first = True
        self._may_make = False
        # What was found of chunks a moment ago: by shard and camera, and then by chunk.
        # What a batch looks at stays mapped, a descriptor each: no more than may be held open.
        self._found: Lru[tuple[int, str], dict[int, KeptFrames | None]] = Lru(max_open)
        self._believed_until = self._full_until = 0.0
        # Bytes of the chunks that were seen in the cache.
        self._seen: dict[tuple[int, int], int] = {}
        self._room_bytes = 0
        self._fence = threading.Lock()
        # Names are hashed into keys whenever a chunk is opened: what they have in common is written once.
        shown = [[decoder.feature.to_dict(), list(decoder.shape)] for decoder in decoders.values()]
        self._content = json.dumps([_VERSION, plan.chunk_rows, shown])
        self._group = f"{plan.group} {self._content}"
        self._room = Room(cache, plan, self._group)
        self._groups = DecodedGroups(plan.chunk_rows, self._room.give_up, clock)
        # Without keeping a group is decoded anew for almost each frame of it: that pays within the epoch.
        self._has_video = any(decoder.is_video for decoder in decoders.values())

    def begin_batch(self, *, is_short: bool = False) -> None:
        """Another batch begins; memory may be short."""
        self._began_s = now = self._clock()
        if is_short or now >= self._believed_until:
            self._believed_until = now + _BELIEVED_S
            self._found.clear()  # before its chunks may be given up
        self._chunks.begin_batch(is_short=is_short)
        why = "" if self._plan.wanted else self._plan.costs.judge()
        if why:
            self._room.give_up(why)
            self.close()
        self._room.look(self._room_bytes)
        # What making one took is there to be spent first: until then the frames of those that are there are kept.
        is_time = self._plan.costs.allowance_s > self._making_s and not self._is_first
        self._may_make = (is_time or self._has_video) and self._chunks.may_make and now >= self._full_until
        self._groups.forget()
        self._is_first = False

    def finish(self) -> None:
        """Put into the batch what other processes were decoding when it was drawn; waits a while.

        Raises:
            FormatError: as `draw`.
        """
        self._groups.finish(self._spent)

    def end_batch(self) -> None:
        """It is read."""
        spent, self._spent = self._spent, Spent()
        spent.reading_s = self._clock() - self._began_s - spent.keeping_s
        costs = self._plan.costs
        costs.add(spent, self._room_bytes, self._room.why, wanted=self._plan.wanted)

    def draw(self, opened: OpenShard, name: str, needed: Int64, out: NDArray[Any], places: Int64) -> None:
        """As `draw_frames`: frames that are kept are copied, and the others decoded and, if there is room, kept.

        Those of a video that another process is decoding at this moment come with `finish`.

        Args:
            opened: the shard.
            name: of the camera.
            needed: (N,) rows of the index.
            out: (M, H, W, C) frames of the batch.
            places: (N,) positions in `out`.

        Raises:
            FormatError: a frame that is torn; the message names it.
        """
        decoder = self._decoders[name]
        # What is kept of whole shards waits until they are there.
        if not self._room.keeps or opened.is_cold:
            draw_frames(opened.tar, opened.index, decoder, needed, out, places)
            return
        spent, clock = self._spent, self._clock
        began_s, kept_before_s = clock(), spent.keeping_s
        chunks = self._found.get((opened.number, name))
        if chunks is None:
            chunks = {}
            self._found.put((opened.number, name), chunks)
        rows, targets = needed.tolist(), places.tolist()
        missing = self._take(opened, name, (rows, targets), out, chunks)
        taken_s = clock()
        spent.num_taken += len(rows) - len(missing)
        looking_s = taken_s - began_s - (spent.keeping_s - kept_before_s)
        if not missing:
            spent.num_timed_taken += len(rows)
            spent.taking_s += looking_s
            return
        are_some = len(missing) < len(rows)
        if not are_some:  # it was in vain
            spent.keeping_s += looking_s
        if are_some:
            rows, targets = [rows[each] for each in missing], [targets[each] for each in missing]
        if decoder.is_video:
            look = partial(self._look_again, opened, name, chunks)
            self._groups.draw(
                Missing(opened, decoder, rows, targets, out, look, partial(self._is_being_made, opened.number)), spent
            )
            return
        decode_frames(opened.tar, opened.index, decoder, rows, out, targets)
        decoded_s = clock()
        spent.num_decoded += len(rows)
        if not are_some:
            spent.num_timed_decoded += len(rows)
            spent.decoding_s += decoded_s - taken_s
        if self._may_keep:
            self._keep(rows, targets, out, chunks)
            spent.keeping_s += clock() - decoded_s

    def close(self) -> None:
        """Give up every chunk."""
        self._groups.forget()
        self._found.clear()
        self._chunks.close()

    def _take(
        self,
        opened: OpenShard,
        name: str,
        wanted: tuple[list[int], list[int]],
        out: NDArray[Any],
        chunks: dict[int, KeptFrames | None],
    ) -> list[int]:
        """Copy the kept ones of the wanted rows to their places, neighbours in one go; numbers of the others."""
        chunk_rows = self._plan.chunk_rows
        missing: list[int] = []
        runs: list[tuple[NDArray[Any], int, int, int]] = []
        frames: NDArray[Any] | None = None
        first = start = length = 0  # of the run in hand: in the chunk, in `out`, and how many
        needed, places = wanted
        for position, row in enumerate(needed):
            number, at = divmod(row, chunk_rows)
            if number not in chunks or (self._may_make and chunks[number] is None):
                chunks[number] = self._look(opened, number, name)
            chunk = chunks[number]
            if chunk is None or not chunk.is_there[at]:
                missing.append(position)
                continue
            place = places[position]
            if frames is chunk.frames and at == first + length and place == start + length:
                length += 1
                continue
            if frames is not None:
                runs.append((frames, first, start, length))
            frames, first, start, length = chunk.frames, at, place, 1
        if frames is not None:
            runs.append((frames, first, start, length))
        if not runs:
            return missing
        # A processor that orders memory weakly must not have read the frames before what says that they are there.
        with self._fence:
            pass
        for frames, first, start, length in runs:
            if length == 1:
                np.copyto(out[start], frames[first])
            else:
                np.copyto(out[start : start + length], frames[first : first + length])
        return missing

    def _keep(
        self, needed: list[int], places: list[int], out: NDArray[Any], chunks: Mapping[int, KeptFrames | None]
    ) -> None:
        """Put frames of the batch into their chunks."""
        try:
            for row, place in zip(needed, places, strict=True):
                number, at = divmod(row, self._plan.chunk_rows)
                chunk = chunks[number]
                if chunk is not None and not chunk.is_there[at]:
                    self._spent.num_kept += chunk.put(at, out[place])
        except OSError as error:
            self._room.give_up(f"writing to the cache failed: {error}")

    @property
    def _may_keep(self) -> bool:
        return self._plan.costs.allowance_s > self._spent.keeping_s

    def _look(self, opened: OpenShard, number: int, name: str) -> KeptFrames | None:
        key = opened.number, number
        kept = self._chunks.get(key)
        if kept is None:
            if self._chunks.is_busy(key) or (self._chunks.is_missing(key) and not self._may_make):
                return None
            kept = self._open_anew(opened, key)
        if kept is None:
            return None
        frames = kept.views.get(name)
        if frames is None:
            frames = kept.views[name] = KeptFrames(kept, name)
        return frames

    def _look_again(
        self, opened: OpenShard, name: str, chunks: dict[int, KeptFrames | None], number: int
    ) -> KeptFrames | None:
        chunk = chunks.get(number)
        if chunk is None:
            chunk = chunks[number] = self._look(opened, number, name)
        return chunk

    def _is_being_made(self, shard: int, number: int) -> bool:
        key = shard, number
        is_busy = self._chunks.is_busy(key)
        if is_busy:
            self._chunks.ask_again(key)
        return is_busy

    def _open_anew(self, opened: OpenShard, key: tuple[int, int]) -> Kept | None:
        number = key[1]
        first = number * self._plan.chunk_rows
        length = min(self._plan.chunk_rows, opened.index.num_rows - first)
        shapes: Shapes = {
            **{is_there(name): (np.dtype(np.uint8), (length,)) for name in self._decoders},
            **{name: (np.dtype(d.feature.dtype), (length, *d.shape)) for name, d in self._decoders.items()},
        }
        num_bytes = sum(length * d.num_bytes for d in self._decoders.values())
        fits = self._room_bytes - self._seen.get(key, 0) + num_bytes <= self._room.most_bytes
        may_make = self._may_make and fits
        if self._may_make and not fits:
            self._full_until = self._began_s + _BELIEVED_S
        made = False

        def begin(arrays: Arrays) -> None:
            nonlocal made
            made = True  # all zeros, as files are born

        began_s = self._clock()
        kept = self._chunks.open(
            key,
            lambda: Entry(
                opened.source.parts, f"decoded rows {number} {self._content}{opened.naming}", group=self._group
            ),
            shapes,
            begin if may_make else None,
            may_evict=self._room.may_evict,
            num_filled=len(self._decoders),  # fresh memory for frames that are never kept would be dear
        )
        if made:
            made_s = self._clock() - began_s
            self._spent.keeping_s += made_s
            self._making_s = min(made_s, _MOST_SAVED_UP_S)
            # Small batches are read many at a time: one chunk for all of them would be few.
            is_time = self._plan.costs.allowance_s - self._spent.keeping_s > self._making_s
            self._may_make = is_time or self._has_video
        elif kept is None and not self._chunks.is_busy(key):
            self._may_make = False
        seen = num_bytes if kept is not None else 0
        if seen != self._seen.get(key, 0):
            self._room_bytes += seen - self._seen.get(key, 0)
            self._seen[key] = seen
        return kept


def chunk_rows(num_bytes: int, step_bytes: int) -> int:
    """Steps whose decoded frames are kept together.

    Args:
        num_bytes: of all decoded frames of the dataset: a function of the manifest, so that all jobs agree.
        step_bytes: of the decoded frames of a step.
    """
    least, most = _CHUNK_BYTES
    return max(1, min(most, max(least, num_bytes // _NUM_CHUNKS)) // step_bytes)
