"""Which episodes share a shard, in packing and in HDF5 files: neighbours of one split, up to a target size."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def fill_shards(episodes: Iterable[tuple[T, str, int]], shard_bytes: int) -> list[list[T]]:
    """Fill shards in order, one open per split; an episode goes where the shard ends nearer to its target size.

    Args:
        episodes: Each with its split and its size in bytes.
        shard_bytes: The target size.
    """
    shards: list[list[T]] = []
    current: dict[str, tuple[list[T], int]] = {}
    for episode, split, num_bytes in episodes:
        members, size = current.get(split, ([], 0))
        if not members or size + num_bytes / 2 > shard_bytes:
            members, size = [], 0
            shards.append(members)
        members.append(episode)
        current[split] = members, size + num_bytes
    return shards
