"""Looks into HDF5 files for a packing job, local or remote, and chooses among the episodes that were found."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from epistream.errors import EpistreamError, LayoutError, OptionError
from epistream.file_systems import local_path
from epistream.lazy import lazy
from epistream.sharding.files.storage import Options
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.left_out import sentence
from epistream.sharding.hdf5.file import open_hdf5
from epistream.sharding.layouts.registry import SourceScan, scan_open, scan_source
from epistream.sharding.layouts.values import whole_text
from epistream.sharding.pack.choice import PackChoice
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.outputs import applied_options, outputs_of
from epistream.sharding.pack.plan import ScannedEpisode, ScannedFile, SourceFile, ToldOfEpisode, left_out_once
from epistream.sharding.selecting.columns import Column, attribute_lists
from epistream.units import count_text


def scan_file(path: str, name: str, options: PackOptions, access: Options = None) -> ScannedFile:
    """Look into one source file; faults of its contents are reported, not raised.

    Args:
        path: A path or URL.
        name: What the dataset calls it.
        options: Of the job.
        access: What opens it, if it is remote.
    """
    version = ""
    if local_path(path) is None:
        scan, version = _scan_remote(path, options, access)
    else:
        scan = scan_source(path, options.layout, PackChoice(options), allow_outside=options.allow_outside_files)
    episodes: list[ScannedEpisode] = []
    faults = list(scan.faults)
    left_out: list[str] = []
    applied: frozenset[str] = frozenset()
    for episode in scan.episodes:
        try:
            outputs = outputs_of(episode, options)
        except LayoutError as error:
            faults.append(f"{path}: {sentence(error)}")
            continue
        left_out += [item.removeprefix(episode.group.rstrip("/")) for item in episode.left_out]
        applied |= applied_options(episode, outputs, options)
        episodes.append(
            ScannedEpisode(
                group=episode.group,
                length=episode.length,
                split=episode.split,
                source_bytes=sum(output.source.num_bytes for output in outputs),
                estimated_bytes=sum(output.estimated_bytes for output in outputs),
                features=tuple(output.feature for output in outputs),
                refused=tuple((one.name, f"{one.path}: {one.reason}") for one in episode.refused),
                told=ToldOfEpisode.of(episode, options),
            )
        )
    left_out = list(left_out_once(left_out))
    if scan.excluded:
        listed = ", ".join(scan.excluded[:3]) + ", ..." * (len(scan.excluded) > 3)
        left_out.append(f"{count_text(len(scan.excluded), 'episode')} of {name}: {listed}")
    source = SourceFile(path, name, scan.layout, scan.num_bytes, scan.mtime_ns, scan.inode, scan.others, version)
    return ScannedFile(source, tuple(episodes), tuple(faults), tuple(left_out), applied)


def _scan_remote(url: str, options: PackOptions, access: Options) -> tuple[SourceScan, str]:
    """What a remote file holds, of which only headers are read, and its version."""
    scan, version = SourceScan(url, "", 0, 0, 0, (), ()), ""
    try:
        version, num_bytes = version_and_bytes(url, access)
        scan = replace(scan, num_bytes=num_bytes)
        with open_hdf5(url, access) as (file, _):
            scan = scan_open(file, scan, options.layout, PackChoice(options))
    except OptionError:
        raise
    except EpistreamError as error:
        scan = replace(scan, faults=(*scan.faults, whole_text(sentence(error))))
    return scan, version


def chosen_episodes(scans: Sequence[ScannedFile], options: PackOptions) -> list[ScannedFile]:
    """The same files with the episodes of the job's selection only; those that have none keep nothing but faults.

    Raises:
        OptionError: If it means none of them, or asks what is decided later: keys, and splits with ``val_fraction``.
    """
    if options.selection is None or not any(scan.episodes for scan in scans):
        return list(scans)
    wanted = options.selection.rows(_ScanFacts(scans, is_divided=options.division is not None)).tolist()
    chosen = []
    start = 0
    for scan in scans:
        mine = wanted[start : start + len(scan.episodes)]
        start += len(scan.episodes)
        episodes = tuple(one for one, is_wanted in zip(scan.episodes, mine, strict=True) if is_wanted)
        chosen.append(replace(scan, episodes=episodes) if episodes else replace(scan, episodes=(), left_out=()))
    return chosen


@dataclass(frozen=True, eq=False)
class _ScanFacts:
    """What is known of the episodes that were found in the sources, as `EpisodeFacts`."""

    scans: Sequence[ScannedFile]
    is_divided: bool

    @property
    def url(self) -> str:
        """In messages."""
        return "the sources"

    @property
    def num_episodes(self) -> int:
        """Of all files."""
        return len(self._episodes)

    @lazy
    def _episodes(self) -> list[tuple[ScannedFile, ScannedEpisode]]:
        return [(scan, episode) for scan in self.scans for episode in scan.episodes]

    def column(self, name: str) -> Column:
        """As `EpisodeFacts.column`.

        Raises:
            OptionError: If it is decided later.
        """
        if name == "key":
            raise OptionError("episodes: key, which packing gives its episodes itself. Use source, path or index.")
        if name == "length":
            return Column.of_integers(np.array([episode.length for _, episode in self._episodes], np.int64))
        if name == "source":
            return Column.of([scan.source.path for scan, _ in self._episodes])
        if name == "path":
            return Column.of([episode.group for _, episode in self._episodes])
        if name == "split":
            return Column.of(self._splits())
        told = [episode.told.tasks if episode.told else () for _, episode in self._episodes]
        texts = list(dict.fromkeys(task for tasks in told for task in tasks))
        numbers = {text: number for number, text in enumerate(texts)}
        offsets = np.cumsum([0, *map(len, told)]).astype(np.int64)
        return Column.of_tasks(texts, offsets, np.array([numbers[task] for tasks in told for task in tasks], np.int64))

    def _splits(self) -> list[str]:
        if self.is_divided:
            raise OptionError(
                "episodes: split, with val_fraction, by which the chosen episodes are divided later. Leave one of them "
                "out."
            )
        splits = [episode.split for _, episode in self._episodes]
        return [split or ("train" if any(splits) else NO_SPLIT) for split in splits]

    @lazy
    def _attributes(self) -> Mapping[str, Column]:
        told: list[Mapping[str, Any]] = [one.told.attributes if one.told else {} for _, one in self._episodes]
        return {name: Column.of(values) for name, values in attribute_lists(told).items()}

    def attributes(self, names: Collection[str]) -> Mapping[str, Column]:
        """As `EpisodeFacts.attributes`."""
        return {name: self._attributes[name] for name in names if name in self._attributes}

    def attribute_names(self) -> Collection[str]:
        """As `EpisodeFacts.attribute_names`."""
        return list(self._attributes)
