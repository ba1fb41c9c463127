"""Indexes of episodes, made when an episode is first read by anybody, and kept where indexes of HDF5 files are."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from epistream.errors import FormatError, SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import join
from epistream.sharding.files.user_cache import make_once
from epistream.sharding.format.checksums import checksum
from epistream.sharding.lerobot.episode import SetSource, index_episodes
from epistream.sharding.lerobot.index import RECIPE, EpisodeIndex
from epistream.sharding.lerobot.seen import forget, look
from epistream.sharding.lerobot_meta.meta_files import at_once

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class KeptEpisode:
    """An index, the file that it is kept in, and that file's size and checksum."""

    index: EpisodeIndex
    path: str
    num_bytes: int
    checksum: str


def keep_episode(source: SetSource, episode: int) -> KeptEpisode:
    """The index of an episode (by its position); made now if there is none of these versions of its files.

    Raises:
        FormatError, SourceError, FetchError: As `index_episodes`.
        SourceChangedError: If a file is written to while it is indexed.
        CacheError, DeadlineError: As `make_once`.
    """
    name = _name_of(source, episode)
    made: dict[str, str] = {}

    def make() -> list[tuple[str, bytes]]:
        try:
            indexes = index_episodes(source, episode)
        except SourceChangedError:
            forget(join(source.root, name) for name in source.files_of(episode))
            raise
        made.update({one.name: one.version for one in indexes[episode].places.files})
        # The one that is asked for last: where it is, the others are.
        ordered = sorted(indexes, key=lambda position: position == episode)
        return [(f"{_name_of(source, position)}.index", indexes[position].to_bytes()) for position in ordered]

    return make_once(
        source.folder / f"{name}.lock",
        lambda place: _read(place / f"{name}.index", source),
        make,
        f"{source.root}: episode {source.meta.number[episode]}",
        # What is read of remote files is compared with their versions each time.
        is_unchanged=lambda: local_path(source.root) is None or are_current(source, made, afresh=True),
    )


def _name_of(source: SetSource, episode: int) -> str:
    told = [str(RECIPE), source.root, source.meta.digest, source.looks, str(int(source.meta.number[episode]))]
    return xxhash.xxh3_128_hexdigest("\0".join(["lerobot", *told]).encode())


def _read(path: Path, source: SetSource) -> KeptEpisode | None:
    """A kept index that is whole and of the files as they are now; anything else is made again."""
    try:
        data = path.read_bytes()
        index = EpisodeIndex.parse(data, str(path))
        mark_used(path)
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        _log.info("making %s again: %s", path, error)
        return None
    if not are_current(source, {one.name: one.version for one in index.places.files}):
        return None
    return KeptEpisode(index, str(path), len(data), checksum(data))


def are_current(source: SetSource, versions: Mapping[str, str], *, afresh: bool = False) -> bool:
    """Whether files have these versions; of remote ones as this process saw them last, unless `afresh`."""

    def is_current(name: str) -> bool:
        try:
            found, _ = look(source.root, name, source.options, "a file of a LeRobot data set", afresh=afresh)
        except SourceError:
            return False  # whoever makes the index says so
        return found == versions[name]

    if afresh and local_path(source.root) is None:
        return all(at_once(is_current, list(versions)))
    return all(map(is_current, versions))
