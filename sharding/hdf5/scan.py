"""Makes the indexes of an HDF5 file: its layout's episodes, where their rows lie, and a digest of what they hold."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError, LayoutError
from epistream.file_systems import local_path
from epistream.sharding.files.storage import Options
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.format.episode_meta import NO_SPLIT, EpisodeMeta
from epistream.sharding.format.feature_sets import describe_difference
from epistream.sharding.format.features import Feature, feature_order
from epistream.sharding.format.fill_shards import fill_shards
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.hdf5.chunks import Int64, Stored, find_stored
from epistream.sharding.hdf5.file import read_hdf5, shard_name_of
from epistream.sharding.hdf5.index import FIRST_MADE, ZEROS, Extents, Hdf5Index, MadeRows
from epistream.sharding.layouts.base import Field, Layout, SourceEpisode
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.layouts.reading import read_array, read_jpegs, upright
from epistream.sharding.layouts.registry import described, episodes_of, excluded_by, maker_of
from epistream.sharding.layouts.values import dataset
from epistream.sharding.opening.other_files import OtherFile, check_unchanged, other_files
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.selecting.columns import flat_attributes

_log = logging.getLogger(__name__)

# Episodes of one file share a shard up to about this many packed bytes, as in packing: a file of a thousand
# demonstrations is drawn from, cached and evicted in parts.
SHARD_BYTES = 128 << 20


_MAX_LISTED = 5


class NothingWantedError(LayoutError):
    """A file of which a layout file's `where` wants nothing: a stream goes on without it."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of one feature of one episode: their sizes, and where they lie or, if they do not, how they are made."""

    sizes: Int64
    places: Int64 | None
    made: MadeRows


@dataclass(frozen=True, eq=False)
class _Episode:
    meta: EpisodeMeta
    features: dict[str, Feature]
    rows: dict[str, _Rows]
    digest: bytes
    left_out: tuple[str, ...]
    attributes: dict[str, Any]


def index_hdf5(
    url: str,
    options: Options = None,
    shard_bytes: int = SHARD_BYTES,
    layout: str | MappingLayout | None = None,
    *,
    allow_outside: bool = False,
) -> list[Hdf5Index]:
    """The indexes of a file, one a shard. Reads its arrays and JPEG rows once; of raw cameras a few frames.

    Args:
        url: An HDF5 file.
        options: For fsspec, if it is remote.
        shard_bytes: About how many packed bytes a shard has. Each has episodes of one split only.
        layout: Insist on this layout instead of finding it.
        allow_outside: Whether it may read from files outside of its folder.

    Raises:
        SourceError: If it, or a file that it reads from, is missing or cannot be read.
        SourceChangedError: If a file that it reads from is written to meanwhile.
        LayoutError: If it fits no layout, one of its episodes breaks its layout, or it reads from files that it may
            not.
        NothingWantedError: If the layout file wants none of its episodes.
    """
    version, file_bytes = version_and_bytes(url, options)
    path = local_path(url)
    others: tuple[OtherFile, ...] | None = None  # not known of a remote file, which has none

    def look(file: h5py.File, raw: BinaryIO) -> tuple[list[_Episode], tuple[str, ...], str]:
        nonlocal others
        try:
            if path is not None:
                others = other_files(file, path, url, allow_outside=allow_outside)
            found, groups = episodes_of(file, layout)
            excluded = excluded_by(found, file)
            return _episodes(file, raw, found, groups, may_be_none=bool(excluded)), excluded, maker_of(found)
        except FormatError as error:  # of a feature that cannot be; names no file
            raise LayoutError(str(error)) from error

    episodes, excluded, made_by = read_hdf5(url, options, look, allow_outside=allow_outside)
    check_unchanged(others or (), url)
    if not episodes:
        raise NothingWantedError(f"{url}: none of its episodes is wanted: {', '.join(excluded[:_MAX_LISTED])}.")
    sizes = [sum(int(rows.sizes.sum()) for rows in one.rows.values()) for one in episodes]
    groups = fill_shards(((one, one.meta.split, size) for one, size in zip(episodes, sizes, strict=True)), shard_bytes)
    shards = [_shard(shard_name_of(url), group, (version, file_bytes, len(groups)), others) for group in groups]
    return [replace(shard, excluded=excluded, made_by=made_by) for shard in shards]


def _episodes(
    file: h5py.File, raw: BinaryIO, layout: Layout, groups: Sequence[str], *, may_be_none: bool
) -> list[_Episode]:
    episodes = [
        _episode(file, raw, described(layout, file, group), number, layout.name) for number, group in enumerate(groups)
    ]
    if not episodes and not may_be_none:
        raise LayoutError(f"no episodes, wanted at least one as {layout.name}: {layout.looks_for}")
    for episode in episodes:
        difference = describe_difference(episode.features, episodes[0].features)
        if difference:
            raise LayoutError(
                f"{episode.meta.source_path}: {difference}, wanted the features of {episodes[0].meta.source_path}"
            )
    return episodes


def _episode(file: h5py.File, raw: BinaryIO, source: SourceEpisode, number: int, layout: str) -> _Episode:
    """One episode. Its digest is made of all bytes of arrays and JPEG files, and of three frames of a raw camera."""
    hasher = xxhash.xxh3_128()
    rows: dict[str, _Rows] = {}
    features: dict[str, Feature] = {}
    for field in sorted(source.fields, key=lambda field: feature_order(field.feature)):
        feature = field.feature
        features[feature.name] = feature
        found = dataset(file, field.path)
        if feature.kind == "frames" and CODECS[feature.codec].storage == "members":
            sizes = []
            for data in read_jpegs(file, field, source.length):
                hasher.update(data)
                sizes.append(len(data))
            size, dtype = np.array(sizes, np.int64), ""
        else:
            size, dtype = np.full(source.length, feature.step_bytes), np.dtype(feature.dtype).newbyteorder("<").str
            for values in _values(file, field, source.length):
                hasher.update(values.data)
        stored = find_stored(found) if _is_in(found, file) else None
        places = stored.places(field.first_row, source.length) if stored and not field.axes else None
        if stored and not _is_true(found, raw, stored, places, field.first_row):
            _log.warning("%s: its bytes are not where HDF5 says; it is read through h5py", field.path)
            stored = places = None
        made = MadeRows(field.path, field.first_row, 0, source.length, dtype, stored, field.axes)
        rows[feature.name] = _Rows(size, places, made)
    meta = EpisodeMeta(
        length=source.length,
        episode_index=number,
        split=source.split or NO_SPLIT,
        tasks=source.tasks,
        valid_ranges=source.valid_ranges,
        source_path=source.group,
        layout=layout,
    )
    # Texts are told of by packing; many recordings have some.
    refused = tuple(f"/{one.path} ({one.reason})" for one in source.refused if not one.reason.startswith("texts"))
    return _Episode(meta, features, rows, hasher.digest(), refused, flat_attributes(source.attributes))


def _values(file: h5py.File, field: Field, length: int) -> Iterator[NDArray[Any]]:
    """What stands for the values of a field in its digest."""
    if field.feature.kind == "array":
        yield read_array(file, field, length)
        return
    found = dataset(file, field.path)
    for step in sorted({0, length // 2, length - 1}):
        yield np.ascontiguousarray(upright(found[field.first_row + step], field.axes))


def _is_in(found: h5py.Dataset, file: h5py.File) -> bool:
    """Whether a dataset is in this file, and not in one that a link led to: offsets would be those of that one."""
    return bool(h5py.h5o.get_info(found.id).fileno == h5py.h5o.get_info(file.id).fileno)


def _is_true(found: h5py.Dataset, raw: BinaryIO, stored: Stored, places: Int64 | None, first_row: int) -> bool:
    """Whether the first and the last row are where they should be, as h5py reads them."""
    if places is None or stored.dtype[1] == "S":  # h5py drops zeros at the end of strings; JPEG says where it ends
        return True
    for position in {0, len(places) - 1}:
        place, wanted = int(places[position]), np.asarray(found[first_row + position]).tobytes()
        if place == ZEROS:
            data = bytes(len(wanted))
        else:
            raw.seek(place)
            data = raw.read(len(wanted))
        if data != wanted:
            return False
    return True


def _shard(
    name: str, episodes: Sequence[_Episode], file: tuple[str, int, int], others: tuple[OtherFile, ...] | None
) -> Hdf5Index:
    """Lay the packed bytes of some episodes out: rows of feature after feature of episode after episode."""
    features = episodes[0].features
    starts: dict[str, list[Int64]] = {feature: [] for feature in features}
    extents: list[tuple[Int64, Int64]] = []
    made: list[MadeRows] = []
    position = num_made = 0
    for episode in episodes:
        for feature in features:
            rows = episode.rows[feature]
            start = position + np.cumsum(rows.sizes) - rows.sizes
            position += int(rows.sizes.sum())
            starts[feature].append(start)
            places = rows.places
            if places is None:
                places = FIRST_MADE - num_made - np.arange(len(start))
                made.append(replace(rows.made, first=num_made))
                num_made += len(start)
            extents.append(_merge(start, places, rows.sizes))
    hasher = xxhash.xxh3_128(b"".join(episode.digest for episode in episodes))
    arrays = [feature for feature in features if features[feature].kind == "array"]
    cameras = [feature for feature in features if feature not in arrays]
    rows_index = ShardIndex(
        shard_name=name,
        shard_bytes=position,
        shard_checksum=hasher.hexdigest(),
        features=features,
        keys=[_key(episode.meta, number) for number, episode in enumerate(episodes)],
        length=np.array([episode.meta.length for episode in episodes], np.int64),
        array_offset={a: np.array([start[0] for start in starts[a]], np.uint64) for a in arrays},
        frame_offset={camera: np.concatenate(starts[camera]).astype(np.uint64) for camera in cameras},
        frame_size={c: np.concatenate([e.rows[c].sizes for e in episodes]).astype(np.uint32) for c in cameras},
        episodes=[episode.meta for episode in episodes],
        block_checksums=np.empty(0, np.uint64),
    )
    packed = Extents(
        version=file[0],
        file_bytes=file[1],
        packed_bytes=position,
        start=np.concatenate([start for start, _ in extents]).astype(np.uint64),
        place=np.concatenate([place for _, place in extents]).astype(np.int64),
        made=tuple(made),
        others=others or (),
    )
    by_path = {one.split(" (")[0]: one for episode in reversed(episodes) for one in episode.left_out}
    return Hdf5Index(
        rows_index,
        packed,
        file[2],
        tuple(sorted(by_path.values())),
        others is not None,
        attributes=[episode.attributes for episode in episodes],
    )


def _merge(start: Int64, place: Int64, size: Int64) -> tuple[Int64, Int64]:
    """Rows that follow each other in the file as they do in packed bytes are one extent."""
    follows = (place[:-1] >= 0) & (place[1:] == place[:-1] + size[:-1])
    follows |= (place[:-1] == ZEROS) & (place[1:] == ZEROS)
    keep = np.concatenate([[True], ~follows])
    return start[keep], place[keep]


def _key(meta: EpisodeMeta, number: int) -> str:
    """What messages call an episode: where it is in its file."""
    path = meta.source_path
    return path if path.isascii() and path.isprintable() and path else f"episode {number}"
