"""How the frames of a camera that is stored as video depend on each other, in one shard: part of its index."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.lazy import lazy
from epistream.sharding.format.features import Feature
from epistream.sharding.pictures.video import VideoStream
from epistream.units import picture_size

Int64 = NDArray[np.int64]


class Run(NamedTuple):
    """Frames that are decoded together.

    Attributes:
        stream: Of their packets.
        rows: (n,) of the index, from a key frame on, in the order of decoding: no more than the wanted ones need.
        wanted: (m,) those of them that somebody asked for, ascending.
    """

    stream: VideoStream
    rows: Int64
    wanted: Int64


@dataclass(frozen=True, eq=False)
class Videos:
    """The videos of one camera, one an episode. E episodes; rows as in `ShardIndex`.

    Args:
        streams: Each of another kind; most shards have one.
        stream_of: (E,) uint32, which of them an episode's video is.
        back: (rows,) uint32, steps back to the key frame of a frame's group; 0 is a key frame. Every group is shown
            from its key frame on, and lies in the tar in the order of decoding; its last frames may lie behind the
            key frame of the next one in the episode, and need it too, as HEVC has it.
    """

    streams: tuple[VideoStream, ...]
    stream_of: NDArray[np.uint32] = field(repr=False)
    back: NDArray[np.uint32] = field(repr=False)

    @lazy
    def keys(self) -> Int64:
        """Rows of the key frames, and the number of rows."""
        return np.append(np.flatnonzero(self.back == 0), len(self.back))

    def stream(self, episode: int) -> VideoStream:
        """What a decoder must know of an episode's video."""
        return self.streams[int(self.stream_of[episode])]

    def runs(self, first_row: Int64, offset: NDArray[np.uint64], rows: Int64) -> Iterator[Run]:
        """What to decode for some frames: each group once.

        Args:
            first_row: (E,) of each episode.
            offset: (rows,) bytes of the tar at which frames begin.
            rows: (n,) wanted ones, in any order and as often as one likes.
        """
        wanted = np.unique(rows)
        if not len(wanted):
            return
        group = np.searchsorted(self.keys, wanted, side="right") - 1
        cuts = np.flatnonzero(np.diff(group)) + 1
        for of_group, number in zip(np.split(wanted, cuts), group[np.append(0, cuts)].tolist(), strict=True):
            key, stop = int(self.keys[number]), int(self.keys[number + 1])
            episode = int(np.searchsorted(first_row, key, side="right")) - 1
            stream, places = self.stream(episode), offset[key:stop]
            if stream.codec == "hevc" and _lead(places, offset, stop) and stop not in first_row[episode + 1 :][:1]:
                places = offset[key : stop + 1]
            if (places[1:] > places[:-1]).all():  # as most are: sorting a group takes longer than finding it
                needed = np.arange(key, int(of_group[-1]) + 1)
            else:
                order = np.argsort(places, kind="stable")
                last = int(np.flatnonzero(np.isin(order, of_group - key))[-1])
                needed = key + order[: last + 1]
            yield Run(stream, needed, of_group)

    def to_dict(self) -> list[dict[str, Any]]:
        """The streams as plain values; the arrays are tables of the index."""
        return [stream.to_dict() for stream in self.streams]

    def problems(self, feature: Feature, first_row: Int64, length: Int64) -> Iterator[str]:
        """What cannot be; `first_row` and `length` (E,) are known to be right."""
        height, width, _ = feature.shape
        for stream in self.streams:
            sides = (stream.height - height, stream.width - width)
            if (stream.depth is not None) != (feature.shape[2] == 1):
                yield f"{feature.name}: frames of {feature.shape}, wanted 1 channel of depth and 3 of colours"
            if stream.codec != feature.codec or not all(more in (0, 1) for more in sides):
                yield (
                    f"{feature.name}: a stream of {stream.codec} {picture_size((stream.height, stream.width))}, wanted "
                    f"{feature.codec} {picture_size((height, width))}"
                )
        if len(self.stream_of) != len(length) or len(self.back) != int(length.sum()):
            yield f"{feature.name}: {len(self.stream_of)} videos of {len(self.back)} frames, wanted {len(length)}"
            return
        if len(self.stream_of) and int(self.stream_of.max()) >= len(self.streams):
            yield f"{feature.name}: a video of stream {self.stream_of.max()}, wanted one of {len(self.streams)}"
        longest = int(self.back.max()) + 1
        if longest > (feature.group_steps or 0):
            yield f"{feature.name}: a group of {longest} steps, wanted at most {feature.group_steps}"
        wrong = self.back[1:].astype(np.int64) != self.back[:-1].astype(np.int64) + 1
        wrong &= self.back[1:] != 0
        if wrong.any() or self.back[first_row].any():
            row = int(np.argmax(wrong)) + 1 if wrong.any() else int(first_row[np.argmax(self.back[first_row] != 0)])
            yield f"{feature.name}, row {row}: {self.back[row]} steps back to a key frame, wanted groups without gaps"


def _lead(places: NDArray[np.uint64], offset: NDArray[np.uint64], stop: int) -> bool:
    """Whether frames of a group lie behind the key frame of the next one, which they need then."""
    return stop < len(offset) and bool(places.max() > offset[stop])


def streams_from(values: object) -> tuple[VideoStream, ...]:
    """The streams of a camera from the values of an index.

    Raises:
        FormatError: If they are no such thing.
    """
    if not isinstance(values, list) or not values:
        raise FormatError(f"video streams are {values!r:.80}, wanted a list")
    return tuple(VideoStream.from_dict(value) for value in values)


def join(streams: Sequence[VideoStream]) -> tuple[tuple[VideoStream, ...], NDArray[np.uint32]]:
    """The different streams of (E,) videos in the order of their first, and which each is (E,)."""
    numbers: dict[VideoStream, int] = {}
    stream_of = np.array([numbers.setdefault(stream, len(numbers)) for stream in streams], np.uint32)
    return tuple(numbers), stream_of


def join_videos(parts: Mapping[str, Sequence[tuple[VideoStream, NDArray[np.uint32]]]]) -> dict[str, Videos]:
    """The videos of a shard: by camera, stream and `Videos.back` of each episode."""
    joined = {}
    for name, episodes in parts.items():
        streams, stream_of = join([stream for stream, _ in episodes])
        joined[name] = Videos(streams, stream_of, np.concatenate([back for _, back in episodes]).astype(np.uint32))
    return joined
