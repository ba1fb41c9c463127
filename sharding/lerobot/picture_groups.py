"""Pictures in columns of Parquet files: unpacked a row group at a time, and kept for whoever reads others of it.

A row group is decoded from its beginning on or not at all, and its pictures are wanted twice: when an episode is
indexed, and when its bytes are brought. What costs the network, or is shared with other episodes, or would fill
memory, is unpacked into a file for both.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.sharding.lerobot.chunked_file import ChunkedFile, ChunkWriter, TornError
from epistream.sharding.lerobot.files import SourceFile, open_parquet
from epistream.sharding.lerobot.row_groups import AGAIN, batches_of, bounds_of, keep_chunks, refuse_changed
from epistream.sharding.lerobot_meta.arrow import arrow_module

Int64 = NDArray[np.int64]

_KIND = "epistream.parquet-pictures"
# Raised when the same group would be kept otherwise.
_RECIPE = 1
# Of a group that is unpacked in memory.
_MOST_IN_MEMORY = 64 << 20
# Pictures of a batch: their size is not known before. A file of 96 x 96 pixels has 15 KB each, one of 640 x 480 300 KB.
_BATCH_ROWS = 32
_BUFFER_BYTES = 1 << 20
# Of what is kept so much is read for a picture at least.
_CHUNK_BYTES = 256 << 10
# Of all that is kept: as much as prefetching runs ahead, and more. At most a quarter of what the disk has left.
MOST_KEPT_BYTES = 4 << 30
_SHARE = 4
# Who has written nothing for so long was killed.
_KILLED_S = 3600.0
_EMBED = "Write the data set with pictures inside its Parquet files, as LeRobot's embed_images() does."


class GroupPictures(Protocol):
    """The pictures of a column in a row group. Threads may share it.

    Attributes:
        size: (n,) bytes of each; -1 of those that are not there.
    """

    size: Int64

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with what begins at a byte of all pictures, one after the other; they end no sooner."""


class _InMemory:
    def __init__(self, parts: Sequence[tuple[NDArray[np.uint8], Int64]]) -> None:
        self.size: Int64 = np.concatenate([np.empty(0, np.int64), *(size for _, size in parts)])
        self._data = (
            parts[0][0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *(one for one, _ in parts)])
        )

    def read_into(self, start: int, out: memoryview) -> None:
        """As `GroupPictures.read_into`."""
        out[:] = self._data[start : start + len(out)].data


class _Kept:
    def __init__(self, file: SourceFile, column: str, group: int, folder: Path) -> None:
        self._keep = partial(_keep, file, column, group, folder)
        self._file = self._keep()
        self.size: Int64 = self._file.arrays["picture"].astype(np.int64)

    def read_into(self, start: int, out: memoryview) -> None:
        """As `GroupPictures.read_into`."""
        try:
            _read_into(self._file, start, out)
        except TornError:
            self._file.remove()
            self._file = self._keep()
            _read_into(self._file, start, out)


def _read_into(kept: ChunkedFile, start: int, out: memoryview) -> None:
    number, done = int(np.searchsorted(kept.start, start, side="right")) - 1, 0
    while done < len(out):
        inside = start + done - int(kept.start[number])
        piece = memoryview(kept.chunk(number))[inside : inside + len(out) - done]
        out[done : done + len(piece)] = piece
        done, number = done + len(piece), number + 1


def group_pictures(file: SourceFile, column: str, group: int, folder: Path) -> GroupPictures:
    """The pictures of a row group; fetched and unpacked now if nobody kept them.

    Args:
        file: A data file.
        column: Its name.
        group: Number of the row group.
        folder: Where to keep them, in a folder of its own there.

    Raises:
        FormatError: If the file is torn.
        SourceError, FetchError, SourceChangedError: If it cannot be read, or changes meanwhile.
        CacheError, DeadlineError: As `make_once`.
    """
    if local_path(file.url) is None:
        return _Kept(file, column, group, folder)
    with open_parquet(file) as opened:
        [told] = bounds_of(opened.file, [group])
        is_shared = told is None or told[0] != told[1]
        if not is_shared and _unpacked_bytes(opened.file, column, group) <= _MOST_IN_MEMORY:
            found = opened.read([group], [column]).column(0)
            return _InMemory([_bytes_of(chunk, column, file.url) for chunk in found.chunks])
    return _Kept(file, column, group, folder)


def _unpacked_bytes(parquet: Any, column: str, group: int) -> int:
    """What a column of a row group takes without compression, as the file says."""
    told = parquet.metadata.row_group(group)
    parts = (told.column(number) for number in range(told.num_columns))
    return sum(int(one.total_uncompressed_size) for one in parts if f"{one.path_in_schema}.".startswith(f"{column}."))


def _keep(file: SourceFile, column: str, group: int, folder: Path) -> ChunkedFile:
    told = json.dumps([_RECIPE, file.url, file.version, group, column])
    write = partial(_write, file, column, group, folder)
    return keep_chunks(f"pictures\0{told}", ".pictures", _KIND, folder / "pictures", file, write)


def _write(file: SourceFile, column: str, group: int, folder: Path, target: BinaryIO) -> None:
    writer, sizes = ChunkWriter(target), [np.empty(0, np.int64)]
    with open_parquet(file, folder) as opened:
        wanted = _unpacked_bytes(opened.file, column, group)
    make_room(Path(target.name).parent, wanted)
    for batch in batches_of(file, group, [column], _BATCH_ROWS, footers=folder, spools=Path(target.name).parent):
        data, size = _bytes_of(batch.column(0), column, file.url)
        for start in range(0, len(data), _CHUNK_BYTES):
            writer.add(data[start : start + _CHUNK_BYTES].data)
        sizes.append(size)
    writer.finish(_KIND, {}, {"picture": np.concatenate(sizes)})
    refuse_changed(file)


def make_room(folder: Path, num_bytes: int) -> None:
    """Remove what was used longest ago of the pictures that are kept, until there is room for so many bytes more."""
    with contextlib.suppress(OSError):
        found = []
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                status = path.stat()
                used = max(status.st_atime, status.st_mtime)
                if path.suffix == ".pictures" or (path.suffix == ".tmp" and used < time.time() - _KILLED_S):
                    found.append((used, status.st_size, path))
        held = sum(size for _, size, _ in found)
        most = min(MOST_KEPT_BYTES, (shutil.disk_usage(folder).free + held) // _SHARE)
        for _, size, path in sorted(found):
            if held + num_bytes <= most:
                break
            path.unlink(missing_ok=True)
            held -= size


def first_pictures(file: SourceFile, columns: Sequence[str], folder: Path | None = None) -> dict[str, bytes]:
    """The picture of the first row in each of some columns; little more than them is read.

    Raises:
        FormatError: If the file is torn, or lacks a column or a picture.
        SourceError, FetchError: If it cannot be read.
    """
    found: dict[str, bytes] = {}
    with open_parquet(file, folder, buffer_bytes=_BUFFER_BYTES) as opened:
        there = set(opened.file.schema_arrow.names)
        for column in columns:
            if column not in there:
                raise FormatError(f"{file.url}: no column {column!r}, wanted it, as info.json names it. {AGAIN}")
            for batch in opened.file.iter_batches(1, columns=[column], use_threads=False):
                data, size = _bytes_of(batch.column(0), column, file.url)
                if size[0] < 1:
                    raise FormatError(f"{file.url}: no picture of {column!r} in the first row, wanted one. {_EMBED}")
                found[column] = data.tobytes()
                break
    return found


def refuse_lacking(file: SourceFile, column: str, group: int, row: int, where: str) -> None:
    """Say what a row has in place of a picture.

    Raises:
        FormatError: In any case.
        SourceError, FetchError: If that cannot be read.
    """
    path = None
    with contextlib.suppress(FormatError), open_parquet(file) as opened:
        table = opened.read([group], [f"{column}.path"])
        path = table.column(0)[row].as_py().get("path") if table.num_columns else None
    found = f"nothing but the path {path!r:.200}" if path else "nothing"
    raise FormatError(f"{where}: {found} for the picture of {column!r}, wanted its bytes. {_EMBED}")


def _bytes_of(array: Any, column: str, where: str) -> tuple[NDArray[np.uint8], Int64]:
    """Pictures one after the other, and the size of each, -1 where there is none."""
    arrow = arrow_module("pyarrow")
    if isinstance(array, arrow.ExtensionArray):
        array = array.storage
    if arrow.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0:
        array = array.flatten()[array.type.get_field_index("bytes")]
    if not (arrow.types.is_binary(array.type) or arrow.types.is_large_binary(array.type)):
        if not arrow.types.is_null(array.type):
            raise FormatError(f"{where}: pictures of {column!r} as {array.type}, wanted the bytes of each. {_EMBED}")
        array = array.cast(arrow.large_binary())
    sizes = np.full(len(array), -1, np.int64)
    is_there = np.ones(len(array), np.bool_)
    if array.null_count:
        is_there = np.array(array.is_valid().to_pylist(), np.bool_)
        array = array.drop_null()
    array = array.cast(arrow.large_binary())
    _, offsets, data = array.buffers()
    if offsets is None or not len(array):
        return np.empty(0, np.uint8), sizes
    cuts = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    held = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    sizes[is_there] = np.diff(cuts)
    return held[int(cuts[0]) : int(cuts[-1])], sizes
