"""What a dataset holds, as plain values for tables and JSON, and single frames of it for a person to look at."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, OptionError, SourceError
from epistream.sharding.files.names import is_episode_url, is_tar
from epistream.sharding.files.storage import read_bytes, read_range
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.manifest_columns import RANGES_EDITED, SPLIT_EDITED, TASKS_EDITED
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.pictures.video import VideoDecoder


def describe(dataset: Dataset) -> dict[str, Any]:
    """Everything that the manifest says, summed up, as JSON can hold it. Reads no shard.

    Bytes of episodes of LeRobot data sets are reckoned from their first files, and their indexes are not made yet.
    """
    in_place = np.array([is_episode_url(url) for url in dataset.index_url])
    length = dataset.episode_length
    fps = {feature.fps for feature in dataset.features.values() if feature.fps}
    start, stop = dataset.valid_ranges[1].T
    return {
        "url": dataset.url,
        "fingerprint": dataset.fingerprint,
        "num_shards": dataset.num_shards,
        "num_episodes": dataset.num_episodes,
        "num_steps": dataset.num_steps,
        "num_valid_steps": int((stop - start).sum()),
        "num_bytes": int(dataset.shard_bytes.sum()),
        "has_estimated_bytes": bool(in_place.any()),
        "num_index_bytes": int(dataset.index_bytes[~in_place].sum()),
        "fps": sorted(fps),
        "duration_s": dataset.num_steps / fps.pop() if len(fps) == 1 else None,
        "episode_length": _spread(length),
        "shard_bytes": _spread(dataset.shard_bytes),
        "features": [feature.to_dict() for feature in dataset.features.values()],
        "splits": [_split(dataset, number) for number in range(len(dataset.splits))],
        "tasks": _tasks(dataset),
        "statistics": dict(dataset.statistics),
        "estimated_quantiles": list(getattr(dataset.statistics, "estimated", ())),
        "not_finite": {name: counts.to_dict() for name, counts in dataset.not_finite.items()},
    }


def _spread(values: NDArray[np.int64]) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _split(dataset: Dataset, number: int) -> dict[str, Any]:
    episodes = dataset.episode_split == number
    shards = np.unique(dataset.episode_shard[episodes])
    return {
        "name": dataset.splits[number],
        "num_shards": len(shards),
        "num_episodes": int(episodes.sum()),
        "num_steps": int(dataset.episode_length[episodes].sum()),
        "num_bytes": int(dataset.shard_bytes[shards].sum()),
    }


def _tasks(dataset: Dataset) -> list[dict[str, Any]]:
    """Each instruction and the number of episodes that have it, the most frequent first."""
    counts = Counter(dataset.episode_tasks[1].tolist())
    return [{"task": dataset.tasks[task], "num_episodes": count} for task, count in counts.most_common()]


def edited_meta(dataset: Dataset, episode: int, meta: EpisodeMeta) -> EpisodeMeta:
    """What is known of an episode, from what its shard says and what was edited since."""
    columns, edits = dataset.columns, int(dataset.columns.edits[episode])
    if edits & TASKS_EDITED:
        meta = replace(meta, tasks=tuple(dataset.tasks[task] for task in columns.tasks_of(episode)), task_steps=None)
    if edits & RANGES_EDITED:
        meta = replace(meta, valid_ranges=tuple((start, stop) for start, stop in columns.ranges_of(episode).tolist()))
    return replace(meta, split=dataset.splits[int(dataset.episode_split[episode])]) if edits & SPLIT_EDITED else meta


class EpisodeFrames:
    """Single frames of one episode, read one by one: for looking at, not for training.

    Args:
        dataset: Where from.
        episode: Position in the dataset, from 0.

    Attributes:
        files: Paths in a LeRobot data set that the episode is read from; none of a shard.

    Raises:
        OptionError: If there is no such episode.
        SourceError: If the shard's index is missing; of a LeRobot data set, one of the episode's files.
        FormatError: If the index is not the one that the manifest names, or such files are not what metadata say.
    """

    files: Sequence[str] = ()

    def __init__(self, dataset: Dataset, episode: int) -> None:
        if not 0 <= episode < dataset.num_episodes:
            raise OptionError(
                f"{dataset.url}: episode {episode}, wanted 0 to {dataset.num_episodes - 1}. Choose one of these."
            )
        self._dataset, self._shard = dataset, int(dataset.episode_shard[episode])
        self._index = self._read_index(dataset.index_url[self._shard])
        position = int(dataset.episode_in_shard[episode])
        self.key = self._index.keys[position]
        self.meta = edited_meta(dataset, episode, self._index.episodes[position])
        self.length = int(self._index.length[position])
        self._first_row = int(self._index.first_row[position])

    def _read_index(self, url: str) -> ShardIndex:
        if is_episode_url(url):
            from epistream.sharding.lerobot.dataset import episode_source
            from epistream.sharding.lerobot.kept import keep_episode

            source, position = episode_source(url, self._dataset.storage_options)
            self.files = list(source.files_of(position))
            return keep_episode(source, position).index.rows
        wanted = self._dataset.index_checksum[self._shard]
        data = read_bytes(url, self._dataset.storage_options)
        if data is None:
            raise SourceError(f"{url}: no such file. {self._remedy()}")
        if checksum(data) != wanted:
            raise FormatError(f"{url}: checksum {checksum(data)}, the manifest says {wanted}. {self._remedy()}")
        return ShardIndex.parse(data, url).called(self._dataset.names_in(self._shard))

    def _remedy(self) -> str:
        shard = self._dataset.shard_url[self._shard]
        if not is_tar(shard):
            return "Open the dataset again, which makes it."
        return f"Write it again: epistream index {shlex.quote(shard.rpartition('/')[0])} --overwrite"

    def read(self, feature: Feature, step: int) -> NDArray[Any]:
        """One frame as (H, W, C) of the feature's dtype, turned upright.

        Raises:
            OptionError: If the episode is no shard's, or is a video and PyAV is not installed.
            FormatError: If it does not decode.
            SourceError: If it cannot be read.
        """
        url = self._dataset.shard_url[self._shard]
        if not is_tar(url):
            # Its index counts bytes as they would be packed, which a plain range cannot reach.
            is_hdf5 = not is_episode_url(self._dataset.index_url[self._shard])
            raise OptionError(
                f"{url}: {'an HDF5 file' if is_hdf5 else 'a LeRobot data set'}, wanted a tar. Pack it first: epistream "
                f"pack {shlex.quote(url if is_hdf5 else self._dataset.url)} OUT"
            )
        if feature.name in self._index.videos:
            out = self._read_video(feature, step, url)
            return out[::-1, ::-1] if feature.rotate == 180 else out
        start, size = self._index.frame_range(feature.name, self._first_row + step)
        data = read_range(url, start, size, self._dataset.storage_options)
        out = np.empty(feature.shape, feature.dtype)
        codec_of(feature).decode_into(data, out, f"{url}, {self.key}.{feature.name}, step {step}")
        return out[::-1, ::-1] if feature.rotate == 180 else out

    def _read_video(self, feature: Feature, step: int, url: str) -> NDArray[Any]:
        """From the group of pictures that the frame is part of, in one read: its packets lie one after the other."""
        index, row = self._index, self._first_row + step
        offset, size = index.frame_offset[feature.name], index.frame_size[feature.name].astype(np.uint64)
        [run] = index.runs(feature.name, np.array([row]))
        start, stop = int(offset[run.rows].min()), int((offset[run.rows] + size[run.rows]).max())
        data = memoryview(read_range(url, start, stop - start, self._dataset.storage_options))
        where = f"{url}, {self.key}.{feature.name}"
        packets = ((at - self._first_row, data[int(offset[at]) - start :][: int(size[at])]) for at in run.rows.tolist())
        [(_, frame)] = VideoDecoder(feature.shape).pictures(run.stream, packets, {step}, where)
        return frame
