"""Checking a dataset: every checksum, every index against its tar as tarfile reads it, every frame by decoding it.

Of a LeRobot data set that is read in place: every episode's rows, and every frame at its time, by decoding it.
"""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from epistream.errors import EpistreamError, OptionError
from epistream.sharding.check.faults import Fault, fault_of
from epistream.sharding.check.verify_shard import VerifyOptions
from epistream.sharding.check.verify_tasks import checked
from epistream.sharding.files.names import EPISODE_MARK, is_episode_url, is_tar
from epistream.sharding.files.sources import AnySource, Hdf5Files, resolve
from epistream.sharding.files.storage import list_names
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, merge_all
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_file import FILE_NAME, KEPT_NAME, read_manifest
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.pictures.video import pyav

# Sums in another order differ in the last digits; a wrong split or a stale manifest differs in the first.
_RELATIVE = 1e-4


@dataclass
class Report:
    """What was looked at, and what was wrong with it; `bad_episodes` are those of LeRobot data sets, by their index."""

    faults: list[Fault] = field(default_factory=list)
    num_shards: int = 0
    num_episodes: int = 0
    num_frames: int = 0
    num_bytes: int = 0
    bad_episodes: list[int] = field(default_factory=list)
    not_finite: dict[str, NotFinite] = field(default_factory=dict)


def verify(
    dataset: Dataset,
    options: VerifyOptions | None = None,
    advance: Callable[[int], None] = lambda num_bytes: None,
    report_fault: Callable[[Fault], None] = lambda fault: None,
) -> Report:
    """Look at everything a dataset promises; go on after a fault.

    Args:
        dataset: Opened, so that its manifest is whole.
        options: How thoroughly to look.
        advance: Called with bytes of shards that were dealt with, all in all the sum of `dataset.shard_bytes`. From
            several threads.
        report_fault: Called with each fault as soon as its shard is done, in the order of shards.

    Raises:
        OptionError: If some of it lies in HDF5 files, or it has videos and PyAV is not installed.
    """
    options = options or VerifyOptions()
    others = zip(dataset.shard_url, dataset.index_url, strict=True)
    other = next((url for url, index in others if not (is_tar(url) or is_episode_url(index))), None)
    if other:
        raise _no_tar(other)
    if any(feature.group_steps for feature in dataset.features.values()):
        pyav()  # a fault of this machine is none of the dataset's
    report = Report(num_episodes=dataset.num_episodes)

    def take(faults: Iterable[Fault]) -> None:
        for fault in faults:
            report.faults.append(fault)
            report_fault(fault)

    manifest = _whole_manifest(dataset)
    statistics: dict[str, Summary] = {}
    split = _statistics_split(dataset, manifest)
    for shard, check in enumerate(checked(dataset, options, advance, split)):
        report.num_shards += 1
        report.num_bytes += check.num_bytes
        report.num_frames += check.num_frames
        report.not_finite = add_counts((report.not_finite, check.not_finite))
        if check.faults and is_episode_url(dataset.index_url[shard]):
            report.bad_episodes += np.flatnonzero(dataset.episode_shard == shard).tolist()
        take(check.faults)
        if split is not None and (is_tar(dataset.shard_url[shard]) or dataset.episode_split[shard] == split):
            statistics = merge_all((statistics, check.statistics))
    if manifest:
        take(_source_faults(manifest))
        take(_strangers(dataset, manifest))
    if options.statistics and split is not None and (manifest or not report.bad_episodes):
        num_steps = _num_valid(dataset, split)
        take(_statistics_faults(FILE_NAME if manifest else "meta", dataset, num_steps, statistics))
    return report


def _num_valid(dataset: Dataset, split: int) -> int:
    """Steps in the valid ranges of the episodes of a split, which statistics are of."""
    offsets, ranges = dataset.valid_ranges
    of_split = np.repeat(dataset.episode_split == split, np.diff(offsets))
    return int((ranges[of_split, 1] - ranges[of_split, 0]).sum())


def refuse_hdf5(source: AnySource | Sequence[AnySource]) -> None:
    """See that there are no HDF5 files behind `source`, before they are indexed.

    Raises:
        OptionError: If there is one, or `source` cannot be understood.
        SourceError: If a glob matches nothing.
    """
    for part in resolve(source):
        if isinstance(part, Hdf5Files):
            raise _no_tar(part.files[0])


def _no_tar(url: str) -> OptionError:
    return OptionError(
        f"{url}: an HDF5 file, wanted tars or LeRobot data sets. Pack it first: epistream pack {shlex.quote(url)} OUT"
    )


def _whole_manifest(dataset: Dataset) -> Manifest | None:
    """The manifest that `dataset` is all of; None for a part, a list, or tars without one."""
    try:
        manifest = read_manifest(dataset.url, dataset.storage_options)
        if manifest.fingerprint != dataset.fingerprint and len(manifest.history):  # as it was before an edit
            manifest = read_manifest(dataset.url, dataset.storage_options, dataset.fingerprint)
    except EpistreamError:
        return None
    return manifest if manifest.fingerprint == dataset.fingerprint else None


def _source_faults(manifest: Manifest) -> Iterator[Fault]:
    """What is wrong with the list of source files, which opening a dataset leaves alone."""
    try:
        for _ in manifest.sources:
            pass
    except EpistreamError as error:
        yield fault_of(manifest.sources.file_name, error)


def _strangers(dataset: Dataset, manifest: Manifest) -> Iterator[Fault]:
    """Tars in a dataset's folder that its manifest does not name: a brace pattern would read them.

    Of a dataset that was edited, manifests that are kept name others.
    """
    names = list_names(dataset.url, dataset.storage_options) or ()
    if len(manifest.history) or any(map(KEPT_NAME.fullmatch, names)):
        return
    steps = manifest.provenance.get("steps")
    copied = steps.get("copied", ()) if isinstance(steps, dict) else ()  # of these nothing is read
    known = {*manifest.columns.names, *copied}
    for name in names:
        if name.endswith(".tar") and name not in known:
            yield Fault(name, "", "a tar that the manifest does not name", "no other tars in the dataset's folder")


def _statistics_split(dataset: Dataset, manifest: Manifest | None) -> int | None:
    """The split whose statistics can be compared, if there are any.

    Only for all of a manifest or LeRobot data set: the statistics of a part are those of the whole, and those of a list
    are merged.
    """
    if manifest is not None:
        wanted = manifest.statistics_split
        return None if wanted is None else manifest.splits.index(wanted)
    sets = {url.rpartition(EPISODE_MARK)[0] for url in dataset.index_url}
    if len(sets) != 1 or "" in sets:
        return None
    return dataset.splits.index("train") if "train" in dataset.splits else 0


def _statistics_faults(file: str, dataset: Dataset, num_steps: int, statistics: dict[str, Summary]) -> Iterator[Fault]:
    """Compare statistics with those of the split they were computed on, of so many steps: means within rounding."""
    for name, said in dataset.statistics.items():
        if said["count"] != num_steps:
            yield Fault(file, f"statistics of {name}", f"of {said['count']} steps", f"{num_steps}")
            continue
        real = statistics.get(name)
        if real is None:
            continue
        scale = np.maximum(np.abs(real.minimum), np.abs(real.maximum))
        for moment, values in (("mean", real.mean), ("min", real.minimum), ("max", real.maximum)):
            claimed = np.asarray(said[moment], np.float64).reshape(-1)
            bad = np.flatnonzero((real.count > 0) & ~(np.abs(claimed - values) <= _RELATIVE * scale + 1e-12))
            if len(bad):
                at = [int(axis) for axis in np.unravel_index(bad[0], real.shape or (1,))]
                found, wanted = f"{moment}{at} {claimed[bad[0]]:g}", f"{values[bad[0]]:g}"
                yield Fault(file, f"statistics of {name}", found, wanted)
