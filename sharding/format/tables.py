"""The container of our binary sidecars: a msgpack header, then plain arrays that are read without copying.

    offset  size  what (little endian)
    0       8     magic 89 45 53 54 0D 0A 1A 0A
    8       4     version of the container, 1
    12      4     header bytes, h
    16      8     bytes of the whole file
    24      8     XXH3-64 of everything from `body` to the end of the file
    32      8     XXH3-64 of bytes 0 to 32 followed by the header
    40      h     header: msgpack map {kind, meta, tables: {name: [dtype, shape, offset]}}
    body    ...   at the next multiple of 64: arrays, C order, each at a multiple of 64, zeros between

Nothing that a file says is believed before it is compared with the bytes that are there: a torn or hostile
file is a `FormatError`, never a crash, a large allocation or a read out of range.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError, VersionError
from epistream.lazy import lazy
from epistream.sharding.files.foreign import stand_in

MAGIC = b"\x89EST\r\n\x1a\n"  # like PNG's: shows a copy in text mode, and is no text itself
VERSION = 1
ALIGNMENT = 64
_PREFIX = struct.Struct("<8sIIQQ")
_PREFIX_BYTES = _PREFIX.size + 8
MAX_HEADER_BYTES = 1 << 20
# msgpack allocates a list as soon as its length is announced; 4,096 x 1,024 levels of nesting is 32 MB.
_MAX_ITEMS = 4096
_MAX_AXES = 4
_DTYPES = {name: np.dtype(name) for name in ("<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8", "<f4", "<f8")}
# numpy drops the byte order of single bytes ("|u1"), so names are made here.
_DTYPE_NAMES = {dtype.newbyteorder("<"): name for name, dtype in _DTYPES.items()}

T = TypeVar("T")
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Tables:
    """What a file of tables holds.

    Args:
        meta: Small values, as msgpack can hold them.
        arrays: Read-only views into the buffer that was parsed, which they keep alive.
    """

    meta: dict[str, Any]
    arrays: dict[str, Array]


def write_tables(kind: str, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a file of tables; the same input gives the same bytes."""
    layout: dict[str, list[Any]] = {}
    parts: list[bytes] = []
    position = 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        # ascontiguousarray makes a scalar one-dimensional, hence the shape of the original.
        layout[name] = [_DTYPE_NAMES[data.dtype], list(array.shape), position]
        parts += [data.tobytes(), bytes(-data.nbytes % ALIGNMENT)]
        position += len(parts[-2]) + len(parts[-1])
    body = b"".join(parts)
    # Offsets are counted from the body, so that the length of the header does not depend on itself.
    header = msgpack.packb({"kind": kind, "meta": dict(meta), "tables": layout}, use_bin_type=True)
    if len(header) > MAX_HEADER_BYTES or len(layout) > _MAX_ITEMS:
        raise FormatError(
            f"{kind}: a header of {len(header):,} bytes with {len(layout)} tables, wanted at most "
            f"{MAX_HEADER_BYTES:,} bytes and {_MAX_ITEMS} tables. Use fewer features."
        )
    start = _body_start(len(header))
    prefix = _PREFIX.pack(MAGIC, VERSION, len(header), start + len(body), xxhash.xxh3_64_intdigest(body))
    digest = xxhash.xxh3_64_intdigest(prefix + header).to_bytes(8, "little")
    return b"".join([prefix, digest, header, bytes(start - _PREFIX_BYTES - len(header)), body])


def parse_tables(buffer: memoryview | bytes, kind: str, where: str, remedy: str, *, verify_body: bool = True) -> Tables:
    """Views of the tables in `buffer`.

    Args:
        buffer: The whole file.
        kind: What the file must say it is.
        where: Name of the file, with which messages begin.
        remedy: The next step that works, with which messages end.
        verify_body: Also compare the checksum of the arrays (about 0.1 ms per MB).

    Raises:
        VersionError: If the container is of a later version.
        FormatError: If anything else is wrong.
    """
    view = memoryview(buffer).cast("B")
    header, start = _read_header(view, where, remedy)
    if header.get("kind") != kind:
        raise FormatError(f"{where}: holds {header.get('kind')!r:.60}, wanted {kind!r}. {remedy}")
    meta, layout = header.get("meta"), header.get("tables")
    if not isinstance(meta, dict) or not isinstance(layout, dict):
        raise FormatError(f"{where}: a header without 'meta' or 'tables', wanted both to be maps. {remedy}")
    if verify_body:
        (wanted,) = struct.unpack_from("<Q", view, 24)
        found = xxhash.xxh3_64_intdigest(view[start:])
        if found != wanted:
            raise FormatError(f"{where}: tables with checksum {found:016x}, wanted {wanted:016x}. {remedy}")
    arrays = {}
    for name, entry in layout.items():
        try:
            arrays[name] = _view(view, entry, start)
        except ValueError as error:
            raise FormatError(f"{where}: table {name!r:.80}: {error}. {remedy}") from error
    return Tables(meta, arrays)


def _read_header(view: memoryview, where: str, remedy: str) -> tuple[dict[Any, Any], int]:
    """The header, and where the body starts."""
    if len(view) < _PREFIX_BYTES:
        raise FormatError(f"{where}: {len(view)} bytes, wanted at least {_PREFIX_BYTES}. {remedy}")
    magic, version, header_bytes, file_bytes, _ = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        foreign = stand_in(bytes(view[:512]))
        if foreign:
            raise FormatError(f"{where}: {foreign.what}, wanted tables of ours. {foreign.advice}")
        raise FormatError(f"{where}: begins with {magic.hex(' ')}, wanted {MAGIC.hex(' ')}. {remedy}")
    if version != VERSION:
        raise VersionError(
            f"{where}: format version {version}, wanted {VERSION}. Install a release of epistream that "
            f"knows it, or: {remedy}"
        )
    if file_bytes != len(view):
        raise FormatError(f"{where}: {len(view):,} bytes, wanted {file_bytes:,}: torn. {remedy}")
    start = _body_start(header_bytes)
    if header_bytes > MAX_HEADER_BYTES or start > len(view):
        raise FormatError(f"{where}: a header of {header_bytes:,} bytes in a file of {len(view):,}. {remedy}")
    raw = view[_PREFIX_BYTES : _PREFIX_BYTES + header_bytes]
    (wanted,) = struct.unpack_from("<Q", view, _PREFIX.size)
    found = xxhash.xxh3_64_intdigest(bytes(view[: _PREFIX.size]) + bytes(raw))
    if found != wanted:
        raise FormatError(f"{where}: a header with checksum {found:016x}, wanted {wanted:016x}: torn. {remedy}")
    try:
        header = msgpack.unpackb(
            raw, strict_map_key=True, ext_hook=_refuse, max_array_len=_MAX_ITEMS, max_map_len=_MAX_ITEMS
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise FormatError(f"{where}: a header that is no msgpack ({error}). {remedy}") from error
    if not isinstance(header, dict):
        raise FormatError(f"{where}: a header that is a {type(header).__name__}, wanted a map. {remedy}")
    return header, start


def _view(view: memoryview, entry: object, start: int) -> Array:
    """The array that `entry` describes. All arithmetic is on Python's integers, which do not overflow."""
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(f"described by {entry!r:.80}, wanted [dtype, shape, offset]")
    name, shape, offset = entry
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"dtype {name!r:.80}, wanted one of {' '.join(_DTYPES)}")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= _MAX_AXES
        or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
    ):
        raise ValueError(f"shape {shape!r:.80}, wanted 1 to {_MAX_AXES} sizes")
    dtype = _DTYPES[name]
    count = math.prod(shape)
    body_bytes = len(view) - start
    if type(offset) is not int or offset < 0 or offset % ALIGNMENT or offset + count * dtype.itemsize > body_bytes:
        raise ValueError(
            f"{count * dtype.itemsize:,} bytes at {offset!r:.40}, wanted a multiple of {ALIGNMENT} within "
            f"{body_bytes:,} bytes"
        )
    array = np.frombuffer(view, dtype=dtype, count=count, offset=start + offset).reshape(shape)
    array.flags.writeable = False
    return array


def _body_start(header_bytes: int) -> int:
    return _PREFIX_BYTES + header_bytes + -(_PREFIX_BYTES + header_bytes) % ALIGNMENT


def _refuse(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code}")


class Parsed(Sequence[T]):
    """What one table holds in `count` pieces, parsed when somebody looks for the first time."""

    def __init__(self, blob: Array, count: int, where: str) -> None:
        self._blob, self._count, self._where = blob, count, where

    @lazy
    def _items(self) -> tuple[T, ...]:
        return self._parse()

    def _parse(self) -> tuple[T, ...]:
        raise NotImplementedError

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self._items[index]


class Names(Parsed[str]):
    """Texts without control characters, stored newline-joined as one table.

    One blob costs 10 times less to read than a msgpack list, and nothing at all until somebody looks; then it is a
    FormatError if the table is no UTF-8, or holds another number of names than announced.
    """

    @staticmethod
    def pack(names: Sequence[str]) -> Array:
        """The table that holds `names`.

        Raises:
            FormatError: If one is empty or has a control character.
        """
        for name in names:
            if not name or not name.isprintable():
                raise FormatError(f"{name!r}: wanted a name that is not empty and has no control characters.")
        return np.frombuffer("\n".join(names).encode(), np.uint8)

    def _parse(self) -> tuple[str, ...]:
        try:
            text = self._blob.tobytes().decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self._where}: names that are no UTF-8 ({error}).") from error
        items = tuple(text.split("\n")) if text else ()
        if len(items) != self._count:
            raise FormatError(f"{self._where}: {len(items)} names, wanted {self._count}.")
        return items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self[:] == tuple(other)

    def __hash__(self) -> int:
        return hash(self[:])
