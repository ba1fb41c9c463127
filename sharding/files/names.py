"""Which file names a dataset may use: what a hostile manifest must not be able to do is leave its folder."""

import os
import re
import secrets

from epistream.access import placed_link

# No slash, no leading dot, nothing that a URL, a shell or a brace pattern would read as something else.
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-+=@,]{0,199}\.tar")

# What the folder of a LeRobot data set has, and no other.
LEROBOT_INFO = "meta/info.json"
HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
# What a shard is called that is no tar: an HDF5 file, or the table of a LeRobot data set that names its episodes.
UNPACKED_SUFFIXES = (*HDF5_SUFFIXES, ".parquet")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".z")
_COMPRESSED_TARS = (*(f".tar{suffix}" for suffix in _COMPRESSED), ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")


def shard_name_problem(name: str) -> str | None:
    """What is wrong with the file name of a shard, or None."""
    if _SHARD.fullmatch(name):
        return None
    return f"shard name {name!r:.120}, wanted letters, digits and _.-+=@, '.tar' at the end, no folder"


def index_name(shard_name: str) -> str:
    """``shard-000012.tar`` -> ``shard-000012.index``."""
    return shard_name.removesuffix(".tar") + ".index"


def temporary_name(name: str) -> str:
    """What a file is called until it is whole: no reader takes it for anything, and no two writers have the same.

    Processes of several machines, and two attempts of one task, can write the same file at once.
    """
    return f".{name}.{os.getpid()}{secrets.randbelow(1_000_000):06d}.tmp"


def is_tar(url: str) -> bool:
    """Whether a shard is a tar; all others are read where they lie: HDF5 files, or episodes of LeRobot data sets."""
    return placed_link(url)[1].endswith(".tar")


def is_compressed_tar(name: str) -> bool:
    """Whether a file is a tar that would have to be decompressed from its beginning for each read."""
    return name.lower().endswith(_COMPRESSED_TARS)


# Between the file that is kept of a LeRobot data set, and the position of an episode.
EPISODE_MARK = "#episode="


def is_episode_url(index_url: str) -> bool:
    """Whether the index of a shard is that of an episode of a LeRobot data set, which is made when it is read."""
    return EPISODE_MARK in index_url
