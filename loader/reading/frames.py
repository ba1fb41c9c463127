"""Frames as a batch holds them: decoded and resized, each once, straight into their places in the batch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import FormatError
from epistream.options import Range, check
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.resizing import resized

Decode = Literal["auto", "once", "per_read"]
Side = Annotated[int, Range(ge=1, le=(1 << 15) - 1)]
ImageSize = Annotated[tuple[Side, Side], "(height, width) in pixels, for example (224, 224)"]
Int64 = NDArray[np.int64]
# The frames of an episode by camera, each (T, H, W, C).
Frames = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class FrameOptions:
    """How a stream's camera frames are made.

    Args:
        image_size: (height, width) in pixels of all cameras; None leaves them as they are stored. Colour and grey
            cameras of bytes are filtered (Lanczos), so that shrinking does not alias; of everything else, depth
            above all, whose values must not be mixed, the nearest pixel is taken.
        decode: "per_read" decodes a frame whenever a window shows it; "once" decodes whole episodes, once per node,
            and keeps them in the cache as far as its budget goes; "auto" is "once" where all of them fit.

    Raises:
        OptionError: sizes below 1, or an unknown `decode`.
    """

    image_size: ImageSize | None = None
    decode: Decode = "auto"

    def __post_init__(self) -> None:
        check(self)

    def shown(self, feature: Feature) -> Feature:
        """The feature as batches hold it: the same, in another size if one was asked for."""
        if feature.kind != "frames" or self.image_size is None:
            return feature
        return replace(feature, shape=(*self.image_size, feature.shape[2]))

    def all_shown(self, features: Mapping[str, Feature]) -> dict[str, Feature]:
        """`shown` of each feature."""
        return {name: self.shown(feature) for name, feature in features.items()}


class FrameDecoder:
    """Turns the stored bytes of one camera's frames into arrays of one size. Not shared between threads.

    Shrinking begins in the decoder where a codec can do that (`Codec.decode_reduced`), and goes on by filtering.

    Args:
        feature: of the stored frames.
        shape: (H, W, C) of the frames to make.

    Attributes:
        is_copy: whether the stored bytes are the frame as it is wanted.

    Raises:
        FormatError: frames of this codec cannot be decoded one by one.
    """

    def __init__(self, feature: Feature, shape: tuple[int, ...]) -> None:
        self.feature = feature
        self.shape = shape
        self._codec = codec_of(feature)
        self._is_whole = feature.shape == shape
        self.is_copy = self._is_whole and self._codec.storage == "array"

    def decode(self, data: bytes | memoryview, out: NDArray[Any], where: str) -> None:
        """Make one frame.

        Args:
            data: as stored.
            out: (H, W, C), C-contiguous, of the feature's dtype; overwritten.
            where: names the frame in messages.

        Raises:
            FormatError: the bytes are no such frame.
        """
        if self._is_whole:
            self._codec.decode(data, out, where)
        else:
            out[...] = resized(self._codec.decode_reduced(data, self.shape[0], self.shape[1], where), self.shape)


def copy_frames(
    decoded: Mapping[int, NDArray[Any]], episodes: Int64, steps: Int64, out: NDArray[Any], rows: Int64
) -> None:
    """Copy steps (R, n) of decoded episodes into `out[rows]`; neighbouring steps in one go.

    Args:
        decoded: frames (T, H, W, C) by episode.
        episodes: (R,) keys of `decoded`.
        steps: (R, n).
        out: (B, n, H, W, C).
        rows: (R,) rows of `out`.
    """
    num_steps = steps.shape[1]
    adjacent = (steps[:, 1:] - steps[:, :-1] == 1).all(axis=1)
    for row, episode, wanted, whole in zip(
        rows.tolist(), episodes.tolist(), steps.tolist(), adjacent.tolist(), strict=True
    ):
        frames = decoded[episode]
        if whole:
            np.copyto(out[row], frames[wanted[0] : wanted[0] + num_steps])
        else:
            for position, step in enumerate(wanted):
                np.copyto(out[row, position], frames[step])


def draw_frames(
    tar: Blob, index: ShardIndex, decoder: FrameDecoder, needed: Int64, out: NDArray[Any], places: Int64
) -> None:
    """Put frames of a shard into a batch, each decoded once.

    Args:
        tar: the shard.
        index: of the shard.
        decoder: of the camera.
        needed: (N,) rows of the index.
        out: (M, H, W, C) frames of the batch.
        places: (N,) positions in `out`.

    Raises:
        FormatError: a frame that is torn; the message names it.
    """
    name = decoder.feature.name
    if decoder.is_copy:
        # Finding frames that are wanted twice would cost more than copying them twice. In the order of the file, since
        # HDF5 may hold neighbours in one compressed chunk.
        order = np.argsort(needed)
        offsets = index.frame_offset[name][needed[order]].tolist()
        flat = out.reshape(len(out), -1).view(np.uint8)
        tar.read_each(offsets, [flat[place].data for place in places[order].tolist()])
        return
    # By hand: np.unique takes twice as long, which shows in small batches.
    order = np.argsort(needed, kind="stable")
    rows, targets = needed[order], places[order].tolist()
    repeats = np.flatnonzero(rows[1:] == rows[:-1]) + 1
    frames, firsts = rows, targets
    if len(repeats):
        is_first = np.ones(len(rows), np.bool_)
        is_first[repeats] = False
        frames, firsts = rows[is_first], places[order[is_first]].tolist()
    offsets, sizes = index.frame_offset[name][frames].tolist(), index.frame_size[name][frames].tolist()
    num_done = 0
    try:
        for data, target in zip(tar.read_in_turn(offsets, sizes), firsts, strict=True):
            decoder.decode(data, out[target], name)
            num_done += 1
    except FormatError as error:
        tar.check_unchanged()  # if somebody is writing to the file, that is what to tell
        raise FormatError(f"{_where(index, int(frames[num_done]))}: {error}") from error
    for repeat in repeats.tolist():
        np.copyto(out[targets[repeat]], out[targets[repeat - 1]])


def _where(index: ShardIndex, row: int) -> str:
    episode = int(np.searchsorted(index.first_row, row, side="right")) - 1
    return f"{index.shard_name}, {index.keys[episode]}, step {row - int(index.first_row[episode])}"
