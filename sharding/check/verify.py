"""Checking a dataset: every checksum, every index against its tar as tarfile reads it, every frame by decoding it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from epistream.errors import EpistreamError, OptionError
from epistream.sharding.check.verify_report import Fault, Moments, Report, VerifyOptions
from epistream.sharding.check.verify_shard import check_shard
from epistream.sharding.check.verify_statistics import statistics_faults
from epistream.sharding.files.names import is_tar
from epistream.sharding.files.sources import AnySource, Hdf5Files, resolve
from epistream.sharding.files.storage import list_names
from epistream.sharding.format.manifest import Manifest
from epistream.sharding.format.manifest_file import read_manifest
from epistream.sharding.format.opened_dataset import Dataset


def verify(
    dataset: Dataset,
    options: VerifyOptions | None = None,
    advance: Callable[[int], None] | None = None,
    report_fault: Callable[[Fault], None] | None = None,
) -> Report:
    """Look at everything a dataset promises; go on after a fault.

    Args:
        dataset: Opened, so that its manifest is whole.
        options: How thoroughly to look.
        advance: Called with bytes of tars that were dealt with, all in all the sum of `dataset.shard_bytes`. From
            several threads.
        report_fault: Called with each fault as soon as its shard is done, in the order of shards.

    Raises:
        OptionError: If the dataset is not made of tars.
    """
    options = options or VerifyOptions()
    other = next((url for url in dataset.shard_url if not is_tar(url)), None)
    if other:
        raise _no_tar(other)
    advance = advance or (lambda num_bytes: None)
    report = Report(num_episodes=dataset.num_episodes)

    def take(faults: list[Fault]) -> None:
        report.faults += faults
        for fault in faults:
            if report_fault:
                report_fault(fault)

    moments: list[tuple[int, dict[str, Moments]]] = []
    with ThreadPoolExecutor(options.num_threads, "verify") as pool:
        checked = pool.map(lambda shard: check_shard(dataset, shard, options, advance), range(dataset.num_shards))
        for shard, result in enumerate(checked):
            report.num_shards += 1
            report.num_bytes += int(dataset.shard_bytes[shard])
            report.num_frames += result.num_frames
            moments.append((shard, result.moments))
            take(result.faults)
    manifest = _whole_manifest(dataset)
    take(list(_strangers(dataset, manifest)))
    if options.statistics and manifest is not None:
        take(list(statistics_faults(dataset, manifest, moments)))
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
    return OptionError(f"{url}: no tar. Verify checks packed datasets; pack it first: epistream pack {url} OUT")


def _whole_manifest(dataset: Dataset) -> Manifest | None:
    """The manifest that `dataset` is all of; None for a part, a list, or tars without one."""
    try:
        manifest = read_manifest(dataset.url, dataset.storage_options)
    except EpistreamError:
        return None
    return manifest if manifest.fingerprint == dataset.fingerprint else None


def _strangers(dataset: Dataset, manifest: Manifest | None) -> Iterator[Fault]:
    """Tars in a dataset's folder that its manifest does not name: a brace pattern would read them."""
    if manifest is None:
        return
    known = set(manifest.columns.names)
    for name in list_names(dataset.url, dataset.storage_options) or ():
        if name.endswith(".tar") and name not in known:
            yield Fault(name, "", "a tar that the manifest does not name", "no other tars in the dataset's folder")
