"""The members of a tar, read from its headers alone; a tar that does not end as tars end is torn."""

import io
import tarfile
from dataclasses import dataclass
from typing import Any, BinaryIO

from epistream.errors import FormatError
from epistream.sharding.files.foreign import foreign_bytes

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: its name, where its bytes begin, how many there are, and where its header begins."""

    name: str
    offset: int
    size: int
    header_offset: int


def walk(file: BinaryIO, where: str) -> list[Member]:
    """All regular files of an uncompressed tar (USTAR, GNU, PAX), in its order.

    Raises:
        FormatError: If it is no tar, is compressed, is torn, goes on behind its end, or has members that are no plain
            bytes or lead out of it.
    """
    members: list[Member] = []
    last = -1
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.size < 0 or info.offset <= last:  # tarfile would go round in circles
                    raise FormatError(f"{where}, {info.name}: {info.size:,} bytes in its header, wanted 0 or more.")
                last = info.offset
                if not info.isdir():
                    members.append(_member(info, where))
            end = tar.offset
    except (tarfile.TarError, OverflowError, ValueError, UnicodeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}: {error}, wanted an uncompressed tar. {_advice(file)}") from error
    # tarfile takes a broken header in the middle for the end, so the end is looked at here.
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise FormatError(
            f"{where}: no end mark after {len(members)} members at byte {end:,}: torn. Fetch or pack it again."
        )
    _refuse_more(file, end, len(members), where)
    file.seek(0, 2)
    for member in members:
        if member.offset + member.size > file.tell():
            raise FormatError(f"{where}, {member.name}: reaches past the end of the file: torn. Fetch it again.")
    return members


def _member(info: tarfile.TarInfo, where: str) -> Member:
    if info.issparse():
        raise _no_file(info, where, "a sparse file", "Make the tar again without --sparse")
    if info.islnk() or info.issym():
        kind = f"a {'hard' if info.islnk() else 'symbolic'} link to {info.linkname}"
        raise _no_file(info, where, kind, "Make the tar again with --dereference --hard-dereference (GNU tar)")
    if not info.isreg():
        raise _no_file(info, where, f"of type {info.type!r}, which is no file", "Make the tar again without it")
    if ".." in info.name.split("/"):
        raise FormatError(f"{where}, {info.name!r}: a name that leads out of the tar, wanted one that stays in it.")
    return Member(info.name.removeprefix("./"), info.offset_data, info.size, info.offset)


def _no_file(info: tarfile.TarInfo, where: str, found: str, next_step: str) -> FormatError:
    return FormatError(f"{where}, {info.name}: {found}, wanted regular files only. {next_step}.")


def _refuse_more(file: BinaryIO, end: int, num_members: int, where: str) -> None:
    """See that nothing but zeros follows the end mark, as tars are padded: no tar program would read the rest."""
    file.seek(end)
    at = end
    while data := file.read(_PIECE_BYTES):
        if any_byte := data.lstrip(b"\0"):
            at += len(data) - len(any_byte)
            break
        at += len(data)
    else:
        return
    start = at - at % tarfile.BLOCKSIZE
    file.seek(start)
    found = f"{where}: the tar ends after {num_members} members at byte {end:,}, and "
    try:
        info = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.TarError:
        size = file.seek(0, 2) - at
        raise FormatError(
            f"{found}{size:,} bytes that are no tar follow at byte {at:,}, wanted zeros or nothing. "
            "Fetch it again, or unpack it and make it again."
        ) from None
    raise FormatError(
        f"{found}a second tar, with {info.name!r}, begins at byte {start:,}, wanted one tar: tar programs stop at the "
        "end of the first. Give the tars one by one, or join them by 'tar --concatenate --file=FIRST SECOND', not cat."
    )


def _advice(file: BinaryIO) -> str:
    file.seek(0)
    if file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        return "Decompress it first: compressed tars cannot be read at random."
    file.seek(0)
    foreign = foreign_bytes(file.read(512))
    return f"It is {foreign.what}. {foreign.advice}" if foreign else "Fetch or pack it again."


class MemberFile(io.RawIOBase):
    """The bytes of a member as a file of its own, for readers that seek. `file` may not be used meanwhile."""

    def __init__(self, file: BinaryIO, member: Member) -> None:
        self._file, self._member, self._at = file, member, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """As files do; beyond the end there is nothing to read."""
        self._at = max(0, offset + (0, self._at, self._member.size)[whence])
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As files do."""
        size = min(len(buffer), max(0, self._member.size - self._at))
        self._file.seek(self._member.offset + self._at)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_member(file: BinaryIO, member: Member, limit: int | None = None) -> bytes:
    """The bytes of a member, or its first `limit` ones."""
    file.seek(member.offset)
    return file.read(member.size if limit is None else min(limit, member.size))
