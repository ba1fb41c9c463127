"""A shard as the cache keeps it: which files, how large, with which checksums."""

from epistream.cache.source.entry import Entry, Part
from epistream.sharding.files.names import is_tar
from epistream.sharding.format.opened_dataset import Dataset


def shard_entry(dataset: Dataset, shard: int) -> Entry:
    """The cache entry of a shard: its tar and its index, so that one fill brings both to every rank.

    A shard of an HDF5 file is the packed bytes that its index counts, in place of the tar.
    """
    url, checksum = dataset.shard_url[shard], dataset.shard_checksum[shard]
    index = Part(dataset.index_url[shard], int(dataset.index_bytes[shard]), dataset.index_checksum[shard])
    if is_tar(url):
        return Entry((Part(url, int(dataset.shard_bytes[shard]), checksum), index))
    from epistream.loader.reading.hdf5_blob import Hdf5Supply

    supply = Hdf5Supply(url, index.url, dataset.storage_options)
    # The index names the version of the file that it was made of: its checksum stands for both.
    packed = Part(url, int(dataset.shard_bytes[shard]), version=index.checksum, supply=supply)
    return Entry((packed, index), content="packed bytes of HDF5")
