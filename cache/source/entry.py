"""What the cache stores: an entry, made of parts that lie one after the other in one file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Supply
from epistream.cache.source.pieces import Pieces
from epistream.errors import OptionError
from epistream.file_systems import local_path
from epistream.lazy import lazy

# Parts begin at cache lines, so that an index can be viewed as arrays of 8-byte integers in place.
ALIGNMENT_BYTES = 64
# One XXH3-64 checksum stands for so many bytes, unless an entry says otherwise.
BLOCK_BYTES = 1 << 20
# Hex digits that the keys of a group begin with.
GROUP_DIGITS = 8


@dataclass(frozen=True)
class Part:
    """One file (or object) at a URL.

    Args:
        url: Any URL of fsspec's, or a local path.
        size: Bytes of it.
        checksum: XXH3-128 of it as 32 hex digits; None where no manifest tells it.
        version: ETag, modification time or the like, which takes the checksum's place in the key
            where there is none; looked up by the cache when both are None.
        block_checksums: uint64 XXH3-64 of each block of ``block_bytes``; ranged reads are checked
            with it. Not a part of the key.
        block_bytes: Block size of ``block_checksums``.
        supply: Gives the bytes where they are not simply those at ``url``; ``checksum`` or ``version`` then tells
            them apart. Not a part of the key.
    """

    url: str
    size: int
    checksum: str | None = None
    version: str | None = None
    block_checksums: NDArray[np.uint64] | None = field(default=None, compare=False, repr=False)
    block_bytes: int = field(default=BLOCK_BYTES, compare=False, repr=False)
    supply: Supply | None = field(default=None, compare=False, repr=False)

    @lazy
    def remote_pieces(self) -> Pieces | None:
        """Where in remote files the bytes lie in pieces, as they are; None if that is not so.

        Raises:
            EpistreamError: They cannot be told.
        """
        return None if self.supply is None or local_path(self.url) is not None else self.supply.pieces()

    def __getstate__(self) -> dict[str, Any]:
        return {fact.name: getattr(self, fact.name) for fact in fields(self)}

    def __post_init__(self) -> None:
        if self.size < 0:
            raise OptionError(f"{self.url}: a size of {self.size} bytes, wanted 0 or more. Correct the manifest.")
        if self.block_checksums is not None:
            num_blocks = -(-self.size // self.block_bytes)
            if len(self.block_checksums) != num_blocks:
                raise OptionError(
                    f"{self.url}: {len(self.block_checksums)} block checksums, wanted {num_blocks} for "
                    f"{self.size} bytes. Re-create the index with 'epistream index URL --overwrite'."
                )


@dataclass(frozen=True)
class Entry:
    """Parts that are fetched, kept and evicted together: a shard with its index, for example.

    Args:
        parts: At least one.
        content: What of the parts is kept: "" for all their bytes; a caller that stores something
            made from them (decoded frames, byte ranges) names it here, with every option that shapes it.
        group: Names what a job uses as a whole (all decoded frames of a dataset, made in one way): the keys of a
            group begin alike, so that it can be claimed, see `NodeCache.claim`. "" for none.
    """

    parts: tuple[Part, ...]
    content: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if not self.parts:
            raise OptionError("Entry: no parts, wanted one or more. Pass at least one Part.")

    @lazy
    def key(self) -> str:
        """32 hex digits that differ whenever URL, size, checksum, version or content differ."""
        facts = [[part.url, part.size, part.checksum, part.version] for part in self.parts]
        text = json.dumps([1, self.content, facts], separators=(",", ":"), ensure_ascii=True)
        digits = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return group_digits(self.group) + digits[GROUP_DIGITS:] if self.group else digits

    @lazy
    def offsets(self) -> tuple[int, ...]:
        """Where each part begins, in bytes."""
        return part_offsets([part.size for part in self.parts])

    @property
    def size(self) -> int:
        """Bytes of the whole entry, the gaps between parts included."""
        return self.offsets[-1] + self.parts[-1].size

    @property
    def is_identified(self) -> bool:
        """Whether its key tells its content: a checksum or a version of each part is known."""
        return all(part.checksum is not None or part.version is not None for part in self.parts)

    @lazy
    def is_shareable(self) -> bool:
        """Whether blocks of it can be brought one by one by many.

        Either its bytes can be told from wrong ones; or they lie in pieces of remote files, and are taken as they come.
        What else such an entry has is at hand, and small: readers look at it where it is.
        """
        has_pieces = any(part.remote_pieces is not None for part in self.parts)
        return all(
            part.remote_pieces is not None
            or (part.checksum is not None and (has_pieces or (part.supply is None and local_path(part.url) is None)))
            for part in self.parts
        )

    @property
    def is_costly(self) -> bool:
        """Whether reading it in place costs much more than reading a copy, see `Supply`."""
        return any(part.supply is not None and part.supply.is_costly for part in self.parts)

    def with_versions(self, versions: Sequence[str | None]) -> "Entry":
        """The same entry with these versions in its parts, where they have none."""
        parts = tuple(
            part if part.version is not None else replace(part, version=version)
            for part, version in zip(self.parts, versions, strict=True)
        )
        return Entry(parts, self.content, self.group)

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "content": self.content, "group": self.group}


def group_digits(group: str) -> str:
    """What the keys of a group begin with: 8 hex digits."""
    return hashlib.blake2b(group.encode(), digest_size=GROUP_DIGITS // 2).hexdigest()


def part_offsets(sizes: Sequence[int]) -> tuple[int, ...]:
    """Offsets of parts of these sizes, each at a multiple of 64 bytes.

    >>> part_offsets([100, 64, 1])
    (0, 128, 192)
    """
    offsets = []
    position = 0
    for size in sizes:
        position = -(-position // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        offsets.append(position)
        position += size
    return tuple(offsets)
