"""Checking one episode of a LeRobot data set: its rows, its frames at their times, every packet by decoding it."""

import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from epistream.errors import EpistreamError, FormatError
from epistream.sharding.check.faults import Fault
from epistream.sharding.check.verify_shard import MAX_FAULTS_A_SHARD, VerifyOptions
from epistream.sharding.episodes.shard_statistics import counts_of_values, statistics_of_values
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.statistics import NotFinite, Summary
from epistream.sharding.lerobot.dataset import episode_source
from epistream.sharding.lerobot.episode import SetSource, index_episode
from epistream.sharding.lerobot.index import EpisodeIndex
from epistream.sharding.lerobot.stored_bytes import packed_bytes, stored_pictures
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.pictures.video import VideoDecoder


class FreshIndexes:
    """Indexes of episodes as their files are now, whatever is kept of them. Threads may share it.

    What episodes have in common is kept in a folder that goes with this object.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """Where that is."""
        with self._mutex:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="epistream-verify-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            return self._folder

    def take(self, source: SetSource, position: int) -> EpisodeIndex:
        """That of an episode.

        Raises:
            FormatError, SourceError, FetchError: As `index_episode`.
        """
        return index_episode(source, position, self.folder)


class EpisodeCheck:
    """Everything about one episode, as `ShardCheck` of a shard; also the bytes that it holds, `num_bytes`."""

    def __init__(
        self,
        dataset: Dataset,
        shard: int,
        options: VerifyOptions,
        advance: Callable[[int], None],
        indexes: FreshIndexes,
    ) -> None:
        self._dataset, self._shard, self._options, self._advance = dataset, shard, options, advance
        self._indexes = indexes
        self.faults: list[Fault] = []
        self.num_frames = self.num_bytes = 0
        self.statistics: dict[str, Summary] = {}
        self.not_finite: dict[str, NotFinite] = {}

    def run(self) -> "EpisodeCheck":
        """Look at it; returns this object."""
        for fault in self._find_faults():
            self.faults.append(fault)
            if len(self.faults) == MAX_FAULTS_A_SHARD:
                self.faults.append(Fault(fault.file, fault.member, "more faults, not looked for", "none"))
                break
        self._advance(int(self._dataset.shard_bytes[self._shard]))
        return self

    def _find_faults(self) -> Iterator[Fault]:
        try:
            source, position = episode_source(self._dataset.index_url[self._shard], self._dataset.storage_options)
            number = int(source.meta.number[position])
        except EpistreamError as error:
            yield fault_of_set(self._dataset.url, "", error)
            return
        try:
            index = self._indexes.take(source, position)
        except EpistreamError as error:
            yield fault_of_set(source.root, f"episode {number}", error)
            return
        self.num_bytes = index.places.num_bytes + sum(values.nbytes for values in index.rows.values.values())
        self.not_finite = counts_of_values(index.rows)
        if self._options.statistics:
            self.statistics = statistics_of_values(index.rows)
        sample, length = self._options.sample, index.rows.num_rows
        steps = np.arange(length)
        if sample is not None and sample < length:
            steps = np.linspace(0, length - 1, sample).round().astype(np.int64)
        for feature in index.rows.features.values():
            try:
                if feature.name in index.rows.videos:
                    yield from self._video_faults(source, index, feature, steps, number)
                elif feature.kind == "frames":
                    yield from self._picture_faults(source, index, feature, set(steps.tolist()), number)
            except EpistreamError as error:
                yield fault_of_set(source.root, f"episode {number}", error)

    def _video_faults(
        self,
        source: SetSource,
        index: EpisodeIndex,
        feature: Feature,
        steps: "np.typing.NDArray[np.int64]",
        number: int,
    ) -> Iterator[Fault]:
        rows, name = index.rows, feature.name
        offset, size = rows.frame_offset[name].astype(np.int64), rows.frame_size[name].astype(np.int64)
        if not len(steps):
            return
        first, last = int(offset.min()), int((offset + size).max())
        data = memoryview(packed_bytes(source, index, first, last))
        file = index.places.files[int(index.places.file[np.searchsorted(index.places.start, first, "right") - 1])].name
        decoder = VideoDecoder(feature.shape)
        for run in rows.runs(name, steps):
            member = f"episode {number}, steps {run.rows.min()} to {run.rows.max()}"
            where = f"{file}, {member}"
            packets = ((row, data[int(offset[row]) - first :][: int(size[row])]) for row in run.rows.tolist())
            try:
                for _ in decoder.pictures(run.stream, packets, (), where):
                    pass  # every one is decoded, and none is made a picture of
            except FormatError as error:
                yield Fault(file, member, _found(error, where), "frames that decode")
            self.num_frames += len(run.wanted)

    def _picture_faults(
        self, source: SetSource, index: EpisodeIndex, feature: Feature, steps: set[int], number: int
    ) -> Iterator[Fault]:
        if not steps:
            return
        codec, out = codec_of(feature), np.empty(feature.shape, feature.dtype)
        file = index.places.files[0].name
        for step, data in enumerate(stored_pictures(source, index, feature.name, self._indexes.folder)):
            if step not in steps:
                continue
            member = f"episode {number}, {feature.source_path}, step {step}"
            where = f"{file}, {member}"
            try:
                codec.decode_into(data, out, where)
            except EpistreamError as error:
                yield Fault(file, member, _found(error, where), "a picture that decodes")
            self.num_frames += 1


def fault_of_set(root: str, episode: str, error: EpistreamError) -> Fault:
    """An error that begins with a file of a data set as a fault of this file, with the episode if it is not named."""
    text = str(error).removeprefix(f"{root.rstrip('/')}/")
    file, _, said = text.partition(": ")
    found, _, wanted = said.partition(", wanted ")
    member = "" if episode in found else episode
    return Fault(file, member, found.rstrip("."), (wanted or "it to be whole").rstrip("."))


def _found(error: EpistreamError, where: str) -> str:
    """What an error of a codec found, without the place and the advice to write it again."""
    return str(error).removeprefix(f"{where}: ").partition(". ")[0].partition(", wanted ")[0].rstrip(".")
