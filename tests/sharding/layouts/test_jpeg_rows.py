import numpy as np
import pytest
from hdf5_files import jpeg, picture

from epistream.errors import LayoutError
from epistream.sharding.layouts.jpeg_rows import row_bytes, true_end

DATA = jpeg(picture(0))
SIZE = len(DATA)


@pytest.mark.parametrize("announced", [(), (SIZE,), (SIZE + 3, SIZE), (SIZE - 40,), (10**6,), (0, -5)])
@pytest.mark.parametrize("padding", [0, 1, 500])
def test_end_in_zero_padding_is_the_end_marker_whatever_is_announced(announced, padding):
    assert true_end(DATA + bytes(padding), announced, "x") == SIZE


def test_end_before_other_bytes_is_the_announced_one_on_a_marker():
    row = DATA + b"left over from a longer frame\xff\xd9\x01"
    assert true_end(row, (SIZE - 7, SIZE), "x") == SIZE


def test_end_before_other_bytes_without_a_good_length_is_the_last_marker():
    row = DATA + b"junk"
    assert true_end(row, (SIZE - 7,), "x") == SIZE


@pytest.mark.parametrize(
    ("row", "words"), [(bytes(100), "only zeros"), (DATA[:-2] + bytes(9), "no JPEG end marker"), (b"", "only zeros")]
)
def test_row_without_a_whole_picture_is_named(row, words):
    with pytest.raises(LayoutError, match=f"top, step 4: .*{words}"):
        true_end(row, (), "top, step 4")


@pytest.mark.parametrize("row", [np.frombuffer(DATA, np.uint8), np.bytes_(DATA), DATA, np.frombuffer(DATA, np.int8)])
def test_rows_of_every_kind_are_the_same_bytes(row):
    assert row_bytes(row) == DATA
