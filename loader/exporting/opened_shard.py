"""Shards as an export reads them: their indexes, each read once for neighbouring episodes, and their packed bytes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field

import xxhash

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.blob import Blob
from epistream.cache.source.pieces import Pieces
from epistream.file_systems import local_path
from epistream.loader.exporting.packed_attributes import PackedAttributes
from epistream.loader.shards.lerobot_supply import packed_blob, pieces_of
from epistream.loader.shards.shard_entry import read_index, shard_entry
from epistream.lru import SharedLru
from epistream.plain_files import version_of_file
from epistream.sharding.files.names import is_episode_url, is_tar
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.lerobot.dataset import episode_source
from epistream.sharding.lerobot.kept import find_episode
from epistream.sharding.lerobot_out.model import FileRange
from epistream.sharding.manifest.opened_dataset import Dataset

_LEROBOT = "LeRobot"  # what layouts of such episodes are called
# Shards whose indexes stay at hand: of 100 episodes one takes a few MB.
_MOST_SHARDS = 2


@dataclass(frozen=True, eq=False)
class KnownShard:
    """A shard whose index is read.

    Args:
        index: The index.
        version: Of what the shard is read from.
        opened: Opens its packed bytes, and closes them.
        file: That all of it is, if it is a plain file of this machine, with its version.
        pieces: Of files of this machine that its packed bytes are, if they are that.
        attributes: Of episodes that were packed from a LeRobot data set.
    """

    index: ShardIndex
    version: str
    opened: Callable[[], AbstractContextManager[Blob]]
    file: tuple[str, str] | None = None
    pieces: Pieces | None = None
    attributes: PackedAttributes | None = None

    def ranges(self, start: int, size: int) -> list[FileRange] | None:
        """Where some packed bytes lie on this machine as they are; None if they do not."""
        if self.file is not None:
            return [FileRange(*self.file, start, size)]
        if self.pieces is None:
            return None
        found = []
        for one in self.pieces.within(start, start + size):
            file = self.pieces.files[one.file]
            found.append(FileRange(str(local_path(file.url)), file.version, one.place, one.size))
        return found


@dataclass(eq=False)
class KnownShards:
    """Those of a dataset that were opened last.

    Args:
        dataset: The dataset.
    """

    dataset: Dataset
    _shards: SharedLru[int, KnownShard] = field(init=False, default_factory=lambda: SharedLru(_MOST_SHARDS))

    def __post_init__(self) -> None:
        self._cache = NodeCache(CacheOptions(mode="off"), self.dataset.storage_options)

    def of(self, shard: int) -> KnownShard:
        """A shard, opened if it is none of the last.

        Raises:
            EpistreamError: If it cannot be read.
        """
        return self._shards.get(shard, lambda: self._open(shard))

    def _open(self, shard: int) -> KnownShard:
        if is_episode_url(self.dataset.index_url[shard]) and local_path(self.dataset.shard_url[shard]) is not None:
            return self._open_episode(shard)
        entry = shard_entry(self.dataset, shard)
        with self._cache.open(entry) as whole:
            index = read_index(
                whole.blobs[1], entry, self.dataset.names_in(shard)
            )  # the bytes that it views stay with it
        packed, path = entry.parts[0], local_path(entry.parts[0].url)
        file = attributes = None
        if path is not None and is_tar(packed.url):
            file = str(path), version_of_file(path.stat())
            if any(one.layout.startswith(_LEROBOT) for one in index.episodes):
                attributes = PackedAttributes(path, index.keys)

        @contextmanager
        def opened() -> Iterator[Blob]:
            with self._cache.open(entry) as whole:
                yield whole.blobs[0]

        version = packed.version or packed.checksum or ""
        return KnownShard(index, version, opened, file, attributes=attributes)

    def _open_episode(self, shard: int) -> KnownShard:
        """An episode of a LeRobot data set of this machine."""
        options = self.dataset.storage_options
        source, position = episode_source(self.dataset.index_url[shard], options)
        index = find_episode(source, position)
        told = "\0".join(f"{one.name}\0{one.version}" for one in index.places.files)
        return KnownShard(
            index.rows,
            xxhash.xxh3_128_hexdigest(told.encode()),
            lambda: closing(packed_blob(source.root, index.places, options, source.folder)),
            pieces=None if index.places.columns else pieces_of(source.root, index.places),
        )
