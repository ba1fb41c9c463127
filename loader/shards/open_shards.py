"""The shards that a reader holds open between its batches, because mapping them afresh costs page faults."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from epistream.cache.node import NodeCache, OpenEntry
from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Entry
from epistream.errors import EpistreamError
from epistream.loader.shards.cold_start import ColdShard
from epistream.loader.shards.shard_entry import entries_at_once, read_index, shard_entry
from epistream.lru import Lru
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.opened_dataset import Dataset


@dataclass(eq=False)
class OpenShard:
    """A shard whose bytes are at hand.

    Args:
        number: of the shard in its dataset.
        source: what it is.
        entry: it, opened.
        index: its index.
        is_cold: whether only what is wanted now is at hand, brought by ranges.
    """

    number: int
    source: Entry
    entry: OpenEntry
    index: ShardIndex
    is_cold: bool = False

    @property
    def tar(self) -> Blob:
        """Its bytes."""
        return self.entry.blobs[0]

    @property
    def naming(self) -> str:
        """For keys of arrays that are made of it: what the dataset calls features otherwise than the shard."""
        return json.dumps(sorted(self.index.renamed.items())) if self.index.renamed else ""


class OpenShards:
    """Opens shards of a dataset, and keeps those used last. Not shared between threads.

    Args:
        dataset: whose shards.
        cache: where they are kept on this node.
        max_open: shards held open at a time.
    """

    def __init__(self, dataset: Dataset, cache: NodeCache, max_open: int) -> None:
        self._dataset = dataset
        self._cache = cache
        self._open: Lru[int, OpenShard | ColdShard] = Lru(max_open, _close)
        # By shard. Tars never change once published, and episodes of LeRobot's files have another index then: one of
        # the same checksum is checked once per process, and then only viewed.
        self._checked: dict[int, str | None] = {}
        self._expected: dict[int, Entry | EpistreamError] = {}

    def expect(self, shards: Sequence[int], before_wait: Callable[[], None]) -> None:
        """Find out together where shards lie that are taken next, where that waits for a network.

        Args:
            shards: those of a batch.
            before_wait: as for `take`.
        """
        unknown = [shard for shard in shards if shard not in self._checked]
        if len(unknown) > 1:
            self._expected = entries_at_once(self._dataset, unknown, before_wait)

    def take(self, shard: int, before_wait: Callable[[], None], *, wait: bool) -> OpenShard | ColdShard:
        """A shard to read from at once; or one that others are read together with, by ranges.

        Args:
            shard: the shard.
            before_wait: gives up whatever this thread holds of the cache.
            wait: whether to wait for the fill of a shard that is not in the cache.
        """
        opened = self._open.get(shard)
        if opened is not None:
            return opened
        self._open.make_room()
        source = self._expected.pop(shard, None)
        if isinstance(source, EpistreamError):
            raise source
        source = source or shard_entry(self._dataset, shard)
        entry = self._cache.open(source, before_wait=before_wait, wait=wait)
        # The cache is asked anew for each batch where it keeps the source: somebody fills it, or there is room then.
        keep = entry.tier != "direct" or (wait and not self._cache.keeps(source))
        if entry.blobs[0].has_ranges or not keep:
            opened = ColdShard(shard, source, entry, keep, self._dataset.names_in(shard))
        else:
            try:
                blob = entry.blobs[1]
                told = source.parts[1].checksum
                is_new = shard not in self._checked or self._checked[shard] != told
                index = read_index(blob, source, self._dataset.names_in(shard), validate=is_new)
                blob.close()  # what was read of a file stays, without a descriptor
            except BaseException:
                entry.close()
                raise
            self._checked[shard] = told
            opened = OpenShard(shard, source, entry, index)
        if keep:
            self._open.put(shard, opened)
        return opened

    def release(self) -> None:
        """Give up every shard that the cache leases."""
        self._open.drop_if(lambda opened: opened.entry.tier != "direct")

    def close(self) -> None:
        """Give up every shard."""
        self._open.clear()


def _close(opened: OpenShard | ColdShard) -> None:
    if isinstance(opened, OpenShard):  # a cold one holds nothing, and the batch in hand may need it
        opened.entry.close()
