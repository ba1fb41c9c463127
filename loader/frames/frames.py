"""Frames as a batch holds them: decoded and resized, each once, straight into their places in the batch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import FormatError
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.video_frames import decode_video
from epistream.options import Range, check
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex

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
            within an eighth of the available memory and 4 GiB; in an order by blocks, those of the blocks that windows
            are drawn from.

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
    # By hand: what numpy does for a few numbers takes as long as decoding a small frame.
    targets: dict[int, int] = {}
    again = []
    for row, place in zip(needed, places, strict=True):
        target = targets.setdefault(row, place)
        if target != place:
            again.append((place, target))
    frames = sorted(targets)
    if decoder.is_video:
        decode_video(tar, index, decoder, frames, lambda row, picture: np.copyto(out[targets[row]], picture))
    else:
        _decode_each(tar, index, decoder, frames, [out[targets[row]] for row in frames])
    for place, target in again:
        np.copyto(out[place], out[target])


def _decode_each(
    tar: Blob, index: ShardIndex, decoder: FrameDecoder, frames: list[int], targets: list[NDArray[Any]]
) -> None:
    """Decode frames (n,) that do not depend on each other, each into its target."""
    name = decoder.feature.name
    offsets, sizes = index.frame_offset[name].take(frames).tolist(), index.frame_size[name].take(frames).tolist()
    num_done = 0
    try:
        for target, data in zip(targets, tar.read_in_turn(offsets, sizes), strict=True):
            decoder.decode(data, target, name)
            num_done += 1
    except FormatError as error:
        tar.check_unchanged()  # if somebody is writing to the file, that is what to tell
        raise FormatError(f"{_where(index, frames[num_done])}: {error}") from error


def _where(index: ShardIndex, row: int) -> str:
    episode = int(np.searchsorted(index.first_row, row, side="right")) - 1
    return f"{index.shard_name}, {index.keys[episode]}, step {row - int(index.first_row[episode])}"
