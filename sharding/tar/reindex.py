"""Writing indexes and a manifest for tars for good: foreign ones, or our own after a loss."""

import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import natsort

from epistream.access import Access
from epistream.errors import DatasetExistsError, FormatError, OptionError, SourceError
from epistream.sharding.episodes.shard_statistics import counted_in
from epistream.sharding.files.folder_hint import COMPRESSED
from epistream.sharding.files.foreign import foreign_folder
from epistream.sharding.files.names import index_name, is_compressed_tar
from epistream.sharding.files.sources import AnySource, Tars, resolve_access
from epistream.sharding.files.storage import (
    Options,
    is_there,
    join,
    list_names,
    local_copy,
    read_bytes,
    read_range,
    remove_quietly,
    write_atomic,
)
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, merge_all, plain_statistics
from epistream.sharding.manifest.dataset_statistics import MoreStatistics
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.groups import ONE_GROUP
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_builder import ManifestBuilder
from epistream.sharding.manifest.manifest_file import FILE_NAME, KEPT_NAME, read_manifest
from epistream.sharding.manifest.manifest_writing import write_manifest
from epistream.sharding.manifest.record_making import Counted, RecordRules
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tar.sidecars import NEIGHBOURS, Neighbour, ShardMembers, read_members, sidecars
from epistream.sharding.tar.step_draft import complete, draft_of
from epistream.sharding.tar.step_mapping import StepMapping
from epistream.sharding.tar.step_tars import JOINED, settle
from epistream.sharding.tar.steps import Piece, index_steps


@dataclass(frozen=True)
class ReindexOptions:
    """What to write.

    Args:
        overwrite: Replace a manifest that is there.
        emit: Neighbours whose sidecars to write too. With a manifest there, and no `overwrite`, only these.
        steps: For tars with one sample a step: what the samples mean. Features that it does not name are deduced.

    Raises:
        OptionError: If a neighbour is unknown.
    """

    overwrite: bool = False
    emit: tuple[Neighbour, ...] = ()
    steps: StepMapping | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.emit if name not in NEIGHBOURS]
        if unknown:
            raise OptionError(f"emit {unknown[0]!r}: wanted some of {', '.join(NEIGHBOURS)}.")


@dataclass(frozen=True)
class Reindexed:
    """What was written: the manifest (None if it was there already), and the names of all files."""

    url: str
    manifest: Manifest | None
    names: tuple[str, ...]


def reindex(
    source: AnySource,
    options: ReindexOptions | None = None,
    storage_options: Options = None,
    advance: Callable[[str], None] | None = None,
) -> Reindexed:
    """Index tars where they lie.

    Everything is made before anything is replaced; the manifest comes last, so that a job that fails or dies leaves
    the old dataset, or tars without one, never a mixture.

    Args:
        source: A folder or URL with tars, or a brace pattern or glob of tars in one folder.
        options: What to write.
        storage_options: For fsspec.
        advance: Called with the name of each tar that is done.

    Raises:
        SourceError: If there are no tars, or they cannot be read.
        DatasetExistsError: If there is a manifest and nothing that may be written.
        FormatError: If a tar holds no whole episodes, or its samples are not what `ReindexOptions.steps` says.
    """
    options = options or ReindexOptions()
    url, names, storage_options = _tars(source, storage_options)
    has_manifest = is_there(join(url, FILE_NAME), storage_options)
    if has_manifest and not options.overwrite and not options.emit:
        raise DatasetExistsError(
            f"{join(url, FILE_NAME)}: exists. Replace it with --overwrite, write other sidecars with --emit, or check "
            f"the dataset: epistream verify {shlex.quote(url)}"
        )
    if has_manifest and options.overwrite:
        _refuse_edited(url, storage_options)
    if has_manifest and not options.overwrite:
        if options.steps is not None:
            raise DatasetExistsError(
                f"{join(url, FILE_NAME)}: exists, and a mapping of steps makes another one. Add --overwrite, or leave "
                "out --steps and --key to write sidecars only."
            )
        manifest = read_manifest(url, storage_options)
        split_of = dict(zip(manifest.columns.names, manifest.columns.shard_split, strict=True))
        members = []
        for name in names:
            split = manifest.splits[split_of[name]] if name in split_of else NO_SPLIT
            with local_copy(join(url, name), storage_options) as path:
                members.append(read_members(path, split))
            if advance:
                advance(name)
        return Reindexed(url, None, _emit(url, options, members, storage_options))
    return _write_all(url, names, options, storage_options, advance)


def _refuse_edited(url: str, storage_options: Options) -> None:
    """Indexes know nothing of edits: what was removed would be back, and what was added gone."""
    if not any(KEPT_NAME.fullmatch(name) for name in list_names(url, storage_options) or ()):
        return
    advice = f"Undo all edits (epistream edit log {shlex.quote(url)}, then edit undo --to the first)"
    try:
        manifest = read_manifest(url, storage_options)
        first = next(iter(manifest.history), None)
        if manifest.groups == ONE_GROUP and (first is None or first.fingerprint == manifest.fingerprint):
            return  # all edits are undone
    except FormatError:
        advice = f"Put a copy of the last of its manifest-*.json in the place of the torn {FILE_NAME}"
    raise DatasetExistsError(
        f"{url}: a dataset that was edited since it was packed, wanted one that was not: what was removed would come "
        f"back. {advice}, or copy its tars to another folder and index them there."
    )


def _tars(source: AnySource, storage_options: Options) -> tuple[str, tuple[str, ...], Access]:
    """The folder, the file names of its tars in natural order, and what opens them."""
    parts, access = resolve_access(source, storage_options)
    if len(parts) > 1:
        raise OptionError(f"{source}: tars in {len(parts)} folders, wanted one. Index them one by one.")
    part = parts[0]
    if isinstance(part, Tars):
        return part.url, part.names, access
    listed = list_names(part.url, access) or []
    names = [name for name in listed if name.endswith(".tar") and not name.startswith(".")]
    if not names and any(map(is_compressed_tar, (*listed, part.url))):
        raise SourceError(f"{part.url}: no tars but compressed ones, wanted tars. {COMPRESSED} them first.")
    foreign = None if names else foreign_folder(part.url, storage_options)
    if foreign:
        raise SourceError(f"{part.url}: {foreign.what}, wanted tars. {foreign.advice}")
    if not names:
        raise SourceError(
            f"{part.url}: {len(listed)} files, no tars. Give a folder with tars, or for a server that cannot list "
            "its files a brace pattern such as URL/shard-{000000..000003}.tar."
        )
    return part.url, tuple(natsort.natsorted(names)), access


def draft_mapping(source: AnySource, storage_options: Options = None) -> StepMapping:
    """What the samples of tars with one sample a step may mean, from the first of them.

    Raises:
        SourceError: If there are no tars, or they cannot be read.
        FormatError: If nothing says which step of which episode a sample is.
    """
    url, names, storage_options = _tars(source, storage_options)
    with local_copy(join(url, names[0]), storage_options) as path:
        return draft_of(path)


@dataclass
class _Sums:
    """What is known of the values of tars so far: by split, in all, and of each episode of a tar.

    `rules` are those of the first tar, as if all others had as many episodes.
    """

    num_tars: int
    rules: RecordRules | None = None
    statistics: dict[str, list[dict[str, Summary]]] = field(default_factory=dict)
    not_finite: dict[str, NotFinite] = field(default_factory=dict)
    records: dict[str, EpisodeRecords] = field(default_factory=dict)

    def take(self, path: Path, index: ShardIndex) -> None:
        """Add those of one tar."""
        counted = self._count(path, index)
        self.statistics.setdefault(index.episodes[0].split, []).append(merge_all(one.statistics for one in counted))
        self.not_finite = add_counts((self.not_finite, *(one.not_finite for one in counted)))

    def take_again(self, path: Path, index: ShardIndex) -> None:
        """See what is known of each episode, after some went from tar to tar, or their values have other types."""
        self._count(path, index)

    def _count(self, path: Path, index: ShardIndex) -> list[Counted]:
        self.rules = self.rules or RecordRules.of(index.features, self.num_tars * index.num_episodes)
        counted = list(counted_in(path, index, self.rules))
        self.records[path.name] = EpisodeRecords.join([one.records for one in counted])
        return counted

    def plain(self, split: str) -> tuple[dict[str, dict[str, Any]], MoreStatistics]:
        """Statistics of one split, and what else is known."""
        summaries = merge_all(self.statistics[split])
        return plain_statistics(summaries), MoreStatistics.of(summaries, self.not_finite)


def _write_all(
    url: str,
    names: Sequence[str],
    options: ReindexOptions,
    storage_options: Options,
    advance: Callable[[str], None] | None,
) -> Reindexed:
    members: list[ShardMembers] = []
    pieces: dict[str, Sequence[Piece]] = {}
    mapping = options.steps
    if mapping:
        names = [name for name in names if name != JOINED]
    builder, sums = ManifestBuilder(), _Sums(len(names))
    with tempfile.TemporaryDirectory(prefix="epistream-") as made_in:
        folder = Path(made_in)
        for name in names:
            with local_copy(join(url, name), storage_options) as path:
                if mapping:
                    mapping = mapping if mapping.features else complete(mapping, path)
                    indexed = index_steps(path, mapping)
                    index, pieces[name] = indexed.index, indexed.pieces
                else:
                    index = index_tar(path)
                split = index.episodes[0].split
                sums.take(path, index)
                if options.emit:
                    members.append(read_members(path, split))
            (folder / index_name(name)).write_bytes(index.to_bytes())
            if advance:
                advance(name)
        if mapping:
            read = partial(_read_tar, url, storage_options)
            names = settle(folder, pieces, read)
        for name in names:
            data = (folder / index_name(name)).read_bytes()
            index = ShardIndex.parse(data, index_name(name))
            if mapping:
                sums.take_again(folder / name, index)
            builder.add_shard(index, data, sums.records[name])
        provenance = {}
        if mapping:
            provenance["steps"] = {"mapping": mapping.plain(), "copied": [name for name in pieces if name not in names]}
        manifest = builder.build(renumber=True, provenance=provenance)
        split = "train" if "train" in manifest.splits else manifest.splits[0]
        plain, more = sums.plain(split)
        manifest = replace(manifest, statistics=plain, statistics_split=split, more=more)
        made = [folder / JOINED] if JOINED in names and mapping else []
        made += [folder / index_name(name) for name in names]
        _publish(url, made, storage_options)
    written = [path.name for path in made]
    written += _emit(url, options, members, storage_options)
    write_manifest(manifest, url, storage_options)
    return Reindexed(url, manifest, (*written, FILE_NAME))


def _read_tar(url: str, storage_options: Options, name: str, start: int, size: int) -> bytes:
    return read_range(join(url, name), start, size, storage_options)


def _publish(url: str, paths: Sequence[Path], storage_options: Options) -> None:
    """Replace files that are missing or differ; from the first one on until the end there is no manifest.

    A manifest beside indexes that are not its own would be worse than none.
    """
    has_removed = False
    for path in paths:
        data, there = path.read_bytes(), join(url, path.name)
        if read_bytes(there, storage_options) == data:
            continue
        if not has_removed:
            remove_quietly(join(url, FILE_NAME), storage_options)
            has_removed = True
        write_atomic(there, data, storage_options)


def _emit(
    url: str, options: ReindexOptions, members: Sequence[ShardMembers], storage_options: Options
) -> tuple[str, ...]:
    existing = [f".nv-meta/{name}" for name in list_names(join(url, ".nv-meta"), storage_options) or ()]
    made = [file for neighbour in options.emit for file in sidecars(neighbour, members, existing)]
    for name, data in made:
        write_atomic(join(url, name), data, storage_options)
    return tuple(name for name, _ in made)
