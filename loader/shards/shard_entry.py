"""A shard as the cache keeps it: which files, how large, with which checksums; and its index, read out of that."""

from collections.abc import Callable, Mapping, Sequence

from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Entry, Part
from epistream.errors import ChecksumError, EpistreamError
from epistream.file_systems import local_path
from epistream.sharding.files.names import is_episode_url, is_tar
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.opened_dataset import Dataset


def shard_entry(dataset: Dataset, shard: int) -> Entry:
    """The cache entry of a shard: its tar and its index, so that one fill brings both to every rank.

    A shard of an HDF5 file, or an episode of a LeRobot data set, is the packed bytes that its index counts, in place of
    the tar. The index of an episode is made by whoever asks first, which may fail as reading it may.

    Raises:
        FormatError, SourceError, FetchError, SourceChangedError, CacheError, DeadlineError: Of an episode: as
            `epistream.sharding.lerobot.kept.keep_episode`.
    """
    if is_episode_url(dataset.index_url[shard]):
        from epistream.loader.shards.lerobot_supply import episode_entry

        return episode_entry(dataset, shard)
    url, checksum = dataset.shard_url[shard], dataset.shard_checksum[shard]
    index = Part(dataset.index_url[shard], int(dataset.index_bytes[shard]), dataset.index_checksum[shard])
    if is_tar(url):
        return Entry((Part(url, int(dataset.shard_bytes[shard]), checksum), index))
    from epistream.loader.shards.hdf5_blob import Hdf5Supply

    supply = Hdf5Supply(url, index.url, dataset.storage_options)
    # The index names the version of the file that it was made of: its checksum stands for both.
    packed = Part(url, int(dataset.shard_bytes[shard]), version=index.checksum, supply=supply)
    return Entry((packed, index), content="packed bytes of HDF5")


def place_of(dataset: Dataset, shard: int) -> Entry:
    """An entry that says where a shard lies, and so which way it goes: the shard's, unless making that takes requests.

    Raises:
        FormatError, SourceError, SourceChangedError, CacheError, DeadlineError: As `shard_entry`.
    """
    url = dataset.shard_url[shard]
    if is_episode_url(dataset.index_url[shard]) and local_path(url) is None:
        return Entry((Part(url, 0, version=""),))
    return shard_entry(dataset, shard)


def entries_at_once(
    dataset: Dataset, shards: Sequence[int], before_wait: Callable[[], None] = lambda: None
) -> dict[int, Entry | EpistreamError]:
    """The entries of some shards that wait for a network while they are made, made together; none of others.

    Args:
        dataset: Whose shards.
        shards: Their numbers.
        before_wait: Called before anything is waited for.

    Returns:
        By shard, or what it failed of: to be raised for whoever wants that shard.
    """
    if not any(is_episode_url(dataset.index_url[shard]) for shard in shards):
        return {}
    from epistream.loader.shards.lerobot_supply import episode_entries

    return episode_entries(dataset, shards, before_wait)


def data_version(dataset: Dataset) -> str:
    """What stands for all bytes that a dataset is read from, now: of files that are packed, its fingerprint.

    That of HDF5 files does not read all of them; their indexes name the version of the file that each was made of. Of
    episodes of LeRobot data sets it is that of the metadata: a file that is replaced is found out when it is read.
    """
    if all(map(is_tar, dataset.shard_url)):
        return dataset.fingerprint
    return checksum(" ".join([dataset.fingerprint, *dataset.index_checksum]).encode())


def read_index(blob: Blob, source: Entry, names: Mapping[str, str], *, validate: bool = True) -> ShardIndex:
    """The index of a shard, from the second part of its entry; compared with the manifest's checksum, if that has one.

    Args:
        blob: The part, opened.
        source: The entry.
        names: What the dataset calls features otherwise, as `Dataset.names_in` says.
        validate: False if it was looked at before: it is only viewed then.

    Raises:
        FormatError: It is torn.
        ChecksumError: It is whole, and not the one that the manifest is of.
    """
    part = source.parts[1]
    data = blob.read(0, blob.size)
    index = ShardIndex.parse(data, part.url, validate=validate)
    found = checksum(data) if validate and part.checksum else part.checksum
    if found != part.checksum:
        again = (
            "Upload or copy the dataset again, or re-create the manifest with 'epistream index URL --overwrite' if it "
            "was changed on purpose."
        )
        raise ChecksumError(
            f"{part.url}: checksum {found}, wanted {part.checksum}, which the manifest has for it. "
            + (again if is_tar(source.parts[0].url) else "Open the dataset again: it is made anew.")
        )
    return index.called(names)
