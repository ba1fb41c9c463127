"""What packed episodes say of themselves beside the index: their ``<key>.meta.json``, found without walking the tar."""

import json
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from epistream.file_systems import local_path
from epistream.sharding.files.storage import Options, errors_of, read_range
from epistream.sharding.format.index import ShardIndex

_META = ".meta.json"
# As packing calls episodes; tars of others say nothing in this way.
_OURS = re.compile(r"ep-\d{9,}")
# Where the member ends the episode's values begin. Most are of 2 to 5 kB; those with statistics of videos larger.
_WINDOWS = (16 << 10, 1 << 20)
_AT_ONCE = 16  # requests
Read = Callable[[int, int], bytes]


def packed_attributes(
    index: ShardIndex, url: str, options: Options, positions: Sequence[int]
) -> list[Mapping[str, Any]]:
    """The attributes of some episodes of a tar; nothing of those that have none, or none that can be read.

    Args:
        index: Of the tar.
        url: The tar.
        options: For fsspec.
        positions: Of the episodes, in the index.

    Raises:
        SourceError, FetchError: If the tar cannot be read.
    """
    wanted = [position for position in positions if index.steps is None and _OURS.fullmatch(index.keys[position])]
    starts = {position: _first_byte(index, position) for position in wanted}
    path = local_path(url)
    if path is None:

        def read(start: int, size: int) -> bytes:
            return read_range(url, start, size, options)

        with ThreadPoolExecutor(min(max(1, len(wanted)), _AT_ONCE), "epistream-attributes") as pool:
            found = list(pool.map(lambda one: _attributes(read, index.keys[one], starts[one]), wanted))
    else:
        with errors_of(url, "wanted the attributes of its episodes.", options), path.open("rb") as file:

            def read_local(start: int, size: int) -> bytes:
                file.seek(start)
                return file.read(size)

            found = [_attributes(read_local, index.keys[one], starts[one]) for one in wanted]
    known = dict(zip(wanted, found, strict=True))
    return [known.get(position, {}) for position in positions]


def _first_byte(index: ShardIndex, position: int) -> int:
    """The first byte of the episode's values; its attributes are before them."""
    rows = slice(int(index.first_row[position]), int(index.first_row[position] + index.length[position]))
    found = [int(offset[position]) for offset in index.array_offset.values()]
    found += [int(offset[rows].min()) for offset in index.frame_offset.values()]
    return min(found, default=0)


def _attributes(read: Read, key: str, stop: int) -> Mapping[str, Any]:
    name = f"{key}{_META}".encode()
    for size in _WINDOWS:
        start = max(0, stop - size)
        start += -start % tarfile.BLOCKSIZE
        data = read(start, max(0, stop - start))
        for at in range(_last_block(data), -1, -tarfile.BLOCKSIZE):
            if data[at : at + len(name) + 1] == name + b"\0":
                return _parsed(data[at:])
        if start == 0:
            break
    return {}


def _last_block(data: bytes) -> int:
    return (len(data) - 1) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE if data else -1


def _parsed(data: bytes) -> Mapping[str, Any]:
    """Of a member, from its header on."""
    try:
        size = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "ascii", "surrogateescape").size
        said = json.loads(data[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + size])
    except (tarfile.TarError, ValueError, RecursionError):
        return {}
    attributes = said.get("attributes") if isinstance(said, dict) else None
    return attributes if isinstance(attributes, dict) else {}
