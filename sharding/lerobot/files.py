"""Files of a LeRobot data set, local or remote: their versions, and the bytes that indexes are made of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.sharding.files.foreign import Foreign, stand_in
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import Options, join, read_range
from epistream.sharding.files.user_cache import make_once
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.lerobot.seen import look
from epistream.sharding.lerobot_meta.arrow import arrow_errors, arrow_module
from epistream.sharding.lerobot_meta.parquet_ranges import RangesOfFile, ranges_of

_KIND = "epistream.parquet-footer"
# Brought of the end of a data file at first: the footer of a hundred episodes of ten columns.
_TAIL_BYTES = 64 << 10

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
    """

    name: str
    url: str
    version: str
    num_bytes: int
    options: Options = field(default=None, repr=False, compare=False)

    @classmethod
    def at(cls, root: str, name: str, options: Options, what: str, *, afresh: bool = True) -> "SourceFile":
        """The file of a data set; `what` it should be, for messages. A remote one as it was seen last unless `afresh`.

        Raises:
            SourceError: If it is not there.
        """
        return cls(name, join(root, name), *look(root, name, options, what, afresh=afresh), options)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size), fewer at the end of the file.

        Raises:
            SourceError, FetchError: If they cannot be had.
            SourceChangedError: If a remote file is not of its version any more.
        """
        size = min(size, self.num_bytes - offset)
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
    with file.told_apart("a Parquet file"), arrow_errors(file.url):
        if path is not None:
            with arrow.OSFile(str(path)) as raw, parquet.ParquetFile(raw, buffer_size=buffer_bytes) as opened:
                yield OpenParquet(opened, None)
            return
        footer = None if folder is None else _kept_footer(file, folder)
        ranges = _ranges(file, footer)
        with parquet.ParquetFile(ranges, buffer_size=buffer_bytes) as opened:
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


def _ranges(file: SourceFile, footer: bytes | None) -> RangesOfFile:
    return RangesOfFile(
        file.url, file.num_bytes, file.options, footer=footer, tail_bytes=_TAIL_BYTES, version=file.version
    )


def _kept_footer(file: SourceFile, folder: Path) -> bytes:
    name = xxhash.xxh3_128_hexdigest(f"footer\0{file.url}\0{file.version}".encode())
    kept = f"{name}.footer.tables"

    def read(place: Path) -> bytes | None:
        try:
            tables = parse_tables((place / kept).read_bytes(), _KIND, str(place / kept), "Remove it.")
            mark_used(place / kept)
            return tables.arrays["footer"].tobytes()
        except (OSError, FormatError, KeyError):
            return None

    def make() -> list[tuple[str, bytes]]:
        ranges = _ranges(file, None)
        return [(kept, write_tables(_KIND, {}, {"footer": np.frombuffer(ranges.footer, np.uint8)}))]

    return make_once(folder / f"{name}.lock", read, make, file.url)
