"""HDF5 files as a dataset: their indexes put together, with statistics, without repacking anything."""

import contextlib
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py

from epistream.access import Access
from epistream.errors import FormatError, SourceChangedError, SourceError
from epistream.sharding.files.hdf5_sources import given_twice
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import Options
from epistream.sharding.files.user_cache import default_folder, make_once
from epistream.sharding.format.dataset_statistics import (
    Loaded,
    MoreStatistics,
    Plain,
    pack_sketches,
    read_sketches,
    sketch_key,
    statistics_problem,
)
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.feature_sets import Wanted, agreed, matching
from epistream.sharding.format.features import Feature
from epistream.sharding.format.left_out import BAD_FILE, oddity, open_good, sentence, tell_left_out, usual_features
from epistream.sharding.format.manifest_builder import ShardSummary, join_shards, splits_of
from epistream.sharding.format.manifest_columns import fingerprint
from epistream.sharding.format.opened_dataset import Dataset
from epistream.sharding.format.statistics import (
    NotFinite,
    Summary,
    add_counts,
    count_not_finite,
    merge_all,
    summarize,
    to_plain,
)
from epistream.sharding.hdf5.file import read_hdf5, version_and_bytes
from epistream.sharding.hdf5.kept import KeptIndex, keep_indexes
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.layouts.names import made_names
from epistream.sharding.layouts.other_files import OtherFile, check_unchanged
from epistream.sharding.layouts.reading import read_array
from epistream.sharding.layouts.registry import described, layout_of

_log = logging.getLogger(__name__)

# Raised when the same files would give other statistics.
_STATISTICS_RECIPE = 1
_Sums = tuple[dict[str, Summary], dict[str, NotFinite]]
KeepOf = Callable[[str], list[KeptIndex]]


@dataclass(frozen=True)
class _Shard:
    """What is kept of an index while the others are read."""

    url: str
    version: str
    path: str
    through_h5py: Sequence[str]
    left_out: Sequence[str]
    others: tuple[OtherFile, ...]
    summary: ShardSummary


def open_hdf5_files(
    urls: Sequence[str],
    options: Options = None,
    *,
    url: str = "",
    folder: Path | None = None,
    skip_bad: bool = False,
    layout: str | MappingLayout | None = None,
    allow_outside: bool = False,
    features: Wanted | None = None,
) -> Dataset:
    """Index every file that was not indexed before, and describe all of them.

    Args:
        urls: Absolute paths or URLs, in the order of the episodes.
        options: For fsspec.
        url: What was given, for messages; the first file unless there is something better.
        folder: Where indexes are kept, see `keep_indexes`.
        skip_bad: Leave out files that cannot be read or have other features than most episodes.
        layout: Insist on this layout instead of finding that of each file.
        allow_outside: Whether files may read from others outside of their folders.
        features: Names and patterns of the features in which files must agree; in all if None.

    Raises:
        SourceError: If a file is missing, unreadable, or given twice.
        LayoutError: If one fits no layout.
        FormatError: If their features differ.
        SourceChangedError, CacheError, DeadlineError: As `keep_indexes`.
    """
    twice = given_twice(urls)
    if twice:
        raise SourceError(f"{twice[0]}: given twice (also as {twice[1]}), wanted each file once. Correct the pattern.")
    folder = folder or default_folder()
    skipped: dict[str, str] = {}
    look_again: KeepOf = partial(
        keep_indexes, options=options, folder=folder, layout=layout, allow_outside=allow_outside
    )
    keep_of = look_again
    if skip_bad:
        keep_of = cache(look_again)  # every file is looked at before any of them is taken
        urls, skipped = _usable(urls, keep_of, features)
    while True:
        dataset, shards = _describe(urls, keep_of, features)
        try:
            sum_up = partial(
                _sum_up,
                options=options,
                layout=layout,
                allow_outside=allow_outside,
                features=frozenset(dataset.features),
            )
            statistics = _statistics(dataset, shards, sum_up, folder)
            break
        except _ChangedError as changed:  # since it was looked at
            if not skip_bad or len(urls) == 1:
                raise changed.reason from None
            skipped[changed.url] = sentence(changed.reason)
            tell_left_out([skipped[changed.url]])
            urls = [one for one in urls if one != changed.url]
    _say_what_is_slow(shards)
    _say_what_is_missing(dataset, shards)
    describe = partial(_describe, keep_of=look_again, wanted=features)
    more = partial(_more_again, tuple(urls), describe, sum_up, folder, dataset.fingerprint, statistics)
    return replace(
        dataset,
        url=url or dataset.url,
        statistics=statistics,
        more=MoreStatistics(more),
        storage_options=Access.of(options),
        skipped=skipped,
    )


def _usable(urls: Sequence[str], keep_of: KeepOf, wanted: Wanted | None) -> tuple[list[str], dict[str, str]]:
    """The files that can be read and have the usual features, and why each of the others is left out."""

    def look(url: str) -> tuple[str, dict[str, Feature], int]:
        rows = [one.index.rows for one in keep_of(url)]
        features = rows[0].features
        if wanted is not None:
            features = {name: features[name] for name in matching(features, wanted)}
        return url, features, sum(one.num_episodes for one in rows)

    if not urls:
        return [], {}
    good, left_out = open_good(urls, look, lambda url: [url])
    usual = usual_features((features, num_episodes) for _, features, num_episodes in good)
    odd = {url: f"{url}: {what}." for url, features, _ in good if (what := oddity(features, usual))}
    tell_left_out(odd.values())
    left_out |= odd
    return [url for url in urls if url not in left_out], {url: left_out[url] for url in urls if url in left_out}


class _ChangedError(Exception):
    """A file is not as it was when it was indexed."""

    def __init__(self, url: str, reason: Exception) -> None:
        super().__init__(url)
        self.url, self.reason = url, reason


def _describe(urls: Sequence[str], keep_of: KeepOf, wanted: Wanted | None) -> tuple[Dataset, list[_Shard]]:
    """All files as one dataset without statistics, and its shards."""
    shards: list[_Shard] = []
    features: dict[str, Feature] = {}
    num_episodes = 0
    for url in urls:
        kept = keep_of(url)
        mine = kept[0].index.rows.features
        features = agreed(features, urls[0], mine, url, wanted) if shards else mine
        for one in kept:
            summary = ShardSummary.of(one.index.rows, one.data)
            summary = replace(summary, numbers=num_episodes + summary.numbers)
            shards.append(
                _Shard(
                    url=url,
                    version=one.index.extents.version,
                    path=one.path,
                    through_h5py=one.index.needs_h5py,
                    left_out=one.index.left_out,
                    others=one.index.extents.others,
                    summary=summary,
                )
            )
        num_episodes += sum(one.index.rows.num_episodes for one in kept)
    if not shards:
        raise SourceError("HDF5 files: none, wanted at least one.")
    summaries = [shard.summary for shard in shards]
    if any(summary.split != NO_SPLIT for summary in summaries):
        # A file without masks among files with them is training data.
        summaries = [replace(one, split="train") if one.split == NO_SPLIT else one for one in summaries]
    splits = splits_of(summaries)
    columns, tasks, _ = join_shards(summaries, splits)
    dataset = Dataset(
        url=urls[0],
        features=features,
        shard_url=tuple(shard.url for shard in shards),
        index_url=tuple(shard.path for shard in shards),
        columns=columns,
        splits=splits,
        tasks=tasks,
        statistics={},
        fingerprint=fingerprint(features, splits, columns),
    )
    return dataset, shards


def _say_what_is_missing(dataset: Dataset, shards: Sequence[_Shard]) -> None:
    left_out = sorted({one for shard in shards for one in shard.left_out})
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        _log.warning("%s: not streamed: %s%s", dataset.url, ", ".join(left_out[:3]), more)
    made = made_names(dataset.features.values())
    if made:
        _log.warning("%s: keys that no feature can be called by: %s", dataset.url, "; ".join(made))


def _say_what_is_slow(shards: Sequence[_Shard]) -> None:
    paths = sorted({path for shard in shards for path in shard.through_h5py})
    if paths:
        files = {shard.url for shard in shards if shard.through_h5py}
        _log.warning(
            "%d of %d HDF5 files: %s read through h5py and several times slower, because filtered (gzip, lzf), of "
            "variable length, virtual or external. Pack them with 'epistream pack', or keep what is unpacked once for "
            "all ranks with cache='shm'.",
            len(files),
            len({shard.url for shard in shards}),
            ", ".join(paths[:3]) + (f" and {len(paths) - 3} more datasets" if len(paths) > 3 else ""),
        )


def _statistics(
    dataset: Dataset, shards: Sequence[_Shard], sum_up: Callable[[_Shard], _Sums], folder: Path
) -> dict[str, dict[str, Any]]:
    """Of the training episodes, as packing computes them; computed once and kept beside the indexes.

    So are their sketches and the count of what is not finite, in a file that is read when somebody asks.
    """
    path = folder / f"{dataset.fingerprint}.statistics-{_STATISTICS_RECIPE}.json"

    def make() -> list[tuple[str, bytes]]:
        summaries, not_finite = _sums(dataset, shards, sum_up)
        result = {name: to_plain(summaries[name]) for name in dataset.features if name in summaries}
        sketches = _pack_sketches(dataset.fingerprint, result, summaries, not_finite)
        return [(_sketch_path(path).name, sketches), (path.name, json.dumps(result).encode())]

    lock = path.with_suffix(".lock")
    return make_once(lock, lambda: _read_statistics(path, dataset.features), make, shards[0].url)


def _sketch_path(statistics: Path) -> Path:
    return statistics.with_suffix(".tables")


def _sums(dataset: Dataset, shards: Sequence[_Shard], sum_up: Callable[[_Shard], _Sums]) -> _Sums:
    """Of the training episodes; counts of what is not finite, of all."""
    wanted = ("train" if "train" in dataset.splits else dataset.splits[0], NO_SPLIT)
    summaries: dict[str, Summary] = {}
    not_finite: dict[str, NotFinite] = {}
    for shard in shards:
        summed, counts = sum_up(shard)
        not_finite = add_counts((not_finite, counts))
        if shard.summary.split in wanted:
            summaries = merge_all((summaries, summed))
    return summaries, not_finite


def _pack_sketches(
    fingerprint: str, statistics: Plain, summaries: dict[str, Summary], not_finite: dict[str, NotFinite]
) -> bytes:
    sketches = {name: summary.levels for name, summary in summaries.items()}
    return pack_sketches(sketch_key(fingerprint, statistics), sketches, not_finite)


def _more_again(
    urls: Sequence[str],
    describe: Callable[[Sequence[str]], tuple[Dataset, list[_Shard]]],
    sum_up: Callable[[_Shard], _Sums],
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
    path = _sketch_path(folder / f"{fingerprint}.statistics-{_STATISTICS_RECIPE}.json")

    def read() -> Loaded | None:
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
        except _ChangedError as changed:
            raise changed.reason from None
        return [(path.name, _pack_sketches(fingerprint, statistics, *sums))]

    return make_once(path.with_suffix(".lock"), read, make, shards[0].url)


def _read_statistics(path: Path, features: dict[str, Feature]) -> dict[str, dict[str, Any]] | None:
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(path.read_bytes())
        mark_used(path)
        if isinstance(values, dict) and statistics_problem(values, features) is None:
            return values
    return None


def _sum_up(
    shard: _Shard,
    options: Options,
    layout: str | MappingLayout | None,
    allow_outside: bool,
    features: Collection[str],
) -> _Sums:
    """Of the arrays of one shard, read again: only the first opening of a dataset does so.

    Raises:
        _ChangedError: If they cannot be read any more, or are no longer those of its index.
    """

    def sum_up(file: h5py.File, _: Any) -> _Sums:
        found = layout_of(file, layout)
        summaries: dict[str, Summary] = {}
        not_finite: dict[str, NotFinite] = {}
        for meta in shard.summary.episodes:
            episode = described(found, file, meta.source_path)
            arrays = {
                field.feature.name: read_array(file, field, episode.length)
                for field in episode.fields
                if field.feature.kind == "array" and field.feature.name in features
            }
            summaries = merge_all((summaries, {name: summarize(values) for name, values in arrays.items()}))
            not_finite = add_counts((not_finite, count_not_finite(arrays)))
        return summaries, not_finite

    try:
        sums = read_hdf5(shard.url, options, sum_up, allow_outside=allow_outside)
        check_unchanged(shard.others, shard.url)
        if version_and_bytes(shard.url, options)[0] != shard.version:
            raise SourceChangedError(f"{shard.url}: changed since it was indexed. Try again when it is complete.")
    except BAD_FILE as error:
        raise _ChangedError(shard.url, error) from error
    return sums
