"""Indexes of episodes, made when an episode is first read by anybody, and kept where indexes of HDF5 files are.

The time of writing of an index of remote files is the time since which they have been seen to be those that it was made
of: whoever opened the set before that time, on any process of the node, does not ask for their versions again.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

from epistream.errors import EpistreamError, FormatError, SourceChangedError, SourceError
from epistream.file_systems import is_same_version, local_path
from epistream.sharding.files.pruning import mark_seen, mark_used
from epistream.sharding.files.starts import Then
from epistream.sharding.files.storage import join
from epistream.sharding.files.user_cache import Claim, claim, make_once
from epistream.sharding.format.checksums import checksum
from epistream.sharding.lerobot.episode import ROWS, SetSource, index_episode, is_video, video_of
from epistream.sharding.lerobot.files import SourceFile, open_parquet
from epistream.sharding.lerobot.index import RECIPE, EpisodeIndex
from epistream.sharding.lerobot.seen import (
    are_brought,
    bring_starts,
    forget,
    is_of_this_opening,
    look,
    look_at_all,
    oldest_look_ns,
)
from epistream.sharding.lerobot.video_tables import START, kept_packets
from epistream.sharding.lerobot_meta.hub import is_pinned
from epistream.sharding.lerobot_meta.meta_files import at_once

_log = logging.getLogger(__name__)

# First bytes of a file of rows of one episode: all of 700 steps of 90 numbers; of one with pictures next to nothing.
_ROWS_BYTES, _HEAD_BYTES = 256 << 10, 512


@dataclass(frozen=True, eq=False)
class KeptEpisode:
    """An index, the file that it is kept in, and that file's size and checksum."""

    index: EpisodeIndex
    path: str
    num_bytes: int
    checksum: str


def keep_episode(source: SetSource, episode: int, claimed: Claim | None = None) -> KeptEpisode:
    """The index of an episode (by its position); made now if there is none of these versions of its files.

    Args:
        source: The data set.
        episode: Position among its episodes.
        claimed: The right to make it, of `look_ahead`; given up.

    Raises:
        FormatError, SourceError, FetchError: As `index_episode`.
        SourceChangedError: If a file is written to while it is indexed.
        CacheError, DeadlineError: As `make_once`.
    """
    name = _name_of(source, episode)
    is_remote = local_path(source.root) is None
    made: dict[str, str] = {}

    def make() -> list[tuple[str, bytes]]:
        if is_remote and not source.has_long_files:
            bring_starts(source.root, _starts(source, source.files_of(episode)), source.options)
        try:
            index = index_episode(source, episode)
        except SourceChangedError:
            forget(join(source.root, name) for name in source.files_of(episode))
            raise
        made.update({one.name: one.version for one in index.places.files})
        return [(f"{name}.index", index.to_bytes())]

    return make_once(
        claimed or source.folder / f"{name}.lock",
        lambda place: _read(place / f"{name}.index", source),
        make,
        f"{source.root}: episode {source.meta.number[episode]}",
        # What is read of remote files is compared with their versions each time.
        is_unchanged=lambda: is_remote or are_current(source, made, afresh=True),
        as_of_ns=(lambda: oldest_look_ns(source.root, made)) if is_remote else None,
    )


def find_episode(source: SetSource, episode: int) -> EpisodeIndex:
    """The index of an episode as it is kept; else made now and not kept.

    For who reads each episode once, and files of this machine.

    Raises:
        FormatError, SourceError, CacheError, DeadlineError: As `index_episode`.
        SourceChangedError: If a file is written to while it is indexed.
    """
    kept = _read(source.folder / f"{_name_of(source, episode)}.index", source)
    if kept is not None:
        return kept.index
    index = index_episode(source, episode)
    if not are_current(source, {one.name: one.version for one in index.places.files}):
        raise SourceChangedError(
            f"{source.root}: episode {source.meta.number[episode]}: changed while it was indexed. Try again when it is "
            "complete."
        )
    return index


class Ahead(NamedTuple):
    """What `look_ahead` found.

    Attributes:
        problems: By episode what went wrong with a look: to ask again may take as long again.
        claims: The rights to make indexes that are not kept, for `keep_episode`: before any that others are making.
        waits: Whether making indexes still waits, for the network or for others.
    """

    problems: dict[int, EpistreamError]
    claims: dict[int, Claim]
    waits: bool


def look_ahead(source: SetSource, episodes: Sequence[int]) -> Ahead:
    """Ask at the same time for what `keep_episode` of each of some episodes of a remote set would ask by itself.

    Files of indexes that are kept are looked at, unless somebody of this node did so since the set was opened. Files of
    one episode whose index is not kept are seen by their first bytes, unless somebody else is making it; those of many
    episodes are made ready.
    """
    looked_at: dict[str, str] = {}
    new: dict[str, str] = {}
    claims: dict[int, Claim] = {}
    waits = False
    of_episodes = {episode: source.files_of(episode) for episode in episodes}
    for episode, names in of_episodes.items():
        path = source.folder / f"{_name_of(source, episode)}.index"
        seen_ns = _time_ns(path)
        if seen_ns is None and not source.has_long_files:
            claimed = claim(path.with_suffix(".lock"))
            if claimed is not None and _time_ns(path) is None:
                claims[episode] = claimed
                new |= names
            elif claimed is not None:  # it was made just now
                claimed.held.close()
            else:
                waits = True
        elif seen_ns is None:
            new |= names
        elif not _is_seen(source, seen_ns):
            looked_at |= names
    try:
        failed = _ask_for(source, looked_at, new)
    except BaseException:
        give_up(claims)
        raise
    problems = {}
    for episode, names in of_episodes.items():
        problem = next((failed[name] for name in names if name in failed), None)
        if problem is not None:
            problems[episode] = problem
    return Ahead(problems, claims, waits or not (source.has_long_files or are_brought(source.root, new)))


def give_up(claims: Mapping[int, Claim]) -> None:
    """Let others make what nobody made. Harmless for what was made."""
    for claimed in claims.values():
        claimed.held.close()


def _ask_for(source: SetSource, looked_at: Mapping[str, str], new: Mapping[str, str]) -> dict[str, EpistreamError]:
    """Look at files that are to be as they were, and have what is wanted of new ones; what went wrong with a look."""
    if not source.has_long_files:
        bring_starts(source.root, _starts(source, new), source.options)
        return look_at_all(source.root, looked_at, source.options)
    failed = look_at_all(source.root, {**looked_at, **new}, source.options)
    _make_ready(source, {name: what for name, what in new.items() if name not in failed})
    return failed


def _time_ns(path: Path) -> int | None:
    """The time of writing of a file; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _make_ready(source: SetSource, names: Mapping[str, str]) -> None:
    """Have what is kept of files of many episodes, all at the same time; what fails is told by whoever needs it."""
    depths = {video_of(key): source.meta.info.columns[key].depth for key in source.videos.values()}

    def have(name: str) -> None:
        with contextlib.suppress(EpistreamError, OSError):
            if names[name] == ROWS:
                with open_parquet(source.data_file(name), source.folder):
                    return
            file = SourceFile.at(source.root, name, source.options, names[name], afresh=False)
            kept_packets(file, source.folder, depths[names[name]])

    at_once(have, list(names))


def _starts(source: SetSource, names: Mapping[str, str]) -> dict[str, tuple[int, Then | None]]:
    """How files of one episode each are seen by their first bytes: enough for all rows, unless pictures are in them."""
    rows = (
        _HEAD_BYTES
        if any(one.kind == "frames" and not is_video(one) for one in source.features.values())
        else _ROWS_BYTES
    )
    return {name: (rows, None) if what == ROWS else START for name, what in names.items()}


def _is_seen(source: SetSource, seen_ns: int) -> bool:
    """Whether what was seen of a remote set's files at some time holds for its opening."""
    return is_pinned(source.root) or is_of_this_opening(source.root, seen_ns)


def _name_of(source: SetSource, episode: int) -> str:
    told = [str(RECIPE), source.root, source.meta.digest, source.looks, str(int(source.meta.number[episode]))]
    return xxhash.xxh3_128_hexdigest("\0".join(["lerobot", *told]).encode())


def _read(path: Path, source: SetSource) -> KeptEpisode | None:
    """A kept index that is whole and of the files as they are now; anything else is made again."""
    try:
        seen_ns = path.stat().st_mtime_ns
        data = path.read_bytes()
        index = EpisodeIndex.parse(data, str(path))
        mark_used(path)
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        _log.info("making %s again: %s", path, error)
        return None
    is_remote = local_path(source.root) is None
    if not is_remote or not _is_seen(source, seen_ns):
        versions = {one.name: one.version for one in index.places.files}
        if not are_current(source, versions):
            return None
        if is_remote:  # the others of this node need not ask
            mark_seen(path, oldest_look_ns(source.root, versions))
    return KeptEpisode(index, str(path), len(data), checksum(data))


def are_current(source: SetSource, versions: Mapping[str, str], *, afresh: bool = False) -> bool:
    """Whether files have these versions; of remote ones as this process saw them last, unless `afresh`."""

    def is_current(name: str) -> bool:
        try:
            found, _ = look(source.root, name, source.options, "a file of a LeRobot data set", afresh=afresh)
        except SourceError:
            return False  # whoever makes the index says so
        return is_same_version(found, versions[name])

    if afresh and local_path(source.root) is None:
        return all(at_once(is_current, list(versions)))
    return all(map(is_current, versions))
