"""The size that the decoder of a picture will allocate, read from the file's own structure before it is asked.

Whoever makes a picture that says two sizes wants one of them compared and the other allocated.
"""

import struct

from epistream.errors import FormatError
from epistream.sharding.pictures.codec import Encoded

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The first chunk: 13 bytes, which begin with width and height of 32 bits each, and a checksum: PNG 3rd edition, 11.2.1.
_PNG_HEADER = b"\0\0\0\x0dIHDR"
_PNG_SECOND_CHUNK = 33


def codec_of_bytes(data: Encoded) -> str | None:
    """Which codec of ours a picture's first bytes are of; None if of none."""
    head = bytes(data[:12])
    if head.startswith(_PNG_SIGNATURE):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else None


def png_size(data: Encoded, where: str) -> tuple[int, int]:
    """Height and width of a PNG: those of its one IHDR, the first chunk.

    Raises:
        FormatError: If it has none or several before its pixels (a decoder takes the last), or none of these follow.
    """
    if len(data) < 24 or bytes(data[:8]) != _PNG_SIGNATURE:
        raise FormatError(f"{where}: {len(data)} bytes that are no PNG, wanted a PNG picture.")
    has_header, position = bytes(data[8:16]) == _PNG_HEADER, _PNG_SECOND_CHUNK
    while has_header and position + 8 <= len(data):
        num_bytes, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            width, height = struct.unpack_from(">II", data, 16)
            return height, width
        if kind == b"IHDR":
            break
        position += 12 + num_bytes
    raise FormatError(f"{where}: a PNG without exactly one header before its pixels, wanted one. Write it again.")


def webp_size(data: Encoded, where: str) -> tuple[int, int]:
    """Height and width of a WebP: those of its canvas, or of its only bitstream.

    Raises:
        FormatError: If it is none.

    Source: RFC 9649, sections 2.5 to 2.7 and 3.4; RFC 6386, section 9.1.
    """
    head = bytes(data[:30])
    if len(head) == 30 and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = head[12:16]
        if kind == b"VP8X":
            return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
        if kind == b"VP8L" and head[20] == 0x2F:
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
        if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", head, 26)
            return height & 0x3FFF, width & 0x3FFF
    raise FormatError(f"{where}: {len(data)} bytes that are no WebP, wanted one.")
