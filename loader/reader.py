"""Fills whole batches: low-dimensional rows gathered, each frame decoded once, straight into the batch."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.blob import Blob
from epistream.cache.entry import Entry, Part
from epistream.cache.node import NodeCache, OpenEntry
from epistream.errors import FormatError
from epistream.loader.decoded import DecodedEpisodes, DecodedPlan, Frames
from epistream.loader.frames import FrameDecoder, FrameOptions
from epistream.loader.window import Window
from epistream.sharding.dataset import Dataset
from epistream.sharding.features import Feature
from epistream.sharding.index import ShardIndex
from epistream.sharding.names import is_tar


@dataclass(frozen=True)
class BatchWindows:
    """The windows of one batch, in batch order; every array is (B,) int64 but `is_repeat`, (B,) bool."""

    shard: NDArray[np.int64]
    episode_index: NDArray[np.int64]
    episode_in_shard: NDArray[np.int64]
    step: NDArray[np.int64]
    is_repeat: NDArray[np.bool_]
    task_index: NDArray[np.int64]


@dataclass
class _OpenShard:
    entry: OpenEntry
    index: ShardIndex

    @property
    def tar(self) -> Blob:
        return self.entry.blobs[0]


@dataclass(frozen=True)
class ReaderOptions:
    """What a reader may keep, and how it makes frames.

    Args:
        max_open_shards: shards held open between batches.
        frames: size of the frames.
        decoded: sizes of the decoded episodes; None decodes every frame when it is read.
    """

    max_open_shards: int = 64
    frames: FrameOptions = field(default_factory=FrameOptions)
    decoded: DecodedPlan | None = None


class EpisodeReader:
    """Reads windows of a dataset into given arrays. One per thread or process; not shared between threads.

    It keeps the shards of its recent batches open, because mapping them afresh costs page faults. Whoever
    is about to wait for anything calls `release` first: a shard held while waiting cannot be evicted, and
    ranks that wait for each other would hold each other's shards out of the cache.
    """

    def __init__(
        self,
        dataset: Dataset,
        features: Mapping[str, Feature],
        window: Window,
        cache: NodeCache,
        options: ReaderOptions | None = None,
    ) -> None:
        options = options or ReaderOptions()
        self._dataset = dataset
        self._features = dict(features)
        self._window = window
        self._cache = cache
        self._max_open_shards = options.max_open_shards
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        # Shards never change once published, so an index is checked once per process and then only viewed.
        self._checked: set[int] = set()
        self._decoders = {
            name: FrameDecoder(feature, options.frames.shown(feature).shape)
            for name, feature in features.items()
            if feature.kind == "frames"
        }
        # Frames that are stored as they are wanted are gathered from their shard already.
        costly = {name: decoder for name, decoder in self._decoders.items() if not decoder.is_copy}
        self._decoded = DecodedEpisodes(costly, cache, options.decoded) if costly and options.decoded else None

    def read(self, windows: BatchWindows, out: Mapping[str, NDArray[Any]]) -> None:
        """Fill the arrays of one batch.

        Args:
            windows: what to read.
            out: the arrays of `BatchLayout`, with a batch axis of at least B rows; the first B are written.

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
        if self._decoded is not None:
            self._decoded.begin_batch()
        steps = {}
        for name in self._features:
            steps[name], is_pad = self._window.steps(name, windows.step, length)
            out[f"{name}_is_pad"][:num_windows] = is_pad
        # Shards in ascending order, not batch order: which shard comes first must not matter, and a
        # common order lets ranks that miss the same shards at the same time share the fills.
        for shard in np.unique(windows.shard):
            rows = np.flatnonzero(windows.shard == shard)
            self._read_shard(int(shard), rows, windows.episode_in_shard[rows], steps, out)
        if self._window.pad == "zero":
            for name in self._features:
                out[name][:num_windows][out[f"{name}_is_pad"][:num_windows]] = 0

    def release(self) -> None:
        """Give up every shard and episode that is held open. Call before any wait."""
        if self._decoded is not None:
            self._decoded.release()
        while self._open:
            self._open.popitem()[1].entry.close()

    def _read_shard(
        self,
        shard: int,
        rows: NDArray[np.int64],
        episodes: NDArray[np.int64],
        steps: Mapping[str, NDArray[np.int64]],
        out: Mapping[str, NDArray[Any]],
    ) -> None:
        opened = self._shard(shard)
        for name, feature in self._features.items():
            if feature.kind == "array":
                self._gather(opened, feature, episodes, steps[name][rows], out[name], rows)
        ready = self._ready(opened, shard, episodes)
        for name, decoder in self._decoders.items():
            wanted, missing = steps[name][rows], np.ones(len(rows), dtype=np.bool_)
            if ready and name in next(iter(ready.values())):
                missing = np.array([episode not in ready for episode in episodes.tolist()])
                _copy_frames(ready, name, episodes[~missing], wanted[~missing], out[name], rows[~missing])
            if missing.any():
                frames = wanted[missing] + opened.index.first_row[episodes[missing]][:, None]
                if self._window.pad == "zero":
                    skip = out[f"{name}_is_pad"][rows[missing]]
                else:
                    skip = np.zeros(frames.shape, dtype=np.bool_)
                self._decode(opened, decoder, frames, skip, out[name], rows[missing])

    def _ready(self, opened: _OpenShard, shard: int, episodes: NDArray[np.int64]) -> dict[int, Frames]:
        """The decoded frames of those episodes that are kept so, by position in the shard."""
        if self._decoded is None:
            return {}
        ready = {}
        for episode in np.unique(episodes).tolist():
            frames = self._decoded.take(shard_entry(self._dataset, shard), opened.tar, opened.index, (shard, episode))
            if frames is not None:
                ready[episode] = frames
        return ready

    @staticmethod
    def _gather(
        opened: _OpenShard,
        feature: Feature,
        episodes: NDArray[np.int64],
        steps: NDArray[np.int64],
        out: NDArray[Any],
        rows: NDArray[np.int64],
    ) -> None:
        dtype = np.dtype(feature.dtype)
        width = int(np.prod(feature.shape, dtype=np.int64)) * dtype.itemsize
        starts = opened.index.array_offset[feature.name][episodes].astype(np.int64)[:, None] + steps * width
        raw = np.empty((starts.size, width), dtype=np.uint8)
        opened.tar.gather(starts.reshape(-1), raw)
        # Assignment casts float64 to the float32 that a stream yields.
        out[rows] = raw.view(dtype).reshape(*steps.shape, *feature.shape)

    @staticmethod
    def _decode(
        opened: _OpenShard,
        decoder: FrameDecoder,
        needed: NDArray[np.int64],
        skip: NDArray[np.bool_],
        out: NDArray[Any],
        rows: NDArray[np.int64],
    ) -> None:
        """Decode frames `needed` (R, n) of the shard into `out[rows]`, each frame once; `skip` (R, n) are left."""
        name = decoder.feature.name
        offsets, sizes = opened.index.frame_offset[name], opened.index.frame_size[name]
        done: dict[int, NDArray[Any]] = {}
        tar = opened.tar
        for row, frames, skipped in zip(rows.tolist(), needed.tolist(), skip.tolist(), strict=True):
            for position, frame in enumerate(frames):
                if skipped[position]:
                    continue
                image = out[row, position]
                twin = done.get(frame)
                if twin is not None:
                    image[...] = twin
                elif decoder.is_copy:
                    tar.read_into(int(offsets[frame]), image.reshape(-1).view(np.uint8))
                    done[frame] = image
                else:
                    data = tar.read(int(offsets[frame]), int(sizes[frame]))
                    try:
                        decoder.decode(data, image, name)
                    except FormatError as error:
                        raise FormatError(f"{_where(opened.index, frame)}: {error}") from error
                    done[frame] = image

    def _shard(self, shard: int) -> _OpenShard:
        opened = self._open.get(shard)
        if opened is not None:
            self._open.move_to_end(shard)
            return opened
        while len(self._open) >= self._max_open_shards:
            self._open.popitem(last=False)[1].entry.close()
        entry = self._cache.open(shard_entry(self._dataset, shard), before_wait=self.release)
        try:
            blob = entry.blobs[1]
            index = ShardIndex.parse(
                blob.read(0, blob.size), self._dataset.index_url[shard], validate=shard not in self._checked
            )
        except BaseException:
            entry.close()
            raise
        self._checked.add(shard)
        self._open[shard] = opened = _OpenShard(entry, index)
        return opened


def _copy_frames(
    ready: Mapping[int, Frames],
    name: str,
    episodes: NDArray[np.int64],
    steps: NDArray[np.int64],
    out: NDArray[Any],
    rows: NDArray[np.int64],
) -> None:
    """Copy steps (R, n) of decoded episodes into `out[rows]`; neighbouring steps in one go."""
    num_steps = steps.shape[1]
    adjacent = (np.diff(steps, axis=1) == 1).all(axis=1)
    for row, episode, wanted, whole in zip(
        rows.tolist(), episodes.tolist(), steps.tolist(), adjacent.tolist(), strict=True
    ):
        frames = ready[episode][name]
        if whole:
            np.copyto(out[row], frames[wanted[0] : wanted[0] + num_steps])
        else:
            for position, step in enumerate(wanted):
                np.copyto(out[row, position], frames[step])


def _where(index: ShardIndex, row: int) -> str:
    episode = int(np.searchsorted(index.first_row, row, side="right")) - 1
    return f"{index.shard_name}, {index.keys[episode]}, step {row - int(index.first_row[episode])}"


def shard_entry(dataset: Dataset, shard: int) -> Entry:
    """The cache entry of a shard: its tar and its index, so that one fill brings both to every rank.

    A shard of an HDF5 file is the packed bytes that its index counts, in place of the tar.
    """
    url, checksum = dataset.shard_url[shard], dataset.shard_checksum[shard]
    index = Part(dataset.index_url[shard], int(dataset.index_bytes[shard]), dataset.index_checksum[shard])
    if is_tar(url):
        return Entry((Part(url, int(dataset.shard_bytes[shard]), checksum), index))
    from epistream.loader.hdf5_blob import Hdf5Supply

    supply = Hdf5Supply(url, index.url, dataset.storage_options)
    # The index names the version of the file that it was made of: its checksum stands for both.
    packed = Part(url, int(dataset.shard_bytes[shard]), version=index.checksum, supply=supply)
    return Entry((packed, index), content="packed bytes of HDF5")
