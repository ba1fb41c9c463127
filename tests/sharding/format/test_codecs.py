import io

import numpy as np
import pytest
import simplejpeg
from hdf5_files import picture
from PIL import Image

from epistream.errors import FormatError, LayoutError
from epistream.sharding.format.codecs import decode_into, encode_frame
from epistream.sharding.format.features import Feature


def camera(codec="jpeg", shape=(24, 32, 3), dtype="uint8", channels="rgb"):
    channels = channels if codec == "jpeg" and shape[2] == 3 else None
    return Feature("observation.images.top", "frames", dtype, shape, codec, channels)


def decode(feature, data):
    out = np.full(feature.shape, 77, feature.dtype)
    decode_into(feature, data, out, "shard, step 3")
    return out


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_jpeg_decoded_equals_pillow_in_the_recorded_channel_order(channels):
    frame = picture(1)
    data = simplejpeg.encode_jpeg(frame, quality=95, colorspace="RGB", colorsubsampling="444")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    expected = expected if channels == "rgb" else expected[:, :, ::-1]
    np.testing.assert_allclose(decode(camera(channels=channels), data), expected, atol=2)


def test_jpeg_grey_in_a_colour_feature_gives_three_equal_channels():
    data = simplejpeg.encode_jpeg(np.full((24, 32, 1), 90, np.uint8), colorspace="GRAY", colorsubsampling="Gray")
    assert (decode(camera(), data) == 90).all()


def test_jpeg_decodes_into_one_row_of_a_larger_batch():
    batch = np.zeros((3, 24, 32, 3), np.uint8)
    data = encode_frame(camera(), picture(2))
    decode_into(camera(), memoryview(data), batch[1], "x")
    assert batch[1].any()
    assert not batch[0].any()
    assert not batch[2].any()


@pytest.mark.parametrize("codec", ["png", "raw"])
@pytest.mark.parametrize(("dtype", "shape"), [("uint8", (24, 32, 3)), ("uint8", (7, 5, 1)), ("uint16", (9, 4, 1))])
def test_lossless_codecs_give_back_every_bit(codec, dtype, shape):
    frame = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    feature = camera(codec, shape, dtype)
    np.testing.assert_array_equal(decode(feature, encode_frame(feature, frame)), frame)


def test_raw_float_depth_gives_back_every_bit():
    frame = np.random.default_rng(0).normal(size=(6, 5, 1)).astype(np.float32)
    feature = camera("raw", (6, 5, 1), "float32")
    np.testing.assert_array_equal(decode(feature, encode_frame(feature, frame)), frame)


def test_png_of_16_bits_is_what_pillow_reads():
    frame = np.arange(20, dtype=np.uint16).reshape(4, 5, 1) * 3000
    data = encode_frame(camera("png", (4, 5, 1), "uint16"), frame)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), frame[:, :, 0])


@pytest.mark.parametrize("codec", ["jpeg", "png"])
def test_encode_same_frame_gives_same_bytes(codec):
    assert encode_frame(camera(codec), picture(4)) == encode_frame(camera(codec), picture(4).copy())


def test_encode_frame_of_a_sliced_array_equals_a_contiguous_one():
    wide = np.stack([picture(0), picture(1)], axis=2).reshape(24, 64, 3)
    assert encode_frame(camera(), wide[:, ::2]) == encode_frame(camera(), wide[:, ::2].copy())


PICTURE = encode_frame(camera(), picture(0))
PNG = encode_frame(camera("png"), picture(0))


@pytest.mark.parametrize(
    ("feature", "data", "words"),
    [
        (camera(), b"", "no JPEG"),
        (camera(), b"\xff\xd8nonsense", "no JPEG"),
        (camera(), PICTURE[:-20], "does not decode"),
        (camera(shape=(24, 31, 3)), PICTURE, r"\(24, 32, 3\), wanted \(24, 31, 3\)"),
        (camera(shape=(8, 8, 3)), PICTURE, "wanted"),
        (camera(shape=(24, 32, 1)), PICTURE, "wanted"),
        (camera("png"), PICTURE, "no PNG"),
        (camera("png"), PNG[:20], "no PNG"),
        (camera("png"), PNG[: len(PNG) // 2], "does not decode"),
        (camera("png", (24, 30, 3)), PNG, r"\(24, 32\), wanted \(24, 30\)"),
        (camera("png", (24, 32, 1)), PNG, "mode RGB"),
        (camera("raw"), bytes(24 * 32 * 3 - 1), "2,303 bytes, wanted 2,304"),
    ],
)
def test_decode_of_bytes_that_are_no_such_frame_names_the_place(feature, data, words):
    with pytest.raises(FormatError, match=words) as caught:
        decode(feature, data)
    assert str(caught.value).startswith("shard, step 3: ")


def test_decode_cmyk_jpeg_is_refused():
    target = io.BytesIO()
    Image.new("CMYK", (32, 24)).save(target, "JPEG")
    with pytest.raises(FormatError, match="CMYK"):
        decode(camera(), target.getvalue())


@pytest.mark.parametrize(
    "out",
    [np.zeros((24, 32, 4), np.uint8), np.zeros((24, 32, 3), np.uint16), np.zeros((24, 64, 3), np.uint8)[:, ::2]],
    ids=["shape", "dtype", "strides"],
)
def test_decode_into_a_buffer_that_does_not_fit_is_refused(out):
    with pytest.raises(FormatError, match="a buffer of"):
        decode_into(camera(), PICTURE, out, "x")


def test_encode_of_another_shape_is_refused():
    with pytest.raises(LayoutError, match="wanted uint8"):
        encode_frame(camera(), np.zeros((24, 31, 3), np.uint8))
