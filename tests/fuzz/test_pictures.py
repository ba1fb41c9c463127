"""Pictures that are damaged: each codec of single frames decodes them to the size it was told, or names them."""

import io

import numpy as np
import pytest
from fuzzing import damaged, fuzzed, only_named_errors
from hdf5_files import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.pictures.codecs import CODECS

SHAPE = (24, 32, 3)


def saved(kind, **options):
    target = io.BytesIO()
    Image.fromarray(picture(3)).save(target, kind, **options)
    return target.getvalue()


PICTURES = {
    "jpeg": (saved("JPEG"), saved("JPEG", progressive=True), saved("JPEG", subsampling=0, optimize=True)),
    "png": (saved("PNG"), saved("PNG", dpi=(72, 72), compress_level=0)),
    "webp": (saved("WEBP"), saved("WEBP", lossless=True), saved("WEBP", exif=b"Exif\0\0", icc_profile=b"none")),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # a header that says so, before it is refused
@fuzzed
@given(data=st.data())
def test_damaged_picture_is_decoded_to_its_size_or_named(name, data):
    order = "rgb" if CODECS[name].has_channel_order else None
    codec = codec_of(Feature("observation.images.top", "frames", "uint8", SHAPE, name, order))
    torn = data.draw(damaged(data.draw(st.sampled_from(PICTURES[name]))))
    out = np.zeros((3, *SHAPE), np.uint8)
    with only_named_errors():
        codec.decode_into(torn, out[1], "frame 1")
    assert not out[0].any()
    assert not out[2].any()
    with only_named_errors():
        height, width, _ = codec.decode_reduced(torn, 8, 8, "frame 1").shape
        assert (8, 8) <= (height, width) <= SHAPE[:2]
    with only_named_errors():
        CODECS[name].announced(torn, "frame 1")
