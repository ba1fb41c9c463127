"""Files of a LeRobot data set, local or remote: their versions, and the bytes that indexes are made of."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.sharding.files.foreign import Foreign, stand_in
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import Options, join, read_range
from epistream.sharding.files.user_cache import make_once
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.lerobot.seen import Parts, look, take_parts
from epistream.sharding.lerobot_meta.arrow import arrow_errors, arrow_module
from epistream.sharding.lerobot_meta.parquet_ranges import RangesOfFile, ranges_of

_KINDS = {"footer": "epistream.parquet-footer", "rows": "epistream.parquet-file"}
# Brought of the end of a data file at first: the footer of a hundred episodes of ten columns.
_TAIL_BYTES = 64 << 10
# A remote file of the numbers of many episodes that is no larger is brought and kept whole: at 100 MB/s that takes as
# long as four requests one after the other, where its footer and the rows of each episode would take one each.
_WHOLE_BYTES = 8 << 20
# Kept files that a process has at hand; those of a batch lie in few.
_MOST_WHOLE = 8

_HEAD_BYTES = 512
EMPTY = Foreign("an empty file", "Download it again.")


@dataclass(frozen=True)
class SourceFile:
    """One file of a data set as it is now.

    Args:
        name: Its path in the data set.
        url: An absolute path or a URL.
        version: What changes whenever it is replaced or written to.
        num_bytes: Its size.
        options: For fsspec.
        parts: Bytes of this version that are at hand, by where they begin.
        is_numbers: Whether nearly all of it is read sooner or later, as of a file of rows without pictures.
    """

    name: str
    url: str
    version: str
    num_bytes: int
    options: Options = field(default=None, repr=False, compare=False)
    parts: Parts = field(default=(), repr=False, compare=False)
    is_numbers: bool = field(default=False, compare=False)

    @classmethod
    def at(cls, root: str, name: str, options: Options, what: str, *, afresh: bool = True) -> "SourceFile":
        """The file of a data set; `what` it should be, for messages. A remote one as it was seen last unless `afresh`.

        Raises:
            SourceError: If it is not there.
        """
        version, num_bytes = look(root, name, options, what, afresh=afresh)
        parts = () if afresh else take_parts(root, name, version)
        return cls(name, join(root, name), version, num_bytes, options, parts)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size), fewer at the end of the file.

        Raises:
            SourceError, FetchError: If they cannot be had.
            SourceChangedError: If a remote file is not of its version any more.
        """
        size = min(size, self.num_bytes - offset)
        for start, part in self.parts:
            if start <= offset and offset + size <= start + len(part):
                return part[offset - start : offset - start + size]
        return read_range(self.url, offset, size, self.options, self.version) if size > 0 else b""

    @contextmanager
    def told_apart(self, wanted: str) -> Iterator[None]:
        """Of a FormatError of the body: whether there is a file at all, or something in its place.

        Raises:
            FormatError: Of the body, or what is there instead of what was `wanted`.
        """
        try:
            yield
        except FormatError as error:
            foreign = stand_in(self.read(0, _HEAD_BYTES)) if self.num_bytes else EMPTY
            if foreign is None:
                raise
            raise FormatError(f"{self.url}: {foreign.what}, wanted {wanted}. {foreign.advice}") from error


@contextmanager
def open_parquet(file: SourceFile, folder: Path | None = None, *, buffer_bytes: int = 0) -> Iterator["OpenParquet"]:
    """A Parquet file; what goes wrong inside is told as an error of it.

    Args:
        file: The file.
        folder: Where to keep the footer of a remote one, of which a part is read again and again.
        buffer_bytes: Read so many of a column at a time, where not all of it is wanted; all of it at once if 0.

    Raises:
        FormatError: If it is torn, or what is read of it cannot be.
        SourceError, FetchError: If it cannot be read.
    """
    arrow, parquet = arrow_module("pyarrow"), arrow_module("pyarrow.parquet")
    path = local_path(file.url)
    # By itself pyarrow reads all of a column before it decodes anything.
    how = {"buffer_size": buffer_bytes, "pre_buffer": not buffer_bytes}
    with file.told_apart("a Parquet file"), arrow_errors(file.url):
        if path is not None:
            with arrow.OSFile(str(path)) as raw, parquet.ParquetFile(raw, **how) as opened:
                yield OpenParquet(opened, None)
            return
        if folder is not None and file.is_numbers and 0 < file.num_bytes <= _WHOLE_BYTES:
            whole = _whole_file(file, folder)
            with parquet.ParquetFile(arrow.BufferReader(whole.data), metadata=whole.metadata) as opened:
                yield OpenParquet(opened, None)
            return
        footer = None if folder is None else _kept_footer(file, folder)
        ranges = _ranges(file, footer)
        with parquet.ParquetFile(ranges, **how) as opened:
            yield OpenParquet(opened, ranges)


class OpenParquet:
    """An open Parquet file.

    Args:
        file: A `pyarrow.parquet.ParquetFile`.
        ranges: What it reads through, if it is remote.
    """

    def __init__(self, file: Any, ranges: RangesOfFile | None) -> None:
        self.file = file
        self._ranges = ranges

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> Any:
        """A `pyarrow.Table` of some columns of some row groups; no other bytes are brought over a network."""
        if self._ranges is not None:
            self._ranges.fetch(ranges_of(self.file.metadata, columns, groups))
        return self.file.read_row_groups(list(groups), columns=list(columns), use_threads=False)

    def batches(self, group: int, columns: Sequence[str], most_rows: int, spool: BinaryIO | None) -> Iterator[Any]:
        """The same of one row group as `pyarrow.RecordBatch`es, one after the other, so that memory holds few of them.

        Args:
            group: Its number.
            columns: Their names.
            most_rows: Of a batch.
            spool: An empty file, where a remote one's bytes go first; all in memory if None.

        Raises:
            SpoolError: If that cannot be written.
        """
        if self._ranges is not None and spool is not None:
            with self._ranges.spooled(ranges_of(self.file.metadata, columns, [group]), spool):
                yield from self._batches(group, columns, most_rows)
            return
        yield from self._batches(group, columns, most_rows)

    def _batches(self, group: int, columns: Sequence[str], most_rows: int) -> Iterator[Any]:
        yield from self.file.iter_batches(most_rows, row_groups=[group], columns=list(columns), use_threads=False)


def _ranges(file: SourceFile, footer: bytes | None) -> RangesOfFile:
    return RangesOfFile(
        file.url,
        file.num_bytes,
        file.options,
        footer=footer,
        tail_bytes=_TAIL_BYTES,
        version=file.version,
        parts=file.parts,
    )


def _kept_footer(file: SourceFile, folder: Path) -> bytes:
    kept = _kept(file, folder, "footer", lambda: _ranges(file, None).footer)
    return kept.tobytes()


class _WholeFile(NamedTuple):
    """The bytes of a Parquet file, mapped, and its metadata."""

    data: NDArray[np.uint8]
    metadata: Any


@lru_cache(_MOST_WHOLE)  # which takes no lock that a fork could leave taken
def _whole_file(file: SourceFile, folder: Path) -> _WholeFile:
    """A file that is kept whole; its metadata are parsed once a process, which of 160 row groups takes 4 ms."""
    data = _kept(file, folder, "rows", lambda: file.read(0, file.num_bytes))
    arrow, parquet = arrow_module("pyarrow"), arrow_module("pyarrow.parquet")
    return _WholeFile(data, parquet.read_metadata(arrow.BufferReader(data)))


def _kept(file: SourceFile, folder: Path, kind: str, read: Callable[[], bytes]) -> NDArray[np.uint8]:
    """Bytes of this version of a file, brought by one process of the node and kept; a mapping of what is kept."""
    name = xxhash.xxh3_128_hexdigest(f"{kind}\0{file.url}\0{file.version}".encode())
    kept = f"{name}.{kind}.tables"

    def find(place: Path) -> NDArray[np.uint8] | None:
        try:
            with (place / kept).open("rb") as opened:
                mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            tables = parse_tables(memoryview(mapping), _KINDS[kind], str(place / kept), "Remove it.")
            mark_used(place / kept)
            found: NDArray[np.uint8] = tables.arrays[kind]
            return found
        except (OSError, ValueError, FormatError, KeyError):
            return None

    def make() -> list[tuple[str, bytes]]:
        return [(kept, write_tables(_KINDS[kind], {}, {kind: np.frombuffer(read(), np.uint8)}))]

    return make_once(folder / f"{name}.lock", find, make, file.url)
