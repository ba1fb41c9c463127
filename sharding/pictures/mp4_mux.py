"""Videos joined into an MP4 by copying their packets: nothing is decoded, and every frame keeps its exact time."""

import contextlib
import os
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epistream.errors import EpistreamError, FormatError, PackError
from epistream.sharding.pictures.mp4_index import WrittenFrames, head_bytes, index_bytes, ticks_of
from epistream.sharding.pictures.video import VideoStream

# A rate is no stranger than 30000/1001.
_MOST_DENOMINATOR = 1001


def _attempt() -> str:
    """A number that no other writer of the same file has, on this machine or another."""
    return f"{os.getpid()}{secrets.randbelow(1_000_000):06d}"


@dataclass(frozen=True, eq=False)
class Packets:
    """The frames of a video in the order of decoding. T frames.

    Args:
        step: (T,) int64, in the order of presentation.
        is_key: (T,) bool, whether it decodes without others.
        size: (T,) int64, bytes.
    """

    step: NDArray[np.int64]
    is_key: NDArray[np.bool_]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.size)

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        return int(self.size.sum())


@dataclass(frozen=True, eq=False)
class Clip:
    """One video of a file.

    Args:
        stream: What a decoder must know.
        fps: Frames a second.
        packets: The first one is a key frame, and shown first; each step from 0 on is there once.
        data: Their bytes, one behind the other, in pieces of any size. Each is written before the next one is taken.
    """

    stream: VideoStream
    fps: Fraction
    packets: Packets
    data: Iterable[bytes | memoryview]


def can_join(a: VideoStream, b: VideoStream) -> bool:
    """Whether a decoder of one reads the other as well, so that both may lie in one file."""
    return a == b


def write_mp4(
    path: str | os.PathLike[str], clips: Sequence[Clip], where: str, *, publishes: bool = True
) -> list[float]:
    """Write clips one behind the other; under another name until it is whole, and the same bytes for the same clips.

    Args:
        path: Of the file, in an existing folder; replaced if it is there.
        clips: At least one, all of the same rate, and each to be joined with the first. Their bytes are taken a piece
            at a time.
        where: Names the video in messages.
        publishes: Whether others look for it at `path`. Else it is written there at once, and it is the caller who
            waits until it is on the disk.

    Returns:
        Seconds at which each clip begins: frame i of it is shown i / fps later.

    Raises:
        FormatError: If they are no such clips.
        PackError: If the disk is full or fails; nothing is left behind.
    """
    target = Path(path)
    _refuse_others(clips, where)
    file = _File(target.with_name(f".{target.name}.{_attempt()}.tmp") if publishes else target, target)
    try:
        starts = _write(file, clips, where)
        if publishes:
            file.publish()
        file.close()
    except BaseException:
        file.discard()
        raise
    return [float(start / clips[0].fps) for start in starts]


def probe_fps(time: NDArray[np.float64], tolerance_s: float = 1e-4) -> Fraction | None:
    """Frames a second at which all frames are shown, None if they come unevenly or there is only one.

    Args:
        time: (T,) seconds of each frame, ascending.
        tolerance_s: How far a frame may be from its place; what LeRobot allows if it is not said.
    """
    if len(time) < 2 or not time[-1] > time[0]:
        return None
    fps = Fraction((len(time) - 1) / float(time[-1] - time[0])).limit_denominator(_MOST_DENOMINATOR)
    if not fps:
        return None
    off = np.abs(time - time[0] - np.arange(len(time)) / float(fps)).max()
    return fps if off <= tolerance_s else None


def _refuse_others(clips: Sequence[Clip], where: str) -> None:
    if not clips:
        raise FormatError(f"{where}: no videos to be written, wanted at least one.")
    try:
        ticks_of(clips[0].fps)
    except FormatError as error:
        raise FormatError(f"{where}: {error}.") from error
    for number, clip in enumerate(clips):
        if clip.fps != clips[0].fps:
            raise FormatError(
                f"{where}: video {number} has {clip.fps} frames a second, the first one {clips[0].fps}, wanted one "
                "rate. Write it to a file of its own."
            )
        if not can_join(clip.stream, clips[0].stream):
            raise FormatError(
                f"{where}: video {number} has other parameters than the first one, wanted the same. Write it to a file "
                "of its own, or encode both again."
            )


def _write(file: "_File", clips: Sequence[Clip], where: str) -> list[int]:
    """All of the file; gives the steps before each clip."""
    head = head_bytes(clips[0].stream)
    file.write(head + struct.pack(">I4sQ", 1, b"mdat", 0))  # with room for its size, which is known at the end
    starts, places, num_frames = [], [], 0
    for number, clip in enumerate(clips):
        named = f"{where}, video {number}"
        _refuse_packets(clip.packets, named)
        starts.append(num_frames)
        places.append(file.num_bytes)
        for piece in clip.data:
            file.write(piece)
        found, wanted = file.num_bytes - places[-1], clip.packets.num_bytes
        if found != wanted:
            raise FormatError(f"{named}: {found:,} bytes, wanted {wanted:,}, which its packets have.")
        num_frames += len(clip.packets)
    if not min(clip.packets.size.min() for clip in clips):
        raise FormatError(f"{where}: a frame of no bytes, wanted a picture in each.")
    file.write_at(len(head) + 8, struct.pack(">Q", file.num_bytes - len(head)))
    frames = WrittenFrames(
        np.concatenate([start + clip.packets.step for start, clip in zip(starts, clips, strict=True)]),
        np.concatenate([clip.packets.is_key for clip in clips]),
        np.concatenate([clip.packets.size for clip in clips]),
        np.array(places, np.int64),
        np.diff(starts, append=num_frames),
    )
    try:
        file.write(index_bytes(clips[0].stream, clips[0].fps, frames))
    except FormatError as error:
        raise FormatError(f"{where}: {error}. Write several files.") from error
    return starts


def _refuse_packets(packets: Packets, where: str) -> None:
    steps = packets.step
    if not len(steps):
        raise FormatError(f"{where}: no frames, wanted at least one.")
    in_order = np.arange(len(steps))
    if (steps != in_order).any() and not np.array_equal(np.sort(steps), in_order):
        raise FormatError(
            f"{where}: steps from {steps.min()} to {steps.max()} of {len(steps)} frames, wanted each once."
        )
    if steps[0] != 0 or not packets.is_key[0]:
        raise FormatError(f"{where}: step {steps[0]} first, which is no key frame or not shown first. Encode it again.")


class _File:
    """A file under another name; what the disk says becomes a `PackError`."""

    def __init__(self, temporary: Path, target: Path) -> None:
        self._temporary, self._target = temporary, target
        self.num_bytes = 0
        try:
            self._file = temporary.open("wb", buffering=0)
        except OSError as error:
            raise self._problem(error) from error

    def write(self, data: bytes | memoryview) -> None:
        """At the end."""
        self.write_at(self.num_bytes, data)
        self.num_bytes += len(data)

    def write_at(self, place: int, data: bytes | memoryview) -> None:
        """In place of others."""
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self._file.fileno(), rest, place)
                rest, place = rest[written:], place + written
        except OSError as error:
            raise self._problem(error) from error

    def publish(self) -> None:
        """Under its name, once its bytes are on disk."""
        try:
            os.fsync(self._file.fileno())
            self._temporary.replace(self._target)
        except OSError as error:
            raise self._problem(error) from error

    def close(self) -> None:
        """All of it was written."""
        try:
            self._file.close()
        except OSError as error:
            raise self._problem(error) from error

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # what was to be written is not wanted any more
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _problem(self, error: OSError) -> EpistreamError:
        return PackError(
            f"{self._target}: cannot write after {self.num_bytes:,} bytes ({error.strerror or error}). Make room, or "
            "choose another folder; nothing was published."
        )
