"""Episodes of LeRobot data sets as entries of the cache: packets where their videos hold them, pictures as unpacked."""

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Entry, Part
from epistream.cache.source.local import MappedBlob
from epistream.cache.source.pieces import PieceFile, Pieces, ranges_of
from epistream.cache.source.pieces_blob import PiecesBlob
from epistream.errors import EpistreamError, SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.loader.shards.picture_columns import ColumnsBlob
from epistream.sharding.files.names import is_episode_url
from epistream.sharding.files.storage import join
from epistream.sharding.files.user_cache import Claim
from epistream.sharding.format.checksums import checksum
from epistream.sharding.lerobot.dataset import episode_source
from epistream.sharding.lerobot.episode import SetSource
from epistream.sharding.lerobot.index import EpisodeIndex, Places
from epistream.sharding.lerobot.kept import are_current, give_up, keep_episode, look_ahead
from epistream.sharding.lerobot.seen import opening
from epistream.sharding.manifest.opened_dataset import Dataset

# What readers of the first batches bring over a network at least: a group of two frames takes 5 to 20 KB.
_BLOCK_BYTES = 64 << 10
# Indexes that are made at a time: of what is at hand, and where each waits for the network most of the time. Threads
# leave memory behind, and stand in each other's way.
_AT_ONCE, _AT_ONCE_WAITING = 2, 16
# How often an index is made again: whoever removes it oftener wants the folder empty.
_MOST_REMOVALS = 8
# Indexes that are claimed at a time: each holds a file open.
_MOST_CLAIMS = 64


def episode_entry(dataset: Dataset, shard: int, claimed: Claim | None = None) -> Entry:
    """The cache entry of an episode: the bytes of its pictures, and its index, which is made now if it is not kept.

    Args:
        dataset: The data set.
        shard: The episode.
        claimed: The right to make its index, if somebody has that already.

    Raises:
        FormatError, SourceError, FetchError, SourceChangedError, CacheError, DeadlineError: As `keep_episode`.
    """
    url = dataset.index_url[shard]
    source, episode = episode_source(url, dataset.storage_options)
    known = _made.get(url)
    if known is not None and known.options is dataset.storage_options and known.holds(source):
        return known.entry
    kept = keep_episode(source, episode, claimed)
    kept_index = KeptIndex(url, kept.path, kept.checksum, dataset.storage_options)
    index = Part(kept.path, kept.num_bytes, kept.checksum, supply=kept_index)
    is_costly = bool(kept.index.places.columns)
    supply = EpisodeSupply(source.root, kept_index, is_costly)
    # The index names the versions of the files that it was made of: its checksum stands for all.
    packed = Part(
        dataset.shard_url[shard],
        kept.index.places.num_bytes,
        version=kept.checksum,
        block_bytes=_BLOCK_BYTES,
        supply=supply,
    )
    entry = Entry((packed, index), content="packed bytes of LeRobot")
    if len(_made) >= _MOST_MADE:
        _made.clear()
    versions = {one.name: one.version for one in kept.index.places.files}
    if len(_places) >= _MOST_PLACES:
        _places.clear()
    _places[kept.path, kept.checksum] = kept.index.places
    _made[url] = _Made(entry, versions, dataset.storage_options, opening(source.root))
    return entry


class _Made(NamedTuple):
    """An entry, the versions of its files, what opens them, and the opening of the data set that it was made after."""

    entry: Entry
    versions: dict[str, str]
    options: Mapping[str, Any]
    opening: int | None

    def holds(self, source: SetSource) -> bool:
        """Whether it is of the files as they are: of remote ones as they were seen after the set was opened last.

        And whether its index still is where it was kept.
        """
        if not Path(self.entry.parts[1].url).exists():
            return False
        if local_path(source.root) is None:
            return self.opening == opening(source.root)
        return are_current(source, self.versions)


def episode_entries(
    dataset: Dataset, shards: Sequence[int], before_wait: Callable[[], None] = lambda: None
) -> dict[int, Entry | EpistreamError]:
    """The entries of those of some shards that are remote episodes and not known yet, made at the same time.

    Making one by itself takes several requests over the network, each of which waits for the one before.

    Returns:
        By shard, or what it failed of.
    """
    wanted = [shard for shard in shards if is_unknown(dataset, shard)]
    if not wanted:
        return {}
    before_wait()
    of_sets: dict[str, tuple[SetSource, dict[int, int]]] = {}  # by root: a list of data sets has shards of several
    for shard in wanted:
        source, episode = episode_source(dataset.index_url[shard], dataset.storage_options)
        of_sets.setdefault(source.root, (source, {}))[1][shard] = episode
    made: dict[int, Entry | EpistreamError] = {}
    for source, episodes in of_sets.values():
        numbers = iter(episodes.items())
        while some := dict(islice(numbers, _MOST_CLAIMS)):
            made |= _make_some(dataset, source, some)
    return made


def _make_some(dataset: Dataset, source: SetSource, episodes: Mapping[int, int]) -> dict[int, Entry | EpistreamError]:
    """The entries of some episodes of a data set, given by shard."""
    ahead = look_ahead(source, list(episodes.values()))

    def entry_of(shard: int) -> Entry | EpistreamError:
        episode = episodes[shard]
        if episode in ahead.problems:
            return ahead.problems[episode]
        try:
            return episode_entry(dataset, shard, ahead.claims.get(episode))
        except EpistreamError as error:
            return error

    # Others wait for those that were claimed, and may have claimed the rest.
    mine = [shard for shard in episodes if episodes[shard] in ahead.claims]
    rest = [shard for shard in episodes if episodes[shard] not in ahead.claims]
    at_once = min(len(episodes), _AT_ONCE_WAITING if ahead.waits else _AT_ONCE)
    try:
        with ThreadPoolExecutor(at_once, "epistream-indexes") as pool:
            made = dict(zip(mine, pool.map(entry_of, mine), strict=True))
            return made | dict(zip(rest, pool.map(entry_of, rest), strict=True))
    finally:
        give_up(ahead.claims)


def is_unknown(dataset: Dataset, shard: int) -> bool:
    """Whether a shard is an episode of a remote LeRobot data set whose entry this process has not made."""
    url = dataset.index_url[shard]
    return is_episode_url(url) and url not in _made and local_path(dataset.shard_url[shard]) is None


# By the URL of their index. Plain reads and writes, which no fork leaves half done. A reader asks for those that it
# holds open again and again.
_made: dict[str, _Made] = {}
_MOST_MADE = 1024
# Of indexes that this process has just read, by path and checksum: they are asked for soon, and take a millisecond.
_places: dict[tuple[str, str], Places] = {}
_MOST_PLACES = 128


@dataclass(frozen=True)
class KeptIndex:
    """The index of an episode, kept in the user's cache; offered to the cache as `epistream.cache.source.blob.Supply`.

    Whoever keeps that folder small may remove it at any time: it is made again then.

    Args:
        url: As `Dataset.index_url` has it.
        path: Where it is kept.
        checksum: Of that file: if the data files of the episode change, it is made anew.
        storage_options: For fsspec, if the data set is remote.
    """

    url: str
    path: str
    checksum: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_costly: bool = field(default=False, init=False)

    def open(self) -> Blob:
        """As `Supply.open`: mapped, so that ranks share it. Only ever replaced or removed as a whole."""
        return MappedBlob(memoryview(self.read()), self.path)

    def pieces(self) -> None:
        """As `Supply.pieces`: it is read as a whole."""
        return

    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        """As `Supply.local_ranges`: none, it was written just now or is small."""
        return ()

    def read(self) -> mmap.mmap:
        """Its bytes, mapped.

        Raises:
            SourceError: If it is gone and cannot be made again, or cannot be read.
            SourceChangedError: If it would be another one now.
            FormatError, FetchError, CacheError, DeadlineError: As `keep_episode`.
        """
        for _ in range(_MOST_REMOVALS):
            try:
                with Path(self.path).open("rb") as file:
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError:
                self._make_again()
            except (OSError, ValueError) as error:
                raise SourceError(
                    f"{self.path}: {error}, wanted the index of an episode. Open the dataset again: it is made anew."
                ) from error
        raise SourceError(
            f"{self.path}: removed {_MOST_REMOVALS} times while it was wanted. End what empties the folder, or name "
            "another cache with XDG_CACHE_HOME."
        )

    def _make_again(self) -> None:
        source, episode = episode_source(self.url, self.storage_options)
        kept = keep_episode(source, episode)
        if (kept.path, kept.checksum) != (self.path, self.checksum):
            raise _changed(self.path)


def _changed(path: str) -> SourceChangedError:
    return SourceChangedError(
        f"{path}: the index of other files than those that were looked at: one was replaced or written to. Open the "
        "dataset again."
    )


@dataclass(frozen=True)
class EpisodeSupply:
    """Offers the packed bytes of an episode to the cache, see `epistream.cache.source.blob.Supply`.

    Args:
        root: Of the data set.
        index: Of the episode.
        is_costly: Whether pictures have to be taken out of Parquet files.
    """

    root: str
    index: KeptIndex
    is_costly: bool = False

    @property
    def storage_options(self) -> Mapping[str, Any]:
        """For fsspec, if the data set is remote."""
        return self.index.storage_options

    def open(self) -> Blob:
        """As `Supply.open`."""
        return packed_blob(self.root, self._places(), self.storage_options, Path(self.index.path).parent)

    def pieces(self) -> Pieces | None:
        """As `Supply.pieces`."""
        return None if self.is_costly else pieces_of(self.root, self._places())

    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        """As `Supply.local_ranges`."""
        return () if self.is_costly else ranges_of(pieces_of(self.root, self._places()))

    def _places(self) -> Places:
        known = _places.get((self.index.path, self.index.checksum))
        if known is not None and local_path(self.root) is None:  # of those every answer is compared with its version
            return known
        data = bytes(self.index.read())
        if checksum(data) != self.index.checksum:
            raise _changed(self.index.path)
        return EpisodeIndex.parse(data, self.index.path).places


def packed_blob(root: str, places: Places, storage_options: Mapping[str, Any], folder: Path) -> Blob:
    """The packed bytes of an episode of a data set, where no cache brings them: of videos only those on this machine.

    Args:
        root: Of the data set.
        places: Of the packed bytes.
        storage_options: For fsspec.
        folder: Where row groups are kept that episodes share.
    """
    if places.columns:
        return ColumnsBlob(root, places, storage_options, folder)
    return PiecesBlob(root, pieces_of(root, places))


def pieces_of(root: str, places: Places) -> Pieces:
    """Where packed bytes lie that are all packets of videos."""
    files = tuple(PieceFile(join(root, one.name), one.num_bytes, one.version) for one in places.files)
    return Pieces(files, places.num_bytes, places.start, places.file, places.place)
