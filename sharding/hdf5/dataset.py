"""HDF5 files as a dataset: their indexes put together, with statistics, without repacking anything."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import xxhash

from epistream.access import Access
from epistream.errors import SourceError
from epistream.sharding.files.hdf5_sources import given_twice
from epistream.sharding.files.storage import Options
from epistream.sharding.files.user_cache import default_folder
from epistream.sharding.format.division import NAMES, Division, identity_of
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.feature_sets import Wanted, agreed, matching
from epistream.sharding.format.features import Feature
from epistream.sharding.format.left_out import oddity, open_good, sentence, tell_left_out, usual_features
from epistream.sharding.hdf5.kept import KeptIndex, keep_indexes
from epistream.sharding.hdf5.scan import NothingWantedError
from epistream.sharding.hdf5.statistics import ChangedError, IndexedShard, more_statistics, statistics_of, sum_up_shard
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.layouts.names import made_names
from epistream.sharding.manifest.dataset_statistics import MoreStatistics
from epistream.sharding.manifest.manifest_builder import ShardSummary, join_shards, splits_of
from epistream.sharding.manifest.manifest_columns import fingerprint
from epistream.sharding.manifest.opened_dataset import Dataset

_log = logging.getLogger(__name__)

KeepOf = Callable[[str], list[KeptIndex]]


def open_hdf5_files(
    urls: Sequence[str],
    options: Options = None,
    *,
    folder: Path | None = None,
    skip_bad: bool = False,
    layout: str | MappingLayout | None = None,
    allow_outside: bool = False,
    features: Wanted | None = None,
    division: Division | None = None,
) -> Dataset:
    """Index every file that was not indexed before, and describe all of them.

    Args:
        urls: Absolute paths or URLs, in the order of the episodes.
        options: For fsspec.
        folder: Where indexes are kept, see `keep_indexes`.
        skip_bad: Leave out files that cannot be read or have other features than most episodes.
        layout: Insist on this layout instead of finding that of each file.
        allow_outside: Whether files may read from others outside of their folders.
        features: Names and patterns of the features in which files must agree; in all if None.
        division: Which episodes are for validation, whatever masks the files have; as these say if None.

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
        unwanted: dict[str, str] = {}
        dataset, shards = _describe(urls, keep_of, features, division, unwanted)
        try:
            sum_up = partial(
                sum_up_shard,
                options=options,
                layout=layout,
                allow_outside=allow_outside,
                features=frozenset(dataset.features),
            )
            statistics = statistics_of(dataset, shards, sum_up, folder)
            break
        except ChangedError as changed:  # since it was looked at
            if not skip_bad or len(urls) == 1:
                raise changed.reason from None
            skipped[changed.url] = sentence(changed.reason)
            tell_left_out([skipped[changed.url]])
            urls = [one for one in urls if one != changed.url]
    if unwanted:
        _log.warning("left out as the layout file says: %d, such as %s", len(unwanted), next(iter(unwanted.values())))
    _say_what_is_slow(shards)
    _say_what_is_missing(dataset, shards)
    if division is not None:
        counts = np.bincount(dataset.episode_split).tolist()
        note = division.note(dict(zip(dataset.splits, counts, strict=True)))
        if note is not None:
            _log.warning("%s: %s", dataset.url, note)
    describe = partial(_describe, keep_of=look_again, wanted=features, division=division, unwanted={})
    more = partial(more_statistics, tuple(urls), describe, sum_up, folder, dataset.fingerprint, statistics)
    return replace(
        dataset,
        statistics=statistics,
        more=MoreStatistics(more),
        storage_options=Access.of(options),
        skipped=skipped | unwanted,
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


def _describe(
    urls: Sequence[str],
    keep_of: KeepOf,
    wanted: Wanted | None,
    division: Division | None,
    unwanted: dict[str, str],
) -> tuple[Dataset, list[IndexedShard]]:
    """All files as one dataset without statistics, and its shards; what a layout file leaves out is noted."""
    shards: list[IndexedShard] = []
    features: dict[str, Feature] = {}
    identities: dict[int, str] = {}
    num_episodes = 0
    for url in urls:
        try:
            kept = keep_of(url)
        except NothingWantedError as error:
            unwanted[url] = str(error)
            continue
        unwanted |= {f"{url}:{one.split(' (')[0]}": f"{url}: {one}." for one in kept[0].index.excluded}
        mine = kept[0].index.rows.features
        features = agreed(features, shards[0].url, mine, url, wanted) if shards else mine
        for one in kept:
            summary = ShardSummary.of(one.index.rows, one.data)
            summary = replace(summary, numbers=num_episodes + summary.numbers)
            for number, meta in zip(summary.numbers.tolist(), summary.episodes, strict=True):
                file_bytes = one.index.extents.file_bytes
                identities[number] = identity_of(url, meta.source_path, meta.length, file_bytes)
            shards.append(
                IndexedShard(
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
    if not shards and unwanted:
        raise SourceError(
            f"{next(iter(unwanted.values()))} No episode is left of {len(urls)} files. Correct 'where' in the layout "
            "file."
        )
    if not shards:
        raise SourceError("HDF5 files: none, wanted at least one.")
    summaries = [shard.summary for shard in shards]
    if division is not None:
        summaries = [replace(one, split=NO_SPLIT) for one in summaries]
    elif any(summary.split != NO_SPLIT for summary in summaries):
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
    if division is not None:
        dataset = _divided(dataset, division, [identities[number] for number in sorted(identities)])
    return dataset, shards


def _divided(dataset: Dataset, division: Division, identities: Sequence[str]) -> Dataset:
    """The dataset with other splits. Its fingerprint knows them: statistics are of the training episodes."""
    names = division.names(identities)
    splits = tuple(name for name in NAMES if name in names)
    numbers = np.array([splits.index(name) for name in names], np.uint8)
    known = xxhash.xxh3_128_hexdigest(dataset.fingerprint.encode() + numbers.tobytes())
    return replace(dataset, splits=splits, columns=replace(dataset.columns, episode_split=numbers), fingerprint=known)


def _say_what_is_missing(dataset: Dataset, shards: Sequence[IndexedShard]) -> None:
    left_out = sorted({one for shard in shards for one in shard.left_out})
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        _log.warning("%s: not streamed: %s%s", dataset.url, ", ".join(left_out[:3]), more)
    made = made_names(dataset.features.values())
    if made:
        _log.warning("%s: keys that no feature can be called by: %s", dataset.url, "; ".join(made))


def _say_what_is_slow(shards: Sequence[IndexedShard]) -> None:
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
