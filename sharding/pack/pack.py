"""Packs episodes into a dataset: scan, plan, one task a shard, then the manifest."""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from epistream._version import __version__
from epistream.errors import DatasetExistsError, PackError
from epistream.options import changed
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.storage import Options
from epistream.sharding.format.left_out import tell_left_out
from epistream.sharding.format.statistics import plain_statistics
from epistream.sharding.layouts.layout_file import chosen_layout
from epistream.sharding.manifest.dataset_statistics import MoreStatistics
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_builder import ManifestBuilder
from epistream.sharding.manifest.manifest_file import read_manifest
from epistream.sharding.manifest.manifest_writing import write_manifest
from epistream.sharding.manifest.record_making import RecordRules
from epistream.sharding.manifest.sources import Source
from epistream.sharding.pack.kept_scans import if_unchanged, keep_scans, kept_scans
from epistream.sharding.pack.making import Making, Results, share_of
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
from epistream.sharding.pack.scan import chosen_episodes
from epistream.sharding.pack.shard_task import ShardTask
from epistream.sharding.pack.source_reader import hash_source
from epistream.sharding.pack.sources import Sources, find_files, look_into
from epistream.sharding.pack.workspace import Workspace, can_be_resumed
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.pictures.video_encoder import library_versions
from epistream.sharding.tasks.ahead import ahead
from epistream.sharding.tasks.engine import Engine, make_engine

_log = logging.getLogger(__name__)

# Opening a file takes some 5 ms, starting the processes a second.
_MIN_PARALLEL_SCANS = 64
# Files that one task opens at the most: with Ray a task takes some 10 ms by itself.
_MOST_FILES_A_SCAN = 16
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
    options = replace(options, layout=chosen_layout(options.layout))
    found = find_files(sources, str(out), options, storage_options)
    with (
        (place := Workspace.at(str(out), options, found.access)),
        make_engine(options.engine_options, place.url) as engine,
    ):
        return _Job(found, place, engine, options, progress).run()


class _Job:
    """The steps of one packing job, and what they hand on."""

    def __init__(
        self,
        sources: Sources,
        workspace: Workspace,
        engine: Engine,
        options: PackOptions,
        progress: Listener | None,
    ) -> None:
        self._started = time.monotonic()
        self._sources, self._workspace, self._engine = sources, workspace, engine
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
        found = self._scan(about)
        scans = chosen_episodes(found, self._options)
        plan = make_plan(scans, self._options)
        self._note_faults(plan.faults)
        self._stop_at_faults(any_good=True)
        job = identity(scans, self._options, versions)
        is_array = self._options.num_tasks is not None
        goes_on = self._options.resume or self._options.publish or is_array
        if goes_on and (done := self._already_done(scans, versions)):
            if self._workspace.has_job and not is_array:
                self._workspace.conclude(done.columns.names)
            of_features = left_out_of(scans, with_reason=True)  # listed behind what was left out of the episodes
            self._faults = [one for one in done.provenance.get("left_out", ()) if one not in of_features]
            return self._report(done, scans)
        is_resumed = self._workspace.begin(job)
        try:
            if not is_array:
                keep_scans(self._workspace.store, about, found)
            results = self._pack(plan, scans, is_resumed)
            self._stop_at_faults(any_good=bool(results.shards) or is_array)
            if is_array:
                return self._report_share(plan, scans, results)
            self._hash_others(scans, results)
            manifest = self._publish(plan, scans, results, versions)
        except BaseException as error:
            self._engine.stop()
            self._workspace.abandon(keep_complete=goes_on or can_be_resumed(error))
            raise
        self._workspace.conclude(manifest.columns.names)
        return self._report(manifest, scans, results)

    def _scan(self, about: Mapping[str, str]) -> list[ScannedFile]:
        """Look into every file, in the order given; a resumed job only into those that changed since."""
        with self._workspace.scanning() as may_be_kept:
            kept = kept_scans(self._workspace.store, about) if may_be_kept else {}
            scans = self._look_into_what_is_new(kept)
            if self._options.num_tasks is not None and not self._workspace.was_complete:  # the next one waits for them
                keep_scans(self._workspace.store, about, scans)
        return scans

    def _look_into_what_is_new(self, kept: Mapping[str, ScannedFile]) -> list[ScannedFile]:
        num_faults = 0
        files, access = self._sources.files, self._sources.access
        found = list(ahead(lambda file: if_unchanged(kept.get(file.path), file.name, access), files))
        missing = [number for number, scan in enumerate(found) if scan is None]
        # Processes choose nothing, and a list of episodes may be long.
        options = self._options if self._options.asks_of_episodes else replace(self._options, episodes=None)
        each = min(_MOST_FILES_A_SCAN, len(missing) // _MIN_PARALLEL_SCANS + 1)
        tasks = [
            ([files[number] for number in missing[start : start + each]], options, access)
            for start in range(0, len(missing), each)
        ]
        is_parallel = len(missing) >= _MIN_PARALLEL_SCANS
        scanned = self._engine.map(look_into, tasks, min_parallel=2 if is_parallel else len(tasks) + 1)
        scans = itertools.chain.from_iterable(scanned)
        for number_done, (number, scan) in enumerate(zip(missing, scans, strict=True), 1):
            found[number] = scan
            num_faults += len(scan.faults)
            self._tell(PackProgress("scanning", number_done, len(missing), num_faults=num_faults))
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
        if self._options.overwrite:
            return None
        raise DatasetExistsError(
            f"{self._workspace.url}: holds a complete dataset of other sources or options, nothing to resume. "
            "Choose another folder, or replace it with --overwrite."
        )

    def _tasks(self, plan: PackPlan, scans: Sequence[ScannedFile]) -> Iterator[ShardTask]:
        hashed: set[int] = set()
        options = replace(self._options, episodes=None)  # they are chosen; a list of them may be long
        rules = RecordRules.of(plan.features, plan.num_episodes)
        for number, episodes in enumerate(plan.shards):
            used = {episode.source_index for episode in episodes}
            yield ShardTask(
                name=self._workspace.shard_name(number),
                url=self._workspace.url,
                episodes=episodes,
                sources={index: scans[index].source for index in used},
                unhashed=frozenset(used - hashed),
                features=plan.features,
                options=options,
                rules=rules,
                storage_options=self._workspace.storage_options,
                source_options=self._sources.access,
                must_keep=self._options.num_tasks is not None,
            )
            hashed |= used

    def _pack(self, plan: PackPlan, scans: Sequence[ScannedFile], is_resumed: bool) -> Results:
        """Make every shard that is not complete; of an array, those of this task."""
        tasks = list(self._tasks(plan, scans))
        if self._options.num_tasks is not None and self._options.task_index is not None:
            share = share_of(self._options.task_index, self._options.num_tasks, len(tasks))
            tasks = tasks[share.start : share.stop]
        results = Results("train" if "train" in plan.splits else plan.splits[0])
        making = Making(self._engine, self._workspace.store, self._options, self._tell)
        making.run(tasks, results, len(self._faults), is_resumed=is_resumed)
        self._note_faults(results.faults)
        return results

    def _hash_others(self, scans: Sequence[ScannedFile], results: Results) -> None:
        """Checksums of the files that no task read: none of their episodes is packed."""
        numbers = [number for number, scan in enumerate(scans) if scan.episodes and number not in results.checksums]
        made = self._engine.map(hash_source, [scans[number].source for number in numbers])
        for num_done, (number, checksum) in enumerate(zip(numbers, made, strict=True), 1):
            results.checksums[number] = checksum
            self._tell(PackProgress("hashing", num_done, len(numbers)))

    def _publish(
        self, plan: PackPlan, scans: Sequence[ScannedFile], results: Results, versions: Mapping[str, str]
    ) -> Manifest:
        """Write the manifest: from now on there is a dataset."""
        self._tell(PackProgress("publishing", 0, 1))
        found = {shard.split for shard in results.shards}
        builder = ManifestBuilder(plan.features, tuple(name for name in plan.splits if name in found))
        for shard in results.shards:
            builder.add(shard, plan.features)
        sources = _usable(scans)
        names = names_of(scans)
        manifest = builder.build(
            statistics=plain_statistics(results.statistics),
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

    def _report_share(self, plan: PackPlan, scans: Sequence[ScannedFile], results: Results) -> PackReport:
        """Of one task of an array."""
        episodes = [meta for shard in results.shards for meta in shard.episodes]
        return PackReport(
            url=self._workspace.url,
            fingerprint="",
            layouts=dict(Counter(scan.source.layout for scan in scans if scan.episodes)),
            features=plan.features,
            splits=dict(Counter(meta.split for meta in episodes)),
            num_episodes=len(episodes),
            num_steps=sum(meta.length for meta in episodes),
            num_shards=len(results.shards),
            num_resumed=results.num_resumed,
            num_bytes=sum(shard.num_bytes for shard in results.shards),
            seconds=time.monotonic() - self._started,
            faults=tuple(self._faults),
            left_out=left_out_of(scans),
            fidelity=results.fidelity,
            outside_files=outside_files(scans),
            not_finite=results.not_finite,
            is_published=False,
        )

    def _report(self, manifest: Manifest, scans: Sequence[ScannedFile], results: Results | None = None) -> PackReport:
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
