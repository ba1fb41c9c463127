"""The members of a tar, read from its headers alone; a tar that does not end as tars end is torn."""

import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from epistream.errors import FormatError


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
        FormatError: If it is no tar, is compressed, is torn, or has members that are no plain bytes.
    """
    members = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise FormatError(f"{where}, {info.name}: no plain file, wanted regular files only.")
                members.append(Member(info.name.removeprefix("./"), info.offset_data, info.size, info.offset))
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
    file.seek(0, 2)
    for member in members:
        if member.offset + member.size > file.tell():
            raise FormatError(f"{where}, {member.name}: reaches past the end of the file: torn. Fetch it again.")
    return members


def _advice(file: BinaryIO) -> str:
    file.seek(0)
    if file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        return "Decompress it first: compressed tars cannot be read at random."
    return "Fetch or pack it again."


def read_member(file: BinaryIO, member: Member, limit: int | None = None) -> bytes:
    """The bytes of a member, or its first `limit` ones."""
    file.seek(member.offset)
    return file.read(member.size if limit is None else min(limit, member.size))
