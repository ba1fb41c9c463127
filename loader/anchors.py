"""Anchors: which steps of which episodes a window may stand at, counted per shard and found by number."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, OptionError
from epistream.loader.lanes import Pieces

if TYPE_CHECKING:
    from epistream.sharding.dataset import Dataset


class Anchors:
    """The anchors of one split of a dataset for windows of one reach.

    Anchor k of a shard counts its episodes in the order of the shard, their valid ranges in order, and the
    steps of each. Memory is O(valid ranges), nothing is O(windows).

    Attributes:
        per_shard: (S,) int64, anchors of each shard; 0 where the shard is of another split.
        episodes_per_shard: (S,) int64, episodes that have an anchor.
        num_windows: their sum.
    """

    def __init__(
        self,
        dataset: "Dataset",
        split: str | None,
        reach: tuple[int, int],
        drop_incomplete: bool,
        repetitions: NDArray[np.int64] | None = None,
    ) -> None:
        """Count.

        Args:
            dataset: what the manifest says.
            split: a name of `dataset.splits`, or None for all episodes.
            reach: lowest and highest step offset of the window about its anchor.
            drop_incomplete: leave out anchors whose window would leave the episode.
            repetitions: (E,) how often each episode's anchors stand in an epoch, 0 for not at all; once if
                left out.

        Raises:
            OptionError: if the split is unknown, or no anchor is left; the message says what would leave
                some.
            FormatError: if valid ranges overlap or leave their episode.
        """
        self._length = dataset.episode_length
        self._url, self._reach, self._drop_incomplete = dataset.url, reach, drop_incomplete
        episode, start, stop = _valid_ranges(dataset)
        wanted = _in_split(dataset, split)
        if repetitions is not None:
            repetitions = _checked_repetitions(repetitions, len(self._length))
            wanted = wanted & (repetitions > 0)
        if drop_incomplete:
            start = np.maximum(start, -reach[0])
            stop = np.minimum(stop, self._length[episode] - reach[1])
        keep = wanted[episode] & (start < stop)
        episode, start, stop = episode[keep], start[keep], stop[keep]
        if not len(episode):
            raise OptionError(self._nothing_left(dataset, split, wanted))
        shard, in_shard = dataset.episode_shard[episode], dataset.episode_in_shard[episode]
        order = np.lexsort((start, in_shard, shard))
        self._episode, self._start = episode[order], start[order]
        self._steps = (stop - start)[order]
        self._in_shard = dataset.episode_in_shard
        counts = self._steps if repetitions is None else self._steps * repetitions[self._episode]
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        row_of_shard = np.searchsorted(shard[order], np.arange(len(dataset.shard_url) + 1))
        self._shard_before = self._before[row_of_shard]
        self.per_shard = np.diff(self._shard_before)
        self.num_windows = int(self._before[-1])
        self.episodes_per_shard = np.bincount(
            dataset.episode_shard[np.unique(self._episode)], minlength=len(self.per_shard)
        ).astype(np.int64)
        self._row_shard = shard[order]

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
        episode = self._episode[row]
        step = self._start[row] + (number - self._before[row]) % self._steps[row]
        return episode, self._in_shard[episode], step

    def find(self, episode_index: int, step: int) -> tuple[int, int]:
        """The window (shard, k) that stands at a step; the first of its repetitions.

        Raises:
            OptionError: if the episode does not exist or no window stands there.
        """
        rows = np.flatnonzero(self._episode == episode_index)
        for row in rows.tolist():
            start = int(self._start[row])
            if start <= step < start + int(self._steps[row]):
                shard = int(self._row_shard[row])
                return shard, int(self._before[row] - self._shard_before[shard]) + step - start
        ranges = ", ".join(f"{self._start[row]} to {self._start[row] + self._steps[row] - 1}" for row in rows)
        raise OptionError(
            f"{self._url}, episode {episode_index}: no window stands at step {step}; "
            f"they stand at {ranges or 'no step of it (another split, or no such episode)'}."
        )

    def runs(self) -> Pieces:
        """The windows in dataset order: episode after episode, as runs of neighbouring windows of one shard."""
        order = np.lexsort((self._start, self._episode))
        counts = np.diff(self._before)[order]
        shard = self._row_shard[order]
        first = self._before[:-1][order] - self._shard_before[shard]
        joins = (shard[1:] == shard[:-1]) & (first[1:] == first[:-1] + counts[:-1])
        begins = np.flatnonzero(np.concatenate([[True], ~joins]))
        return Pieces(shard[begins], first[begins], np.add.reduceat(counts, begins))

    def _nothing_left(self, dataset: "Dataset", split: str | None, wanted: NDArray[np.bool_]) -> str:
        where = f"{self._url}, split {split or 'of all episodes'}"
        if not wanted.any():
            counts = np.bincount(dataset.episode_split, minlength=len(dataset.splits))
            found = ", ".join(f"{name} {count}" for name, count in zip(dataset.splits, counts, strict=True))
            return f"{where}: no episode. Episodes by split: {found or 'none'}. Use one of these, or split=None."
        longest = int(self._length[wanted].max())
        low, high = self._reach
        if self._drop_incomplete:
            return (
                f"{where}: no window fits. It reaches over {high - low + 1} steps ({low} to {high}), "
                f"the longest episode has {longest}. Use a shorter window, or drop_incomplete=False to pad."
            )
        return f"{where}: its episodes have no valid step. Check their valid ranges with 'epistream inspect'."


def _in_split(dataset: "Dataset", split: str | None) -> NDArray[np.bool_]:
    if split is None:
        return np.ones(len(dataset.episode_length), np.bool_)
    if split not in dataset.splits:
        raise OptionError(
            f"{dataset.url}: no split {split!r}, it has {', '.join(dataset.splits)}. "
            "Use one of these, or split=None for all episodes."
        )
    return np.asarray(dataset.episode_split == dataset.splits.index(split))


def _valid_ranges(dataset: "Dataset") -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Episode, start and stop of every valid range, checked: one that overlaps would count its windows twice."""
    offsets, ranges = dataset.valid_ranges
    episode = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    start, stop = ranges[:, 0].astype(np.int64), ranges[:, 1].astype(np.int64)
    outside = (start < 0) | (stop > dataset.episode_length[episode]) | (start > stop)
    overlaps = (episode[1:] == episode[:-1]) & (start[1:] < stop[:-1])
    outside[1:] |= overlaps
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise FormatError(
            f"{dataset.url}, episode {episode[row]}: valid range {start[row]} to {stop[row]} overlaps another or "
            f"leaves the episode of {dataset.episode_length[episode[row]]} steps. "
            "Write the manifest again with 'epistream index'."
        )
    return episode, start, stop


def _checked_repetitions(repetitions: NDArray[np.int64], num_episodes: int) -> NDArray[np.int64]:
    repetitions = np.asarray(repetitions)
    if repetitions.shape != (num_episodes,) or repetitions.dtype.kind not in "iu" or (repetitions < 0).any():
        raise OptionError(
            f"repetitions: {repetitions.dtype} {repetitions.shape}, wanted integers of 0 or more, one for each of "
            f"the {num_episodes} episodes."
        )
    return repetitions.astype(np.int64)
