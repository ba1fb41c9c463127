import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from hdf5_files import picture
from PIL import Image

from epistream.errors import FormatError, LayoutError
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.pictures.codecs import CODECS

# What every codec promises, a row each: what its tar members end with, how they hold frames, what it can encode of
# a list of frames, and the estimates at qualities 50, 90 and 95, which decide which episodes share a shard.
FRAMES = [("uint8", 1), ("uint8", 2), ("uint8", 3), ("uint8", 4), ("uint16", 1), ("uint16", 3), ("float32", 1)]
PROMISED = {
    "jpeg": ((".jpg", ".jpeg"), "members", [("uint8", 1), ("uint8", 3)], [0.05, 0.08, 0.12]),
    "png": ((".png",), "members", FRAMES[:5], [0.5, 0.5, 0.5]),
    "raw": ((".npy",), "array", FRAMES, [1.0, 1.0, 1.0]),
    "webp": ((".webp",), "members", [("uint8", 3), ("uint8", 4)], [0.4, 0.4, 0.4]),
}


def test_every_codec_has_a_row():
    assert [name for name, codec in CODECS.items() if codec.frames_are_independent] == list(PROMISED)
    assert [name for name, codec in CODECS.items() if not codec.frames_are_independent] == ["h264", "hevc", "av1"]


@pytest.mark.parametrize("name", PROMISED)
def test_codec_is_what_it_promises(name):
    codec = CODECS[name]
    holds = [frame for frame in FRAMES if codec.can_hold(*frame)]
    assert (codec.suffixes, codec.storage, holds, [codec.ratio(q) for q in (50, 90, 95)]) == PROMISED[name]


@pytest.mark.parametrize("name", PROMISED)
def test_codec_gives_back_what_it_can_hold(name):
    for dtype, num_channels in PROMISED[name][2]:
        frame = np.repeat(picture(1)[:, :, :1], num_channels, axis=2).astype(dtype)
        feature = camera(name, frame.shape, dtype)
        data = codec_of(feature).encode(frame)
        np.testing.assert_allclose(decode(feature, data), frame, atol=2 if CODECS[name].is_lossy else 0)
        if CODECS[name].storage == "members":
            assert CODECS[name].announced(data, "x") == (dtype, frame.shape)


def test_suffixes_tell_codecs_apart():
    suffixes = [suffix for name in PROMISED for suffix in CODECS[name].suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert ".mp4" not in suffixes  # of which the file itself says what it is


def camera(codec="jpeg", shape=(24, 32, 3), dtype="uint8", channels="rgb"):
    channels = channels if codec == "jpeg" and shape[2] == 3 else None
    return Feature("observation.images.top", "frames", dtype, shape, codec, channels)


def decode(feature, data):
    out = np.full(feature.shape, 77, feature.dtype)
    codec_of(feature).decode_into(data, out, "shard, step 3")
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
    data = codec_of(camera()).encode(picture(2))
    codec_of(camera()).decode_into(memoryview(data), batch[1], "x")
    assert batch[1].any()
    assert not batch[0].any()
    assert not batch[2].any()


EXACT = [
    (codec, dtype, shape)
    for codec in ("png", "raw")
    for dtype, shape in (("uint8", (24, 32, 3)), ("uint8", (7, 5, 1)), ("uint16", (9, 4, 1)))
]


@pytest.mark.parametrize(
    ("codec", "dtype", "shape"), [*EXACT, ("webp", "uint8", (24, 32, 3)), ("webp", "uint8", (5, 7, 4))]
)
def test_lossless_codecs_give_back_every_bit(codec, dtype, shape):
    frame = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    feature = camera(codec, shape, dtype)
    np.testing.assert_array_equal(decode(feature, codec_of(feature).encode(frame)), frame)


def test_raw_float_depth_gives_back_every_bit():
    frame = np.random.default_rng(0).normal(size=(6, 5, 1)).astype(np.float32)
    feature = camera("raw", (6, 5, 1), "float32")
    np.testing.assert_array_equal(decode(feature, codec_of(feature).encode(frame)), frame)


def test_png_of_16_bits_is_what_pillow_reads():
    frame = np.arange(20, dtype=np.uint16).reshape(4, 5, 1) * 3000
    data = codec_of(camera("png", (4, 5, 1), "uint16")).encode(frame)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), frame[:, :, 0])


@pytest.mark.parametrize("codec", ["jpeg", "png", "webp"])
def test_encode_same_frame_gives_same_bytes(codec):
    assert codec_of(camera(codec)).encode(picture(4)) == codec_of(camera(codec)).encode(picture(4).copy())


def test_encode_frame_of_a_sliced_array_equals_a_contiguous_one():
    wide = np.stack([picture(0), picture(1)], axis=2).reshape(24, 64, 3)
    assert codec_of(camera()).encode(wide[:, ::2]) == codec_of(camera()).encode(wide[:, ::2].copy())


PICTURE = codec_of(camera()).encode(picture(0))
PNG = codec_of(camera("png")).encode(picture(0))


def webp(moves=False, **options):
    target = io.BytesIO()
    pictures = [Image.fromarray(picture(step)) for step in range(3)]
    pictures[0].save(target, "WEBP", **options, **({"save_all": True, "append_images": pictures[1:]} if moves else {}))
    return target.getvalue()


WEBP = webp(quality=90)


def test_webp_with_loss_is_what_pillow_reads():
    np.testing.assert_array_equal(decode(camera("webp"), WEBP), np.asarray(Image.open(io.BytesIO(WEBP))))
    assert CODECS["webp"].announced(WEBP, "x") == ("uint8", (24, 32, 3))


@pytest.mark.parametrize(
    ("feature", "data", "words"),
    [
        (camera(), b"", "no JPEG"),
        (camera(), b"\xff\xd8nonsense", "no JPEG"),
        (camera(), PICTURE[:-20], "does not decode"),
        (camera(shape=(24, 31, 3)), PICTURE, "32x24x3 .*, wanted 31x24x3 .width x height x channels"),
        (camera(shape=(8, 8, 3)), PICTURE, "wanted"),
        (camera(shape=(24, 32, 1)), PICTURE, "wanted"),
        (camera("png"), PICTURE, "no PNG"),
        (camera("png"), PNG[:20], "no PNG"),
        (camera("png"), PNG[: len(PNG) // 2], "does not decode"),
        (camera("png", (24, 30, 3)), PNG, "32x24 .width x height., wanted 30x24 .width"),
        (camera("png", (24, 32, 1)), PNG, "mode RGB"),
        (camera("webp"), PICTURE, "no WebP"),
        (camera("webp"), b"", "0 bytes that are no WebP"),
        (camera("webp"), WEBP[:-40], "WebP"),
        (camera("webp", (24, 30, 3)), WEBP, r"a WebP of 32x24 \(width x height\), wanted 30x24 "),
        (camera("webp", (24, 32, 4)), WEBP, "wanted 32x24x4 "),
        (camera("webp"), webp(moves=True), "a WebP that moves, wanted one picture"),
        (camera("raw"), bytes(24 * 32 * 3 - 1), "2,303 bytes, wanted 2,304"),
    ],
)
def test_decode_of_bytes_that_are_no_such_frame_names_the_place(feature, data, words):
    with pytest.raises(FormatError, match=words) as caught:
        decode(feature, data)
    assert str(caught.value).startswith("shard, step 3: ")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width, height):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png_of(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


FEW_PIXELS = chunk(b"IDAT", zlib.compress(bytes(24 * (1 + 3 * 32))))
HUGE = (13_000, 13_000)


@pytest.mark.parametrize(
    "data",
    [
        png_of(header(32, 24), header(*HUGE), FEW_PIXELS),
        png_of(header(*HUGE), header(32, 24), FEW_PIXELS),
        png_of(header(32, 24), chunk(b"gAMA", bytes(4)), header(*HUGE), FEW_PIXELS),
        png_of(chunk(b"gAMA", bytes(4)), header(32, 24), header(*HUGE), FEW_PIXELS),
        png_of(chunk(b"IHDR", bytes(13) + bytes(4)), header(*HUGE), FEW_PIXELS),
        png_of(header(*HUGE), FEW_PIXELS),
        png_of(FEW_PIXELS, header(*HUGE)),
        png_of(header(32, 24)),
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16_382).to_bytes(3, "little") * 2,
        b"RIFF\x1e\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little") + bytes(5),
        b"RIFF\x1e\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383),
    ],
)
def test_picture_that_a_decoder_would_take_for_a_larger_one_is_refused_before_it_is_decoded(data, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("a decoder was asked")

    monkeypatch.setattr(Image, "open", opened)
    with pytest.raises(FormatError, match=r"^shard, step 3: "):
        decode(camera("png" if data.startswith(b"\x89") else "webp"), data)


def test_png_with_other_chunks_around_its_header_and_pixels_is_read():
    told = chunk(b"tEXt", b"Comment\0a robot")
    data = png_of(header(32, 24), told, FEW_PIXELS, told)
    np.testing.assert_array_equal(decode(camera("png"), data), np.zeros((24, 32, 3), np.uint8))


def test_webp_whose_picture_is_larger_than_its_canvas_is_refused():
    large = io.BytesIO()
    Image.new("RGB", (640, 480)).save(large, "WEBP")
    stream = large.getvalue()[12:]
    canvas = b"VP8X\x0a\0\0\0\0\0\0\0" + (31).to_bytes(3, "little") + (23).to_bytes(3, "little")
    body = b"WEBP" + canvas + stream
    with pytest.raises(FormatError, match="WebP"):
        decode(camera("webp"), b"RIFF" + struct.pack("<I", len(body)) + body)


def test_jpeg_of_two_frame_headers_is_refused():
    start = PICTURE.index(b"\xff\xc0")
    frame = PICTURE[start : start + 2 + int.from_bytes(PICTURE[start + 2 : start + 4], "big")]
    huge = frame[:5] + struct.pack(">HH", 65_000, 65_000) + frame[9:]
    for data in (
        PICTURE[:start] + frame + huge + PICTURE[start + len(frame) :],
        PICTURE[:start] + huge + PICTURE[start:],
    ):
        with pytest.raises(FormatError, match="JPEG"):
            decode(camera(), data)


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
        codec_of(camera()).decode_into(PICTURE, out, "x")


def test_encode_of_another_shape_is_refused():
    with pytest.raises(LayoutError, match="wanted uint8"):
        codec_of(camera()).encode(np.zeros((24, 31, 3), np.uint8))


def test_programs_written_for_earlier_releases_decode_a_frame():
    from epistream.sharding.codecs import decode_into
    from epistream.sharding.features import Feature as EarlierFeature

    feature, out = (
        EarlierFeature("observation.images.top", "frames", "uint8", (24, 32, 3), "png"),
        np.empty((24, 32, 3), "u1"),
    )
    decode_into(feature, PNG, out, "frame 0")
    np.testing.assert_array_equal(out, picture(0))
