"""Groups of pictures that nobody has kept yet: one process of the node decodes each, whole, for all who read it."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import FormatError
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.keeping import Spent
from epistream.loader.frames.kept_arrays import Kept
from epistream.loader.frames.video_frames import Put, decode_runs
from epistream.loader.shards.open_shards import OpenShard
from epistream.sharding.format.videos import Run
from epistream.sharding.pictures.codec import Encoded

# A batch waits so long for others, and twice as long as the longest group took that was decoded here. A group of 30
# frames of 480x640 takes 20 ms to decode and keep.
_PATIENCE_S = 0.25
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.0005, 0.005


class KeptFrames:
    """The frames of one camera in a chunk that is open.

    Attributes:
        frames: (rows, H, W, C), read-only.
        is_there: (rows,) not 0 where the frame is there; changes as others put frames in.
    """

    def __init__(self, kept: Kept, name: str) -> None:
        self.frames = kept.arrays[name]
        self.is_there: memoryview = kept.arrays[is_there(name)].data
        # Not `kept`, which holds this: what refers to itself stays mapped until the garbage collector comes.
        self._write, self._try_lock, self._unlock = kept.write, kept.try_lock, kept.unlock
        self._row_bytes = self.frames.strides[0]
        self._first_frame, self._first_flag = kept.offsets[name], kept.offsets[is_there(name)]

    def put(self, at: int, frame: NDArray[Any]) -> bool:
        """Put a frame (H, W, C) at a row; whether it is there now. Who dies in here leaves it not there."""
        write = self._write
        return write(self._first_frame + at * self._row_bytes, frame.data) and write(self._first_flag + at, b"\1")

    def try_lock(self, at: int) -> bool:
        """Whether a row was locked at once against all others who have the chunk open, until `unlock`."""
        return self._try_lock(self._first_flag + at)

    def unlock(self, at: int) -> None:
        """Give it back."""
        self._unlock(self._first_flag + at)


def is_there(name: str) -> str:
    """What the flags of a camera's frames are called in a chunk."""
    return f"is there: {name}"


@dataclass(frozen=True, eq=False)
class Missing:
    """Frames of a camera of a shard that are wanted, and were not kept a moment ago.

    Args:
        opened: the shard.
        decoder: of the camera.
        rows: (n,) of the index.
        places: (n,) positions in `out`.
        out: (M, H, W, C) frames of the batch.
        look: the chunk of a number, looked for again if it was not there; None if it is not.
        is_being_made: whether another process is making the chunk of a number; it is looked for at once then.
    """

    opened: OpenShard
    decoder: FrameDecoder
    rows: list[int]
    places: list[int]
    out: NDArray[Any]
    look: Callable[[int], KeptFrames | None]
    is_being_made: Callable[[int], bool]


@dataclass(eq=False)
class _Group:
    """The rows [key, stop) of a group, and the places of those that are wanted, by row.

    `packets` are those of all its frames in the order of decoding, where the shard may be closed before that.
    `tar` is the shard as it was opened.
    """

    missing: Missing
    tar: Blob
    key: int
    stop: int
    wanted: dict[int, list[int]] = field(default_factory=dict)
    packets: list[bytes] | None = None

    @property
    def name(self) -> tuple[int, str, int]:
        return self.missing.opened.number, self.missing.decoder.feature.name, self.key

    def run(self, rows: Iterable[int]) -> Run:
        """What to decode for some rows of it."""
        name = self.missing.decoder.feature.name
        [run] = self.missing.opened.index.runs(name, np.fromiter(rows, np.int64))
        return run

    def read(self, run: Run) -> Iterable[Encoded]:
        """The packets of a run, which is a beginning of the group."""
        if self.packets is not None:
            return self.packets[: len(run.rows)]
        index, name = self.missing.opened.index, self.missing.decoder.feature.name
        offsets, sizes = index.frame_offset[name].take(run.rows), index.frame_size[name].take(run.rows)
        return self.tar.read_in_turn(offsets.tolist(), sizes.tolist())

    def put(self, row: int, picture: NDArray[Any]) -> int:
        """Put a frame where it is wanted; at how many places."""
        places = self.wanted.get(row, ())
        for place in places:
            np.copyto(self.missing.out[place], picture)
        return len(places)


class DecodedGroups:
    """Decodes what is missing of videos, and keeps all frames of each group. Not shared between threads.

    To decode a frame takes all of its group before it, so a group is decoded once and whole, whichever frame is needed
    first: over an epoch that is the work of decoding every episode in order. Groups are closed, so to go on to the end
    of the episode would cost the same, and the first batch would come later.

    Whoever decodes a group locks it; a lock ends with its holder. Others who need the group meanwhile go on with the
    rest of their batch, wait then, a short while and for all together, and decode it themselves if it still is not
    there. Nothing is waited for while a lock is held, so nobody waits in a circle.

    Args:
        chunk_rows: steps whose frames are one entry of the cache.
        give_up: called with the reason if frames cannot be kept.
        clock: seconds.
    """

    def __init__(self, chunk_rows: int, give_up: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._chunk_rows = chunk_rows
        self._give_up = give_up
        self._clock = clock
        self._left: list[_Group] = []
        # Groups that were waited for in vain: whoever is stopped costs one wait.
        self._in_vain: set[tuple[int, str, int]] = set()
        # And chunks, by shard and number, whose maker was waited for in vain.
        self._unmade: set[tuple[int, int]] = set()
        self._longest_s = 0.0
        self._fence = threading.Lock()

    def forget(self) -> None:
        """Drop what a batch that failed has left."""
        self._left.clear()

    def draw(self, missing: Missing, spent: Spent) -> None:
        """Put the frames into the batch, but for those that others are decoding: `finish` does.

        Raises:
            FormatError: a frame that is torn; the message names it.
        """
        for group in _groups(missing):
            if not self._attempt(group, spent, must=group.name in self._in_vain):
                group.packets = [bytes(packet) for packet in group.read(group.run(range(group.key, group.stop)))]
                self._left.append(group)

    def finish(self, spent: Spent) -> None:
        """Wait for what others are decoding, a while, and decode what is not there then.

        Raises:
            FormatError: as `draw`.
        """
        left, self._left = self._left, []
        deadline_s, pause_s = self._clock() + _PATIENCE_S + 2 * self._longest_s, _FIRST_PAUSE_S
        while left := [group for group in left if not self._attempt(group, spent, must=False)]:
            now_s = self._clock()
            if now_s >= deadline_s:
                break
            time.sleep(pause_s)
            pause_s = min(_LAST_PAUSE_S, 2 * pause_s)
            spent.keeping_s += self._clock() - now_s
        for group in left:
            self._in_vain.add(group.name)
            self._unmade.update((group.missing.opened.number, number) for number in self._numbers(group))
            self._attempt(group, spent, must=True)

    def _attempt(self, group: _Group, spent: Spent, *, must: bool) -> bool:
        """Put what is wanted of a group into the batch; False if it is in the hands of another, unless it `must` be."""
        found = {number: group.missing.look(number) for number in self._numbers(group)}
        chunks = {number: chunk for number, chunk in found.items() if chunk is not None}
        if not self._absent(group, chunks):
            if not must and len(chunks) < len(found) and self._is_being_made(group, chunks):
                return False
            self._take(group, chunks, spent)
            return True
        # Its first row that has room stands for the group.
        number, chunk = next(iter(chunks.items()))
        at = max(0, group.key - number * self._chunk_rows)
        is_ours = chunk.try_lock(at)
        if not (is_ours or must):
            return False
        try:
            if absent := self._absent(group, chunks):
                self._decode(group, chunks, absent, spent)
            else:  # just now
                self._take(group, chunks, spent)
        finally:
            if is_ours:
                chunk.unlock(at)
        return True

    def _is_being_made(self, group: _Group, chunks: Mapping[int, KeptFrames]) -> bool:
        shard, numbers = group.missing.opened.number, {row // self._chunk_rows for row in group.wanted} - chunks.keys()
        return any([group.missing.is_being_made(n) for n in numbers if (shard, n) not in self._unmade])

    def _numbers(self, group: _Group) -> range:
        """Of the chunks that a group lies in."""
        return range(group.key // self._chunk_rows, (group.stop - 1) // self._chunk_rows + 1)

    def _absent(self, group: _Group, chunks: Mapping[int, KeptFrames]) -> set[int]:
        """Rows of a group that have room in a chunk and are not there."""
        absent: set[int] = set()
        for number, chunk in chunks.items():
            first = number * self._chunk_rows
            rows = range(max(group.key, first), min(group.stop, first + self._chunk_rows))
            absent.update(row for row in rows if not chunk.is_there[row - first])
        return absent

    def _take(self, group: _Group, chunks: Mapping[int, KeptFrames], spent: Spent) -> None:
        """Copy what is there, and decode the rest as it is wanted, for which there is no room."""
        rest = []
        there = []
        for row in group.wanted:
            number, at = divmod(row, self._chunk_rows)
            if number in chunks and chunks[number].is_there[at]:
                there.append((row, chunks[number].frames, at))
            else:
                rest.append(row)
        # A processor that orders memory weakly must not have read the frames before what says that they are there.
        with self._fence:
            pass
        for row, frames, at in there:
            spent.num_taken += group.put(row, frames[at])
        if rest:
            began_s = self._clock()
            self._decode_run(group, rest, group.put, spent)
            spent.decoding_s += self._clock() - began_s
            spent.num_timed_decoded += len(rest)

    def _decode(self, group: _Group, chunks: Mapping[int, KeptFrames], absent: set[int], spent: Spent) -> None:
        """Decode a whole group, for the batch and for all who need it later."""
        began_s, clock, putting_s = self._clock(), self._clock, 0.0
        undone = set(group.wanted)
        failure = ""

        def put(row: int, picture: NDArray[Any]) -> None:
            nonlocal putting_s, failure
            group.put(row, picture)
            undone.discard(row)
            if row not in absent or failure:
                return
            put_at_s = clock()
            number, at = divmod(row, self._chunk_rows)
            try:
                spent.num_kept += chunks[number].put(at, np.ascontiguousarray(picture))
            except OSError as error:
                failure = f"writing to the cache failed: {error}"
            putting_s += clock() - put_at_s

        try:
            self._decode_run(group, range(group.key, group.stop), put, spent)
        except FormatError:
            # What is torn may lie behind all that is wanted; if not, this says so.
            if undone:
                self._decode_run(group, sorted(undone), group.put, spent)
        took_s = self._clock() - began_s
        self._longest_s = max(self._longest_s, took_s)
        # Without keeping, it would have been decoded as far as the last that is wanted.
        wanted_s = (took_s - putting_s) * (max(group.wanted) + 1 - group.key) / (group.stop - group.key)
        spent.decoding_s += wanted_s
        spent.num_timed_decoded += len(group.wanted)
        spent.keeping_s += took_s - wanted_s
        if failure:
            self._give_up(failure)

    def _decode_run(self, group: _Group, rows: Iterable[int], put: Put, spent: Spent) -> None:
        opened, run = group.missing.opened, group.run(rows)
        spent.num_decoded += len(run.rows)
        try:
            decode_runs(opened.index, group.missing.decoder, [run], group.read(run), put)
        except FormatError:
            group.tar.check_unchanged()
            raise


def _groups(missing: Missing) -> Iterator[_Group]:
    """The groups of what is missing, in the order of the shard."""
    videos = missing.opened.index.videos[missing.decoder.feature.name]
    numbers = (np.searchsorted(videos.keys, missing.rows, side="right") - 1).tolist()
    groups: dict[int, _Group] = {}
    for number, row, place in zip(numbers, missing.rows, missing.places, strict=True):
        if number not in groups:
            key, stop = videos.keys[number : number + 2].tolist()
            groups[number] = _Group(missing, missing.opened.tar, key, stop)
        groups[number].wanted.setdefault(row, []).append(place)
    for number in sorted(groups):
        yield groups[number]
