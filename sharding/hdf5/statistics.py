"""Statistics of HDF5 files that are streamed: computed once, and kept beside their indexes."""

import contextlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceChangedError
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import Options
from epistream.sharding.files.user_cache import make_once
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.format.features import Feature
from epistream.sharding.format.left_out import BAD_FILE
from epistream.sharding.format.statistics import (
    NotFinite,
    Summary,
    add_counts,
    count_not_finite,
    merge_all,
    plain_statistics,
    summarize,
)
from epistream.sharding.hdf5.file import read_hdf5
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.layouts.reading import read_array
from epistream.sharding.layouts.registry import described, layout_of
from epistream.sharding.manifest.dataset_statistics import (
    Loaded,
    Plain,
    pack_sketches,
    read_sketches,
    sketch_key,
    statistics_problem,
)
from epistream.sharding.manifest.manifest_builder import ShardSummary
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.manifest.record_making import valid_steps
from epistream.sharding.opening.other_files import OtherFile, check_unchanged

# Raised when the same files would give other statistics.
_RECIPE = 2
Sums = tuple[dict[str, Summary], dict[str, NotFinite]]
SumUp = Callable[["IndexedShard", NDArray[np.bool_]], Sums]


@dataclass(frozen=True)
class IndexedShard:
    """What is kept of an index while the others are read."""

    url: str
    version: str
    path: str
    through_h5py: Sequence[str]
    left_out: Sequence[str]
    others: tuple[OtherFile, ...]
    summary: ShardSummary


class ChangedError(SourceChangedError):
    """A file is not as it was when it was indexed: which one, and the error that told so."""

    def __init__(self, url: str, reason: Exception) -> None:
        super().__init__(f"{url}: changed since it was indexed: {reason}")
        self.url, self.reason = url, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.reason), self.__dict__


def statistics_of(
    dataset: Dataset, shards: Sequence[IndexedShard], sum_up: SumUp, folder: Path
) -> dict[str, dict[str, Any]]:
    """Of the training episodes, as packing computes them; computed once and kept beside the indexes.

    So are their sketches and the count of what is not finite, in a file that is read when somebody asks.
    """
    name = _statistics_name(dataset.fingerprint)

    def make() -> list[tuple[str, bytes]]:
        summaries, not_finite = _sums(dataset, shards, sum_up)
        result = plain_statistics({name: summaries[name] for name in dataset.features if name in summaries})
        sketches = _pack_sketches(dataset.fingerprint, result, summaries, not_finite)
        return [(_sketch_name(name), sketches), (name, json.dumps(result).encode())]

    lock = (folder / name).with_suffix(".lock")
    return make_once(lock, lambda place: _read_statistics(place / name, dataset.features), make, shards[0].url)


def _statistics_name(fingerprint: str) -> str:
    return f"{fingerprint}.statistics-{_RECIPE}.json"


def _sketch_name(statistics: str) -> str:
    return str(Path(statistics).with_suffix(".tables"))


def _sums(dataset: Dataset, shards: Sequence[IndexedShard], sum_up: SumUp) -> Sums:
    """Of the training episodes; counts of what is not finite, of all."""
    is_wanted = dataset.episode_split == dataset.splits.index(
        "train" if "train" in dataset.splits else dataset.splits[0]
    )
    summaries: dict[str, Summary] = {}
    not_finite: dict[str, NotFinite] = {}
    for shard in shards:
        summed, counts = sum_up(shard, is_wanted[shard.summary.numbers])
        not_finite = add_counts((not_finite, counts))
        summaries = merge_all((summaries, summed))
    return summaries, not_finite


def _pack_sketches(
    fingerprint: str, statistics: Plain, summaries: dict[str, Summary], not_finite: dict[str, NotFinite]
) -> bytes:
    sketches = {name: summary.levels for name, summary in summaries.items()}
    return pack_sketches(sketch_key(fingerprint, statistics), sketches, not_finite)


def more_statistics(
    urls: Sequence[str],
    describe: Callable[[Sequence[str]], tuple[Dataset, list[IndexedShard]]],
    sum_up: SumUp,
    folder: Path,
    fingerprint: str,
    statistics: Plain,
) -> Loaded:
    """What is kept of the files beside their statistics; made now where statistics are of a release that kept no more.

    Raises:
        SourceError, FormatError, LayoutError, SourceChangedError, CacheError, DeadlineError: As `open_hdf5_files`.
    """
    dataset, shards = describe(urls)
    if dataset.fingerprint != fingerprint:
        raise SourceChangedError(f"{urls[0]}: changed since it was opened, or others with it. Open them again.")
    key = sketch_key(fingerprint, statistics)
    name = _sketch_name(_statistics_name(fingerprint))

    def read(place: Path) -> Loaded | None:
        path = place / name
        try:
            found = read_sketches(str(path), key, statistics, None)
            if found is not None:
                mark_used(path)
        except (FormatError, OSError):
            return None  # made again
        return found

    def make() -> list[tuple[str, bytes]]:
        try:
            sums = _sums(dataset, shards, sum_up)
        except ChangedError as changed:
            raise changed.reason from None
        return [(name, _pack_sketches(fingerprint, statistics, *sums))]

    return make_once((folder / name).with_suffix(".lock"), read, make, shards[0].url)


def _read_statistics(path: Path, features: dict[str, Feature]) -> dict[str, dict[str, Any]] | None:
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(path.read_bytes())
        mark_used(path)
        if isinstance(values, dict) and statistics_problem(values, features) is None:
            return values
    return None


def sum_up_shard(
    shard: IndexedShard,
    is_wanted: NDArray[np.bool_],
    options: Options,
    layout: str | MappingLayout | None,
    allow_outside: bool,
    features: Collection[str],
) -> Sums:
    """Of the arrays of one shard, read again: only the first opening of a dataset does so.

    What is not finite is counted in all episodes; summaries are of those that `is_wanted` names.

    Raises:
        ChangedError: If they cannot be read any more, or are no longer those of its index.
    """

    def sum_up(file: h5py.File, _: Any) -> Sums:
        found = layout_of(file, layout)
        summaries: dict[str, Summary] = {}
        not_finite: dict[str, NotFinite] = {}
        for meta, is_summed in zip(shard.summary.episodes, is_wanted.tolist(), strict=True):
            episode = described(found, file, meta.source_path)
            arrays = {
                field.feature.name: valid_steps(read_array(file, field, episode.length), meta.valid_ranges)
                for field in episode.fields
                if field.feature.kind == "array" and field.feature.name in features
            }
            if is_summed:
                summaries = merge_all((summaries, {name: summarize(values) for name, values in arrays.items()}))
            not_finite = add_counts((not_finite, count_not_finite(arrays)))
        return summaries, not_finite

    try:
        sums = read_hdf5(shard.url, options, sum_up, allow_outside=allow_outside)
        check_unchanged(shard.others, shard.url)
        if version_and_bytes(shard.url, options)[0] != shard.version:
            raise SourceChangedError(f"{shard.url}: changed since it was indexed. Try again when it is complete.")
    except BAD_FILE as error:
        raise ChangedError(shard.url, error) from error
    return sums
