"""Checking a dataset: every checksum, every index against its tar as tarfile reads it, every frame by decoding it."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from epistream.errors import EpistreamError, OptionError
from epistream.sharding.check.verify_shard import Fault, ShardCheck, VerifyOptions, fault_of
from epistream.sharding.files.names import is_tar
from epistream.sharding.files.sources import AnySource, Hdf5Files, resolve
from epistream.sharding.files.storage import list_names
from epistream.sharding.format.manifest import Manifest
from epistream.sharding.format.manifest_file import FILE_NAME, read_manifest
from epistream.sharding.format.opened_dataset import Dataset
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, merge_all
from epistream.sharding.pictures.video import pyav

# Sums in another order differ in the last digits; a wrong split or a stale manifest differs in the first.
_RELATIVE = 1e-4


@dataclass
class Report:
    """What was looked at, and what was wrong with it."""

    faults: list[Fault] = field(default_factory=list)
    num_shards: int = 0
    num_episodes: int = 0
    num_frames: int = 0
    num_bytes: int = 0
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
        advance: Called with bytes of tars that were dealt with, all in all the sum of `dataset.shard_bytes`. From
            several threads.
        report_fault: Called with each fault as soon as its shard is done, in the order of shards.

    Raises:
        OptionError: If the dataset is not made of tars, or has videos and PyAV is not installed.
    """
    options = options or VerifyOptions()
    other = next((url for url in dataset.shard_url if not is_tar(url)), None)
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
    with ThreadPoolExecutor(options.num_threads, "verify") as pool:
        checks = pool.map(lambda shard: ShardCheck(dataset, shard, options, advance).run(), range(dataset.num_shards))
        for shard, check in enumerate(checks):
            report.num_shards += 1
            report.num_bytes += int(dataset.shard_bytes[shard])
            report.num_frames += check.num_frames
            report.not_finite = add_counts((report.not_finite, check.not_finite))
            take(check.faults)
            if manifest and dataset.splits[dataset.columns.shard_split[shard]] == manifest.statistics_split:
                statistics = merge_all((statistics, check.statistics))
    if manifest:
        take(_source_faults(manifest))
        take(_strangers(dataset, manifest))
        if options.statistics:
            take(_statistics_faults(dataset, manifest, statistics))
    return report


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
        f"{url}: no tar. Verify checks packed datasets; pack it first: epistream pack {shlex.quote(url)} OUT"
    )


def _whole_manifest(dataset: Dataset) -> Manifest | None:
    """The manifest that `dataset` is all of; None for a part, a list, or tars without one."""
    try:
        manifest = read_manifest(dataset.url, dataset.storage_options)
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
    """Tars in a dataset's folder that its manifest does not name: a brace pattern would read them."""
    steps = manifest.provenance.get("steps")
    copied = steps.get("copied", ()) if isinstance(steps, dict) else ()  # of these nothing is read
    known = {*manifest.columns.names, *copied}
    for name in list_names(dataset.url, dataset.storage_options) or ():
        if name.endswith(".tar") and name not in known:
            yield Fault(name, "", "a tar that the manifest does not name", "no other tars in the dataset's folder")


def _statistics_faults(dataset: Dataset, manifest: Manifest, statistics: dict[str, Summary]) -> Iterator[Fault]:
    """Compare the manifest's statistics with those of the split they were computed on: means within rounding.

    Only for all of a manifest: the statistics of a part are those of the whole, and those of a list are merged.
    """
    if manifest.statistics_split is None:
        return
    split = manifest.splits.index(manifest.statistics_split)
    num_steps = int(dataset.episode_length[dataset.episode_split == split].sum())
    for name, said in dataset.statistics.items():
        if said["count"] != num_steps:
            yield Fault(FILE_NAME, f"statistics of {name}", f"of {said['count']} steps", f"{num_steps}")
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
                yield Fault(FILE_NAME, f"statistics of {name}", found, wanted)
