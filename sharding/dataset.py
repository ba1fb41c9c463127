"""Opening a dataset: one read-only table of shards and episodes, wherever they are and however they were given."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError, LayoutError, OptionError, SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.names import index_name
from epistream.sharding.files.sources import AnySource, Folder, Hdf5Files, Part, Tars, resolve
from epistream.sharding.files.storage import join, read_bytes
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.features import Feature, describe_difference
from epistream.sharding.format.manifest import Manifest
from epistream.sharding.format.manifest_columns import HexRows
from epistream.sharding.format.manifest_file import FILE_NAME, read_manifest
from epistream.sharding.format.statistics_schema import merge_statistics

if TYPE_CHECKING:  # the layouts read h5py, which shards do without
    from epistream.sharding.layouts.mapping import MappingLayout

Int64 = NDArray[np.int64]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """S shards and E episodes, E in dataset order: an episode's position here is its `episode_index`.

    Args:
        url: What was opened, for messages.
        features: By name.
        shard_url: (S,) tars, or HDF5 files; one that makes several shards is named several times.
        index_url: (S,) their indexes.
        shard_bytes: (S,) sizes of the tars.
        index_bytes: (S,) sizes of the indexes.
        shard_checksum: (S,) XXH3-128 of the tars, hexadecimal.
        index_checksum: (S,) XXH3-128 of the indexes, hexadecimal.
        episode_shard: (E,) position of the episode's shard.
        episode_in_shard: (E,) the episode's position in its shard's index.
        episode_length: (E,) steps.
        episode_split: (E,) position in `splits`.
        splits: Names; ("all",) when there is no split.
        valid_ranges: Offsets (E + 1,) into half-open step ranges (R, 2): where anchors may be.
        tasks: Every instruction once.
        episode_tasks: Offsets (E + 1,) into flat positions in `tasks`.
        statistics: By array feature: count, mean, std, min, max, q01, q99.
        fingerprint: Of all that decides which bytes an epoch reads.
        storage_options: For fsspec, as given.
        skipped: Why each file or folder was left out, by its path; see `open_dataset`.

    The arrays are read-only where they are views of a manifest's file. Pickles, so that workers need not read again.
    """

    url: str
    features: dict[str, Feature]
    shard_url: Sequence[str]
    index_url: Sequence[str]
    shard_bytes: Int64
    index_bytes: Int64
    shard_checksum: Sequence[str]
    index_checksum: Sequence[str]
    episode_shard: Int64
    episode_in_shard: Int64
    episode_length: Int64
    episode_split: NDArray[np.uint8]
    splits: tuple[str, ...]
    valid_ranges: tuple[Int64, Int64]
    tasks: tuple[str, ...]
    episode_tasks: tuple[Int64, Int64]
    statistics: dict[str, dict[str, Any]]
    fingerprint: str
    storage_options: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """Shards."""
        return len(self.shard_bytes)

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.episode_length)

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.episode_length.sum())


def open_dataset(
    source: AnySource | Sequence[AnySource],
    storage_options: Mapping[str, Any] | None = None,
    *,
    on_bad: Literal["raise", "skip"] = "raise",
    layout: "str | os.PathLike[str] | MappingLayout | None" = None,
) -> Dataset:
    """Open a dataset without reading any of its shards.

    Args:
        source: A folder or URL with a ``dataset.json``; tars as a brace pattern (``s3://b/shard-{000000..000003}.tar``)
            or, local ones, as a glob; or a list of these, whose episodes follow each other. Tars in the folder of a
            dataset are that part of it. Local tars without one are indexed once, in the user's cache folder. HDF5
            files, folders and globs of them likewise: they are read where they are, see ``docs/hdf5.md``.
        storage_options: For fsspec: credentials, endpoints.
        on_bad: What an HDF5 file does that cannot be read, fits no layout or has other features than most, or in a list
            a dataset of shards that is missing or torn: ``"raise"`` an error, or ``"skip"``: it is left out, with a
            warning, and named in `Dataset.skipped`.
        layout: Of HDF5 files: the name of a known one, or a YAML file of your own, as ``epistream pack --layout-file``
            takes it; found from each file by default. Not for shards alone.

    Returns:
        The dataset. In a list, a part without a split counts as ``train`` beside parts that have one.

    Raises:
        OptionError: If `source` cannot be understood, or `layout` is given and there are only shards.
        SourceError: If there is no dataset; the message says what is there instead.
        VersionError: If it was written in a later format.
        FormatError: If it is torn, or parts of a list have different features.
        LayoutError: If an HDF5 file fits no known layout.
    """
    options = dict(storage_options or {})
    hdf5 = partial(_open_hdf5, options=options, skip_bad=on_bad == "skip", layout=layout)

    def open_part(part: Part) -> Dataset:
        return hdf5(part) if isinstance(part, Hdf5Files) else _open(part, options)

    parts = resolve(source)
    skipped: dict[str, str] = {}
    if on_bad == "skip" and len(parts) > 1:
        opened, skipped = _usable_parts(parts, open_part)
    else:
        opened = [open_part(part) for part in parts]
    dataset = opened[0] if len(opened) == 1 else _concatenate(opened)
    if layout is not None and not any(isinstance(part, Hdf5Files) for part in parts):
        raise OptionError(
            f"{dataset.url}: shards, whose layout was settled when they were packed; layout is {str(layout)!r}, "
            "wanted HDF5 files for it. Leave 'layout' out."
        )
    return replace(dataset, skipped=skipped | dataset.skipped) if skipped else dataset


def _usable_parts(parts: Sequence[Part], open_part: Callable[[Part], Dataset]) -> tuple[list[Dataset], dict[str, str]]:
    """Parts that can be opened, and why each of the others cannot, by its path; the log has that as well.

    Raises:
        SourceError, SourceChangedError, LayoutError, FormatError: That of the first part, if none can be opened.
    """
    opened: list[Dataset] = []
    skipped: dict[str, str] = {}
    first: Exception | None = None
    waiting = list(parts)
    while waiting:
        part = waiting.pop(0)
        try:
            opened.append(open_part(part))
        except (SourceError, SourceChangedError, LayoutError, FormatError) as error:
            first = first or error
            pieces = _pieces(part)
            if len(pieces) > 1:
                waiting[:0] = pieces
                continue
            skipped |= dict.fromkeys(_names(part), str(error))
            _log.warning("left out: %s", error)
    if not opened and first:
        raise first
    return opened, skipped


def _pieces(part: Part) -> list[Part]:
    """Its files one by one, if each can be bad for a reason of its own."""
    if isinstance(part, Hdf5Files):
        return [Hdf5Files(file, (file,)) for file in part.files]
    if isinstance(part, Tars) and local_path(part.url) is not None:
        return [Tars(part.url, (name,)) for name in part.names]
    return [part]  # remote tars share the manifest that they cannot do without


def _names(part: Part) -> list[str]:
    """The paths and URLs that a part has in messages."""
    if isinstance(part, Hdf5Files):
        return [_absolute(file) for file in part.files]
    if isinstance(part, Tars):
        return [join(_absolute(part.url), name) for name in part.names]
    return [_absolute(part.url)]


def _open_hdf5(
    part: Hdf5Files,
    options: dict[str, Any],
    skip_bad: bool,
    layout: "str | os.PathLike[str] | MappingLayout | None",
) -> Dataset:
    from epistream.sharding.hdf5.dataset import open_hdf5_files
    from epistream.sharding.layouts.layout_file import chosen_layout

    urls = [_absolute(url) for url in part.files]
    opened = open_hdf5_files(urls, options, skip_bad=skip_bad, layout=chosen_layout(layout))
    dataset = _from_manifest(opened.manifest, part.url, options, opened.index_urls, opened.shard_urls)
    return replace(dataset, skipped=dict(opened.skipped))


def _open(part: Folder | Tars, options: dict[str, Any]) -> Dataset:
    url = _absolute(part.url)
    if isinstance(part, Folder):
        return _from_manifest(read_manifest(url, options), url, options)
    if read_bytes(join(url, FILE_NAME), options) is not None:
        manifest = read_manifest(url, options)
        position = {name: shard for shard, name in enumerate(manifest.columns.names)}
        missing = [name for name in part.names if name not in position]
        if missing:
            raise SourceError(
                f"{join(url, missing[0])}: not one of the {len(position)} shards that {FILE_NAME} in its folder "
                f"names ({len(missing)} of {len(part.names)} are not). Correct the pattern."
            )
        return _from_manifest(manifest.select([position[name] for name in _once(part, url)]), url, options)
    if local_path(url) is None:
        raise SourceError(
            f"{join(url, part.names[0])}: a remote tar without {FILE_NAME} beside it, wanted one, since a plan needs "
            f"every episode's length. Run: epistream index {url}"
        )
    from epistream.sharding.tar.index_cache import index_local_tars

    manifest, index_urls = index_local_tars([join(url, name) for name in _once(part, url)])
    return _from_manifest(manifest, url, options, index_urls)


def _once(part: Tars, url: str) -> tuple[str, ...]:
    """The names, none of which may come twice: its episodes would be read twice an epoch."""
    twice = [name for name, times in Counter(part.names).items() if times > 1]
    if twice:
        raise SourceError(f"{join(url, twice[0])}: given twice, wanted each tar once. Correct the pattern.")
    return part.names


def _absolute(url: str) -> str:
    """Workers may have another working directory, and a cache must see one name for one file."""
    path = local_path(url)
    return url if path is None else str(path.absolute())


class _Urls(Sequence[str]):
    """Full URLs of files in one folder, joined when somebody looks: a manifest may name 1e5 shards."""

    def __init__(self, url: str, names: Sequence[str], index: bool) -> None:
        self._url, self._names, self._index = url, names, index

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "_Urls": ...
    def __getitem__(self, index: int | slice) -> "str | _Urls":
        if isinstance(index, slice):
            return _Urls(self._url, self._names[index], self._index)
        name = self._names[index]
        return join(self._url, index_name(name) if self._index else name)


def _from_manifest(
    manifest: Manifest,
    url: str,
    options: dict[str, Any],
    index_urls: Sequence[str] | None = None,
    shard_urls: Sequence[str] | None = None,
) -> Dataset:
    columns = manifest.columns
    return Dataset(
        url=url,
        features=manifest.features,
        shard_url=shard_urls or _Urls(url, columns.names, index=False),
        index_url=index_urls or _Urls(url, columns.names, index=True),
        shard_bytes=columns.shard_bytes,
        index_bytes=columns.index_bytes,
        shard_checksum=HexRows(columns.shard_checksums),
        index_checksum=HexRows(columns.index_checksums),
        episode_shard=columns.episode_shard,
        episode_in_shard=columns.episode_in_shard,
        episode_length=columns.episode_length,
        episode_split=columns.shard_split[columns.episode_shard],
        splits=manifest.splits,
        valid_ranges=(columns.range_offsets, columns.ranges),
        tasks=manifest.tasks,
        episode_tasks=(columns.task_offsets, columns.task_ids),
        statistics=manifest.statistics,
        fingerprint=manifest.fingerprint,
        storage_options=options,
    )


def _concatenate(parts: Sequence[Dataset]) -> Dataset:
    """One dataset after the other. Its fingerprint is XXH3-128 of theirs, in this order."""
    first = parts[0]
    for part in parts[1:]:
        difference = describe_difference(first.features, part.features)
        if difference:
            raise FormatError(
                f"{first.url} and {part.url}: {difference}, wanted the same features. Pack both alike, or open them "
                "one by one."
            )
    named = [_train_beside_splits(part.splits, parts) for part in parts]
    splits = tuple(dict.fromkeys(itertools.chain.from_iterable(named)))
    tasks = {task: number for number, task in enumerate(dict.fromkeys(t for p in parts for t in p.tasks))}
    split_number = [np.array([splits.index(name) for name in names], np.uint8) for names in named]
    task_number = [np.array([tasks[task] for task in part.tasks], np.int64) for part in parts]
    num_shards = np.cumsum([0] + [part.num_shards for part in parts])
    return Dataset(
        url=", ".join(part.url for part in parts),
        features=first.features,
        shard_url=tuple(itertools.chain.from_iterable(part.shard_url for part in parts)),
        index_url=tuple(itertools.chain.from_iterable(part.index_url for part in parts)),
        shard_bytes=np.concatenate([part.shard_bytes for part in parts]),
        index_bytes=np.concatenate([part.index_bytes for part in parts]),
        shard_checksum=tuple(itertools.chain.from_iterable(part.shard_checksum for part in parts)),
        index_checksum=tuple(itertools.chain.from_iterable(part.index_checksum for part in parts)),
        episode_shard=np.concatenate([part.episode_shard + n for part, n in zip(parts, num_shards, strict=False)]),
        episode_in_shard=np.concatenate([part.episode_in_shard for part in parts]),
        episode_length=np.concatenate([part.episode_length for part in parts]),
        episode_split=np.concatenate([n[p.episode_split] for p, n in zip(parts, split_number, strict=True)]),
        splits=splits,
        valid_ranges=_join_ragged([part.valid_ranges for part in parts]),
        tasks=tuple(tasks),
        episode_tasks=_join_ragged(
            [(part.episode_tasks[0], n[part.episode_tasks[1]]) for part, n in zip(parts, task_number, strict=True)]
        ),
        statistics=merge_statistics([part.statistics for part in parts]),
        fingerprint=xxhash.xxh3_128_hexdigest(" ".join(part.fingerprint for part in parts).encode()),
        storage_options=first.storage_options,
        skipped={url: reason for part in parts for url, reason in part.skipped.items()},
    )


def _train_beside_splits(splits: tuple[str, ...], parts: Sequence[Dataset]) -> tuple[str, ...]:
    """A part without a split is for training where another part says what is not."""
    others = {name for part in parts for name in part.splits}
    return ("train",) if splits == (NO_SPLIT,) and "train" in others else splits


def _join_ragged(lists: Sequence[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    starts = np.cumsum([0] + [offsets[-1] for offsets, _ in lists])
    offsets = [offsets[:-1] + start for (offsets, _), start in zip(lists, starts, strict=False)]
    return np.concatenate([*offsets, starts[-1:]]), np.concatenate([flat for _, flat in lists])
