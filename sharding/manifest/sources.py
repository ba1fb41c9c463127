"""The files that episodes came from: a table beside the dataset, read by whoever asks and by nothing that streams."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.lazy import lazy
from epistream.sharding.format.episode_meta import parse_json
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.column_checks import out_of_range
from epistream.sharding.manifest.manifest_columns import Int64, UInt8

KIND = "epistream.dataset-sources"
REMEDY = "Nothing that is streamed needs it. Copy it again, or make it anew with 'epistream index URL --overwrite'."
_NO_CHECKSUM = bytes(16)
_TABLES = {  # by name: dtype, shape of one row
    "paths": (np.uint8, ()),
    "path_offsets": (np.int64, ()),
    "num_bytes": (np.int64, ()),
    "checksums": (np.uint8, (16,)),
    "episode_source": (np.int64, ()),
}


@dataclass(frozen=True)
class Source:
    """A file that episodes came from: its path as given, size in bytes, and XXH3-128 (hexadecimal, or empty)."""

    path: str
    num_bytes: int = 0
    checksum: str = ""


@dataclass(frozen=True, eq=False)
class SourceTable:
    """N files that E episodes came from.

    Args:
        paths: As given.
        num_bytes: (N,) int64 sizes.
        checksums: (N, 16) uint8, XXH3-128; zeros where it is not known.
        episode_source: (E,) int64, position in the files, -1 for none; (0,) where there are no files.
    """

    paths: Texts
    num_bytes: Int64
    checksums: UInt8
    episode_source: Int64

    @staticmethod
    def of(sources: Sequence[Source], episode_source: Int64, where: str) -> "SourceTable":
        """The table of some files.

        Raises:
            FormatError: If a checksum is neither empty nor 32 hexadecimal digits, or a path has no UTF-8.
        """
        return SourceTable(
            Texts.of((source.path for source in sources), where),
            np.array([source.num_bytes for source in sources], np.int64),
            np.frombuffer(b"".join(_digest(source, where) for source in sources), np.uint8).reshape(-1, 16),
            episode_source,
        )

    @staticmethod
    def parse(data: bytes, where: str) -> "SourceTable":
        """The inverse of `to_bytes`; nothing but dtypes and shapes is compared yet.

        Raises:
            VersionError: If the container is of a later version.
            FormatError: If it holds anything else.
        """
        arrays = parse_tables(data, KIND, where, REMEDY, verify_body=False).arrays
        for name, (dtype, row) in _TABLES.items():
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.ndim != 1 + len(row) or array.shape[1:] != row:
                found = "missing" if array is None else f"{array.dtype} {array.shape}"
                raise FormatError(f"{where}: table {name!r} is {found}, wanted {np.dtype(dtype)}. {REMEDY}")
        paths = Texts(arrays["paths"], arrays["path_offsets"], where, REMEDY)
        return SourceTable(paths, arrays["num_bytes"], arrays["checksums"], arrays["episode_source"])

    def to_bytes(self) -> bytes:
        """The file; the same table gives the same bytes."""
        paths, offsets = self.paths.arrays
        values = (paths, offsets, self.num_bytes, self.checksums, self.episode_source)
        counts = {"num_sources": len(self.num_bytes), "num_episodes": len(self.episode_source)}
        return write_tables(KIND, counts, dict(zip(_TABLES, values, strict=True)))

    def check(self, num_sources: int, num_episodes: int, where: str) -> None:
        """Compare everything with everything.

        Raises:
            FormatError: At the first thing that cannot be.
        """
        problem = next(self._problems(num_sources, num_episodes), None)
        if problem:
            raise FormatError(f"{where}: {problem}. {REMEDY}")

    def _problems(self, num_sources: int, num_episodes: int) -> Iterator[str]:
        for name, found in (
            ("paths", len(self.paths)),
            ("num_bytes", len(self.num_bytes)),
            ("checksums", len(self.checksums)),
        ):
            if found != num_sources:
                yield f"{found} {name} of sources, wanted {num_sources}"
        if num_sources and len(self.episode_source) != num_episodes:
            yield f"{len(self.episode_source)} of episode_source, wanted {num_episodes}"
        yield from out_of_range("num_bytes", self.num_bytes, 0, (1 << 63) - 1)
        yield from out_of_range("episode_source", self.episode_source, -1, num_sources - 1)


class Sources(Sequence[Source]):
    """The files that episodes came from, each made when looked at; all but `of` read nothing before the first look.

    Args:
        load: Reads the table, checked.
        file_name: Of the file that holds it, for messages.
    """

    def __init__(self, load: Callable[[], SourceTable], file_name: str = "sources") -> None:
        self._load, self.file_name = load, file_name

    @classmethod
    def of(cls, sources: Sequence[Source], episode_source: Int64) -> "Sources":
        """Those that there are already; errors are those of `SourceTable.of`."""
        table = SourceTable.of(sources, episode_source, "sources")
        return cls(lambda: table)

    @lazy
    def table(self) -> SourceTable:
        """The table that holds all of them.

        Raises:
            FormatError: If its file is missing or damaged.
            SourceError: If it cannot be read.
        """
        return self._load()

    def select(self, kept: NDArray[np.bool_]) -> "Sources":
        """The same files, and the links of some episodes: (E,) whether each is kept."""

        def load() -> SourceTable:
            links = self.table.episode_source
            return replace(self.table, episode_source=links[kept] if len(links) else links)

        return Sources(load, self.file_name)

    def with_episodes(self) -> "Sources":
        """Those files that any episode came from."""
        table = self.table
        rows = np.unique(table.episode_source[table.episode_source >= 0])
        if not len(rows) or len(rows) == len(table.num_bytes):
            return self
        number = np.full(len(table.num_bytes), -1, np.int64)
        number[rows] = np.arange(len(rows))
        links = np.where(table.episode_source < 0, -1, number[table.episode_source])
        kept = SourceTable(table.paths.select(rows), table.num_bytes[rows], table.checksums[rows], links)
        return Sources(lambda: kept, self.file_name)

    def __len__(self) -> int:
        return len(self.table.num_bytes)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Source, ...]: ...
    def __getitem__(self, index: int | slice) -> Source | tuple[Source, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        table = self.table
        return _source(table.paths[index], int(table.num_bytes[index]), table.checksums[index].tobytes())

    def __iter__(self) -> Iterator[Source]:
        table = self.table
        data = table.checksums.tobytes()
        digests = (data[start : start + 16] for start in range(0, len(data), 16))
        return map(_source, table.paths, table.num_bytes.tolist(), digests)


NO_SOURCES = Sources.of((), np.empty(0, np.int64))


def sources_of_json(data: bytes, episode_source: Int64, where: str) -> SourceTable:
    """Those of a manifest of version 1: a JSON list of ``[path, bytes, checksum]``.

    Raises:
        FormatError: If it is anything else.
    """
    value = parse_json(data, where)
    if not isinstance(value, list) or not all(_is_source(item) for item in value):
        raise FormatError(f"{where}: sources that are no list of [path, bytes, checksum]. {REMEDY}")
    return SourceTable.of([Source(*item) for item in value], episode_source, where)


def _is_source(item: Any) -> bool:
    return isinstance(item, list) and list(map(type, item)) == [str, int, str] and 0 <= item[1] < 1 << 63


def _source(path: str, num_bytes: int, digest: bytes) -> Source:
    return Source(path, num_bytes, "" if digest == _NO_CHECKSUM else digest.hex())


def _digest(source: Source, where: str) -> bytes:
    if not source.checksum:
        return _NO_CHECKSUM
    try:
        digest = bytes.fromhex(source.checksum)
    except ValueError:
        digest = b""
    if len(digest) != 16:
        raise FormatError(f"{where}: {source.path}: checksum {source.checksum!r:.80}, wanted 32 hexadecimal digits.")
    return digest
