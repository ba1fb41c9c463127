"""Episodes of LeRobot data sets as entries of the cache: packets where their videos hold them, pictures as unpacked."""

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.opened_dataset import Dataset
from epistream.sharding.lerobot.dataset import episode_source
from epistream.sharding.lerobot.episode import SetSource
from epistream.sharding.lerobot.index import EpisodeIndex, Places
from epistream.sharding.lerobot.kept import are_current, keep_episode
from epistream.sharding.lerobot.seen import look_at_all

# What readers of the first batches bring over a network at least: a group of two frames takes 5 to 20 KB.
_BLOCK_BYTES = 64 << 10
# Indexes that are made at a time. Each waits for the network most of the time, and leaves memory of its thread behind.
_AT_ONCE = 16


def episode_entry(dataset: Dataset, shard: int) -> Entry:
    """The cache entry of an episode: the bytes of its pictures, and its index, which is made now if it is not kept.

    Raises:
        FormatError, SourceError, FetchError, SourceChangedError, CacheError, DeadlineError: As `keep_episode`.
    """
    url = dataset.index_url[shard]
    source, episode = episode_source(url, dataset.storage_options)
    known = _made.get(url)
    if known is not None and known.options is dataset.storage_options and are_current(source, known.versions):
        return known.entry
    kept = keep_episode(source, episode)
    index = Part(kept.path, kept.num_bytes, kept.checksum, supply=KeptFile(kept.path))
    is_costly = bool(kept.index.places.columns)
    supply = EpisodeSupply(source.root, kept.path, kept.checksum, dataset.storage_options, is_costly)
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
    _made[url] = _Made(entry, {one.name: one.version for one in kept.index.places.files}, dataset.storage_options)
    return entry


class _Made(NamedTuple):
    """An entry, the versions of its files, and what opens them."""

    entry: Entry
    versions: dict[str, str]
    options: Mapping[str, Any]


def episode_entries(
    dataset: Dataset, shards: Sequence[int], before_wait: Callable[[], None] = lambda: None
) -> dict[int, Entry | EpistreamError]:
    """The entries of those of some shards that are remote episodes and not known yet, made at the same time.

    Making one by itself takes ten requests over the network, each of which waits for the one before.

    Returns:
        By shard, or what it failed of.
    """
    wanted = [shard for shard in shards if is_unknown(dataset, shard)]
    if len(wanted) < 2:
        return {}
    before_wait()
    files: dict[int, tuple[SetSource, dict[str, str]]] = {}
    of_sets: dict[str, tuple[SetSource, dict[str, str]]] = {}  # by root: a list of data sets has shards of several
    for shard in wanted:
        source, episode = episode_source(dataset.index_url[shard], dataset.storage_options)
        files[shard] = source, source.files_of(episode)
        of_sets.setdefault(source.root, (source, {}))[1].update(files[shard][1])
    failed = {root: look_at_all(root, names, source.options) for root, (source, names) in of_sets.items()}

    def entry_of(shard: int) -> Entry | EpistreamError:
        source, names = files[shard]
        problem = next((failed[source.root][name] for name in names if name in failed[source.root]), None)
        if problem is not None:
            return problem  # to ask again may take as long again
        try:
            return episode_entry(dataset, shard)
        except EpistreamError as error:
            return error

    with ThreadPoolExecutor(min(len(wanted), _AT_ONCE), "epistream-indexes") as pool:
        return dict(zip(wanted, pool.map(entry_of, wanted), strict=True))


def is_unknown(dataset: Dataset, shard: int) -> bool:
    """Whether a shard is an episode of a remote LeRobot data set whose entry this process has not made."""
    url = dataset.index_url[shard]
    return is_episode_url(url) and url not in _made and local_path(dataset.shard_url[shard]) is None


# By the URL of their index. Plain reads and writes, which no fork leaves half done. A reader asks for those that it
# holds open again and again.
_made: dict[str, _Made] = {}
_MOST_MADE = 1024


@dataclass(frozen=True)
class KeptFile:
    """Offers a kept index to the cache, see `epistream.cache.source.blob.Supply`: mapped, so that ranks share it.

    It is ours, and only ever replaced or removed as a whole: its mapping stays good.
    """

    path: str
    is_costly: bool = field(default=False, init=False)

    def open(self) -> Blob:
        """As `Supply.open`."""
        try:
            with Path(self.path).open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{self.path}: {error}, wanted the index of an episode. Open the dataset again: it is made anew."
            ) from error
        return MappedBlob(memoryview(mapping), self.path)

    def pieces(self) -> None:
        """As `Supply.pieces`: it is read as a whole."""
        return

    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        """As `Supply.local_ranges`: none, it was written just now or is small."""
        return ()


@dataclass(frozen=True)
class EpisodeSupply:
    """Offers the packed bytes of an episode to the cache, see `epistream.cache.source.blob.Supply`.

    Args:
        root: Of the data set.
        index_path: Where the index of the episode is kept.
        checksum: Of that file: if its data files change, it is made anew.
        storage_options: For fsspec, if the data set is remote.
        is_costly: Whether pictures have to be taken out of Parquet files.
    """

    root: str
    index_path: str
    checksum: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_costly: bool = False

    def open(self) -> Blob:
        """As `Supply.open`."""
        places = self._places()
        if places.columns:
            return ColumnsBlob(self.root, places, self.storage_options)
        return PiecesBlob(self.index_path, self._pieces(places))

    def pieces(self) -> Pieces | None:
        """As `Supply.pieces`."""
        return None if self.is_costly else self._pieces(self._places())

    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        """As `Supply.local_ranges`."""
        return () if self.is_costly else ranges_of(self._pieces(self._places()))

    def _places(self) -> Places:
        try:
            data = Path(self.index_path).read_bytes()
        except OSError as error:
            raise SourceError(
                f"{self.index_path}: {error.strerror}, wanted the index of an episode. Open the dataset again: it is "
                "made anew."
            ) from error
        if checksum(data) != self.checksum:
            raise SourceChangedError(
                f"{self.index_path}: the index of other files than those that were looked at: one was replaced "
                "or written to. Open the dataset again."
            )
        return EpisodeIndex.parse(data, self.index_path).places

    def _pieces(self, places: Places) -> Pieces:
        files = tuple(PieceFile(join(self.root, one.name), one.num_bytes, one.version) for one in places.files)
        return Pieces(files, places.num_bytes, places.start, places.file, places.place)
