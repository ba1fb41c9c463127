"""The samples of a tar with one sample a step: their members, and values in these that a mapping asks for."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.episode_meta import parse_json
from epistream.sharding.tar.npy import HEADER_LIMIT, NpyHeader, read_npy_header
from epistream.sharding.tar.sample_names import split_key
from epistream.sharding.tar.step_mapping import Origin
from epistream.sharding.tar.tar_reader import Member, read_member

# Rows are collected into the index, which every process reads whole; larger ones are cameras, which stay in the tar.
MAX_ROW_BYTES = 1 << 16
_JSON_LIMIT_BYTES = 1 << 26
_TEXT_LIMIT_BYTES = 1 << 20
# What a path in JSON that leads nowhere gives: null is a value.
MISSING = object()
_PLACE = re.compile(r"\d{1,15}")


@dataclass
class Sample:
    """One sample of a tar, which is one step.

    Args:
        key: What its members begin with.
        tar: Name of its file.
        members: By field, lower case.
    """

    key: str
    tar: str
    members: dict[str, Member] = field(default_factory=dict)
    _parsed: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.tar}, {self.key}"

    def member(self, origin: Origin) -> Member:
        """The member that a value is in.

        Raises:
            FormatError: If the sample has none of that name.
        """
        found = self.members.get(origin.member)
        if found is None:
            raise FormatError(
                f"{self.where}: members {', '.join(sorted(self.members))}, wanted {origin.member} too, which the "
                "mapping names. Correct the mapping, or write the sample again."
            )
        return found

    def value(self, file: BinaryIO, origin: Origin) -> Any:
        """A JSON value or a text; `MISSING` if JSON has nothing at that path.

        Raises:
            FormatError: If the member is missing, or cannot be read.
        """
        member, where = self.member(origin), f"{self.where}.{origin.member}"
        limit = _JSON_LIMIT_BYTES if origin.kind == "json" else _TEXT_LIMIT_BYTES
        if member.size > limit:
            raise FormatError(f"{where}: {member.size:,} bytes, wanted at most {limit:,}.")
        if origin.member not in self._parsed:
            data = read_member(file, member)
            self._parsed[origin.member] = parse_json(data, where) if origin.kind == "json" else _text(data, where)
        parsed = self._parsed[origin.member]
        return find_path(parsed, origin.path) if origin.kind == "json" else parsed

    def array(self, file: BinaryIO, origin: Origin) -> NDArray[Any]:
        """The numbers of one step, from a ``.npy`` member or of a JSON value.

        Raises:
            FormatError: If they are no numbers, of lists of several lengths, or too many.
        """
        where = f"{self.where}.{origin.member}"
        if origin.kind == "npy":
            header = self.npy_header(file, origin)
            member = self.members[origin.member]
            _check_size(member.size - header.data_offset, where)
            data = read_member(file, member)[header.data_offset :]
            return np.frombuffer(data, np.dtype(header.dtype).newbyteorder("<")).reshape(header.shape)
        where += f", {origin.path}"
        value = self.value(file, origin)
        if value is MISSING:
            raise FormatError(f"{where}: not there, wanted numbers. Correct the mapping, or write the sample again.")
        array = numbers(value)
        if array is None:
            raise FormatError(f"{where}: {value!r:.80}, wanted a number, or lists of numbers of one length.")
        _check_size(array.nbytes, where)
        return array

    def npy_header(self, file: BinaryIO, origin: Origin) -> NpyHeader:
        """What a ``.npy`` member holds.

        Raises:
            FormatError: As `read_npy_header`.
        """
        member = self.member(origin)
        return read_npy_header(read_member(file, member, HEADER_LIMIT), member.size, f"{self.where}.{origin.member}")

    def forget(self) -> None:
        """Drop what was parsed of its members."""
        self._parsed.clear()


def samples_of(members: Iterable[Member], where: str) -> list[Sample]:
    """The samples of a tar, in the order of their first members; those of one key need not follow each other.

    Raises:
        FormatError: If a sample has one field twice.
    """
    samples: dict[str, Sample] = {}
    for member in members:
        key, name = split_key(member.name)
        if not key or member.name.rpartition("/")[2].startswith("."):  # as macOS leaves beside every file
            continue
        sample = samples.setdefault(key, Sample(key, where))
        if name.lower() in sample.members:
            raise FormatError(f"{where}, {member.name}: this field twice in one sample, wanted it once.")
        sample.members[name.lower()] = member
    return list(samples.values())


def find_path(value: Any, path: str) -> Any:
    """What is at a path of names joined by dots; names may have dots themselves, and numbers count in lists.

    >>> find_path({"observation.state": [1, 2], "robot": {"arms": [{"q": 3}]}}, "robot.arms.0.q")
    3
    """
    if not path:
        return value
    names = path.split(".")
    if isinstance(value, dict):
        for count in range(len(names), 0, -1):
            name = ".".join(names[:count])
            if name in value:
                found = find_path(value[name], ".".join(names[count:]))
                if found is not MISSING:
                    return found
    elif isinstance(value, list) and _PLACE.fullmatch(names[0]) and int(names[0]) < len(value):
        return find_path(value[int(names[0])], ".".join(names[1:]))
    return MISSING


def numbers(value: Any) -> NDArray[Any] | None:
    """A JSON value as bool, int64 or float64; None if it is no number and no lists of numbers of one length."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # lists of several lengths
        return None
    return array if array.dtype in (np.bool_, np.int64, np.float64) and array.size else None


def _check_size(num_bytes: int, where: str) -> None:
    if num_bytes > MAX_ROW_BYTES:
        raise FormatError(
            f"{where}: {num_bytes:,} bytes a step, wanted at most {MAX_ROW_BYTES:,}. Pictures as .npy are cameras: "
            "call the feature observation.images.NAME; leave other large arrays out."
        )


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: no UTF-8 ({error}), wanted a text.") from error
