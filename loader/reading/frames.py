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
from epistream.sharding.pictures.resizing import resized

Decode = Literal["auto", "once", "per_read"]
Side = Annotated[int, Range(ge=1, le=(1 << 15) - 1)]
ImageSize = Annotated[tuple[Side, Side], "(height, width) in pixels, for example (240, 320)"]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class FrameOptions:
    """How a stream's camera frames are made.

    Args:
        image_size: (height, width) in pixels of all cameras; None leaves them as they are stored. Colour and grey
            cameras of bytes are filtered (Lanczos), so that shrinking does not alias; of everything else, depth
            above all, whose values must not be mixed, the nearest pixel is taken.
        decode: "per_read" decodes a frame whenever a window shows it; "once" keeps decoded frames in the node's cache
            as far as its budget goes; "auto" keeps them where all fit, within its budget if the user gave one, else
            within an eighth of the available memory and 4 GiB.

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
        num_bytes: of a frame as it is wanted.

    Raises:
        FormatError: frames of this codec cannot be decoded one by one.
    """

    def __init__(self, feature: Feature, shape: tuple[int, ...]) -> None:
        self.feature = feature
        self.shape = shape
        self._codec = codec_of(feature)
        self._is_whole = feature.shape == shape
        self.is_copy = self._is_whole and self._codec.storage == "array"
        self.num_bytes = replace(feature, shape=shape).step_bytes

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
    decode_frames(tar, index, decoder, needed.tolist(), out, places.tolist())


def decode_frames(
    tar: Blob, index: ShardIndex, decoder: FrameDecoder, needed: list[int], out: NDArray[Any], places: list[int]
) -> None:
    """As `draw_frames`, for frames that must be decoded."""
    name = decoder.feature.name
    # By hand: what numpy does for a few numbers takes as long as decoding a small frame.
    targets: dict[int, int] = {}
    again = []
    for row, place in zip(needed, places, strict=True):
        target = targets.setdefault(row, place)
        if target != place:
            again.append((place, target))
    frames = sorted(targets)
    offsets, sizes = index.frame_offset[name].take(frames).tolist(), index.frame_size[name].take(frames).tolist()
    num_done = 0
    try:
        for frame, data in zip(frames, tar.read_in_turn(offsets, sizes), strict=True):
            decoder.decode(data, out[targets[frame]], name)
            num_done += 1
    except FormatError as error:
        tar.check_unchanged()  # if somebody is writing to the file, that is what to tell
        raise FormatError(f"{_where(index, frames[num_done])}: {error}") from error
    for place, target in again:
        np.copyto(out[place], out[target])


def _where(index: ShardIndex, row: int) -> str:
    episode = int(np.searchsorted(index.first_row, row, side="right")) - 1
    return f"{index.shard_name}, {index.keys[episode]}, step {row - int(index.first_row[episode])}"
