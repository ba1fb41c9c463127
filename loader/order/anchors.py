"""Anchors: which steps of which episodes a window may stand at, counted per shard and found by number."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError, OptionError
from epistream.lazy import lazy
from epistream.loader.order.lanes import Pieces
from epistream.loader.order.spread import cut_to, number_groups

if TYPE_CHECKING:
    from epistream.sharding.manifest.opened_dataset import Dataset


class Anchors:
    """The anchors of one split of a dataset for windows of one reach.

    Anchor k of a shard counts its episodes in the order of the shard, their valid ranges in order, and the
    steps of each. A row is a valid range; memory is O(rows), nothing is O(windows).

    Args:
        dataset: what the manifest says.
        split: a name of `dataset.splits`, or None for all episodes.
        reach: lowest and highest step offset of the window about its anchor.
        drop_incomplete: leave out anchors whose window would leave the episode.
        repetitions: (E,) how often each episode's anchors stand in an epoch, 0 for not at all; once if left out.
        selected: (E,) bool, whether each episode is wanted; all of the split if left out.

    Attributes:
        per_shard: (S,) int64, anchors of each shard; 0 where the shard is of another split.
        episodes_per_shard: (S,) int64, episodes that have an anchor.
        num_windows: their sum.

    Raises:
        OptionError: if the split is unknown, or no anchor is left; the message says what would leave some.
        FormatError: if valid ranges overlap or leave their episode.
    """

    def __init__(
        self,
        dataset: "Dataset",
        split: str | None,
        reach: tuple[int, int],
        drop_incomplete: bool,
        repetitions: NDArray[np.int64] | None = None,
        selected: NDArray[np.bool_] | None = None,
    ) -> None:
        self._dataset, self._reach, self._drop_incomplete = dataset, reach, drop_incomplete
        wanted = _in_split(dataset, split)
        if selected is not None:
            wanted = selected if wanted is None else _of_both(dataset, split, wanted, selected)
        if repetitions is not None:
            repetitions = _checked_repetitions(repetitions, len(dataset.episode_length))
        episode, start, stop = _sorted_ranges(dataset)
        if drop_incomplete:
            start = np.maximum(start, -reach[0])
            stop = np.minimum(stop, _at(dataset.episode_length, episode) - reach[1])
        # Rows without an anchor stay, with a count of 0: finding a window steps over them, and nothing is copied.
        steps = np.maximum(stop - start, 0)
        if wanted is not None:
            steps *= _at(wanted, episode)
        counts = steps if repetitions is None else steps * _at(repetitions, episode)
        self._episode = episode
        self._start = start if start.any() else None
        self._steps = None if repetitions is None else np.maximum(steps, 1)
        self._before = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=self._before[1:])
        self.num_windows = int(self._before[-1])
        if self.num_windows == 0:
            raise OptionError(self._nothing_left(split, wanted))
        shard = _at(dataset.episode_shard, episode)
        self._shard_before = self._before[np.searchsorted(shard, np.arange(len(dataset.shard_url) + 1))]
        self.per_shard = np.diff(self._shard_before)
        with_window = dataset.episode_shard[self.windows_per_episode > 0]
        self.episodes_per_shard = np.bincount(with_window, minlength=len(self.per_shard)).astype(np.int64)

    @lazy
    def digest(self) -> str:
        """A digest of which steps are anchors, and how often: split, valid ranges and repetitions among them."""
        digest = xxhash.xxh3_64()
        for array in (self._before, self._episode, self._start, self._steps):
            digest.update(b"-" if array is None else np.ascontiguousarray(array, "<i8").tobytes())
        return digest.hexdigest()

    @property
    def windows_per_episode(self) -> NDArray[np.int64]:
        """(E,) int64, windows of each episode; 0 where it is of another split."""
        counts = np.diff(self._before)
        if self._episode is None:
            return counts
        total = np.zeros(len(self._dataset.episode_length), np.int64)
        np.add.at(total, self._episode, counts)
        return total

    def locate(
        self, shard: NDArray[np.int64], k: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where windows are.

        Args:
            shard: (n,) shards.
            k: (n,) numbers within the shards, each in [0, per_shard[shard]).

        Returns:
            episode_index, episode_in_shard and step, each (n,) int64.
        """
        number = self._shard_before[shard] + k
        row = np.searchsorted(self._before, number, side="right") - 1
        episode = row if self._episode is None else self._episode[row]
        step = number - self._before[row]
        if self._steps is not None:
            step %= self._steps[row]
        if self._start is not None:
            step += self._start[row]
        return episode, self._dataset.episode_in_shard[episode], step

    def group(self, shard: NDArray[np.int64], size: NDArray[np.int64], window: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number the episodes of windows of several shards, as `Episodes.group` describes."""
        _, place, _ = self.locate(np.repeat(shard, size), window)
        return number_groups(place, size)

    def blocks(self, shard: int, first: int, count: int, block_steps: int) -> NDArray[np.int64]:
        """As `Episodes.blocks` describes; blocks end with valid ranges, and each repetition has its own."""
        begin = int(self._shard_before[shard]) + first
        low = int(np.searchsorted(self._before, begin, side="right")) - 1
        high = int(np.searchsorted(self._before, begin + count, side="left"))
        rows = slice(low, high)
        number, counts = self._before[rows], np.diff(self._before[low : high + 1])
        start = np.zeros_like(number) if self._start is None else self._start[rows]
        steps = counts
        if self._steps is not None:
            steps = np.minimum(self._steps[rows], counts)
            times = counts // np.maximum(steps, 1)
            number, start, steps = (np.repeat(array, times) for array in (number, start, steps))
            # Repetition r of a row begins r times its steps behind the row.
            number = number + steps * (np.arange(len(number)) - np.repeat(np.cumsum(times) - times, times))
        before, blocks = start // block_steps, _blocks_of(start, steps, block_steps)
        within = np.arange(int(blocks.sum())) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        at = np.maximum((np.repeat(before, blocks) + within) * block_steps - np.repeat(start, blocks), 0)
        starts = np.repeat(number, blocks) + at - int(self._shard_before[shard])
        return cut_to(starts, first, first + count)

    def num_blocks(self, block_steps: int) -> NDArray[np.int64]:
        """As `Episodes.num_blocks` describes."""
        counts = np.diff(self._before)
        start = np.zeros_like(counts) if self._start is None else self._start
        blocks = _blocks_of(start, counts, block_steps)
        if self._steps is not None:
            steps = np.minimum(self._steps, counts)
            blocks = counts // self._steps * _blocks_of(start, steps, block_steps)
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks)])
        return np.diff(total[np.searchsorted(self._before, self._shard_before)])

    def find(self, episode_index: int, step: int) -> tuple[int, int]:
        """The window (shard, k) that stands at a step; the first of its repetitions.

        Raises:
            OptionError: if the episode does not exist or no window stands there.
        """
        rows = [episode_index] if self._episode is None else np.flatnonzero(self._episode == episode_index).tolist()
        ranges = []
        for row in rows if 0 <= episode_index < len(self._dataset.episode_length) else []:
            count = int(self._before[row + 1] - self._before[row])
            steps = count if self._steps is None or count == 0 else int(self._steps[row])
            start = 0 if self._start is None else int(self._start[row])
            if start <= step < start + steps:
                shard = int(self._dataset.episode_shard[episode_index])
                return shard, int(self._before[row] - self._shard_before[shard]) + step - start
            if steps:
                ranges.append(f"{start} to {start + steps - 1}")
        raise OptionError(
            f"{self._dataset.url}, episode {episode_index}: no window stands at step {step}; "
            f"they stand at {', '.join(ranges) or 'no step of it (another split, or no such episode)'}."
        )

    def runs(self) -> Pieces:
        """The windows in dataset order: episode after episode, as runs of neighbouring windows of one shard."""
        episode = np.arange(len(self._before) - 1) if self._episode is None else self._episode
        rows = np.argsort(episode, kind="stable")
        counts = np.diff(self._before)[rows]
        rows, counts = rows[counts > 0], counts[counts > 0]
        shard = self._dataset.episode_shard[episode[rows]]
        first = self._before[rows] - self._shard_before[shard]
        joins = (shard[1:] == shard[:-1]) & (first[1:] == first[:-1] + counts[:-1])
        begins = np.flatnonzero(np.concatenate([[True], ~joins]))
        return Pieces(shard[begins], first[begins], np.add.reduceat(counts, begins))

    def _nothing_left(self, split: str | None, wanted: NDArray[np.bool_] | None) -> str:
        dataset = self._dataset
        where = f"{dataset.url}, split {split or 'of all episodes'}"
        length = dataset.episode_length if wanted is None else dataset.episode_length[wanted]
        if not len(length):
            counts = np.bincount(dataset.episode_split, minlength=len(dataset.splits))
            found = ", ".join(f"{name} {count}" for name, count in zip(dataset.splits, counts, strict=True))
            return f"{where}: no episode. Episodes by split: {found or 'none'}. Use one of these, or split=None."
        low, high = self._reach
        if self._drop_incomplete and high - low + 1 > length.max():
            return (
                f"{where}: no window fits. It reaches over {high - low + 1} steps ({low} to {high}), "
                f"the longest episode has {length.max()}. Use a shorter window, or "
                "Window(drop_incomplete=False) to pad."
            )
        return (
            f"{where}: {len(length)} episodes, but none of their steps may hold a window. Check their valid ranges "
            "with 'epistream inspect', the repetitions given, or use Window(drop_incomplete=False) to pad."
        )


def _blocks_of(start: NDArray[np.int64], steps: NDArray[np.int64], block_steps: int) -> NDArray[np.int64]:
    """How many blocks each run of `steps` steps from `start` touches."""
    return np.where(steps > 0, (start + steps - 1) // block_steps - start // block_steps + 1, 0)


def _at(values: NDArray[Any], rows: NDArray[np.int64] | None) -> NDArray[Any]:
    """``values[rows]``; None stands for all rows in order, which needs no copy."""
    return values if rows is None else values[rows]


def _in_split(dataset: "Dataset", split: str | None) -> NDArray[np.bool_] | None:
    """(E,) whether each episode is of the split; None if all are."""
    if split is None:
        return None
    if split not in dataset.splits:
        raise OptionError(
            f"{dataset.url}: no split {split!r}, it has {', '.join(dataset.splits)}. "
            "Use one of these, or split=None for all episodes."
        )
    return np.asarray(dataset.episode_split == dataset.splits.index(split))


def _of_both(
    dataset: "Dataset", split: str | None, wanted: NDArray[np.bool_], selected: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    both = wanted & selected
    if not both.any():
        counts = np.bincount(dataset.episode_split[selected], minlength=len(dataset.splits))
        found = ", ".join(f"{name} {count}" for name, count in zip(dataset.splits, counts, strict=True) if count)
        raise OptionError(
            f"{dataset.url}, split {split}: none of the selected episodes is of it. They are of {found}. Use one of "
            "these, or split=None."
        )
    return np.asarray(both)


def _sorted_ranges(dataset: "Dataset") -> tuple[NDArray[np.int64] | None, NDArray[np.int64], NDArray[np.int64]]:
    """Episode, start and stop of every valid range in the order of shards; episode None if row e is episode e.

    Raises:
        FormatError: for a range that leaves its episode or overlaps another, whose windows would count twice.
    """
    offsets, ranges = dataset.valid_ranges
    num_episodes = len(dataset.episode_length)
    start, stop = ranges[:, 0], ranges[:, 1]
    one_each = len(ranges) == num_episodes and bool((np.diff(offsets) == 1).all())
    episode = None if one_each else np.repeat(np.arange(num_episodes), np.diff(offsets))
    wrong = (start < 0) | (stop > _at(dataset.episode_length, episode)) | (start > stop)
    if episode is not None:
        wrong[1:] |= (episode[1:] == episode[:-1]) & (start[1:] < stop[:-1])
    if wrong.any():
        row = int(np.argmax(wrong))
        index = row if episode is None else int(episode[row])
        raise FormatError(
            f"{dataset.url}, episode {index}: valid range {start[row]} to {stop[row]} overlaps another or leaves "
            f"the episode of {dataset.episode_length[index]} steps. Write the manifest again with "
            "'epistream index URL --overwrite'."
        )
    shard, place = _at(dataset.episode_shard, episode), _at(dataset.episode_in_shard, episode)
    step = np.diff(shard)
    if ((step > 0) | ((step == 0) & (place[1:] >= place[:-1]))).all():
        return episode, start, stop
    order = np.lexsort((start, place, shard))
    return order if episode is None else episode[order], start[order], stop[order]


def _checked_repetitions(repetitions: NDArray[np.int64], num_episodes: int) -> NDArray[np.int64]:
    repetitions = np.asarray(repetitions)
    if repetitions.shape != (num_episodes,) or repetitions.dtype.kind not in "iu" or (repetitions < 0).any():
        raise OptionError(
            f"repetitions: {repetitions.dtype} {repetitions.shape}, wanted integers of 0 or more, one for each of "
            f"the {num_episodes} episodes."
        )
    return repetitions.astype(np.int64)
