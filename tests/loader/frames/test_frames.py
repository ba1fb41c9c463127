"""Frames of a shard put into a batch; a bad one is named by its episode and step."""

from types import SimpleNamespace

import numpy as np
import pytest

from epistream.cache.source.local import FileBlob, MappedBlob
from epistream.errors import FormatError
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.frames import draw_frames
from epistream.sharding.format.features import Feature, codec_of

CAMERA = "observation.images.top"
JPEG = Feature(CAMERA, "frames", "uint8", (24, 32, 3), codec="jpeg", jpeg_channels="rgb")
RAW = Feature(CAMERA, "frames", "uint8", (24, 32, 3), codec="raw")
NEEDED = np.array([4, 1, 4, 0, 5])
PLACES = np.array([7, 0, 3, 2, 5])


def shard_of(feature):
    """The bytes of two episodes of three steps, and what an index says of them."""
    pictures = np.random.default_rng(0).integers(0, 256, (6, *feature.shape), np.uint8)
    frames = [codec_of(feature).encode(picture) for picture in pictures]
    sizes = np.array([len(frame) for frame in frames])
    index = SimpleNamespace(
        shard_name="s.tar",
        keys=["a", "b"],
        first_row=np.array([0, 3]),
        frame_offset={CAMERA: np.cumsum(sizes) - sizes},
        frame_size={CAMERA: sizes},
    )
    return b"".join(frames), index


@pytest.fixture(params=["file", "mapped"])
def open_blob(request, tmp_path):
    def opened(data):
        (tmp_path / "s.tar").write_bytes(data)
        return FileBlob(tmp_path / "s.tar", len(data)) if request.param == "file" else MappedBlob(memoryview(data), "s")

    return opened


@pytest.mark.parametrize("feature", [JPEG, RAW], ids=["jpeg", "raw"])
def test_frames_stand_where_they_were_wanted_repeats_too(feature, open_blob):
    data, index = shard_of(feature)
    out = np.zeros((9, *feature.shape), np.uint8)
    draw_frames(open_blob(data), index, FrameDecoder(feature, feature.shape), NEEDED, out, PLACES)
    expected = np.zeros_like(out)
    for row, place in zip(NEEDED, PLACES, strict=True):
        start = index.frame_offset[CAMERA][row]
        codec_of(feature).decode_into(data[start : start + index.frame_size[CAMERA][row]], expected[place], "")
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("row", [0, 1, 4, 5])
@pytest.mark.parametrize("harm", ["torn", "outside"])
def test_a_bad_frame_is_named(row, harm, open_blob):
    data, index = shard_of(JPEG)
    if harm == "outside":
        index.frame_offset[CAMERA][row] = len(data)
    else:
        start = int(index.frame_offset[CAMERA][row])
        data = data[:start] + bytes(8) + data[start + 8 :]
    out = np.zeros((9, *JPEG.shape), np.uint8)
    where = f"s.tar, {'ab'[row // 3]}, step {row % 3}: "
    with pytest.raises(FormatError, match=f"^{where}"):
        draw_frames(open_blob(data), index, FrameDecoder(JPEG, JPEG.shape), NEEDED, out, PLACES)
