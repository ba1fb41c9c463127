"""Planes that were kept become the colours that the decoder would have made, bit for bit."""

import ctypes
import mmap

import numpy as np
import pytest
from video.clips import OPTIONS, decoded, encoded, table_of

from epistream.errors import FormatError
from epistream.sharding.pictures.planes import Colours, planes_shape
from epistream.sharding.pictures.video import VideoDecoder

BT709, LIMITED, FULL = 1, 1, 2


@pytest.mark.parametrize(
    ("shape", "wanted"), [((480, 640, 3), (720, 640)), ((481, 639, 3), (723, 640)), ((1, 1, 3), (3, 2))]
)
def test_planes_take_half_the_bytes_of_colours(shape, wanted):
    assert planes_shape(shape) == wanted


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("marks", [(None, None), (BT709, LIMITED), (BT709, FULL)])
@pytest.mark.parametrize("shape", [(64, 96, 3), (63, 95, 3)])
def test_planes_become_the_colours_that_the_decoder_makes(name, marks, shape):
    data = encoded(name, 9, size=(64, 96), marks=marks)
    table = table_of(data)
    wanted = decoded(data, table, VideoDecoder(shape))
    kept = np.stack(decoded(data, table, VideoDecoder(shape, as_planes=True)))
    assert (kept.shape, kept.dtype) == ((9, *planes_shape(shape)), np.uint8)
    kept.flags.writeable = False
    colours, out = Colours(), np.zeros((9, *shape), np.uint8)
    for number in (8, 0, 3, 1, 2, 7, 4, 6, 5):
        colours.write(kept[number], table.stream, out[number])
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("size", [(66, 70), (90, 160), (98, 98), (72, 84), (70, 100), (34, 40)])
def test_planes_of_any_even_size_become_colours_and_nothing_is_read_beyond_them(size):
    data = encoded("h264", 3, size=size)
    table = table_of(data)
    wanted = decoded(data, table)
    kept = decoded(data, table, VideoDecoder((*size, 3), as_planes=True))
    # Behind the planes lies a page that nobody may read.
    pages = -(-kept[0].size // mmap.PAGESIZE) + 1
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    ctypes.CDLL(None, use_errno=True).mprotect(
        ctypes.c_void_p(whole.ctypes.data + (pages - 1) * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 0
    )
    at = whole[(pages - 1) * mmap.PAGESIZE - kept[0].size :][: kept[0].size].reshape(kept[0].shape)
    colours, out = Colours(), np.zeros((*size, 3), np.uint8)
    for number in range(3):
        at[...] = kept[number]
        colours.write(at, table.stream, out)
        np.testing.assert_array_equal(out, wanted[number])


def test_pixels_of_other_planes_are_refused():
    data = encoded("h264", 3, pixels="yuv444p")
    with pytest.raises(FormatError, match=r"clip: pixels as yuv444p, wanted yuv420p to be kept as planes\. Encode"):
        decoded(data, decoder=VideoDecoder((64, 64, 3), as_planes=True))
