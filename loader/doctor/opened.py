"""Episodes as they are read to be examined: the values of all arrays, time stamps, and small pictures."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.file_systems import local_path
from epistream.lazy import lazy
from epistream.loader.doctor.facts.pictures import Frames, small_shape
from epistream.loader.exporting.opened_shard import KnownShard, KnownShards
from epistream.loader.exporting.packed_attributes import PackedAttributes
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.frames import decode_frames
from epistream.sharding.files.names import is_episode_url
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset

TIMESTAMP = "timestamp"
_LEAST_RUN, _MOST_RUN = 4, 4096


@dataclass(eq=False)
class OpenedEpisodes:
    """Reads episodes of a dataset one after the other; neighbours share what is open.

    A context manager, which may be entered again: indexes and decoders stay at hand, files are closed.

    Args:
        dataset: Whose.
    """

    dataset: Dataset
    _held: ExitStack = field(default_factory=ExitStack)
    _open: tuple[KnownShard, Blob] | None = None
    _decoders: dict[str, FrameDecoder] = field(default_factory=dict)
    _attributes: dict[int, PackedAttributes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shards = KnownShards(self.dataset)

    def __enter__(self) -> "OpenedEpisodes":
        return self

    def __exit__(self, *_: object) -> None:
        self._open = None
        self._held.close()

    def open(self, episode: int) -> "ReadEpisode":
        """An episode, by its position in the dataset.

        Raises:
            EpistreamError: If its shard cannot be read.
        """
        return ReadEpisode(self, episode, self._shards.of(int(self.dataset.episode_shard[episode])))

    def bytes_of(self, shard: KnownShard) -> Blob:
        """The packed bytes of a shard, open until another one's are asked for."""
        if self._open is None or self._open[0] is not shard:
            self._open = None
            self._held.close()
            self._open = shard, self._held.enter_context(shard.opened())
        return self._open[1]

    def decoder(self, feature: Feature) -> FrameDecoder:
        """Of a camera, to small pictures."""
        if feature.name not in self._decoders:
            self._decoders[feature.name] = FrameDecoder(feature, small_shape(feature.shape))
        return self._decoders[feature.name]

    def packed_attributes(self, shard: int, keys: Sequence[str]) -> PackedAttributes | None:
        """What the episodes of a tar on this machine say of themselves."""
        path = local_path(self.dataset.shard_url[shard])
        if path is None:
            return None
        if shard not in self._attributes:
            self._attributes = {shard: PackedAttributes(path, keys)}
        return self._attributes[shard]


@dataclass(eq=False)
class ReadEpisode:
    """One episode.

    Args:
        opened: What it is read through.
        number: Position in the dataset.
        shard: It is in.
    """

    opened: OpenedEpisodes
    number: int
    shard: KnownShard

    @lazy
    def length(self) -> int:
        """Steps."""
        return int(self.opened.dataset.episode_length[self.number])

    @property
    def key(self) -> str:
        """What it is called in its shard."""
        return self.shard.index.keys[self._in_shard]

    @property
    def meta(self) -> EpisodeMeta:
        """What its index says of it."""
        return self.shard.index.episodes[self._in_shard]

    @lazy
    def _in_shard(self) -> int:
        return int(self.opened.dataset.episode_in_shard[self.number])

    def values(self, feature: Feature) -> NDArray[Any]:
        """(length, *shape) of an array feature, as stored.

        Raises:
            EpistreamError: If it cannot be read.
        """
        index, dtype = self.shard.index, np.dtype(feature.dtype).newbyteorder("<")
        held = index.values.get(feature.name)
        if held is not None:
            first = int(index.first_row[self._in_shard])
            rows = np.ascontiguousarray(held[first : first + self.length])
            values: NDArray[Any] = rows.view(dtype).reshape(self.length, *feature.shape)
            return values
        offset = int(index.array_offset[feature.name][self._in_shard])
        data = self.opened.bytes_of(self.shard).read(offset, self.length * feature.step_bytes)
        return np.frombuffer(data, dtype).reshape(self.length, *feature.shape)

    def frames(self, feature: Feature, steps: Sequence[int]) -> Frames:
        """Small pictures of some steps, which ascend.

        Raises:
            EpistreamError: If one cannot be read or does not decode.
        """
        decoder, first = self.opened.decoder(feature), int(self.shard.index.first_row[self._in_shard])
        out = np.empty((len(steps), *decoder.shape), feature.dtype)
        rows = [first + step for step in steps]
        decode_frames(self.opened.bytes_of(self.shard), self.shard.index, decoder, rows, out, list(range(len(rows))))
        return dict(zip(steps, out, strict=True))

    def stored_run(self, feature: Feature) -> tuple[int, int] | None:
        """The longest run of equal pictures by their stored bytes: its first step, and how many; None of others.

        Raises:
            EpistreamError: If they cannot be read.
        """
        decoder, index = self.opened.decoder(feature), self.shard.index
        if decoder.is_video or feature.codec == "raw":
            return None
        first = int(index.first_row[self._in_shard])
        rows = slice(first, first + self.length)
        offset, size = index.frame_offset[feature.name][rows].astype(np.int64), index.frame_size[feature.name][rows]
        longest = (0, 0)
        for start, stop in _runs_of_equal(size):
            if stop - start > max(_LEAST_RUN, longest[1]):
                longest = max(longest, self._equal_bytes(offset, size, start, stop), key=lambda one: one[1])
        return longest

    def _equal_bytes(
        self, offset: NDArray[np.int64], size: NDArray[np.uint32], start: int, stop: int
    ) -> tuple[int, int]:
        """The longest run of equal pictures among neighbours of one size."""
        blob, best, begin, last = self.opened.bytes_of(self.shard), (0, 0), start, b""
        for step in range(start, min(stop, start + _MOST_RUN)):
            data = bytes(blob.read(int(offset[step]), int(size[step])))
            if data != last:
                begin, last = step, data
            if step + 1 - begin > best[1]:
                best = begin, step + 1 - begin
        return best if best[1] > 1 else (0, 0)

    def timestamps(self) -> NDArray[np.float64] | None:
        """(length,) those of a LeRobot data set, in seconds; None of others.

        Raises:
            EpistreamError: If they cannot be read.
        """
        dataset = self.opened.dataset
        url = dataset.index_url[int(dataset.episode_shard[self.number])]
        if not is_episode_url(url):
            return None
        from epistream.sharding.lerobot.carried import read_carried
        from epistream.sharding.lerobot.dataset import episode_source

        source, position = episode_source(url, dataset.storage_options)
        column = read_carried(source, position, [TIMESTAMP])[TIMESTAMP]
        times = np.asarray(column.to_numpy(zero_copy_only=False), np.float64).reshape(-1)
        return times if len(times) == self.length else None


def _runs_of_equal(values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    cuts = np.flatnonzero(np.diff(values)) + 1
    starts, stops = np.append(0, cuts), np.append(cuts, len(values))
    keep = stops - starts > 1
    return zip(starts[keep].tolist(), stops[keep].tolist(), strict=True)
