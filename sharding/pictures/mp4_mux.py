"""Videos joined into an MP4 by copying their packets: nothing is decoded, and every frame keeps its exact time."""

import contextlib
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epistream.errors import EpistreamError, FormatError, PackError
from epistream.sharding.pictures.mp4_index import WrittenFrames, head_bytes, index_bytes, ticks_of
from epistream.sharding.pictures.video import VideoStream

_BUFFER_BYTES = 1 << 20
# A rate is no stranger than 30000/1001.
_MOST_DENOMINATOR = 1001


@dataclass(frozen=True)
class Clip:
    """One video of a file.

    Args:
        stream: What a decoder must know.
        fps: Frames a second.
        packets: Step in the order of presentation, whether it is a key frame, and bytes, of each frame in the order of
            decoding. The first one is a key frame, and shown first; each step from 0 on is there once.
    """

    stream: VideoStream
    fps: Fraction
    packets: Iterable[tuple[int, bool, bytes]]


def can_join(a: VideoStream, b: VideoStream) -> bool:
    """Whether a decoder of one reads the other as well, so that both may lie in one file."""
    return a == b


def write_mp4(path: str | os.PathLike[str], clips: Sequence[Clip], where: str) -> list[float]:
    """Write clips one behind the other; under another name until it is whole, and the same bytes for the same clips.

    Args:
        path: Of the file, in an existing folder; replaced if it is there.
        clips: At least one, all of the same rate, and each to be joined with the first. Their packets are taken one at
            a time.
        where: Names the video in messages.

    Returns:
        Seconds at which each clip begins: frame i of it is shown i / fps later.

    Raises:
        FormatError: If they are no such clips.
        PackError: If the disk is full or fails; nothing is left behind.
    """
    target = Path(path)
    _refuse_others(clips, where)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    file = _File(temporary, target)
    try:
        starts = _write(file, clips, where)
        file.publish()
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
    file.write(head_bytes(clips[0].stream))
    place = file.num_bytes
    file.write(struct.pack(">I4sQ", 1, b"mdat", 0))  # with room for its size, which is known at the end
    steps, sizes, is_key = array("q"), array("q"), bytearray()
    starts, places = [], []
    for number, clip in enumerate(clips):
        start = len(steps)
        starts.append(start)
        places.append(file.num_bytes)
        for step, key, data in clip.packets:
            steps.append(start + step)
            sizes.append(len(data))
            is_key.append(bool(key))  # also one of numpy's
            file.write(data)
        _refuse_steps(np.array(steps[start:], np.int64) - start, is_key[start:], f"{where}, video {number}")
    if not min(sizes):
        raise FormatError(f"{where}: a frame of no bytes, wanted a picture in each.")
    file.write_at(place + 8, struct.pack(">Q", file.num_bytes - place))
    frames = WrittenFrames(
        np.array(steps, np.int64),
        np.frombuffer(is_key, np.bool_),
        np.array(sizes, np.int64),
        np.array(places, np.int64),
        np.diff(starts, append=len(steps)),
    )
    try:
        file.write(index_bytes(clips[0].stream, clips[0].fps, frames))
    except FormatError as error:
        raise FormatError(f"{where}: {error}. Write several files.") from error
    return starts


def _refuse_steps(steps: NDArray[np.int64], is_key: bytearray, where: str) -> None:
    if not len(steps):
        raise FormatError(f"{where}: no frames, wanted at least one.")
    if not np.array_equal(np.sort(steps), np.arange(len(steps))):
        raise FormatError(
            f"{where}: steps from {steps.min()} to {steps.max()} of {len(steps)} frames, wanted each once."
        )
    if steps[0] != 0 or not is_key[0]:
        raise FormatError(f"{where}: step {steps[0]} first, which is no key frame or not shown first. Encode it again.")


class _File:
    """A file under another name; what the disk says becomes a `PackError`."""

    def __init__(self, temporary: Path, target: Path) -> None:
        self._temporary, self._target = temporary, target
        self.num_bytes = 0
        try:
            self._file = temporary.open("wb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise self._problem(error) from error

    def write(self, data: bytes) -> None:
        """At the end."""
        try:
            self._file.write(data)
        except OSError as error:
            raise self._problem(error) from error
        self.num_bytes += len(data)

    def write_at(self, place: int, data: bytes) -> None:
        """In place of others."""
        try:
            self._file.seek(place)
            self._file.write(data)
            self._file.seek(self.num_bytes)
        except OSError as error:
            raise self._problem(error) from error

    def publish(self) -> None:
        """Under its name, once its bytes are on disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._target)
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
