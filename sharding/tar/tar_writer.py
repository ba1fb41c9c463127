"""Writes tar members under the rules that keep every other reader happy, and knows where each payload begins."""

import tarfile
from pathlib import Path
from typing import BinaryIO

from epistream.errors import LayoutError, PackError
from epistream.sharding.format.checksums import ShardHasher

# USTAR's size field is eleven octal digits.
MAX_MEMBER_BYTES = 8**11 - 1
_MAX_NAME_BYTES = 100
# Held back before they are checked and written at once: pictures are small, and each comes with a header and padding.
_HELD_BYTES = 1 << 20


def _template() -> bytes:
    """A header without name, size and checksum."""
    header = bytearray(tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
    header[124:135] = bytes(11)
    header[148:156] = b" " * 8
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)


def check_member_name(name: str) -> None:
    """Compare a member's name with the rules: ASCII, printable, no spaces, no upper case after the key, 100 bytes.

    Raises:
        LayoutError: If it breaks one. Longer names would need a prefix field or PAX headers, which some readers
            of shards do not follow.
    """
    if not name.isascii() or not name.isprintable() or " " in name or name != name.lower() or "." not in name:
        raise LayoutError(f"tar member {name!r}: wanted lower-case ASCII without spaces. Rename it with --rename.")
    if len(name) > _MAX_NAME_BYTES:
        raise LayoutError(
            f"tar member {name!r}: {len(name)} bytes, wanted at most {_MAX_NAME_BYTES}. "
            "Give the feature a shorter name with --rename."
        )


def _header(name: bytes, size: int) -> bytes:
    """The header of a regular file, as tarfile writes it for USTAR, in a twentieth of its time."""
    header = bytearray(_TEMPLATE)
    digits = b"%011o" % size
    header[: len(name)] = name
    header[124:135] = digits
    # The sum of all bytes, the checksum's own field taken as spaces.
    header[148:156] = b"%06o\0 " % (_TEMPLATE_SUM + sum(name) + sum(digits))
    return bytes(header)


def write_error(path: str | Path, num_bytes: int, error: OSError) -> PackError:
    """What the operating system said while `path` was written, as an error of ours.

    Without it a full disk could be taken for a source that cannot be read: h5py raises OSError too.
    """
    return PackError(
        f"{path}: cannot write after {num_bytes:,} bytes ({error.strerror or error}). "
        "Make room, or choose another folder; nothing was published."
    )


class TarWriter:
    """USTAR, regular files only, one fixed owner and time: the same members give the same bytes.

    The file has all of them after `finish`.

    Args:
        file: Binary, at position 0, writable; also readable and seekable if `roll_back` is to be used. The caller
            closes it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.hasher = ShardHasher()
        self._file = file
        self._where = str(getattr(file, "name", "tar"))
        self._held = bytearray()
        self._names: set[str] = set()
        self._open_bytes = 0
        self._padding = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the tar so far."""
        return self.hasher.num_bytes + len(self._held)

    def add(self, name: str, data: bytes | memoryview) -> int:
        """Write a whole member; returns the offset of its payload."""
        offset = self.begin(name, len(data))
        self.write(data)
        return offset

    def begin(self, name: str, size: int) -> int:
        """Open a member of `size` bytes, which `write` must then bring; returns the offset of its payload.

        Raises:
            LayoutError: If the name breaks a rule or was used before, or the size does not fit.
        """
        if self._open_bytes:
            raise ValueError(f"{name}: the member before still lacks {self._open_bytes:,} bytes")
        check_member_name(name)
        if name in self._names:
            raise LayoutError(f"tar member {name!r}: written twice, wanted each name once. Use --rename.")
        if size > MAX_MEMBER_BYTES:
            raise LayoutError(f"tar member {name!r}: {size:,} bytes, wanted at most {MAX_MEMBER_BYTES:,} (USTAR).")
        self._names.add(name)
        self._put(_header(name.encode("ascii"), size))
        self._open_bytes = size
        self._padding = -size % tarfile.BLOCKSIZE
        return self.num_bytes

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes of the open member."""
        view = memoryview(data).cast("B")
        if len(view) > self._open_bytes:
            raise ValueError(f"{len(view):,} bytes for a member that lacks {self._open_bytes:,}")
        self._put(view)
        self._open_bytes -= len(view)
        if not self._open_bytes and self._padding:
            self._put(bytes(self._padding))

    def roll_back(self, num_bytes: int) -> None:
        """Take all but the first `num_bytes` out again. Reads the file once more; for the rare bad episode."""
        self._release()
        self._file.flush()
        self._file.seek(num_bytes)
        self._file.truncate()
        self._file.seek(0)
        self.hasher = ShardHasher()
        while data := self._file.read(1 << 20):
            self.hasher.update(data)
        self._open_bytes = 0
        self._names.clear()

    def finish(self) -> None:
        """The two blocks of zeros that end a tar."""
        if self._open_bytes:
            raise ValueError(f"the last member still lacks {self._open_bytes:,} bytes")
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._release()

    def _put(self, data: bytes | memoryview) -> None:
        if len(self._held) + len(data) > _HELD_BYTES:
            self._release()
        if len(data) > _HELD_BYTES:
            self._give(data)
        else:
            self._held += data

    def _release(self) -> None:
        held, self._held = self._held, bytearray()
        self._give(held)

    def _give(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self._where, self.hasher.num_bytes, error) from error
        self.hasher.update(data)
