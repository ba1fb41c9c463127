"""What several tars with one sample a step say together: whole episodes, their order, and one type for all rows."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import natsort
import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.names import index_name
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.tar.shard_writer import ShardWriter
from epistream.sharding.tar.step_mapping import MOST_DIGITS, Origin
from epistream.sharding.tar.steps import GAPS, Piece

_log = logging.getLogger(__name__)

# The tar for episodes of which several tars have pieces. Other names would be taken for tars of steps.
JOINED = "joined-episodes.tar"
# Where the steps of an episode may begin to count.
_FIRST = (0, 1)
# As `EpisodeMeta.episode_index`.
_MOST = 1 << 48
_NUMBER = re.compile(f"[0-9]{{1,{MOST_DIGITS}}}")

Read = Callable[[str, int, int], bytes]


def settle(folder: Path, pieces: Mapping[str, Sequence[Piece]], read: Read) -> tuple[str, ...]:
    """Rewrite indexes made by `index_steps` with what only all of them together say.

    Episodes whose names are numbers are ordered by these, over all tars; others as their tars are, in a tar by name.
    An episode of which several tars have pieces is copied into one more tar, `JOINED`, and leaves their indexes.

    Args:
        folder: Where the indexes are, and where `JOINED` is made if it must be.
        pieces: By name of the tar, in natural order: what it has of each episode of its index.
        read: Bytes of a tar, from its name, the first byte and how many.

    Returns:
        The tars with whole episodes, `JOINED` at the end if it was made.

    Raises:
        FormatError: If an episode is not whole, or rows of two tars have types that do not go together.
    """
    places: dict[str, list[tuple[str, Piece]]] = {}
    for tar, mine in pieces.items():
        for piece in mine:
            places.setdefault(piece.name, []).append((tar, piece))
    for found in places.values():
        found.sort(key=lambda place: place[1].first)
    first_index = _read_index(folder, next(iter(pieces)))
    has_gaps = first_index.steps is not None and bool(first_index.steps["mapping"].get("gaps"))
    _check_whole(places, has_gaps=has_gaps)
    number_of = _numbers(list(places))
    features: dict[str, Feature] = {}
    for tar in pieces:
        for name, feature in _read_index(folder, tar).features.items():
            features[name] = _wider(features.get(name, feature), feature)
    apart = {name: found for name, found in places.items() if len(found) > 1}
    if apart:
        _join(folder, apart, features, number_of, read)
    whole = []
    for tar in pieces:
        index = _read_index(folder, tar)
        described = {name: _wider(feature, features[name]) for name, feature in index.features.items()}
        index = cast_values(index, described)
        episodes = [replace(meta, episode_index=number_of[meta.source_path]) for meta in index.episodes]
        kept = [at for at, meta in enumerate(episodes) if meta.source_path not in apart]
        path = folder / index_name(tar)
        if kept:
            path.write_bytes(choose_episodes(replace(index, episodes=episodes), kept).to_bytes())
            whole.append(tar)
        else:
            path.unlink()
    return (*whole, JOINED) if apart else tuple(whole)


def choose_episodes(index: ShardIndex, episodes: Sequence[int]) -> ShardIndex:
    """The index with only some of its episodes, by position."""
    rows = np.concatenate([_rows(index, episode) for episode in episodes])
    return replace(
        index,
        keys=[index.keys[episode] for episode in episodes],
        length=index.length[list(episodes)],
        frame_offset={name: offsets[rows] for name, offsets in index.frame_offset.items()},
        frame_size={name: sizes[rows] for name, sizes in index.frame_size.items()},
        episodes=[index.episodes[episode] for episode in episodes],
        values={name: values[rows] for name, values in index.values.items()},
    )


def _rows(index: ShardIndex, episode: int) -> NDArray[np.int64]:
    first = int(index.first_row[episode])
    return np.arange(first, first + int(index.length[episode]))


def _read_index(folder: Path, tar: str) -> ShardIndex:
    name = index_name(tar)
    return ShardIndex.parse((folder / name).read_bytes(), name)


def _check_whole(places: Mapping[str, Sequence[tuple[str, Piece]]], *, has_gaps: bool) -> None:
    """Nothing twice, nothing missing, all counted alike."""
    beginning: dict[int, Piece] = {}
    for name, found in places.items():
        for (_, one), (_, other) in pairwise(found):
            if other.first <= one.last:
                raise FormatError(
                    f"{other.first_sample}: step {other.first} of episode {name}, of which {one.first_sample} to "
                    f"{one.last_sample} are steps {one.first} to {one.last}, wanted each step once. If each tar counts "
                    "its episodes anew, give each its own folder and index these one by one."
                )
            if not has_gaps and other.first != one.last + 1:
                raise FormatError(
                    f"{other.first_sample}: step {other.first} of episode {name} follows {one.last_sample}, step "
                    f"{one.last}, wanted step {one.last + 1}. {GAPS}"
                )
        first = found[0][1]
        if not has_gaps and first.first not in _FIRST:
            raise FormatError(
                f"{first.first_sample}: the first sample of episode {name} is step {first.first}, wanted 0 or 1. If "
                f"those before it are in other tars, index all of them together. {GAPS}"
            )
        beginning.setdefault(first.first, first)
    if len(beginning) > 1 and not has_gaps:
        early, late = beginning[0], beginning[1]
        raise FormatError(
            f"{late.first_sample}: episode {late.name} begins with step 1, episode {early.name} with 0, wanted all to "
            f"begin alike. {GAPS}"
        )


def _numbers(names: Sequence[str]) -> Mapping[str, int]:
    """Where each episode stands; other names than numbers keep the order they have."""
    is_number = all(_NUMBER.fullmatch(name) and int(name) < _MOST for name in names)
    if is_number and len({int(name) for name in names}) == len(names):
        return {name: int(name) for name in natsort.natsorted(names)}
    return {name: number for number, name in enumerate(names)}


def _wider(one: Feature, other: Feature) -> Feature:
    """Whole numbers of JSON go with others. What differs otherwise is for the manifest to refuse."""
    is_json = all(Origin.parse(feature.source_path).kind == "json" for feature in (one, other))
    if is_json and (one.dtype, other.dtype) == ("int64", "float64"):
        return replace(one, dtype="float64")
    return one


def cast_values(index: ShardIndex, features: dict[str, Feature]) -> ShardIndex:
    """The same index with rows of the types that `features` have."""
    values = {}
    for name, rows in index.values.items():
        if name not in features or features[name].dtype == index.features[name].dtype:
            values[name] = rows
            continue
        found, wanted = (np.dtype(one[name].dtype).newbyteorder("<") for one in (index.features, features))
        values[name] = rows.view(found).astype(wanted).view(np.uint8)
    return replace(index, features=features, values=values)


def _join(
    folder: Path,
    apart: Mapping[str, Sequence[tuple[str, Piece]]],
    features: Mapping[str, Feature],
    number_of: Mapping[str, int],
    read: Read,
) -> None:
    """Write the episodes of which several tars have pieces as packing would."""
    tars = natsort.natsorted({tar for found in apart.values() for tar, _ in found})
    indexes = {tar: cast_values(index, dict(features)) for tar in tars for index in [_read_index(folder, tar)]}
    with ShardWriter(folder, JOINED, features) as writer:
        for name in sorted(apart, key=number_of.__getitem__):
            parts = [
                (index, at) for tar, _ in apart[name] for index in [indexes[tar]] for at in [_position(index, name)]
            ]
            metas = [index.episodes[at] for index, at in parts]
            meta = replace(
                metas[0],
                length=sum(one.length for one in metas),
                episode_index=number_of[name],
                tasks=_one_task(name, metas, [index.shard_name for index, _ in parts]),
            )
            arrays = {n: _array(f, parts) for n, f in features.items() if f.kind == "array"}
            frames = {n: _frames(f, parts, read) for n, f in features.items() if f.kind == "frames"}
            writer.add(meta, arrays, frames)
        writer.finish()
    _log.warning(
        "%d episodes go over from one tar into the next and were copied into %s, %d bytes. Tars that begin with an "
        "episode need no copies.",
        len(apart),
        JOINED,
        (folder / JOINED).stat().st_size,
    )


def _position(index: ShardIndex, name: str) -> int:
    return next(at for at, meta in enumerate(index.episodes) if meta.source_path == name)


def _one_task(name: str, metas: Sequence[EpisodeMeta], tars: Sequence[str]) -> tuple[str, ...]:
    said = {meta.tasks: tar for meta, tar in zip(metas, tars, strict=True) if meta.tasks}
    if len(said) > 1:
        (one, first), (other, second) = list(said.items())[:2]
        raise FormatError(
            f"{first} and {second}: episode {name} has task {one[0]!r:.60} and {other[0]!r:.60}, wanted one. Make the "
            "parts episodes of their own, or leave 'task' out of the mapping."
        )
    return next(iter(said), ())


def _array(feature: Feature, parts: Sequence[tuple[ShardIndex, int]]) -> NDArray[Any]:
    rows = np.concatenate([index.values[feature.name][_rows(index, at)] for index, at in parts])
    values: NDArray[Any] = rows.view(np.dtype(feature.dtype).newbyteorder("<"))
    return values.reshape(len(rows), *feature.shape)


def _frames(feature: Feature, parts: Sequence[tuple[ShardIndex, int]], read: Read) -> Any:
    """Bytes of members, or arrays of raw pictures, one after the other."""
    for index, at in parts:
        for row in _rows(index, at).tolist():
            data = read(index.shard_name, *index.frame_range(feature.name, row))
            if CODECS[feature.codec].storage == "members":
                yield data
            else:
                yield np.frombuffer(data, np.dtype(feature.dtype).newbyteorder("<")).reshape(feature.shape)
