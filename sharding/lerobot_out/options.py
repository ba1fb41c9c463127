"""The options of an export, checked when they are made."""

import os
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from epistream.options import OneOf, Range, check
from epistream.sharding.pictures.codecs import WRITTEN
from epistream.sharding.pictures.video_encoder import PRESETS, VideoQuality
from epistream.sharding.tasks.engine import EngineName, EngineOptions

Version = Literal["3.0", "2.1"]

# How the job runs, which no byte of the result depends on.
_RUNNING = ("workers", "engine", "address")
# Of what is encoded.
_OF_VIDEO = ("codec", "crf", "gop", "preset")

Megabytes = Annotated[float, Range(gt=0, le=1 << 20)]


@dataclass(frozen=True)
class ExportOptions:
    """How to write a LeRobot data set. All but the last three decide its bytes.

    Args:
        version: of LeRobot's format; 3.0 puts many episodes into a file, 2.1 writes files of each.
        codec: of cameras that are no video in the source. A video is copied as it is.
        crf: of H.264, 0 to 51; less is better and larger. Where it is encoded.
        gop: of H.264, steps of a group of pictures, which is decoded from its first one on. LeRobot's readers take
            single steps, which cost half a group each.
        preset: of H.264, x264's name for how long to search; slower ones make smaller files.
        data_files_size_in_mb: how large a file of rows becomes, in MiB. Version 3.0.
        video_files_size_in_mb: how large a file of videos becomes, in MiB. Version 3.0.
        chunks_size: files in a folder. In version 2.1, episodes.
        workers: processes; as many as there are cores if None, and with Ray as its cluster has CPUs for.
        engine: what runs the tasks, ``local`` or ``ray``. Processes of this machine, or those of a Ray cluster.
        address: of Ray's cluster. ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None starts one here.

    Raises:
        OptionError: If any of these cannot work.
    """

    version: Version = "3.0"
    codec: Annotated[str, OneOf([name for name, codec in WRITTEN.items() if codec.storage == "video"])] = "h264"
    crf: Annotated[int, Range(ge=0, le=51)] = 18
    gop: Annotated[int, Range(ge=1, le=65_536)] = 5
    preset: Annotated[str, OneOf(PRESETS)] = "medium"
    data_files_size_in_mb: Megabytes = 100.0
    video_files_size_in_mb: Megabytes = 200.0
    chunks_size: Annotated[int, Range(ge=1, le=1_000_000)] = 1000
    workers: Annotated[int, Range(ge=1, le=1024)] | None = None
    engine: EngineName = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        check(self)
        _ = self.engine_options  # it refuses what cannot work

    @property
    def engine_options(self) -> EngineOptions:
        """Where the tasks run."""
        workers = self.workers
        if workers is None and self.engine == "local":
            workers = len(os.sched_getaffinity(0))
        return EngineOptions(self.engine, self.address, workers)

    @property
    def video(self) -> VideoQuality:
        """How to encode video."""
        return VideoQuality(self.crf, self.gop, self.preset)

    @property
    def is_one_file_an_episode(self) -> bool:
        """Whether no file holds two episodes."""
        return self.version == "2.1"

    def deciding(self, *, encodes: bool) -> dict[str, Any]:
        """The options that decide the bytes of the result, as JSON can hold them."""
        left_out = _RUNNING if encodes else (*_RUNNING, *_OF_VIDEO)
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
