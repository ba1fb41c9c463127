"""Decoding one frame, under the name by which earlier releases offered it."""

from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.pictures.codec import Encoded, Frame


def decode_into(feature: Feature, data: Encoded, out: Frame, where: str) -> None:
    """Decode one frame of a camera into `out`, as `epistream.sharding.pictures.codec.Codec.decode_into` says.

    Raises:
        FormatError: If the bytes are no such frame, or `out` does not fit.
    """
    codec_of(feature).decode_into(data, out, where)
