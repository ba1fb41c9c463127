"""Reads any windows of a dataset, in any order, from whatever process or thread asks."""

import os
import threading
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epistream.cache.node import NodeCache
from epistream.cache.stats import CacheStats
from epistream.loader.order.window import Window
from epistream.loader.reading.batch_layout import BatchLayout
from epistream.loader.reading.instructions import first_task
from epistream.loader.reading.reader import BatchWindows, EpisodeReader, ReaderOptions
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset


class RandomAccess:
    """What map-style access needs beside an `EpisodeReader`: arrays to fill, and care for forks, pickles and threads.

    Nothing is open between two reads, so a copy that crosses a process border, by fork or by pickling, has nothing
    to inherit. It is made of what an `EpisodeReader` is made of.
    """

    def __init__(
        self, dataset: Dataset, features: dict[str, Feature], window: Window, cache: NodeCache, options: ReaderOptions
    ) -> None:
        self._dataset = dataset
        self._features = features
        self._window = window
        self.cache = cache
        self._options = replace(options, pool=None)  # of windows at random a block would be decoded for one of them
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._reader: EpisodeReader | None = None

    def read(self, episode_index: ArrayLike, step: ArrayLike) -> dict[str, NDArray[Any]]:
        """The arrays of `BatchLayout` for windows at (episode_index, step), (B,) each, in fresh memory.

        Raises:
            EpistreamError: as `EpisodeReader.read`.
        """
        episodes, steps = np.asarray(episode_index, np.int64), np.asarray(step, np.int64)
        shown = self._options.frames.all_shown(self._features)
        views = BatchLayout.plan(shown, self._window, len(steps), self._options.dtypes).allocate()
        windows = BatchWindows(
            shard=self._dataset.episode_shard[episodes],
            episode_index=episodes,
            episode_in_shard=self._dataset.episode_in_shard[episodes],
            step=steps,
            is_repeat=np.zeros(len(steps), np.bool_),
            task_index=first_task(self._dataset, episodes),
        )
        if self._pid != os.getpid():
            self._reset()  # a forked child: the lock may have been held by a thread that is not here
        with self._lock:
            if self._reader is None:
                self._reader = EpisodeReader(self._dataset, self._features, self._window, self.cache, self._options)
            try:
                self._reader.read(windows, views)
            finally:
                # Whoever asked may take long to come back, and nobody waits with shards in hand.
                self._reader.release()
        return views

    def stats(self) -> CacheStats:
        """Counters of the cache in this process."""
        return self.cache.stats()

    def close(self) -> None:
        """Leave the cache; the next read enters it again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self.cache.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return RandomAccess, (self._dataset, self._features, self._window, self.cache, self._options)
