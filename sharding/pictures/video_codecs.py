"""Codecs whose frames depend on each other: one MP4 a camera and episode, decoded by groups (`VideoDecoder`)."""

from typing import ClassVar

from epistream.errors import FormatError
from epistream.sharding.pictures.codec import Codec, Encoded, Frame

_WITH_DEPTH = frozenset({("uint8", 3), ("uint16", 1)})


class Video(Codec):
    """Colour pictures of bytes as H.264; what packing writes decodes fast, see `VideoEncoder`."""

    name = "h264"
    suffixes = (".mp4",)
    storage = "video"
    library = "av"
    # Of rendered and of recorded frames at crf 18; one number, since only sizes of shards follow from it.
    ratios = ((100, 0.006),)
    holds: ClassVar[frozenset[tuple[str, int]]] = frozenset({("uint8", 3)})
    is_lossy = True
    frames_are_independent = False

    @classmethod
    def problem(cls, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Frames that cannot be encoded."""
        wanted = " or ".join(f"{kind} with {count} channel{'s'[: count > 1]}" for kind, count in sorted(cls.holds))
        return None if cls.can_hold(dtype, shape[2]) else f"{dtype} {shape} as video, wanted {wanted}"

    def decode(self, data: Encoded, out: Frame, where: str) -> None:
        """Not by itself."""
        raise FormatError(f"{where}: a packet of a video, wanted the whole group that it is part of.")

    def _encode(self, frame: Frame, quality: int) -> bytes:
        raise FormatError(f"{self.camera}: one frame to be encoded as {self.name}, wanted those of an episode.")


class Hevc(Video):
    """H.265, as others recorded it: read, never written; also depth maps, in millimetres."""

    name = "hevc"
    holds = _WITH_DEPTH
    is_written = False


class Av1(Video):
    """AV1, as LeRobot records it: read, never written; also depth maps, in millimetres."""

    name = "av1"
    holds = _WITH_DEPTH
    is_written = False
