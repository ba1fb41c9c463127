"""What a codec of camera frames promises: single frames to bytes and back."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, LayoutError

Frame = NDArray[Any]
Encoded = bytes | memoryview


class Codec(ABC):
    """Turns the frames of one camera into bytes and back; made by `codec_of`. Not shared between threads.

    Attributes:
        name: What features, options and messages call it.
        suffixes: That its tar members may have; the first one is written.
        storage: ``members`` is one tar member a frame, ``array`` the pixels as they are in one ``.npy`` an episode,
            ``video`` one MP4 an episode.
        library: The package whose version can change the bytes.
        ratios: Bytes of an encoded frame for each byte of its array, up to each quality. They only decide which
            episodes share a shard, before anything is encoded, so they are fixed.
        holds: dtypes and numbers of channels that can be encoded; None is all.
        is_lossy: Whether encoding changes pixels; how much, `quality` says.
        has_channel_order: Whether the bytes leave open which channel order their writer had. Then the feature says it.
        frames_are_independent: Whether each frame can be encoded, and its bytes decoded, without the others.
        is_written: Whether packing encodes it; else it is only read.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    storage: ClassVar[Literal["members", "array", "video"]] = "members"
    library: ClassVar[str]
    ratios: ClassVar[tuple[tuple[int, float], ...]]
    holds: ClassVar[frozenset[tuple[str, int]] | None] = None
    is_lossy: ClassVar[bool] = False
    has_channel_order: ClassVar[bool] = False
    frames_are_independent: ClassVar[bool] = True
    is_written: ClassVar[bool] = True

    def __init__(self, camera: str, dtype: str, shape: tuple[int, ...], channels: str | None) -> None:
        """Take what a feature says of the camera: its name, dtype and (H, W, C) of a frame, and its channel order."""
        self.camera = camera
        self.dtype = dtype
        self.shape = shape
        self.channels = channels
        self._whole: Frame | None = None

    @classmethod
    def can_hold(cls, dtype: str, num_channels: int) -> bool:
        """Whether such a frame can be encoded."""
        return cls.holds is None or (dtype, num_channels) in cls.holds

    @classmethod
    def ratio(cls, quality: int) -> float:
        """That of `ratios`."""
        return next(ratio for limit, ratio in cls.ratios if quality <= limit)

    @classmethod
    def problem(cls, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Why no feature can be such frames (H, W, C), or None."""
        return None

    @staticmethod
    def announced(data: Encoded, where: str) -> tuple[str, tuple[int, int, int]]:
        """Dtype and shape that the bytes of a frame announce; asked of members only.

        Raises:
            FormatError: If they are no such frame.
        """
        raise NotImplementedError

    def encode(self, frame: Frame, quality: int = 95) -> bytes:
        """The bytes that `decode_into` turns back into `frame`, about if the codec is lossy.

        The same frame gives the same bytes.

        Args:
            frame: (H, W, C) of the camera's dtype.
            quality: Of lossy codecs, 1 to 100.

        Raises:
            LayoutError: If the frame is not what the feature says.
        """
        if frame.shape != self.shape or frame.dtype != self.dtype:
            raise LayoutError(
                f"{self.camera}: a frame of {frame.dtype} {frame.shape}, wanted {self.dtype} {self.shape}."
            )
        return self._encode(np.ascontiguousarray(frame), quality)

    def decode_into(self, data: Encoded, out: Frame, where: str) -> None:
        """Decode one frame into `out`.

        Args:
            data: The frame's bytes as stored.
            out: (H, W, C) of the camera's dtype, C-contiguous and writable; every element is overwritten. The caller
                keeps it; after an error its content is undefined.
            where: Names the frame in messages.

        Raises:
            FormatError: If the bytes are no such frame. Size and colours are compared before anything is decoded,
                because a decoder given too small a buffer leaks or overruns it.
        """
        if out.shape != self.shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise FormatError(
                f"{where}: a buffer of {out.dtype} {out.shape}, wanted contiguous {self.dtype} {self.shape}."
            )
        self.decode(data, out, where)

    @abstractmethod
    def decode(self, data: Encoded, out: Frame, where: str) -> None:
        """`decode_into` for an `out` that is known to fit: its checks cost a tenth of decoding a small frame."""

    def decode_reduced(self, data: Encoded, height: int, width: int, where: str) -> Frame:
        """A frame as small as the decoder itself can make it, but not below `height` and `width` if it is not so.

        Returns:
            (h, w, C), valid until the next call.

        Raises:
            FormatError: As `decode_into`.
        """
        if self._whole is None:
            self._whole = np.empty(self.shape, self.dtype)
        self.decode(data, self._whole, where)
        return self._whole

    @abstractmethod
    def _encode(self, frame: Frame, quality: int) -> bytes:
        """The bytes of a frame that fits, C-contiguous."""
