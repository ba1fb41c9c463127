"""Packs episodes into a dataset: scan, plan, one task a shard, then the manifest."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from epistream._version import __version__
from epistream.errors import DatasetExistsError, PackError
from epistream.options import changed
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.names import index_name
from epistream.sharding.files.storage import Options
from epistream.sharding.format.dataset_statistics import MoreStatistics
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.left_out import tell_left_out
from epistream.sharding.format.manifest import Manifest
from epistream.sharding.format.manifest_builder import ManifestBuilder
from epistream.sharding.format.manifest_file import read_manifest, write_manifest
from epistream.sharding.format.sources import Source
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, merge_all, to_plain
from epistream.sharding.pack.kept_results import keep_statistics, kept_statistics, key_if_kept, pack_and_keep, read_kept
from epistream.sharding.pack.kept_scans import if_unchanged, keep_scans, kept_scans
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.plan import (
    PackPlan,
    ScannedFile,
    SourceFile,
    describe_faults,
    identity,
    left_out_of,
    make_plan,
    outside_files,
)
from epistream.sharding.pack.report import Listener, PackProgress, PackReport, names_of, rename_source, report_of
from epistream.sharding.pack.shard_task import ShardResult, ShardTask, pack_shard
from epistream.sharding.pack.source_reader import hash_source
from epistream.sharding.pack.sources import Sources, find_files, look_into
from epistream.sharding.pack.workspace import Workspace, can_be_resumed
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.sharding.pictures.video_encoder import library_versions
from epistream.sharding.tasks.pool import TaskPool

_log = logging.getLogger(__name__)

# Opening a file takes some 5 ms, starting the processes a second.
_MIN_PARALLEL_SCANS = 64
# How often in a job the statistics so far are kept: a job that resumes reads them once, and those of few shards.
_NUM_SUMS = 16


def pack(
    sources: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    options: PackOptions | None = None,
    *,
    storage_options: Options = None,
    progress: Listener | None = None,
    **changes: Any,
) -> PackReport:
    """Pack HDF5 episodes, or LeRobot data sets, into a dataset of tar shards.

    The same sources and options give the same bytes, whatever the number of workers. Each source is read once, and held
    in memory by the process that packs it, if it is of up to 256 MiB; larger ones are read for their checksum first.

    Args:
        sources: HDF5 files, folders (walked) and globs; or LeRobot data sets: folders, globs of them, or URLs.
        out: Folder or fsspec URL of the dataset. It exists when ``dataset.json`` is there, which comes last.
        options: All options together; see `PackOptions`.
        storage_options: For URLs, as fsspec takes them, or by protocol.
        progress: Called in the calling thread, now and then.
        changes: Single options by name, for example ``val_fraction=0.1``.

    Returns:
        What was done.

    Raises:
        OptionError: If an option cannot work.
        SourceError: If a folder or glob gives no files, or one is a tar.
        SourceChangedError: If a source is written to meanwhile.
        DatasetExistsError: If there is a dataset or an unfinished job at `out`.
        PackError: If any episode cannot be packed (all of them are listed), or the disk is full.
        WorkerError: If a process died.

    After an error nothing is published. What `KeyboardInterrupt`, a dead process or a crash leaves behind is not
    taken for a dataset, and ``resume`` goes on from it without reading again what is done; other errors leave nothing.
    """
    options = changed(options or PackOptions(), changes, "pack")
    found = find_files(sources, str(out), options, storage_options)
    with (place := Workspace.at(str(out), options, found.access)), TaskPool(options.workers, place.url) as pool:
        return _Job(found, place, pool, options, progress).run()


@dataclass
class _Results:
    """What came of the tasks so far, added up in the order of the plan: shards, and the statistics of one split.

    `checksums` are those of source files, by their position among the scans.
    """

    statistics_split: str = ""
    shard_names: list[str] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)
    num_resumed: int = 0
    checksums: dict[int, str] = field(default_factory=dict)
    statistics: dict[str, Summary] = field(default_factory=dict)
    not_finite: dict[str, NotFinite] = field(default_factory=dict)
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def take(self, task: ShardTask, result: ShardResult, *, is_summed: bool) -> None:
        """Add the next result in the order of the plan, whose statistics may be in it already."""
        self.checksums |= result.checksums
        if not result.is_packed:
            return
        split = task.episodes[0].split
        self.shard_names.append(task.name)
        self.splits.add(split)
        if split == self.statistics_split and not is_summed:
            self.statistics = merge_all((self.statistics, result.statistics))
        self.not_finite = add_counts((self.not_finite, result.not_finite))
        for name, measured in result.fidelity.items():
            self.fidelity.setdefault(name, Fidelity()).add(measured)


class _Job:
    """The steps of one packing job, and what they hand on."""

    def __init__(
        self,
        sources: Sources,
        workspace: Workspace,
        pool: TaskPool,
        options: PackOptions,
        progress: Listener | None,
    ) -> None:
        self._started = time.monotonic()
        self._sources, self._workspace, self._pool = sources, workspace, pool
        self._options, self._tell = options, progress or (lambda now: None)
        self._faults: list[str] = []

    def run(self) -> PackReport:
        """Do all of it. From `Workspace.begin` on there is something to clean up."""
        # Those of libraries can change the bytes of the result: arrays, resizing, codecs.
        libraries = sorted({"numpy", "pillow", *(each.library for each in CODECS.values() if each.storage != "video")})
        versions = {"epistream": __version__, **{name: version(name) for name in libraries}}
        if self._options.is_video or self._sources.are_decoded(self._options):
            versions |= library_versions()
        about = identity((), self._options, versions)
        scans = self._scan(about)
        plan = make_plan(scans, self._options)
        self._note_faults(plan.faults)
        self._stop_at_faults(any_good=True)
        job = identity(scans, self._options, versions)
        if self._options.resume and (done := self._already_done(scans, versions)):
            if self._workspace.has_job:
                self._workspace.conclude(done.columns.names)
            of_features = left_out_of(scans, with_reason=True)  # listed behind what was left out of the episodes
            self._faults = [one for one in done.provenance.get("left_out", ()) if one not in of_features]
            return self._report(done, scans)
        is_resumed = self._workspace.begin(job)
        try:
            if not self._workspace.is_remote:
                keep_scans(self._workspace.folder, about, scans)
            results = self._pack(plan, scans, is_resumed)
            self._stop_at_faults(any_good=bool(results.shard_names))
            self._hash_others(scans, results)
            manifest = self._publish(plan, scans, results, versions)
        except BaseException as error:
            self._pool.stop()
            self._workspace.abandon(keep_complete=self._options.resume or can_be_resumed(error))
            raise
        self._workspace.conclude(manifest.columns.names)
        return self._report(manifest, scans, results)

    def _scan(self, about: Mapping[str, str]) -> list[ScannedFile]:
        """Look into every file, in the order given; a resumed job only into those that changed since."""
        workspace, num_faults = self._workspace, 0
        kept = kept_scans(workspace.folder, about) if self._options.resume and workspace.has_job else {}
        files, access = self._sources.files, self._sources.access
        found = [if_unchanged(kept.get(file.path), file.name) for file in files]
        missing = [number for number, scan in enumerate(found) if scan is None]
        tasks = [(files[number], self._options, access) for number in missing]
        scanned = self._pool.map(look_into, tasks, min_parallel=_MIN_PARALLEL_SCANS)
        for number_done, (number, scan) in enumerate(zip(missing, scanned, strict=True), 1):
            found[number] = scan
            num_faults += len(scan.faults)
            self._tell(PackProgress("scanning", number_done, len(tasks), num_faults=num_faults))
        return [scan for scan in found if scan is not None]

    def _stop_at_faults(self, *, any_good: bool) -> None:
        if self._faults and not (self._options.skip_bad and any_good):
            raise PackError(describe_faults(self._faults, any_good=any_good))

    def _note_faults(self, faults: Sequence[str]) -> None:
        self._faults += faults
        if self._options.skip_bad:
            tell_left_out(faults)

    def _already_done(self, scans: Sequence[ScannedFile], versions: Mapping[str, str]) -> Manifest | None:
        """The dataset that is there, if it is what this job would make.

        Raises:
            DatasetExistsError: If it is another one.
        """
        if not self._workspace.was_complete:
            return None
        manifest = read_manifest(self._workspace.url)
        there = [(source.path, source.num_bytes) for source in manifest.sources]
        wanted = [(source.name, source.num_bytes) for source in _usable(scans)]
        about = manifest.provenance
        if there == wanted and about.get("options") == self._options.deciding() and about.get("versions") == versions:
            return manifest
        raise DatasetExistsError(
            f"{self._workspace.url}: holds a complete dataset of other sources or options, nothing to resume. "
            "Choose another folder, or replace it with --overwrite."
        )

    def _tasks(self, plan: PackPlan, scans: Sequence[ScannedFile]) -> Iterator[ShardTask]:
        hashed: set[int] = set()
        for number, episodes in enumerate(plan.shards):
            used = {episode.source_index for episode in episodes}
            yield ShardTask(
                name=self._workspace.shard_name(number),
                folder=str(self._workspace.folder),
                url=self._workspace.url,
                episodes=episodes,
                sources={index: scans[index].source for index in used},
                unhashed=frozenset(used - hashed),
                features=plan.features,
                options=self._options,
                storage_options=self._workspace.storage_options,
                source_options=self._sources.access,
            )
            hashed |= used

    def _pack(self, plan: PackPlan, scans: Sequence[ScannedFile], is_resumed: bool) -> _Results:
        """Make every shard that is not complete."""
        tasks = list(self._tasks(plan, scans))
        keys = [key_if_kept(task) if is_resumed else "" for task in tasks]
        done = [episode for task, key in zip(tasks, keys, strict=True) if key for episode in task.episodes]
        done_bytes = sum(episode.source_bytes for episode in done)

        results = _Results("train" if "train" in plan.splits else plan.splits[0])

        def tick(num_episodes: int, num_bytes: int) -> None:
            self._tell(
                PackProgress(
                    "packing",
                    len(done) + num_episodes,
                    plan.num_episodes,
                    done_bytes + num_bytes,
                    plan.source_bytes,
                    len(self._faults) + len(results.faults),
                )
            )

        folder, is_kept = self._workspace.folder, not self._workspace.is_remote
        function = pack_and_keep if is_kept else pack_shard
        made = self._pool.map(function, [task for task, key in zip(tasks, keys, strict=True) if not key], tick)
        num_summed, results.statistics = kept_statistics(folder, keys)
        # Summaries are merged in the order of the plan, for the same bits with any number of workers, and at once,
        # because those of 100,000 shards do not fit into memory.
        for number, task in enumerate(tasks):
            is_summed = number < num_summed
            result = read_kept(task, with_statistics=not is_summed) if keys[number] else None
            results.num_resumed += result is not None
            if result is None:  # a kept one can turn out to be torn
                result = next(self._pool.map(function, [task])) if keys[number] else next(made)
            keys[number] = result.key
            results.faults += result.faults
            results.take(task, result, is_summed=is_summed)
            if (
                is_kept
                and not is_summed
                and (number + 1) % -(-len(tasks) // _NUM_SUMS) == 0
                and all(keys[: number + 1])
            ):
                keep_statistics(folder, keys[: number + 1], results.statistics)
        next(made, None)  # it tells how far it is once more at its end
        self._note_faults(results.faults)
        return results

    def _hash_others(self, scans: Sequence[ScannedFile], results: _Results) -> None:
        """Checksums of the files that no task read: none of their episodes is packed."""
        numbers = [number for number, scan in enumerate(scans) if scan.episodes and number not in results.checksums]
        made = self._pool.map(hash_source, [scans[number].source for number in numbers])
        for num_done, (number, checksum) in enumerate(zip(numbers, made, strict=True), 1):
            results.checksums[number] = checksum
            self._tell(PackProgress("hashing", num_done, len(numbers)))

    def _publish(
        self, plan: PackPlan, scans: Sequence[ScannedFile], results: _Results, versions: Mapping[str, str]
    ) -> Manifest:
        """Write the manifest: from now on there is a dataset."""
        self._tell(PackProgress("publishing", 0, 1))
        splits = tuple(name for name in plan.splits if name in results.splits)
        builder = ManifestBuilder(plan.features, splits)
        for name in results.shard_names:
            path = self._workspace.folder / index_name(name)
            data = path.read_bytes()
            builder.add_shard(ShardIndex.parse(data, path.name), data)
        sources = _usable(scans)
        names = names_of(scans)
        manifest = builder.build(
            statistics={name: to_plain(summary) for name, summary in results.statistics.items()},
            # Empty if every episode of that split was bad.
            statistics_split=results.statistics_split if results.statistics else None,
            more=MoreStatistics.of(results.statistics, results.not_finite),
            sources=[
                Source(scan.source.name, scan.source.num_bytes, results.checksums[number])
                for number, scan in enumerate(scans)
                if scan.episodes
            ],
            provenance={
                "versions": dict(versions),
                "options": self._options.deciding(),
                "layouts": dict(Counter(source.layout for source in sources)),
                **({"outside_files": outside} if (outside := outside_files(scans)) else {}),
                "left_out": [rename_source(fault, names) for fault in self._faults]
                + list(left_out_of(scans, with_reason=True)),
            },
        )
        write_manifest(manifest, self._workspace.url, self._workspace.storage_options)
        return manifest

    def _report(self, manifest: Manifest, scans: Sequence[ScannedFile], results: _Results | None = None) -> PackReport:
        """Of this job; without results, of one that had been done before."""
        report = report_of(manifest, scans, self._workspace.url, self._options.division)
        for note in report.notes:
            _log.warning("%s: %s", self._workspace.url, note)
        return replace(
            report,
            num_resumed=report.num_shards if results is None else results.num_resumed,
            is_new=results is not None,
            seconds=time.monotonic() - self._started,
            faults=tuple(self._faults),
            fidelity={} if results is None else results.fidelity,
            outside_files=outside_files(scans),
            not_finite=manifest.more.not_finite,
        )


def _usable(scans: Sequence[ScannedFile]) -> list[SourceFile]:
    """The files with episodes."""
    return [scan.source for scan in scans if scan.episodes]
