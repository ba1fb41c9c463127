"""Fills whole batches: low-dimensional rows gathered, each frame decoded once, straight into the batch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.loader.frames.block_pool import BlockPool
from epistream.loader.frames.block_pool_plan import PoolPlan
from epistream.loader.frames.decoded_frames import DecodedFrames
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.frames import FrameOptions, draw_frames
from epistream.loader.frames.keeping import DecodedPlan
from epistream.loader.order.window import Window
from epistream.loader.reading.array_tables import ArrayTables, Table, gather_rows, gather_steps, held_by
from epistream.loader.reading.instructions import nth_task
from epistream.loader.reading.precision import MOST_STEPS, PrecisionWatch
from epistream.loader.shards.cold_start import ColdReads, Wanted
from epistream.loader.shards.open_files import most_open
from epistream.loader.shards.open_shards import OpenShard, OpenShards
from epistream.sharding.format.episode_meta import ALL_TASKS
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.manifest_columns import TASKS_EDITED
from epistream.sharding.manifest.opened_dataset import Dataset

Int64 = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]
# The steps of all windows of a batch, (B, n), and where they are padding. Features of the same offsets share them.
Steps = Mapping[tuple[int, ...], tuple[Int64, NDArray[np.bool_]]]


@dataclass(frozen=True)
class BatchWindows:
    """The windows of one batch, in batch order; every array is (B,) int64, but (B,) bool `is_repeat` and `ends_block`.

    `ends_block` says after which windows the order draws none from their block for long; none if left out.
    """

    shard: NDArray[np.int64]
    episode_index: NDArray[np.int64]
    episode_in_shard: NDArray[np.int64]
    step: NDArray[np.int64]
    is_repeat: NDArray[np.bool_]
    task_index: NDArray[np.int64]
    ends_block: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        if len(self.ends_block) != len(self.step):
            object.__setattr__(self, "ends_block", np.zeros(len(self.step), np.bool_))


@dataclass(frozen=True)
class ReaderOptions:
    """What a reader may keep, and how it makes frames.

    Args:
        max_open_shards: shards held open between batches; fewer where the process may open few files.
        frames: size of the frames.
        decoded: sizes of the decoded frames; None decodes every frame when it is read.
        num_readers: readers that the same thread has, among which the files that it may open are shared.
        dtypes: of the arrays that are read into, where they are not those of `BatchLayout` by itself.
        pool: sizes of the pool of decoded blocks that windows are read from; None for none.
    """

    max_open_shards: int = 64
    frames: FrameOptions = field(default_factory=FrameOptions)
    decoded: DecodedPlan | None = None
    num_readers: int = 1
    dtypes: Mapping[str, str] = field(default_factory=dict)
    pool: PoolPlan | None = None


class EpisodeReader:
    """Reads windows of a dataset into given arrays. One per thread or process; not shared between threads.

    It holds the shards of its recent batches open. Whoever is about to wait for anything calls `release` first: a
    shard held while waiting cannot be evicted, and ranks that wait for each other would hold each other's shards out
    of the cache.

    Args:
        dataset: what to read.
        features: of it.
        window: about each anchor.
        cache: where shards are kept on this node.
        options: what may be kept, and how frames are made.
        before_wait: gives up whatever this reader's thread holds, where other readers hold shards too; `release`
            by default.

    Attributes:
        wait_for: called with a shard before it is read, and with what gives up whatever is held, if there may be
            something to wait for.
    """

    def __init__(
        self,
        dataset: Dataset,
        features: Mapping[str, Feature],
        window: Window,
        cache: NodeCache,
        options: ReaderOptions,
        before_wait: Callable[[], None] | None = None,
    ) -> None:
        # None, not `release`: what refers to itself keeps its leases until the garbage collector comes.
        self._before_wait = before_wait
        self._cache = cache
        self.wait_for: Callable[[int, Callable[[], None]], None] | None = None
        self._dataset = dataset
        self._features = dict(features)
        self._window = window
        most = most_open(options.num_readers)
        self._max_open_shards = min(options.max_open_shards, most)
        self._shards = OpenShards(dataset, cache, self._max_open_shards)
        self._decoders = {
            name: FrameDecoder(feature, options.frames.shown(feature).shape)
            for name, feature in features.items()
            if feature.kind == "frames"
        }
        self._offsets = {name: window.offsets(name) for name in features}
        self._arrays = {name: feature for name, feature in features.items() if feature.kind == "array"}
        self._tables = ArrayTables(self._arrays, cache, self._max_open_shards)
        self._precision = PrecisionWatch(self._arrays, options.dtypes)
        self._cold = ColdReads(self._features, self._max_open_shards)
        # Frames that are stored as they are wanted are gathered from their shard already.
        costly = {name: decoder for name, decoder in self._decoders.items() if not decoder.is_copy}
        self._decoded = DecodedFrames(costly, cache, options.decoded, most) if costly and options.decoded else None
        self._costly = frozenset(costly)
        self._pool = BlockPool(dataset, costly, cache, options.pool) if costly and options.pool else None

    def read(self, windows: BatchWindows, out: Arrays, *, wait: bool = True) -> int:
        """Fill the arrays of one batch.

        Args:
            windows: what to read.
            out: the arrays of `BatchLayout`, with a batch axis of at least B rows; the first B are written.
            wait: False reads what the batch needs of shards that are not in the cache by ranges of their source,
                instead of waiting for their fills: for the first batches of a run, while somebody else fills.

        Returns:
            The number of shards that were read so.

        Raises:
            FormatError: an index or frame that is torn or does not match the manifest.
            FetchError, SourceChangedError, CacheError: from the cache, see `NodeCache.open`.
        """
        num_windows = len(windows.step)
        length = self._dataset.episode_length[windows.episode_index]
        out["episode_index"][:num_windows] = windows.episode_index
        out["step_index"][:num_windows] = windows.step
        out["task_index"][:num_windows] = windows.task_index
        out["is_repeat"][:num_windows] = windows.is_repeat
        self._begin_batch(windows)
        steps: dict[tuple[int, ...], tuple[Int64, NDArray[np.bool_]]] = {}
        for name, offsets in self._offsets.items():
            if offsets not in steps:
                steps[offsets] = self._window.steps(name, windows.step, length)
            out[f"{name}_is_pad"][:num_windows] = steps[offsets][1]
        num_cold, left = self._read_shards(windows, np.arange(num_windows), steps, out, wait=wait)
        if len(left):
            # Somebody else decodes their blocks: last, when he has had time to.
            num_cold += self._read_shards(windows, left, steps, out, wait=wait, is_last=True)[0]
        if self._decoded is not None:
            self._decoded.finish()
        if not num_cold:
            self._cold.forget()
        if self._window.pad == "zero":
            for name in self._features:
                out[name][:num_windows][out[f"{name}_is_pad"][:num_windows]] = 0
        if self._decoded is not None:
            self._decoded.end_batch()
        if self._pool is not None:
            self._pool.end_batch()
        return num_cold

    def _begin_batch(self, windows: BatchWindows) -> None:
        is_short = self._cache.is_short()
        if is_short:
            self.release()  # nobody can give back what is leased
        self._tables.begin_batch(is_short=is_short)
        if self._decoded is not None:
            self._decoded.begin_batch(is_short=is_short)
        if self._pool is not None:
            self._pool.begin_batch(windows.episode_index, windows.step, windows.ends_block, is_short=is_short)

    def release(self) -> None:
        """Give up every lease. Call before any wait.

        Files that are read in place stay open: nobody waits for these, and a stream without workers would open and
        parse them for every batch. So do tables and decoded frames, which are not leased.
        """
        self._shards.release()

    def close(self) -> None:
        """Give up everything, files that are read in place included; the next read opens them again."""
        if self._decoded is not None:
            self._decoded.close()
        if self._pool is not None:
            self._pool.close()
        self._tables.close()
        self._shards.close()

    def _read_shards(
        self, windows: BatchWindows, among: Int64, steps: Steps, out: Arrays, *, wait: bool, is_last: bool = False
    ) -> tuple[int, Int64]:
        """Read rows of the batch shard by shard, those of cold shards several shards at a time.

        Returns:
            The number of cold ones, and the rows that are to be read once more, `is_last` then.
        """
        num_cold = 0
        cold: list[Wanted] = []
        left = [among[:0]]
        self._shards.expect(np.unique(windows.shard[among]).tolist(), self._before_wait or self.release)
        with ExitStack() as not_kept:
            for rows in _rows_by_shard(windows.shard, among):
                shard, episodes = int(windows.shard[rows[0]]), windows.episode_in_shard[rows]
                if self.wait_for is not None:
                    self.wait_for(shard, self._before_wait or self.release)
                opened = self._shards.take(shard, self._before_wait or self.release, wait=wait)
                if isinstance(opened, OpenShard):
                    self._choose_tasks(opened.index, windows, rows, out)
                    left.append(self._read_shard(opened, rows, episodes, steps, out, is_last=is_last))
                    continue
                num_cold += 1
                if not opened.is_kept:
                    not_kept.callback(opened.entry.close)
                wanted = {name: steps[offsets][0][rows] for name, offsets in self._offsets.items()}
                cold.append(Wanted(opened, rows, episodes, wanted))
                if len(cold) == self._max_open_shards:
                    self._read_cold(cold, windows, steps, out)
                    cold.clear()
                    not_kept.close()
            if cold:
                self._read_cold(cold, windows, steps, out)
        return num_cold, np.concatenate(left)

    def _choose_tasks(self, index: ShardIndex, windows: BatchWindows, rows: Int64, out: Arrays) -> None:
        """Give windows (R,) of a shard the instruction of their step, where a shard knows it."""
        if index.step_task is not None:
            place = index.step_task[index.first_row[windows.episode_in_shard[rows]] + windows.step[rows]]
            if self._dataset.columns.episode_edits is not None:  # new instructions are of all steps
                is_edited = self._dataset.columns.episode_edits[windows.episode_index[rows]] & TASKS_EDITED
                place = np.where(is_edited, ALL_TASKS, place)
            rows, place = rows[place != ALL_TASKS], place[place != ALL_TASKS]
            out["task_index"][rows] = nth_task(self._dataset, windows.episode_index[rows], place)

    def _read_cold(self, wanted: Sequence[Wanted], windows: BatchWindows, steps: Steps, out: Arrays) -> None:
        (self._before_wait or self.release)()  # ranges are waited for
        for one, index in zip(wanted, self._cold.bring(wanted), strict=True):
            self._choose_tasks(index, windows, one.rows, out)
            opened = OpenShard(one.cold.number, one.cold.source, one.cold.entry, index, is_cold=True)
            self._read_shard(opened, one.rows, one.episodes, steps, out)

    def _read_shard(
        self, opened: OpenShard, rows: Int64, episodes: Int64, steps: Steps, out: Arrays, *, is_last: bool = True
    ) -> Int64:
        """Fill the rows (R,) of windows of a shard, with their episodes (R,); those whose frames are not there yet."""
        first_row = opened.index.first_row[episodes][:, None]
        tables = held_by(opened.index)
        if not tables and not opened.is_cold:  # what is made from whole shards waits until they are there
            tables = self._tables.take(opened)
        for name, feature in self._arrays.items():
            wanted = steps[self._offsets[name]][0][rows]
            if name in tables:
                # Assignment casts float64 to the float32 that a stream yields.
                out[name][rows] = gather_rows(tables[name], wanted + first_row, feature)
            else:
                out[name][rows] = gather_steps(opened.tar, opened.index, feature, episodes, wanted)
        if self._precision.wanted and not opened.is_cold:
            self._look_at(opened, int(episodes[0]), tables)
        left = rows[:0]
        for name in self._decoders:
            if self._pool is None or name not in self._costly:
                self._read_frames(opened, name, rows, episodes, steps, out)
        if self._pool is not None:
            alone, late = self._pool.draw(opened, rows, episodes, out, wait=is_last)
            left = rows[late]
            if len(alone):
                for name in self._costly:
                    num_frames = self._read_frames(opened, name, rows[alone], episodes[alone], steps, out)
                    self._pool.count_alone(num_frames)
        return left

    def _look_at(self, opened: OpenShard, episode: int, tables: Mapping[str, Table]) -> None:
        """See whether the dtypes of batches can tell the steps of an episode apart."""
        index = opened.index
        steps = np.arange(min(int(index.length[episode]), MOST_STEPS))
        for name in self._precision.wanted:
            feature = self._arrays[name]
            if name in tables:
                values = gather_rows(tables[name], steps + index.first_row[episode], feature)
            else:
                values = gather_steps(opened.tar, index, feature, np.array([episode]), steps[None])[0]
            self._precision.look(name, values, self._dataset.shard_url[opened.number])

    def _read_frames(
        self, opened: OpenShard, name: str, rows: Int64, episodes: Int64, steps: Steps, out: Arrays
    ) -> int:
        """Fill the rows (R,) of windows of a shard with a camera's frames; how many."""
        wanted, is_pad = (array[rows] for array in steps[self._offsets[name]])
        num_steps = wanted.shape[1]
        needed = wanted + opened.index.first_row[episodes][:, None]
        places = rows[:, None] * num_steps + np.arange(num_steps)
        if self._window.pad == "zero":
            needed, places = needed[~is_pad], places[~is_pad]
        if not needed.size:
            return 0
        needed, places = needed.reshape(-1), places.reshape(-1)
        frames = out[name].reshape(-1, *out[name].shape[2:])
        if self._decoded is not None and name in self._costly:
            self._decoded.draw(opened, name, needed, frames, places)
        else:
            draw_frames(opened.tar, opened.index, self._decoders[name], needed, frames, places)
        return len(needed)


def _rows_by_shard(shard: Int64, among: Int64) -> list[Int64]:
    """The rows of each shard of a batch, `among` ascending ones.

    Shards come in ascending order, not in batch order: which shard comes first must not matter, and a common order
    lets ranks that miss the same shards at the same time share the fills.
    """
    shard = shard[among]
    if (shard == shard[0]).all():  # as in batches of a mixture
        return [among]
    order = np.argsort(shard, kind="stable")
    ordered = shard[order]
    # Slices by hand: np.split takes twice as long, which shows in small batches.
    cuts = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(order)]
    return [among[order[start:stop]] for start, stop in pairwise(cuts)]
